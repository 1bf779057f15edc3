"""Errors of users of `from-videos`: reported before the work begins, never at the cost of what was done."""

import dataclasses
import json
import shutil

import pytest
from click.testing import CliRunner

from dataset_tool import main
from dnnlib.util import UserError
from preprocessing.from_videos import identities, pipeline, shots
from preprocessing.from_videos.pipeline import run
from support.pipelines import contents, options

CHECKED_FIRST = [
    ({'download': True}, {}, 'needs a --list'),
    ({}, {'only': 'fetch'}, 'needs a --list'),
    ({}, {'until': 'cook'}, 'cook is not a stage; the stages are fetch, sources, shots'),
    ({'deep3d': '/nonexistent'}, {}, '/nonexistent is not a folder; --deep3d'),
    ({'dest': 'x.tar'}, {}, '--dest x.tar must be the name of a zip'),
    ({'source': 'typo'}, {}, 'typo is not a folder; --source'),
    ({'source': __file__}, {}, 'holds the videos: put the file into a folder of its own'),
]


@pytest.mark.parametrize('change, how, message', CHECKED_FIRST)
def test_reported_before_anything_is_done(fakes, videos, tmp_path, change, how, message):
    chosen = dataclasses.replace(options(videos, tmp_path), **change)
    with pytest.raises(UserError, match=message):
        run(chosen, echo=str, **how)
    assert not (tmp_path / 'w').exists()


def test_missing_recognizer_is_reported_first(fakes, videos, tmp_path, monkeypatch):
    def missing(name, file):
        raise UserError('no such weights')

    monkeypatch.setattr(identities, 'load_recognizer', missing)
    with pytest.raises(UserError, match='no such weights'):
        run(options(videos, tmp_path), echo=str)
    assert not (tmp_path / 'w').exists()
    assert run(options(videos, tmp_path), until='cameras', echo=str) == 'cameras'  # which does without


def test_command_line(fakes, videos, tmp_path):
    def call(*args, dest=tmp_path / 'my.zip'):
        command = ['from-videos', '--source', videos, '--dest', dest, '--workers', 1, *args]
        return CliRunner().invoke(main, [str(arg) for arg in command])

    result = call('--resolution', 64)
    assert result.exit_code == 0, result.output
    assert 'identities: 3 in, 3 clips of 2 people out' in result.output
    look = f'look at it: python dataset_tool.py show {tmp_path}/my.zip --dest {tmp_path}/my.png'
    assert result.output.splitlines()[-2:] == [look, f'report: {tmp_path}/my-work/report.html']
    assert CliRunner().invoke(main, ['check', str(tmp_path / 'my.zip')]).exit_code == 0
    result = call('--only', 'shots', '--until', 'tracks')
    assert result.exit_code == 1 and '--only and --until' in result.output
    result = call('--list', 'celebvhq', tmp_path / 'none.json')
    assert result.exit_code == 1 and 'cannot read the list' in result.output
    for dest in ('', '/'):
        assert 'must be the name of a zip' in call(dest=dest).output


def test_another_source_does_not_remove_results(fakes, videos, tmp_path):
    """A wrong or unmounted --source would cost all that was computed."""
    run(options(videos, tmp_path), echo=str)
    before = contents(tmp_path / 'w' / 'align')
    other = tmp_path / 'other'
    other.mkdir()
    for name in ('', 'z.mp4'):
        if name:
            shutil.copy(videos / 'blue2.mp4', other / name)
        with pytest.raises(UserError, match='holds results of other videos than .*other, such as a__red'):
            run(options(other, tmp_path), echo=str)
    assert before and contents(tmp_path / 'w' / 'align') == before
    shutil.copy(videos / 'blue2.mp4', other)  # some are the same: it has changed
    run(options(other, tmp_path), echo=str)


def test_work_folder_inside_the_source(fakes, videos, tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(videos, source)
    for _ in range(2):
        run(options(source, source), echo=str)
        found = json.loads((source / 'w' / 'sources.json').read_text())
        assert set(found['rejected']) == {'empty.mp4', 'notes.txt'}


@pytest.mark.parametrize('error, reports', [(KeyboardInterrupt, 0), (UserError, 1), (None, 1)])
def test_report_of_a_run_that_ended_early(fakes, videos, tmp_path, monkeypatch, error, reports):
    """None after Ctrl-C, which should end the run at once; the first error is the one that is reported."""
    calls = []

    def fail(path):
        if error is not None:
            raise error('first')
        return [(0, 5)]

    def report(self):
        calls.append(1)
        raise UserError('second')

    monkeypatch.setattr(shots, 'find_shots', fail)
    monkeypatch.setattr(pipeline.Pipeline, 'report', report)
    with pytest.raises(error or UserError, match='first' if error else 'second'):
        run(options(videos, tmp_path), until='shots', echo=str)
    assert len(calls) == reports


def test_full_disk_is_reported(fakes, videos, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, 'No space left on device', '/there/x')

    monkeypatch.setattr(shots, 'find_shots', full)
    with pytest.raises(UserError, match='/there/x: the disk is full'):
        run(options(videos, tmp_path), echo=str)


def test_videos_that_come_and_go(fakes, videos, tmp_path):
    """What a list asks for is looked for again when its file is gone, or has been brought by hand."""
    folder = tmp_path / 'yt'
    folder.mkdir()
    (tmp_path / 'list.txt').write_text('abcdefghijk\nlmnopqrstuv\n')
    chosen = options(folder, tmp_path, list_kind='talkinghead', list_path=str(tmp_path / 'list.txt'))
    shutil.copy(videos / 'blue2.mp4', folder / 'abcdefghijk.mp4')
    shutil.copy(videos / 'a' / 'red.mp4', folder / 'lmnopqrstuv.mp4')
    lines = []
    run(chosen, until='fetch', echo=lines.append)
    (folder / 'abcdefghijk.mp4').unlink()
    run(chosen, until='fetch', echo=lines.append)
    gone = tmp_path / 'w' / 'fetch' / 'lmnopqrstuv.json'
    result = json.loads(gone.read_text())
    gone.write_text(json.dumps({'key': result['key'], 'rejected': 'the video cannot be fetched: private'}))
    run(chosen, until='fetch', echo=lines.append)
    rejected = 'fetch: 2 in, 1 videos out; rejected: 1 x not in the folder of --source'
    assert lines == ['fetch: 2 in, 2 videos out', rejected, rejected]
