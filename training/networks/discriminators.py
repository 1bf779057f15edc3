"""Image and video discriminators: residual StyleGAN2 networks that see the camera.

Source: PV3D section 3.3, EG3D.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import ConfigError
from training.camera import LABEL_DIM
from training.networks.layers import Conv2d, FullyConnected, cast
from training.networks.mapping import MappingNetwork
from training.networks.synthesis import block_resolutions

_CLAMP = 256.0  # limit of activations, for half precision [EG3D]
_MAPPING_LAYERS = 8  # of the camera embedding [EG3D]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(BaseConfig):
    """What both discriminators share."""

    group_size: ClassVar[int] = 4  # samples per minibatch-deviation group [StyleGAN2]
    resolution: int = 512  # pixels along a side of the input
    channel_base: int = 32768  # channels = min(channel_base / resolution, channel_max) [EG3D]
    channel_max: int = 512  # [EG3D]
    precision: Literal['fp32', 'fp16', 'bf16'] = 'fp16'  # of the highest resolutions on CUDA [EG3D]
    num_low_precision: int = 4  # how many of the highest resolutions use it [EG3D]

    def __post_init__(self) -> None:
        if self.channel_base < self.resolution or self.channel_max < 1 or self.num_low_precision < 0:
            raise ConfigError(
                f'discriminator: channel_base={self.channel_base} must be at least resolution, '
                f'channel_max={self.channel_max} positive, num_low_precision={self.num_low_precision} >= 0'
            )


class ResidualBlock(nn.Module):
    """Two convolutions and a skip, each halving the size; scaled so that the variance stays."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.fromrgb = Conv2d(in_channels, channels, 1) if in_channels else None
        self.conv0 = Conv2d(channels, channels, 3)
        self.conv1 = Conv2d(channels, out_channels, 3, down=2)
        self.skip = Conv2d(channels, out_channels, 1, act='linear', down=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C_out, H / 2, W / 2]."""
        x = cast(x, self.precision, self.skip.weight)
        if self.fromrgb is not None:
            x = self.fromrgb(x, clamp=_CLAMP)
        gain = math.sqrt(0.5)
        y = self.skip(x, gain=gain)
        # in place: no gradient needs the result of a convolution
        return y.add_(self.conv1(self.conv0(x, clamp=_CLAMP), gain=gain, clamp=_CLAMP))


class Epilogue(nn.Module):
    """4x4 features -> score, or a vector to compare with the camera embedding."""

    def __init__(self, channels: int, out_features: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels + 1, channels, 3)
        self.fc = FullyConnected(channels * 16, channels, act='lrelu')
        self.out = FullyConnected(channels, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, 4, 4] to [N, out_features]."""
        x = torch.cat([x, minibatch_deviation(x)], dim=1)
        return self.out(self.fc(self.conv(x, clamp=_CLAMP).flatten(1)))


