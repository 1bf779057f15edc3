"""Vectors as arrays [3, ...], components first: numpy works on whole rows, not on three numbers at a time."""

import numpy as np


def components_first(a: np.ndarray) -> np.ndarray:
    """Turns [..., 3] into a copy [3, ...]."""
    return np.ascontiguousarray(np.moveaxis(a, -1, 0))


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns scalar products [...]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns vector products [3, ...]."""
    x = a[1] * b[2] - a[2] * b[1]
    return np.stack([x, a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def unit(a: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Returns vectors of length 1; those shorter than `least` are only divided by it."""
    return a / np.maximum(np.sqrt(dot(a, a)), least)
