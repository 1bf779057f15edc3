"""Z-buffer rasteriser for dense triangle meshes, vectorised in numpy.

Finds the triangle seen through each pixel centre; exact distances and barycentric coordinates then come
from one ray-triangle intersection per pixel, so that depth is as exact as float64. Conventions of
training/camera.py.
"""

import itertools
from typing import NamedTuple

import numpy as np

_CHUNK = 1 << 15  # candidate (triangle, pixel) pairs handled at once; their arrays fit in the cache
_EDGE_SLACK = 1e-6  # fraction of the triangle's area; closes cracks between neighbours


class Rays(NamedTuple):
    """Rays through the pixel centres of a square image: origin [3], unit directions [R, R, 3]."""

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
        triangle index per pixel, -1 on the background, int64 [R, R].
    """
    pose, intrinsics = _matrices(label)
    local = (vertices - pose[:3, 3]) @ pose[:3, :3]
    inverse = 1.0 / local[:, 2]
    screen = (local * inverse[:, None]) @ intrinsics[:2].T * resolution - 0.5  # pixel centres are integers
    x, y = screen[:, 0][triangles.T], screen[:, 1][triangles.T]  # [3, M]
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])  # negative = front, as y points down
    front = np.flatnonzero(area < -1e-12)
    x, y, area = x[:, front], y[:, front], area[front]
    left, right = _integers(x, resolution)
    top, bottom = _integers(y, resolution)
    seen = np.flatnonzero((right >= left) & (bottom >= top))  # most small triangles contain no pixel centre
    keep, x, y, area = front[seen], x[:, seen], y[:, seen], area[seen]
    left, top, width, height = left[seen], top[seen], (right - left + 1)[seen], (bottom - top + 1)[seen]
    plane = _planes(x, y, area, inverse[triangles[keep].T])
    nearest = np.zeros(resolution * resolution)  # 1/z
    winner = np.full(resolution * resolution, -1, dtype=np.int64)
    ends = np.cumsum(width * height)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _CHUNK), side='right')
    for start, stop in itertools.pairwise([*cuts, len(keep)]):
        part = slice(start, stop)
        boxes = left[part], top[part], width[part], height[part]
        index, pixel, depth = _covered(boxes, plane[:, part], resolution)
        np.maximum.at(nearest, pixel, depth)
        front = depth == nearest[pixel]
        winner[pixel[front]] = keep[part][index[front]]
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
    return label[:16].reshape(4, 4), label[16:].reshape(3, 3)


def _integers(values: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and last integer in 0..resolution-1 within the span of values [3, M]."""
    least = np.minimum(np.minimum(values[0], values[1]), values[2])
    most = np.maximum(np.maximum(values[0], values[1]), values[2])
    first = np.maximum(np.ceil(least), 0).astype(np.int64)
    return first, np.minimum(np.floor(most), resolution - 1).astype(np.int64)


def _planes(x: np.ndarray, y: np.ndarray, area: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Returns two barycentric coordinates and 1/z as a*x + b*y + c in the image: coefficients [9, M].

    Args:
        x, y, inverse: image coordinates and 1/z of the three corners, [3, M].
        area: twice the signed area [M].
    """
    bx, by, cx, cy = x[1] - x[0], y[1] - y[0], x[2] - x[0], y[2] - y[0]
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
    counts = width * height
    owner = np.repeat(np.arange(len(counts)), counts)
    row, column = np.divmod(np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner], width[owner])
    x, y = column + left[owner], row + top[owner]
    beta = plane[0][owner] * x + plane[1][owner] * y + plane[2][owner]
    gamma = plane[3][owner] * x + plane[4][owner] * y + plane[5][owner]
    inside = (beta >= -_EDGE_SLACK) & (gamma >= -_EDGE_SLACK) & (beta + gamma <= 1 + _EDGE_SLACK)
    owner, x, y = owner[inside], x[inside], y[inside]
    return owner, y * resolution + x, plane[6][owner] * x + plane[7][owner] * y + plane[8][owner]
