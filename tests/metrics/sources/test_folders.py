"""Clips of a folder: windows, kinds of files, failures with their names."""

import errno
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from dnnlib import video
from dnnlib.util import Skip, UserError
from metrics.records.digests import json_digest
from metrics.sources import clips, folders
from support.small_data import CLIPS, FRAMES
from training.data.dataset import VideoDataset

T = 4


def smooth(frames, size=32, start=0):
    """Frames whose red is their number times 8."""
    clip = np.full((frames, size, size, 3), 90, np.uint8)
    clip[..., 0] = 8 * np.arange(start, start + frames)[:, None, None]
    return clip


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    """A folder of good and bad clips."""
    root = tmp_path_factory.mktemp('mixed')
    for k in (1, 2, 10):
        video.write_video(root / f'a{k}.mp4', smooth(20, start=k))
    video.write_video(root / 'b short.mp4', smooth(3))
    (root / 'c corrupted.mp4').write_bytes(b'no video')
    video.write_video(root / 'd large.mp4', smooth(20, 64))
    video.write_video(root / 'e wide.mp4', smooth(20)[:, :16])
    video.write_video(root / 'f black.mp4', smooth(20) * 0)
    (root / 'g').mkdir()
    for k, image in enumerate(smooth(11)):
        Image.fromarray(image).save(root / 'g' / f'{k}.png')
        Image.fromarray(image[..., 0]).save(root / 'g' / f'{k}.depth.png')
    video.write_video(root / '.hidden.mp4', smooth(20))
    return root


def outcome(source, i):
    """Returns the numbers of the frames of an item, or `NAME: reason`."""
    try:
        clip = source.item(i)
    except Skip as err:
        return f'{source.name(i)}: {err}'
    assert clip.shape == (T, 32, 32, 3)
    return (clip[..., 0].mean((1, 2)) / 8).round().astype(int).tolist()


def test_folder_of_fakes(mixed):
    source = clips.FolderClips(mixed, T)
    outcomes = [outcome(source, i) for i in range(len(source))]
    assert outcomes.pop(4).startswith('c corrupted.mp4: ')
    assert outcomes == [
        *([k, k + 1, k + 2, k + 3] for k in (1, 2, 10)),
        'b short.mp4: has 3 frames, fewer than 4',
        'd large.mp4: is 64x64, unlike the other clips (32x32)',
        'e wide.mp4: is 32x16, not square',
        'f black.mp4: frame 0 is black (4 of 4 are)',
        [0, 1, 2, 3],
    ]
    assert [source.is_video(i) for i in range(9)] == [True] * 8 + [False]
    assert np.array_equal(source.item(8), smooth(4))
    assert not np.array_equal(clips.encoded(source, 15, 25).item(8), smooth(4))
    assert len(clips.FolderClips(mixed, T, count=2)) == 2 and len(clips.FolderClips(mixed, T, count=99)) == 9


def test_folder_of_real_clips(mixed):
    source = clips.FolderClips(mixed, T, seed=1, count=27)
    assert len(source) == 27 and source.identity['distinct_clips'] == 9
    good = [o for o in (outcome(source, i) for i in range(27)) if not isinstance(o, str)]
    assert len(good) == 12 and (np.diff(good) == 1).all() and len({o[0] for o in good}) > 5
    others = [clips.FolderClips(mixed, T), clips.FolderClips(mixed, 5), clips.FolderClips(mixed, T, seed=2)]
    assert len({json_digest(s.identity) for s in [source, *others]}) == 4


def test_windows_are_those_of_the_data_set(clip_files, data, tmp_path):
    """A folder of the images of a data set, or of lossless-as-can-be videos, gives the same windows."""
    dataset = VideoDataset.Config(path=data).build()
    for name, content in clip_files.items():
        (tmp_path / 'p' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'p' / name).write_bytes(content)
    (tmp_path / 'v').mkdir()
    for k in range(CLIPS):
        frames = dataset.clip_frames(k, range(FRAMES)).permute(0, 2, 3, 1).numpy()
        video.write_video(tmp_path / 'v' / f'{k}.mp4', frames, crf=1)
    ours = clips.DatasetClips(dataset, T, 5, 3 * CLIPS)
    images, videos = (clips.FolderClips(tmp_path / kind, T, 5, 3 * CLIPS) for kind in 'pv')
    for i in range(len(ours)):
        clip = ours.item(i)
        assert ours.group(i) == images.group(i) == videos.group(i)
        assert np.array_equal(images.item(i), clip)
        assert np.abs(videos.item(i).astype(int) - clip).mean() < 4
    assert images.folder.fps == 25.0 and videos.folder.fps is None


def test_failures_of_the_machine_do_not_skip_a_clip(mixed, monkeypatch):
    source, fail = clips.FolderClips(mixed, T), Mock(side_effect=OSError(errno.EMFILE, 'Too many open files'))
    monkeypatch.setattr('subprocess.Popen', fail)
    monkeypatch.setattr('pathlib.Path.read_bytes', fail)
    for attempt in (lambda: source.item(0), lambda: source.item(8), lambda: clips.FolderClips(mixed, T)):
        with pytest.raises(OSError, match='Too many open files'):
            attempt()


def test_depth_normals_and_grids_of_gen_videos_are_no_clips(tmp_path, caplog):
    names = [
        'seed1.mp4',
        'seed1-depth.mp4',
        'seed1-normals.mp4',
        'seed1-opacity.mp4',
        'grid.mp4',
        'seed2-depth.mp4',
        'x-depth.mp4',
    ]
    names += ['x.mp4', 'mine/grid.mp4']  # not of gen_videos.py
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        video.write_video(tmp_path / name, np.full((2, 16, 16, 3), 99, np.uint8))
    folder = folders.Folder(tmp_path)
    kept = {'mine/grid.mp4', 'seed1.mp4', 'seed2-depth.mp4', 'x-depth.mp4', 'x.mp4'}  # seed2 is not there
    assert {folder.name(p) for p in folder.paths} == kept
    assert all(name in caplog.messages[0] for name in names[1:5])


def test_folders_that_cannot_be_used(tmp_path):
    for path in (tmp_path / 'absent', tmp_path):
        with pytest.raises(UserError, match=f'{path} is not a folder with videos'):
            clips.FolderClips(path, T)
    video.write_video(tmp_path / 'e wide.mp4', smooth(20)[:, :16])
    (tmp_path / 'c.mp4').write_bytes(b'no video')
    with pytest.raises(UserError, match='none of the 2 clips .* e wide.mp4 is 32x16, not square'):
        clips.FolderClips(tmp_path, T)
