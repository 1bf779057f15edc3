"""The table of a comparison: figures of every arm, mean over seeds with its error, beside the base."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from dnnlib.util import UserError, atomic_write
from studies.arms import Arm, Task, read_results, run_all
from studies.results import TABLE, format_cells, format_value

_NOTABLE = 2.0  # standard errors from the base that are marked


class Comparison(NamedTuple):
    """What was found."""

    text: str  # markdown
    arms: list[dict[str, Any]]  # name, and of each run seed, folder and table


def compare(arms: Sequence[Arm]) -> Comparison:
    """Collects the tables of arms that were measured; the base comes first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        table = read_results(arm.folder, TABLE)
        runs.setdefault(arm.name, []).extend(
            [{'seed': arm.seed, 'folder': str(arm.folder), **table}] if table else []
        )
    found = {name: tables for name, tables in runs.items() if tables}
    if not found:
        return Comparison('nothing was measured', [])
    letters = dict(zip(found, (f'{i}' for i in range(len(found))), strict=True))
    legend = [f'{letter}: {name}, seeds {_seeds(found[name])}' for name, letter in letters.items()]
    text = '\n'.join([format_cells(_cells(found)), '', *legend, _NOTE])
    return Comparison(text, [{'name': name, 'runs': tables} for name, tables in found.items()])


_NOTE = (
    'Means over seeds; ± is their standard error (of two seeds half their difference) or, where larger, that '
    f'of the codes. * is more than {_NOTABLE:g} standard errors from 0, the base.'
)


def summarise(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Returns the mean over seeds and its standard error.

    It is that of the means of the seeds (of two, half their difference) or, where larger, that which their
    own errors give: two seeds can agree by chance.
    """
    count, mean = len(values), sum(values) / len(values)
    own = sum(e * e for e in errors if not math.isnan(e)) / count
    between = sum((v - mean) ** 2 for v in values) / max(count - 1, 1)
    return mean, math.sqrt(max(own, between) / count)


def run_and_compare(tasks: Sequence[Task], at_once: int, outdir: Path) -> None:
    """Does all tasks, so many at a time, then prints and writes their comparison.

    Raises:
        UserError: if runs failed; the others are compared before.
    """
    failures = []
    for arm, failure in run_all(tasks, at_once):
        failures += [failure] if failure else []
        click.echo(failure or f'{arm.folder}: done')
    comparison = compare([task.arm for task in tasks])
    write_comparison(outdir, comparison)
    click.echo(comparison.text)
    if failures:
        raise UserError(f'{len(failures)} runs failed: {"; ".join(failures)}')


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Writes results.json and results.md."""
    with atomic_write(folder / 'results.json', 'w') as file:
        json.dump(comparison.arms, file, indent=1)
    with atomic_write(folder / 'results.md', 'w') as file:
        file.write(comparison.text + '\n')


def _cells(found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Returns rows of figures and columns of arms; a figure that an arm does not have is left empty."""
    tables = list(found.values())
    cells = [['figure', 'goal', 'data', *(str(i) for i in range(len(tables)))]]
    first = tables[0][0]['rows']
    for row in first:
        summaries = [_summary(runs, row['name']) for runs in tables]
        marked = [_cell(s, summaries[0] if i else None, row['percent']) for i, s in enumerate(summaries)]
        cells.append([row['name'], row['goal'] or '-', _plain(row['data'], row['percent']), *marked])
    clips = [sum(run['clips'] for run in runs) / len(runs) for runs in tables]
    costs = [1000 * sum(r['seconds'] for r in runs) / sum(r['clips'] for r in runs) for runs in tables]
    cells.append(['thousand clips seen', '-', '-', *(f'{c / 1000:.1f}' for c in clips)])
    cells.append(['ms of a core per clip', '-', '-', *(f'{c:.1f}' for c in costs)])
    return cells


def _summary(runs: list[dict[str, Any]], name: str) -> tuple[float, float] | None:
    rows = [row for run in runs for row in run['rows'] if row['name'] == name]
    known = [
        (r['value'], math.nan if r['error'] is None else r['error']) for r in rows if r['value'] is not None
    ]
    return summarise(*zip(*known, strict=True)) if known else None


def _cell(found: tuple[float, float] | None, base: tuple[float, float] | None, percent: bool) -> str:
    if found is None:
        return '-'
    text = ' ± '.join(format_value(x, percent) for x in found)
    notable = base is not None and abs(found[0] - base[0]) > _NOTABLE * math.hypot(found[1], base[1])
    return text + ' *' * notable


def _plain(value: float | None, percent: bool) -> str:
    return '-' if value is None else format_value(value, percent)


def _seeds(runs: list[dict[str, Any]]) -> str:
    return ', '.join(str(run['seed']) for run in runs)
