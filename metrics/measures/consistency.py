"""Consistency of a generated clip at two times and from two yaws: identity, Chamfer distance, warping error.

Each measure exists in two protocols. 'paper' is the text of appendix A.4 of PV3D, done right; 'released' is
what the authors' scripts compute, errors included, so that their numbers can be compared. Where a view cannot
be measured, `Skip` says why: a failure to be counted, never a number.

A depth map is coarser than the image, so values between its rays must be interpolated, and foreground and
background must never mix. A point of a resized cloud is made of those of the four rays around it that are
opaque, by their bilinear weights, and exists if these are more than half. A depth between four rays exists
only if all are opaque and of one surface.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from dnnlib.util import Skip
from metrics.base import Context, Metric, Outcome, Protocol, Sample, exact_network, mean
from metrics.detectors.face_alignment import CROP, align_faces, find_faces, project_face_points
from training import camera
from training.volumetric_rendering.ray_sampler import camera_rays

OPAQUE = 0.5  # rays with less opacity end nowhere [PV3D A.4]
CLOUD_RESOLUTION = 64  # [PV3D A.4]
WARP_RESOLUTION = 256  # [PV3D A.4]
SAME_SURFACE = 0.05  # scene units. Depths that differ by less are one surface: two bins of the default
# renderer (0.022) and, at depth 64 x 64, the step between neighbouring rays on a surface seen at 80 degrees;
# but much less than what hides something in a portrait (chin to neck, head to background: over 0.1).
_MIN_FRACTION = 1 / 64  # of an image: with less, a median or mean says nothing

# Order of the views: (t0, front), (t1, side), (t0, side), (t1, front).
_SAME_TIME = ((0, 2), (3, 1))  # front view first
_SAME_YAW = ((0, 3), (2, 1))
_BOTH_DIFFER = ((0, 1), (3, 2))  # front view first
_FRONT_SIDE = _SAME_TIME + _BOTH_DIFFER


class MultiView(NamedTuple):
    """One clip at two times from two yaws: (t0, front), (t1, side), (t0, side), (t1, front)."""

    image: Tensor  # uint8 [4, 3, H, H]
    depth: Tensor  # distance along the unit ray, scene units, float [4, 1, h, h]
    opacity: Tensor  # float [4, 1, h, h]
    xyz: Tensor  # world points, float [4, 3, h, h]
    cameras: Tensor  # labels [4, 25]
    times: Tensor  # t0, t1: [2]


class IdentitySimilarity(NamedTuple):
    """Mean cosines of the embeddings of pairs of views."""

    value: float  # mean over all six pairs
    same_time: float  # the yaw differs, two pairs
    same_yaw: float  # the time differs, two pairs
    both_differ: float  # two pairs


class ChamferDistance(NamedTuple):
    """Chamfer distances of pairs of views; in the protocol 'released' sums instead of means."""

    value: float  # paper: mean over six pairs; released: sum over four pairs
    same_time: float  # the two pairs of one time and two yaws, where nothing has moved
    points: float  # mean fraction of rays that are opaque


class WarpingError(NamedTuple):
    """Warping errors of pairs of a front and a side view, gray levels (0-255)."""

    value: float  # mean over four pairs
    same_time: float  # mean over the two pairs of one time, where nothing has moved
    visible: float  # mean fraction of side pixels that count


def identity_similarity(embeddings: Tensor) -> IdentitySimilarity:
    """Compares the identity of the four views, eq. 5; the same in both protocols.

    Args:
        embeddings: of an identity network, of any length, in the order of MultiView, [4, D].

    Raises:
        Skip: if an embedding is zero or not finite.
    """
    vectors = embeddings.double()
    lengths = vectors.norm(dim=1, keepdim=True)
    if not lengths.isfinite().all() or (lengths == 0).any():
        raise Skip('an identity embedding is zero or not finite')
    cosines = (vectors / lengths) @ (vectors / lengths).T
    same_time, same_yaw, both = (
        sum(float(cosines[pair]) for pair in pairs) / 2 for pairs in (_SAME_TIME, _SAME_YAW, _BOTH_DIFFER)
    )
    return IdentitySimilarity((same_time + same_yaw + both) / 3, same_time, same_yaw, both)


@Metric(
    name='id',
    on='views',
    title='identity similarity over times and views',
    goal='higher is better',
    detector=('identity', 'arcface'),
    depends_on=('protocol', 'landmarks'),
)
def identity(views: MultiView, context: Context) -> Mapping[str, Any]:
    """Compares the embeddings of the four views."""
    crops = _face_crops(views, context).to(context.settings.device)
    return identity_similarity(exact_network(context.detector.network, crops).cpu())._asdict()


def _face_crops(views: MultiView, context: Context) -> Tensor:
    """Returns what the identity network sees of four views, float32 [4, 3, 112, 112] in [0, 255]."""
    if context.settings.protocol == 'released':  # whole frames, not aligned; inferred: how they are resized
        return functional.interpolate(views.image.float(), (CROP, CROP), mode='bilinear', antialias=True)
    if context.settings.landmarks == 'camera':
        return align_faces(views.image, project_face_points(views.cameras, views.image.shape[-1]))
    found = find_faces(views.image.to(context.settings.device), context.faces.network)
    if any(face is None for face in found):
        raise Skip('no face found')
    return align_faces(views.image, torch.stack(found).cpu())


def chamfer_distance(views: MultiView, bin_size: float | None, protocol: Protocol) -> ChamferDistance:
    """Compares the points that the four views see, eq. 6: medians of squared nearest distances, both ways.

    'paper': clouds of 64 x 64 opaque points, in units of the renderer's bin; all six pairs; their mean.
    Motion adds to it: four of the six pairs are of different times.

    'released': clouds as they are, in scene units; the pairs (0,2), (3,1), (0,1), (3,2); their sum. Only
    opaque points have a distance, but any point of the other cloud can be the nearest, opaque or not. Of an
    even number of distances the lower middle one is the median. The script's total is the sum over clips too,
    which is left to the caller.

    Args:
        views: the clip.
        bin_size: distance of the renderer's coarse samples in scene units; 'released' ignores it.
        protocol: 'paper' or 'released'.

    Raises:
        Skip: if a view has too few opaque points (paper: under 1 of 64; released: none), or points that
            are not finite.
    """
    if protocol == 'paper':
        clouds = [_cloud(p, o[0] > OPAQUE) / bin_size for p, o in zip(views.xyz, views.opacity, strict=True)]
        fraction = float(np.mean([len(c) for c in clouds])) / CLOUD_RESOLUTION**2
        trees = [cKDTree(c) for c in clouds]
        pairs = {p: _chamfer(trees, clouds, p, np.median) for p in _FRONT_SIDE + _SAME_YAW}
        return ChamferDistance(
            sum(pairs.values()) / len(pairs), sum(pairs[p] for p in _SAME_TIME) / len(_SAME_TIME), fraction
        )
    points = views.xyz.flatten(2).transpose(1, 2).double().cpu().numpy()
    opaque = (views.opacity > OPAQUE).flatten(1).cpu().numpy()
    if not opaque.any(axis=1).all():
        raise Skip('a view has no opaque point')
    if not np.isfinite(points).all():
        raise Skip('a view has points that are not finite')
    trees = [cKDTree(c) for c in points]
    queries = [p[o] for p, o in zip(points, opaque, strict=True)]
    pairs = {p: _chamfer(trees, queries, p, _lower_median) for p in _FRONT_SIDE}
    return ChamferDistance(sum(pairs.values()), sum(pairs[p] for p in _SAME_TIME), float(opaque.mean()))


def _sum_if_released(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    outcome, count = mean(context, fakes, reals), len(fakes.records)
    if context.settings.protocol == 'paper':
        return outcome
    details = {**outcome.details, 'mean': outcome.value}
    return Outcome(outcome.value * count, outcome.error * count, details)  # the script prints the sum


def _in_scene_units(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    """Takes the bins out again, which differ between renderers; released distances have none."""
    outcome = _sum_if_released(context, fakes, reals)
    square = context.bin_size**2 if context.settings.protocol == 'paper' else 1.0
    return Outcome(outcome.value * square, outcome.error * square)


@Metric(
    name='cdscene',
    on='views',
    title='Chamfer distance of point clouds, squared scene units',
    goal='lower is better',
    reduce=_in_scene_units,
    depends_on=('protocol', 'bin_size'),
)
@Metric(
    name='cd',
    on='views',
    title='Chamfer distance of point clouds, squared bins (released: scene units)',
    goal='lower is better',
    reduce=_sum_if_released,
    depends_on=('protocol', 'bin_size'),
)
def chamfer(views: MultiView, context: Context) -> Mapping[str, Any]:
    """Computes `chamfer_distance` of one clip."""
    return chamfer_distance(views, context.bin_size, context.settings.protocol)._asdict()


def warping_error(views: MultiView, protocol: Protocol) -> WarpingError:
    """Carries side images into front views by their depth and compares, eq. 7-8, at 256 x 256.

    'paper': a side pixel is used if the four depth rays around it are opaque and of one surface. It counts
    where the front camera sees it: inside the image; not from its back; not behind another side point of the
    same or the next front pixel (z-buffer) nor behind the front view's own depth, by more than SAME_SURFACE;
    not on an outline of the front view's depth, but on its background. Its colour is compared with the front
    image at the exact place where it lands (bilinear), so that nothing is rounded, overwritten, or dependent
    on an order. Where surfaces lie behind or in front by less, or in front by more, the difference of colours
    counts.

    'released': depth and colour of every side pixel, opaque or not, are carried to the pixel that holds the
    place (truncated); places outside of the image are clamped to its border; later pixels, row by row,
    overwrite earlier ones whatever their depth. The mean is over written pixels, except those whose *number*
    is that of a side pixel that falls outside.

    Args:
        views: the clip.
        protocol: 'paper' or 'released'.

    Raises:
        Skip: if a pair has too few pixels to compare (paper: under 1 of 64; released: none), or depths
            that are not finite.
    """
    size = (WARP_RESOLUTION, WARP_RESOLUTION)
    # The paper does not say how to resize; released, inferred: as the depth, bilinear without antialias.
    images = functional.interpolate(
        views.image.double(), size=size, mode='bilinear', antialias=protocol == 'paper'
    )
    one_pair = _warp_paper if protocol == 'paper' else _warp_released
    pairs = {p: one_pair(views, images, *p) for p in _FRONT_SIDE}
    same_time = sum(pairs[p][0] for p in _SAME_TIME) / len(_SAME_TIME)
    value, fraction = (sum(column) / len(pairs) for column in zip(*pairs.values(), strict=True))
    return WarpingError(value, same_time, fraction)


@Metric(
    name='we',
    on='views',
    title='warping error, gray levels of 255',
    goal='lower is better',
    depends_on=('protocol',),
)
def warping(views: MultiView, context: Context) -> Mapping[str, Any]:
    """Computes `warping_error` of one clip."""
    return warping_error(views, context.settings.protocol)._asdict()


def _corners(uv: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns flat indices and bilinear weights [4, P] of the pixels around places [P, 2] of an image."""
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    left, top = x.floor(), y.floor()
    across, down = x - left, y - top
    indices, weights = [], []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = (top + i).clamp(0, height - 1), (left + j).clamp(0, width - 1)
        indices.append((row * width + column).long())
        weights.append((down if i else 1 - down) * (across if j else 1 - across))
    return torch.stack(indices), torch.stack(weights)


