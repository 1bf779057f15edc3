"""Metrics of generated clips seen at two times from two yaws: ID, CD, WE, depth variance, geometry."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from metrics.base import Context, Feature, Metric, Outcome, Sample, exact_network, mean_outcome
from metrics.detectors.face_alignment import align_faces, find_faces, project_face_points
from metrics.measures.consistency import (
    Degenerate,
    MultiView,
    chamfer_distance,
    identity_similarity,
    warping_error,
)
from metrics.measures.geometry import ERRORS, geometry_errors
from metrics.measures.motion import depth_variance
from metrics.records.digests import tensors_digest
from metrics.records.store import Record

NO_FACE = 'no face found'
_CROP = 112  # pixels of what identity networks see

Measure = Callable[[MultiView], dict[str, float]]  # the entry 'value' is the metric, others are details


def _feature(key: Mapping[str, Any], measure: Measure) -> Feature:
    def compute(_: int, views: MultiView) -> Record:
        try:
            values = measure(views)
        except Degenerate as reason:
            return str(reason)
        return {name: np.float64(value) for name, value in values.items()}

    return Feature(key, compute)


def _reduce(context: Context, fakes: Sample, _: Sample) -> Outcome:
    return mean_outcome(fakes.stack('value'), fakes.means())


def _reduce_chamfer(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    outcome = _reduce(context, fakes, reals)
    if context.settings.protocol == 'paper':
        return outcome
    count = len(fakes.good_groups())  # the released script prints the sum over all videos
    return Outcome(outcome.value * count, outcome.error * count, {**outcome.details, 'mean': outcome.value})


def _identity(context: Context) -> Feature:
    detector, settings = context.detector, context.settings

    def measure(views: MultiView) -> dict[str, float]:
        crops = _crops(context, views).to(settings.device)
        parts = identity_similarity(exact_network(detector.network, crops).cpu())._asdict()
        return {'value': parts.pop('mean'), **parts}

    key = {'detector': detector.info.name, 'sha256': detector.sha256, 'protocol': settings.protocol}
    key |= {'device': settings.device.type, 'landmarks': settings.landmarks}
    return _feature(key | {'faces': context.faces.sha256 if context.faces else None}, measure)


def _crops(context: Context, views: MultiView) -> Tensor:
    """Returns what the identity network sees of four views, float32 [4, 3, 112, 112] in [0, 255]."""
    if (
        context.settings.protocol == 'released'
    ):  # the whole frame, no alignment; the way of resizing is inferred
        size = (_CROP, _CROP)
        return torch.nn.functional.interpolate(views.image.float(), size, mode='bilinear', antialias=True)
    if context.settings.landmarks == 'camera':
        points = project_face_points(views.cameras, views.image.shape[-1])
    else:
        found = find_faces(views.image.to(context.settings.device), context.faces.network)
        if any(face is None for face in found):
            raise Degenerate(NO_FACE)
        points = torch.stack(found).cpu()
    return align_faces(views.image, points)


def _chamfer(context: Context) -> Feature:
    protocol, size = context.settings.protocol, context.bin_size
    if size is None and protocol == 'paper':
        raise UserError(
            f'{context.request.name}: these views do not say the distance of samples along a ray; add '
            'bin_size (in scene units) to their files, or use --protocol released'
        )
    key = {'metric': 'cd', 'protocol': protocol, 'bin_size': size}
    return _feature(key, lambda views: chamfer_distance(views, size, protocol)._asdict())


def _warping(context: Context) -> Feature:
    protocol = context.settings.protocol
    return _feature(
        {'metric': 'we', 'protocol': protocol}, lambda views: warping_error(views, protocol)._asdict()
    )


def _depth_variance(context: Context) -> Feature:
    def measure(views: MultiView) -> dict[str, float]:
        parts = zip(views.depth, views.opacity, views.cameras, strict=True)
        return {'value': float(np.mean([depth_variance(*part) for part in parts]))}

    return _feature({'metric': 'depthvar'}, measure)


def _geometry(context: Context) -> Feature:
    estimator = context.estimator()

    def measure(views: MultiView) -> dict[str, float]:
        errors = geometry_errors(estimator, views.image, views.cameras, views.depth, views.opacity, views.xyz)
        for reason in errors:
            if isinstance(reason, str):
                raise Degenerate(reason)
        means = {name: float(np.mean([error[name] for error in errors])) for name in ERRORS}
        return {'value': means.pop('depth_error'), **means}

    return _feature(
        {'metric': 'geometry', 'estimator': tensors_digest(estimator.state_dict().items())}, measure
    )


def _reduce_geometry(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    outcome, floor = _reduce(context, fakes, reals), context.estimator().floor
    floors = {'floor': floor['depth_error'], 'floor_normal_error_deg': floor['normal_error_deg']}
    return outcome._replace(details={**outcome.details, **floors})


VIEW_METRICS: Mapping[str, Metric] = {
    'id': Metric(
        stage='views',
        title='identity similarity over times and views',
        goal='higher is better',
        feature=_identity,
        reduce=_reduce,
        detector=('identity', 'arcface'),
    ),
    'cd': Metric(
        stage='views',
        title='Chamfer distance of point clouds, squared bins (released: scene units)',
        goal='lower is better',
        feature=_chamfer,
        reduce=_reduce_chamfer,
    ),
    'we': Metric(
        stage='views',
        title='warping error, gray levels of 255',
        goal='lower is better',
        feature=_warping,
        reduce=_reduce,
    ),
    'depthvar': Metric(
        stage='views',
        title='variance of depth about the best plane, squared scene units',
        goal='0 = flat',
        feature=_depth_variance,
        reduce=_reduce,
    ),
    'geometry': Metric(
        stage='views',
        title='depth error against synthetic truth, scene units',
        goal='lower is better',
        feature=_geometry,
        reduce=_reduce_geometry,
    ),
}
