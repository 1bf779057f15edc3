"""Mesh of one procedural head: poses it, finds the triangle behind every sample, and colours the samples.

World, cameras and labels as in training/camera.py, but without torch, so that render processes start
quickly.
"""

from typing import NamedTuple

import numpy as np

from heads import appearance, parts, rasterizer
from heads import face as head_geometry
from heads.identity import Identity
from heads.motion import Motion
from heads.shadow import Shadow
from heads.vectors import components_first, cross, unit


class Frame(NamedTuple):
    """A rendered frame; depth, normal and mask belong to the pixel centres."""

    image: np.ndarray  # RGB uint8, [R, R, 3]
    depth: np.ndarray  # distance along the unit ray in scene units, 0 = background, float32 [R, R]
    normal: np.ndarray  # world space, 0 on the background, float32 [R, R, 3]
    mask: np.ndarray  # head, hair, neck and shoulders, bool [R, R]


class _Hits(NamedTuple):
    """Surface points seen through N of the pixel centres of a square image."""

    pixel: np.ndarray  # row by row, ascending, [N]
    distance: np.ndarray  # [N]
    directions: np.ndarray  # of all rays, [3, R * R]
    samples: appearance.Samples


class HeadModel:
    """Mesh of one person, ready to be posed and rendered."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self.face = head_geometry.build_face(identity)
        others = [_outward(part) for part in parts.build_parts(identity, self.face)]
        grids = [self.face.position, *(components_first(part.position) for part in others)]
        closed = [True, *(part.closed for part in others)]
        sizes = [grid[0].size for grid in grids]
        starts = np.cumsum([0, *sizes])
        corners = [_grid_triangles(*grid.shape[1:], wraps) for grid, wraps in zip(grids, closed, strict=True)]
        self.corners = np.concatenate([c + start for c, start in zip(corners, starts, strict=False)], axis=1)
        kinds = [parts.FACE, *(part.kind for part in others)]
        self.kind = np.repeat(kinds, [c.shape[1] for c in corners])
        self.vertices = _rows(grids)
        self.normals = _rows([_grid_normals(g, wraps) for g, wraps in zip(grids, closed, strict=True)])
        canonical = [self.face.canonical, *(components_first(part.canonical) for part in others)]
        bag = np.zeros(starts[-1])
        bag[: sizes[0]] = self.face.bag.ravel()
        self.coordinates = np.concatenate([_rows(canonical), bag[None]]).astype(np.float32)
        self.jaws = [(slice(*starts[i : i + 2]), part.jaw) for i, part in enumerate(others, 1) if part.jaw]
        moving = np.zeros(starts[-1], bool)
        moving[: sizes[0]] = self.face.moving().ravel()
        for at, _ in self.jaws:
            moving[at] = True
        at_rest, _ = self.pose(Motion())
        self.shadow = Shadow(appearance.light_direction(identity), at_rest, self.corners, moving)

    def pose(self, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vertices [3, V] and unit normals [3, V] of the moving head."""
        face = head_geometry.pose_face(self.identity, self.face, motion)
        vertices, normals = self.vertices.copy(), self.normals.copy()
        vertices[:, : face[0].size] = face.reshape(3, -1)
        normals[:, : face[0].size] = _grid_normals(face, True).reshape(3, -1)
        for at, jaw in self.jaws:
            vertices[:, at] = head_geometry.pose_jaw(vertices[:, at], jaw * motion.jaw)
        return vertices, normals

    def render(self, motion: Motion, label: np.ndarray, resolution: int) -> Frame:
        """Renders one antialiased frame seen by a camera label [25]; geometry is that of pixel centres."""
        vertices, normals = self.pose(motion)
        factor = 3 if resolution <= 128 else 2
        side = resolution * factor
        fine = self._trace(vertices, normals, label, side)
        lit = self.shadow.lit(vertices, fine.samples.position, fine.samples.normal)
        image = appearance.backdrop(self.identity, fine.directions)
        samples = fine.samples._replace(lit=lit)
        image[:, fine.pixel] = appearance.shade(self.identity, motion, self.face.eyes, samples)
        image = _shrink(image.reshape(3, side, side), factor)
        if factor == 3:  # the centre of a pixel is that of the middle one of its nine
            number = np.full(side * side, -1)
            number[fine.pixel] = np.arange(len(fine.pixel))
            number = number.reshape(side, side)[1::3, 1::3].ravel()
            pixel, exact = np.flatnonzero(number >= 0), fine
            at = number.take(pixel)
        else:
            exact = self._trace(vertices, normals, label, resolution)
            pixel, at = exact.pixel, slice(None)
        depth, normal = np.zeros(resolution**2, np.float32), np.zeros((resolution**2, 3), np.float32)
        depth[pixel] = exact.distance[at]
        normal[pixel] = exact.samples.normal[:, at].T
        depth, normal = depth.reshape(resolution, resolution), normal.reshape(resolution, resolution, 3)
        mask = np.zeros(resolution**2, bool)
        mask[pixel] = True
        mask = mask.reshape(resolution, resolution)
        return Frame(np.round(image * 255).astype(np.uint8), depth, normal, mask)

    def _trace(self, vertices: np.ndarray, normals: np.ndarray, label: np.ndarray, resolution: int) -> _Hits:
        """Finds and interpolates the surface seen through resolution x resolution pixel centres."""
        origin, directions = rasterizer.camera_rays(label, resolution)
        directions = directions.reshape(3, -1)
        triangle = rasterizer.visible_triangles(vertices, self.corners, label, resolution).triangle
        pixel = np.flatnonzero(triangle >= 0)
        triangle, towards = triangle.take(pixel), directions.take(pixel, axis=1)
        corners = self.corners.take(triangle, axis=1)
        points = (vertices.take(corner, axis=1) for corner in corners)
        distance, weights = rasterizer.intersect(origin, towards, *points)
        weights = weights.astype(np.float32)
        samples = appearance.Samples(
            self.kind.take(triangle),
            (origin[:, None] + distance * towards).astype(np.float32),
            unit(_interpolate(normals.astype(np.float32), corners, weights), 1e-6),
            _interpolate(self.coordinates[:3], corners, weights),
            _interpolate(self.coordinates[3:], corners, weights)[0],
            -towards.astype(np.float32),
            np.ones(len(triangle), np.float32),
        )
        return _Hits(pixel, distance, directions, samples)


