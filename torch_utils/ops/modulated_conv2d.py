"""Convolution whose input channels are scaled per sample by a style, demodulated or not (StyleGAN2)."""

import torch
from torch import Tensor

from torch_utils.ops.conv2d_resample import conv2d_resample

_EPS = 1e-8  # keeps the demodulation finite for zero weights


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, f: Tensor, up: int = 1, demodulate: bool = True
) -> Tensor:
    """Convolves x with weights modulated per sample.

    The activations are scaled instead of the weights, so that one dense convolution serves the whole batch.

    Args:
        x: features [N, C_in, H, W].
        weight: [C_out, C_in, k, k].
        styles: factors of the input channels, [N, C_in].
        f: low-pass filter [4, 4], used when up = 2.
        up: 1 or 2.
        demodulate: scales each output channel so that a unit-variance input gives unit variance.

    Returns:
        features [N, C_out, H * up, W * up] of x's type.

    In half precision weights and styles are first brought to a maximum of one, which demodulation undoes.
    """
    if demodulate and x.dtype in (torch.float16, torch.bfloat16):
        fan_in = weight[0].numel()
        weight = weight / (weight.norm(float('inf'), dim=(1, 2, 3), keepdim=True) * fan_in**0.5)
        styles = styles / styles.norm(float('inf'), dim=1, keepdim=True)
    x = x * styles.to(x.dtype)[:, :, None, None]
    x = conv2d_resample(x, weight.to(x.dtype), f, up=up)
    if not demodulate:
        return x
    power = weight.square().sum(dim=(2, 3))  # [C_out, C_in]
    scale = (styles.square() @ power.t() + _EPS).rsqrt()
    return x * scale.to(x.dtype)[:, :, None, None]
