"""Which frames of a clip are drawn, and at which times fakes are. Source: PV3D as released, StyleGAN-V."""

import numpy as np
import torch
from torch import Tensor


def sample_indices(rng: np.random.Generator, counts: np.ndarray, distinct: bool) -> np.ndarray:
    """Draws sorted pairs [N, 2] of frame indices, floor(count * X) and floor(count * Y).

    X ~ Beta(2, 1) and Y ~ Beta(1, 2) are independent.

    Args:
        rng: source of the draw.
        counts: number of frames to choose from, at least 2 each, [N].
        distinct: draw again until the two differ; False, as released, leaves 4.17 % equal (of 16).
    """
    pairs = np.zeros((len(counts), 2), dtype=np.int64)
    redo = np.arange(len(counts))
    while len(redo):
        x, y = rng.beta(2, 1, len(redo)), rng.beta(1, 2, len(redo))
        drawn = np.stack([x, y], axis=1) * counts[redo, None]
        pairs[redo] = np.sort(np.minimum(drawn.astype(np.int64), counts[redo, None] - 1), axis=1)
        redo = redo[pairs[redo, 0] == pairs[redo, 1]] if distinct else redo[:0]
    return pairs


def sample_times(rng: np.random.Generator, n: int, span: int, distinct: bool, lattice: bool) -> Tensor:
    """Draws n pairs of increasing times in [0, 1] for fake frames, float32 [n, 2].

    Args:
        rng: source of the draw.
        n: number of pairs.
        span: frames of a span; times of the lattice are multiples of 1 / (span - 1).
        distinct: see `sample_indices`; of no effect on continuous times, which never meet.
        lattice: draw as for real frames; False draws (min, max) of X and Y themselves, as released.
    """
    if lattice:
        times = sample_indices(rng, np.full(n, span), distinct) / (span - 1)
    else:
        times = np.sort(np.stack([rng.beta(2, 1, n), rng.beta(1, 2, n)], axis=1), axis=1)
    return torch.from_numpy(times.astype(np.float32))


def sample_distances(rng: np.random.Generator, counts: np.ndarray, most: int) -> np.ndarray:
    """Draws sorted pairs [N, 2] of frame indices at distances 1, 2, 4 ... `most`, all equally likely.

    The first of two is anywhere. Where a clip is too short for a distance the others take its part; fakes,
    whose pairs come from the same clips, then have as few. Source: StyleGAN-V.

    Args:
        rng: source of the draw.
        counts: number of frames to choose from, at least 2 each, [N].
        most: the largest distance, a power of two.
    """
    powers = np.log2(np.minimum(counts - 1, most)).astype(np.int64) + 1
    distances = 2 ** rng.integers(powers)
    first = rng.integers(counts - distances)
    return np.stack([first, first + distances], axis=1)
