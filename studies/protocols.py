"""Asks how much of a network's figures is due to how it is measured; `python -m studies.protocols --help`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from dnnlib.cli import Range, command

import click

from dnnlib.util import atomic_write

if TYPE_CHECKING:  # functions import what they need: --help needs no torch
    from metrics.base import Outcome

# renderer -> distance of coarse samples along a ray, scene units; StyleNeRF's world is 2.7 times smaller
BINS = {'EG3D, 48 samples': 1.05 / 47, 'StyleNeRF, 14 samples': 0.24 / 13 * 2.7}
_SURE = 2.0  # standard errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Asks how much of a network's figures is due to how it is measured.

    Two doubts about table 1 of the paper. Does the mapping see one camera for a clip, or that of each image?
    Then planes change with the view, and WE, CD and ID tell of the condition more than of the geometry. And
    CD is in squared distances of samples along a ray: what would the same shapes have with other samples?
    Written is protocols.json.

    Example:
      python -m studies.protocols --network snapshot.pkl --data heads.zip --outdir figures
    """

    network: Annotated[str, 'FILE']  # snapshot, or a checkpoint of the released PV3D
    data: Annotated[str, 'ZIP|DIR']  # data set with real videos and cameras
    outdir: Annotated[Path, 'DIR'] | None = None  # for protocols.json [default: beside the network]
    videos: Annotated[int, Range(2)] = 64  # whose views are measured
    identity: str = 'sface'  # network that compares identities
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


class Difference(NamedTuple):
    """A metric with one camera and with that of each image."""

    fixed: float
    own: float
    error: float  # standard error of own - fixed, as if both were independent: they share codes and times

    @property
    def verdict(self) -> str:
        """Returns whether the camera of the mapping changes the metric."""
        away = abs(self.own - self.fixed)
        if math.isnan(away + self.error):
            return 'unknown'
        return 'changes' if away > _SURE * self.error else 'no difference seen'


def run(options: Options) -> None:
    """Measures, prints and writes."""
    from studies.results import format_cells

    found, bin_size = measured(options)
    differences = compare(found)
    chamfer = in_bins(found['fixed']['cdscene'].value, bin_size)
    outdir = options.outdir or Path(options.network).parent
    outdir.mkdir(parents=True, exist_ok=True)
    facts = {'network': options.network, 'data': options.data, 'videos': options.videos}
    mapping = {name: {**d._asdict(), 'verdict': d.verdict} for name, d in differences.items()}
    with atomic_write(outdir / 'protocols.json', 'w') as file:
        json.dump({**facts, 'mapping': mapping, 'bin_size': bin_size, 'cd': chamfer}, file, indent=1)
    click.echo(format_cells(mapping_cells(differences)) + '\n')
    click.echo(format_cells(bin_cells(chamfer, bin_size)))
    click.echo(f'{outdir / "protocols.json"}')


def measured(options: Options) -> tuple[dict[str, dict[str, Outcome]], float]:
    """Returns outcomes by camera of the mapping and kind of metric, and the distance of samples."""
    from interop.convert import open_snapshot
    from metrics.base import Settings
    from metrics.metric_main import Metrics
    from metrics.metric_names import parse_metrics
    from metrics.sources.subjects import network_subject
    from torch_utils.misc import pick_device, prepare_process
    from torch_utils.ops.build import cache_folder
    from training.data.dataset import VideoDataset
    from training.networks.registry import load_generator

    prepare_process()
    snapshot, device = open_snapshot(options.network), pick_device(options.device)
    G = load_generator(snapshot, device)
    data = VideoDataset.Config(path=options.data, span=G.config.span, resolution=G.config.resolution).build()
    n, found = options.videos, {}
    requests = parse_metrics(f'we{n},id{n}_{options.identity},cd{n},cdscene{n}')
    for seen in ('fixed', 'own'):
        # faces of small images are not found: they are seen through the camera
        settings = Settings(
            cache=Path(cache_folder()), device=device, landmarks='camera', mapping_camera=seen
        )
        subject = network_subject(G, data, settings, snapshot.path.name, snapshot.meta.get('kimg'))
        results = Metrics(requests, settings).measure(subject)
        found[seen] = {result.request.metric: result.outcome for result in results}
    return found, subject.bin_size


def compare(found: Mapping[str, Mapping[str, Outcome]]) -> dict[str, Difference]:
    """Returns each metric with both cameras of the mapping."""
    differences = {}
    for name, fixed in found['fixed'].items():
        own = found['own'][name]
        differences[name] = Difference(fixed.value, own.value, math.hypot(fixed.error, own.error))
    return differences


def in_bins(scene: float, own: float) -> dict[str, float]:
    """Returns a Chamfer distance, given in squared scene units, in squared bins of renderers by name."""
    return {name: scene / size**2 for name, size in {'its own': own, **BINS}.items()}


def mapping_cells(differences: Mapping[str, Difference]) -> list[Sequence[str]]:
    """Returns a table of what the camera of the mapping does."""
    head = ['metric', 'one camera', "each image's", 'difference ± se', 'verdict']
    rows = [
        [name, f'{d.fixed:.3g}', f'{d.own:.3g}', f'{d.own - d.fixed:.3g} ± {d.error:.2g}', d.verdict]
        for name, d in differences.items()
    ]
    return [head, *rows]


def bin_cells(chamfer: Mapping[str, float], own: float) -> list[Sequence[str]]:
    """Returns a table of one Chamfer distance in units of several renderers."""
    sizes = {'its own': own, **BINS}
    rows = [[name, f'{sizes[name]:.4f}', f'{cd:.3g}'] for name, cd in chamfer.items()]
    return [['samples', 'bin, scene units', 'cd'], *rows]


main = command(Options, run, 'use --device cpu')

if __name__ == '__main__':
    main()
