"""The arithmetic of the figures: arrays of images or logits in, a value with its standard error out.

Motions of a code (or of a person) are images [A, M, T, ...]: A codes, M motions of each, T times. Motion is
what is left after the mean over motions and times of a code before a camera.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from metrics.measures.coverage import covered, effective_number
from metrics.measures.frechet import bootstrap_frechet, frechet_distance
from training import diagnostics

DIRECTIONS = 12  # of the subspace of frame differences
STEPS = ((0, 1), (1, 2), (0, 3), (2, 3))  # times between which differences are taken
_ROUNDS, _FRECHET_ROUNDS = 200, 20  # of the bootstrap


class Figure(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float = float('nan')


class Parts(NamedTuple):
    """Mean square of motion, per code [A]."""

    common: np.ndarray  # the same for all motions at a time
    specific: np.ndarray  # the rest


def bootstrap(statistic: Callable[..., float], *samples: np.ndarray) -> Figure:
    """Returns a statistic of samples and its deviation when their rows are drawn with replacement."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(_ROUNDS):
        drawn = (s[rng.integers(len(s), size=len(s))] for s in samples)
        values.append(statistic(*drawn))
    return Figure(float(statistic(*samples)), float(np.std(values, ddof=1)))


def motion_of(images: np.ndarray) -> np.ndarray:
    """Returns the motion in images [A, M, T, ...]."""
    return images - images.mean(axis=(1, 2), keepdims=True)


def motion_parts(images: np.ndarray) -> Parts:
    """Splits the motion in images [A, M, T, ...] without bias, as the probes of training do."""
    common, steady, changing = (part.numpy() for part in diagnostics.motion_parts(torch.tensor(images)))
    return Parts(common, steady + changing)


def common_share(parts: Parts) -> Figure:
    """Returns the share of motion that is common to all motions of a code; nan where nothing moves."""
    return bootstrap(lambda p: p[:, 0].sum() / p.sum() if p.any() else np.nan, np.stack(parts, axis=1))


def relative_deviation(parts: np.ndarray, reference: np.ndarray) -> Figure:
    """Returns the root of the ratio of two mean squares, given per code [A] and per person [K]."""
    return bootstrap(lambda a, b: np.sqrt(a.mean() / b.mean()), parts, reference)


def motion_correlation(images: np.ndarray) -> Figure:
    """Returns the mean correlation of two motions of one code at one time."""
    motion = motion_of(images).reshape(*images.shape[:3], -1)
    unit = motion / np.maximum(np.linalg.norm(motion, axis=-1, keepdims=True), 1e-12)
    count = images.shape[1]
    total = (np.square(unit.sum(axis=1)).sum(axis=-1) - count) / (count * (count - 1))  # [A, T]
    return bootstrap(np.mean, total.mean(axis=1))


def differences(images: np.ndarray) -> np.ndarray:
    """Returns the frame differences [A, M * 4, D] of images [A, M, T, ...]."""
    flat = images.reshape(*images.shape[:3], -1).astype(np.float64)
    found = np.stack([flat[:, :, j] - flat[:, :, i] for i, j in STEPS], axis=2)
    return found.reshape(len(images), -1, found.shape[-1])


