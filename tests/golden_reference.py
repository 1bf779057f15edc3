"""Golden tensors of the released networks in a small configuration, when they are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.generator import Generator
from training.networks.released_names import convert_released
from training.volumetric_rendering.renderer import RendererConfig

FOLDER = Path(__file__).resolve().parents[2] / 'shared' / 'reference'


def load(name: str) -> dict:
    path = FOLDER / name
    if not path.exists():
        pytest.skip('the golden tensors are not beside this checkout')
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) for k in data.files if data[k].dtype.kind != 'U'}


def build(golden: dict) -> tuple[Generator, ImageDiscriminator, VideoDiscriminator]:
    """Builds the golden configuration and loads its weights."""
    renderer = RendererConfig(resolution=16, depth_samples=12, importance_samples=12)
    widths = {'channel_base': 4096, 'channel_max': 64}
    G = Generator.Config(
        resolution=128,
        sr_resolution=64,
        sr_channels=(128, 64),
        plane_axes='released',
        renderer=renderer,
        **widths,
    ).build()
    D_image = ImageDiscriminator.Config(resolution=128, **widths).build()
    D_video = VideoDiscriminator.Config(resolution=128, **widths).build()
    for ours, theirs, network in (('G', 'G', G), ('D_image', 'D_img', D_image), ('D_video', 'D_vid', D_video)):
        prefix = f'sd/{theirs}.'
        state = {k[len(prefix) :]: v for k, v in golden.items() if k.startswith(prefix)}
        network.load_state_dict(convert_released(ours, state), strict=True)
    return G, D_image, D_video