def _rows(grids: list[np.ndarray]) -> np.ndarray:
    """Joins grids [3, H, W] to rows [3, V]."""
    return np.concatenate([grid.reshape(3, -1) for grid in grids], axis=1)


def _interpolate(values: np.ndarray, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns values [C, N] at barycentric coordinates [3, N] of triangles with the given corners [3, N]."""
    a, b, c = corners
    u, v, w = weights
    return np.stack([u * row.take(a) + v * row.take(b) + w * row.take(c) for row in values])


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Averages blocks of factor x factor pixels: [3, factor * R, factor * R] to [R, R, 3]."""
    blocks = [image[:, i::factor, j::factor] for i in range(factor) for j in range(factor)]
    return np.moveaxis(sum(blocks) / len(blocks), 0, -1)


def _outward(part: parts.Part) -> parts.Part:
    """Reverses the columns of a closed part whose normals point inwards (signed volume below 0)."""
    if not part.closed:
        return part
    rows, columns = part.position.shape[:2]
    a, b, c = (part.position.reshape(-1, 3)[corner] for corner in _grid_triangles(rows, columns, True))
    volume = np.einsum('ni,ni->', a, np.cross(b, c))
    flipped = part._replace(position=part.position[:, ::-1], canonical=part.canonical[:, ::-1])
    return part if volume > 0 else flipped


def _grid_triangles(rows: int, columns: int, closed: bool) -> np.ndarray:
    """Returns the triangles [3, M] of a grid; row direction x column direction is the outer side."""
    index = np.arange(rows * columns).reshape(rows, columns)
    right = np.roll(index, -1, axis=1)
    last = columns if closed else columns - 1
    a, b = index[:-1, :last].ravel(), right[:-1, :last].ravel()
    c, d = index[1:, :last].ravel(), right[1:, :last].ravel()
    return np.concatenate([np.stack([a, c, b]), np.stack([b, c, d])], axis=1)


def _grid_normals(position: np.ndarray, closed: bool) -> np.ndarray:
    """Returns the unit normals [3, H, W] of a grid [3, H, W] by central differences."""
    down = np.gradient(position, axis=1)
    if closed:
        right = np.roll(position, -1, axis=2) - np.roll(position, 1, axis=2)
    else:
        right = np.gradient(position, axis=2)
    return unit(cross(down, right), 1e-12)
