"""Metrics of videos along real cameras: FVD, FID, KID, motion, flicker."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dnnlib.util import UserError
from metrics.base import Context, Feature, Metric, Outcome, mean_outcome, stack
from metrics.consistency import Degenerate
from metrics.feature_store import Record
from metrics.frechet_distance import bootstrap_frechet, frechet_of_features, halves_floor, kernel_distance
from metrics.motion import flicker, motion_magnitude

_ROUNDS = 20  # of the bootstrap
_LEAST_HALVES = 4  # videos that can be split in halves with a spread
_KID_SCALE = 1000  # KID is reported times 1000


def _video_feature(context: Context) -> Feature:
    return Feature(_network_key(context), lambda _, frames: _run(context, frames))


def _frame_feature(context: Context) -> Feature:
    def compute(i: int, frames: np.ndarray) -> Record:
        return _run(context, frames[i % len(frames)])  # every moment of a video is judged equally often

    return Feature(_network_key(context) | {'frame': 'i mod T'}, compute)


def _network_key(context: Context) -> dict[str, Any]:
    detector = context.detector
    return {'detector': detector.info.name, 'kind': detector.kind, 'sha256': detector.sha256}


def _run(context: Context, pictures: np.ndarray) -> Record:
    """Runs the feature network on one video [T, H, W, 3] or picture [H, W, 3]."""
    inputs = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, -1, -3)))[None]
    try:
        with torch.no_grad():
            output = context.detector.network(inputs.to(context.settings.device))
    except ValueError as err:  # not every network takes every number of frames
        raise UserError(f'{context.request.name}: {err}') from err
    features = output[0].float().cpu().numpy()
    return {'x': features} if np.isfinite(features).all() else 'the features are not finite'


def _frechet(context: Context, fakes: list[Record], reals: list[Record]) -> Outcome:
    fake, real = stack(fakes, 'x'), stack(reals, 'x')
    if min(len(fake), len(real)) < 2:
        return Outcome(math.nan, math.nan)
    seed = context.settings.seed
    floor = halves_floor(real, seed) if len(real) >= _LEAST_HALVES else math.nan
    error = bootstrap_frechet(real, fake, _ROUNDS, seed)
    return Outcome(frechet_of_features(real, fake), error, {'floor': floor})


def _kernel(context: Context, fakes: list[Record], reals: list[Record]) -> Outcome:
    fake, real = stack(fakes, 'x'), stack(reals, 'x')
    if min(len(fake), len(real)) < _LEAST_HALVES:
        return Outcome(math.nan, math.nan)
    value, error = kernel_distance(real, fake, context.settings.seed)
    return Outcome(_KID_SCALE * value, _KID_SCALE * error)


def _single(name: str, measure: Callable[[np.ndarray], dict[str, float]]) -> dict[str, Any]:
    """Returns feature and reduction of a mean over videos; real ones are measured as well."""

    def compute(_: int, frames: np.ndarray) -> Record:
        try:
            return {key: np.float64(value) for key, value in measure(frames).items()}
        except Degenerate as reason:
            return str(reason)

    def reduce(context: Context, fakes: list[Record], reals: list[Record]) -> Outcome:
        real = mean_outcome(stack(reals, 'value'))
        known = {'real': real.value, 'real_standard_error': real.error} if reals else {}
        return mean_outcome(stack(fakes, 'value'), known)

    return {'feature': lambda context: Feature({'metric': name}, compute), 'reduce': reduce}


def _motion(frames: np.ndarray) -> dict[str, float]:
    motion = motion_magnitude(frames)
    return {'value': motion.flow_percent, 'difference': motion.difference}


VIDEO_METRICS: Mapping[str, Metric] = {
    'fvd': Metric(
        stage='clips',
        title='Frechet distance of video features',
        goal='lower',
        feature=_video_feature,
        reduce=_frechet,
        detector=('video', 'i3d'),
        comparing=True,
    ),
    'fid': Metric(
        stage='clips',
        title='Frechet distance of frames',
        goal='lower',
        feature=_frame_feature,
        reduce=_frechet,
        detector=('image', 'inception'),
        comparing=True,
    ),
    'kid': Metric(
        stage='clips',
        title='kernel distance of frames, times 1000',
        goal='lower',
        feature=_frame_feature,
        reduce=_kernel,
        detector=('image', 'inception'),
        comparing=True,
    ),
    'motion': Metric(
        stage='clips',
        title='optical flow, percent of the width per frame',
        goal='as real',
        least_frames=2,
        **_single('motion', _motion),
    ),
    'flicker': Metric(
        stage='clips',
        title='change that is no motion, gray levels of 255',
        goal='as real',
        least_frames=3,
        **_single('flicker', lambda frames: {'value': flicker(frames)}),
    ),
}
