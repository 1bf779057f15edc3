"""The whole pipeline: with small stand-ins for the face parts, and on real clips where they are."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

from dnnlib.util import UserError
from preprocessing.from_videos import pipeline
from preprocessing.from_videos.pipeline import run
from preprocessing.from_videos.sources import keep_listed_face
from support.paths import ROOT
from support.pipelines import contents, digest, made, options, replace
from support.real_faces import CLIPS, sface_file
from training.data.dataset import VideoDataset

CLIP_STAGES = ('align', 'cameras', 'embeddings', 'verify')
VARYING = ('w/report.html', 'w/pack.json')  # they name the zip, which is elsewhere


@pytest.fixture(scope='module')
def whole(videos, tmp_path_factory):
    """The folder of a run that was not stopped, and what it printed."""
    folder, lines = tmp_path_factory.mktemp('whole'), []
    with pytest.MonkeyPatch.context() as patch:
        replace(patch)
        assert run(options(videos, folder), echo=lines.append) == 'pack'
    return folder, lines


def results(folder):
    return {name: value for name, value in contents(folder).items() if name not in VARYING}


def test_whole(videos, whole):
    tmp_path, lines = whole
    assert lines == [
        'sources: 6 in, 4 videos out; rejected: 1 x not a video; 1 x the file is empty',
        'shots: 4 in, 4 videos, 6 shots out',
        'tracks: 4 in, 3 clips out; rejected: 2 x no face in any frame; 1 x face only in 5 frames',
        *(f'{stage}: 3 in, 3 clips out' for stage in CLIP_STAGES),
        'identities: 3 in, 3 clips of 2 people out',
        'pack: 3 in, 3 clips, 58 frames in x.zip out',
    ]
    found = json.loads((tmp_path / 'w' / 'sources.json').read_text())
    assert [video['id'] for video in found['videos']] == ['a__red', 'blue2', 'blue10', 'landscape']
    assert set(found['rejected']) == {'empty.mp4', 'notes.txt'}
    assert found['videos'][1] == {
        **{'id': 'blue2', 'path': str(videos / 'blue2.mp4'), 'sha256': digest(videos / 'blue2.mp4')},
        **{'fps': 10.0, 'frames': 20, 'width': 64, 'height': 64, 'pace': [0.0, 0.1]},
        **{'speaker': None, 'start_sec': None, 'end_sec': None, 'box': None},
    }
    aligned = json.loads((tmp_path / 'w' / 'align' / 'blue10-000000.json').read_text())
    assert (aligned['video'], aligned['first'], aligned['frames'], aligned['upscale']) == ('blue10', 0, 20, 1)
    assert VideoDataset.Config(path=str(tmp_path / 'x.zip')).build().resolution == 64
    assert 'blue10' in (tmp_path / 'w' / 'report.html').read_text()


@pytest.mark.parametrize('stage', [*CLIP_STAGES, 'sources', 'shots', 'tracks', 'identities', 'pack'])
def test_stopped_in_any_stage_and_run_again(fakes, videos, whole, tmp_path, monkeypatch, stage):
    """Files are written, their result is not: then all files are those of a run that was not stopped."""
    known, seen = pipeline.stages(), []

    @functools.wraps(known[stage])
    def stop(item, options):
        seen.append(item)
        result = known[stage](item, options)
        if len(seen) == 2 or item.name == stage:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, 'stages', lambda: {**known, stage: stop})
        run(options(videos, tmp_path), echo=str)
    assert not (tmp_path / 'w' / 'pack.json').exists()
    run(options(videos, tmp_path), echo=str)
    assert results(whole[0]) == results(tmp_path)


def test_a_cluster_whose_worker_is_killed(fakes, videos, whole, tmp_path):
    distributed = pytest.importorskip('distributed')
    code = 'import sys; from support.pipelines import work_slowly; work_slowly(*sys.argv[1:])'
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol='tcp://', dashboard_address=None
    ) as cluster:
        command = [sys.executable, '-c', code, cluster.scheduler_address, str(tmp_path)]
        # away from the project: paths must be absolute, and the same on all machines
        workers = [
            subprocess.Popen(command, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': paths}) for _ in range(2)
        ]

        def kill():
            while not (found := list(tmp_path.glob('*.pid'))):
                time.sleep(0.02)
            os.kill(int(found[0].stem), signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        try:
            run(options(videos, tmp_path, scheduler=cluster.scheduler_address), echo=str)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert not killer.is_alive() and sorted(worker.returncode for worker in workers) == [-9, -9]
    assert digest(whole[0] / 'x.zip') == digest(tmp_path / 'x.zip')


def test_a_cluster_that_cannot_be_used(fakes, videos, tmp_path, monkeypatch):
    pytest.importorskip('distributed')
    with pytest.raises(UserError, match='--scheduler tcp//x'):
        run(options(videos, tmp_path, scheduler='tcp//x'), echo=str)
    monkeypatch.setitem(sys.modules, 'distributed', None)
    with pytest.raises(UserError, match=r"pip install -e '.\[cluster\]'"):
        run(options(videos, tmp_path, scheduler='tcp://x:1'), echo=str)


WHOLE = ['identities', 'pack']
CHANGES = [
    ({}, []),
    ({'similarity': 0.4}, ['verify', *WHOLE]),  # the same clips are accepted
    ({'per_person': 1}, WHOLE),
    ({'format': 'webp'}, ['pack']),
    ({'sigma': 1.0}, [*CLIP_STAGES, *WHOLE]),
]


def test_changed_options_make_what_depends_on_them(fakes, videos, tmp_path):
    run(options(videos, tmp_path), echo=str)
    for change, expected in CHANGES:
        before = made(tmp_path / 'w')
        run(options(videos, tmp_path, **change), echo=str)
        after = made(tmp_path / 'w')
        parts = {name.removesuffix('.json').split('/')[0] for name in before if before[name] != after[name]}
        assert parts - {'sources'} == set(expected)  # sources.json is written by each run
        run(options(videos, tmp_path), echo=str)


def test_removed_video(fakes, videos, tmp_path):
    """What is not asked for any more leaves the work folder, and the data set is as if it had never been."""
    source = tmp_path / 'source'
    shutil.copytree(videos, source)
    run(options(source, tmp_path / 'a'), echo=str)
    (source / 'blue2.mp4').unlink()
    run(options(source, tmp_path / 'a'), echo=str)
    run(options(source, tmp_path / 'b'), echo=str)
    assert not [name for name in contents(tmp_path / 'a' / 'w') if 'blue2' in name]
    assert digest(tmp_path / 'a' / 'x.zip') == digest(tmp_path / 'b' / 'x.zip')


def test_lost_and_moved_zips_are_written_again(fakes, videos, tmp_path):
    run(options(videos, tmp_path), echo=str)
    before = digest(tmp_path / 'x.zip')
    (tmp_path / 'x.zip').write_bytes(b'x')
    run(options(videos, tmp_path), echo=str)
    other = tmp_path / 'a' / 'b' / 'x.zip'
    run(dataclasses.replace(options(videos, tmp_path), dest=str(other)), echo=str)
    assert digest(tmp_path / 'x.zip') == digest(other) == before


def test_single_stages(fakes, videos, tmp_path):
    with pytest.raises(UserError, match='stage sources has no result.*run it first: --until sources'):
        run(options(videos, tmp_path), only='shots', echo=str)
    assert run(options(videos, tmp_path), until='tracks', echo=str) == 'tracks'
    assert not (tmp_path / 'w' / 'align').exists()
    lines = []
    run(options(videos, tmp_path), only='align', echo=lines.append)
    assert lines == ['align: 3 in, 3 clips out']
    with pytest.raises(UserError, match='stage align has no result.*run it first: --until align$'):
        run(options(videos, tmp_path, sigma=1.0), only='cameras', echo=str)


def test_nothing_usable(fakes, videos, tmp_path):
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none' / 'a.mp4').touch()
    with pytest.raises(UserError, match=r'no video of .*none is left .*; rejected: 1 x the file is empty'):
        run(options(tmp_path / 'none', tmp_path), echo=str)
    shutil.copy(videos / 'landscape.mp4', tmp_path / 'none')
    with pytest.raises(UserError, match=r'no clip of .* is left .*report\.html'):
        run(options(tmp_path / 'none', tmp_path), echo=str)
    assert 'no face in any frame' in (tmp_path / 'w' / 'report.html').read_text()


def test_lists(fakes, videos, tmp_path):
    """Clips of a list are cut out of what is in the folder; known speakers keep their label."""
    folder = tmp_path / 'yt'
    folder.mkdir()
    shutil.copy(videos / 'blue2.mp4', folder / 'abcdefghijk.mp4')
    text = 'Identity : id7\nReference : {}\nFRAME X Y W H\n000000 0 0 1 1\n000049 0 0 1 1\n'
    for name, video in (('one', 'abcdefghijk'), ('two', 'lmnopqrstuv')):
        (tmp_path / 'list' / 'id7' / video).mkdir(parents=True)
        (tmp_path / 'list' / 'id7' / video / f'{name}.txt').write_text(text.format(video))
    lines = []
    chosen = options(folder, tmp_path, list_kind='voxceleb', list_path=str(tmp_path / 'list'))
    run(chosen, echo=lines.append)
    assert lines[:2] == [
        'fetch: 2 in, 1 videos out; rejected: 1 x not in the folder of --source',
        'sources: 2 in, 1 videos out; rejected: 1 x not in the folder of --source',
    ]
    (video,) = json.loads((tmp_path / 'w' / 'sources.json').read_text())['videos']
    assert video['id'] == 'id7__abcdefghijk__one' and video['speaker'] == 'id7' and video['frames'] == 20
    assert video['box'] == [0, 0, 64, 64]
    assert video['path'] == str(tmp_path / 'w' / 'sources' / f'{video["id"]}.mp4')
    assert json.loads((tmp_path / 'w' / 'identities.json').read_text())['speakers'] == {'0': 'id7'}
    with zipfile.ZipFile(tmp_path / 'x.zip') as archive:
        listed = json.loads(archive.read('dataset.json'))['clips']['000000']['listed']
    assert (listed['video'], listed['start_sec'], listed['end_sec']) == ('abcdefghijk', 0.0, 2.0)


def test_faces_outside_the_listed_box_are_rejected():
    tracks = [{'shot': 0, 'box': [0, 0, 10, 10]}, {'shot': 0, 'box': [30, 30, 50, 50]}]
    arrays = {f'{name}_{k}': np.full(3, k) for name in ('landmarks', 'scores') for k in (0, 1)}
    kept, result = keep_listed_face(arrays, {'tracks': tracks, 'rejected': []}, [25, 25, 60, 60])
    assert result['tracks'] == tracks[1:]
    assert result['rejected'] == [{'shot': 0, 'reason': 'another face than the listed one'}]
    assert set(kept) == {'landmarks_0', 'scores_0'} and (kept['landmarks_0'] == 1).all()


def test_coefficients(fakes, videos, tmp_path):
    """Of two clips there are some; a changed file costs its own clip, a missing one is looked for again."""
    folder, lines = tmp_path / 'coefficients', []
    table = {'angle': [0.1, 0.2, 0.0], 'trans': [0.0, 0.0, 0.0]}
    for clip, count in (('a__red-000000', 18), ('blue2-000000', 7)):
        (folder / clip).mkdir(parents=True)
        for i in range(count):
            (folder / clip / f'{i}.json').write_text(json.dumps(table))
    chosen = options(videos, tmp_path, deep3d=str(folder))
    run(chosen, until='cameras', echo=lines.append)
    expected = '1 x 20 frames but 7 coefficients; 1 x no coefficients of the clip in the folder of --deep3d'
    assert f'cameras: 3 in, 1 clips out; rejected: {expected}' in lines
    for i in range(20):
        (folder / 'blue2-000000' / f'{i}.json').write_text(json.dumps(table))
    run(chosen, until='cameras', echo=str)
    before = made(tmp_path / 'w' / 'cameras')
    (folder / 'a__red-000000' / '3.json').write_text(json.dumps({**table, 'angle': [0.3, 0.0, 0.0]}))
    run(chosen, until='cameras', echo=str)
    after = made(tmp_path / 'w' / 'cameras')
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {'a__red-000000.json', 'blue10-000000.json'}


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason='the real clips are not here')
def test_real_clips(tmp_path):
    """Two people in processes: faces in every frame, cameras near the known ones, a checked data set."""
    sface_file()
    (tmp_path / 'videos').mkdir()
    for name in ('woman_16f.mp4', 'generated48/rgb_0004.mp4'):
        shutil.copy(CLIPS / name, tmp_path / 'videos')
    options = ['--source', 'videos', '--dest', 'my.zip', '--resolution', '64', '--workers', '2']
    command = [sys.executable, str(ROOT / 'dataset_tool.py'), 'from-videos', *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'pack: 2 in, 2 clips, 64 frames in my.zip out' in done.stdout
    table = json.loads((CLIPS / 'cameras.json').read_text())
    for clip, name in (('woman_16f', 'woman_16f.mp4'), ('rgb_0004', 'generated48/rgb_0004.mp4')):
        labels = json.loads((tmp_path / 'my-work' / 'cameras' / f'{clip}-000000.json').read_text())['labels']
        axes, known = (np.array(rows)[:, [2, 6, 10]] for rows in (labels, table[name]))
        angles = np.degrees(np.arccos(np.clip((axes * known).sum(axis=1), -1, 1)))
        assert np.median(angles) < 4, (name, np.median(angles))
