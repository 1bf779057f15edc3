"""Lookup of points in three axis-aligned feature planes. Source: EG3D."""

from typing import Any

import torch
from torch import Tensor

# Coordinates (u, v) = (column, row) that each plane sees; 0, 1, 2 = x, y, z.
PLANE_AXES = {
    'xy_xz_yz': ((0, 1), (0, 2), (1, 2)),
    'released': ((0, 1), (0, 2), (2, 0)),  # of EG3D and PV3D checkpoints; the third repeats the second
}


def sample_planes(planes: Tensor, points: Tensor, axes: str, box_warp: float) -> Tensor:
    """Interpolates features [N, M, C] at points and averages over the planes; zero outside the box.

    Args:
        planes: [N, 3, C, H, W].
        points: world coordinates [N, M, 3].
        axes: a key of PLANE_AXES.
        box_warp: side of the box that the planes cover, scene units.
    """
    coordinates = points * (2 / box_warp)
    x_y_z = coordinates.unbind(-1)  # an index would be a tensor, for which a GPU waits
    grids = (torch.stack([x_y_z[u], x_y_z[v]], dim=-1)[:, :, None] for u, v in PLANE_AXES[axes])
    first, second, third = map(_look_up, planes.unbind(1), grids)  # at [N, M, 1, 2] each
    return ((first + second + third)[..., 0] / 3).transpose(1, 2)


def _look_up(plane: Tensor, grid: Tensor) -> Tensor:
    """Interpolates a plane [N, C, H, W] at positions in [-1, 1], [N, M, 1, 2]; zero outside."""
    if grid.requires_grad:
        return torch.nn.functional.grid_sample(plane, grid, align_corners=False, padding_mode='zeros')
    return _LookUp.apply(plane, grid)


_OPTIONS = (0, 0, False)  # of grid_sampler_2d: bilinear, zeros outside, corners not aligned


class _LookUp(torch.autograd.Function):
    """Lookup at fixed positions, linear in the plane, with derivatives of any order; torch's has one."""

    @staticmethod
    def forward(ctx: Any, plane: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(plane, grid)
        return torch.grid_sampler_2d(plane, grid, *_OPTIONS)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        plane, grid = ctx.saved_tensors
        return _LookUpGrad.apply(dy, plane.detach(), grid), None


class _LookUpGrad(torch.autograd.Function):
    """The gradient of a lookup, linear in dy; of the plane only the shape matters."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, plane: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        return torch.ops.aten.grid_sampler_2d_backward(dy, plane, grid, *_OPTIONS, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, d2: Tensor) -> tuple[Tensor, None, None]:
        return _LookUp.apply(d2, *ctx.saved_tensors), None, None
