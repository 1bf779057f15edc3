"""Super-resolution: two modulated blocks on the rendered features, with a skip for the image.

Source: EG3D.
"""

import torch
from torch import Tensor, nn

from dnnlib.util import ConfigError
from torch_utils.ops.upfirdn2d import make_filter, upsample2d
from training.networks.layers import SynthesisLayer, ToRGB, cast

_CLAMP = 256.0  # limit of activations, for half precision [EG3D]
_NOISE = 'none'  # noise here would flicker between views [EG3D]


class SuperresolutionBlock(nn.Module):
    """Two convolutions, the first may double, and an RGB output added to the (doubled) input image."""

    def __init__(self, in_channels: int, channels: int, w_dim: int, resolution: int, up: int) -> None:
        super().__init__()
        self.up = up
        self.conv0 = SynthesisLayer(in_channels, channels, w_dim, resolution, up=up, clamp=_CLAMP)
        self.conv1 = SynthesisLayer(channels, channels, w_dim, resolution, clamp=_CLAMP)
        self.torgb = ToRGB(channels, 3, w_dim, clamp=_CLAMP)
        self.register_buffer('resample_filter', make_filter(), persistent=False)

    def forward(self, x: Tensor, rgb: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Maps features [N, C, H, W] and rgb [N, 3, H, W] to the block's resolution; rgb stays float32."""
        x = self.conv1(self.conv0(x, w, _NOISE), w, _NOISE)
        if self.up == 2:
            rgb = upsample2d(rgb, self.resample_filter)
        return x, rgb + self.torgb(x, w).to(rgb.dtype)


class Superresolution(nn.Module):
    """Features [N, C, h, w] and rgb [N, 3, h, w] of any size -> image [N, 3, out, out].

    Args of the constructor: feature channels, w_dim, resolution that inputs are resized to and resolution of
    the output (2 or 4 times that), channels of the two blocks, precision on CUDA.
    """

    def __init__(
        self,
        in_channels: int,
        w_dim: int,
        resolutions: tuple[int, int],
        channels: tuple[int, int],
        precision: str,
    ) -> None:
        super().__init__()
        self.in_resolution, out_resolution = resolutions
        factor = out_resolution // self.in_resolution
        if factor not in (2, 4) or self.in_resolution * factor != out_resolution:
            raise ConfigError(
                f'resolution={out_resolution} must be 2 or 4 times sr_resolution={self.in_resolution}'
            )
        self.precision = precision
        middle = out_resolution // 2
        self.block0 = SuperresolutionBlock(in_channels, channels[0], w_dim, middle, up=factor // 2)
        self.block1 = SuperresolutionBlock(channels[0], channels[1], w_dim, out_resolution, up=2)

    def forward(self, features: Tensor, rgb: Tensor, w: Tensor) -> Tensor:
        """Returns the image [N, 3, out, out], float32, about [-1, 1]."""
        size = (self.in_resolution, self.in_resolution)
        if features.shape[2:] != size:
            resize = torch.nn.functional.interpolate
            features, rgb = (resize(x, size, mode='bilinear', antialias=True) for x in (features, rgb))
        x = cast(features, self.precision, self.block0.conv0.weight)
        x, rgb = self.block0(x, rgb, w)
        x, rgb = self.block1(x, rgb, w)
        return rgb
