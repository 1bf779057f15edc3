"""One face in an image or a video as it comes from a camera -> aligned crops and their cameras.

Detection, alignment and cameras are those of `from_videos`; here a source is one image or one piece of a
video, and what cannot be used is explained in a sentence.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dnnlib.scene import FOCAL, LABEL_DIM
from dnnlib.util import DataError, atomic_write
from dnnlib.video import IMAGE_TYPES, natural, probe, video_frames
from preprocessing.dataset_files.pack import FORMATS
from preprocessing.faces.mesh import FaceMesh, rect_of_face, rect_of_landmarks
from preprocessing.from_videos.align import crop_transforms, transform_points, warp_frame
from preprocessing.from_videos.cameras import estimate_cameras
from preprocessing.from_videos.tracks import box_of, track_video
from training.data.archive import dataset_json

CAMERAS = 'cameras.json'  # {name of an image: [its label]}
_MAX_ENLARGED = 2.0  # a crop with fewer pixels than the result has in this many is refused
_TURNS_DEG = (90, 180, 270)


class Aligned(NamedTuple):
    """Crops of one face."""

    images: np.ndarray  # uint8 RGB [T, size, size, 3]
    labels: np.ndarray  # cameras [T, 25]
    fps: float
    note: str  # what the user should know; '' = nothing


def align_image(path: Path, size: int, focal: float = FOCAL) -> Aligned:
    """Crops the largest face of an image; see `crops`.

    Raises:
        DataError: if the image cannot be read, or shows no face, a turned one, or one that is too small.
    """
    image, mesh = read_image(path), FaceMesh()
    found = faces(image, mesh)
    if not found:
        turned = next((d for d in _TURNS_DEG if faces(np.rot90(image, d // 90).copy(), mesh)), None)
        hint = (
            f'it seems to lie: turn the image by {turned} degrees to the left'
            if turned
            else ('use an image in which a face is seen from the front and fills a good part')
        )
        raise DataError(f'{path}: no face was found; {hint}')
    found.sort(key=lambda points: -_size(points))
    note = f'{path} shows {len(found)} faces; the largest is used' if len(found) > 1 else ''
    images, labels = crops([image], found[0][None], size, focal, str(path))
    return Aligned(images, labels, 25.0, note)


def align_folder(source: Path, dest: Path, size: int, focal: float = FOCAL) -> Iterator[tuple[str, str]]:
    """Crops the largest face of every image of a folder: DEST/NAME.png, and cameras.json with their labels.

    That is also the plain layout of `dataset_files.pack`, but for the single frames. dataset.json says the
    same for `train.py --images`.

    Yields:
        name of the file in the source, and what there is to say of it: why it is skipped, or a note.

    Raises:
        UserError: if there is no image with a face, or files cannot be written.
    """
    paths = sorted(
        (p for p in source.iterdir() if p.suffix.lower() in IMAGE_TYPES), key=lambda p: natural(p.name)
    )
    table: dict[str, list[list[float]]] = {}
    dest.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            found = align_image(path, size, focal)
        except DataError as reason:
            yield path.name, f'skipped, {reason}'
            continue
        with atomic_write(dest / f'{path.stem}.png') as file:
            Image.fromarray(found.images[0]).save(file, **FORMATS['png'])
        table[f'{path.stem}.png'] = found.labels.tolist()
        yield path.name, found.note
    if not table:
        raise DataError(f'{source} has no image with a face that can be used')
    with atomic_write(dest / CAMERAS, 'w') as file:
        json.dump(table, file)
    labels = [[name, rows[0]] for name, rows in table.items()]
    with atomic_write(dest / 'dataset.json') as file:
        file.write(dataset_json(size, 25.0, labels, {}))


def known_labels(path: Path) -> np.ndarray | None:
    """Returns the cameras [T, 25] that a cameras.json beside an image or video has for its frames, if any.

    Raises:
        DataError: if the file of cameras is none.
    """
    table_file = path.with_name(CAMERAS)
    if not table_file.exists():
        return None
    try:
        labels = json.loads(table_file.read_text()).get(path.name)
        return None if labels is None else np.asarray(labels, np.float32).reshape(-1, LABEL_DIM)
    except (ValueError, TypeError, AttributeError) as err:
        raise DataError(f'{table_file} is not an object of labels, {{name: [25 numbers a frame]}}') from err


def read_aligned(
    path: Path, labels: np.ndarray, size: int, focal: float = FOCAL, first: int = 0, count: int | None = None
) -> Aligned:
    """Reads an image or video that is aligned already; a longer focal length sees the middle of it.

    Raises:
        DataError: if it is not square, has another number of frames than labels, none of those asked for, or
            sees too little.
    """
    is_image = path.suffix.lower() in IMAGE_TYPES
    frames = [(read_image(path), 25.0)] if is_image else list(video_frames(path))
    height, width = frames[0][0].shape[:2]
    if len(frames) != len(labels) or height != width:
        raise DataError(
            f'{path}: {len(frames)} frames of {width}x{height}, {len(labels)} cameras in {CAMERAS}; '
            'needed are square frames, each with a camera'
        )
    rows = list(range(len(frames)))[first:][:count]
    if not rows:
        raise DataError(f'{path} has no frame {first}; its {len(frames)} frames are 0 to {len(frames) - 1}')
    images, kept = narrowed([frames[i][0] for i in rows], labels[rows], size, focal, str(path))
    return Aligned(images, kept, frames[0][1] or 25.0, '')


def narrowed(
    frames: Sequence[np.ndarray], labels: np.ndarray, size: int, focal: float, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts out of square frames what cameras of a longer focal length see, the middle.

    Args:
        frames: T images, uint8 RGB [S, S, 3].
        labels: their cameras [T, 25].
        size: pixels of a side of the result.
        focal: focal length of the result, image widths.
        name: of the source, for messages.

    Returns:
        images uint8 [T, size, size, 3] and labels [T, 25].

    Raises:
        DataError: if the focal length of the frames is longer.
    """
    share, width = labels[0, 16] / focal, len(frames[0])
    if share > 1.001:
        raise DataError(
            f'{name} has cameras of focal length {labels[0, 16]:.4g}; it sees too little for this network, '
            f'whose cameras have {focal:.4g}'
        )
    margin = width * max(1 - share, 0) / 2
    box = (margin, margin, width - margin, width - margin)
    images = [
        np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS, box))
        for frame in frames
    ]
    labels = labels.copy()
    labels[:, [16, 20]] = focal
    return np.stack(images), labels


