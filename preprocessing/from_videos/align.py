"""Crops of a talking head: turned as in FFHQ, placed as in EG3D, steady over time.

A transform is a similarity [2, 3] from pixels of the frame to pixels of the crop; pixel coordinates begin at
the left and top edge of the first pixel, whose middle is 0.5.
"""

import math
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dnnlib import scene
from dnnlib.util import Skip, atomic_write
from preprocessing.dataset_files.pack import FORMATS
from preprocessing.faces import canonical
from preprocessing.from_videos import cameras
from preprocessing.from_videos.smoothing import smooth
from preprocessing.from_videos.sources import clip_frames
from preprocessing.from_videos.stages import Item, Stage

PIVOT = np.array(scene.PIVOT)
_ROUNDS = 4  # of pose and placement in turn; the crop moves by less than 0.1 pixels of 512 in a fifth
_MARGIN = 4  # pixels of the crop around it that the two bicubic filters see


def ffhq_quad(points: np.ndarray) -> np.ndarray:
    """Returns FFHQ's crop [Karras et al. 2019, appendix C] as transforms [..., 2, 3] to the square [0, 1]^2.

    Args:
        points: 68 landmarks in iBUG's order in pixels of the frame, [..., 68, 2].
    """
    right, left = points[..., 36:42, :].mean(axis=-2), points[..., 42:48, :].mean(axis=-2)
    eyes, mouth = (right + left) / 2, (points[..., 48, :] + points[..., 54, :]) / 2
    across, down = left - right, mouth - eyes
    x = across + np.stack([down[..., 1], -down[..., 0]], axis=-1)  # both point to the image's right
    lengths = np.maximum(2.0 * np.linalg.norm(across, axis=-1), 1.8 * np.linalg.norm(down, axis=-1))
    angle = np.arctan2(x[..., 1], x[..., 0])
    return compose(1 / (2 * lengths), -angle, eyes + 0.1 * down, np.full(2, 0.5))


def crop_transforms(landmarks: np.ndarray, size: int, sigma: float = 2.0) -> np.ndarray:
    """Finds the crop of every frame.

    FFHQ's alignment turns the image until the eyes are level. Then the canonical face is turned as the face
    in the frame is, and seen by the camera at RADIUS from the origin that looks at PIVOT. Scale and shift of
    the crop lay the landmarks over that view (EG3D's realignment in depth). Landmarks are smoothed over time
    before, and angle, scale and centre of the crop after it.

    Args:
        landmarks: x, y in pixels of the frame and z in the same unit, smaller = nearer, [T, 468, 3].
        size: pixels of a side of the crop.
        sigma: width of the smoothing in frames.

    Returns:
        float64 [T, 2, 3].
    """
    face = canonical.points()
    landmarks = smooth(landmarks, sigma)
    transforms = ffhq_quad(landmarks[:, list(canonical.SIXTY_EIGHT), :2])
    for _ in range(_ROUNDS):
        rotation, translation = cameras.face_pose(transform_points(transforms, landmarks))
        target = cameras.project(face, rotation, standard_translation(rotation))
        scale, shift = _scale_and_shift(cameras.project(face, rotation, translation), target)
        transforms = transforms * scale[:, None, None]
        transforms[..., 2] += shift
    middle = np.full(2, 0.5)
    log_scale, angle, centre = decompose(transforms, middle)
    log_scale, angle, centre = (smooth(p, sigma) for p in (log_scale, np.unwrap(angle), centre))
    return compose(np.exp(log_scale) * size, angle, centre, middle * size)


def standard_translation(rotation: np.ndarray) -> np.ndarray:
    """Returns how far [T, 3] faces turned by [T, 3, 3] are before a camera that looks at PIVOT, cm."""
    forward = rotation[:, 2]  # of the camera, in the world
    along = forward @ PIVOT
    distance = along + np.sqrt(along**2 + cameras.RADIUS**2 - PIVOT @ PIVOT)  # of the camera from the pivot
    position = PIVOT - distance[:, None] * forward
    return (rotation @ (cameras.OFFSET - position)[..., None])[..., 0] / cameras.SCALE


