"""The temporal tri-plane synthesis network: a StyleGAN2 skip generator with motion layers.

Source: PV3D fig. 3, eq. 2.
"""

import math

import torch
from torch import Tensor, nn

from dnnlib.util import ConfigError
from torch_utils.ops.upfirdn2d import make_filter, upsample2d
from training.networks.layers import SynthesisLayer, ToRGB, cast
from training.networks.motion import MotionConfig, MotionLayer


def block_resolutions(resolution: int) -> list[int]:
    """Returns 4, 8, ... up to resolution."""
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


class SynthesisBlock(nn.Module):
    """One resolution of the backbone: convolutions, a motion layer between them, and the skip output."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        w_dim: int,
        resolution: int,
        out_channels: int,
        motion: MotionConfig | None,
    ) -> None:
        super().__init__()
        self.is_first = in_channels == 0
        self.num_ws = 1 if self.is_first else 2  # the skip output shares the w of the block above
        if self.is_first:
            self.const = nn.Parameter(torch.randn(channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, channels, w_dim, resolution, up=2)
        self.motion = MotionLayer(channels, resolution, motion) if motion is not None else None
        self.conv1 = SynthesisLayer(channels, channels, w_dim, resolution)
        self.torgb = ToRGB(channels, out_channels, w_dim)
        self.register_buffer('resample_filter', make_filter(), persistent=False)

    def forward(
        self, x: Tensor | None, skip: Tensor | None, ws: Tensor, u: Tensor, noise: tuple
    ) -> tuple[Tensor, Tensor]:
        """Returns features [N, C, r, r] and skip output [N, out, r, r].

        Args:
            x: features of the block before [N, C', r/2, r/2]; None in the first block.
            skip: sum of the outputs so far [N, out, r/2, r/2]; None in the first block.
            ws: [N, num_ws + 1, w_dim], the last one for the skip output.
            u: what the motion layers see, from MotionPath [N, code_dim].
            noise: mode and generator, as in SynthesisLayer.
        """
        if self.is_first:
            x = cast(self.const.expand(len(ws), *self.const.shape), 'fp32', self.const)
            x = self._move(self.conv1(x, ws[:, 0], *noise), u, noise)  # the only convolution comes first
        else:
            x = self._move(self.conv0(x, ws[:, 0], *noise), u, noise)
            x = self.conv1(x, ws[:, 1], *noise)
        out = self.torgb(x, ws[:, -1])
        # in place: no gradient needs the result of the filter
        return x, out if skip is None else upsample2d(skip, self.resample_filter).add_(out)

    def _move(self, x: Tensor, u: Tensor, noise: tuple) -> Tensor:
        return x if self.motion is None else self.motion(x, u, *noise)


class SynthesisNetwork(nn.Module):
    """ws, u -> planes [N, out_channels, resolution, resolution]."""

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        out_channels: int,
        channel_base: int,
        channel_max: int,
        motion: MotionConfig,
    ) -> None:
        super().__init__()
        self.resolutions = block_resolutions(resolution)
        num_motion = 0 if motion.kind == 'naive' else motion.num_layers
        if num_motion > len(self.resolutions):
            raise ConfigError(
                f'motion.num_layers={num_motion} exceeds the {len(self.resolutions)} blocks '
                f'of {resolution}x{resolution} planes; lower it, or double generator.plane_resolution '
                'for one more block (256 has 7)'
            )
        previous = 0
        for i, r in enumerate(self.resolutions):
            channels = min(channel_base // r, channel_max)
            moved = motion if i < num_motion else None
            setattr(self, f'b{r}', SynthesisBlock(previous, channels, w_dim, r, out_channels, moved))
            previous = channels

    @property
    def num_ws(self) -> int:
        """Number of codes: one per convolution and one for the last skip output."""
        return 2 * len(self.resolutions)

    @property
    def block_ws(self) -> tuple[int, ...]:
        """Codes of the convolutions of the first 1, 2, ... blocks; the skip output sees one more."""
        return tuple(range(1, self.num_ws, 2))

    def forward(
        self, ws: Tensor, u: Tensor, noise_mode: str, generator: torch.Generator | None = None
    ) -> Tensor:
        """Maps ws [N, num_ws, w_dim] and the motion's u [N, code_dim] to planes [N, out_channels, R, R]."""
        x = skip = None
        start = 0
        for r in self.resolutions:
            block = getattr(self, f'b{r}')
            block_ws = ws[:, start : start + block.num_ws + 1]
            x, skip = block(x, skip, block_ws, u, (noise_mode, generator))
            start += block.num_ws
        return skip