def _pixel_centres(size: int, device: torch.device) -> Tensor:
    """Returns the places [size^2, 2] of pixel centres in an image [0, 1]^2, row by row."""
    centres = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size
    return torch.cartesian_prod(centres, centres).flip(1)


def _cloud(xyz: Tensor, opaque: Tensor) -> np.ndarray:
    """Returns the opaque points [P, 3] of a view, xyz [3, h, w], at CLOUD_RESOLUTION."""
    points, mask = xyz.double().flatten(1), opaque.flatten()
    if not points[:, mask].isfinite().all():
        raise Skip('a view has points that are not finite')
    if opaque.shape[-1] != CLOUD_RESOLUTION:
        places = _pixel_centres(CLOUD_RESOLUTION, xyz.device)
        indices, weights = _corners(places, *opaque.shape)
        weights = weights * mask[indices]
        values = torch.where(mask, points, 0)[:, indices]  # [3, 4, P]
        total = weights.sum(dim=0)
        points, mask = (values * weights).sum(dim=1) / total, total > 0.5
    cloud = points[:, mask].T.cpu().numpy()
    if len(cloud) < _MIN_FRACTION * CLOUD_RESOLUTION**2:
        raise Skip('a view has too few opaque points')
    return cloud


def _chamfer(trees: list[cKDTree], queries: list[np.ndarray], pair: tuple[int, int], median) -> float:
    a, b = pair
    there, back = trees[b].query(queries[a])[0], trees[a].query(queries[b])[0]
    return float(median(there**2) + median(back**2))


