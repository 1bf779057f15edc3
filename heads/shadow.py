"""Shadows of the key light: what a camera at the light sees is lit.

Most of a head never moves, and neither does the light: that part of the map is made once.
"""

import numpy as np

from heads import rasterizer
from heads.vectors import dot

_RESOLUTION = 128
_BIAS = 0.012  # scene units
_LIGHT_DISTANCE = 6.0  # of the shadow camera, scene units
_EDGE = 3  # cells around the map


class Shadow:
    """The shadow map of a head."""

    def __init__(
        self, direction: np.ndarray, vertices: np.ndarray, corners: np.ndarray, moving: np.ndarray
    ) -> None:
        """Draws what does not move.

        Args:
            direction: unit vector to the light [3].
            vertices: positions of the head at rest [3, V].
            corners: vertex indices of its triangles [3, M].
            moving: which vertices move, bool [V].
        """
        self.label = _light_label(direction)
        origin, directions = rasterizer.camera_rays(self.label, _RESOLUTION)
        self.origin, self.directions = origin, directions.reshape(3, -1)
        moves = moving[corners].any(axis=0)
        still, moves = corners[:, ~moves], corners[:, moves]
        self.seen = rasterizer.visible_triangles(vertices, still, self.label, _RESOLUTION)
        self.distance = np.full(_RESOLUTION**2, np.inf)
        self._measure(self.distance, vertices, still, self.seen.triangle)
        self.used = np.flatnonzero(np.bincount(moves.ravel()))  # the vertices of what moves
        self.moves = np.searchsorted(self.used, moves)

    def lit(self, vertices: np.ndarray, position: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Returns the fraction [N] of the key light that arrives, smoothed over 4x4 cells of the map.

        Args:
            vertices: positions of the head [3, V].
            position, normal: of the surface points, [3, N].
        """
        cells = np.pad(self._draw(vertices).reshape(_RESOLUTION, _RESOLUTION), _EDGE, 'edge')
        pose, intrinsics = self.label[:16].reshape(4, 4), self.label[16:].reshape(3, 3)
        offset = position + 0.012 * normal - pose[:3, 3:]
        own = np.sqrt(dot(offset, offset)) - _BIAS
        x, y, z = intrinsics @ pose[:3, :3].T @ offset
        x, y = (np.clip(values / z * _RESOLUTION - 0.5, -2, _RESOLUTION) for values in (x, y))
        column, row = np.floor(x), np.floor(y)
        first = ((row + (_EDGE - 1)) * cells.shape[1] + column + (_EDGE - 1)).astype(np.int64)
        lit = (_windows(cells, np.minimum).take(first) > own).astype(np.float32)
        half = np.flatnonzero((lit == 0) & (_windows(cells, np.maximum).take(first) > own))
        weights = [_weights((values - base).take(half)) for values, base in ((x, column), (y, row))]
        lit[half] = _smooth(cells, first.take(half), own.take(half), *weights)
        return 0.35 + 0.65 * lit

    def _draw(self, vertices: np.ndarray) -> np.ndarray:
        """Returns the distances [S * S] that the light sees."""
        vertices = vertices.take(self.used, axis=1)
        seen = rasterizer.visible_triangles(vertices, self.moves, self.label, _RESOLUTION, self.seen)
        distance = self.distance.copy()
        self._measure(distance, vertices, self.moves, seen.triangle)
        return distance

    def _measure(
        self, distance: np.ndarray, vertices: np.ndarray, corners: np.ndarray, triangle: np.ndarray
    ) -> None:
        """Writes the distances of the triangles that are seen."""
        at = np.flatnonzero(triangle >= 0)
        points = (vertices.take(corner, axis=1) for corner in corners.take(triangle.take(at), axis=1))
        distance[at] = rasterizer.intersect(self.origin, self.directions.take(at, axis=1), *points)[0]


def _light_label(direction: np.ndarray) -> np.ndarray:
    """Returns the label [25] of a camera that looks along the light onto the head."""
    direction = direction.astype(np.float64)
    right = np.cross(-direction, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(-direction, right), -direction, _LIGHT_DISTANCE * direction], axis=1)
    return np.concatenate([pose.ravel(), [7.0, 0, 0.5, 0, 7.0, 0.5, 0, 0, 1]])


def _windows(cells: np.ndarray, choose: np.ufunc) -> np.ndarray:
    """Returns the least or greatest value in the 4x4 cells from each cell on; the last three are not full."""
    for axis in (0, 1):
        cells = choose(cells, np.roll(cells, -1, axis))
        cells = choose(cells, np.roll(cells, -2, axis))
    return cells


def _weights(fraction: np.ndarray) -> list[np.ndarray]:
    """Returns the weights [N] of four neighbouring cells, around a place between the second and the third."""
    return [np.maximum(1 - np.abs(fraction - shift) / 2, 0) / 2 for shift in range(-1, 3)]


def _smooth(
    cells: np.ndarray, first: np.ndarray, own: np.ndarray, across: list[np.ndarray], down: list[np.ndarray]
) -> np.ndarray:
    """Returns the weighted fraction [N] of 4x4 cells, from `first` on, that are farther away than `own`."""
    lit = np.zeros(len(own))
    for i, weight in enumerate(down):
        row = first + i * cells.shape[1]
        lit += weight * sum(w * (cells.take(row + j) > own) for j, w in enumerate(across))
    return lit
