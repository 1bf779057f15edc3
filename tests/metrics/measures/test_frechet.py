"""Distances between feature sets against closed forms, high precision and naive loops."""

import mpmath
import numpy as np
import pytest

from metrics.base import standard_error
from metrics.measures.frechet import bootstrap_frechet, frechet_distance, halves_floor, kernel_distance


def features_of(mean, factor):
    """Features with exactly this mean and the covariance factor' factor."""
    spread = np.sqrt(len(factor)) * factor
    return np.concatenate([mean + spread, mean - spread])


def random_factor(rng, dim, rank):
    return rng.normal(size=(rank, dim)) * rng.uniform(0.1, 3, dim) / np.sqrt(rank)


def exact_distance(mean1, factor1, mean2, factor2):
    """The definition with 60 digits; covariances come as F with F'F, as a rounded one has full rank."""
    with mpmath.workdps(60):
        m1, f1, m2, f2 = (mpmath.matrix(x.tolist()) for x in (mean1, factor1, mean2, factor2))
        s1, s2 = f1.T * f1, f2.T * f2
        values, vectors = mpmath.eigsy(s1)
        zero = mpmath.mpf(10) ** -40
        root = vectors * mpmath.diag([mpmath.sqrt(v) if v > zero else 0 for v in values]) * vectors.T
        inner = mpmath.eigsy(root * s2 * root, eigvals_only=True)
        trace = sum(s1[i, i] + s2[i, i] for i in range(s1.rows))
        return float(
            mpmath.norm(m1 - m2) ** 2 + trace - 2 * sum(mpmath.sqrt(v) if v > zero else 0 for v in inner)
        )


def test_closed_form_of_a_scaled_covariance_in_any_basis():
    rng = np.random.default_rng(0)
    factor, mean = random_factor(rng, 12, 30), rng.normal(size=12)
    trace, a = (factor**2).sum(), features_of(mean, factor)
    assert frechet_distance(a, features_of(mean + 2, 3 * factor)) == pytest.approx(48 + 4 * trace, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * trace)


@pytest.mark.parametrize('ranks', [(3, 3), (2, 9), (9, 4), (1, 1)])
def test_rank_deficient_covariances_against_high_precision(ranks):
    rng = np.random.default_rng(sum(ranks))
    f1, f2 = (random_factor(rng, 9, r) for r in ranks)
    m1, m2 = 0.1 * rng.normal(size=(2, 9))
    distance = frechet_distance(features_of(m1, f1), features_of(m2, f2))
    assert distance == pytest.approx(exact_distance(m1, f1, m2, f2), rel=1e-12)


@pytest.mark.parametrize('counts', [(6, 7), (30, 12), (300, 200)])
def test_features_against_high_precision_and_the_definition(counts):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(counts[0], 10)), 2 * rng.gamma(2, size=(counts[1], 10)) + 1
    exact = exact_distance(*(f for x in (a, b) for f in (x.mean(0), (x - x.mean(0)) / np.sqrt(len(x)))))
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(a.astype(np.float32), b) == pytest.approx(exact, rel=1e-6)


def test_covariance_of_no_spread():
    still = np.ones((5, 4))
    moving = np.random.default_rng(0).normal(size=(50, 4))
    expected = ((1 - moving.mean(0)) ** 2).sum() + moving.var(0).sum()
    assert frechet_distance(still, moving) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(moving, still) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(still, still + 3) == pytest.approx(36, rel=1e-12)


def naive_squared_mmd(a, b):
    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    m, n = len(a), len(b)
    aa = sum(kernel(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    bb = sum(kernel(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return aa + bb - 2 * sum(kernel(x, y) for x in a for y in b) / (m * n)


def test_kernel_distance_against_naive_loops():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(21, 5)), rng.normal(1, 1, size=(19, 5))
    draws = np.random.default_rng(7)
    values = []
    for _ in range(6):
        i, j = draws.choice(21, 8, replace=False), draws.choice(19, 8, replace=False)
        values.append(naive_squared_mmd(a[i], b[j]))
    result = kernel_distance(a, b, seed=7, subsets=6, subset_size=8)
    assert result.value == pytest.approx(np.mean(values), rel=1e-12)
    assert result.standard_error == pytest.approx(np.std(values, ddof=1) * np.sqrt(8 / 11), rel=1e-12)
    assert result != kernel_distance(a, b, seed=8, subsets=6, subset_size=8)


def test_kernel_distance_is_unbiased_and_knows_its_error():
    rng = np.random.default_rng(5)
    same = [kernel_distance(*rng.normal(size=(2, 60, 4)), seed=i, subsets=20).value for i in range(60)]
    assert abs(np.mean(same)) < 3 * standard_error(same)
    apart = [kernel_distance(rng.normal(size=(60, 4)), rng.normal(0.8, 1, (60, 4)), i, 40) for i in range(60)]
    true_error = np.std([r.value for r in apart], ddof=1)
    assert np.mean([r.standard_error for r in apart]) == pytest.approx(true_error, rel=0.3)


@pytest.mark.parametrize('dim', [3, 30])  # fewer and more than features
def test_bootstrap_draws_with_replacement(dim):
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 9, dim))
    draws = np.random.default_rng(3)
    distances = []
    for _ in range(4):
        i, j = (np.repeat(np.arange(9), draws.multinomial(9, np.full(9, 1 / 9))) for _ in range(2))
        distances.append(frechet_distance(a[i], b[j]))
    assert bootstrap_frechet(a, b, 4, seed=3) == pytest.approx(np.std(distances, ddof=1), rel=1e-9)


def test_floor_of_halves():
    features = np.random.default_rng(9).normal(size=(401, 6))
    order = np.random.default_rng(2).permutation(401)
    expected = frechet_distance(features[order[:200]], features[order[200:400]])
    assert halves_floor(features, seed=2) == pytest.approx(expected, rel=1e-9)
    assert 0 < halves_floor(features, seed=2) < 0.2 < frechet_distance(features, features + 0.2)


def test_pieces_of_a_video_stay_together():
    """Four videos of five equal pieces each are four features: for the floor and for the standard error."""
    whole = np.random.default_rng(11).normal(size=(4, 3))
    groups = np.repeat([7, 2, 9, 4], 5)  # numbers of videos, in any order
    pieces = np.repeat(whole, 5, axis=0)
    ordered = whole[np.argsort([7, 2, 9, 4])]  # groups count by number
    assert halves_floor(pieces, 3, groups) == pytest.approx(halves_floor(ordered, 3), rel=1e-9)
    other = np.random.default_rng(12).normal(size=(30, 3))
    errors = [bootstrap_frechet(pieces, other, 20, 5, groups), bootstrap_frechet(ordered, other, 20, 5)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)
    assert bootstrap_frechet(pieces, other, 20, 5) < 0.8 * errors[0]
