import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocessing.from_videos.smoothing import smooth, smooth_rotations
from support.head_views import second_difference


def naive(x, sigma):
    """The definition: around every frame a line, fitted with Gaussian weights; its value at the frame."""
    t = np.arange(float(len(x)))
    fits = [np.polyfit(t - c, x, 1, w=np.exp(-0.25 * ((t - c) / sigma) ** 2)) for c in t]
    return np.stack([fit[1] for fit in fits])


@pytest.mark.parametrize('frames', [3, 5, 40])
@pytest.mark.parametrize('sigma', [0.5, 2.0, 7.5])
def test_is_a_weighted_fit(frames, sigma):
    x = np.random.default_rng(0).normal(size=(frames, 4))
    assert np.allclose(smooth(x, sigma), naive(x, sigma), atol=5e-3)  # the kernel ends at four sigmas


@pytest.mark.parametrize('sigma', [0.01, 0.1, 1])
def test_short_clips(sigma):
    assert smooth(np.ones((1, 3)), sigma).tolist() == [[1, 1, 1]]
    assert np.allclose(smooth(np.array([1.0, 4]), sigma), [1, 4])


def test_keeps_lines_to_the_borders():
    line = np.stack([np.full((30, 3), 7.0), np.linspace(2, -5, 90).reshape(30, 3)], axis=-1)
    assert np.allclose(smooth(line, 3), line)
    assert np.array_equal(smooth(line[::7], 0), line[::7])


def test_rotations_are_smoothed_as_rotations():
    rng = np.random.default_rng(2)
    path = Rotation.from_euler('y', np.linspace(-60, 60, 60)[:, None], degrees=True)
    noisy = Rotation.from_rotvec(rng.normal(0, 0.02, (60, 3))) * path
    smoothed = smooth_rotations(noisy.as_matrix(), 2)
    assert np.allclose(smoothed @ smoothed.swapaxes(1, 2), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(smoothed), 1)
    off = (Rotation.from_matrix(smoothed) * path.inv()).magnitude()[8:-8]
    assert np.sqrt((off**2).mean()) < 0.5 * 0.02 * np.sqrt(3)
    assert second_difference(smoothed) < second_difference(noisy.as_matrix()) / 3


def test_rotations_through_half_a_turn_do_not_cancel():
    path = Rotation.from_euler('y', np.linspace(150, 210, 40)[:, None], degrees=True)  # signs change
    off = (Rotation.from_matrix(smooth_rotations(path.as_matrix(), 2)) * path.inv()).magnitude()
    assert off.max() < np.deg2rad(0.05)
