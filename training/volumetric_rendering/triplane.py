"""Lookup of points in three axis-aligned feature planes. Source: EG3D."""

import torch
from torch import Tensor

# Coordinates (u, v) = (column, row) that each plane sees; 0, 1, 2 = x, y, z.
PLANE_AXES = {
    'xy_xz_yz': ((0, 1), (0, 2), (1, 2)),
    'released': (
        (0, 1),
        (0, 2),
        (2, 0),
    ),  # the third repeats the second: what EG3D and PV3D checkpoints were trained with
}


def sample_planes(planes: Tensor, points: Tensor, axes: str, box_warp: float) -> Tensor:
    """Interpolates plane features at points and averages over the planes; zero outside the box.

    Args:
        planes: [N, 3, C, H, W].
        points: world coordinates [N, M, 3].
        axes: a key of PLANE_AXES.
        box_warp: side of the box that the planes cover, scene units.

    Returns:
        features [N, M, C].
    """
    coordinates = points * (2 / box_warp)
    total = None
    for p, uv in enumerate(PLANE_AXES[axes]):
        grid = coordinates[..., uv][:, :, None]  # [N, M, 1, 2]
        found = torch.nn.functional.grid_sample(planes[:, p], grid, align_corners=False, padding_mode='zeros')
        total = found if total is None else total + found
    return (total[..., 0] / len(PLANE_AXES[axes])).transpose(1, 2)
