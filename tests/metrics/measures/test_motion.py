"""Motion, flicker and depth variance of clips and shapes whose answers are known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dnnlib.util import Skip
from heads.identity import sample_identity
from heads.model import HeadModel
from heads.motion import sample_motion_path
from metrics.measures.motion import depth_variance, flicker, motion_magnitude
from support.analytic_scenes import Plane, flat, still
from training import camera

SIZE = 128


@pytest.fixture(scope='module')
def texture():
    """A random pattern [3 SIZE, 3 SIZE, 3] of waves of about a tenth of an image, in float gray levels."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(3 * SIZE, 3 * SIZE, 3)), (4, 4, 0))
    return np.clip(128 + 40 * noise / noise.std(), 0, 255)


def window(texture, right, down=0):
    corner = SIZE + np.array([down, right])
    return texture[corner[0] : corner[0] + SIZE, corner[1] : corner[1] + SIZE]


def clip_of(texture, right, down=0, frames=6):
    return np.stack([window(texture, right * i, down * i) for i in range(frames)]).astype(np.uint8)


def noisy(clip, deviation):
    noise = np.random.default_rng(1).normal(0, deviation, clip.shape)
    return np.clip(clip + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def head():
    """A head that talks before a camera at rest, and the same head frozen."""
    model, label = HeadModel(sample_identity(3)), camera.front_label().numpy()
    path = [sample_motion_path(3, 13)[i] for i in (0, 4, 8, 12)]
    moving = np.stack([model.render(motion, label, SIZE).image for motion in path])
    return moving, np.repeat(moving[:1], 4, axis=0)


def test_a_still_clip_has_no_motion_and_no_flicker(texture):
    clip = clip_of(texture, 0)
    assert motion_magnitude(clip) == (0, 0)
    assert flicker(clip) == 0
    assert motion_magnitude(np.zeros_like(clip)) == (0, 0)
    assert flicker(np.full_like(clip, 77)) == 0


@pytest.mark.parametrize(('right', 'down'), [(1, 0), (0, -3), (-8, 6)])
def test_flow_of_a_known_translation(texture, right, down):
    expected = 100 * np.hypot(right, down) / SIZE
    assert motion_magnitude(clip_of(texture, right, down)).flow_percent == pytest.approx(expected, rel=0.05)


def test_difference_of_known_gray_levels():
    clip = np.full((3, 16, 16, 3), 100, dtype=np.uint8)
    clip[1] += 12
    clip[2] += 9
    assert motion_magnitude(clip).difference == pytest.approx((12 + 3) / 2, abs=1e-4)
    clip[:, :, 8:] = 100
    assert motion_magnitude(clip).difference == pytest.approx((12 + 3) / 4, abs=1e-4)


def test_no_trick_makes_a_frozen_head_move(head):
    moving, frozen = head
    talking = motion_magnitude(moving).flow_percent
    assert talking > 0.1
    gain = np.array([1, 0.9, 1, 1.1])[:, None, None, None]
    tricks = {
        'noise': noisy(frozen, 3),
        'brightness': (frozen * 0.8 + 20 * np.array([0, 1, 0, 2])[:, None, None, None]).astype(np.uint8),
        'contrast': np.clip(128 + (frozen.astype(float) - 128) * gain, 0, 255).astype(np.uint8),
    }
    for name, clip in tricks.items():
        result = motion_magnitude(clip)
        assert result.flow_percent < 0.2 * talking, name
        assert result.difference > motion_magnitude(moving).difference, name  # that alone would be fooled


@pytest.mark.parametrize('size', [16, 64, 100])
def test_other_sizes_are_in_the_same_units(texture, size):
    clip = torch.from_numpy(clip_of(texture, 4)).permute(0, 3, 1, 2).float()
    clip = torch.nn.functional.interpolate(clip, size=(size, size), mode='bilinear', antialias=True).byte()
    clip = clip.permute(0, 2, 3, 1).numpy()
    assert motion_magnitude(clip).flow_percent == pytest.approx(100 * 4 / SIZE, rel=0.06)


@pytest.mark.parametrize('amount', [1, 5, 20])
def test_flicker_of_brightness_is_its_amount(texture, amount):
    clip = (clip_of(texture, 0) * 0.8).astype(np.uint8)
    clip[::2] += amount
    assert flicker(clip) == pytest.approx(amount, rel=1e-3)


def test_flicker_grows_with_noise(texture):
    for clip in (clip_of(texture, 0), clip_of(texture, 2)):
        values = [flicker(noisy(clip, deviation)) for deviation in (0, 4, 8, 16, 32)]
        assert (np.diff(values) > 0.1).all()


def test_flicker_is_not_motion(texture):
    clip = clip_of(texture, 4).astype(float)
    assert motion_magnitude(clip.astype(np.uint8)).difference > 8
    assert flicker(clip.astype(np.uint8)) < 0.3
    clip[::2] += 10
    # The smaller of two values counts at each pixel, so flicker of what also moves comes out too small.
    assert 7 < flicker(np.clip(clip, 0, 255).astype(np.uint8)) < 10


@pytest.mark.parametrize('normal', [(0.0, 0.0, 1.0), (0.5, -0.2, 1.0), (-1.0, 0.4, 1.0)])
def test_a_plane_has_no_depth_variance(normal):
    views = still([Plane(normal, 0.1, flat(0.0))], image_size=8, depth_size=32)
    for depth, opacity, label in zip(views.depth, views.opacity, views.cameras, strict=True):
        assert depth_variance(depth, opacity, label) < 1e-12
        opacity[:, 5:20, 8:] = 0
        depth[:, 5:20, 8:] = torch.nan
        assert depth_variance(depth, opacity) < 1e-12


def test_depth_variance_of_a_step():
    # Rays of a far, long lens are nearly parallel. Half of them are nearer by 0.2: a plane that tilts to
    # fit a step of height h leaves h^2 / 4 (1 - 3 / 4), the variance that is not a slope's.
    label = camera.orbit_label(0.0, radius=1000.0, focal=1000.0)
    depth = torch.full((1, 64, 64), 1000.0, dtype=torch.float64)
    depth[:, :, :32] -= 0.2
    variance = depth_variance(depth, torch.ones(1, 64, 64), label)
    assert variance == pytest.approx(0.2**2 / 16, rel=0.01)
    assert depth_variance(2 * depth, torch.ones(1, 64, 64), label) == pytest.approx(4 * variance, rel=1e-6)


def test_depth_variance_of_views_that_cannot_tell():
    depth, opacity = torch.full((1, 32, 32), 2.5), torch.zeros(1, 32, 32)
    with pytest.raises(Skip, match='too few opaque points'):
        depth_variance(depth, opacity)
    opacity[:] = 1
    depth[0, 3, 3] = torch.nan
    with pytest.raises(Skip, match='not finite'):
        depth_variance(depth, opacity)
    depth, opacity = torch.full((1, 128, 128), 2.5), torch.zeros(1, 128, 128)
    opacity[:, 40] = 1
    with pytest.raises(Skip, match='in a line'):
        depth_variance(depth, opacity)
