"""Cuts: found where clips are spliced, not where heads turn, blink, or the light flickers."""

import functools
import weakref

import numpy as np
import pytest

from dnnlib.util import DataError
from dnnlib.video import video_frames, write_video
from preprocessing.from_videos.shots import difference, find_shots, signature, split
from support.real_faces import CLIPS


@functools.cache
def clip(name):
    """Frames of a real clip at half size, uint8 [T, 256, 256, 3]."""
    if not CLIPS.is_dir():
        pytest.skip('the real clips are missing')
    return np.stack([frame[::2, ::2] for frame, _ in video_frames(CLIPS / name)])


def clips():
    return sorted(path.relative_to(CLIPS).as_posix() for path in CLIPS.rglob('*.mp4'))


def scene(seed, frames=20, speed=0.02, size=64):
    """A smooth random image that moves."""
    rng = np.random.default_rng(seed)
    t, y, x = np.mgrid[:frames, :size, :size]
    waves = rng.uniform(-12, 12, (3, 3))
    values = [np.sin(a * x / size + b * y / size + c + speed * t) for a, b, c in waves]
    tint = rng.uniform(0.3, 1, 3)
    return ((np.stack(values, -1) + 1) * 120 * tint + 10).astype(np.uint8)


def shots(*parts):
    return split([signature(frame) for part in parts for frame in part])


def test_spliced_scenes():
    assert shots(scene(0)) == [(0, 20)]
    assert shots(scene(0), scene(1, 7), scene(2)) == [(0, 20), (20, 27), (27, 47)]
    assert shots(scene(0, 1), scene(1, 5)) == [(0, 1), (1, 6)]
    assert shots(scene(0, 1)) == [(0, 1)] and split([]) == []


def test_long_videos_do_not_fill_the_memory():
    """Few signatures are alive at a time, and cuts are still found."""
    alive, most = weakref.WeakSet(), 0

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    def signatures():
        nonlocal most
        for frame in np.concatenate([scene(0), scene(1)]):
            found = signature(frame).view(Counted)
            alive.add(found)
            most = max(most, len(alive))
            yield found

    assert split(signatures()) == [(0, 20), (20, 40)]
    assert most <= 7


def test_single_frames_and_flashes():
    """Three bright frames within a scene are not a cut; the same scene after another is one."""
    flash = scene(0, 3)
    flash[:] = 255
    assert shots(scene(0), flash, scene(0)) == [(0, 43)]
    assert shots(scene(0), scene(1), scene(0)) == [(0, 20), (20, 40), (40, 60)]


def test_fast_motion_and_light():
    assert shots(scene(0, 40, speed=0.25)) == [(0, 40)]
    rng = np.random.default_rng(0)
    flicker = scene(0, 40) * rng.uniform(0.9, 1.1, (40, 1, 1, 1))
    assert shots(flicker.clip(0, 255).astype(np.uint8)) == [(0, 40)]


def test_dark_and_plain_images():
    dark = np.random.default_rng(0).integers(0, 4, (20, 64, 64, 3), np.uint8)
    assert shots(dark) == [(0, 20)]
    assert shots(np.zeros((9, 64, 64, 3), np.uint8)) == [(0, 9)]
    assert shots(np.zeros((9, 64, 64, 3), np.uint8), scene(1, 9)) == [(0, 9), (9, 18)]


def test_other_sizes_and_files(tmp_path):
    wide = np.concatenate([scene(0, 12), scene(3, 12)])[:, :48]
    write_video(tmp_path / 'a.mp4', wide)
    assert find_shots(tmp_path / 'a.mp4') == [(0, 12), (12, 24)]
    (tmp_path / 'b.mp4').touch()
    with pytest.raises(DataError):
        find_shots(tmp_path / 'b.mp4')


@pytest.mark.skipif(not CLIPS.is_dir(), reason='the real clips are missing')
@pytest.mark.parametrize('name', clips() if CLIPS.is_dir() else [''])
def test_no_cut_in_real_clips(name):
    """Neither as they are, nor with light that flickers by 10 %, nor at twice the speed."""
    frames = clip(name)
    assert shots(frames) == [(0, len(frames))]
    light = np.random.default_rng(0).uniform(0.9, 1.1, (len(frames), 1, 1, 1))
    assert shots((frames * light).clip(0, 255).astype(np.uint8)) == [(0, len(frames))]
    assert len(shots(frames[::2])) == 1


@pytest.mark.skipif(not CLIPS.is_dir(), reason='the real clips are missing')
def test_real_people_spliced():
    """Every two people in a row: a cut where they meet, and only there."""
    names = [name for name in clips() if 'generated48' in name or name == 'woman_16f.mp4']
    signatures = {name: [signature(frame) for frame in clip(name)[:12]] for name in names}
    smallest = 9.0
    for first in names:
        for second in names:
            if first != second:
                assert split(signatures[first] + signatures[second]) == [(0, 12), (12, 24)], (first, second)
                smallest = min(smallest, difference(signatures[first][-1], signatures[second][0]))
    assert smallest > 0.6  # 0.35 counts as a cut
