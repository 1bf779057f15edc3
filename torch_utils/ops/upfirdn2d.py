"""Upsample by zero insertion, pad, filter, keep every n-th pixel; with its own backward.

The gradient of this operation is the same operation with up and down exchanged and the filter flipped, so
that any order of derivative works. Owning it matters: the stock double backward of a depthwise convolution
runs channel by channel.
"""

from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import kernels

Padding = tuple[int, int, int, int]  # left, right, top, bottom; negative values crop


def make_filter(taps: tuple[int, ...] = (1, 3, 3, 1)) -> Tensor:
    """Returns the normalised separable low-pass filter [len(taps), len(taps)]."""
    f = torch.tensor(taps, dtype=torch.float32)
    f = torch.outer(f, f)
    return f / f.sum()


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    up: int = 1,
    down: int = 1,
    padding: Padding = (0, 0, 0, 0),
    gain: float = 1.0,
    impl: str = 'auto',
) -> Tensor:
    """Resamples images with a FIR filter (a true convolution: the filter is flipped).

    Args:
        x: images [N, C, H, W].
        f: filter [h, w], float32.
        up: factor of zero insertion (a pixel, then up - 1 zeros).
        down: keeps every `down`-th pixel, beginning with the first.
        padding: zeros added after upsampling: left, right, top, bottom; negative values crop.
        gain: factor on the output.
        impl: `auto`, `ref`, `cuda` or `cpu`; see kernels.has_kernels.

    Returns:
        images [N, C, (H * up + top + bottom - h) // down + 1, (W * up + left + right - w) // down + 1].
    """
    assert x.ndim == 4 and f.ndim == 2
    run = _op if kernels.has_kernels(x, impl) else _reference
    return _apply(x, f, up, down, padding, False, gain, run)


def upsample2d(x: Tensor, f: Tensor, impl: str = 'auto') -> Tensor:
    """Doubles images [N, C, H, W] to [N, C, 2H, 2W] with filter f of even size, keeping the mean."""
    p0, p1 = (f.shape[-1] + 1) // 2, (f.shape[-1] - 2) // 2
    return upfirdn2d(x, f, up=2, padding=(p0, p1, p0, p1), gain=4, impl=impl)


def _reference(x: Tensor, f: Tensor, up: int, down: int, padding: Padding, flip: bool, gain: float) -> Tensor:
    """The definition, in stock operators; `flip` correlates with f instead of convolving."""
    n, c, h, w = x.shape
    if up > 1:
        x = torch.nn.functional.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(n, c, h * up, w * up)
    if any(padding):
        x = torch.nn.functional.pad(x, padding)
    f = (f if flip else f.flip((0, 1))).to(x.dtype) * gain
    return torch.nn.functional.conv2d(x, f.expand(c, 1, *f.shape), stride=down, groups=c)


def _apply(x: Tensor, f: Tensor, *args: Any) -> Tensor:
    """Runs the last argument, with a graph where one is wanted."""
    if not torch.is_grad_enabled():
        return args[-1](x, f, *args[:-1])
    return _Upfirdn2d.apply(x, f, *args)


class _Upfirdn2d(torch.autograd.Function):
    """upfirdn2d with respect to x; the filter is a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, *args: Any) -> Tensor:
        *args, run = args
        y = run(x, f, *args)
        ctx.save_for_backward(f)
        ctx.args = (*args, run, x.shape[2:], y.shape[2:])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (f,) = ctx.saved_tensors
        up, down, (left, _, top, _), flip, gain, run, (in_h, in_w), (out_h, out_w) = ctx.args
        fh, fw = f.shape
        padding = (
            fw - 1 - left,
            in_w * up - out_w * down + left - up + 1,
            fh - 1 - top,
            in_h * up - out_h * down + top - up + 1,
        )
        dx = _apply(dy, f, down, up, padding, not flip, gain, run)
        return dx, None, None, None, None, None, None, None


def _kernel(x: Tensor, f: Tensor, up: int, down: int, padding: Padding, flip: bool, gain: float) -> Tensor:
    layout = kernels.memory_format(x)
    x = x.contiguous(memory_format=layout)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    f = (f if f.dtype is wide else f.to(wide)).contiguous()
    y = _empty(x, f, up, down, padding, layout)
    last = int(layout is torch.channels_last)
    where = (up, down, padding[0], padding[2], last, int(flip), float(gain))
    kernels.call('upfirdn2d', x, x, f, y, *x.shape, *y.shape[2:], *f.shape, *where)
    return y


def _empty(x: Tensor, f: Tensor, up: int, down: int, padding: Padding, layout: torch.memory_format) -> Tensor:
    """Returns room for the result."""
    left, right, top, bottom = padding
    (n, c, h, w), (fh, fw) = x.shape, f.shape
    size = (n, c, (h * up + top + bottom - fh) // down + 1, (w * up + left + right - fw) // down + 1)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


def _fake(x: Tensor, f: Tensor, up: int, down: int, padding: Padding, *_: Any) -> Tensor:
    return _empty(x, f, up, down, padding, kernels.memory_format(x))


_op = kernels.register(
    'upfirdn2d(Tensor x, Tensor f, int up, int down, int[] padding, bool flip, float gain) -> Tensor',
    _kernel,
    _fake,
)
