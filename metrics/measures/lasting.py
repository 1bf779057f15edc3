"""Whether long videos stay alive and stay one person: motion by segment, recurrence, seams, identity.

The first three film a camera that stands still, so that all change is the head's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from dnnlib.util import Skip
from metrics.base import Context, Metric, Outcome, Sample, exact_network
from metrics.detectors.face_alignment import CROP, align_faces, find_faces
from metrics.measures.motion import Clip, luma

Array = NDArray[np.float64]

SEGMENT = 16  # frames whose motion is one figure
LAGS = (15, 31, 63, 127)  # frames after the first whose identity is compared with it
_LEAST_LAG = 8  # frames: a return that is faster is a movement
_ROUNDS = 50  # of the bootstrap
_CONTROLS = ('frozen', 'looped')


def _bootstrapped(value: Callable[[Array], float], x: Array, seed: int) -> tuple[float, float]:
    """Returns a function of rows x [N, ...] and its standard error over draws of rows."""
    rng = np.random.default_rng(seed)
    draws = [value(x[rng.integers(len(x), size=len(x))]) for _ in range(_ROUNDS)]
    return value(x), float(np.std(draws, ddof=1))


def _last_over_first(segments: Array) -> float:
    first, last = segments.mean(axis=0)[[0, -1]]
    return float(last / first) if first > 0 else 0.0


def _lasting(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    x = fakes.stack('segments')
    details = {f'segment{i}': float(mean) for i, mean in enumerate(x.mean(axis=0), 1)}
    return Outcome(*_bootstrapped(_last_over_first, x, context.settings.seed), details)


@Metric(
    name='lasting',
    on='clips',
    title='motion in the last 16 frames over that in the first',
    goal='1; 0 = heads come to rest',
    example='lasting64_128f',
    reduce=_lasting,
    films='held',
    controls=_CONTROLS,
    names_frames=True,
    least_frames=2 * SEGMENT,
)
def motion_of_segments(frames: Clip, context: Context) -> Mapping[str, Array]:
    """Computes `segment_motion` of one clip."""
    return {'segments': segment_motion(frames)}


def segment_motion(frames: Clip) -> Array:
    """Returns the mean absolute change from frame to frame, in gray levels, of each 16 frames [T // 16]."""
    change = np.abs(np.diff(luma(frames)[1], axis=0)).mean(axis=(1, 2))
    starts = range(0, len(frames) - SEGMENT + 1, SEGMENT)
    return np.array([change[s : s + SEGMENT - 1].mean() for s in starts], np.float64)


def _strongest_return(curves: Array) -> tuple[float, int]:
    """Returns by how much autocorrelation rises again beyond its lowest value before, and at which lag."""
    curve = curves.sum(axis=0)
    curve = curve / curve[0] if curve[0] > 0 else curve
    rise = (curve - np.minimum.accumulate(curve))[_LEAST_LAG:]
    return float(rise.max()), int(rise.argmax()) + _LEAST_LAG


def _recurrence(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    x = fakes.stack('curve')
    found = _bootstrapped(lambda curves: _strongest_return(curves)[0], x, context.settings.seed)
    return Outcome(*found, {'lag': float(_strongest_return(x)[1])})


@Metric(
    name='recurrence',
    on='clips',
    title='rise of the autocorrelation of frames at a later lag',
    goal='0; 1 = the video repeats; beware of a lag that is a knot of the motion path',
    example='recurrence64_128f',
    reduce=_recurrence,
    films='held',
    controls=_CONTROLS,
    names_frames=True,
    least_frames=4 * _LEAST_LAG,
)
def autocovariance_of_frames(frames: Clip, context: Context) -> Mapping[str, Array]:
    """Computes `autocovariance` of one clip."""
    return {'curve': autocovariance(frames)}


def autocovariance(frames: Clip) -> Array:
    """Returns the mean product of frames, less their mean, at lags 0 to T / 2 frames, squared gray levels."""
    x = luma(frames)[1].reshape(len(frames), -1).astype(np.float64)
    x -= x.mean(axis=0)
    lags = range(len(x) // 2 + 1)
    return np.array([(x[: len(x) - lag] * x[lag:]).mean() for lag in lags])


def _seam(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    def ratio(x: Array) -> float:
        at, elsewhere = x.mean(axis=0)
        return float(at / elsewhere) if elsewhere > 0 else 0.0

    return Outcome(*_bootstrapped(ratio, fakes.stack('jerk'), context.settings.seed))


@Metric(
    name='seam',
    on='clips',
    title='change of speed at the knots of the motion path over that elsewhere',
    goal='1 = no seam; 0 = nothing moves',
    example='seam64_128f',
    reduce=_seam,
    films='held',
    controls=_CONTROLS,
    depends_on=('seam',),
    names_frames=True,
    least_frames=2 * SEGMENT,
)
def jerk(frames: Clip, context: Context) -> Mapping[str, Array]:
    """Computes `jerk_at_seams` of one clip."""
    return {'jerk': jerk_at_seams(frames, context.seam)}


def jerk_at_seams(frames: Clip, seam: float) -> Array:
    """Returns the mean |x[t-1] - 2 x[t] + x[t+1]| in gray levels at seams and elsewhere [2].

    Args:
        frames: uint8 [T, H, W, 3].
        seam: frames from one to the next, the first of which is frame 0.

    Raises:
        Skip: if the clip has no seam, or nothing else.
    """
    change = np.abs(np.diff(luma(frames)[1], n=2, axis=0)).mean(axis=(1, 2))  # of frames 1 to T - 2
    seams = np.round(np.arange(1, len(frames) / seam) * seam).astype(int)
    at = np.isin(np.arange(1, len(frames) - 1), seams)
    if at.all() or not at.any():
        raise Skip(f'{len(frames)} frames do not tell seams every {seam:g} frames from the rest')
    return np.array([change[at].mean(), change[~at].mean()], np.float64)


def _identity(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    def means(sample: Sample, prefix: str) -> dict[str, float]:
        names = sample.records[0] if sample.records else ()
        return {f'{prefix}{name}': float(np.mean(sample.stack(name))) for name in names}

    value, error = _bootstrapped(lambda x: float(x.mean()), fakes.stack('last'), context.settings.seed)
    return Outcome(value, error, means(fakes, '') | means(reals, 'real_'))


@Metric(
    name='idtime',
    on='clips',
    title='identity similarity of the first and the last frame',
    goal='should be as of real videos',
    example='idtime64_128f',
    reduce=_identity,
    detector=('identity', 'arcface'),
    depends_on=('protocol', 'landmarks'),
    names_frames=True,
    least_frames=2,
)
def identity_over_time(frames: Clip, context: Context) -> Mapping[str, Any]:
    """Compares the face of the first frame with those LAGS later, and the last one.

    Faces are found and aligned; with --landmarks camera or --protocol released frames are taken as they are.

    Raises:
        Skip: if a face is not found.
    """
    lags = {'last': len(frames) - 1, **{f'after{k}': k for k in LAGS if k < len(frames) - 1}}
    picked = np.ascontiguousarray(frames[[0, *lags.values()]])
    images = torch.from_numpy(picked).permute(0, 3, 1, 2).contiguous()
    if context.faces is None:
        crops = functional.interpolate(images.float(), (CROP, CROP), mode='bilinear', antialias=True)
    else:
        found = find_faces(images.to(context.settings.device), context.faces.network)
        if any(face is None for face in found):
            raise Skip('no face found')
        crops = align_faces(images, torch.stack(found).cpu())
    vectors = exact_network(context.detector.network, crops.to(context.settings.device)).double().cpu()
    cosines = functional.cosine_similarity(vectors[:1], vectors[1:])
    if not cosines.isfinite().all():
        raise Skip('an identity embedding is not finite')
    return dict(zip(lags, cosines.tolist(), strict=True))
