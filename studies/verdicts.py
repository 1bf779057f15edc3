"""What runs say of the paper's claims: means over seeds, and whether an ordering holds."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from studies.comparison import summarise
from studies.paper import PV3D, Claim, Table
from studies.results import format_cells

SURE = 0.95  # probability above which an ordering holds; below 1 - SURE it does not
_NAMES = {
    'fvd': 'FVD',
    'id': 'ID',
    'cd': 'CD',
    'we': 'WE',
    'cdscene': 'CD in scene units',
    'idtime': 'identity, first and last frame',
}

Record = Mapping[str, Any]  # what studies/judges.py:MetricsJudge writes
Values = Mapping[
    int, tuple[float, float]
]  # a metric of a row by seed, with its standard error (nan = unknown)


class Verdict(NamedTuple):
    """Whether one row is below another."""

    text: str  # holds | does not hold | not decided | not run
    probability: float | None  # that it is below


def values_of(records: Sequence[Record], row: str, metric: str) -> Values:
    """Collects a metric of a row, one value for each seed; see `by_kind`."""
    measured = {r['seed']: by_kind(r).get(metric) for r in records if r['row'] == row}
    return {
        seed: (m['value'], float('nan') if m['error'] is None else m['error'])
        for seed, m in measured.items()
        if m and m['value'] is not None
    }


def by_kind(record: Record) -> dict[str, Mapping[str, Any]]:
    """Returns the metrics of a run, the first of a kind by that: `fvd` for fvd256_16f_lite0."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, metric in record['metrics'].items():
        kind = re.match('[a-z]+', name)[0]
        found[name if kind in found else kind] = metric
    return found


def decide(lower: Values, higher: Values) -> Verdict:
    """Says whether the mean of one row is below that of another.

    Runs of one seed see the same data in the same order: with two seeds or more that both rows have, their
    differences are looked at seed by seed. The mean difference over
    its standard error follows Student's distribution with as many degrees of freedom as there are such seeds
    beyond one; otherwise, of the difference of the means, seeds beyond one of each row, but at least one.
    """
    if not lower or not higher:
        return Verdict('not run', None)
    shared = sorted(lower.keys() & higher.keys())
    if len(shared) > 1:
        pairs = [(lower[seed], higher[seed]) for seed in shared]
        differences = [(b - a, math.hypot(a_error, b_error)) for (a, a_error), (b, b_error) in pairs]
        difference, error = _mean_of(differences)
        freedom = len(shared) - 1
    else:
        (a, a_error), (b, b_error) = _mean_of(lower.values()), _mean_of(higher.values())
        difference, error = b - a, math.hypot(a_error, b_error)
        freedom = max(len(lower) + len(higher) - 2, 1)
    probability = float(stats.t.cdf(difference / error, freedom)) if error > 0 else 0.5
    if probability >= SURE:
        return Verdict('holds', probability)
    return Verdict('does not hold' if probability <= 1 - SURE else 'not decided', probability)


def _mean_of(values: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Returns mean and standard error of values with their own errors."""
    return summarise(*zip(*values, strict=True))


def claim_lines(claim: Claim, records: Sequence[Record]) -> list[str]:
    """Returns a line for each pair of rows of a claim."""
    lines = []
    for lower in claim.lower:
        for higher in claim.higher:
            rows = (values_of(records, row, claim.metric) for row in (lower, higher))
            text, probability = decide(*rows)
            chance = '' if probability is None else f' (P = {probability:.3f})'
            lines.append(f'- {_NAMES[claim.metric]}, {lower} < {higher}: **{text}**{chance}')
    return lines


def table_text(name: str, table: Table, records: Sequence[Record]) -> str:
    """Returns a section: our figures with the paper's in brackets, then the verdicts."""
    paper = [m for m in _NAMES if any(m in row.paper for row in table.rows if row.name != PV3D)]
    names = {row.name for row in table.rows}
    measured = {name for record in records if record['row'] in names for name in by_kind(record)}
    metrics = [*paper, *sorted(measured - set(paper))]
    heads = ['row', 'options', 'seeds', 'minutes', 'thousand clips']
    cells = [[*heads, *(_NAMES.get(m, m) for m in metrics)]]
    for row in table.rows:
        own = [record for record in records if record['row'] == row.name]
        parts = [row.baseline, *(f'{path}={value}' for path, value in row.changes.items())]
        options = ' '.join(f'`{part}`' for part in parts if part) or '-'
        minutes = sum(_mean(records, name, 'seconds') for name in (row.name, row.after)) / 60
        costs = [f'{minutes:.0f}', f'{_mean(own, row.name, "clips") / 1000:.1f}'] if own else '--'
        cells.append([row.name, options, f'{len(own)}', *costs])
        cells[-1] += [_cell(values_of(own, row.name, m), row.paper.get(m)) for m in metrics]
    verdicts = [line for claim in table.claims for line in claim_lines(claim, records)]
    return '\n'.join([f'### Table {name}: {table.title}', '', format_cells(cells), '', *verdicts])


def _mean(records: Sequence[Record], row: str, fact: str) -> float:
    """Returns the mean of a fact over the seeds of a row, 0 without any."""
    found = [record[fact] for record in records if record['row'] == row]
    return sum(found) / max(len(found), 1)


def _cell(found: Values, paper: float | None) -> str:
    ours = ' ± '.join(f'{x:.3g}' for x in _mean_of(found.values())) if found else '-'
    return ours if paper is None else f'{ours} [{paper:g}]'
