"""Decoding of videos: every frame once, the right colours, errors as one sentence; finding clips."""

import os
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dnnlib.util import DataError, UserError
from dnnlib.video import (
    add_sound,
    cut_video,
    find_clips,
    frame_times,
    is_system_error,
    natural,
    probe,
    run_ffmpeg,
    video_frames,
    write_video,
)
from preprocessing.dataset_files import pack
from support.paths import ROOT


def smooth_frames(count=10, height=48, width=64):
    """Returns smooth moving colours, which chroma subsampling hardly changes."""
    t, y, x = np.mgrid[:count, :height, :width]
    waves = [np.sin(x / 20 + t / 5), np.cos(y / 15 - t / 7), np.sin((x + y) / 25)]
    return np.round(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('video') / 'a.mp4'
    write_video(path, smooth_frames(7), fps=12.5, crf=5)
    return path


def test_frames_come_in_order_with_their_rate(video):
    frames = list(video_frames(video))
    assert len(frames) == 7 and {rate for _, rate in frames} == {12.5}
    images = np.stack([image for image, _ in frames])
    assert images.shape == (7, 48, 64, 3) and images.dtype == np.uint8
    error = np.abs(images.astype(int) - smooth_frames(7))
    assert error.mean() < 3 and error.max() < 24
    again = np.stack([image for image, _ in video_frames(str(video))])
    assert (again == images).all()
    assert probe(video) == (12.5, 64, 48, pytest.approx(0.56), 'mov,mp4,m4a,3gp,3g2,mj2')


def test_stopping_early_ends_the_decoder(tmp_path):
    write_video(tmp_path / 'long.mp4', [*smooth_frames(1, 128, 192)] * 200)
    frames = video_frames(tmp_path / 'long.mp4')
    first = next(frames)[0]
    frames.close()
    assert first.shape == (128, 192, 3)
    with pytest.raises(StopIteration):
        next(frames)


@pytest.mark.parametrize('content', [b'', b'no video', None])
def test_undecodable_files(tmp_path, video, content):
    path = tmp_path / 'bad.mp4'
    path.write_bytes(video.read_bytes()[:200] if content is None else content)
    for bad in (path, tmp_path / 'absent.mp4'):
        with pytest.raises(DataError, match='cannot be decoded'):
            list(video_frames(bad))


def test_file_cut_short_ends_early(tmp_path, video):
    """The table of frames stands at the front, so the frames before the cut can be had."""
    write_video(tmp_path / 'a.mp4', np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8))
    data = (tmp_path / 'a.mp4').read_bytes()
    (tmp_path / 'a.mp4').write_bytes(data[: len(data) // 2])
    assert 0 < len(list(video_frames(tmp_path / 'a.mp4'))) < 9


def test_clips_of_a_folder(tmp_path):
    for name in ('b/c/x.MP4', 'b/f/1.png', 'loose.png', 'notes.txt', 'y.webm'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = {p.relative_to(tmp_path).as_posix() for p in find_clips(tmp_path)}
    assert names == {'b/c/x.MP4', 'b/f', 'y.webm'}
    assert sorted(['f10', 'f9', 'a2'], key=natural) == ['a2', 'f9', 'f10']


@pytest.mark.parametrize(
    ('script', 'reason'),
    [
        ('kill -9 $$', 'killed by signal 9'),
        ('echo "Error opening input: Permission denied" >&2; exit 243', 'Permission denied'),
        ('printf "P6\\n1 1\\n255\\nabc"; echo "Too many open files" >&2; exit 1', 'Too many open files'),
    ],
)
def test_a_failing_machine_is_not_the_fault_of_a_video(video, tmp_path, monkeypatch, script, reason):
    decoder = tmp_path / 'decoder'
    decoder.write_text(f'#!/bin/sh\n{script}\n')
    decoder.chmod(0o755)
    monkeypatch.setattr('imageio_ffmpeg.get_ffmpeg_exe', lambda: str(decoder))
    with pytest.raises(OSError, match=reason) as error:
        list(video_frames(video))
    assert error.value.filename == str(video)
    clip = pack.RawClip('a.mp4', video, [[0.0] * 25] * 7)
    with pytest.raises(OSError, match=reason):  # instead of skipping the clip
        pack.convert(clip, pack.PackOptions(resolution=32, format='png'))
    for call in (lambda: frame_times(video), lambda: cut_video(video, tmp_path / 'b.mp4', 0.0)):
        with pytest.raises(OSError, match=reason):
            call()
    if 'kill' in script:
        with pytest.raises(OSError, match=reason):
            run_ffmpeg(['-version'])


def test_a_place_that_no_file_has_is_not_an_error_of_the_machine(video):
    """A corrupted zip can state one."""
    with open(video, 'rb') as file, pytest.raises(OSError) as error:
        os.pread(file.fileno(), 1, 2**63 - 1)
    assert not is_system_error(error.value)


def decoded(path):
    """Reads a video with imageio_ffmpeg's own reader; returns its metadata and frames [T, H, W, 3]."""
    meta, *frames = imageio_ffmpeg.read_frames(path)
    width, height = meta['size']
    return meta, np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames])


@pytest.mark.parametrize(('height', 'width'), [(48, 64), (47, 61)])
def test_mp4_has_the_frames_rate_and_format(tmp_path, height, width):
    frames = smooth_frames()[:, :height, :width]
    write_video(tmp_path / 'a.mp4', frames, fps=12.5)
    meta, read = decoded(tmp_path / 'a.mp4')
    assert read.shape == (10, 48, 64 if width == 64 else 62, 3)
    error = np.abs(read[:, :height, :width].astype(int) - frames)
    assert error.mean() < 3 and error.max() < 24
    assert (meta['fps'], meta['codec'], meta['pix_fmt'][:7]) == (12.5, 'h264', 'yuv420p')


def test_mp4_keeps_plain_colours(tmp_path):
    """A wrong colour matrix or range changes these by 5 to 30."""
    for color in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 150, 120)]:
        write_video(tmp_path / 'a.mp4', np.full((2, 32, 32, 3), color, np.uint8))
        assert np.abs(decoded(tmp_path / 'a.mp4')[1].astype(int) - color).max() <= 3