def align_video(
    path: Path, size: int, focal: float = FOCAL, first: int = 0, count: int | None = None, sigma: float = 2.0
) -> Aligned:
    """Follows the largest face of a video through all of its frames, or `count` of them; see `crops`.

    Raises:
        DataError: if the video cannot be decoded, or a face is not seen in each of the frames.
    """
    fps = probe(path).fps
    end = first + count if count else 1 << 30
    arrays, result = track_video(path, [(first, end)], FaceMesh(), 1, 0.0)
    if not result['tracks']:
        raise DataError(f'{path}: no face was found in frames from {first} on; use another piece or video')
    with contextlib.closing(video_frames(path)) as frames:
        total = sum(1 for _ in itertools.islice(frames, end)) - first
    longest = max(range(len(result['tracks'])), key=lambda k: result['tracks'][k]['frames'])
    track = result['tracks'][longest]
    seen = track['frames']
    if seen < total:
        start = track['first']
        raise DataError(
            f'{path}: the face is followed only in frames {start} to {start + seen - 1} of {first} to '
            f'{first + total - 1}; give --first {start} --frames {seen}'
        )
    others = len(result['tracks']) - 1
    note = f'{path} shows {others + 1} faces; that seen longest and largest is used' if others else ''
    with contextlib.closing(video_frames(path)) as frames:
        pixels = (frame for frame, _ in itertools.islice(frames, first, first + total))
        images, labels = crops(pixels, arrays[f'landmarks_{longest}'], size, focal, str(path), sigma)
    return Aligned(images, labels, fps, note)


def read_image(path: Path) -> np.ndarray:
    """Reads an image as it is meant to be seen, uint8 RGB [H, W, 3].

    Raises:
        DataError: if it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as err:
        raise DataError(f'{path}: not an image that can be read ({err}); use PNG or JPEG') from err


def faces(image: np.ndarray, mesh: FaceMesh) -> list[np.ndarray]:
    """Returns the landmarks [468, 3] of the upright faces in an image, as `tracks` finds them in a frame."""
    points, _ = mesh.landmarks(image, [rect_of_face(face) for face in mesh.detect(image)])
    points, scores = mesh.landmarks(image, [rect_of_landmarks(p) for p in points])
    return [p for p, score in zip(points, scores, strict=True) if score >= 0.5 and _upright(p)]


def _upright(points: np.ndarray) -> bool:
    """Returns whether the forehead (10) is above the chin (152), by more than to a side."""
    x, y = (points[152] - points[10])[:2]
    return bool(y > abs(x))


def _size(points: np.ndarray) -> float:
    left, top, right, bottom = box_of(points)
    return float((right - left) * (bottom - top))


def crops(
    frames: Iterable[np.ndarray],
    landmarks: np.ndarray,
    size: int,
    focal: float,
    name: str,
    sigma: float = 2.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Crops a face as training data are, and estimates its cameras.

    Args:
        frames: T images, uint8 RGB [H, W, 3].
        landmarks: of the face in them [T, 468, 3].
        size: pixels of a side of the crop.
        focal: focal length of the crop, image widths: the usual one sees all of the head and more.
        name: of the source, for messages.
        sigma: smoothing over time, frames.

    Returns:
        images uint8 [T, size, size, 3] and labels float32 [T, 25].

    Raises:
        DataError: if the face has too few pixels.
    """
    transforms = crop_transforms(landmarks, size, sigma)
    estimate = estimate_cameras(transform_points(transforms, landmarks), size, sigma)
    labels = estimate.labels.astype(np.float32)
    zoom = focal / FOCAL
    transforms = transforms * zoom
    transforms[..., 2] += size * (1 - zoom) / 2
    labels[:, [16, 20]] = focal
    enlarged = float(np.sqrt(np.linalg.det(transforms[:, :, :2])).max())
    if enlarged > _MAX_ENLARGED:
        raise DataError(
            f'{name}: the face is too small, its crop has {size / enlarged:.0f} pixels along a side where '
            f'{size / _MAX_ENLARGED:.0f} are needed for {size}; use an image with more pixels'
        )
    images = [warp_frame(frame, t, size) for frame, t in zip(frames, transforms, strict=True)]
    return np.stack(images), labels
