"""Z-buffer rasteriser for dense triangle meshes, vectorised in numpy.

Finds the triangle seen through each pixel centre; exact distances and barycentric coordinates then come
from one ray-triangle intersection per pixel, so that depth is as exact as float64. Conventions of
training/camera.py.
"""

from typing import NamedTuple

import numpy as np

_CHUNK = 1 << 21  # candidate (triangle, pixel) pairs handled at once; bounds memory at high resolutions
_EDGE_SLACK = 1e-6  # fraction of the triangle's area; closes cracks between neighbours


class Rays(NamedTuple):
    """Rays through the pixel centres of a square picture: origin [3], unit directions [R, R, 3]."""

    origin: np.ndarray
    directions: np.ndarray


def camera_rays(label: np.ndarray, resolution: int) -> Rays:
    """Returns the rays of a camera label [25] through the centres of resolution x resolution pixels."""
    pose, intrinsics = _matrices(label)
    centre = (np.arange(resolution) + 0.5) / resolution
    u, v = np.meshgrid(centre, centre)
    local = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
    directions = local @ pose[:3, :3].T
    return Rays(pose[:3, 3], directions / np.linalg.norm(directions, axis=-1, keepdims=True))


def visible_triangles(
    vertices: np.ndarray, triangles: np.ndarray, label: np.ndarray, resolution: int
) -> np.ndarray:
    """Finds the nearest front-facing triangle behind each pixel centre.

    Args:
        vertices: world positions [V, 3], all in front of the camera.
        triangles: vertex indices [M, 3]; (b - a) x (c - a) points out of the solid.
        label: camera label [25].
        resolution: pixels per side R.

    Returns:
        triangle index per pixel, -1 where there is none, int64 [R, R].
    """
    pose, intrinsics = _matrices(label)
    local = (vertices - pose[:3, 3]) @ pose[:3, :3]
    inverse = 1.0 / local[:, 2]
    screen = (local * inverse[:, None]) @ intrinsics[
        :2
    ].T * resolution - 0.5  # pixel centres at whole numbers
    x, y = screen[:, 0][triangles.T], screen[:, 1][triangles.T]  # [3, M]
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])  # negative = front, as y points down
    front = np.flatnonzero(area < -1e-12)
    x, y, area = x[:, front], y[:, front], area[front]
    left, right = _whole_range(x, resolution)
    top, bottom = _whole_range(y, resolution)
    seen = np.flatnonzero((right >= left) & (bottom >= top))  # most small triangles hold no pixel centre
    keep, x, y, area = front[seen], x[:, seen], y[:, seen], area[seen]
    low = np.stack([left[seen], top[seen]], axis=1)
    width, height = right[seen] - left[seen] + 1, bottom[seen] - top[seen] + 1
    plane = _planes(x, y, area, inverse[triangles[keep].T])
    counts = width * height
    nearest = np.zeros(resolution * resolution)
    winner = np.full(resolution * resolution, -1, dtype=np.int64)
    ends = np.cumsum(counts)
    start = 0
    while start < len(keep):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK)))
        part = slice(start, stop)
        _scatter(keep[part], low[part], width[part], counts[part], plane[part], nearest, winner)
        start = stop
    return winner.reshape(resolution, resolution)


def intersect(
    origin: np.ndarray, directions: np.ndarray, corners: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Intersects rays with the planes of their triangles.

    Args:
        origin: common ray origin [3].
        directions: unit ray directions [N, 3].
        corners: triangle corners [N, 3, 3].

    Returns:
        distance along the ray [N]; barycentric coordinates of the hit [N, 3], clipped to the triangle.

    Source: Moller and Trumbore 1997.
    """
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    offset = origin - corners[:, 0]
    p = np.cross(directions, edge2)
    q = np.cross(offset, edge1)
    scale = 1.0 / np.einsum('ni,ni->n', p, edge1)
    u = np.clip(np.einsum('ni,ni->n', p, offset) * scale, 0.0, 1.0)
    v = np.clip(np.einsum('ni,ni->n', q, directions) * scale, 0.0, 1.0 - u)
    return np.einsum('ni,ni->n', q, edge2) * scale, np.stack([1.0 - u - v, u, v], axis=-1)


def _matrices(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label = np.asarray(label, dtype=np.float64)
    if label.shape != (25,):
        raise ValueError(f'a camera label has 25 numbers, got an array of shape {label.shape}')
    return label[:16].reshape(4, 4), label[16:].reshape(3, 3)


def _whole_range(values: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and last whole number in 0..resolution-1 within the span of values [3, M]."""
    least = np.minimum(np.minimum(values[0], values[1]), values[2])
    most = np.maximum(np.maximum(values[0], values[1]), values[2])
    first = np.maximum(np.ceil(least), 0).astype(np.int64)
    return first, np.minimum(np.floor(most), resolution - 1).astype(np.int64)


def _planes(x: np.ndarray, y: np.ndarray, area: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Returns two barycentric coordinates and 1/z as a*x + b*y + c in the picture: coefficients [M, 9].

    Args:
        x, y, inverse: picture coordinates and 1/z of the three corners, [3, M].
        area: twice the signed area [M].
    """
    bx, by, cx, cy = x[1] - x[0], y[1] - y[0], x[2] - x[0], y[2] - y[0]
    beta = np.stack([cy, -cx, cx * y[0] - cy * x[0]]) / area
    gamma = np.stack([-by, bx, by * x[0] - bx * y[0]]) / area
    depth = (inverse[1] - inverse[0]) * beta + (inverse[2] - inverse[0]) * gamma
    depth[2] += inverse[0]
    return np.concatenate([beta, gamma, depth]).T.copy()


def _scatter(
    index: np.ndarray,
    low: np.ndarray,
    width: np.ndarray,
    counts: np.ndarray,
    plane: np.ndarray,
    nearest: np.ndarray,
    winner: np.ndarray,
) -> None:
    """Tests all pixels of the triangles' bounding boxes and updates `nearest` (1/z) and `winner` in place."""
    resolution = int(round(len(nearest) ** 0.5))
    owner = np.repeat(np.arange(len(index)), counts)
    local = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(local, width[owner])
    x, y = column + low[owner, 0], row + low[owner, 1]
    values = plane[owner]
    beta = values[:, 0] * x + values[:, 1] * y + values[:, 2]
    gamma = values[:, 3] * x + values[:, 4] * y + values[:, 5]
    inside = (beta >= -_EDGE_SLACK) & (gamma >= -_EDGE_SLACK) & (beta + gamma <= 1 + _EDGE_SLACK)
    inside = np.flatnonzero(inside)
    x, y, owner, values = x[inside], y[inside], owner[inside], values[inside]
    inverse = values[:, 6] * x + values[:, 7] * y + values[:, 8]
    pixel = y * resolution + x
    np.maximum.at(nearest, pixel, inverse)
    front = inverse == nearest[pixel]
    winner[pixel[front]] = index[owner[front]]
