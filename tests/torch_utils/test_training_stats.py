import numpy as np
import pytest
import torch

from torch_utils.training_stats import Collector


def test_moments_equal_numpy():
    rng = np.random.default_rng(0)
    parts = [rng.normal(100, 0.01, size) for size in ((3,), (2, 5), (1,), (4, 1, 2))]
    collector = Collector()
    for part in parts:
        collector.report('loss', torch.from_numpy(part))
    collector.report('loss', 99.9)
    values = np.concatenate([p.ravel() for p in parts] + [[99.9]])
    moments = collector.collect()['loss']
    assert moments.num == len(values)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.std == pytest.approx(values.std(), rel=1e-5)


def test_names_are_sorted_and_kept_apart():
    collector = Collector()
    collector.report('b', 1)
    collector.report('a', torch.tensor([2, 4]))
    collector.report('none', torch.zeros(0))
    result = collector.collect()
    assert list(result) == ['a', 'b']
    assert result['a'] == (3.0, 1.0, 2) and result['b'] == (1.0, 0.0, 1)


def test_collect_begins_again():
    collector = Collector()
    collector.report('a', 1.0)
    collector.collect()
    assert collector.collect() == {}


def test_half_precision_is_summed_in_double():
    collector = Collector()
    for _ in range(50):
        collector.report('a', torch.full((100,), 2000.0, dtype=torch.float16))
    assert collector.collect()['a'] == (2000.0, 0.0, 5000)


def test_constant_with_rounding_has_no_negative_variance():
    collector = Collector()
    collector.report('a', torch.full((1000,), 0.1, dtype=torch.float64))
    assert collector.collect()['a'].std == pytest.approx(0.0, abs=1e-7)


def test_nan_is_shown():
    collector = Collector()
    collector.report('a', torch.tensor([1.0, float('nan')]))
    moments = collector.collect()['a']
    assert np.isnan(moments.mean) and np.isnan(moments.std) and moments.num == 2


def test_report_keeps_no_graph():
    collector = Collector()
    x = torch.ones(3, requires_grad=True)
    collector.report('a', (x * 2).sum())
    assert not collector._sums['a'].requires_grad
