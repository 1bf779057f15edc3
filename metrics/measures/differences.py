"""Motion as differences of frames: how it is distributed, and how much a motion code changes it.

Most of the difference of two frames is often the camera's. Two measures keep it small without labels: the
frames are close in time, since lids and lips are faster than cameras, and what a shift, turn, stretch and
shear of the whole image explains is taken away. Both sides are filmed along the same camera paths.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from metrics.base import Context, Metric, Outcome, Sample, standard_error
from metrics.measures.frechet import bootstrap_frechet, frechet_distance, halves_floor
from metrics.measures.motion import luma

Array = NDArray[np.float64]

STEP = 3  # frames between the two of a pair: 0.12 s at 25 frames a second
_SIZE, _BORDER = 32, 2  # pixels of a side of what is compared, and how many of them at the edge are not
_REFINEMENTS = 4  # of the motion of the whole image
_DIRECTIONS = 24  # of the space in which real differences vary most
_ROUNDS = 10  # of the bootstrap


def _frechet_of_differences(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    real, fake = reals.stack('x').astype(np.float64), fakes.stack('x').astype(np.float64)
    pairs, seed = real.shape[1], context.settings.seed
    real_groups, fake_groups = np.repeat(reals.groups, pairs), np.repeat(np.arange(len(fake)), pairs)
    mean, directions = principal_directions(real.reshape(-1, real.shape[-1]), _DIRECTIONS)
    sides = (x.reshape(-1, x.shape[-1]) - mean for x in (real, fake))
    (a, real_outside), (b, outside) = (_inside(x, directions) for x in sides)
    variance = a.var(axis=0).sum()
    if variance == 0:
        return Outcome()  # real videos in which nothing moves
    floor = halves_floor(a, seed, real_groups) if len(set(reals.groups)) > 3 else np.nan
    details = {
        'floor': float(floor / variance),
        'outside': outside,
        'real_outside': real_outside,
        'energy': float(np.mean(fake**2) / np.mean(real**2)),
    }
    error = bootstrap_frechet(a, b, _ROUNDS, seed, real_groups, fake_groups)
    return Outcome(float(frechet_distance(a, b) / variance), float(error / variance), details)


def _diversity(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    distances, correlation = motions_of_people(fakes)
    real_distances, _ = motions_of_people(reals)
    if not len(distances):
        return Outcome()
    value = float(np.mean(distances))
    real = float(np.mean(real_distances)) if len(real_distances) else np.nan
    details = {'real': real, 'of_real': value / real if real else np.nan, 'correlation': correlation}
    return Outcome(value, standard_error(distances), details)


@Metric(
    name='diversity',
    on='clips',
    title='how far motions of one person differ, gray levels of 255',
    goal='should be as of real videos',
    reduce=_diversity,
    films='motions',
    least_frames=STEP + 1,
)
@Metric(
    name='fmd',
    on='clips',
    title='Frechet distance of frame differences, over the variance of real ones',
    goal='lower is better, 1 = nothing moves',
    example='fmd512',
    reduce=_frechet_of_differences,
    compares=True,
    least_frames=STEP + 1,
)
def differences(frames: NDArray[np.uint8], context: Context) -> Mapping[str, np.ndarray]:
    """Takes the differences of pairs of frames STEP apart, one after the other: `x` [P, pixels]."""
    small = luma(frames, _SIZE)[1].astype(np.float64)
    starts = range(0, len(small) - STEP, STEP + 1)
    inner = slice(_BORDER, -_BORDER)
    x = [(aligned(small[i], small[i + STEP]) - small[i])[inner, inner].ravel() for i in starts]
    return {'x': np.array(x, dtype=np.float32)}


def aligned(before: Array, after: Array) -> Array:
    """Returns `after` [H, W] moved as a whole so that it is most like `before`: the rest is motion within.

    The affine map (shift, turn, stretch, shear) is found by Gauss-Newton steps on squared differences.
    """
    size = np.array(before.shape)
    place = np.indices(before.shape, dtype=np.float64)  # (down, right) in pixels
    basis = np.stack([np.ones(before.shape), *((place - (size - 1)[:, None, None] / 2) / size.max())])
    flow, moved = np.zeros((2, 3)), after
    for _ in range(_REFINEMENTS):
        slopes = np.gradient((before + moved) / 2)
        design = np.concatenate([slope * basis for slope in slopes]).reshape(6, -1)
        normal = design @ design.T
        damping = 1e-4 * np.trace(normal) / 6 + 1e-9  # a plain image does not move
        step = np.linalg.solve(normal + damping * np.eye(6), design @ (before - moved).ravel())
        flow += step.reshape(2, 3)
        moved = map_coordinates(after, place + np.tensordot(flow, basis, 1), order=1, mode='nearest')
    return moved


def principal_directions(x: Array, count: int) -> tuple[Array, Array]:
    """Returns the mean [D] of x [N, D] and the directions of most variance, if any [D, at most count]."""
    mean = x.mean(axis=0)
    centred = x - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)  # in rising order
    rank = int((values > 1e-10 * values[-1]).sum())
    return mean, vectors[:, ::-1][:, : min(count, rank)]


def _inside(centred: Array, directions: Array) -> tuple[Array, float]:
    """Returns coordinates [N, K] along directions, and the share of the energy of x [N, D] beside them."""
    inside, energy = centred @ directions, (centred**2).sum()
    return inside, float(1 - (inside**2).sum() / energy) if energy else 0.0


def motions_of_people(sample: Sample) -> tuple[Array, float]:
    """Returns the rms distance of two motions of each person who has several [P], and their correlation.

    1 = all motions of a person are the same, 0 = they have nothing in common. Of a clip one piece counts.
    """
    items: dict[int, dict[int, Sequence[float]]] = {}
    for record, group, person in zip(sample.records, sample.groups, sample.people, strict=True):
        items.setdefault(person, {}).setdefault(group, np.ravel(record['x']).astype(np.float64))
    several = [np.array(list(x.values())) for x in items.values() if len(x) > 1]
    # half the mean square distance of two is the variance that divides by n - 1
    variances = np.array([x.var(axis=0, ddof=1).mean() for x in several])
    energy = float(np.mean([np.mean(x**2) for x in several])) if several else 0.0
    correlation = 1 - float(variances.mean()) / energy if energy else np.nan
    return np.sqrt(2 * variances), correlation
