"""Sample positions along rays: stratified ones, then more where the first ones found matter.

Source: NeRF, EG3D.
"""

import torch
from torch import Tensor

_WEIGHT_FLOOR = 0.01  # every bin may be sampled [EG3D]
_EPS = 1e-5  # below this a bin of the cumulative distribution counts as empty


def stratified_depths(near: float, far: float, num: int, offset: Tensor) -> Tensor:
    """Returns num depths from near to far, moved by `offset` in [0, 1) bins.

    offset: [N, R, num, 1] or broadcastable; the result broadcasts like it and increases along `num`. The last
    depth may exceed `far` by one bin.
    """
    base = torch.linspace(near, far, num, device=offset.device, dtype=offset.dtype)[:, None]
    return base + offset * ((far - near) / (num - 1))


@torch.no_grad()
def importance_depths(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Draws depths [N, R, F, 1] where the weights are large, by inverting their cumulative distribution.

    Args:
        depths: coarse depths [N, R, S, 1].
        weights: weights of the S - 1 intervals between them [N, R, S - 1, 1].
        u: quantiles in [0, 1], [N, R, F] or broadcastable to it.
    """
    n, r, s, _ = depths.shape
    depths, weights = depths.reshape(n * r, s), weights.reshape(n * r, 1, s - 1)
    smooth = torch.nn.functional.max_pool1d(weights, 2, 1, padding=1)
    smooth = torch.nn.functional.avg_pool1d(smooth, 2, 1)[:, 0] + _WEIGHT_FLOOR
    middles = (depths[:, 1:] + depths[:, :-1]) / 2
    pdf = smooth[:, 1:-1] + _EPS
    cdf = torch.cumsum(pdf / pdf.sum(dim=1, keepdim=True), dim=1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=1)  # [NR, S - 2]
    u = u.expand(n, r, u.shape[-1]).reshape(n * r, -1).contiguous()
    above = torch.searchsorted(cdf, u, right=True).clamp_max(cdf.shape[1] - 1)
    below = (above - 1).clamp_min(0)
    cdf_below, cdf_above = cdf.gather(1, below), cdf.gather(1, above)
    width = cdf_above - cdf_below
    fraction = (u - cdf_below) / torch.where(width < _EPS, torch.ones_like(width), width)
    start = middles.gather(1, below)
    fine = start + fraction * (middles.gather(1, above) - start)
    return fine.reshape(n, r, -1, 1)
