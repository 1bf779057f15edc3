"""Pictures and videos: grids, colours, normals of known surfaces, files whole or not at all."""

import os
import subprocess
from unittest import mock

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from dnnlib import video
from dnnlib.util import UserError
from support import tiny
from training import camera
from training.volumetric_rendering.ray_sampler import camera_rays
from viz import images, rollout, sheets, trajectories


def smooth_frames(count=10, height=48, width=64):
    """Returns smooth moving colours, which chroma subsampling hardly changes."""
    t, y, x = np.mgrid[:count, :height, :width]
    waves = [np.sin(x / 20 + t / 5), np.cos(y / 15 - t / 7), np.sin((x + y) / 25)]
    return np.round(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def test_uint8_clamps_and_rounds():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.0039, 1.0, 9.0])
    expected = [0, 0, 128, 128, 255, 255]
    assert images.to_uint8(values.view(1, 1, 1, 6)).flatten().tolist() == expected


def test_uint8_is_the_inverse_of_loading():
    pixels = torch.arange(256)
    assert images.to_uint8((pixels / 127.5 - 1).view(1, 1, 1, -1)).flatten().tolist() == pixels.tolist()


def test_grid_places_pictures_in_rows():
    pictures = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    result = images.grid(pictures)
    assert result.shape == (4, 9, 3)
    assert result[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert images.strip(pictures)[0, ::3, 0].tolist() == [1, 2, 3, 4, 5]
    assert [images.grid_shape(n) for n in (1, 2, 5, 16, 17)] == [(1, 1), (1, 2), (2, 3), (4, 4), (4, 5)]


def test_contact_sheet_keeps_pictures_whole():
    rows = [np.full((3, 40, 60, 3), value, np.uint8) for value in (50, 90)]
    sheet = sheets.contact_sheet(rows, ['yaw 0', 'yaw 30'], ['a', 'b', 'c'])
    height, width = sheet.shape[:2]
    assert (height - 80, width % 60) == (20, (width - 180) % 60)
    assert (sheet[20:60, -180:] == 50).all()
    assert (sheet[60:, -180:] == 90).all()
    for part in (sheet[:20, -180:], sheet[20:60, :-180]):  # labels: dark letters on white
        assert part.max() == 255
        assert part.min() < 100
    assert sheets.contact_sheet(rows).shape == (80, 180, 3)


def test_depth_colours_go_from_near_to_far():
    depth = torch.tensor([1.0, 2.0, 3.0, 0.0, 9.0, float('nan')]).view(1, 1, 1, 6)
    opacity = torch.ones_like(depth)
    colors = images.colorize_depth(depth, opacity, 1.0, 3.0)[0, 0]
    assert colors[0].tolist() == [0xFD, 0xE7, 0x25]
    assert colors[1].tolist() == [0x21, 0x91, 0x8C]
    assert colors[2].tolist() == [0x44, 0x01, 0x54]
    assert (colors[3] == colors[0]).all()
    assert (colors[4] == colors[2]).all()
    assert (images.colorize_depth(depth[..., :3], 0 * opacity[..., :3], 1.0, 3.0) == 128).all()


def test_depth_range_ignores_air():
    depth = torch.cat([torch.linspace(2, 3, 1001), torch.full((500,), 99.0), torch.tensor([float('inf')])])
    opacity = torch.cat([torch.ones(1001), torch.zeros(500), torch.ones(1)])
    near, far = images.depth_range(depth.view(1, 1, 1, -1), opacity.view(1, 1, 1, -1))
    assert (near, far) == pytest.approx((2.01, 2.99), abs=1e-3)
    flat = torch.full((1, 1, 2, 2), 2.5)
    near, far = images.depth_range(flat, torch.zeros_like(flat))
    assert near == 2.5 < far


@pytest.mark.parametrize('yaw', [0.0, 0.5, -1.0])
def test_normals_of_a_ball_point_outwards(yaw):
    """The ball fills the picture: its world normals are its points, from whichever side it is seen."""
    label = camera.orbit_label(yaw, 0.2, pivot=(0.0, 0.0, 0.0))[None]
    origins, directions = camera_rays(*camera.unpack_label(label), 64)
    near = -(origins * directions).sum(-1, keepdim=True)
    ball = 0.5
    distance = near - (ball**2 - (origins + near * directions).square().sum(-1, keepdim=True)).sqrt()
    xyz = (origins + distance * directions).transpose(1, 2).unflatten(2, (64, 64))
    normals = images.normals_from_xyz(xyz)
    inner = (normals - xyz / ball)[:, :, 1:-1, 1:-1]
    assert inner.abs().max() < 2e-3
    colors = images.colorize_normals(normals, torch.ones(1, 1, 64, 64))
    expected = (xyz / ball * 127.5 + 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(colors - expected)[:, 1:-1, 1:-1].max() < 1


@pytest.mark.parametrize(('height', 'width'), [(48, 64), (47, 61)])
def test_mp4_comes_back(tmp_path, height, width):
    frames = smooth_frames()[:, :height, :width]
    path = tmp_path / 'a.mp4'
    video.write_video(path, frames, fps=12.5)
    read = iio.imread(path)
    assert read.shape == (10, 48, 64 if width == 64 else 62, 3)
    error = np.abs(read[:, :height, :width].astype(int) - frames)
    assert error.mean() < 3
    assert error.max() < 24
    meta = iio.immeta(path)
    assert meta['fps'] == 12.5
    assert 'h264' in meta['codec']
    assert 'yuv420p' in meta['pix_fmt']


def test_mp4_keeps_plain_colours(tmp_path):
    """A wrong colour matrix or range changes these by 5 to 30."""
    for color in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 150, 120)]:
        video.write_video(tmp_path / 'a.mp4', np.full((2, 32, 32, 3), color, np.uint8))
        assert np.abs(iio.imread(tmp_path / 'a.mp4').astype(int) - color).max() <= 3


