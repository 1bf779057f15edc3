"""Procedural talking heads: the embedded default data set, with exact cameras, depth, normals and masks.

A `HeadModel` is the mesh of one identity; rendering poses it, finds the triangle behind every (super)sample, and colours
the samples from canonical coordinates. World, cameras and labels as in training/camera.py; file format as written by
`write_dataset`. No outside source: all shapes and colours are made here.
"""

import io
import json
import multiprocessing
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from preprocessing import head_appearance, head_geometry, head_parts, rasterizer
from preprocessing.head_identity import Identity, sample_identity
from preprocessing.head_motion import Motion, sample_camera_path, sample_motion_path
from training import camera

FPS = 25.0
DEPTH_SCALE = 10000  # 16-bit depth files hold distance x 10000, in scene units
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal arguments give equal bytes
_SHADOW_RESOLUTION = 160
_SHADOW_BIAS = 0.008  # scene units


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
    samples: head_appearance.Samples


class HeadModel:
    """Mesh of one person, ready to be posed and rendered."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self.face = head_geometry.build_face(identity)
        face = head_parts.Part(head_parts.FACE, self.face.position, self.face.canonical)
        self.parts = [face] + [_outward(part) for part in head_parts.build_parts(identity, self.face)]
        self.normals = [_grid_normals(part.position, part.closed) for part in self.parts]
        sizes = [part.position.shape[0] * part.position.shape[1] for part in self.parts]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        grids = [_grid_triangles(part) + start for part, start in zip(self.parts, starts[:-1], strict=True)]
        self.triangles = np.concatenate(grids)
        self.kind = np.repeat([part.kind for part in self.parts], [len(grid) for grid in grids])
        bag = [self.face.bag.ravel(), np.zeros(starts[-1] - sizes[0])]
        canonical = np.concatenate([part.canonical.reshape(-1, 3) for part in self.parts])
        self.coordinates = np.concatenate([canonical, np.concatenate(bag)[:, None]], axis=1)

    def pose(self, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vertices [V, 3] and unit normals [V, 3] of the moving head."""
        positions = [head_geometry.pose_face(self.identity, self.face, motion)]
        normals = [_grid_normals(positions[0], True)]
        for part, normal in zip(self.parts[1:], self.normals[1:], strict=True):
            moved = (
                head_geometry.pose_jaw(part.position, part.jaw * motion.jaw) if part.jaw else part.position
            )
            positions.append(moved)
            normals.append(normal)
        return tuple(
            np.concatenate([grid.reshape(-1, 3) for grid in grids]) for grids in (positions, normals)
        )

    def render(self, motion: Motion, label: np.ndarray, resolution: int) -> Frame:
        """Renders one frame; see `render_frame`."""
        if not 8 <= resolution <= 2048:
            raise ValueError(f'resolution must be in 8..2048, got {resolution}')
        vertices, normals = self.pose(motion)
        shadow = self._shadow_map(vertices)
        factor = 3 if resolution <= 128 else 2
        fine = self._trace(vertices, normals, label, resolution * factor)
        image = head_appearance.backdrop(self.identity, fine.directions)
        lit = self._lit(fine.samples, shadow)
        samples = fine.samples._replace(lit=lit)
        image[fine.mask] = head_appearance.shade(self.identity, motion, self.face.eyes, samples)
        image = image.reshape(resolution, factor, resolution, factor, 3).mean(axis=(1, 3))
        exact = self._trace(vertices, normals, label, resolution)
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
        samples = head_appearance.Samples(
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
        label = camera.orbit_label(
            self.identity.light_yaw_rad,
            self.identity.light_pitch_rad,
            radius=6.0,
            pivot=(0, -0.03, 0),
            focal=7.0,
        ).numpy()
        rays = rasterizer.camera_rays(label, _SHADOW_RESOLUTION)
        triangle = rasterizer.visible_triangles(vertices, self.triangles, label, _SHADOW_RESOLUTION)
        mask = triangle >= 0
        corners = vertices[self.triangles[triangle[mask]]]
        distance = np.full(mask.shape, np.inf)
        distance[mask] = rasterizer.intersect(rays.origin, rays.directions[mask], corners)[0]
        return label, distance

    def _lit(self, samples: head_appearance.Samples, shadow: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Returns the share [N] of the key light that reaches the samples: softened by 5x5 shadow-map cells."""
        label, distance = shadow
        pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
        offset = samples.position + 0.004 * samples.normal - pose[:3, 3]
        local = offset @ pose[:3, :3]
        screen = (local / local[:, 2:]) @ intrinsics[:2].T * _SHADOW_RESOLUTION - 0.5
        own = np.linalg.norm(offset, axis=1) - _SHADOW_BIAS
        lit = np.zeros(len(own), np.float32)
        base = np.floor(screen).astype(np.int64)
        fraction = screen - base
        for dy in range(-1, 3):
            for dx in range(-1, 3):
                weight = _tent(fraction[:, 0] - dx) * _tent(fraction[:, 1] - dy)
                column = np.clip(base[:, 0] + dx, 0, _SHADOW_RESOLUTION - 1)
                row = np.clip(base[:, 1] + dy, 0, _SHADOW_RESOLUTION - 1)
                lit += weight * (distance[row, column] > own)
        return 0.25 + 0.75 * lit


def render_frame(identity: Identity, motion: Motion, label: np.ndarray, resolution: int) -> Frame:
    """Renders one frame.

    Args:
        identity: the person.
        motion: state of the face.
        label: camera, 25 numbers.
        resolution: pixels per side R.

    Returns:
        image (antialiased) with depth, normals and mask at the pixel centres.
    """
    return HeadModel(identity).render(motion, np.asarray(label), resolution)


def write_dataset(
    dest: str | os.PathLike,
    num_clips: int,
    num_frames: int,
    resolution: int,
    seed: int,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Renders clips of random people into a data set (zip when `dest` ends with .zip, else a new folder).

    Equal arguments give equal bytes, whatever the number of workers. Nothing is left behind when it fails.

    Args:
        dest: file or folder to write.
        num_clips: number of people, one clip each.
        num_frames: frames per clip.
        resolution: pixels per side.
        seed: selects people, motions and cameras.
        workers: processes, by default one per usable CPU core.
        progress: show a progress bar.

    Raises:
        ValueError: if a number is out of range.
        FileExistsError: if `dest` is a folder with files in it.
    """
    if num_clips < 1 or num_frames < 1 or not 8 <= resolution <= 2048 or seed < 0:
        raise ValueError(
            f'need clips >= 1, frames >= 1, resolution in 8..2048 and seed >= 0, '
            f'got {num_clips}, {num_frames}, {resolution} and {seed}'
        )
    dest = Path(dest)
    if dest.is_dir() and any(dest.iterdir()):
        raise FileExistsError(f'{dest} is a folder with files in it; give a new name or empty it')
    dest.parent.mkdir(parents=True, exist_ok=True)
    jobs = [(seed, index, num_frames, resolution) for index in range(num_clips)]
    clips = tqdm(
        _run(jobs, workers or _usable_cores()),
        total=num_clips,
        desc='rendering',
        unit='clip',
        disable=not progress,
    )
    if dest.suffix == '.zip':
        _write_zip(dest, clips, resolution)
    else:
        _write_folder(dest, clips, resolution)


class _Clip(NamedTuple):
    """One rendered clip: encoded files by name, labels by frame name, information."""

    name: str
    files: list[tuple[str, bytes]]
    labels: list[tuple[str, list[float]]]
    info: dict


def _render_clip(job: tuple[int, int, int, int]) -> _Clip:
    seed, index, num_frames, resolution = job
    clip_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    model = HeadModel(sample_identity(clip_seed))
    labels = sample_camera_path(clip_seed, num_frames)
    files, entries, name = [], [], f'{index:06d}'
    for i, motion in enumerate(sample_motion_path(clip_seed, num_frames, FPS)):
        frame = model.render(motion, labels[i], resolution)
        stem = f'{name}/{i:05d}'
        files += _encode(stem, frame)
        entries.append((f'{stem}.png', [float(v) for v in labels[i]]))
    info = {'source': 'synthetic', 'identity': clip_seed, 'seed': seed, 'index': index}
    return _Clip(name, files, entries, info)


def _encode(stem: str, frame: Frame) -> list[tuple[str, bytes]]:
    depth = np.round(frame.depth * DEPTH_SCALE).astype(np.uint16)
    normal = np.round((frame.normal * 0.5 + 0.5) * 255).astype(np.uint8)
    mask = frame.mask.astype(np.uint8) * 255
    pictures = {'.depth.png': depth, '.mask.png': mask, '.normal.png': normal, '.png': frame.image}
    return [(stem + suffix, _png(pixels)) for suffix, pixels in pictures.items()]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format='PNG')
    return buffer.getvalue()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _run(jobs: list[tuple[int, int, int, int]], workers: int) -> Iterator[_Clip]:
    """Renders the clips in order, in this process or in `workers` of them."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(_render_clip, jobs)
        return
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield from pool.map(_render_clip, jobs)


def _index(clips: list[_Clip], resolution: int) -> bytes:
    index = {
        'format': 'pv3d-dataset',
        'version': 1,
        'resolution': resolution,
        'fps': FPS,
        'labels': [[name, label] for clip in clips for name, label in clip.labels],
        'clips': {clip.name: clip.info for clip in clips},
    }
    return json.dumps(index).encode()


def _write_zip(dest: Path, clips: Iterable[_Clip], resolution: int) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f'.{dest.name}.', suffix='.tmp', dir=dest.parent)
    try:
        done = []
        with os.fdopen(handle, 'wb') as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
            for clip in clips:
                for name, data in clip.files:
                    archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), data)
                done.append(clip._replace(files=[]))
            archive.writestr(zipfile.ZipInfo('dataset.json', _ZIP_DATE), _index(done, resolution))
        os.chmod(temporary, 0o644)
        os.replace(temporary, dest)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_folder(dest: Path, clips: Iterable[_Clip], resolution: int) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f'.{dest.name}.', suffix='.tmp', dir=dest.parent))
    try:
        done = []
        for clip in clips:
            (temporary / clip.name).mkdir()
            for name, data in clip.files:
                (temporary / name).write_bytes(data)
            done.append(clip._replace(files=[]))
        (temporary / 'dataset.json').write_bytes(_index(done, resolution))
        os.chmod(temporary, 0o755)
        os.replace(temporary, dest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _tent(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x) / 2, 0) / 2


def _outward(part: head_parts.Part) -> head_parts.Part:
    """Reverses the columns of a closed part whose normals point inwards (signed volume below 0)."""
    if not part.closed:
        return part
    corners = part.position.reshape(-1, 3)[_grid_triangles(part)]
    volume = np.einsum('ni,ni->', corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    return (
        part
        if volume > 0
        else part._replace(position=part.position[:, ::-1], canonical=part.canonical[:, ::-1])
    )


def _grid_triangles(part: head_parts.Part) -> np.ndarray:
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
