"""Z-buffer rasteriser for dense triangle meshes, vectorised in numpy.

Finds the triangle seen through each pixel centre; exact distances and barycentric coordinates then come
from one ray-triangle intersection per pixel, so that depth is as exact as float64. Conventions of
training/camera.py.
"""

import itertools
from typing import NamedTuple

import numpy as np

from heads.vectors import cross, dot, unit

# what is handled at once: arrays of this size stay in the cache, and the allocator keeps their memory
_BLOCK = 1 << 14  # triangles
_CHUNK = 1 << 15  # candidate (triangle, pixel) pairs
_EDGE_SLACK = 1e-6  # fraction of the triangle's area; closes cracks between neighbours


class Rays(NamedTuple):
    """Rays through the pixel centres of a square image: origin [3], unit directions [3, R, R]."""

    origin: np.ndarray
    directions: np.ndarray


class Seen(NamedTuple):
    """What is seen through pixel centres, row by row."""

    triangle: np.ndarray  # index of the nearest triangle, -1 where there is none, int64 [R * R]
    inverse: np.ndarray  # 1/z there, 0 where there is none, [R * R]


def camera_rays(label: np.ndarray, resolution: int) -> Rays:
    """Returns the rays of a camera label [25] through the centres of resolution x resolution pixels."""
    pose, intrinsics = _matrices(label)
    across, down, ahead = (pose[:3, :3] @ np.linalg.inv(intrinsics)).T[..., None, None]
    centre = (np.arange(resolution) + 0.5) / resolution
    return Rays(pose[:3, 3], unit(across * centre + (down * centre[:, None] + ahead)))


def visible_triangles(
    vertices: np.ndarray, corners: np.ndarray, label: np.ndarray, resolution: int, behind: Seen | None = None
) -> Seen:
    """Finds the nearest front-facing triangle behind each pixel centre.

    Args:
        vertices: world positions [3, V], all in front of the camera.
        corners: vertex indices [3, M] of triangles; (b - a) x (c - a) points out of the solid.
        label: camera label [25].
        resolution: pixels per side R.
        behind: what is seen of another mesh; its triangles become -2 where they stay nearest.
    """
    pose, intrinsics = _matrices(label)
    x, y, z = intrinsics @ pose[:3, :3].T @ (vertices - pose[:3, 3:])
    inverse = 1.0 / z
    x, y = (values * inverse * resolution - 0.5 for values in (x, y))  # pixel centres are integers
    if behind is None:
        seen = Seen(np.full(resolution * resolution, -1), np.zeros(resolution * resolution))
    else:
        seen = Seen(np.where(behind.triangle < 0, -1, -2), behind.inverse.copy())
    for start in range(0, corners.shape[1], _BLOCK):
        _draw(seen, (x, y, inverse), corners[:, start : start + _BLOCK], start, resolution)
    return seen


