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
    assert len(points) == len(planes)
    x_y_z = (points * (2 / box_warp)).unbind(-1)  # an index would be a tensor, for which a GPU waits
    seen = [torch.stack([x_y_z[u], x_y_z[v]], dim=-1) for u, v in PLANE_AXES[axes]]  # [N, M, 2] each, -1..1
    if points.requires_grad:
        looked_up = (
            torch.nn.functional.grid_sample(plane, grid[:, :, None], align_corners=False)[..., 0]
            for plane, grid in zip(planes.unbind(1), seen, strict=True)
        )
        return (sum(looked_up) / 3).transpose(1, 2)
    n, _, c, height, width = planes.shape
    index, weight = _corners(torch.stack(seen, dim=1), height, width)
    rows = planes.permute(0, 3, 4, 1, 2).reshape(-1, c)  # a view of what a convolution has made
    return _LookUp.apply(rows, index, (weight / 3).to(rows.dtype)).unflatten(0, (n, -1))


def _corners(positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns which pixels are around positions [N, 3, M, 2] in -1..1, and what they weigh there.

    Returns:
        rows of N * H * W * 3 and bilinear weights, 0 outside, each [12, N * M].
    """
    n, planes, m, _ = positions.shape
    frame, plane = (torch.arange(k, device=positions.device) for k in (n, planes))
    x, y = (((p + 1) * size - 1) / 2 for p, size in zip(positions.unbind(-1), (width, height), strict=True))
    left, top = x.floor(), y.floor()
    index, weight = [], []
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        weight.append((1 - (x - column).abs()) * (1 - (y - row).abs()) * inside)
        at = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        at = at.nan_to_num().long()  # of a point that is nan the weight stays so
        index.append((frame[:, None, None] * (height * width) + at) * planes + plane[:, None])
    return tuple(torch.stack(k).permute(0, 2, 1, 3).reshape(12, n * m) for k in (index, weight))


class _LookUp(torch.autograd.Function):
    """Sums of weighted rows, linear in these: rows [R, C] at index and weight [K, M] to [M, C]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.rows = len(rows)
        found = rows.new_zeros(index.shape[1], rows.shape[1])
        for at, factor in zip(index, weight, strict=True):
            found.addcmul_(rows.index_select(0, at), factor[:, None])
        return found

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _LookUpGrad.apply(dy, *ctx.saved_tensors, ctx.rows), None, None


class _LookUpGrad(torch.autograd.Function):
    """The gradient of a lookup, linear in dy: one buffer for all planes, in their layout."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, index: Tensor, weight: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index, weight)
        gradient = dy.new_zeros(rows, dy.shape[1])
        for at, factor in zip(index, weight, strict=True):
            gradient.index_add_(0, at, dy * factor[:, None])
        return gradient

    @staticmethod
    def backward(ctx: Any, d2: Tensor) -> tuple[Tensor, None, None, None]:
        return _LookUp.apply(d2, *ctx.saved_tensors), None, None, None