def _lower_median(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.5, method='lower'))


def _unproject(label: Tensor, distance: Tensor) -> Tensor:
    """Returns the world points [P, 3] at distances [P] along the rays of WARP_RESOLUTION."""
    pose, intrinsics = camera.unpack_label(label.double()[None])
    origins, directions = camera_rays(pose, intrinsics, WARP_RESOLUTION)
    return origins[0] + directions[0] * distance[:, None]


def _faces_camera(places: Tensor) -> Tensor:
    """Returns which pixels of an image, carried to places [size^2, 2], keep their orientation.

    A piece of a surface that appears turned over is seen from its back, hence hidden by the solid itself, if
    by less than any tolerance just past the outline.
    """
    grid = places.unflatten(0, (WARP_RESOLUTION, WARP_RESOLUTION))
    down, across = torch.gradient(grid, dim=(0, 1))
    return (across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0] > 0).flatten()


def _interpolate_depth(view: MultiView, index: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolates the depth of one view.

    Returns:
        depth at places [P, 2], infinite where not all four rays around are opaque, [P]; and where these
        agree, bool [P]: all are opaque and of one surface, or none is opaque. Elsewhere lies an outline,
        whose course between the rays is unknown.
    """
    opaque = (view.opacity[index] > OPAQUE).flatten()
    depth = view.depth[index].double().flatten()
    if not depth[opaque].isfinite().all():
        raise Skip('a view has depths that are not finite')
    indices, weights = _corners(places, *view.depth.shape[-2:])
    around = torch.where(opaque, depth, torch.inf)[indices]  # [4, P]
    solid, empty = around.isfinite().all(dim=0), around.isinf().all(dim=0)
    agree = empty | (solid & (around.amax(dim=0) - around.amin(dim=0) <= SAME_SURFACE))
    mean = (torch.where(solid, around, 0) * weights).sum(dim=0)
    return torch.where(solid, mean, torch.inf), agree


def _warp_paper(views: MultiView, images: Tensor, front: int, side: int) -> tuple[float, float]:
    """Returns the mean difference over visible side pixels, and their fraction of the image."""
    size, device = WARP_RESOLUTION, images.device
    depth, agree = _interpolate_depth(views, side, _pixel_centres(size, device))
    solid = depth.isfinite()
    points = _unproject(views.cameras[side], torch.where(solid, depth, camera.RADIUS))
    label = views.cameras[front].double()
    places, axial = camera.project(points, label)
    inside = (axial[:, 0] > 0) & (places >= 0).all(dim=1) & (places < 1).all(dim=1)
    taken = solid & agree & inside & _faces_camera(places)
    places, points, colours = places[taken], points[taken], images[side].flatten(1)[:, taken]
    distance = (points - camera.unpack_label(label)[0][:3, 3]).norm(dim=1)

    column, row = (places * size).long().unbind(dim=1)
    pixel = row * size + column
    nearest = torch.full((size * size,), torch.inf, dtype=distance.dtype, device=device)
    nearest = nearest.scatter_reduce(0, pixel, distance, 'amin').reshape(1, 1, size, size)
    # A point hides 3 x 3 pixels: a surface that faces the front more than the side becomes a loose net.
    nearest = -functional.max_pool2d(-nearest, 3, stride=1, padding=1).flatten()
    own, agree = _interpolate_depth(views, front, places)
    visible = agree & (distance <= torch.minimum(nearest[pixel], own) + SAME_SURFACE)

    fraction = float(visible.sum()) / size**2
    if fraction < _MIN_FRACTION:
        raise Skip('two views have too few pixels in common')
    indices, weights = _corners(places[visible], size, size)
    seen = (images[front].flatten(1)[:, indices] * weights).sum(dim=1)
    return float((seen - colours[:, visible]).abs().mean()), fraction


def _warp_released(views: MultiView, images: Tensor, front: int, side: int) -> tuple[float, float]:
    """Returns the mean difference over what the released script counts, and its fraction of the image."""
    size = WARP_RESOLUTION
    depth = functional.interpolate(views.depth[side][None].double(), size=(size, size), mode='bilinear')
    if not depth.isfinite().all():
        raise Skip('a view has depths that are not finite')
    # Inferred: rays through pixel centres, as the generator shoots them, and the image [0, 1] cut into size
    # pixels. A place just left of or above the image truncates to pixel 0 and passes for inside.
    places, _ = camera.project(
        _unproject(views.cameras[side], depth.flatten()), views.cameras[front].double()
    )
    target = (places * size).long().cpu().numpy()
    outside = ((target < 0) | (target >= size)).any(axis=1)
    column, row = target.clip(0, size - 1).T
    source, reference = (images[i].flatten(1).cpu().numpy() for i in (side, front))
    writer = np.full(size * size, -1)
    writer[row * size + column] = np.arange(size * size)  # numpy keeps the last of equal indices
    # Inferred: the mask takes pixels out of the mean (it does not count them as zero).
    counted = (writer >= 0) & ~outside
    if not counted.any():
        raise Skip('two views have no pixels in common')
    difference = np.abs(reference[:, counted] - source[:, writer[counted]])
    return float(difference.mean()), float(counted.mean())
