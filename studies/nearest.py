"""Asks what the row `broken heads` answers to; `python -m studies.nearest --help` explains."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dnnlib.cli import Range, command

import click

from dnnlib.util import UserError, usable_cores

if TYPE_CHECKING:  # functions import what they need: --help needs no torch
    from torch import Tensor

REAL = 'real, along other paths'
_SPAN = 16  # frames
_PURPOSE = 37  # of random draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Shows heads of networks, and real frames damaged by known amounts, to what finds broken heads.

    A head is broken if its lite0 features are farther from the nearest of 1024 frames of the data than those
    of 99 % of real frames along other camera paths. How much damage is that? Printed are the median
    distance, the share of broken heads, that of those farther from all people than these from each other,
    and the power of fine detail (periods of two to four pixels) over that of the real frames.

    Example:
      python -m studies.nearest --data heads.zip --network early.pkl --network late.pkl
    """

    data: Annotated[str, 'ZIP|DIR']  # data of `dataset_tool.py synth`
    network: Annotated[tuple[str, ...], 'PKL'] = ()  # snapshots; may be given several times
    count: Annotated[int, Range(2)] = 256  # heads of each
    seed: Annotated[int, Range(0)] = 0  # of codes, frames and noise
    # folder that keeps renderings of the data [default: beside the data]
    cache: Annotated[Path, 'DIR'] | None = None
    # processes that render the data [default: all cores]
    workers: Annotated[int, Range(1)] = dataclasses.field(default_factory=usable_cores)
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


def run(options: Options) -> None:
    """Measures and prints."""
    import numpy as np
    import torch

    from interop.convert import open_snapshot
    from studies import broken, figures, samples
    from studies.results import format_cells
    from studies.truth import load_truth
    from torch_utils.misc import pick_device, prepare_process
    from training.data.dataset import VideoDataset
    from training.networks.registry import load_generator

    prepare_process()
    device = pick_device(options.device)
    data = VideoDataset.Config(path=options.data).build()
    truth = load_truth(data, _SPAN, options.cache, options.workers)
    seen = broken.features_of_data(data, truth, options.cache, device)
    moved = truth.moved[:, :2].reshape(-1, *truth.moved.shape[-3:])  # before other cameras
    rng = np.random.default_rng((options.seed, _PURPOSE))
    real = torch.from_numpy(moved[rng.choice(len(moved), options.count, len(moved) < options.count)])
    heads = damaged(real.permute(0, 3, 1, 2) / 127.5 - 1, options.seed)
    for path in options.network:
        G = load_generator(open_snapshot(path), device)
        if G.config.resolution != data.resolution:
            raise UserError(
                f'{path} makes {G.config.resolution}x{G.config.resolution} images, --data holds '
                f'{data.resolution}x{data.resolution}; both must be alike'
            )
        heads[Path(path).name] = torch.from_numpy(samples.random_views(G, data, options.count, options.seed))
    cells = [('heads', 'median distance', 'broken', 'farther from all people', 'fine detail')]
    detail = fine_detail(heads[REAL])
    for name, images in heads.items():
        distances = figures.nearest_distance(broken.features(images.numpy(), device), seen.reference)
        shares = [f'{(distances > np.quantile(x, 0.99)).mean():.1%}' for x in (seen.distances, seen.between)]
        cells.append((name, f'{np.median(distances):.2f}', *shares, f'{fine_detail(images) / detail:.2f}'))
    click.echo(format_cells(cells))


def damaged(images: 'Tensor', seed: int) -> 'dict[str, Tensor]':
    """Returns images [N, 3, R, R] in [-1, 1] as they are, blurred, with noise, and of half the resolution."""
    import torch
    from torchvision.transforms.functional import gaussian_blur

    def resized(x: 'Tensor', size: int) -> 'Tensor':
        return torch.nn.functional.interpolate(x, (size, size), mode='bilinear', antialias=True)

    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    found = {REAL: images}
    found |= {f'real, blur of {s} pixels': gaussian_blur(images, 5, s) for s in (0.4, 0.5, 0.7)}
    found |= {f'real, noise of {s} gray levels': images + noise * s / 127.5 for s in (1, 2, 4)}
    side = images.shape[-1]
    return found | {'real, half the resolution': resized(resized(images, side // 2), side)}


def fine_detail(images: 'Tensor') -> float:
    """Returns the power of gray levels of images [N, 3, R, R] at periods of two to four pixels."""
    import torch

    gray = images.mean(1)
    window = torch.hann_window(gray.shape[-1], periodic=False)
    power = torch.fft.fft2((gray - gray.mean((1, 2), keepdim=True)) * window * window[:, None]).abs() ** 2
    frequency = torch.fft.fftfreq(gray.shape[-1])
    radius = torch.hypot(frequency, frequency[:, None])
    return float(power[:, (radius >= 0.25) & (radius <= 0.5)].mean())


main = command(Options, run, 'use --device cpu')

if __name__ == '__main__':
    main()
