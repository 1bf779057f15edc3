"""Cameras that are refined: what an estimate may be off by, and the views that a head is judged from.

Offsets [T, 6] of a camera: yaw, pitch and roll in radians, shift of the principal point to the right and down
in image widths, and the logarithm of the factor on the focal length.
"""

import torch
from torch import Tensor

from dnnlib.scene import PIVOT
from training.camera import orbit_label, pack_label, unpack_label

OFFSETS = 6
ANGLES = 3  # of them
# What estimates are off by, standard deviations: 3 degrees, 2 % of the image, 3 % of the focal length [ours]
SPREAD = (0.052, 0.052, 0.052, 0.02, 0.02, 0.03)
SIDE_YAWS_DEG = (-30.0, 30.0)


def turn(labels: Tensor, offsets: Tensor) -> Tensor:
    """Moves cameras [T, 25] by offsets [T, 6]; differentiable.

    Yaw turns about the vertical line through PIVOT, pitch about the camera's own horizontal line through it,
    so that the point looked at stays in its place; positive as in `training/camera.py:orbit_label`.
    """
    pose, intrinsics = unpack_label(labels)
    yaw, pitch, roll, right, down, zoom = offsets.unbind(-1)
    world, around = _about_y(yaw), pose[..., :3, :3]
    turned = world @ around @ _about_x(-pitch)
    move = turned @ around.mT  # of the world about PIVOT
    pivot = torch.tensor(PIVOT, dtype=labels.dtype, device=labels.device)
    position = (move @ (pose[..., :3, 3] - pivot)[..., None])[..., 0] + pivot
    upper = torch.cat([turned @ _about_z(roll), position[..., None]], dim=-1)
    pose = torch.cat([upper, pose[..., 3:, :]], dim=-2)
    zero = torch.zeros_like(right)
    factor = torch.stack([zoom.exp(), zoom.exp(), zero + 1], dim=-1)
    shift = torch.stack([torch.stack([zero, zero, x], dim=-1) for x in (right, down, zero)], dim=-2)
    return pack_label(
        pose, torch.cat([intrinsics[..., :2] * factor[..., None, :2], intrinsics[..., 2:]], -1) + shift
    )


def _about_x(angle: Tensor) -> Tensor:
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _matrix(((o + 1, o, o), (o, c, -s), (o, s, c)))


def _about_y(angle: Tensor) -> Tensor:
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _matrix(((c, o, s), (o, o + 1, o), (-s, o, c)))


def _about_z(angle: Tensor) -> Tensor:
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _matrix(((c, -s, o), (s, c, o), (o, o, o + 1)))


def _matrix(rows: tuple[tuple[Tensor, ...], ...]) -> Tensor:
    """Stacks 3x3 numbers [...] to matrices [..., 3, 3]."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def improbability(offsets: Tensor) -> Tensor:
    """Returns the mean over cameras of the squared offsets [T, 6] in units of SPREAD."""
    return (offsets / offsets.new_tensor(SPREAD)).square().sum(dim=-1).mean()


def view(yaw_deg: float, focal: float, pitch_deg: float = 0.0) -> Tensor:
    """Returns the camera [25] that sees the head from a side."""
    return orbit_label(*torch.tensor([yaw_deg, pitch_deg]).deg2rad(), focal=focal)
