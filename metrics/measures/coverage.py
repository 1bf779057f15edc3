"""Which real people a generator shows: those that are nearest to one of its frames."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metrics.base import Context, Metric, Outcome, Sample
from metrics.measures.frechet import features

_ROUNDS = 100  # of the bootstrap
_CHUNK = 256  # frames whose distances are computed at a time, to bound memory


def _coverage(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    rng = np.random.default_rng(context.settings.seed)
    people = np.array(reals.people)
    shown = people[nearest(fakes.stack('x'), reals.stack('x'))]
    count = len(set(reals.people))
    drawn = [covered(shown[rng.integers(len(shown), size=len(shown))], count) for _ in range(_ROUNDS)]
    details = {'effective': effective_number(shown), 'people': float(count), 'real': _real(reals, rng)}
    return Outcome(covered(shown, count), float(np.std(drawn, ddof=1)), details)


Metric(
    name='coverage',
    on='frames',
    title='share of the real people who are nearest to a generated frame',
    goal='higher is better',
    example='coverage512',
    reduce=_coverage,
    detector=('image', 'lite0'),
    compares=True,
)(features)


def covered(shown: Sequence[int], count: int) -> float:
    """Returns the share of `count` people who are among those shown."""
    return len(set(np.asarray(shown).tolist())) / count


def effective_number(shown: Sequence[int]) -> float:
    """Returns exp(entropy): as many people, shown equally often, would be as diverse."""
    share = np.unique(shown, return_counts=True)[1] / len(shown)
    return float(np.exp(-(share * np.log(share)).sum()))


def nearest(queries: NDArray, references: NDArray) -> NDArray:
    """Returns the number of the nearest reference [M, D] of each query [N, D], the first of equal ones."""
    b = references.astype(np.float64)
    found = []
    for start in range(0, len(queries), _CHUNK):
        a = queries[start : start + _CHUNK].astype(np.float64)
        found.append(((b**2).sum(axis=1) - 2 * a @ b.T).argmin(axis=1))
    return np.concatenate(found)


def _real(reals: Sample, rng: np.random.Generator) -> float:
    """Returns the coverage of one half of the real clips by the other: what can be expected at best."""
    clips = rng.permutation(sorted(set(reals.groups)))
    first = np.isin(reals.groups, clips[: len(clips) // 2])
    people, x = np.array(reals.people), reals.stack('x')
    if first.all() or not first.any():
        return np.nan
    return covered(people[first][nearest(x[~first], x[first])], len(set(people[first].tolist())))
