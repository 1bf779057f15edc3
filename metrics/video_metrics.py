"""Metrics of videos along real cameras: FVD, FID, KID, motion, flicker."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dnnlib.util import UserError
from metrics.base import Context, Feature, Metric, Outcome, Sample, exact_network, mean_outcome
from metrics.measures.consistency import Degenerate
from metrics.measures.frechet import bootstrap_frechet, frechet_distance, halves_floor, kernel_distance
from metrics.measures.motion import flicker, motion_magnitude
from metrics.records.store import Record

_ROUNDS = 10  # of the bootstrap; seconds each for thousands of long features
_LEAST_HALVES = 4  # real videos that can be split in halves with a spread
_KID_SCALE = 1000  # KID is reported times 1000


def _video_feature(context: Context) -> Feature:
    return Feature(_network_key(context), lambda _, frames: _run(context, frames))


def _frame_feature(context: Context) -> Feature:
    def compute(i: int, frames: np.ndarray) -> Record:
        return _run(context, frames[i % len(frames)])  # every moment of a video is judged equally often

    return Feature(_network_key(context) | {'frame': 'i mod T'}, compute)


def _network_key(context: Context) -> dict[str, Any]:
    detector, device = context.detector, context.settings.device.type
    return {
        'detector': detector.info.name,
        'kind': detector.kind,
        'sha256': detector.sha256,
        'device': device,
    }


def _run(context: Context, pictures: np.ndarray) -> Record:
    """Runs the feature network on one video [T, H, W, 3] or picture [H, W, 3]."""
    inputs = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, -1, -3)))[None]
    try:
        output = exact_network(context.detector.network, inputs.to(context.settings.device))
    except ValueError as err:  # not every network takes every number of frames
        raise UserError(f'{context.request.name}: {err}') from err
    features = output[0].float().cpu().numpy()
    return {'x': features} if np.isfinite(features).all() else 'the features are not finite'


def _frechet(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    fake, real, groups = fakes.stack('x'), reals.stack('x'), reals.good_groups()
    seed = context.settings.seed
    floor = halves_floor(real, seed, groups) if len(set(groups)) >= _LEAST_HALVES else math.nan
    error = bootstrap_frechet(real, fake, _ROUNDS, seed, groups)
    return Outcome(frechet_distance(real, fake), error, {'floor': floor})


def _kernel(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    value, error = kernel_distance(reals.stack('x'), fakes.stack('x'), context.settings.seed)
    return Outcome(_KID_SCALE * value, _KID_SCALE * error)


def _single(name: str, measure: Callable[[np.ndarray], dict[str, float]]) -> dict[str, Any]:
    """Returns feature and reduction of a mean over videos; real ones are measured as well."""

    def compute(_: int, frames: np.ndarray) -> Record:
        try:
            return {key: np.float64(value) for key, value in measure(frames).items()}
        except Degenerate as reason:
            return str(reason)

    def reduce(context: Context, fakes: Sample, reals: Sample) -> Outcome:
        real = mean_outcome(reals.stack('value'))
        known = {'real': real.value, 'real_standard_error': real.error} if reals.records else {}
        return mean_outcome(fakes.stack('value'), {**fakes.means(), **known})

    return {'feature': lambda context: Feature({'metric': name}, compute), 'reduce': reduce}


def _motion(frames: np.ndarray) -> dict[str, float]:
    motion = motion_magnitude(frames)
    return {'value': motion.flow_percent, 'difference': motion.difference}


VIDEO_METRICS: Mapping[str, Metric] = {
    'fvd': Metric(
        stage='clips',
        title='Frechet distance of video features',
        goal='lower is better',
        feature=_video_feature,
        reduce=_frechet,
        detector=('video', 'i3d'),
        comparing=True,
    ),
    'fid': Metric(
        stage='clips',
        title='Frechet distance of frames',
        goal='lower is better',
        feature=_frame_feature,
        reduce=_frechet,
        detector=('image', 'inception'),
        comparing=True,
    ),
    'kid': Metric(
        stage='clips',
        title='kernel distance of frames, times 1000',
        goal='lower is better',
        feature=_frame_feature,
        reduce=_kernel,
        detector=('image', 'inception'),
        comparing=True,
        least_videos=4,
    ),
    'motion': Metric(
        stage='clips',
        title='optical flow, of heads and camera, percent of the width per frame',
        goal='should be as of real videos',
        least_frames=2,
        **_single('motion', _motion),
    ),
    'expression': Metric(
        stage='clips',
        title='optical flow before a camera that stands still, percent of the width per frame',
        goal='0 = a frozen face',
        least_frames=2,
        held=True,
        **_single('motion', _motion),
    ),
    'flicker': Metric(
        stage='clips',
        title='change that is no motion, gray levels of 255',
        goal='should be as of real videos',
        least_frames=3,
        **_single('flicker', lambda frames: {'value': flicker(frames)}),
    ),
}
