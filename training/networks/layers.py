"""Layers of StyleGAN2 with equalised learning rate: weights are N(0, 1) and scaled at run time.

Layers take explicit arguments and do not know configs. Features are NCHW. Source: EG3D.
"""

import math

import torch
from torch import Tensor, nn

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import Epilogue, modulated_conv2d
from torch_utils.ops.upfirdn2d import make_filter

_EPS = 1e-8  # inside the root of normalize_2nd_moment


def normalize_2nd_moment(x: Tensor) -> Tensor:
    """Divides each row of x [N, C] by its root mean square."""
    return x * (x.square().mean(dim=1, keepdim=True) + _EPS).rsqrt()


def cast(x: Tensor, precision: str, weight: Tensor) -> Tensor:
    """Converts features x [N, C, H, W] to the type and memory layout that convolutions work on.

    fp16 or bf16 if requested and on CUDA, otherwise the type of the weight. Channels come last, since the
    libraries of CPUs and the tensor cores of GPUs would reorder every operand.
    """
    types = {'fp16': torch.float16, 'bf16': torch.bfloat16}
    dtype = types[precision] if x.is_cuda and precision in types else weight.dtype
    return x.to(dtype, memory_format=torch.channels_last)


class FullyConnected(nn.Module):
    """y = act(x W^T lr_mul / sqrt(in) + b lr_mul), [N, in] -> [N, out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        act: str = 'linear',
        lr_mul: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.act, self.lr_mul = act, lr_mul
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_mul))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [N, in] to [N, out]."""
        weight, bias = self.scaled()
        if self.act == 'linear':
            return torch.addmm(bias, x, weight.t())
        return bias_act(x @ weight.t(), bias, self.act)

    def scaled(self) -> tuple[Tensor, Tensor]:
        """Returns weight [out, in] and bias [out] with their gains."""
        return self.weight * (self.lr_mul / math.sqrt(self.weight.shape[1])), self.bias * self.lr_mul


class Conv2d(nn.Module):
    """Plain convolution with bias and activation, optionally halving the size (discriminators)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        act: str = 'lrelu',
        down: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.act, self.down = act, down
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer('resample_filter', make_filter(), persistent=False)

    def forward(self, x: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
        """Maps x [N, C_in, H, W] to [N, C_out, H / down, W / down]; `gain` scales the clamp too."""
        linear = self.act == 'linear' and self.bias is None and clamp is None
        weight = self.weight / (math.sqrt(self.weight[0].numel()) / (gain if linear else 1.0))
        x = conv2d_resample(x, weight.to(x.dtype), self.resample_filter, down=self.down)
        return x if linear else bias_act(x, self.bias, self.act, gain=gain, clamp=clamp)


class SynthesisLayer(nn.Module):
    """Modulated, demodulated 3x3 convolution with noise, bias and leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: int = 1,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.up, self.clamp = resolution, up, clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer('noise_const', torch.randn(resolution, resolution))
        self.register_buffer('resample_filter', make_filter(), persistent=False)

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str, generator: torch.Generator | None = None
    ) -> Tensor:
        """Maps x [N, C_in, H, W] and w [N, w_dim] to [N, C_out, resolution, resolution].

        noise_mode: `random` draws maps from `generator`, `const` uses the buffer, `none` adds nothing.
        """
        weight = self.weight / math.sqrt(self.weight[0].numel())
        f = self.resample_filter if self.up == 2 else None
        noise = self._noise(len(x), noise_mode, generator)
        epilogue = Epilogue(self.bias, 'lrelu', self.clamp, noise, self.noise_strength)
        return modulated_conv2d(x, weight, self.affine(w), f, epilogue=epilogue)

    def _noise(self, n: int, noise_mode: str, generator: torch.Generator | None) -> Tensor | None:
        if noise_mode == 'none':
            return None
        if noise_mode == 'const':
            return self.noise_const[None, None]
        if generator is None:
            raise ValueError("noise_mode='random' needs an explicit generator")
        shape = (n, 1, self.resolution, self.resolution)
        return torch.randn(shape, generator=generator, device=self.noise_const.device)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the output channels, not demodulated."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Maps x [N, C, H, W] and w [N, w_dim] to [N, C_out, H, W]."""
        styles = self.affine(w) / math.sqrt(self.weight[0].numel())
        epilogue = Epilogue(self.bias, clamp=self.clamp)
        return modulated_conv2d(x, self.weight, styles, demodulate=False, epilogue=epilogue)
