"""Lookup, decoder and compositing along rays as one operator, which keeps no tensor of all samples.

Memory grows with rays x samples and with the planes, but not with rays x samples x channels: the backward
pass computes the samples again. `_reference` is the definition.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_utils.ops import triplane_render
from torch_utils.ops.bias_act import bias_act
from training.volumetric_rendering.ray_marcher import DENSITY_BIAS, composite, interval_weights
from training.volumetric_rendering.triplane import PLANE_AXES, sample_planes


class DecoderWeights(NamedTuple):
    """Two layers with a softplus between them, as used: multiplied by their gains."""

    hidden_weight: Tensor  # [64, C]
    hidden_bias: Tensor  # [64]
    out_weight: Tensor  # [1 + F, 64]; the raw density first, then colours before the sigmoid
    out_bias: Tensor  # [1 + F]


class Rays(NamedTuple):
    """Positions of the samples."""

    origins: Tensor  # [N, R, 3]
    directions: Tensor  # [N, R, 3]
    depths: Tensor  # [N, R, S], increasing along S


class Spec(NamedTuple):
    """Numbers that the result depends on."""

    axes: str  # a key of PLANE_AXES
    box_warp: float  # side of the box that the planes cover, scene units
    margin: float  # by which the sigmoid of colours exceeds [0, 1]

    def numbers(self) -> tuple[int, float, float, float]:
        """Returns what kernels take: axes, two bits each; scale of points; margin; bias of densities."""
        flat = (axis for pair in PLANE_AXES[self.axes] for axis in pair)
        code = sum(axis << (2 * i) for i, axis in enumerate(flat))
        return code, 2 / self.box_warp, float(self.margin), DENSITY_BIAS


class FusedField(NamedTuple):
    """A decoded tri-plane that integrates along rays by itself (renderer.Integrator)."""

    planes: Tensor  # [N, 3, C, H, W]
    decoder: DecoderWeights
    spec: Spec

    def weights(self, origins: Tensor, directions: Tensor, depths: Tensor) -> Tensor:
        """Returns `integrate_weights` of rays."""
        return integrate_weights(self.planes, Rays(origins, directions, depths), self.decoder, self.spec)

    def integrate(self, origins: Tensor, directions: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `integrate` of rays."""
        return integrate(self.planes, Rays(origins, directions, depths), self.decoder, self.spec)


def fused_field(planes: Tensor, decoder: DecoderWeights, spec: Spec, samples: int) -> FusedField | None:
    """Returns the field if kernels render it with so many samples per ray, otherwise None."""
    if not triplane_render.usable(planes, samples, len(decoder.out_bias) - 1):
        return None
    return FusedField(triplane_render.channels_innermost(planes), decoder, spec)


def integrate(
    planes: Tensor, rays: Rays, decoder: DecoderWeights, spec: Spec, impl: str = 'auto'
) -> tuple[Tensor, Tensor]:
    """Renders rays through planes [N, 3, C, H, W], as `composite` of decoded samples does.

    Args:
        planes: read without a copy if the channels of a pixel are adjacent in memory.
        rays: sample positions; only the reference gives gradients with respect to them.
        decoder: weights with their gains.
        spec: where the planes are, range of colours.
        impl: `auto`, `ref`, `cuda` or `cpu`; see kernels.has_kernels.

    Returns:
        features [N, R, F]; weights of the intervals between samples [N, R, S - 1].
    """
    planes, rays, params = _prepare(planes, rays, decoder)
    constant = not (torch.is_grad_enabled() and any(x.requires_grad for x in rays))
    sizes = (rays.depths.shape[2], len(decoder.out_bias) - 1)
    if not constant or not triplane_render.usable(planes, *sizes, impl):
        return _reference(planes, params, *rays, spec)
    return _Integrate.apply(triplane_render.channels_innermost(planes), params, *rays, spec)


@torch.no_grad()
def integrate_weights(
    planes: Tensor, rays: Rays, decoder: DecoderWeights, spec: Spec, impl: str = 'auto'
) -> Tensor:
    """Returns the weights that `integrate` returns, [N, R, S - 1], without gradient and colours."""
    density = decoder._replace(out_weight=decoder.out_weight[:1], out_bias=decoder.out_bias[:1])
    planes, rays, params = _prepare(planes, rays, density)
    if not triplane_render.usable(planes, rays.depths.shape[2], 0, impl):
        density = _decode(planes, params, *rays, spec)[1]
        return interval_weights(density, rays.depths[..., None])[..., 0]
    return torch.ops.pv3d.triplane_render(planes, params, *rays, 0, *spec.numbers())[1]


