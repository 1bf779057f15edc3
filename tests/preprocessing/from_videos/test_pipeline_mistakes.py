"""Mistakes of users of `from-videos`: told before the work begins, and never at the cost of what was done."""

import json
import shutil

import pytest
from click.testing import CliRunner

from dataset_tool import main
from dnnlib.util import UserError
from preprocessing.from_videos import identities, pipeline
from preprocessing.from_videos.pipeline import run
from support.pipelines import FakeRecognizer, contents, digest, made, options

CHECKED_FIRST = [
    ({'download': True}, {}, 'needs a --list'),
    ({}, {'only': 'fetch'}, 'needs a --list'),
    ({'deep3d': '/nonexistent'}, {}, '/nonexistent is not a folder; --deep3d'),
    ({'dest': 'x.tar'}, {}, '--dest x.tar must be the name of a zip'),
    ({'source': 'typo'}, {}, 'typo is not a folder; --source'),
]


@pytest.mark.parametrize('change, how, told', CHECKED_FIRST)
def test_told_before_anything_is_done(fakes, videos, tmp_path, change, how, told):
    chosen = pipeline.dataclasses.replace(options(videos, tmp_path), **change)
    with pytest.raises(UserError, match=told):
        run(chosen, say=str, **how)
    assert not (tmp_path / 'w').exists()


def test_missing_recognizer_is_told_first(fakes, videos, tmp_path, monkeypatch):
    class Missing(FakeRecognizer):
        def load(self):
            raise UserError('no such weights')

    monkeypatch.setattr(identities, 'Recognizer', Missing)
    with pytest.raises(UserError, match='no such weights'):
        run(options(videos, tmp_path), say=str)
    assert not (tmp_path / 'w').exists()
    assert run(options(videos, tmp_path), until='cameras', say=str) == 'cameras'  # which does without


def test_two_ways_to_choose_stages(videos, tmp_path):
    command = ['from-videos', '--source', str(videos), '--dest', str(tmp_path / 'x.zip')]
    result = CliRunner().invoke(main, [*command, '--only', 'shots', '--until', 'tracks'])
    assert result.exit_code == 1 and '--only and --until exclude each other' in result.output
    for dest in ('', '/'):
        result = CliRunner().invoke(main, ['from-videos', '--source', str(videos), '--dest', dest])
        assert result.exit_code == 1 and 'must be the name of a zip' in result.output


def test_another_source_does_not_remove_results(fakes, videos, tmp_path):
    """A mistaken or unmounted --source would cost all that was computed."""
    run(options(videos, tmp_path), say=str)
    before = contents(tmp_path / 'w' / 'align')
    other = tmp_path / 'other'
    other.mkdir()
    for name in ('', 'z.mp4'):
        if name:
            shutil.copy(videos / 'blue2.mp4', other / name)
        with pytest.raises(UserError, match='holds results of other videos than .*other, such as a__red'):
            run(options(other, tmp_path), say=str)
    assert before and contents(tmp_path / 'w' / 'align') == before
    shutil.copy(videos / 'blue2.mp4', other)  # some are the same: it has changed
    run(options(other, tmp_path), say=str)


def test_work_folder_inside_the_source(fakes, videos, tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(videos, source)
    for _ in range(2):
        run(options(source, source), say=str)
        found = json.loads((source / 'w' / 'sources.json').read_text())
        assert set(found['rejected']) == {'empty.mp4', 'notes.txt'}


@pytest.mark.parametrize('error, reports', [(KeyboardInterrupt, 0), (UserError, 1), (None, 1)])
def test_report_of_a_run_that_ended_early(fakes, videos, tmp_path, monkeypatch, error, reports):
    """None after Ctrl-C, which should end the run at once; the first error is the one that is told."""
    calls = []

    def fail(self):
        if error is not None:
            raise error('first')

    def report(self):
        calls.append(1)
        raise UserError('second')

    monkeypatch.setattr(pipeline.Pipeline, 'run_cameras', fail)
    monkeypatch.setattr(pipeline.Pipeline, 'report', report)
    with pytest.raises(error or UserError, match='first' if error else 'second'):
        run(options(videos, tmp_path), until='cameras', say=str)
    assert len(calls) == reports


def test_full_disk_is_told(fakes, videos, tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, 'No space left on device', '/there/x')

    monkeypatch.setattr(pipeline.Pipeline, 'run_shots', full)
    with pytest.raises(UserError, match='/there/x: the disk is full'):
        run(options(videos, tmp_path), say=str)


def test_changed_coefficients_cost_their_own_clip(fakes, videos, tmp_path):
    folder = tmp_path / 'coefficients'
    for clip, count in (('a__red-000000', 18), ('blue2-000000', 20)):
        (folder / clip).mkdir(parents=True)
        for i in range(count):
            table = {'angle': [0.1, 0.2, 0.0], 'trans': [0.0, 0.0, 0.0]}
            (folder / clip / f'{i}.json').write_text(json.dumps(table))
    chosen = options(videos, tmp_path, deep3d=str(folder))
    run(chosen, until='cameras', say=str)
    before = made(tmp_path / 'w' / 'cameras')
    (folder / 'a__red-000000' / '3.json').write_text(json.dumps({**table, 'angle': [0.3, 0.0, 0.0]}))
    run(chosen, until='cameras', say=str)
    after = made(tmp_path / 'w' / 'cameras')
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {'a__red-000000.json', 'blue10-000000.json'}  # the last has none and is tried again


def test_videos_that_come_and_go(fakes, videos, tmp_path):
    """What a list asks for is looked for again when its file is gone, or has been brought by hand."""
    folder = tmp_path / 'yt'
    folder.mkdir()
    (tmp_path / 'list.txt').write_text('abcdefghijk\nlmnopqrstuv\n')
    chosen = options(folder, tmp_path, list_kind='talkinghead', list_path=str(tmp_path / 'list.txt'))
    shutil.copy(videos / 'blue2.mp4', folder / 'abcdefghijk.mp4')
    shutil.copy(videos / 'a' / 'red.mp4', folder / 'lmnopqrstuv.mp4')
    lines = []
    run(chosen, until='fetch', say=lines.append)
    (folder / 'abcdefghijk.mp4').unlink()
    run(chosen, until='fetch', say=lines.append)
    gone = tmp_path / 'w' / 'fetch' / 'lmnopqrstuv.json'
    result = json.loads(gone.read_text())
    gone.write_text(json.dumps({'key': result['key'], 'rejected': 'the video cannot be fetched: private'}))
    run(chosen, until='fetch', say=lines.append)
    rejected = 'fetch: 2 in, 1 videos out; rejected: 1 x not in the folder of --source'
    assert lines == ['fetch: 2 in, 2 videos out', rejected, rejected]


def test_dest_in_a_missing_folder(fakes, videos, tmp_path):
    chosen = pipeline.dataclasses.replace(options(videos, tmp_path), dest=str(tmp_path / 'a' / 'b' / 'x.zip'))
    run(chosen, say=str)
    run(options(videos, tmp_path), say=str)
    assert digest(tmp_path / 'a' / 'b' / 'x.zip') == digest(tmp_path / 'x.zip')
