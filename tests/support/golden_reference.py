"""Golden tensors of the released networks in a small configuration, where they are available."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interop.names import convert_released
from support.paths import SHARED
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.pv3d import Generator
from training.volumetric_rendering.renderer import RendererConfig

FOLDER = SHARED / 'reference'
TOLERANCE = 1e-4  # max |error| / max |value|
RELEASED = {'G': 'G', 'D_image': 'D_img', 'D_video': 'D_vid'}  # our names of networks -> those in the files


def find(name: str) -> Path:
    """Returns the path of a reference file; skips the test when it is missing."""
    if not (FOLDER / name).exists():
        pytest.skip(f'{name}: the golden tensors are not beside this checkout (../shared/reference)')
    return FOLDER / name


def load(name: str) -> dict:
    """Returns the arrays of a reference file as tensors, texts as lists."""
    with np.load(find(name)) as data:
        arrays = {k: data[k] for k in data.files}
    return {k: v.tolist() if v.dtype.kind == 'U' else torch.from_numpy(v) for k, v in arrays.items()}


def build(golden: dict) -> tuple[Generator, ImageDiscriminator, VideoDiscriminator]:
    """Builds the golden configuration and loads its weights."""
    renderer = RendererConfig(resolution=16, depth_samples=12, importance_samples=12)
    sizes = {'resolution': 128, 'channel_base': 4096, 'channel_max': 64}
    pv3d = {'sr_resolution': 64, 'sr_channels': (128, 64), 'plane_axes': 'released', 'renderer': renderer}
    discriminators = (ImageDiscriminator.Config(**sizes), VideoDiscriminator.Config(**sizes))
    networks = [config.build() for config in (Generator.Config(**sizes, **pv3d), *discriminators)]
    for (ours, theirs), network in zip(RELEASED.items(), networks, strict=True):
        prefix = f'sd/{theirs}.'
        state = {k[len(prefix) :]: v for k, v in golden.items() if k.startswith(prefix)}
        network.load_state_dict(convert_released(ours, state), strict=True)
    return tuple(networks)


def relative(ours, golden):
    """Returns max |error| / max |golden|."""
    assert ours.shape == golden.shape
    return ((ours - golden).abs().max() / golden.abs().max()).item()


def agrees(ours, golden, tolerance=TOLERANCE):
    """Asserts that two tensors agree."""
    error = relative(ours.detach(), golden)
    assert error < tolerance, f'relative error {error:.1e}'


def thinned(x, golden, name):
    """Compares a feature map with `name`, or with every K-th pixel and mean and deviation over pixels."""
    kept = [k for k in golden if k == name or k.startswith(f'{name}_')]
    assert kept, name
    for key in kept:
        suffix = key.removeprefix(name).removeprefix('_')
        if suffix == 'meanstd':
            x_stats = torch.stack([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=-1)
            agrees(x_stats, golden[key])
        else:
            step = int(suffix.removeprefix('s')) if suffix else 1
            agrees(x[:, :, ::step, ::step] if x.ndim == 4 else x, golden[key])
    return kept


def record(network, into):
    """Keeps the output of every module of a network by its name (the first one of a tuple)."""
    return [
        module.register_forward_hook(
            lambda _, __, out, name=name: into.update({name: out[0] if isinstance(out, tuple) else out})
        )
        for name, module in network.named_modules()
    ]