def _prepare(planes: Tensor, rays: Rays, decoder: DecoderWeights) -> tuple[Tensor, Rays, Tensor]:
    """Casts to one type, float32 or float64, and joins the weights to one vector."""
    shapes = [(triplane_render.HIDDEN, planes.shape[2]), (triplane_render.HIDDEN,)]
    shapes += [(len(decoder.out_bias), triplane_render.HIDDEN), (len(decoder.out_bias),)]
    assert [tuple(w.shape) for w in decoder] == shapes  # kernels rely on it
    dtype = torch.float64 if planes.dtype == torch.float64 else torch.float32
    params = torch.cat([w.flatten().to(dtype) for w in decoder])
    return planes.to(dtype), Rays(*(x.to(dtype) for x in rays)), params


def _num_outputs(planes: Tensor, params: Tensor) -> int:
    hidden = triplane_render.HIDDEN
    return (len(params) - hidden * (planes.shape[2] + 1)) // (hidden + 1)


def decode(x: Tensor, decoder: DecoderWeights, margin: float) -> tuple[Tensor, Tensor]:
    """Returns colours [M, F] and raw densities [M, 1] of plane features [M, C]."""
    x = bias_act(x @ decoder.hidden_weight.t(), decoder.hidden_bias, 'softplus')
    x = torch.addmm(decoder.out_bias, x, decoder.out_weight.t())
    return x[:, 1:].sigmoid() * (1 + 2 * margin) - margin, x[:, :1]


def _decode(
    planes: Tensor, params: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Returns colours [N, R, S, F] and raw densities [N, R, S, 1] of all samples."""
    hidden, c = triplane_render.HIDDEN, planes.shape[2]
    outputs = _num_outputs(planes, params)
    w1, b1, w2, b2 = params.split([hidden * c, hidden, outputs * hidden, outputs])
    decoder = DecoderWeights(w1.view(hidden, c), b1, w2.view(outputs, hidden), b2)
    points = origins[:, :, None] + depths[..., None] * directions[:, :, None]  # [N, R, S, 3]
    x = sample_planes(planes, points.flatten(1, 2), spec.axes, spec.box_warp).flatten(0, 1)
    colors, density = decode(x, decoder, spec.margin)
    return colors.unflatten(0, depths.shape), density.unflatten(0, depths.shape)


def _reference(
    planes: Tensor, params: Tensor, origins: Tensor, directions: Tensor, depths: Tensor, spec: Spec
) -> tuple[Tensor, Tensor]:
    """The definition, in stock operators."""
    colors, density = _decode(planes, params, origins, directions, depths, spec)
    result = composite(colors, density, depths[..., None])
    return result.features, result.weights[..., 0]


class _Integrate(torch.autograd.Function):
    """`integrate` by kernels, with respect to planes and params."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, params: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        *rays, spec = args
        ctx.save_for_backward(planes, params, *rays)
        ctx.spec = spec
        features = _num_outputs(planes, params) - 1
        return torch.ops.pv3d.triplane_render(planes, params, *rays, features, *spec.numbers())

    @staticmethod
    def backward(ctx: Any, grad_features: Tensor, grad_weights: Tensor) -> tuple[Tensor | None, ...]:
        grads = _IntegrateGrad.apply(*ctx.saved_tensors, grad_features, grad_weights, ctx.spec)
        return (*grads, None, None, None, None)


class _IntegrateGrad(torch.autograd.Function):
    """The gradient of `integrate`; its own derivative, which is rarely needed, is that of the reference."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, params: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        *tensors, spec = args
        ctx.save_for_backward(planes, params, *tensors)
        ctx.spec = spec
        return torch.ops.pv3d.triplane_render_grad(planes, params, *tensors, *spec.numbers())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        planes, params, *rays, grad_features, grad_weights = ctx.saved_tensors
        with torch.enable_grad():
            # views, so that planes do not count again through a gradient that was computed from them
            inputs = [
                x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                for x in (planes, params, grad_features, grad_weights)
            ]
            outputs = _reference(*inputs[:2], *rays, ctx.spec)
            grads = torch.autograd.grad(outputs, inputs[:2], inputs[2:], create_graph=True)
        found = torch.autograd.grad(
            grads, inputs, cotangents, create_graph=create_graph, materialize_grads=True
        )
        return (*found[:2], None, None, None, *found[2:], None)
