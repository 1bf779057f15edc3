"""Patch discriminators of MoCoGAN-HD: of whole clips in 3D, of pairs of frames in 2D, each at several scales.

Every frame is judged beside the first one, without cameras. Source: MoCoGAN-HD.
"""

import dataclasses

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import ConfigError

_LARGEST = 128  # pixels per side; larger images are averaged [MoCoGAN-HD]
_STD = 0.02  # of the first weights [MoCoGAN-HD]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchConfig(BaseConfig):
    """What both share."""

    resolution: int = 512  # pixels along a side of the input
    width: int = 64  # channels of the first layer, eight times as many at the end [MoCoGAN-HD]
    scales: int = 2  # sizes at which the input is judged, each half of the one before [MoCoGAN-HD]

    def __post_init__(self) -> None:
        if self.width < 1 or self.scales < 1 or self.resolution < 8 * 2 ** (self.scales - 1):
            raise ConfigError(
                f'discriminator: width={self.width} and scales={self.scales} must be positive, and '
                f'resolution={self.resolution} at least 8 at the smallest scale'
            )


def _patch_network(conv: type[nn.Module], norm: type[nn.Module], width: int) -> nn.Sequential:
    """Five convolutions, the middle three normalised; the last one gives a logit for each patch."""
    widths = (6, width, 2 * width, 4 * width, 8 * width, 1)
    layers: list[nn.Module] = []
    for i, stride in enumerate((2, 2, 2, 1, 1)):
        layer = conv(widths[i], widths[i + 1], 4, stride=stride, padding=2)
        nn.init.normal_(layer.weight, std=_STD)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
        layers += [norm(widths[i + 1])] if 0 < i < 4 else []
        layers += [nn.LeakyReLU(0.2)] if i < 4 else []
    return nn.Sequential(*layers)


def _at_most(frames: Tensor, size: int) -> Tensor:
    """Averages frames [N, T, 3, R, R] down to a size."""
    factor = frames.shape[-1] // size
    if factor < 2:
        return frames
    return nn.functional.avg_pool2d(frames.flatten(0, 1), factor).unflatten(0, frames.shape[:2])


class ClipDiscriminator(nn.Module, Configurable):
    """Judges clips by 3D convolutions over the first frame stacked with each of the others."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PatchConfig):
        """Nothing beyond what both share."""

        kind = 'clip_patch'

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.networks = nn.ModuleList(
            _patch_network(nn.Conv3d, nn.InstanceNorm3d, config.width) for _ in range(config.scales)
        )

    def stack(self, clips: Tensor) -> Tensor:
        """Makes the input of `forward` [N, 6, T - 1, r, r] of clips [N, T, 3, R, R]."""
        clips = _at_most(clips, _LARGEST)
        later = clips[:, 1:]
        return torch.cat([clips[:, :1].expand_as(later), later], dim=2).transpose(1, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps stacked clips to the logits of patches [N, 1, t, h, h], one tensor for each scale."""
        logits = []
        for network in self.networks:
            logits.append(network(x))
            x = nn.functional.avg_pool3d(x, 3, stride=(1, 2, 2), padding=1, count_include_pad=False)
        return logits

    def example_inputs(self, n: int) -> tuple[Tensor, ...]:
        """Returns inputs of `forward` for n clips of 16 frames, for tables of the network."""
        return (self.stack(torch.empty(n, 16, 3, self.config.resolution, self.config.resolution)),)


class PairDiscriminator(nn.Module, Configurable):
    """Judges single frames by 2D convolutions, each stacked behind the first frame of its clip."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PatchConfig):
        """Nothing beyond what both share."""

        kind = 'pair_patch'

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.networks = nn.ModuleList(
            _patch_network(nn.Conv2d, nn.InstanceNorm2d, config.width) for _ in range(config.scales)
        )

    def stack(self, clips: Tensor, frame: int) -> Tensor:
        """Makes the input of `forward` [N, 6, r, r] of clips [N, T, 3, R, R]: the first frame and another."""
        return _at_most(clips[:, [0, frame]], _LARGEST).flatten(1, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps stacked pairs to the logits of patches [N, 1, h, h], one tensor for each scale."""
        logits = []
        for network in self.networks:
            logits.append(network(x))
            x = nn.functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return logits

    def example_inputs(self, n: int) -> tuple[Tensor, ...]:
        """Returns inputs of `forward` for n pairs, for tables of the network."""
        return (self.stack(torch.empty(n, 2, 3, self.config.resolution, self.config.resolution), 1),)
