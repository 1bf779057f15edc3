"""Distances between sets of features: Frechet and kernel distance, with their errors.

Features are finite, as `features` makes them; distances are computed in float64. Covariances divide by the
number of features N (not N - 1), as StyleGAN-V and the released PV3D do.

The trace of the matrix root in the Frechet distance is a nuclear norm: if S1 = F1' F1 and S2 = F2' F2, then
tr((S1^(1/2) S2 S1^(1/2))^(1/2)) is the sum of the singular values of F1 F2'. This is real for any input,
exact for covariances without full rank, and loses no digits to square roots of rounding errors. With the
centred features themselves as F, sets with fewer features than dimensions need no D x D matrix at all.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dnnlib.util import Skip
from metrics.base import Context, Metric, Outcome, Sample, exact_network

Array = NDArray[np.float64]

_ROUNDS = 10  # of the bootstrap; seconds each for thousands of long features
_LEAST_HALVES = 4  # real videos that can be split in halves with a spread
_LONG = 64  # frames from which a video is looked at in three ways [StyleGAN-V: 128]
_SHORT = 16  # frames of each of them
_KID_SCALE = 1000  # KID is reported times 1000


def _frechet(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    fake, real, seed = fakes.stack('x'), reals.stack('x'), context.settings.seed
    enough = len(set(reals.groups)) >= _LEAST_HALVES
    floor = halves_floor(real, seed, reals.groups) if enough else math.nan
    error = bootstrap_frechet(real, fake, _ROUNDS, seed, reals.groups)
    details = {'floor': floor}
    for name in ('first', 'last'):
        if name in fakes.records[0]:
            details[name] = frechet_distance(reals.stack(name), fakes.stack(name))
    return Outcome(frechet_distance(real, fake), error, details)


def _kernel(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    value, error = kernel_distance(reals.stack('x'), fakes.stack('x'), context.settings.seed)
    return Outcome(_KID_SCALE * value, _KID_SCALE * error)


@Metric(
    name='kid',
    on='frames',
    title='kernel distance of frames, times 1000',
    goal='lower is better',
    example='kid2048',
    reduce=_kernel,
    detector=('image', 'inception'),
    compares=True,
    least_videos=4,
)
@Metric(
    name='fid',
    on='frames',
    title='Frechet distance of frames',
    goal='lower is better',
    example='fid2048',
    reduce=_frechet,
    detector=('image', 'inception'),
    compares=True,
)
@Metric(
    name='fvd',
    on='clips',
    title='Frechet distance of video features',
    goal='lower is better',
    example='fvd2048_16f',
    reduce=_frechet,
    detector=('video', 'i3d'),
    compares=True,
    names_frames=True,
)
def features(images: NDArray[np.uint8], context: Context) -> Mapping[str, np.ndarray]:
    """Runs the feature network on one video [T, H, W, 3] or one frame [H, W, 3].

    Of videos of 64 frames or more `x` sees 16, evenly spread, and `first` and `last` see 16 in a row.
    """
    if images.ndim == 3 or len(images) < _LONG:
        return {'x': _run(images, context)}
    spread = images[:: len(images) // _SHORT][:_SHORT]
    parts = {'x': spread, 'first': images[:_SHORT], 'last': images[-_SHORT:]}
    return {name: _run(part, context) for name, part in parts.items()}


def _run(images: NDArray[np.uint8], context: Context) -> np.ndarray:
    inputs = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))[None]
    output = exact_network(context.detector.network, inputs.to(context.settings.device))
    x = output[0].float().cpu().numpy()
    if not np.isfinite(x).all():
        raise Skip('the features are not finite')
    return x


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Returns the Frechet distance of two sets of at least two features [N, D], [M, D].

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2)) of their means and covariances.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    return _distance(*_factor_of_features(a, np.ones(len(a))), *_factor_of_features(b, np.ones(len(b))))


def bootstrap_frechet(
    features_a: ArrayLike,
    features_b: ArrayLike,
    rounds: int,
    seed: int,
    groups_a: Sequence[int] | None = None,
    groups_b: Sequence[int] | None = None,
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
        groups_b: likewise of the second set [M].
    """
    sets = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    members = [_members(groups_a, len(sets[0])), _members(groups_b, len(sets[1]))]
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
    against N is about half of it, because the bias falls like 1 / N. Of an odd number one is left out.

    Args:
        features: [N, D].
        seed: selects the halves.
        groups: which features belong together (pieces of one video), [N], at least four groups; a half has
            all of a group or none.
    """
    array = np.asarray(features, np.float64)
    members = _members(groups, len(array))
    count = members.max() + 1
    order = np.random.default_rng(seed).permutation(count)
    halves = (order[: count // 2], order[count // 2 : count // 2 * 2])
    return frechet_distance(*(array[np.isin(members, half)] for half in halves))


class KernelDistance(NamedTuple):
    """Kernel distance and its standard error."""

    value: float
    standard_error: float


def kernel_distance(
    features_a: ArrayLike, features_b: ArrayLike, seed: int, subsets: int = 100, subset_size: int = 1000
) -> KernelDistance:
    """Returns KID: the squared MMD with the kernel (x'y / D + 1)^3, unbiased, averaged over random subsets.

    A subset holds at most half of the smaller set, so that subsets differ; being unbiased, the value is
    expected to be the same for every size. The standard error is that of a delete-d jackknife: the deviation
    over subsets of m out of n features, times sqrt(m / (n - m)).

    Args:
        features_a: [N, D], at least four.
        features_b: [M, D], at least four.
        seed: selects the subsets.
        subsets: number of subsets, at least 2.
        subset_size: features of each set in a subset, drawn without replacement.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    count = min(len(a), len(b))
    size = min(subset_size, count // 2)
    rng = np.random.default_rng(seed)
    values = [
        _squared_mmd(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    error = np.std(values, ddof=1) * np.sqrt(size / (count - size))
    return KernelDistance(float(np.mean(values)), float(error))


def _members(groups: Sequence[int] | None, count: int) -> NDArray:
    """Numbers the groups from 0."""
    return np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]


def _factor_of_features(features: Array, counts: NDArray) -> tuple[Array, Array]:
    """Returns the mean and F with F'F = covariance, of features of which each occurs counts times."""
    features, counts = features[counts > 0], counts[counts > 0]
    weights = counts / counts.sum()
    mean = weights @ features
    factor = np.sqrt(weights)[:, None] * (features - mean)
    if len(factor) > factor.shape[1]:
        factor = np.linalg.qr(factor, mode='r')  # F = QR gives F'F = R'R: no square, no lost digits
    return mean, factor


def _distance(mean_a: Array, factor_a: Array, mean_b: Array, factor_b: Array) -> float:
    root_trace = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    traces = (factor_a**2).sum() + (factor_b**2).sum()
    return max(float(((mean_a - mean_b) ** 2).sum() + traces - 2 * root_trace), 0.0)


def _squared_mmd(a: Array, b: Array) -> float:
    dim, m, n = a.shape[1], len(a), len(b)
    aa, bb, ab = ((x @ y.T / dim + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa)) / (m * (m - 1)) + (bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(within - 2 * ab.mean())
