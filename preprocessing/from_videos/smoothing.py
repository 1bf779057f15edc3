"""Low-pass filter over time for what is estimated frame by frame [Fox et al. 2021]."""

import math

import numpy as np
from scipy.ndimage import correlate1d
from scipy.spatial.transform import Rotation

_REACH = 4.0  # half width of the kernel in sigmas


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Smooths with a Gaussian over time.

    At the borders a line is fitted under the part of the kernel that is inside. A constant would let the ends
    of a steady motion lag by 0.8 sigma; elsewhere both are the same.

    Args:
        x: one value per frame, [T, ...].
        sigma: standard deviation in frames, 0 = leave as it is.

    Returns:
        float64, the shape of x.
    """
    x = np.asarray(x, dtype=np.float64)
    if sigma == 0 or len(x) < 2:
        return x.copy()
    reach = min(math.ceil(_REACH * sigma), len(x))
    time = np.arange(-reach, reach + 1)
    kernels = [np.exp(-0.5 * (time / sigma) ** 2) * time**k for k in range(3)]  # moments 0, 1, 2
    sums = [correlate1d(x, k, axis=0, mode='constant') for k in kernels[:2]]
    shape = (-1, *[1] * (x.ndim - 1))
    s0, s1, s2 = (correlate1d(np.ones(len(x)), k, mode='constant').reshape(shape) for k in kernels)
    slope = (sums[1] * s0 - sums[0] * s1) / np.maximum(s2 * s0 - s1**2, np.finfo(float).tiny)
    return (sums[0] - slope * s1) / s0


def smooth_rotations(rotations: np.ndarray, sigma: float) -> np.ndarray:
    """Smooths rotation matrices [T, 3, 3] over time as unit quaternions, whose signs are made to agree.

    Valid while the rotations within a few sigma are far less than half a turn apart.
    """
    quaternions = Rotation.from_matrix(rotations).as_quat()
    agree = np.where((quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0, -1.0, 1.0)
    signs = np.cumprod(np.concatenate([[1.0], agree]))
    return Rotation.from_quat(smooth(quaternions * signs[:, None], sigma)).as_matrix()
