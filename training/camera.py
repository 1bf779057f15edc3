"""Camera labels and poses.

A label is 25 numbers: a row-major 4x4 camera-to-world matrix (OpenCV axes: x right, y down, z forward), then
a row-major 3x3 intrinsics matrix normalised to image size 1. World: y up, +z towards a frontal camera,
lengths in scene units. Yaw and pitch are true angles in radians; a camera at positive yaw is at positive
x. Source: labels of EG3D and PV3D.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dnnlib.scene import FOCAL, LABEL_DIM, PIVOT, RADIUS


def pack_label(cam2world: Tensor, intrinsics: Tensor) -> Tensor:
    """Packs camera-to-world [..., 4, 4] and intrinsics [..., 3, 3] into labels [..., 25]."""
    return torch.cat([cam2world.flatten(-2), intrinsics.flatten(-2)], dim=-1)


def unpack_label(label: Tensor) -> tuple[Tensor, Tensor]:
    """Unpacks labels [..., 25] into camera-to-world [..., 4, 4] and intrinsics [..., 3, 3]."""
    assert label.shape[-1] == LABEL_DIM
    return label[..., :16].unflatten(-1, (4, 4)), label[..., 16:].unflatten(-1, (3, 3))


def look_at(position: Tensor, target: Tensor) -> Tensor:
    """Returns camera-to-world [..., 4, 4] of upright cameras at position that look at target, [..., 3]."""
    up = torch.tensor([0.0, 1.0, 0.0], dtype=position.dtype).expand_as(position)
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    pose = torch.zeros(*position.shape[:-1], 4, 4, dtype=position.dtype)
    pose[..., :3, :] = torch.stack([right, down, forward, position], dim=-1)
    pose[..., 3, 3] = 1
    return pose


def orbit_label(
    yaw_rad: Tensor | float,
    pitch_rad: Tensor | float = 0.0,
    *,
    radius: float = RADIUS,
    pivot: Sequence[float] = PIVOT,
    focal: float = FOCAL,
) -> Tensor:
    """Returns labels [..., 25] of cameras on a sphere about the origin that look at `pivot`.

    Args:
        yaw_rad: angle about the y axis, 0 = frontal, positive = camera at positive x, [...].
        pitch_rad: elevation, positive = camera above, broadcast against yaw_rad.
        radius: distance from the origin in scene units.
        pivot: looked-at point in scene units.
        focal: focal length in image widths.
    """
    angles = (torch.as_tensor(angle, dtype=torch.float64) for angle in (yaw_rad, pitch_rad))
    yaw, pitch = torch.broadcast_tensors(*angles)
    position = radius * torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], dim=-1)
    pose = look_at(position, torch.tensor(pivot, dtype=torch.float64).expand_as(position))
    intrinsics = torch.tensor([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])
    return pack_label(pose.float(), intrinsics.expand(*pose.shape[:-2], 3, 3))


def eg3d_label(h_rad: float, v_rad: float, focal: float = FOCAL) -> Tensor:
    """Returns the label [25] of EG3D's look-at sampler at (h, v).

    Its v is not an angle: the pitch is pi / 2 - arccos(1 - 2 v / pi).
    """
    return orbit_label(h_rad - math.pi / 2, math.pi / 2 - math.acos(1 - 2 * v_rad / math.pi), focal=focal)


def front_label(focal: float = FOCAL) -> Tensor:
    """Returns the canonical frontal camera [25]: rotation diag(1, -1, -1), position (0, 0, 2.7)."""
    return orbit_label(0.0, focal=focal)


def mirror_label(label: Tensor) -> Tensor:
    """Returns the labels [..., 25] of the cameras whose images are left-right mirrored.

    The world is mirrored at x = 0 and so is the camera: C' = M C M with M = diag(-1, 1, 1, 1). Skew changes
    its sign and the principal point moves to the other side.
    """
    pose, intrinsics = unpack_label(label)
    mirror = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=label.dtype, device=label.device)
    pose = mirror[:, None] * pose * mirror
    intrinsics = intrinsics.clone()
    intrinsics[..., 0, 1] = -intrinsics[..., 0, 1]
    intrinsics[..., 0, 2] = 1 - intrinsics[..., 0, 2]
    return pack_label(pose, intrinsics)


def project(points: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Projects world points [..., 3] with labels [..., 25] (leading axes broadcast).

    Returns:
        image coordinates [..., 2] (x right, y down, the image is [0, 1]^2), and depth along the optical axis
        [..., 1].
    """
    pose, intrinsics = unpack_label(label)
    local = ((points - pose[..., :3, 3])[..., None, :] @ pose[..., :3, :3])[..., 0, :]
    depth = local[..., 2:]
    return ((intrinsics @ (local / depth)[..., None])[..., :2, 0]), depth
