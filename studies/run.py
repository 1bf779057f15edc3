"""Trains and measures the rows of a table of the paper; `python -m studies.run --help` explains."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dnnlib.cli import ARGUMENT, Numbers, Range, command

import click

from dnnlib.util import UserError
from studies.options import Runs

if TYPE_CHECKING:  # functions import what they need: --help needs no torch
    from metrics.base import Settings
    from studies.arms import Task
    from studies.paper import Row
    from training.config import TrainConfig

DEFAULT_METRICS = 'fvd256_16f_lite0,id64_sface,cd64,cdscene64,we64,motion64,expression64,idtime64_16f_sface'


def parse_part(text: str) -> tuple[int, int]:
    """Reads I/N, the I-th of N parts."""
    first, slash, count = text.partition('/')
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UserError(f'{text!r} must be I/N with I from 1 to N, for example 2/8')
    return int(first), int(count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Runs):
    """Trains the rows of a table of the paper from several seeds with equal data, and measures them.

    Rows and what the paper says of them are data: studies/paper.py. Each row and seed has a run folder in
    --outdir; the same command given again continues, more --kimg train on. A row that several tables share
    is trained once. `python -m studies.report` makes tables and verdicts of what is there.

    Examples:
      python -m studies.run 2a --preset study --data faces.zip --outdir tables --kimg 100 --seeds 0-2

      # a few rows, by time, with other switches for all of them
      python -m studies.run all --rows pv3d,late,no_video --preset study --data faces.zip --outdir tables
        --minutes 60 --set d_video.pair=difference

      # the second of eight jobs of an array
      python -m studies.run all --preset pv3d-128 --data heads.zip --outdir tables --kimg 1000 --part 2/8
    """

    # table of the paper
    table: Annotated[Literal['1', '2', '3', '2a', '2b', '2c', '2d', '3a', '3b', '3c', 'all'], ARGUMENT]
    preset: Annotated[str, 'CFG|PRESET']  # preset, or training_options.json of a run
    data: Annotated[str, 'ZIP|DIR']  # training data
    rows: Annotated[str, 'LIST'] = ''  # only these rows, names separated by commas [default: all]
    seeds: Numbers = (0, 1, 2)  # of training [default: 0-2]
    kimg: Annotated[float, Range(above=0)] | None = None  # thousand clips that each run sees
    # of the processor (GPU: of the clock) for each run
    minutes: Annotated[float, Range(above=0)] | None = None
    set: Annotated[tuple[str, ...], 'PATH=VALUE'] = ()  # options of all rows; may be given several times
    metrics: Annotated[str, 'LIST'] = DEFAULT_METRICS  # measured at the end; names as for calc_metrics.py
    # snapshots on the way that the first of them is measured of, too: learning curves
    points: Annotated[int, Range(0)] = 4
    part: Annotated[tuple[int, int], parse_part, 'I/N'] = (1, 1)  # every N-th run from the I-th on
    parallel: Annotated[int, Range(1)] = 1  # runs at a time; with --device cuda each on a GPU of its own


def run(options: Options) -> None:
    """Trains what is not trained yet, then measures."""
    if (options.kimg is None) == (options.minutes is None):
        raise UserError('give --kimg or --minutes, one of them: what each run may cost')
    options.begin()
    from dnnlib.config import override
    from studies.arms import base_config, run_all, split_changes

    common = {path: value for text in options.set for path, value in split_changes(text).items()}
    base = override(base_config(options.preset, options.data), common)
    setting = '+'.join([base.cfg, *(f'{path}={value}' for path, value in sorted(common.items()))])
    first, count = options.part
    failures = []
    for arm, failure in run_all(make_tasks(options, base, setting)[first - 1 :: count], options.parallel):
        failures += [failure] if failure else []
        click.echo(failure or f'{arm.folder}: done')
    if failures:
        raise UserError(f'{len(failures)} runs failed: {"; ".join(failures)}')


def make_tasks(options: Options, base: TrainConfig, setting: str) -> list[Task]:
    """Makes a task for each seed and row; rows that others start from are done with these."""
    from studies.arms import NEWEST, Budget, Task, make_arm
    from studies.judges import MetricsJudge
    from studies.paper import config_of, rows_of

    budget = Budget(seconds=60 * options.minutes) if options.minutes else Budget(clips=1000 * options.kimg)
    places, known = itertools.cycle(all_settings(options.device)), rows_of('all')

    def task(row: Row, seed: int, settings: Settings) -> Task:
        config = config_of(base, row)
        before = task(known[row.after], seed, settings) if row.after else None
        if before is not None:
            config = dataclasses.replace(config, resume=str(before.arm.folder / NEWEST))
        arm = make_arm(row.name, seed, config, options.outdir)
        judge = MetricsJudge(options.metrics, settings, setting, options.points)
        return Task(arm, budget, judge, before)

    rows = chosen_rows(options)
    included = {row.after for row in rows.values()}
    wanted = [row for row in rows.values() if row.name not in included]
    return [task(row, seed, next(places)) for seed in options.seeds for row in wanted]


def chosen_rows(options: Options) -> dict[str, Row]:
    """Returns the rows that are wanted, by name."""
    from studies.paper import rows_of

    rows = rows_of(options.table)
    names = [name.strip() for name in options.rows.split(',') if name.strip()] or list(rows)
    if unknown := [name for name in names if name not in rows]:
        raise UserError(f'--rows {unknown[0]}: table {options.table} has {", ".join(rows)}')
    return {name: rows[name] for name in names}


def all_settings(device: str) -> list[Settings]:
    """Returns how metrics are computed on each device that runs may use: all GPUs for `cuda`."""
    import torch

    from metrics.base import Settings
    from torch_utils.misc import pick_device
    from torch_utils.ops.build import cache_folder

    picked = pick_device(device)
    several = picked.type == 'cuda' and ':' not in device
    count = torch.cuda.device_count() if several else 1
    devices = [torch.device('cuda', i) for i in range(count)] if several else [picked]
    return [Settings(cache=Path(cache_folder()), device=d, landmarks='camera') for d in devices]


main = command(Options, run, 'use --parallel 1')

if __name__ == '__main__':
    main()