def motion_distance(reference: np.ndarray, images: np.ndarray) -> tuple[Figure, Figure]:
    """Compares frame differences of images [A, M, T, ...] with those of a reference [K, M', T, ...].

    Returns:
        the Frechet distance in the first principal directions of the reference, over the reference's trace in
        them; and the fraction of energy outside of them.
    """
    real, fake = differences(reference), differences(images)
    mean = real.mean(axis=(0, 1))
    rows = real.reshape(-1, real.shape[-1]) - mean
    values, vectors = np.linalg.eigh(rows @ rows.T)  # of fewer rows than pixels
    keep = np.argsort(values)[::-1][: min(DIRECTIONS, len(rows))]
    basis = rows.T @ vectors[:, keep] / np.sqrt(np.maximum(values[keep], 1e-12))
    real_at, fake_at = ((x - mean) @ basis for x in (real, fake))
    trace = np.var(real_at.reshape(-1, basis.shape[1]), axis=0).sum()
    flat = [x.reshape(-1, basis.shape[1]) for x in (fake_at, real_at)]
    groups = np.repeat(np.arange(len(fake)), fake.shape[1])
    error = bootstrap_frechet(*flat, _FRECHET_ROUNDS, 0, groups)
    inside, every = np.square(fake_at).sum(axis=(1, 2)), np.square(fake - mean).sum(axis=(1, 2))
    outside = bootstrap(lambda e: 1 - e[:, 0].sum() / e[:, 1].sum(), np.stack([inside, every], axis=1))
    return Figure(float(frechet_distance(*flat) / trace), float(error / trace)), outside


def monotone_share(images: np.ndarray, mask: np.ndarray) -> Figure:
    """Returns the share of courses of a region's mean brightness that only rise or only fall.

    Args:
        images: [A, M, T, 3, R, R].
        mask: the region [R, R].
    """
    steps = np.diff(images[..., mask].mean(axis=(-2, -1)), axis=2)
    one_way = (steps >= 0).all(axis=2) | (steps <= 0).all(axis=2)
    return bootstrap(np.mean, one_way.mean(axis=1))


def share_inside(images: np.ndarray, masks: Sequence[np.ndarray]) -> Figure:
    """Returns the share of motion in images [A, M, T, 3, R, R] that lies in any of the regions [R, R]."""
    energy = np.square(motion_of(images)).sum(axis=(1, 2, 3))  # [A, R, R]
    inside = energy[:, np.any(masks, axis=0)].sum(axis=1)
    pairs = np.stack([inside, energy.sum(axis=(1, 2))], axis=1)
    return bootstrap(lambda e: e[:, 0].sum() / e[:, 1].sum(), pairs)


def rarest(chosen: np.ndarray, people: int, per: int) -> Figure:
    """Returns how many of `per` seeds show the rarest person; chosen: the person of each seed [N]."""
    return bootstrap(lambda c: np.bincount(c, minlength=people).min() * per / len(c), chosen)


def effective_people(chosen: np.ndarray) -> Figure:
    """Returns the exponential of the entropy of how often people [N] occur."""
    return bootstrap(effective_number, chosen)


def coverage(chosen: np.ndarray, people: int) -> Figure:
    """Returns the share of people that occur."""
    return bootstrap(lambda c: covered(c, people), chosen)


def changed_share(chosen: np.ndarray) -> Figure:
    """Returns the share of codes whose person is not the same in all their renderings [A, K]."""
    return bootstrap(np.mean, (chosen != chosen[:, :1]).any(axis=1))


def mean_difference(a: np.ndarray, b: np.ndarray) -> Figure:
    """Returns the mean of a - b over pairs of rows [N, ...]."""
    return bootstrap(np.mean, (a - b).reshape(len(a), -1).mean(axis=1))


def gap_share(real: np.ndarray, frozen: np.ndarray, fake: np.ndarray) -> Figure:
    """Returns mean(real - frozen) / mean(real - fake) of logits [N]: how much of a verdict is motion."""
    rows = np.stack([real - frozen, real - fake], axis=1)
    return bootstrap(lambda r: r[:, 0].sum() / r[:, 1].sum(), rows)


def nearest_distance(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the distance [N] of features [N, D] to the nearest of a reference [M, D]."""
    a, b = features.astype(np.float64), reference.astype(np.float64)
    square = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(square.min(axis=1), 0))


def share_above(distances: np.ndarray, between_reals: np.ndarray, quantile: float = 0.99) -> Figure:
    """Returns the share of distances above a quantile of those between reals."""
    return bootstrap(lambda d, r: (d > np.quantile(r, quantile)).mean(), distances, between_reals)
