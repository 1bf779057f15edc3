import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from preprocessing.smoothing import smooth, smooth_rotations
from tests.head_views import second_difference


def naive(x, sigma):
    """The definition: means weighted by a Gaussian of the distance in time."""
    t = np.arange(len(x))
    weight = np.exp(-0.5 * ((t[:, None] - t) / sigma) ** 2)
    return np.tensordot(weight / weight.sum(axis=1, keepdims=True), x, axes=1)


@pytest.mark.parametrize('frames', [1, 2, 5, 40])
@pytest.mark.parametrize('sigma', [0.3, 2.0, 7.5])
def test_is_the_mean_weighted_by_a_gaussian(frames, sigma):
    x = np.random.default_rng(0).normal(size=(frames, 4, 2))
    assert np.allclose(smooth(x, sigma), naive(x, sigma), atol=2e-3)  # the kernel ends at four sigmas


def test_agrees_with_scipy_inside():
    x = np.random.default_rng(1).normal(size=80)
    assert np.allclose(smooth(x, 2)[10:-10], gaussian_filter1d(x, 2)[10:-10], atol=1e-12)


def test_keeps_constants_to_the_borders_and_lines_inside():
    assert np.allclose(smooth(np.full((30, 3), 7.0), 3), 7)
    line = np.arange(60.0)
    assert np.allclose(smooth(line, 3)[15:-15], line[15:-15])


def test_sigma_0_changes_nothing_and_negative_is_refused():
    x = np.arange(5, dtype=np.float32)
    assert np.array_equal(smooth(x, 0), x)
    with pytest.raises(ValueError, match='-1'):
        smooth(x, -1)


def test_rotations_are_smoothed_as_rotations():
    rng = np.random.default_rng(2)
    path = Rotation.from_euler(
        'yxz', np.stack([np.linspace(-60, 60, 60), np.zeros(60), np.zeros(60)], 1), True
    )
    noisy = Rotation.from_rotvec(rng.normal(0, 0.02, (60, 3))) * path
    smoothed = smooth_rotations(noisy.as_matrix(), 2)
    assert np.allclose(smoothed @ smoothed.swapaxes(1, 2), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(smoothed), 1)
    off = (Rotation.from_matrix(smoothed) * path.inv()).magnitude()[8:-8]
    assert np.sqrt((off**2).mean()) < 0.5 * 0.02 * np.sqrt(3)
    assert second_difference(smoothed) < second_difference(noisy.as_matrix()) / 3


def test_rotations_through_half_a_turn_do_not_cancel():
    path = Rotation.from_euler(
        'y', np.linspace(150, 210, 40)[:, None], degrees=True
    )  # quaternions change their sign
    off = (Rotation.from_matrix(smooth_rotations(path.as_matrix(), 2)) * path.inv()).magnitude()
    assert off[10:-10].max() < 1e-6
    assert off.max() < np.deg2rad(60 / 39 * 2)  # at the borders it lags by less than sigma
