"""Demodulation, noise, bias, activation, gain and clamp in one function (the epilogue of every layer).

The kernel makes one pass over memory in either direction; the sums that the gradients of the small operands
need are taken on the way. Every backward is built from operators with a backward, so any order of derivative
works.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_utils.ops import kernels
from torch_utils.ops.convolution import no_weight_gradients

# pixels that a thread of a CPU sums up at a time; with channels last of all channels
_PART, _PART_LAST = 4096, 128
# threads wanted on a GPU (twice what an H100 holds), and packs of elements that each sums up at least
_THREADS, _PACKS = 2**19, 32
_HALF = (torch.float16, torch.bfloat16)  # too coarse to find x again from the result


class _Activation(NamedTuple):
    slope: float | None  # below zero; None = not piecewise linear, always done in stock operators
    gain: float  # keeps the variance of a normal input


_ACTIVATIONS = {
    'linear': _Activation(1.0, 1.0),
    'lrelu': _Activation(0.2, math.sqrt(2)),
    'softplus': _Activation(None, 1.0),
}


class Modulation(NamedTuple):
    """What a modulated convolution leaves to do, before bias and activation: x * scale + noise * strength."""

    scale: Tensor | None = None  # [N, C]
    noise: Tensor | None = None  # without gradient, [N or 1, 1, H, W]
    strength: Tensor | None = None  # of the noise, scalar


_NOTHING = Modulation()
_LINEAR = (1.0, 1.0, -1.0)  # slope, gain and limit of the identity


def scale_channels(x: Tensor, scale: Tensor, impl: str = 'auto') -> Tensor:
    """Returns x [N, C, ...] times scale [N, C], of x's type; impl: as in bias_act."""
    if not torch.is_grad_enabled() or not kernels.has_kernels(x, impl):
        return x * _per_channel(scale.to(x.dtype), x)
    return _Scale.apply(x, scale.to(_wide(x)))


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    act: str = 'linear',
    gain: float = 1.0,
    clamp: float | None = None,
    modulation: Modulation = _NOTHING,
    impl: str = 'auto',
) -> Tensor:
    """Modulates, adds a bias, applies an activation with its standard gain, scales and clamps.

    Args:
        x: features [N, C, ...], contiguous or channels last (others are copied).
        bias: [C], or None.
        act: `linear`, `softplus` (gain 1) or `lrelu` (slope 0.2, gain sqrt 2).
        gain: further factor on the output.
        clamp: limit of the absolute output, or None; scaled by `gain` too.
        modulation: scale and noise. Where the backward of kernels finds x again from the result (float32 and
            float64), the scale must not be 0, and its gradient loses digits when noise and bias are much
            larger than x * scale.
        impl: `auto`, `ref`, `cuda` or `cpu`; see kernels.has_kernels.

    Returns:
        A tensor of the shape and type of x.
    """
    slope, act_gain = _ACTIVATIONS[act]
    numbers = (slope, act_gain * gain, -1.0 if clamp is None else float(clamp * gain))
    # stock operators add a bias alone as fast, and their backward copies nothing
    plain = numbers == _LINEAR and modulation.scale is None and modulation.noise is None
    plain = plain or slope is None or gain <= 0 or not _regular(x, bias, modulation)
    if not kernels.has_kernels(x, impl) or plain:  # in this order: an impl that cannot be had is an error
        return _reference(x, bias, modulation, *numbers)
    wide = _wide(x)
    small = [v if v is None or v.dtype is wide else v.to(wide) for v in (*modulation, bias)]
    if not torch.is_grad_enabled():
        return _forward_op(x, *small, *numbers)
    return _BiasAct.apply(x, *small, numbers)


def _regular(x: Tensor, bias: Tensor | None, modulation: Modulation) -> bool:
    """Returns whether all operands have the shapes of the contract; the reference also broadcasts others."""
    shape, device = x.shape, x.device
    if bias is not None and (bias.shape != shape[1:2] or bias.device != device):
        return False
    if modulation is _NOTHING:  # asked for each layer of a discriminator
        return True
    scale, noise, strength = modulation
    shapes = (
        scale is None or scale.shape == shape[:2],
        noise is None or noise.shape[1:] == (1, *shape[2:]) and not noise.requires_grad,
        noise is None or strength is not None and strength.ndim == 0,
        noise is None or noise.shape[0] in (1, shape[0]),
    )
    return all(shapes) and all(t is None or t.device == device for t in modulation)


