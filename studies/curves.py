"""Draws how the figures of a run changed while it was trained; `python -m studies.curves --help` explains."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from dnnlib.cli import Range, command

import click
import numpy as np

from dnnlib.util import UserError, usable_cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measures every snapshot of a run on procedural people, and draws the curves of the figures.

    What is measured is kept in the run folder, in figures/CLIPS: given again, only new snapshots cost time.
    docs/studies.md explains the figures.

    Example:
      python -m studies.curves --run runs/00000-demo-heads-gpus1-batch8-gamma2 --data heads.zip
    """

    run: Annotated[Path, 'DIR']  # run folder with snapshots
    data: Annotated[str, 'ZIP|DIR']  # data of `dataset_tool.py synth` that it was trained on
    dest: Annotated[Path, 'X.png'] | None = None  # [default: curves.png in the run folder]
    full: bool = False  # all codes: four times longer, half the errors
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available
    # processes that render the data [default: all cores]
    workers: Annotated[int, Range(1)] = dataclasses.field(default_factory=usable_cores)


def run(options: Options) -> None:
    """Measures what was not measured, then draws."""
    from metrics.plotting import draw_curves
    from studies.measure import FULL, QUICK, Settings
    from torch_utils.misc import pick_device
    from viz.images import save_png

    settings = Settings(
        sizes=FULL if options.full else QUICK,
        workers=options.workers,
        device=pick_device(options.device),
    )
    snapshots = sorted(options.run.glob('network-snapshot-*.pkl'))
    if not snapshots:
        raise UserError(f'--run {options.run} holds no network-snapshot-*.pkl; give the folder of a run')
    tables = {}
    for path in snapshots:
        clips = path.stem.rpartition('-')[2]
        tables[int(clips)] = _table(path, options, settings, options.run / 'figures' / clips)
        click.echo(f'{path.name}: measured')
    dest = options.dest or options.run / 'curves.png'
    save_png(dest, draw_curves(_curves(tables)))
    click.echo(f'{dest}: {len(tables)} snapshots')


def _table(snapshot: Path, options: Options, settings: Any, folder: Path) -> list[dict[str, Any]]:
    from studies.measure import measure
    from studies.results import TABLE, write_result

    wanted = {'full': options.full, 'data': options.data}
    kept = json.loads((folder / TABLE).read_bytes()) if (folder / TABLE).exists() else {}
    if not wanted.items() <= kept.items():
        write_result(folder, measure(snapshot, options.data, settings), wanted)
        kept = json.loads((folder / TABLE).read_bytes())
    return kept['rows']


def _curves(tables: dict[int, list[dict[str, Any]]]) -> list[Any]:
    """Returns the curves of the figures that the newest table has with a goal, by their names.

    An older table may have been measured when there were others.
    """
    from metrics.plotting import Curve

    kimg, newest = [clips / 1000 for clips in tables], list(tables.values())[-1]
    unknown = {'value': np.nan, 'error': np.nan}
    curves = []
    for row in (row for row in newest if row['goal']):
        rows = [{r['name']: r for r in table}.get(row['name'], unknown) for table in tables.values()]
        values, errors = ([np.nan if r[k] is None else r[k] for r in rows] for k in ('value', 'error'))
        curves.append(Curve(f'{row["name"]}\n(goal {row["goal"]})', kimg, values, errors, row['data']))
    return curves


main = command(Options, run, 'use --device cpu')

if __name__ == '__main__':
    main()
