"""Error of generated depth and normals: against a network that reads both off the generated image.

A generated image has no truth. As EG3D's depth metric asks a face reconstruction network, this one asks a
small network that was trained on images with true depth and normals: synthetic data. Its own error on people
that it never saw is the floor: two values below it cannot be told apart.

Nothing is compared that one image cannot show, or that depends on the number of rays: the mean of depth does
not count, nor do the outermost pixels of a head, where rays half hit it, and all is compared at half the size
of the images, 32x32, which is the number of rays of a small generator.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnnlib.util import DataError, Skip
from metrics.base import Context, Metric, Outcome, Sample, mean
from metrics.measures.consistency import OPAQUE, MultiView
from metrics.measures.geometry_truth import Geometry, Truth, geometry_of, shrink
from viz.images import normals_from_xyz

ERRORS = ('depth_error', 'normal_error_deg', 'mask_iou', 'depth_shift')
_MIN_AREA = 0.02  # fraction of the image that a head must fill
_EVAL_BATCH = 32  # images in memory at once


class Estimate(NamedTuple):
    """What an image shows of a shape, at half its size s."""

    depth: Tensor  # distance along the unit ray, scene units [N, 1, s, s]
    normal: Tensor  # unit, world axes [N, 3, s, s]
    mask_logit: Tensor  # of the head [N, 1, s, s]


def _with_floor(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    outcome, floor = mean(context, fakes, reals), context.estimator().floor
    floors = {'floor': floor['depth_error'], 'floor_normal_error_deg': floor['normal_error_deg']}
    return outcome._replace(details={**outcome.details, **floors})


@Metric(
    name='geometry',
    on='views',
    title='depth error against synthetic truth, scene units',
    goal='lower is better',
    reduce=_with_floor,
    needs_truth=True,
)
def geometry(views: MultiView, context: Context) -> Mapping[str, float]:
    """Returns the mean errors of the four views."""
    estimator, rendered = context.estimator(), Geometry(views.depth, views.opacity, views.xyz)
    both = pairs(estimator, views.image, views.cameras, rendered)
    means = _means([compare(estimate, shown, estimator.far) for estimate, shown in both])
    return {'value': means.pop('depth_error'), **means}


@torch.no_grad()
def pairs(
    estimator: nn.Module, images: Tensor, cameras: Tensor, rendered: Geometry
) -> Iterator[tuple[Estimate, Geometry]]:
    """Yields for each image, as N = 1, what the estimator reads off it and what was rendered.

    Args:
        estimator: from load_or_train_estimator, on the device of the rest.
        images: uint8 [N, 3, H, H].
        cameras: labels of the render cameras [N, 25].
        rendered: of the images.
    """
    estimates = estimator(images, cameras)
    for i in range(len(images)):
        yield Estimate(*(x[i : i + 1] for x in estimates)), Geometry(*(x[i : i + 1] for x in rendered))


def _means(errors: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([error[name] for error in errors])) for name in ERRORS}


def compare(estimate: Estimate, rendered: Geometry, far: float) -> dict[str, float]:
    """Returns the errors of one image.

    Args:
        estimate: of one image, N = 1.
        rendered: of one image, N = 1.
        far: rendered points at this distance or beyond are background, scene units.

    Returns:
        depth_error, mean absolute difference of depth around its mean, scene units; normal_error_deg, mean
        angle, degrees; mask_iou, intersection over union of the heads; depth_shift, mean of rendered -
        estimated depth, scene units.

    Raises:
        Skip: when it cannot be measured.
    """
    size = min(estimate.depth.shape[-1], rendered.depth.shape[-1])
    if not all(x.isfinite().all() for x in (*estimate, *rendered)):
        raise Skip('the image or its depth is not finite')
    seen = ((rendered.opacity > OPAQUE) & (rendered.depth < far)).float()
    shown = (estimate.mask_logit > 0).float()
    depth = shrink(rendered.depth, size, seen) - shrink(estimate.depth, size, shown)
    xyz, expected = shrink(rendered.xyz, size, seen), shrink(estimate.normal, size, shown)
    head, face = shrink(seen, size) > 0.5, shrink(shown, size) > 0.5
    # at the outline depth is a mixture, and normals, which are differences of neighbours, are nonsense
    inner = (F.avg_pool2d(head.float(), 3, stride=1) > 0.999) & face[..., 1:-1, 1:-1]
    areas = {
        'no surface is rendered': head.float().mean(),
        'no head is recognised in the image': face.float().mean(),
        'the rendered surface is not where the image shows a head': 2 * inner.sum() / head.numel(),
    }
    for reason, area in areas.items():
        if area < _MIN_AREA:
            raise Skip(reason)
    difference = depth[..., 1:-1, 1:-1][inner].double()
    normals = normals_from_xyz(xyz)[..., 1:-1, 1:-1]
    angle = angles_deg(normals, expected[..., 1:-1, 1:-1])[inner]
    return {
        'depth_error': float((difference - difference.mean()).abs().mean()),
        'normal_error_deg': float(angle.mean()),
        'mask_iou': float((head & face).sum() / (head | face).sum()),
        'depth_shift': float(difference.mean()),
    }


def angles_deg(a: Tensor, b: Tensor) -> Tensor:
    """Returns the angles [N, 1, H, W] between vectors [N, 3, H, W] of any length, degrees."""
    a, b = a.double(), b.double()
    across = torch.linalg.cross(a, b, dim=1).norm(dim=1, keepdim=True)
    return torch.rad2deg(torch.atan2(across, (a * b).sum(dim=1, keepdim=True)))


def floor_errors(estimator: nn.Module, truth: Truth) -> dict[str, float]:
    """Returns the mean errors of a data set's own frames with their true geometry.

    Raises:
        DataError: when no frame can be measured.
    """
    good = []
    whole = (truth.image, truth.cameras, *geometry_of(truth))
    for image, cameras, *rendered in zip(*(x.split(_EVAL_BATCH) for x in whole), strict=True):
        for estimate, shown in pairs(estimator, image, cameras, Geometry(*rendered)):
            with contextlib.suppress(Skip):
                good.append(compare(estimate, shown, estimator.far))
    if not good:
        raise DataError('no frame of the synthetic data shows a head that can be measured')
    return _means(good)