class _Softplus(torch.autograd.Function):
    """log(1 + e^x) whose gradient is a sigmoid: eight times faster on a CPU than the stock backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.softplus(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return dy * x.sigmoid()


def _reference(
    x: Tensor, bias: Tensor | None, modulation: Modulation, slope: float | None, gain: float, limit: float
) -> Tensor:
    """The definition, in stock operators; slope None is softplus, a limit below 0 none."""
    scale, noise, strength = modulation
    if scale is not None:
        x = x * _per_channel(scale.to(x.dtype), x)
    if noise is not None:
        x = x + (noise * strength).to(x.dtype)
    if bias is not None:
        x = x + _per_channel(bias.to(x.dtype), x)
    if slope is None:
        x = _Softplus.apply(x)
    elif slope != 1:
        x = torch.nn.functional.leaky_relu(x, slope)
    x = x * gain if gain != 1 else x
    return x.clamp(-limit, limit) if limit >= 0 else x


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    """Shapes v [C] or [N, C] so that it broadcasts over x [N, C, ...]."""
    return v.reshape([-1, x.shape[1]] + [1] * (x.ndim - 2))


def _wide(x: Tensor) -> torch.dtype:
    """Returns the type of small operands and sums."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Scale(torch.autograd.Function):
    """`scale_channels`; both gradients in one pass, that of a linear bias_act whose result was x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * _per_channel(scale.to(x.dtype), x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        dx, sums = _gradients(dy, x, None, scale, None, _LINEAR)
        return dx, sums.select(2, 1)


class _BiasAct(torch.autograd.Function):
    """The kernel. Only its result is kept, which the next layer keeps too: activations can be inverted.

    x is kept as well where it is half precision and the gradient of the scale is wanted.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        *small, numbers = args  # scale, noise, strength, bias; slope, gain, limit
        y = _forward_op(x, *small, *numbers)
        kept = x if x.dtype in _HALF and ctx.needs_input_grad[1] else None
        ctx.save_for_backward(y, kept, *small)
        ctx.numbers = numbers
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, x, scale, noise, strength, bias = ctx.saved_tensors
        if scale is None and (no_weight_gradients.active or not any(ctx.needs_input_grad[1:])):
            return _derivative(dy, y, ctx.numbers), None, None, None, None, None
        dx, sums = _gradients(dy, y, x, scale, noise, ctx.numbers)
        if scale is None and noise is None:
            return dx, None, None, None, sums.select(2, 0).sum(dim=0), None
        d, d_in, d_noise = sums.unbind(dim=2)  # [N, C]
        d_scale = None if x is None else d_in
        if x is None and scale is not None:  # sum of d x, where x = (z - noise strength - bias) / scale
            offset = (0 if noise is None else d_noise * strength) + (0 if bias is None else d * bias)
            d_scale = (d_in - offset) / scale
        d_strength = None if noise is None else d_noise.sum()
        return dx, d_scale, None, d_strength, None if bias is None else d.sum(dim=0), None


