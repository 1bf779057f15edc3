"""Low-pass filter over time for what is estimated frame by frame [Fox et al. 2021]."""

import math

import numpy as np
from scipy.ndimage import correlate1d
from scipy.spatial.transform import Rotation

_REACH = 4.0  # half width of the kernel in sigmas


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Smooths with a Gaussian over time; at the borders the part of the kernel inside is renormalised.

    Args:
        x: one value per frame, [T, ...].
        sigma: standard deviation in frames, 0 = leave as it is.

    Returns:
        float64, the shape of x.
    """
    x = np.asarray(x, dtype=np.float64)
    if sigma < 0:
        raise ValueError(f'sigma is {sigma}, a width must be 0 or more')
    if sigma == 0 or len(x) < 2:
        return x.copy()
    reach = min(math.ceil(_REACH * sigma), len(x))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    total = correlate1d(np.ones(len(x)), kernel, mode='constant')
    sums = correlate1d(x, kernel, axis=0, mode='constant')
    return sums / total.reshape(-1, *[1] * (x.ndim - 1))


def smooth_rotations(rotations: np.ndarray, sigma: float) -> np.ndarray:
    """Smooths rotation matrices [T, 3, 3] over time as unit quaternions, whose signs are made to agree.

    Right as long as the rotations within a few sigma are far less than half a turn apart.
    """
    quaternions = Rotation.from_matrix(rotations).as_quat()
    agree = np.where((quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0, -1.0, 1.0)
    signs = np.cumprod(np.concatenate([[1.0], agree]))
    return Rotation.from_quat(smooth(quaternions * signs[:, None], sigma)).as_matrix()