def transform_points(transforms: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Maps landmarks [T, N, 2 or 3] from the frames to the crops; z is scaled like x and y."""
    moved = points[..., :2] @ transforms[:, :, :2].swapaxes(1, 2) + transforms[:, None, :, 2]
    scale = np.sqrt(np.linalg.det(transforms[:, :, :2]))
    return np.concatenate([moved, points[..., 2:] * scale[:, None, None]], axis=-1)


def warp_frame(frame: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Cuts the crop out of a frame, antialiased; outside, the frame is reflected once.

    Where the crop is smaller, its part of the frame is first reduced with a bicubic filter of the right
    width. Bicubic interpolation then turns and shifts it.

    Args:
        frame: RGB, uint8 [H, W, 3].
        transform: frame to crop, [2, 3].
        size: pixels of a side of the crop.

    Returns:
        RGB, uint8 [size, size, 3].
    """
    linear, shift = transform[:, :2], transform[:, 2]
    scale = math.sqrt(np.linalg.det(linear))
    if scale < 1:
        corners = (size * np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) - shift) @ np.linalg.inv(linear).T
        margin, extent = _MARGIN / scale, frame.shape[1::-1]
        low = np.clip(corners.min(axis=0) - margin, 0, np.subtract(extent, 1)).astype(int)
        high = np.clip(np.ceil(corners.max(axis=0) + margin), low + 1, extent).astype(int)
        reduced = np.ceil((high - low) * scale).astype(int)
        part = Image.fromarray(frame[low[1] : high[1], low[0] : high[0]])
        frame = np.asarray(part.resize(tuple(reduced.tolist()), Image.Resampling.BICUBIC))
        linear, shift = linear * ((high - low) / reduced), shift + linear @ low
    shift = shift + linear @ [0.5, 0.5] - 0.5  # for OpenCV, the middle of the first pixel is 0
    matrix = np.concatenate([linear, shift[:, None]], axis=1)
    return cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def compose(scale: np.ndarray, angle: np.ndarray, centre: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Makes similarities [..., 2, 3] that turn by `angle` and bring `centre` [..., 2] to `target` [2]."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    linear = np.stack([np.stack([c, -s], axis=-1), np.stack([s, c], axis=-1)], axis=-2)
    return np.concatenate([linear, (target - (linear @ centre[..., None])[..., 0])[..., None]], axis=-1)


def decompose(transforms: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns log scale [...], angle [...] and what comes to lie on `target` [..., 2]; see `compose`."""
    linear = transforms[..., :2]
    centre = np.linalg.solve(linear, (target - transforms[..., 2])[..., None])[..., 0]
    return np.log(np.linalg.det(linear)) / 2, np.arctan2(linear[..., 1, 0], linear[..., 0, 0]), centre


def _scale_and_shift(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale [T] and shift [T, 2] that best bring source to target, [T, N, 2]."""
    mean_s, mean_t = source.mean(axis=1), target.mean(axis=1)
    s, t = source - mean_s[:, None], target - mean_t[:, None]
    scale = (s * t).sum(axis=(1, 2)) / (s * s).sum(axis=(1, 2))
    return scale, mean_t - scale[:, None] * mean_s


@Stage('align', per='clip', needs=('sources', 'tracks'), options=('resolution', 'sigma'), version=3)
def align_stage(item: Item, options: Any) -> dict[str, Any]:
    """Crops the frames of a clip; writes align/CLIP/*.png and CLIP.npz, returns the content of CLIP.json."""
    cv2.setNumThreads(1)  # the processes of a run share the cores
    video, k, work = item.video, item.origin['track'], item.work
    entry, track = work.read(f'sources/{video}'), work.read(f'tracks/{video}')['tracks'][k]
    landmarks = work.arrays('tracks', video, [f'landmarks_{k}'])[f'landmarks_{k}'].astype(np.float64)
    transforms = np.asarray(crop_transforms(landmarks, options.resolution, options.sigma), np.float64)
    scales = np.sqrt(np.abs(np.linalg.det(transforms[:, :, :2])))
    folder = work.root / 'align' / item.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():  # of a run that was killed
        old.unlink()
    first, count, done = track['first'], track['frames'], 0
    for frame in clip_frames(entry, first, count):
        image = warp_frame(frame, transforms[done], options.resolution)
        with atomic_write(folder / f'{done:05d}.png') as file:
            Image.fromarray(image).save(file, **FORMATS['png'])  # `pack` copies it
        done += 1
    if done != count:
        raise Skip(f'only {done} of {count} frames can be decoded a second time')
    points = transform_points(transforms, landmarks).astype(np.float32)
    return {
        'video': video,
        'first': first,
        'frames': count,
        'fps': entry['fps'],
        'transform': transforms.tolist(),
        'upscale': float(scales.mean()),
        'files': [f'align/{item.name}', work.write_arrays('align', item.name, {'landmarks': points})],
    }
