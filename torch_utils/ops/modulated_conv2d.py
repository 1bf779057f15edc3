"""Convolution whose input channels are scaled per sample by a style, demodulated or not (StyleGAN2)."""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_utils.ops.bias_act import Modulation, bias_act, scale_channels
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.convolution import conv2d

_EPS = 1e-8  # keeps the demodulation finite for zero weights


class Epilogue(NamedTuple):
    """What follows the convolution, in the same pass over memory as the demodulation."""

    bias: Tensor | None = None  # [C_out]
    act: str = 'linear'  # as in bias_act
    clamp: float | None = None  # as in bias_act
    noise: Tensor | None = None  # without gradient, [N or 1, 1, H_out, W_out]
    strength: Tensor | None = None  # of the noise, scalar


_NOTHING = Epilogue()


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    f: Tensor | None = None,
    demodulate: bool = True,
    epilogue: Epilogue = _NOTHING,
    impl: str = 'auto',
) -> Tensor:
    """Convolves x with weights modulated per sample, then adds noise and bias and activates.

    The activations are scaled instead of the weights, so that one dense convolution serves the whole batch.

    Args:
        x: features [N, C_in, H, W].
        weight: [C_out, C_in, k, k].
        styles: factors of the input channels, [N, C_in].
        f: low-pass filter [4, 4] to double the size with; None = same size.
        demodulate: scales each output channel so that a unit-variance input gives unit variance.
        epilogue: noise, bias, activation and clamp.
        impl: `auto`, `ref`, `cuda` or `cpu`; see kernels.has_kernels.

    Returns:
        features [N, C_out, H, W], or twice that size, of x's type.

    In half precision weights and styles are first brought to a maximum of one, which demodulation undoes.
    """
    if demodulate and x.dtype in (torch.float16, torch.bfloat16):
        fan_in = weight[0].numel()
        weight = weight / (weight.norm(float('inf'), dim=(1, 2, 3), keepdim=True) * fan_in**0.5)
        styles = styles / styles.norm(float('inf'), dim=1, keepdim=True)
    x = scale_channels(x, styles, impl)
    nothing_else = epilogue.act == 'linear' and epilogue.clamp is None and epilogue.noise is None
    if epilogue.bias is not None and nothing_else and not demodulate and f is None:  # the widest outputs
        bias = epilogue.bias.to(x.dtype)
        return conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2, bias=bias, impl=impl)
    x = conv2d_resample(x, weight.to(x.dtype), f, up=1 if f is None else 2, impl=impl)
    scale = demodulation(weight, styles) if demodulate else None
    modulation = Modulation(scale, epilogue.noise, epilogue.strength)
    return bias_act(x, epilogue.bias, epilogue.act, clamp=epilogue.clamp, modulation=modulation, impl=impl)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Returns 1 / norm of each output channel's modulated weight [N, C_out]."""
    power = weight.square().sum(dim=(2, 3))  # [C_out, C_in]
    return (styles.square() @ power.t() + _EPS).rsqrt()
