"""Measures a network as table 1 of the paper does; `python -m studies.table1 --help` explains."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dnnlib.cli import command

import click

from dnnlib.util import atomic_write

if TYPE_CHECKING:  # functions import what they need: --help needs no torch
    from metrics.base import Settings

# what the paper has measured of PV3D: FVD, ID, CD, WE
PAPER = {
    'voxceleb': {'fvd': 29.1, 'id': 0.81, 'cd': 1.34, 'we': 9.76},
    'celebvhq': {'fvd': 39.3, 'id': 0.81, 'cd': 1.21, 'we': 8.18},
    'talkinghead': {'fvd': 66.6, 'id': 0.80, 'cd': 2.33, 'we': 10.73},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measures a checkpoint by both protocols and prints it beside the paper's row of PV3D.

    The protocol `paper` computes the formulas of the text, `released` what the scripts of the authors do,
    errors included. Further lines let the mapping see the camera of each image instead of one for a clip, as
    a network that is conditioned on every camera may have been measured. Written is table1.json.

    Examples:
      python -m studies.table1 --network released.ckpt --data vox.zip

      # without weights of I3D and ArcFace
      python -m studies.table1 --network snapshot.pkl --data heads.zip --row celebvhq
        --metrics fvd512_16f_lite0,id64_sface,cd64,we64
    """

    network: Annotated[str, 'FILE']  # snapshot, or a checkpoint of the released PV3D
    data: Annotated[str, 'ZIP|DIR']  # data set with real videos and cameras
    row: Literal['voxceleb', 'celebvhq', 'talkinghead'] = 'voxceleb'  # data whose figures are printed
    # names as for calc_metrics.py, in the order of the columns
    metrics: Annotated[str, 'LIST'] = 'fvd2048_16f,id,cd,cdscene,we'
    landmarks: Literal['detected', 'camera'] = 'detected'  # how faces are aligned for id
    outdir: Annotated[Path, 'DIR'] | None = None  # for table1.json [default: beside the network]
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


def run(options: Options) -> None:
    """Measures, prints and writes."""
    from metrics.metric_names import parse_metrics
    from studies.results import format_cells
    from torch_utils.misc import prepare_process

    prepare_process()
    kinds = [request.metric for request in parse_metrics(options.metrics)]
    paper = PAPER[options.row]
    cells = [['protocol', 'mapping sees', *options.metrics.split(',')]]
    cells.append(
        [f'paper, {options.row}', 'one camera', *(f'{paper[k]:g}' if k in paper else '-' for k in kinds)]
    )
    found = measured(options)
    for line in found:
        values = [
            (line['metrics'][name]['value'], line['metrics'][name]['error']) for name in line['metrics']
        ]
        cells.append([line['protocol'], line['mapping'], *map(_text, values)])
    outdir = options.outdir or Path(options.network).parent
    outdir.mkdir(parents=True, exist_ok=True)
    facts = {'network': options.network, 'data': options.data, 'landmarks': options.landmarks}
    with atomic_write(outdir / 'table1.json', 'w') as file:
        json.dump({**facts, 'lines': found}, file, indent=1)
    click.echo(format_cells(cells))
    click.echo(f'{outdir / "table1.json"}')


def measured(options: Options) -> list[dict[str, Any]]:
    """Returns the metrics by both protocols and both cameras of the mapping."""
    from interop.convert import open_snapshot
    from metrics.metric_main import Metrics
    from metrics.metric_names import parse_metrics
    from metrics.sources.subjects import network_subject
    from studies.results import known
    from torch_utils.misc import pick_device
    from training.data.dataset import VideoDataset
    from training.networks.registry import load_generator

    device = pick_device(options.device)
    snapshot = open_snapshot(options.network)
    G = load_generator(snapshot, device)
    data = VideoDataset.Config(path=options.data, span=G.config.span, resolution=G.config.resolution).build()
    requests, lines = parse_metrics(options.metrics), []
    for mapping, protocol in itertools.product(('fixed', 'own'), ('paper', 'released')):
        settings = settings_of(options, device, protocol, mapping)
        subject = network_subject(G, data, settings, snapshot.path.name, snapshot.meta.get('kimg'))
        results = Metrics(requests, settings).measure(subject)
        values = {
            r.request.name: {'value': known(r.outcome.value), 'error': known(r.outcome.error)}
            for r in results
        }
        seen = 'one camera' if mapping == 'fixed' else "each image's"
        lines.append({'protocol': protocol, 'mapping': seen, 'metrics': values})
    return lines


def settings_of(options: Options, device: Any, protocol: str, mapping: str) -> Settings:
    """Returns how a line is computed."""
    from metrics.base import Settings
    from torch_utils.ops.build import cache_folder

    return Settings(
        cache=Path(cache_folder()),
        device=device,
        protocol=protocol,
        landmarks=options.landmarks,
        mapping_camera=mapping,
    )


def _text(value_and_error: tuple[float | None, float | None]) -> str:
    return ' ± '.join(f'{x:.3g}' for x in value_and_error if x is not None) or '-'


main = command(Options, run, 'use --device cpu')

if __name__ == '__main__':
    main()
