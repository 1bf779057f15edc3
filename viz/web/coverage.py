"""The cameras that a network has seen, as limits of an orbit, and the orbit of a browser's camera.

Angles are those of training/camera.py:orbit_label, in degrees here because people read them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.scene import PIVOT, RADIUS
from training.camera import unpack_label

_FRONTAL_CONE = 89.0  # degrees; beyond, a camera is no longer in front of the face


class Coverage(NamedTuple):
    """Ranges (lowest, highest) of yaw and pitch, degrees."""

    yaw: tuple[float, float] = (-45.0, 45.0)
    pitch: tuple[float, float] = (-20.0, 25.0)

    def clamp(self, yaw: float, pitch: float) -> tuple[float, float, bool]:
        """Returns the nearest angles inside, and whether these were outside."""
        inside = [min(max(a, lo), hi) for a, (lo, hi) in zip((yaw, pitch), self, strict=True)]
        outside = any(abs(a - b) > 0.05 for a, b in zip(inside, (yaw, pitch), strict=True))
        return inside[0], inside[1], outside


DEFAULT = Coverage()  # of networks whose files hold no cameras


def angles(labels: Tensor) -> np.ndarray:
    """Returns yaw and pitch of the places of cameras [..., 25], degrees [..., 2]."""
    place = unpack_label(labels.double())[0][..., :3, 3]
    yaw = torch.atan2(place[..., 0], place[..., 2])
    pitch = torch.asin((place[..., 1] / place.norm(dim=-1)).clamp(-1, 1))
    return torch.stack([yaw, pitch], dim=-1).rad2deg().numpy()


def covered(clips: Sequence[Tensor]) -> Coverage:
    """Returns what the cameras of clips [T, 25] cover; the front is always part of it."""
    if not clips:
        return DEFAULT
    found = np.concatenate([angles(clip) for clip in clips])
    low, high = np.minimum(found.min(0), 0), np.maximum(found.max(0), 0)
    low, high = np.floor(low).clip(-_FRONTAL_CONE), np.ceil(high).clip(max=_FRONTAL_CONE)  # whole degrees
    return Coverage((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))


def orbit_place(position: np.ndarray, look_at: np.ndarray) -> tuple[float, float, float]:
    """Returns yaw and pitch, degrees, of the camera on our sphere that looks in the direction of another.

    Where the browser's camera was panned to does not count. The third number is its distance, which the
    wheel changes, as a multiple of that of our camera.
    """
    view, pivot = position - look_at, np.asarray(PIVOT)
    distance = max(float(np.linalg.norm(view)), 1e-9)
    view = view / distance
    along = float(pivot @ view)  # pivot + s view is on the sphere
    s = -along + math.sqrt(along**2 + RADIUS**2 - float(pivot @ pivot))
    x, y, z = pivot + s * view
    return math.degrees(math.atan2(x, z)), math.degrees(math.asin(y / RADIUS)), distance / s


def orbit_position(yaw: float, pitch: float, zoom: float = 1.0) -> np.ndarray:
    """Returns the place of the camera at these angles, degrees, looking at PIVOT from `zoom` times as far."""
    a, b, pivot = math.radians(yaw), math.radians(pitch), np.asarray(PIVOT)
    place = RADIUS * np.array([math.sin(a) * math.cos(b), math.sin(b), math.cos(a) * math.cos(b)])
    return pivot + zoom * (place - pivot)