def test_mp4_bytes_depend_only_on_frames_and_quality_on_crf(tmp_path):
    for name, crf in (('a', 10), ('b', 10), ('c', 40)):
        write_video(tmp_path / f'{name}.mp4', iter(smooth_frames()), crf=crf)
    a, b, c = ((tmp_path / f'{name}.mp4').read_bytes() for name in 'abc')
    assert a == b
    assert len(c) < 0.75 * len(a)


def test_gif_comes_back(tmp_path):
    write_video(tmp_path / 'a.gif', smooth_frames(), fps=10)
    with Image.open(tmp_path / 'a.gif') as gif:
        read = np.stack([np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(gif)])
    assert np.abs(read.astype(int) - smooth_frames()).mean() < 12  # 256 colours


def test_a_video_that_cannot_be_written_leaves_nothing_new(tmp_path, monkeypatch):
    path = tmp_path / 'a.mp4'
    path.write_bytes(b'older')
    with pytest.raises(IndexError):
        write_video(path, (smooth_frames(3)[i] for i in range(4)))
    with pytest.raises(ValueError, match='no frames'):
        write_video(path, [])
    with pytest.raises(UserError, match='no such file or folder'):
        write_video(tmp_path / 'missing' / 'a.mp4', smooth_frames())
    full_disk = ['sh', '-c', 'echo "No space left on device" >&2; exit 1']  # the encoder ends during frames
    monkeypatch.setattr('dnnlib.video._encoder_command', lambda *_: full_disk)
    with pytest.raises(UserError, match='cannot write .*a.mp4.*No space left on device'):
        write_video(path, (smooth_frames(1, 512, 512)[0] for _ in range(20)))
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']
    assert path.read_bytes() == b'older'


def test_an_interrupt_in_the_terminal_does_not_reach_the_encoder(tmp_path, monkeypatch):
    """Ctrl-C goes to a whole process group; the caller that writes a video decides what happens to it."""
    groups = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            groups.append(os.getpgid(self.pid))

    monkeypatch.setattr('dnnlib.video.subprocess.Popen', Recorded)
    write_video(tmp_path / 'a.mp4', [np.zeros((16, 16, 3), np.uint8)] * 2)
    assert groups and os.getpgrp() not in groups


def test_no_other_module_runs_ffmpeg():
    rooms = [p for p in ROOT.iterdir() if p.is_dir() and p.name != 'tests' and not p.name.startswith('.')]
    paths = [*ROOT.glob('*.py'), *(path for room in rooms for path in room.rglob('*.py'))]
    users = [path.relative_to(ROOT).as_posix() for path in paths if 'imageio_ffmpeg' in path.read_text()]
    assert users == ['dnnlib/video.py']


def test_a_gif_has_its_note(tmp_path):
    path, frames = tmp_path / 'a.gif', smooth_frames()[:2]
    write_video(path, frames, note='synthetic ' * 30)
    with Image.open(path) as gif:
        assert gif.n_frames == 2
    block = b'\xff' + b'synthetic ' * 25 + b'synth'  # at most 255 bytes
    assert path.read_bytes().endswith(b'!\xfe' + block + b'\x2detic ' + b'synthetic ' * 4 + b'\0;')


def test_sound_of_another_video(tmp_path):
    plain, loud = tmp_path / 'a.mp4', tmp_path / 'b.mp4'
    frames = smooth_frames()
    write_video(plain, frames, fps=10, note='made up')
    sine = ['-y', '-f', 'lavfi', '-i', 'sine=duration=1', '-i', str(plain), '-c:v', 'copy', '-c:a', 'aac']
    assert run_ffmpeg([*sine, str(loud)]).returncode == 0
    assert not add_sound(plain, plain)
    before = [frame for frame, _ in video_frames(plain)]
    assert add_sound(plain, loud, 0.2)
    report = run_ffmpeg(['-i', str(plain)]).stderr
    assert 'Audio: aac' in report and 'made up' in report
    assert all(np.array_equal(a, b) for a, (b, _) in zip(before, video_frames(plain), strict=True))
    assert add_sound(plain, loud, 0.2, 0.1)  # silence after that
    heard = run_ffmpeg(['-i', str(plain), '-map', '0:a', '-f', 'null', '-']).stderr
    assert 0.05 < float(re.findall(r'time=00:00:([0-9.]+)', heard)[-1]) < 0.16
