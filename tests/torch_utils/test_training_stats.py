import numpy as np
import pytest
import torch

from torch_utils.training_stats import Collector


def collected(*values):
    collector = Collector()
    for value in values:
        collector.report('a', value)
    return collector.collect()['a']


def test_moments_equal_numpy():
    rng = np.random.default_rng(0)
    parts = [rng.normal(100, 0.01, size) for size in ((3,), (2, 5), (1,), (4, 1, 2))]
    values = np.concatenate([p.ravel() for p in parts] + [[99.9]])
    moments = collected(*map(torch.from_numpy, parts), 99.9)
    assert moments.num == len(values)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.std == pytest.approx(values.std(), rel=1e-5)


def test_names_are_sorted_and_collecting_begins_again():
    collector = Collector()
    for name, value in (('b', 1), ('a', torch.tensor([2, 4])), ('none', torch.zeros(0))):
        collector.report(name, value)
    assert list(collector.collect().items()) == [('a', (3.0, 1.0, 2)), ('b', (1.0, 0.0, 1))]
    assert collector.collect() == {}


def test_half_precision_is_summed_in_double():
    assert collected(*[torch.full((100,), 2000.0, dtype=torch.float16)] * 50) == (2000.0, 0.0, 5000)


def test_constant_with_rounding_has_no_negative_variance():
    assert collected(torch.full((1000,), 0.1, dtype=torch.float64)).std == pytest.approx(0.0, abs=1e-7)


def test_nan_is_shown():
    moments = collected(torch.tensor([1.0, float('nan')]))
    assert np.isnan(moments.mean) and np.isnan(moments.std) and moments.num == 2
