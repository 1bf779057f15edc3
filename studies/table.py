"""Prints the figures of a network trained on procedural people; `python -m studies.table --help` explains."""

import dataclasses
from pathlib import Path
from typing import Annotated

from dnnlib.cli import Range, command

import click

from dnnlib.util import usable_cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measures what a network has learned of procedural people, beside the data.

    G_ema is rendered on a grid of people, motions, times and cameras, and so are the people of the data,
    which are known exactly: docs/studies.md explains the figures. The data are rendered once and kept.

    Example:
      python -m studies.table --network snapshot.pkl --data heads.zip --outdir figures
    """

    network: Annotated[str, 'PKL']  # network snapshot
    data: Annotated[str, 'ZIP|DIR']  # data of `dataset_tool.py synth` that it was trained on
    outdir: Annotated[Path, 'DIR'] | None = None  # for table.json and images [default: beside the snapshot]
    quick: bool = False  # fewer codes: a quarter of the time, twice the errors
    seed: Annotated[int, Range(0)] = 0  # of the codes
    # folder that keeps renderings of the data [default: beside the data]
    cache: Annotated[Path, 'DIR'] | None = None
    # processes that render the data [default: all cores]
    workers: Annotated[int, Range(1)] = dataclasses.field(default_factory=usable_cores)
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


def run(options: Options) -> None:
    """Measures, prints and writes."""
    from studies.measure import FULL, QUICK, Settings, measure
    from studies.results import format_rows, write_result
    from torch_utils.misc import pick_device, prepare_process

    prepare_process()
    settings = Settings(
        sizes=QUICK if options.quick else FULL,
        cache=options.cache,
        workers=options.workers,
        device=pick_device(options.device),
        seed=options.seed,
    )
    result = measure(options.network, options.data, settings)
    click.echo(format_rows(result.rows))
    outdir = options.outdir or Path(options.network).parent
    facts = {'network': options.network, 'data': options.data, 'seed': options.seed, 'quick': options.quick}
    write_result(outdir, result, facts)
    click.echo(f'{outdir}: table.json, table-sheet.png, table-motion.png, table-worst.png')


main = command(Options, run, 'use --device cpu')

if __name__ == '__main__':
    main()
