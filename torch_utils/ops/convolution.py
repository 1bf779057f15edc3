"""Convolution of images whose gradients, of any order, are convolutions with small filters.

The stock second derivative takes the gradient of a weight as a convolution with a filter as large as the
image, for which GPU libraries have no fast kernel. Here the gradient of a weight is always the library's own
operation, and the derivative of that is an ordinary convolution again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_utils.ops import kernels

_NO_DILATION, _GROUPS = (1, 1), 1
_ONEDNN = torch.backends.mkldnn.is_available()
_ONLY_WEIGHT = (False, True, False)  # of the gradients of input, weight and bias


class no_weight_gradients:  # noqa: N801, a context as those of torch
    """Context in which backward passes leave out the gradients of weights, biases and noise strengths.

    For gradients of inputs that have to be differentiated themselves. A Python backward is not told which of
    its inputs a gradient is wanted for, so that it would compute them all.
    """

    active = False  # of the whole process: backward passes on a GPU run in a thread of their own

    def __enter__(self) -> None:
        self._before, no_weight_gradients.active = no_weight_gradients.active, True

    def __exit__(self, *_: object) -> None:
        no_weight_gradients.active = self._before


class _Geometry(NamedTuple):
    """How a filter is applied."""

    stride: int
    padding: int
    transposed: bool  # the gradient of a convolution with respect to its input
    more: tuple[int, int] = (0, 0)  # rows and columns added at the end of a transposed convolution

    def arguments(self) -> tuple[Any, ...]:
        """Returns what torch's general convolution takes after input, weight and bias."""
        stride, padding = (self.stride, self.stride), (self.padding, self.padding)
        return stride, padding, _NO_DILATION, self.transposed, self.more, _GROUPS

    def reverse(self, size: torch.Size, out_size: torch.Size, k: int) -> '_Geometry':
        """Returns the convolution that leads from gradients [..., H', W'] back to inputs [..., H, W]."""
        if self.transposed:
            return _Geometry(self.stride, self.padding, False)
        shapes = zip(size[2:], out_size[2:], strict=True)
        more = tuple(n - ((m - 1) * self.stride - 2 * self.padding + k) for n, m in shapes)
        return _Geometry(self.stride, self.padding, True, more)


def conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    padding: int = 0,
    bias: Tensor | None = None,
    impl: str = 'auto',
) -> Tensor:
    """Correlates images [N, C_in, H, W] with filters [C_out, C_in, k, k], as torch's conv2d does.

    bias: [C_out] of x's type; the library of CPUs adds it, and takes its gradient, without a further pass.
    impl: `ref` is torch's on every device; otherwise CPUs, which are as fast with it, have torch's gradients.
    """
    if not _own(x, impl):
        # what lies between the taps of a 1x1 filter changes nothing, but makes torch choose oneDNN, which is
        # two to five times faster than what small batches get on one thread
        dilation = 2 if weight.shape[-1] == 1 and _in_onednn(x) and impl != 'ref' else 1
        return torch.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    y = _Convolution.apply(x, weight, _Geometry(stride, padding, False))
    return y if bias is None else y.add_(bias[:, None, None])  # in place: no gradient needs it


def conv_transpose2d(x: Tensor, weight: Tensor, stride: int = 1, impl: str = 'auto') -> Tensor:
    """Spreads images [N, C_in, H, W] by filters [C_in, C_out, k, k], as torch's does; impl: as in conv2d."""
    if not _own(x, impl):
        return torch.conv_transpose2d(x, weight, stride=stride)
    return _Convolution.apply(x, weight, _Geometry(stride, 0, True))


def _in_onednn(x: Tensor) -> bool:
    return _ONEDNN and x.dtype is torch.float32 and x.device.type == 'cpu'


def _own(x: Tensor, impl: str) -> bool:
    return torch.is_grad_enabled() and kernels.as_on_a_gpu(x, impl)


class _Convolution(torch.autograd.Function):
    """A convolution; of x and weight only what a gradient needs is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: _Geometry) -> Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.how, ctx.sizes = how, (x.shape, weight.shape)
        return torch.convolution(x, weight, None, *how.arguments())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        size, weight_size = ctx.sizes
        dx = d_weight = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, weight, ctx.how.reverse(size, dy.shape, weight_size[2]))
        if ctx.needs_input_grad[1] and not no_weight_gradients.active:
            d_weight = _WeightGradient.apply(dy, x, weight_size, ctx.how)
        return dx, d_weight, None


class _WeightGradient(torch.autograd.Function):
    """The gradient of a weight, linear in the gradient of the output and in x."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, size: torch.Size, how: _Geometry) -> Tensor:
        ctx.save_for_backward(dy, x)
        ctx.how = how
        shape = dy.new_empty(()).expand(size)  # all that is asked of the weight
        gradients = torch.ops.aten.convolution_backward.default
        return gradients(dy, x, shape, None, *how.arguments(), _ONLY_WEIGHT)[1]

    @staticmethod
    def backward(ctx: Any, d2: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        d_dy = d_x = None
        if ctx.needs_input_grad[0]:
            d_dy = _Convolution.apply(x, d2, ctx.how)
        if ctx.needs_input_grad[1]:
            d_x = _Convolution.apply(dy, d2, ctx.how.reverse(x.shape, dy.shape, d2.shape[2]))
        return d_dy, d_x, None, None
