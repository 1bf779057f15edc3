"""Which frames and times are drawn, against their distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from training.data.sampling import sample_distances, sample_indices, sample_times


def cell_probabilities(n):
    """Probability of every sorted pair of indices of n frames, from the distribution functions."""
    edges = np.arange(n + 1) / n
    x, y = np.diff(edges**2), np.diff(1 - (1 - edges) ** 2)  # Beta(2, 1) and Beta(1, 2)
    joint = np.outer(x, y)
    return np.triu(joint + joint.T, 1) + np.diag(np.diag(joint))


@pytest.mark.parametrize('distinct', [True, False])
def test_indices_have_the_distribution_of_the_formula(distinct):
    n, draws = 16, 40_000
    pairs = sample_indices(np.random.default_rng(0), np.full(draws, n), distinct)
    expected = cell_probabilities(n)
    if distinct:
        assert (pairs[:, 0] < pairs[:, 1]).all()
        np.fill_diagonal(expected, 0)
        expected /= expected.sum()
    else:
        assert expected.trace() == pytest.approx(0.0417, abs=1e-4)
        assert (np.diff(pairs) @ [1] / 15).mean() == pytest.approx(0.425, abs=0.005)
    counts = np.zeros((n, n))
    np.add.at(counts, tuple(pairs.T), 1)
    cells = expected > 0
    assert counts[~cells].sum() == 0
    assert stats.chisquare(counts[cells], draws * expected[cells]).pvalue > 1e-3


def test_distances_are_powers_of_two_and_starts_even():
    draws = 30_000
    counts = np.where(np.arange(draws) < 20_000, 40, 7)  # the short ones have no pairs 8 frames apart
    pairs = sample_distances(np.random.default_rng(0), counts, 32)
    assert (pairs[:, 1] < counts).all() and pairs.min() == 0
    for part, distances in ((slice(20_000), [1, 2, 4, 8, 16, 32]), (slice(20_000, None), [1, 2, 4])):
        found, number = np.unique(np.diff(pairs[part])[:, 0], return_counts=True)
        assert found.tolist() == distances and stats.chisquare(number).pvalue > 1e-3
    starts = np.bincount(pairs[:20_000][np.diff(pairs[:20_000])[:, 0] == 8, 0])
    assert len(starts) == 32 and stats.chisquare(starts).pvalue > 1e-3


def test_times_on_the_lattice_and_continuous():
    lattice = sample_times(np.random.default_rng(0), 500, 16, True, True)
    torch.testing.assert_close(lattice * 15, (lattice * 15).round(), atol=1e-5, rtol=0)
    assert (lattice[:, 1] - lattice[:, 0]).min() > 0.06
    assert lattice.max() <= 1 and lattice.dtype == torch.float32
    free = sample_times(np.random.default_rng(0), 20_000, 16, True, False).double()
    assert (free[:, 0] <= free[:, 1]).all()
    assert (free[:, 1] - free[:, 0]).mean().item() == pytest.approx(0.4, abs=0.005)
    assert (free[:, 0] * 15 - (free[:, 0] * 15).round()).abs().max() > 0.4