def intersect(
    origin: np.ndarray, directions: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Intersects rays with the planes of their triangles.

    Args:
        origin: common ray origin [3].
        directions: unit ray directions [3, N].
        a, b, c: corners of the triangles [3, N].

    Returns:
        distance along the ray [N]; barycentric coordinates of the hit [3, N], clipped to the triangle.

    Source: Moller and Trumbore 1997.
    """
    edge1, edge2, offset = b - a, c - a, origin[:, None] - a
    p, q = cross(directions, edge2), cross(offset, edge1)
    scale = 1.0 / dot(p, edge1)
    u = np.clip(dot(p, offset) * scale, 0.0, 1.0)
    v = np.clip(dot(q, directions) * scale, 0.0, 1.0 - u)
    return dot(q, edge2) * scale, np.stack([1.0 - u - v, u, v])


def _matrices(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label = np.asarray(label, dtype=np.float64)
    return label[:16].reshape(4, 4), label[16:].reshape(3, 3)


def _draw(
    seen: Seen, points: tuple[np.ndarray, ...], corners: np.ndarray, number: int, resolution: int
) -> None:
    """Draws triangles over what is seen.

    Args:
        seen: is changed.
        points: image coordinates x and y, and 1/z of the vertices, [V] each.
        corners: vertex indices [3, M].
        number: index of the first triangle.
        resolution: pixels per side.
    """
    x, y, inverse = points
    index, left, top, width, height = _candidates(x, y, corners, resolution)
    corners = corners.take(index, axis=1)
    plane = _planes(x.take(corners), y.take(corners), inverse.take(corners))
    ends = np.cumsum(width * height)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _CHUNK), side='right')
    for start, stop in itertools.pairwise([*cuts, len(index)]):
        part = slice(start, stop)
        boxes = left[part], top[part], width[part], height[part]
        owner, pixel, depth = _covered(boxes, plane[:, part], resolution)
        np.maximum.at(seen.inverse, pixel, depth)
        front = np.flatnonzero(depth == seen.inverse.take(pixel))
        seen.triangle[pixel.take(front)] = number + index[part].take(owner.take(front))


def _candidates(
    x: np.ndarray, y: np.ndarray, corners: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finds the triangles that face the camera and have a pixel centre in their bounding box.

    Args:
        x, y: image coordinates of the vertices, [V].
        corners, resolution: see visible_triangles.

    Returns:
        index, left, top, width and height in pixels of K triangles, [K] each.
    """
    (ax, bx, cx), (ay, by, cy) = x.take(corners), y.take(corners)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)  # negative = front, as y points down
    front = np.flatnonzero(area < -1e-12)
    corners = corners.take(front, axis=1)
    left, right = _integers(x.take(corners), resolution)
    top, bottom = _integers(y.take(corners), resolution)
    some = np.flatnonzero((right >= left) & (bottom >= top))  # most small triangles contain no pixel centre
    left, right, top, bottom = (side.take(some).astype(np.int64) for side in (left, right, top, bottom))
    return front.take(some), left, top, right - left + 1, bottom - top + 1


def _integers(values: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and last integer in 0..resolution-1 within the span of values [3, M]."""
    least = np.minimum(np.minimum(values[0], values[1]), values[2])
    most = np.maximum(np.maximum(values[0], values[1]), values[2])
    return np.maximum(np.ceil(least), 0), np.minimum(np.floor(most), resolution - 1)


def _planes(x: np.ndarray, y: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Returns two barycentric coordinates and 1/z as a*x + b*y + c in the image: coefficients [9, M].

    Args:
        x, y, inverse: image coordinates and 1/z of the three corners, [3, M].
    """
    bx, by, cx, cy = x[1] - x[0], y[1] - y[0], x[2] - x[0], y[2] - y[0]
    area = bx * cy - by * cx
    beta = np.stack([cy, -cx, cx * y[0] - cy * x[0]]) / area
    gamma = np.stack([-by, bx, by * x[0] - bx * y[0]]) / area
    depth = (inverse[1] - inverse[0]) * beta + (inverse[2] - inverse[0]) * gamma
    depth[2] += inverse[0]
    return np.concatenate([beta, gamma, depth])


def _covered(
    boxes: tuple[np.ndarray, ...], plane: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (triangle, pixel, 1/z) [K] each of the pixel centres that triangles cover.

    Args:
        boxes: left, top, width and height in pixels of the triangles' bounding boxes, [M] each.
        plane: see _planes, [9, M].
        resolution: pixels per side.
    """
    left, top, width, height = boxes
    owner, step = _ranges(height)  # a row of a box each
    y, length = top.take(owner) + step, width.take(owner)
    slopes = plane[0].take(owner), plane[3].take(owner)
    starts = (plane[k + 1].take(owner) * y + plane[k + 2].take(owner) for k in (0, 3))
    row, step = _ranges(length)  # a pixel of a row each
    x = left.take(owner).take(row) + step
    beta, gamma = (a.take(row) * x + b.take(row) for a, b in zip(slopes, starts, strict=True))
    inside = (beta >= -_EDGE_SLACK) & (gamma >= -_EDGE_SLACK) & (beta + gamma <= 1 + _EDGE_SLACK)
    inside = np.flatnonzero(inside)
    row, x = row.take(inside), x.take(inside)
    owner, y = owner.take(row), y.take(row)
    a, b, c = (coefficient.take(owner) for coefficient in plane[6:])
    return owner, y * resolution + x, a * x + b * y + c


def _ranges(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for ranges one after the other which range an item is of, and its place there: 0, 1, ..."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner)) - first.take(owner)
