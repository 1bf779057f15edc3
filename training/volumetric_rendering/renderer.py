"""Renders a field along rays: coarse samples, importance samples, compositing.

The renderer knows neither networks nor tri-planes: a field is a function of points.
Source: EG3D, PV3D section 3.4.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dnnlib.util import ConfigError
from training.volumetric_rendering.ray_marcher import Composite, composite, expected_depth, interval_weights
from training.volumetric_rendering.sampling import importance_depths, stratified_depths

# points [N, M, 3] -> colour features [N, M, C] in [0, 1], raw density [N, M, 1]
Field = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """How rays are sampled."""

    resolution: int = 64  # pixels per side of the rendered image [PV3D A.1; 32 / 64 / 128 in table 3b]
    depth_samples: int = 48  # coarse samples per ray [EG3D]
    importance_samples: int = 48  # further samples where the coarse ones found matter [EG3D]
    ray_start: float = 2.25  # nearest sample, scene units from the camera [EG3D FFHQ]
    ray_end: float = 3.3  # farthest sample, scene units [EG3D FFHQ]
    # of coarse samples when nothing is random, fraction of a bin; released return_depth: 0 [ours]
    fixed_offset: float = 0.5

    def __post_init__(self) -> None:
        if self.resolution < 1 or self.depth_samples < 4 or self.importance_samples < 0:
            raise ConfigError('renderer: resolution >= 1, depth_samples >= 4, importance_samples >= 0')
        if not 0 < self.ray_start < self.ray_end:
            raise ConfigError(f'renderer: 0 < ray_start={self.ray_start} < ray_end={self.ray_end} expected')


class RayColors(NamedTuple):
    """What rays see."""

    features: Tensor  # [N, R, C] in [-1, 1]
    depth: Tensor  # distance along the unit ray, scene units [N, R, 1]
    opacity: Tensor  # [N, R, 1] in [0, 1]
    points: Tensor  # expected world point [N, R, 3]; what passes through counts at the last sample


class Integrator(Protocol):
    """A field that samples and composites by itself, given rays [N, R, 3] and depths [N, R, S]."""

    def weights(self, origins: Tensor, directions: Tensor, depths: Tensor) -> Tensor:
        """Returns weights of intervals [N, R, S - 1], without gradient."""

    def integrate(self, origins: Tensor, directions: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features in [0, 1], [N, R, C], and weights [N, R, S - 1]."""


def render_rays(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    config: RendererConfig,
    generator: torch.Generator | None = None,
    integrator: Integrator | None = None,
) -> RayColors:
    """Renders rays [N, R, 3] with unit directions.

    Args:
        field: maps points [N, M, 3] to features [N, M, C] and raw density [N, M, 1].
        origins: [N, R, 3].
        directions: [N, R, 3], unit length.
        config: sampling.
        generator: draws the jitter of the samples; None = fixed positions (inference).
        integrator: the same field, faster and in less memory; None = `field` defines the result.
    """
    coarse = _coarse_depths(origins, config, generator)
    u = _quantiles(origins, config, generator) if config.importance_samples else None
    if integrator is None:
        result, depths = _march(field, origins, directions, coarse, u)
    else:
        result, depths = _integrate(integrator, origins, directions, coarse, u)
    points = _expected_points(origins, directions, depths, result)
    return RayColors(result.features * 2 - 1, result.depth, result.opacity, points)


def _march(
    field: Field, origins: Tensor, directions: Tensor, coarse: Tensor, u: Tensor | None
) -> tuple[Composite, Tensor]:
    """Returns what rays see and all depths [N, R, S, 1]; u: quantiles of importance samples, None = none."""
    features, density = _sample(field, origins, directions, coarse)
    depths = coarse
    if u is not None:
        with torch.no_grad():
            weights = interval_weights(density, coarse)
        fine = importance_depths(coarse, weights, u)
        more = _sample(field, origins, directions, fine)
        features, density, depths = _merge((features, density, coarse), (*more, fine))
    return composite(features, density, depths), depths


def _integrate(
    integrator: Integrator, origins: Tensor, directions: Tensor, coarse: Tensor, u: Tensor | None
) -> tuple[Composite, Tensor]:
    """Does what _march does; coarse samples are decoded twice, which is cheaper than keeping them."""
    depths = coarse
    if u is not None:
        weights = integrator.weights(origins, directions, coarse[..., 0])[..., None]
        fine = importance_depths(coarse, weights, u)
        depths = torch.cat([coarse, fine], dim=2).sort(dim=2).values
    features, weights = integrator.integrate(origins, directions, depths[..., 0])
    weights = weights[..., None]
    return Composite(features, expected_depth(weights, depths), weights), depths


def _coarse_depths(origins: Tensor, config: RendererConfig, generator: torch.Generator | None) -> Tensor:
    shape = (*origins.shape[:2], config.depth_samples, 1)
    if generator is None:
        offset = origins.new_full((1, 1, 1, 1), config.fixed_offset)
    else:
        offset = torch.rand(shape, generator=generator, device=origins.device, dtype=origins.dtype)
    return stratified_depths(config.ray_start, config.ray_end, shape[2], offset).expand(shape)


def _quantiles(origins: Tensor, config: RendererConfig, generator: torch.Generator | None) -> Tensor:
    like, f = {'device': origins.device, 'dtype': origins.dtype}, config.importance_samples
    if generator is None:
        return (torch.arange(f, **like) + 0.5) / f
    return torch.rand((*origins.shape[:2], f), generator=generator, **like)


def _sample(field: Field, origins: Tensor, directions: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    points = origins[:, :, None] + depths * directions[:, :, None]  # [N, R, S, 3]
    features, density = field(points.flatten(1, 2))
    return features.unflatten(1, depths.shape[1:3]), density.unflatten(1, depths.shape[1:3])


def _merge(
    coarse: tuple[Tensor, Tensor, Tensor], fine: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Joins (features, density, depths) of two sets of samples in the order of depth."""
    features, density, depths = (torch.cat(pair, dim=2) for pair in zip(coarse, fine, strict=True))
    depths, order = depths.sort(dim=2)
    return features.gather(2, order.expand_as(features)), density.gather(2, order), depths


def _expected_points(origins: Tensor, directions: Tensor, depths: Tensor, result: tuple) -> Tensor:
    """Mean position of what the rays see, the light that passes counted at the last interval [N, R, 3]."""
    weights = result.weights
    middles = (depths[:, :, 1:] + depths[:, :, :-1]) / 2
    distance = (weights * middles).sum(dim=2) + (1 - weights.sum(dim=2)) * middles[:, :, -1]
    return origins + distance * directions
