"""Mixes the codes of heads in the first K blocks; `python -m studies.style_mixing --help` explains."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from dnnlib.cli import Range, command

import click

from dnnlib.util import atomic_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Shows what the first K blocks of the synthesis decide, as figure 7 of the paper does.

    For each K the codes of the first K blocks come from another head. Written are style-mixing.png (heads),
    style-mixing-curves.png and style-mixing.json (distance to the head as it was, of identity, pixels and
    depth). The larger the step at K, the more a motion layer in block K could change the person.

    Example:
      python -m studies.style_mixing --network snapshot.pkl --outdir figures
    """

    network: Annotated[str, 'PKL']  # network snapshot, or a checkpoint of the released PV3D or EG3D
    outdir: Annotated[Path, 'DIR'] | None = None  # for the files [default: beside the snapshot]
    pairs: Annotated[int, Range(2)] = 64  # of heads that are measured
    rows: Annotated[int, Range(1)] = 8  # of them on the sheet
    # network that compares identities, seen through a mean face; none = leave them out
    identity: Literal['sface', 'arcface', 'none'] = 'sface'
    seed: Annotated[int, Range(0)] = 0  # of the codes
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


def run(options: Options) -> None:
    """Mixes, writes and prints."""
    from interop.convert import open_snapshot
    from metrics.detectors.registry import default_cache, load_detector
    from metrics.plotting import draw_curves
    from studies.mixing import curves, mix, sheet
    from studies.results import format_cells, format_value
    from torch_utils.misc import pick_device, prepare_process
    from training.networks.registry import load_generator
    from viz.images import save_png

    prepare_process()
    device, recognizer = pick_device(options.device), None
    if options.identity != 'none':
        recognizer = load_detector(options.identity, 'identity', {}, default_cache(), device)
    G = load_generator(open_snapshot(options.network), device)
    mixing = mix(G, options.pairs, options.seed, recognizer)
    found = curves(mixing)
    outdir = options.outdir or Path(options.network).parent
    outdir.mkdir(parents=True, exist_ok=True)
    save_png(outdir / 'style-mixing.png', sheet(mixing.images[: options.rows]))
    save_png(outdir / 'style-mixing-curves.png', draw_curves(found, 'K, blocks mixed'))
    facts = {'network': options.network, 'pairs': options.pairs, 'seed': options.seed}
    with atomic_write(outdir / 'style-mixing.json', 'w') as file:
        json.dump(facts | {'curves': [curve._asdict() for curve in found]}, file, indent=1)
    head = ['distance', *(f'K = {k}' for k in found[0].kimg), 'another head']
    rows = [[c.name, *(format_value(x, False) for x in (*c.value, c.level))] for c in found]
    click.echo(format_cells([head, *rows]))
    click.echo(f'{outdir}: style-mixing.json, style-mixing.png, style-mixing-curves.png')


main = command(Options, run, 'use --device cpu')

if __name__ == '__main__':
    main()