def test_mp4_bytes_depend_on_frames_alone_and_quality_on_crf(tmp_path):
    frames = smooth_frames()
    for name, crf in (('a', 10), ('b', 10), ('c', 40)):
        video.write_video(tmp_path / f'{name}.mp4', iter(frames), crf=crf)
    a, b, c = ((tmp_path / f'{name}.mp4').read_bytes() for name in 'abc')
    assert a == b
    assert len(c) < 0.75 * len(a)


def test_gif_comes_back(tmp_path):
    video.write_video(tmp_path / 'a.gif', smooth_frames(), fps=10)
    read = iio.imread(tmp_path / 'a.gif')[..., :3]
    assert read.shape == (10, 48, 64, 3)
    assert np.abs(read.astype(int) - smooth_frames()).mean() < 12  # 256 colours


def test_png_comes_back(tmp_path):
    picture = smooth_frames()[0]
    images.save_png(tmp_path / 'a.png', picture)
    assert (iio.imread(tmp_path / 'a.png') == picture).all()


def broken_frames():
    yield from smooth_frames()[:3]
    raise RuntimeError('renderer failed')


def test_a_video_that_fails_leaves_nothing_new(tmp_path):
    path = tmp_path / 'a.mp4'
    path.write_bytes(b'older')
    with pytest.raises(RuntimeError, match='renderer failed'):
        video.write_video(path, broken_frames())
    with pytest.raises(ValueError, match='no frames'):
        video.write_video(path, [])
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']
    assert path.read_bytes() == b'older'


def test_a_video_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(UserError, match='no such file or folder'):
        video.write_video(tmp_path / 'missing' / 'a.mp4', smooth_frames())
    with pytest.raises(ValueError, match='.mp4, .gif'):
        video.write_video(tmp_path / 'a.avi', smooth_frames())
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_stops_is_a_clear_error(tmp_path, monkeypatch):
    """As on a full disk: the encoder ends while frames still come, with an error on its stderr."""
    failing = ['sh', '-c', 'echo "No space left on device" >&2; exit 1']
    monkeypatch.setattr(video, '_encoder_command', lambda *_: failing)
    with pytest.raises(UserError, match='cannot write .*a.mp4.*No space left on device'):
        video.write_video(tmp_path / 'a.mp4', (smooth_frames(1, 512, 512)[0] for _ in range(20)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('side', 'expected'), [(8, 16), (6, 18), (16, 16), (20, 20)])
def test_small_pictures_are_enlarged_by_whole_pixels(side, expected):
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    large = images.enlarge(pictures, 16)
    assert large.shape == (2, expected, expected, 3)
    assert (large == np.kron(pictures, np.ones((1, expected // side, expected // side, 1)))).all()


def test_training_sheets():
    G = tiny.generator().eval()
    cameras = trajectories.orbit(3)
    counted = []
    drawn = sheets.training_sheets(G, range(6), cameras, on_frames=counted.append)
    assert {name: s.shape for name, s in drawn.items()} == {
        'fakes': (64, 96, 3),
        'depth': (2 * 128, 3 * 128, 3),
        'views': (4 * 128 + 20, 3 * 128, 3),
        'strip': (4 * 32 + 20, 8 * 32, 3),
        'video': (16, 64, 64, 3),
    }
    assert sum(counted) == 6 + 4 * (3 + 16)
    codes = rollout.draw_codes(G, 4)  # second row, second column: camera 4 % 3
    label = cameras[1:2]
    with torch.no_grad():
        expected = images.to_uint8(G(codes.z_a, codes.z_m, torch.tensor([0.5]), label).image)[0]
    assert np.abs(drawn['fakes'][32:, 32:64].astype(int) - expected).max() <= 1
    strip, video = drawn['strip'][20:], drawn['video']
    assert (strip[:32, :32] == video[0, :32, :32]).all()  # t = 0
    assert (strip[:32, -32:] == video[14, :32, :32]).all()  # every second of 16 frames
    assert (strip[:32, :32] != strip[:32, -32:]).any()


def test_an_interrupt_in_the_terminal_does_not_reach_the_encoder(tmp_path):
    """Ctrl-C goes to a whole process group; whoever writes a video decides what becomes of it."""
    groups = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            groups.append(os.getpgid(self.pid))

    with mock.patch.object(video.subprocess, 'Popen', Recorded):
        video.write_video(tmp_path / 'a.mp4', [np.zeros((16, 16, 3), np.uint8)] * 2)
    assert groups and os.getpgrp() not in groups