def _gradients(dy: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Returns what `_Backward` does, with a graph where one is wanted."""
    if torch.is_grad_enabled():
        return _Backward.apply(dy, *args)
    *others, numbers = args
    return _backward_op(dy, *others, *numbers)


def _derivative(dy: Tensor, y: Tensor, numbers: tuple[float, float, float]) -> Tensor:
    """Returns dy times the derivative of the activation where its result was y."""
    if not torch.is_grad_enabled():
        return _derivative_op(dy, y, *numbers)
    return _Derivative.apply(dy, y, numbers)


class _Derivative(torch.autograd.Function):
    """`_derivative`, linear in dy and constant along y."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, y: Tensor, numbers: tuple[float, float, float]) -> Tensor:
        ctx.save_for_backward(y)
        ctx.numbers = numbers
        return _derivative_op(dy, y, *numbers)

    @staticmethod
    def backward(ctx: Any, d2: Tensor) -> tuple[Tensor | None, ...]:
        return _derivative(d2, ctx.saved_tensors[0], ctx.numbers), None, None


class _Backward(torch.autograd.Function):
    """Of d = dy * derivative: returns d * scale and the sums over pixels of d, d * v, d * noise [N, C, 3].

    v is x or, without it, the input of the activation: y / gain where y > 0, y / (gain * slope) elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, dy: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        *others, numbers = args  # y, x, scale, noise; slope, gain, limit
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, *others)
        ctx.numbers = numbers
        return _backward_op(dy, *others, *numbers)

    @staticmethod
    def backward(ctx: Any, g_dx: Tensor | None, g_sums: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, y, x, scale, noise = ctx.saved_tensors
        slope, gain, _ = ctx.numbers
        total = d_x = d_y = d_scale = None
        if g_dx is None and g_sums is None:
            return None, None, None, None, None, None
        if g_dx is not None:
            total = g_dx if scale is None else g_dx * _per_channel(scale, y).to(y.dtype)
        if g_sums is not None:
            g_d, g_v, g_noise = (_per_channel(g, y) for g in g_sums.unbind(dim=2))
            v = torch.where(y > 0, y / gain, y / (gain * slope)) if x is None else x
            more = (g_d + g_v * v + (0 if noise is None else g_noise * noise)).to(y.dtype)
            total = more if total is None else total + more
            # v gets d, and through it y d * dv/dy = dy: not 0 where y is clamped, but y ends there
            if x is None:
                d_y = (g_v * dy).to(y.dtype)
            else:
                d_x = (g_v * _derivative(dy, y, ctx.numbers)).to(x.dtype)
        if scale is not None and g_dx is not None:
            d = _derivative(dy, y, ctx.numbers)
            d_scale = (d.to(scale.dtype) * g_dx).reshape(*scale.shape, math.prod(y.shape[2:])).sum(dim=2)
        return _derivative(total, y, ctx.numbers), d_y, d_x, d_scale, None, None


def _sizes(x: Tensor, layout: torch.memory_format) -> tuple[int, ...]:
    """Returns the sizes that kernels take: N, C, pixels, and 1 if channels come last."""
    n, c, *sides = x.shape
    return n, c, math.prod(sides), int(not sides or layout is torch.channels_last)


def _dense(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Returns small operands with their numbers side by side."""
    return [None if t is None else t.contiguous() for t in tensors]


def _forward_kernel(x: Tensor, *args: Any) -> Tensor:
    layout = kernels.memory_format(x)
    x, small = x.contiguous(memory_format=layout), _dense(args[:4])
    out = torch.empty_like(x)
    noise_n = 0 if small[1] is None else small[1].shape[0]
    kernels.call('bias_act', x, x, None, *small, out, *_sizes(x, layout), noise_n, *args[4:])
    return out


def _derivative_kernel(dy: Tensor, y: Tensor, *numbers: float) -> Tensor:
    layout = kernels.memory_format(y)
    y, dy = y.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    out = torch.empty_like(y)
    kernels.call('bias_act', y, dy, y, None, None, None, None, out, *_sizes(y, layout), 0, *numbers)
    return out


def _part(y: Tensor, n: int, c: int, pixels: int, last: int) -> int:
    """Returns how many pixels of a channel are summed up at a time."""
    if not y.is_cuda:
        return _PART_LAST if last else _PART
    pack = 16 // y.element_size()
    most = n * c * pixels // pack // _PACKS  # threads that have enough to do
    parts = min(most, _THREADS) // max(1, n * c // pack if last else n * c)
    return max(1, -(-pixels // max(1, parts)))


def _backward_kernel(dy: Tensor, y: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    layout = kernels.memory_format(y)
    y, dy, small = y.contiguous(memory_format=layout), dy.contiguous(memory_format=layout), _dense(args[1:3])
    x = None if args[0] is None else args[0].contiguous(memory_format=layout)
    n, c, pixels, last = _sizes(y, layout)
    part = _part(y, n, c, pixels, last)
    parts = -(-pixels // part)
    sums = y.new_empty((n, parts, c, 3) if last else (n, c, parts, 3), dtype=_wide(y))
    dx = torch.empty_like(y)
    noise_n = 0 if small[1] is None else small[1].shape[0]
    sizes = (n, c, pixels, last, noise_n, part, parts)
    kernels.call('bias_act_grad', y, dy, y, x, *small, dx, sums, *sizes, *args[3:])
    return dx, sums.reshape(n, c, 3) if parts == 1 else sums.sum(dim=1 if last else 2)


def _same(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=kernels.memory_format(x))


def _same_and_sums(dy: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _same(y), y.new_empty((*y.shape[:2], 3), dtype=_wide(y))


_SMALL, _NUMBERS = 'Tensor? scale, Tensor? noise', 'float slope, float gain, float limit'
_forward_op = kernels.register(
    f'bias_act(Tensor x, {_SMALL}, Tensor? strength, Tensor? bias, {_NUMBERS}) -> Tensor',
    _forward_kernel,
    _same,
)
_derivative_op = kernels.register(
    f'bias_act_derivative(Tensor dy, Tensor y, {_NUMBERS}) -> Tensor',
    _derivative_kernel,
    lambda dy, y, *_: _same(y),
)
_backward_op = kernels.register(
    f'bias_act_backward(Tensor dy, Tensor y, Tensor? x, {_SMALL}, {_NUMBERS}) -> (Tensor, Tensor)',
    _backward_kernel,
    _same_and_sums,
)
