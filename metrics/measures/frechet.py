"""Distances between sets of features: Frechet and kernel distance, with their errors.

Everything is float64 numpy. Covariances divide by the number of features N (not N - 1), as StyleGAN-V and the
released PV3D do.

The trace of the matrix root in the Frechet distance is a nuclear norm: if S1 = F1' F1 and S2 = F2' F2, then
tr((S1^(1/2) S2 S1^(1/2))^(1/2)) is the sum of the singular values of F1 F2'. This is real for any input,
exact for covariances without full rank, and loses no digits to square roots of rounding errors. With the
centred features themselves as F, sets with fewer features than dimensions need no D x D matrix at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def checked_features(features: ArrayLike) -> Array:
    """Returns features [N, D] as finite float64.

    Raises:
        ValueError: for another shape, or NaN or infinite features.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f'features must have the shape [N, D], got {list(array.shape)}')
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        rows = ', '.join(map(str, bad[:5])) + (', ...' if len(bad) > 5 else '')
        raise ValueError(f'{len(bad)} of {len(array)} features are NaN or infinite (rows {rows})')
    return array


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Returns the Frechet distance of two sets of features [N, D], [M, D], without their covariances.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2)) of their means and covariances.

    Raises:
        ValueError: for fewer than two features in a set, other shapes, or NaN or infinite features.
    """
    a, b = _pair_of_features(features_a, features_b)
    return _distance(*_factor_of_features(a, np.ones(len(a))), *_factor_of_features(b, np.ones(len(b))))


def bootstrap_frechet(
    features_a: ArrayLike,
    features_b: ArrayLike,
    rounds: int,
    seed: int,
    groups_a: Sequence[int] | None = None,
) -> float:
    """Returns the standard error of the Frechet distance of two sets of features [N, D], [M, D].

    It is the deviation of the distance over `rounds` pairs of sets that are drawn with replacement. Drawn
    sets hold doubles, so that their distances are larger than the measured one: use the deviation alone.

    Args:
        features_a: one set.
        features_b: the other set.
        rounds: sets drawn, at least 2; the error itself is known to about 1 / sqrt(2 rounds) of its value.
        seed: selects the sets.
        groups_a: which features of the first set belong together (pieces of one video) and are drawn
            together, [N]; by default each is drawn by itself.

    Raises:
        ValueError: as `frechet_distance`, or for too few rounds.
    """
    if rounds < 2:
        raise ValueError(f'a bootstrap needs at least 2 rounds, got {rounds}')
    sets = _pair_of_features(features_a, features_b)
    members = [_members(groups_a, len(sets[0])), _members(None, len(sets[1]))]
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(rounds):
        counts = [rng.multinomial(m.max() + 1, np.full(m.max() + 1, 1 / (m.max() + 1)))[m] for m in members]
        (mean_a, a), (mean_b, b) = (_factor_of_features(f, c) for f, c in zip(sets, counts, strict=True))
        distances.append(_distance(mean_a, a, mean_b, b))
    return float(np.std(distances, ddof=1))


def halves_floor(features: ArrayLike, seed: int, groups: Sequence[int] | None = None) -> float:
    """Returns the Frechet distance between two random halves of one set of features [N, D].

    What a perfect generator would reach against N / 2 real videos with N / 2 of its own; the floor of N
    against N is about half of it, since the bias falls like 1 / N. Of an odd number one is left out.

    Args:
        features: [N, D].
        seed: selects the halves.
        groups: which features belong together (pieces of one video), [N]; a half has all of a group or none.

    Raises:
        ValueError: for fewer than four groups, or NaN or infinite features.
    """
    array = checked_features(features)
    members = _members(groups, len(array))
    count = members.max() + 1 if len(array) else 0
    if count < 4:
        raise ValueError(f'two halves need at least 4 features of different videos, got {count}')
    order = np.random.default_rng(seed).permutation(count)
    halves = (order[: count // 2], order[count // 2 : count // 2 * 2])
    return frechet_distance(*(array[np.isin(members, half)] for half in halves))


def _members(groups: Sequence[int] | None, count: int) -> NDArray:
    """Numbers the groups from 0."""
    return np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]


class KernelDistance(NamedTuple):
    """Kernel distance and its standard error."""

    value: float
    standard_error: float


def kernel_distance(
    features_a: ArrayLike,
    features_b: ArrayLike,
    seed: int,
    subsets: int = 100,
    subset_size: int = 1000,
) -> KernelDistance:
    """Returns KID: the squared MMD with the kernel (x'y / D + 1)^3, unbiased, averaged over random subsets.

    A subset holds at most half of the smaller set, so that subsets differ; being unbiased, the value is
    expected to be the same for every size. The standard error is that of a delete-d jackknife: the deviation
    over subsets of m out of n features, times sqrt(m / (n - m)).

    Args:
        features_a: [N, D].
        features_b: [M, D].
        seed: selects the subsets.
        subsets: number of subsets, at least 2.
        subset_size: features of each set in a subset, drawn without replacement.

    Raises:
        ValueError: for fewer than four features in a set, other shapes, or NaN or infinite features.
    """
    a, b = _pair_of_features(features_a, features_b)
    count = min(len(a), len(b))
    size = min(subset_size, count // 2)
    if size < 2 or subsets < 2:
        raise ValueError(
            f'a kernel distance needs at least 4 features per set and 2 subsets of 2 features; got {len(a)} '
            f'and {len(b)} features, {subsets} subsets of {subset_size}'
        )
    rng = np.random.default_rng(seed)
    values = [
        _squared_mmd(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    error = np.std(values, ddof=1) * np.sqrt(size / (count - size))
    return KernelDistance(float(np.mean(values)), float(error))


def standard_error(values: ArrayLike) -> float:
    """Returns the standard error of the mean of independent values [N]; NaN for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f'finite values [N] expected, got the shape {list(array.shape)} or NaN')
    return float(np.std(array, ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float('nan')


def _pair_of_features(features_a: ArrayLike, features_b: ArrayLike) -> tuple[Array, Array]:
    a, b = checked_features(features_a), checked_features(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f'features of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared')
    if min(len(a), len(b)) < 2:
        raise ValueError(f'each set needs at least 2 features, got {len(a)} and {len(b)}')
    return a, b


def _factor_of_features(features: Array, counts: NDArray) -> tuple[Array, Array]:
    """Returns the mean and F with F'F = covariance, of features of which each occurs counts times."""
    features, counts = features[counts > 0], counts[counts > 0]
    share = counts / counts.sum()
    mean = share @ features
    factor = np.sqrt(share)[:, None] * (features - mean)
    if len(factor) > factor.shape[1]:
        factor = np.linalg.qr(factor, mode='r')  # F = QR gives F'F = R'R: no square, no lost digits
    return mean, factor


def _distance(mean_a: Array, factor_a: Array, mean_b: Array, factor_b: Array) -> float:
    root_trace = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum() if len(factor_a) else 0.0
    traces = (factor_a**2).sum() + (factor_b**2).sum()
    return max(float(((mean_a - mean_b) ** 2).sum() + traces - 2 * root_trace), 0.0)


def _squared_mmd(a: Array, b: Array) -> float:
    dim, m, n = a.shape[1], len(a), len(b)
    aa, bb, ab = ((x @ y.T / dim + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa)) / (m * (m - 1)) + (bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(within - 2 * ab.mean())
