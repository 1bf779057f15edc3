"""Coverage of people by known mixtures."""

import math

import numpy as np
import pytest

from metrics.base import METRICS, Context, Request, Sample, Settings
from metrics.measures.coverage import covered, effective_number, nearest

PLACES = 10 * np.eye(4)  # of four people


def near(people, seed=0):
    """Features around the places of people [N, 4]."""
    return PLACES[people] + np.random.default_rng(seed).normal(size=(len(people), 4))


def sample(people, seed=0):
    numbers = list(range(len(people)))
    return Sample([{'x': x} for x in near(people, seed)], numbers, people)


def coverage(fakes, reals):
    request = Request(name='coverage', metric='coverage', count=None, frames=16, detector='lite0')
    context = Context(request, Settings(cache='x'), None, None, None, None)
    return METRICS['coverage'].reduce(context, fakes, reals)


def test_a_known_mixture():
    reals = sample([0, 1, 2, 3] * 5)
    found = coverage(sample([0] * 6 + [1] * 3 + [3] * 3, 1), reals)
    assert found.value == 0.75 and found.details['people'] == 4 and found.details['real'] == 1
    assert found.details['effective'] == pytest.approx(2**1.5)
    everybody = coverage(sample([3, 2, 1, 0], 2), reals)
    assert everybody.value == 1 and everybody.details['effective'] == pytest.approx(4)


def test_order_does_not_count():
    rng = np.random.default_rng(5)
    fakes, reals = (
        Sample([{'x': x} for x in rng.normal(size=(30, 6))], range(30), rng.integers(9, size=30).tolist())
        for _ in range(2)
    )
    order = rng.permutation(30)
    moved = Sample(*([side[i] for i in order] for side in reals[:3]))
    turned = Sample(*(list(side)[::-1] for side in fakes[:3]))
    first, second = coverage(fakes, reals), coverage(turned, moved)
    assert (first.value, first.details['effective']) == pytest.approx(
        (second.value, second.details['effective'])
    )


def test_effective_number():
    assert effective_number([2, 2, 2]) == 1 and covered([2, 2, 2], 4) == 0.25
    assert effective_number([1, 2, 3, 3]) == pytest.approx(math.exp(1.5 * math.log(2)))


def test_nearest_is_that_of_a_loop():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(300, 5)), rng.normal(size=(40, 5))
    expected = [min(range(40), key=lambda j: ((x - b[j]) ** 2).sum()) for x in a]
    assert nearest(a, b).tolist() == expected
