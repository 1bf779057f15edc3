"""Rays through pixel centres. Source: EG3D; cameras in OpenCV axes."""

import torch
from torch import Tensor


def camera_rays(cam2world: Tensor, intrinsics: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Returns the rays of a square image, row by row.

    Args:
        cam2world: [N, 4, 4].
        intrinsics: normalised to image size 1, skew allowed, [N, 3, 3].
        resolution: pixels per side.

    Returns:
        origins and unit directions, each [N, resolution^2, 3].
    """
    centres = (torch.arange(resolution, dtype=cam2world.dtype, device=cam2world.device) + 0.5) / resolution
    v, u = torch.meshgrid(centres, centres, indexing='ij')
    k = intrinsics[..., None]  # [N, 3, 3, 1]
    y = (v.flatten() - k[:, 1, 2]) / k[:, 1, 1]
    x = (u.flatten() - k[:, 0, 2] - k[:, 0, 1] * y) / k[:, 0, 0]
    local = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # [N, R, 3]
    directions = torch.nn.functional.normalize(local @ cam2world[:, :3, :3].transpose(1, 2), dim=-1)
    return cam2world[:, None, :3, 3].expand_as(directions), directions
