"""Shows D_video cameras in both orders; `python -m studies.alignment --help` explains."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from dnnlib.cli import Range, command

import click

from dnnlib.util import atomic_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Asks whether D_video sees the order of cameras, as figure 8 of the paper does, and what else it sees.

    Pairs are generated before cameras of the data and judged with these cameras, with the two exchanged, and
    with those of another clip. Then D_video's verdict on real pairs is taken apart: how much of it is motion,
    order, cameras, the person. Written are alignment.json and alignment.png.

    Example:
      python -m studies.alignment --network snapshot.pkl --data heads.zip --outdir figures
    """

    network: Annotated[str, 'PKL']  # snapshot with a video discriminator that sees cameras
    data: Annotated[str, 'ZIP|DIR']  # data set that it was trained on
    outdir: Annotated[Path, 'DIR'] | None = None  # for the files [default: beside the snapshot]
    pairs: Annotated[int, Range(4)] = 3000  # of cameras; a multiple of 4 of them is taken [PV3D A.5]
    seed: Annotated[int, Range(0)] = 0  # of cameras and codes
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


def run(options: Options) -> None:
    """Judges, writes and prints."""
    from interop.convert import open_snapshot
    from studies import camera_order
    from studies.measure import judges
    from studies.results import format_cells, format_value
    from torch_utils.misc import pick_device, prepare_process
    from training.networks.registry import load_generator
    from viz.images import save_png

    prepare_process()
    device = pick_device(options.device)
    snapshot = open_snapshot(options.network)
    G = load_generator(snapshot, device)
    judged, data = judges(snapshot, G, device), camera_order.open_data(options.data, G)
    pairs = options.pairs - options.pairs % camera_order.GROUP
    alignment = camera_order.align(G, judged, data, pairs, options.seed)
    summary = camera_order.summary(alignment)
    shares = camera_order.verdict_shares(G, judged, data, options.seed)
    outdir = options.outdir or Path(options.network).parent
    outdir.mkdir(parents=True, exist_ok=True)
    save_png(outdir / 'alignment.png', camera_order.draw(alignment))
    facts = {'network': options.network, 'data': options.data, 'pairs': pairs, 'seed': options.seed}
    with atomic_write(outdir / 'alignment.json', 'w') as file:
        json.dump({**facts, 'figures': summary, 'probes': shares}, file, indent=1)
    rows = [[name, *(_text(f) for f in by_order.values())] for name, by_order in summary.items()]
    click.echo(format_cells([['cameras', *alignment.cosines], *rows]) + '\n')
    click.echo(format_cells([['probe', 'value'], *([n, format_value(x, False)] for n, x in shares.items())]))
    click.echo(f'{outdir}: alignment.json, alignment.png')


def _text(figure: tuple[float, float]) -> str:
    return ' ± '.join(f'{x:.3g}' for x in figure)


main = command(Options, run, 'use --device cpu')

if __name__ == '__main__':
    main()
