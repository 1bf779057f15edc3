"""Images: layout, colours, normals of known surfaces."""

import numpy as np
import pytest
import torch

from training import camera
from training.volumetric_rendering.ray_sampler import camera_rays
from viz import images


def test_uint8_clamps_rounds_and_inverts_loading():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.0039, 1.0, 9.0])
    assert images.to_uint8(values.view(1, 1, 1, 6)).flatten().tolist() == [0, 0, 128, 128, 255, 255]
    pixels = torch.arange(256)
    assert images.to_uint8((pixels / 127.5 - 1).view(1, 1, 1, -1)).flatten().tolist() == pixels.tolist()


def test_grid_places_images_in_rows():
    tiles = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    result = images.grid(tiles)
    assert result.shape == (4, 9, 3)
    assert result[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert images.strip(tiles)[0, ::3, 0].tolist() == [1, 2, 3, 4, 5]
    assert [images.grid_shape(n) for n in (1, 2, 5, 16, 17)] == [(1, 1), (1, 2), (2, 3), (4, 4), (4, 5)]


@pytest.mark.parametrize(('side', 'expected'), [(8, 16), (6, 18), (16, 16), (20, 20)])
def test_small_images_are_enlarged_by_whole_pixels(side, expected):
    tiles = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    factor = expected // side
    assert (images.enlarge(tiles, 16) == np.kron(tiles, np.ones((1, factor, factor, 1)))).all()


def test_depth_colours_go_from_near_to_far():
    depth = torch.tensor([1.0, 2.0, 3.0, 0.0, 9.0, float('nan')]).view(1, 1, 1, 6)
    opacity = torch.ones_like(depth)
    colors = images.to_uint8(images.colorize_depth(depth, opacity, 1.0, 3.0))[0, 0]
    near, middle, far = [0xFD, 0xE7, 0x25], [0x21, 0x91, 0x8C], [0x44, 0x01, 0x54]
    assert colors.tolist() == [near, middle, far, near, far, far]
    gray = images.colorize_depth(depth[..., :3], 0 * opacity[..., :3], 1.0, 3.0)
    assert (images.to_uint8(gray) == 128).all()


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
    """The ball fills the image: its world normals are its points, from whichever side it is seen."""
    label = camera.orbit_label(yaw, 0.2, pivot=(0.0, 0.0, 0.0))[None]
    origins, directions = camera_rays(*camera.unpack_label(label), 64)
    near = -(origins * directions).sum(-1, keepdim=True)
    ball = 0.5
    distance = near - (ball**2 - (origins + near * directions).square().sum(-1, keepdim=True)).sqrt()
    xyz = (origins + distance * directions).transpose(1, 2).unflatten(2, (64, 64))
    normals = images.normals_from_xyz(xyz)
    inner = (normals - xyz / ball)[:, :, 1:-1, 1:-1]
    assert inner.abs().max() < 2e-3
    colors = images.to_uint8(images.colorize_normals(normals, torch.ones(1, 1, 64, 64)))
    expected = (xyz / ball * 127.5 + 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(colors - expected)[:, 1:-1, 1:-1].max() < 1
