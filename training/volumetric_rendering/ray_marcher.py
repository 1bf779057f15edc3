"""Compositing along rays with the emission-absorption model.

Source: PV3D eq. 3, after Max 1995; constants of EG3D.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DENSITY_BIAS = -1.0  # added before the softplus, so that a new network is nearly transparent [EG3D]


class Composite(NamedTuple):
    """What a ray sees."""

    features: Tensor  # [N, R, C]
    depth: Tensor  # expected distance along the ray, scene units [N, R, 1]; an empty ray: the last interval
    weights: Tensor  # of the intervals [N, R, S - 1, 1], summing to at most 1

    @property
    def opacity(self) -> Tensor:
        """Sum of the weights [N, R, 1]."""
        return self.weights.sum(dim=2)


def activate_density(raw: Tensor) -> Tensor:
    """Turns the decoder's raw density into 1 / scene unit."""
    return torch.nn.functional.softplus(raw + DENSITY_BIAS)


def interval_weights(density: Tensor, depths: Tensor) -> Tensor:
    """Returns the weight of each interval between samples [N, R, S - 1, 1].

    Args:
        density: raw density at the samples [N, R, S, 1]; the mean of two neighbours is activated.
        depths: distances in scene units, increasing along S, [N, R, S, 1].
    """
    middle = (density[:, :, 1:] + density[:, :, :-1]) / 2
    alpha = 1 - torch.exp(-activate_density(middle) * (depths[:, :, 1:] - depths[:, :, :-1]))
    passed = torch.cumprod(1 - alpha + 1e-10, dim=2)  # never exactly zero: its gradient divides by it
    return alpha * torch.cat([torch.ones_like(passed[:, :, :1]), passed[:, :, :-1]], dim=2)


def composite(features: Tensor, density: Tensor, depths: Tensor) -> Composite:
    """Integrates samples along rays.

    Args:
        features: sample features in [0, 1], [N, R, S, C].
        density: raw density [N, R, S, 1].
        depths: distance from the camera in scene units, increasing along S, [N, R, S, 1].

    Checked against a closed form in test_rendering.py.
    """
    assert features.shape[:3] == density.shape[:3] == depths.shape[:3] and depths.shape[2] >= 2
    weights = interval_weights(density, depths)
    seen = (weights * (features[:, :, 1:] + features[:, :, :-1]) / 2).sum(dim=2)
    return Composite(seen, expected_depth(weights, depths), weights)


def expected_depth(weights: Tensor, depths: Tensor) -> Tensor:
    """Returns the mean depth [N, R, 1] of intervals with weights [N, R, S - 1, 1]; all 0: of the last one."""
    middles = (depths[:, :, 1:] + depths[:, :, :-1]) / 2
    total = weights.sum(dim=2)
    safe = torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(total > 0, (weights * middles).sum(dim=2) / safe, middles[:, :, -1])
