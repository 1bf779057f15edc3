"""Decoding of videos: every frame once, the right colours, errors as one sentence; finding clips."""

import errno
import subprocess
import sys

import numpy as np
import pytest

from dnnlib.util import DataError
from dnnlib.video import find_clips, natural, probe, run_ffmpeg, video_frames, write_video
from preprocessing.dataset_files import pack
from support.paths import ROOT


def pattern(frames=7, height=32, width=48):
    """Returns smooth frames that differ from each other and from their mirror images."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing='ij')
    return np.stack([40 + 4 * x % 200, 20 + 6 * y, 30 * t], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('video') / 'a.mp4'
    write_video(path, pattern(), fps=12.5, crf=5)
    return path


def test_frames_come_in_order_with_their_rate(video):
    frames = list(video_frames(video))
    assert len(frames) == 7 and {rate for _, rate in frames} == {12.5}
    images = np.stack([image for image, _ in frames])
    assert images.shape == (7, 32, 48, 3) and images.dtype == np.uint8
    error = np.abs(images.astype(int) - pattern())
    assert error.mean() < 3 and error.max() < 60  # edges of colours, at half resolution
    again = np.stack([image for image, _ in video_frames(str(video))])
    assert (again == images).all()
    assert probe(video) == (12.5, 48, 32, pytest.approx(0.56), 'mov,mp4,m4a,3gp,3g2,mj2')


def test_stopping_early_ends_the_decoder(tmp_path):
    write_video(tmp_path / 'long.mp4', np.tile(pattern(), (30, 4, 4, 1)))
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


def fake_decoder(folder, monkeypatch, script):
    """Puts a shell script in the place of ffmpeg."""
    path = folder / 'decoder'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setattr('imageio_ffmpeg.get_ffmpeg_exe', lambda: str(path))


@pytest.mark.parametrize(
    ('script', 'reason'),
    [
        ('kill -9 $$', 'killed by signal 9'),
        ('echo "Error opening input: Cannot allocate memory" >&2; exit 244', 'Cannot allocate memory'),
        ('printf "P6\\n1 1\\n255\\nabc"; echo "Too many open files" >&2; exit 1', 'Too many open files'),
    ],
)
def test_a_failing_machine_is_not_the_fault_of_a_video(video, tmp_path, monkeypatch, script, reason):
    fake_decoder(tmp_path, monkeypatch, script)
    with pytest.raises(OSError, match=reason) as error:
        list(video_frames(video))
    assert error.value.filename == str(video)


@pytest.mark.parametrize('number', [errno.EMFILE, errno.EAGAIN, errno.EIO, errno.ENOMEM, errno.ENOENT])
def test_errors_of_the_system_are_not_the_fault_of_a_video(video, monkeypatch, number):
    def fail(*args, **options):
        raise OSError(number, 'no', 'ffmpeg')

    monkeypatch.setattr('subprocess.Popen', fail)
    with pytest.raises(OSError, match='ffmpeg'):
        list(video_frames(video))


def test_killed_ffmpeg_is_an_error_of_the_system(tmp_path, monkeypatch):
    fake_decoder(tmp_path, monkeypatch, 'kill -9 $$')
    with pytest.raises(OSError, match='killed by signal 9'):
        run_ffmpeg(['-version'])


def test_packing_stops_instead_of_skipping_a_clip(video, tmp_path, monkeypatch):
    fake_decoder(tmp_path, monkeypatch, 'kill -9 $$')
    clip = pack.RawClip('a.mp4', video, [[0.0] * 25] * 7)
    with pytest.raises(OSError, match='the decoder was killed'):
        pack.convert(clip, pack.PackOptions(resolution=32, format='png'))


def test_ffmpeg_is_loaded_when_it_is_used():
    """Training and drawing work without imageio_ffmpeg."""
    code = 'import sys, train, viz.sheets, dnnlib.video; sys.exit("imageio_ffmpeg" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
