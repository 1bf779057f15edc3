"""Mesh of one procedural head: poses it, finds the triangle behind every sample, and colours the samples.

World, cameras and labels as in training/camera.py, but without torch, so that render processes start
quickly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heads import appearance, parts, rasterizer
from heads import face as head_geometry
from heads.identity import Identity
from heads.motion import Motion

_SHADOW_RESOLUTION = 128
_SHADOW_BIAS = 0.012  # scene units
_LIGHT_DISTANCE = 6.0  # of the shadow camera, scene units


class Frame(NamedTuple):
    """A rendered frame; depth, normal and mask belong to the pixel centres."""

    image: np.ndarray  # RGB uint8, [R, R, 3]
    depth: np.ndarray  # distance along the unit ray in scene units, 0 = background, float32 [R, R]
    normal: np.ndarray  # world space, 0 on the background, float32 [R, R, 3]
    mask: np.ndarray  # head, hair, neck and shoulders, bool [R, R]


class _Hits(NamedTuple):
    """Surface points seen through pixel centres."""

    mask: np.ndarray  # [R, R]
    distance: np.ndarray  # [N]
    directions: np.ndarray  # [R, R, 3]
    samples: appearance.Samples

    def centres(self) -> '_Hits':
        """Returns the hits of the middle of every 3x3 block: the centres of pixels three times as large."""
        index = np.full(self.mask.shape, -1)
        index[self.mask] = np.arange(len(self.distance))
        index, mask = index[1::3, 1::3], self.mask[1::3, 1::3]
        at = index[mask]
        samples = appearance.Samples(*(field[at] for field in self.samples))
        return _Hits(mask, self.distance[at], self.directions[1::3, 1::3], samples)


class HeadModel:
    """Mesh of one person, ready to be posed and rendered."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self.face = head_geometry.build_face(identity)
        face = parts.Part(parts.FACE, self.face.position, self.face.canonical)
        self.parts = [face] + [_outward(part) for part in parts.build_parts(identity, self.face)]
        self.normals = [_grid_normals(part.position, part.closed) for part in self.parts]
        sizes = [part.position.shape[0] * part.position.shape[1] for part in self.parts]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        grids = [_grid_triangles(part) + start for part, start in zip(self.parts, starts[:-1], strict=True)]
        self.triangles = np.concatenate(grids)
        self.kind = np.repeat([part.kind for part in self.parts], [len(grid) for grid in grids])
        bag = np.zeros((starts[-1], 1))
        bag[: sizes[0], 0] = self.face.bag.ravel()
        self.coordinates = np.concatenate([_rows([part.canonical for part in self.parts]), bag], axis=1)

    def pose(self, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vertices [V, 3] and unit normals [V, 3] of the moving head."""
        positions = [head_geometry.pose_face(self.identity, self.face, motion)]
        normals = [_grid_normals(positions[0], True)]
        for part, normal in zip(self.parts[1:], self.normals[1:], strict=True):
            amount = part.jaw * motion.jaw
            positions.append(head_geometry.pose_jaw(part.position, amount) if part.jaw else part.position)
            normals.append(normal)
        return _rows(positions), _rows(normals)

    def render(self, motion: Motion, label: np.ndarray, resolution: int) -> Frame:
        """Renders one antialiased frame seen by a camera label [25]; geometry is that of pixel centres."""
        vertices, normals = self.pose(motion)
        shadow = self._shadow_map(vertices)
        factor = 3 if resolution <= 128 else 2
        fine = self._trace(vertices, normals, label, resolution * factor)
        image = appearance.backdrop(self.identity, fine.directions)
        samples = fine.samples._replace(lit=self._lit(fine.samples, shadow))
        image[fine.mask] = appearance.shade(self.identity, motion, self.face.eyes, samples)
        image = image.reshape(resolution, factor, resolution, factor, 3).mean(axis=(1, 3))
        exact = fine.centres() if factor == 3 else self._trace(vertices, normals, label, resolution)
        depth = np.zeros((resolution, resolution), np.float32)
        depth[exact.mask] = exact.distance
        normal = np.zeros((resolution, resolution, 3), np.float32)
        normal[exact.mask] = exact.samples.normal
        return Frame(np.round(image * 255).astype(np.uint8), depth, normal, exact.mask)

    def _trace(self, vertices: np.ndarray, normals: np.ndarray, label: np.ndarray, resolution: int) -> _Hits:
        """Finds and interpolates the surface seen through resolution x resolution pixel centres."""
        rays = rasterizer.camera_rays(label, resolution)
        triangle = rasterizer.visible_triangles(vertices, self.triangles, label, resolution)
        mask = triangle >= 0
        index, directions = triangle[mask], rays.directions[mask]
        corner = self.triangles[index]
        distance, weights = rasterizer.intersect(rays.origin, directions, vertices[corner])
        values = np.concatenate([normals, self.coordinates], axis=1).astype(np.float32)[corner]
        values = np.einsum('nk,nkc->nc', weights.astype(np.float32), values)
        normal = values[:, :3] / np.maximum(np.linalg.norm(values[:, :3], axis=1, keepdims=True), 1e-6)
        position = (rays.origin + distance[:, None] * directions).astype(np.float32)
        samples = appearance.Samples(
            self.kind[index],
            position,
            normal,
            values[:, 3:6],
            values[:, 6],
            -directions.astype(np.float32),
            np.ones(len(index), np.float32),
        )
        return _Hits(mask, distance, rays.directions, samples)

    def _shadow_map(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns a camera label [25] at the key light and the distances [S, S] that it sees."""
        label = _light_label(appearance.light_direction(self.identity).astype(np.float64))
        rays = rasterizer.camera_rays(label, _SHADOW_RESOLUTION)
        triangle = rasterizer.visible_triangles(vertices, self.triangles, label, _SHADOW_RESOLUTION)
        mask = triangle >= 0
        corners = vertices[self.triangles[triangle[mask]]]
        distance = np.full(mask.shape, np.inf)
        distance[mask] = rasterizer.intersect(rays.origin, rays.directions[mask], corners)[0]
        return label, distance

    def _lit(self, samples: appearance.Samples, shadow: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Returns the fraction [N] of the key light that arrives, smoothed over 4x4 cells of the map."""
        label, distance = shadow
        pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
        offset = samples.position + 0.012 * samples.normal - pose[:3, 3]
        local = offset @ pose[:3, :3]
        screen = (local / local[:, 2:]) @ intrinsics[:2].T * _SHADOW_RESOLUTION - 0.5
        own = np.linalg.norm(offset, axis=1) - _SHADOW_BIAS
        lit = np.zeros(len(own), np.float32)
        base = np.floor(screen).astype(np.int64)
        fraction = screen - base
        cells = [np.clip(base + shift, 0, _SHADOW_RESOLUTION - 1).T for shift in range(-1, 3)]
        weights = [np.maximum(1 - np.abs(fraction - shift) / 2, 0).T / 2 for shift in range(-1, 3)]
        for (_, row), (_, weight_y) in zip(cells, weights, strict=True):
            for (column, _), (weight_x, _) in zip(cells, weights, strict=True):
                lit += weight_x * weight_y * (distance[row, column] > own)
        return 0.35 + 0.65 * lit


def _rows(grids: Sequence[np.ndarray]) -> np.ndarray:
    """Joins grids [H, W, 3] to rows [V, 3]."""
    return np.concatenate([grid.reshape(-1, 3) for grid in grids])


def _light_label(direction: np.ndarray) -> np.ndarray:
    """Returns the label [25] of a camera that looks along the light onto the head."""
    right = np.cross(-direction, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(-direction, right), -direction, _LIGHT_DISTANCE * direction], axis=1)
    return np.concatenate([pose.ravel(), [7.0, 0, 0.5, 0, 7.0, 0.5, 0, 0, 1]])


def _outward(part: parts.Part) -> parts.Part:
    """Reverses the columns of a closed part whose normals point inwards (signed volume below 0)."""
    if not part.closed:
        return part
    corners = part.position.reshape(-1, 3)[_grid_triangles(part)]
    volume = np.einsum('ni,ni->', corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    flipped = part._replace(position=part.position[:, ::-1], canonical=part.canonical[:, ::-1])
    return part if volume > 0 else flipped


def _grid_triangles(part: parts.Part) -> np.ndarray:
    """Returns the triangles [M, 3] of a grid; row direction x column direction is the outer side."""
    rows, columns = part.position.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    right = np.roll(index, -1, axis=1)
    last = columns if part.closed else columns - 1
    a, b = index[:-1, :last].ravel(), right[:-1, :last].ravel()
    c, d = index[1:, :last].ravel(), right[1:, :last].ravel()
    return np.concatenate([np.stack([a, c, b], axis=1), np.stack([b, c, d], axis=1)])


def _grid_normals(position: np.ndarray, closed: bool) -> np.ndarray:
    """Returns unit normals [H, W, 3] by central differences."""
    down = np.gradient(position, axis=0)
    if closed:
        right = np.roll(position, -1, axis=1) - np.roll(position, 1, axis=1)
    else:
        right = np.gradient(position, axis=1)
    normal = np.cross(down, right)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
