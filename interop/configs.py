"""Configs of foreign networks, read off the shapes of their tensors."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from dnnlib.util import ConfigError
from training.camera import LABEL_DIM
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.motion import MotionConfig
from training.networks.pv3d import Generator

Shapes = Mapping[str, tuple[int, ...]]

# output -> size that super-resolution works on, which shapes do not show [EG3D has no others]
_SR_RESOLUTION = {512: 128, 256: 128, 128: 64}


def generator_config(shapes: Shapes, sr_resolution: int | None = None) -> Generator.Config:
    """Returns the config of a generator with these tensors, by our names; motion layers may be missing.

    What shapes do not show (span, box_warp, sampling of rays) has its default; the plane axes are the
    released ones.

    Args:
        shapes: name -> shape of all parameters and buffers.
        sr_resolution: size that features are resized to before super-resolution; None = as in EG3D.

    Raises:
        ConfigError: if a tensor that the config is read off is missing, or has an impossible shape.
    """
    channels = _channels(shapes, r'^synthesis\.b(\d{1,4})\.conv1\.bias$')
    base, most = _widths(channels)
    w_dim, label = _shape(shapes, 'mapping_network.embed.weight', 2)
    if label != LABEL_DIM:
        raise ConfigError(f'its cameras have {label} numbers, not {LABEL_DIM}')
    resolution = _shape(shapes, 'superresolution.block1.conv1.noise_const', 2)[0]
    if sr_resolution is None and resolution not in _SR_RESOLUTION:
        raise ConfigError(f'for {resolution} pixels, give the input size of super-resolution, sr_resolution')
    return Generator.Config(
        resolution=resolution,
        z_dim=_shape(shapes, 'mapping_network.fc0.weight', 2)[1] - w_dim,
        w_dim=w_dim,
        mapping_layers=len([n for n in shapes if re.fullmatch(r'mapping_network\.fc\d+\.weight', n)]),
        channel_base=base,
        channel_max=most,
        plane_resolution=max(channels),
        plane_channels=_shape(shapes, 'synthesis.b4.torgb.bias', 1)[0] // 3,
        plane_axes='released',
        feature_channels=_shape(shapes, 'decoder.out.bias', 1)[0] - 1,
        sr_resolution=sr_resolution or _SR_RESOLUTION[resolution],
        sr_channels=tuple(_shape(shapes, f'superresolution.block{i}.conv1.bias', 1)[0] for i in (0, 1)),
        motion=_motion_config(shapes, sorted(channels)),
    )


def video_discriminator_config(shapes: Shapes) -> VideoDiscriminator.Config:
    """Returns the config of a video discriminator with these tensors; errors as above."""
    fields = _discriminator_fields(shapes)
    inputs = _shape(shapes, f'b{fields["resolution"]}.fromrgb.weight', 4)[1]
    return VideoDiscriminator.Config(
        **fields, delta_t=inputs == 7, camera=any(n.startswith('mapping.') for n in shapes)
    )


CONFIGS: dict[str, Callable[..., Any]] = {
    'G': generator_config,
    'D_image': lambda shapes: ImageDiscriminator.Config(**_discriminator_fields(shapes)),
    'D_video': video_discriminator_config,
    'G_ema': generator_config,
}


def _motion_config(shapes: Shapes, resolutions: list[int]) -> MotionConfig:
    moving = [r for r in resolutions if any(n.startswith(f'synthesis.b{r}.motion.') for n in shapes)]
    if moving != resolutions[: len(moving)]:
        raise ConfigError(f'its motion layers are in the blocks {moving}, not in the first ones')
    if not moving:
        return MotionConfig(num_layers=0)
    code_dim = _shape(shapes, 'synthesis.b4.motion.head.weight', 2)[1]
    return MotionConfig(num_layers=len(moving), code_dim=code_dim)


def _discriminator_fields(shapes: Shapes) -> dict[str, int]:
    channels = _channels(shapes, r'^b(\d{1,4})\.conv0\.bias$')
    channels[4] = _shape(shapes, 'b4.conv.bias', 1)[0]
    base, most = _widths(channels)
    return {'resolution': max(channels), 'channel_base': base, 'channel_max': most}


def _channels(shapes: Shapes, pattern: str) -> dict[int, int]:
    """Returns resolution -> channels of the blocks whose tensor matches the pattern."""
    found = ((re.search(pattern, name), shape) for name, shape in shapes.items())
    channels = {int(m[1]): shape[0] for m, shape in found if m and len(shape) == 1 and shape[0] > 0}
    expected = [4 * 2**i for i in range(len(channels))]
    if len(channels) < 2 or not set(channels) <= {*expected, expected[-1] * 2}:
        raise ConfigError(f'it has the blocks {sorted(channels)[:12]}, not those of 4, 8, 16, ...')
    return channels


def _widths(channels: dict[int, int]) -> tuple[int, int]:
    """Returns channel_base and channel_max: channels are min(base / resolution, max)."""
    base, most = max(c * r for r, c in channels.items()), max(channels.values())
    odd = [f'{c} at {r}' for r, c in sorted(channels.items()) if c != min(base // r, most)]
    if odd:
        raise ConfigError(f'its channels are not min(base / resolution, max): {", ".join(odd)}')
    return base, most


def _shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    if len(shapes.get(name, ())) != axes:
        raise ConfigError(f'{name} is missing, or does not have {axes} axes')
    return shapes[name]