def minibatch_deviation(x: Tensor) -> Tensor:
    """Returns how much samples of a group differ, one constant plane per sample [N, 1, H, W].

    x [N, C, H, W] is split into N / G groups of G = min(4, N) samples (every (N / G)-th sample together);
    TrainConfig.split_batch makes sure that G divides N.
    """
    n, _, h, w = x.shape
    group = min(DiscriminatorConfig.group_size, n)
    y = x.unflatten(0, (group, n // group))
    deviation = ((y - y.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt()
    return deviation.mean(dim=(1, 2, 3)).repeat(group)[:, None, None, None].expand(n, 1, h, w).to(x.dtype)


class _Discriminator(nn.Module):
    """Residual blocks, then the inner product with an embedding of the camera."""

    def __init__(self, config: DiscriminatorConfig, in_channels: int, c_dim: int) -> None:
        super().__init__()
        self.config = config
        self.resolutions = block_resolutions(config.resolution)[:0:-1]  # resolution ... 8
        channels = {r: min(config.channel_base // r, config.channel_max) for r in [4, *self.resolutions]}
        for i, r in enumerate(self.resolutions):
            precision = config.precision if i < config.num_low_precision else 'fp32'
            block = ResidualBlock(0 if i else in_channels, channels[r], channels[r // 2], precision)
            setattr(self, f'b{r}', block)
        width = channels[4]
        self.b4 = Epilogue(width, width if c_dim else 1)
        self.mapping = MappingNetwork(0, c_dim, width, _MAPPING_LAYERS) if c_dim else None

    def score(self, x: Tensor, c: Tensor) -> Tensor:
        """Maps images [N, in_channels, H, W] and labels [N, c_dim] to logits [N, 1]."""
        for r in self.resolutions:
            x = getattr(self, f'b{r}')(x)
        x = self.b4(x.to(self.b4.fc.weight.dtype))
        if self.mapping is None:
            return x
        embedding = self.mapping(None, c)
        return (x * embedding).sum(dim=1, keepdim=True) / math.sqrt(embedding.shape[1])


class ImageDiscriminator(_Discriminator, Configurable):
    """Judges single frames: the image, its raw rendering (dual discrimination), the camera."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(DiscriminatorConfig):
        """What the image discriminator sees; EG3D's sees all, that of 3DVidGen the image alone."""

        kind = 'image'
        dual: bool = True  # see the raw rendering, too
        camera: bool = True  # see the camera

    def __init__(self, config: Config) -> None:
        super().__init__(config, 6 if config.dual else 3, LABEL_DIM if config.camera else 0)

    def forward(self, image: Tensor, image_raw: Tensor, c: Tensor) -> Tensor:
        """Maps image [N, 3, R, R], image_raw [N, 3, h, h] and labels [N, 25] to logits [N, 1]."""
        if not self.config.dual:
            return self.score(image, c)
        resize = torch.nn.functional.interpolate
        raw = resize(image_raw, size=image.shape[2:], mode='bilinear', antialias=True)
        return self.score(torch.cat([image, raw], dim=1), c)

    def example_inputs(self, n: int) -> tuple[Tensor, ...]:
        """Returns inputs of `forward` for n frames, for tables of the network."""
        image = torch.empty(n, 3, self.config.resolution, self.config.resolution)
        return image, image, torch.empty(n, LABEL_DIM)


class VideoDiscriminator(_Discriminator, Configurable):
    """Judges pairs of frames: both images or their difference, the time between them, both cameras."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(DiscriminatorConfig):
        """What the video discriminator sees (PV3D table 2d)."""

        kind = 'video'
        # frames: both images [PV3D 3.3] | difference: the second minus the first, nothing but motion [ours]
        pair: Literal['frames', 'difference'] = 'frames'
        # of the difference: sd of frames / sd of differences, 3.4 to 3.9 on procedural people [ours]
        difference_gain: float = 4.0
        camera: bool = True  # see the two cameras
        delta_t: bool = True  # see the time difference, as a constant plane

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.difference_gain < math.inf:
                raise ConfigError(
                    f'd_video.difference_gain={self.difference_gain} must be positive and finite'
                )

    def __init__(self, config: Config) -> None:
        channels = (6 if config.pair == 'frames' else 3) + config.delta_t
        super().__init__(config, in_channels=channels, c_dim=2 * LABEL_DIM if config.camera else 0)
        self.sees_frames = config.pair == 'frames'

    def pair_input(self, images: Tensor, t: Tensor) -> Tensor:
        """Makes the input of `forward` [N, channels, R, R] of frame pairs [N, 2, 3, R, R] and times [N, 2].

        Channels are the two images (6) or their difference times the gain (3), then the time between them.
        """
        if self.sees_frames:
            x = images.flatten(1, 2)
        else:
            x = self.config.difference_gain * (images[:, 1] - images[:, 0])
        if not self.config.delta_t:
            return x
        delta = (t[:, 1] - t[:, 0])[:, None, None, None].to(x.dtype)
        return torch.cat([x, delta.expand(-1, 1, *x.shape[2:])], dim=1)

    def forward(self, pair: Tensor, c: Tensor) -> Tensor:
        """Maps inputs [N, channels, R, R] (see pair_input) and labels [N, 2, 25] to logits [N, 1]."""
        return self.score(pair, c.flatten(1))

    def example_inputs(self, n: int) -> tuple[Tensor, ...]:
        """Returns inputs of `forward` for n pairs, for tables of the network."""
        images = torch.empty(n, 2, 3, self.config.resolution, self.config.resolution)
        return self.pair_input(images, torch.empty(n, 2)), torch.empty(n, 2, LABEL_DIM)
