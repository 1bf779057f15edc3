"""Guards against scores that a frozen, flickering or flat head would win: motion, flicker, depth variance."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.registration import optical_flow_ilk
from torch import Tensor

from dnnlib.util import Skip
from metrics.base import Context, Metric
from metrics.measures.consistency import OPAQUE, MultiView
from training import camera

Clip = NDArray[np.uint8]  # square frames [T, H, W, 3]

FLOW_RESOLUTION = 64  # images are reduced to this size for flow and flicker
_SMOOTHING = 1.0  # pixels of FLOW_RESOLUTION, before the flow
_FLOW_RADIUS = 7  # pixels of FLOW_RESOLUTION that share one flow
_FLOW_STEPS = 5  # refinements at each of the scales
_LUMA = (0.299, 0.587, 0.114)
_MIN_RAYS = 64  # opaque rays, with fewer a plane says nothing about a shape


@Metric(
    name='expression',
    on='clips',
    title='optical flow before a camera that stands still, percent of the width per frame',
    goal='0 = a frozen face',
    least_frames=2,
    films='held',
)
@Metric(
    name='motion',
    on='clips',
    title='optical flow, of heads and camera, percent of the width per frame',
    goal='should be as of real videos',
    least_frames=2,
)
def motion(frames: Clip, context: Context) -> Mapping[str, float]:
    """Computes `motion_magnitude` of one clip."""
    magnitude = motion_magnitude(frames)
    return {'value': magnitude.flow_percent, 'difference': magnitude.difference}


@Metric(
    name='flicker',
    on='clips',
    title='change that motion does not explain, gray levels of 255',
    goal='should be as of real videos',
    least_frames=3,
)
def unexplained_change(frames: Clip, context: Context) -> Mapping[str, float]:
    """Computes `flicker` of one clip."""
    return {'value': flicker(frames)}


@Metric(
    name='depthvar',
    on='views',
    title='variance of depth about the best plane, squared scene units',
    goal='0 = flat',
)
def mean_depth_variance(views: MultiView, context: Context) -> Mapping[str, float]:
    """Computes the mean `depth_variance` of the four views."""
    parts = zip(views.depth, views.opacity, views.cameras, strict=True)
    return {'value': float(np.mean([depth_variance(*part) for part in parts]))}


class MotionMagnitude(NamedTuple):
    """How much a clip moves from frame to frame."""

    flow_percent: float  # mean optical flow where there is something to see, percent of the width per frame
    difference: float  # mean absolute difference of the luma of consecutive frames, gray levels (0-255)


def motion_magnitude(frames: Clip) -> MotionMagnitude:
    """Measures motion, of the head and of the camera alike.

    The flow is Lucas-Kanade's (skimage.registration.optical_flow_ilk) on luma at 64 x 64, of frames brought
    to mean 0 and variance 1, so that changes of brightness and contrast do not count. Its mean is weighted by
    the squared gradient of the image: where an image is plain, flow cannot be measured and noise would
    pass for motion. `difference` is less robust, but needs no model: it counts whatever changes.

    Args:
        frames: at least two square frames, uint8 [T, H, W, 3].
    """
    full, reduced = luma(frames)
    flows = [_flow(a, b) for a, b in zip(reduced[:-1], reduced[1:], strict=True)]
    weights = [_gradient_energy(a) for a in reduced[:-1]]
    total = float(np.sum(weights))
    moved = sum(float((np.hypot(*f) * w).sum()) for f, w in zip(flows, weights, strict=True))
    percent = 100 / FLOW_RESOLUTION * moved / total if total > 0 else 0.0  # plain images show no motion
    return MotionMagnitude(percent, float(np.abs(np.diff(full, axis=0)).mean()))


def flicker(frames: Clip) -> float:
    """Returns the mean of |x[t-1] - 2 x[t] + x[t+1]| / 2 in gray levels (0-255) that motion does not explain.

    x is luma at 64 x 64. At each pixel it is taken along the optical flow and at rest, and the smaller one
    counts: a shift of a texture is not flicker, nor is a plain area or still background, whose flow is wrong.
    Pixels that leave the image do not count. All brightness higher by a in every other frame gives a, or
    somewhat less in an image that moves.

    Args:
        frames: at least three square frames, uint8 [T, H, W, 3].

    Raises:
        Skip: if no place is seen in three frames.
    """
    _, reduced = luma(frames)
    values = []
    for before, now, after in zip(reduced[:-2], reduced[1:-1], reduced[2:], strict=True):
        moved = _along(before, _flow(now, before)) - 2 * now + _along(after, _flow(now, after))
        values.append(np.minimum(np.abs(moved), np.abs(before - 2 * now + after)) / 2)
    if np.isnan(values).all():
        raise Skip('everything leaves the image from frame to frame')
    return float(np.nanmean(values))


def depth_variance(depth: Tensor, opacity: Tensor, label: Tensor | None = None) -> float:
    """Returns the variance of depth about the best-fitting plane, scene units squared.

    The depth is that along the optical axis, of opaque rays; the plane is any plane in space, by least
    squares. A flat image, however it is turned, has 0.

    Args:
        depth: distance along the unit ray of one view, scene units, [..., h, h] with h * h elements.
        opacity: as depth.
        label: its camera, of which only the intrinsics matter, [25]; by default those of training/camera.py.

    Raises:
        Skip: if fewer than 64 rays are opaque, they lie in a line, or a depth is not finite.
    """
    size = depth.shape[-1]
    opaque = (opacity.flatten() > OPAQUE).cpu().numpy()
    if opaque.sum() < _MIN_RAYS:
        raise Skip('a view has too few opaque points')
    _, intrinsics = camera.unpack_label(camera.front_label() if label is None else label)
    centres = (np.arange(size) + 0.5) / size
    u, v = (grid.ravel()[opaque] for grid in np.meshgrid(centres, centres))
    rays = np.linalg.solve(intrinsics.double().cpu().numpy(), np.stack([u, v, np.ones_like(u)]))
    z = depth.flatten().double().cpu().numpy()[opaque] / np.linalg.norm(rays, axis=0)
    if not np.isfinite(z).all():
        raise Skip('a view has depths that are not finite')
    if np.linalg.matrix_rank(rays) < 3:  # a plane through the camera would fit anything
        raise Skip('the opaque rays of a view lie in a line')
    design = np.stack([rays[0] * z, rays[1] * z, np.ones_like(z)], axis=1)
    solution = np.linalg.lstsq(design, z, rcond=None)[0]
    return float(((z - design @ solution) ** 2).mean())


def luma(frames: Clip, size: int = FLOW_RESOLUTION) -> tuple[np.ndarray, np.ndarray]:
    """Returns luma float32 [T, H, W] in gray levels (0-255), and reduced to [T, size, size]."""
    full = frames.astype(np.float32) @ np.float32(_LUMA)
    reduced = torch.nn.functional.interpolate(
        torch.from_numpy(full)[:, None], size=(size, size), mode='bilinear', antialias=True
    )
    return full, reduced[:, 0].numpy()


def _standardised(image: np.ndarray) -> np.ndarray:
    deviation = image.std()
    scale = 1 / deviation if deviation > 0.5 else 0.0  # less than rounding to 8 bit: nothing to see
    return gaussian_filter((image - image.mean()) * scale, _SMOOTHING)


def _flow(reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Returns the flow [2, H, W] in pixels (down, right) with moving(x + flow) = reference(x)."""
    images = (_standardised(reference), _standardised(moving))
    return optical_flow_ilk(*images, radius=_FLOW_RADIUS, num_warp=_FLOW_STEPS, dtype=np.float32)


def _gradient_energy(image: np.ndarray) -> np.ndarray:
    down, right = np.gradient(_standardised(image))
    return gaussian_filter(down**2 + right**2, 2 * _SMOOTHING)


def _along(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Returns the image at the places that pixels moved to, NaN outside of it."""
    places = np.indices(image.shape) + flow
    values = map_coordinates(image, places, order=3, mode='nearest')  # linear would blur, which counts
    inside = (places >= -0.5) & (places <= FLOW_RESOLUTION - 0.5)
    return np.where(inside.all(axis=0), values, np.nan)
