"""Crops of a talking head: as FFHQ turns them, as EG3D places them, steady over time.

A transform is a similarity [2, 3] from pixels of the frame to pixels of the crop; pixel coordinates begin at
the left and top edge of the first pixel, whose middle is 0.5.
"""

import math

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform

from preprocessing import head_pose
from preprocessing.face_mesh.canonical import SIXTY_EIGHT
from preprocessing.smoothing import smooth

PIVOT = np.array([0.0, 0.0, 0.2])  # what the standard camera looks at, as training.camera has it
_ROUNDS = 4  # of pose and placement in turn; the crop moves by less than 0.1 pixels of 512 in a fifth
_MARGIN = 8  # pixels around the part of the frame that is resampled, for the filters


def ffhq_quad(points: np.ndarray) -> np.ndarray:
    """Returns FFHQ's crop [Karras et al. 2019, appendix C] as transforms [..., 2, 3] to the picture [0, 1]^2.

    Args:
        points: 68 landmarks in iBUG's order in pixels of the frame, [..., 68, 2].
    """
    right, left = points[..., 36:42, :].mean(axis=-2), points[..., 42:48, :].mean(axis=-2)
    eyes, mouth = (right + left) / 2, (points[..., 48, :] + points[..., 54, :]) / 2
    across, down = left - right, mouth - eyes
    x = across - _quarter_turn(down)
    lengths = np.maximum(2.0 * np.linalg.norm(across, axis=-1), 1.8 * np.linalg.norm(down, axis=-1))
    angle = np.arctan2(x[..., 1], x[..., 0])
    return compose(1 / (2 * lengths), -angle, eyes + 0.1 * down, np.full(2, 0.5))


def crop_transforms(
    landmarks: np.ndarray,
    size: int,
    sigma: float = 2.0,
    *,
    canonical: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Finds the crop of every frame.

    FFHQ's similarity fixes the roll. Scale and shift then follow from the pose: the canonical face, turned as
    the face in the frame and resting in the world, has to be seen where the landmarks are by the camera at
    RADIUS from the origin that looks at PIVOT (EG3D's realignment in depth). Landmarks are smoothed over time
    before, and angle, scale and centre of the crop after it.

    Args:
        landmarks: x, y in pixels of the frame and z in the same unit, smaller = nearer, [T, 468, 3].
        size: pixels of a side of the crop.
        sigma: width of the smoothing in frames.
        canonical: as for `head_pose.estimate_cameras`.
        weights: as for `head_pose.estimate_cameras`.

    Returns:
        float64 [T, 2, 3].
    """
    canonical, weights = head_pose.canonical_face(canonical, weights)
    landmarks = smooth(landmarks, sigma)
    transforms = ffhq_quad(landmarks[:, list(SIXTY_EIGHT), :2])
    for _ in range(_ROUNDS):
        points = transform_points(transforms, landmarks)
        rotation, translation = head_pose.face_pose(points, canonical, weights)
        target = head_pose.project(canonical, rotation, standard_translation(rotation))
        scale, shift = _scale_and_shift(head_pose.project(canonical, rotation, translation), target, weights)
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
    distance = along + np.sqrt(along**2 + head_pose.RADIUS**2 - PIVOT @ PIVOT)  # of the camera from the pivot
    position = PIVOT - distance[:, None] * forward
    return (rotation @ (head_pose.OFFSET - position)[..., None])[..., 0] / head_pose.SCALE


def transform_points(transforms: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Brings landmarks [T, N, 2 or 3] from the frames into the crops; z is scaled like x and y."""
    moved = points[..., :2] @ transforms[:, :, :2].swapaxes(1, 2) + transforms[:, None, :, 2]
    scale = np.sqrt(np.linalg.det(transforms[:, :, :2]))
    return np.concatenate([moved, points[..., 2:] * scale[:, None, None]], axis=-1)


def warp_frame(frame: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Cuts the crop out of a frame, antialiased; beyond its borders the frame is reflected.

    The part of the frame that is seen is reduced with a bicubic filter of the right width where the crop is
    smaller than it, then turned and shifted with cubic splines.

    Args:
        frame: RGB, uint8 [H, W, 3].
        transform: frame to crop, [2, 3].
        size: pixels of a side of the crop.

    Returns:
        RGB, uint8 [size, size, 3].
    """
    linear = np.linalg.inv(transform[:, :2])
    scale = math.sqrt(np.linalg.det(transform[:, :2]))
    corners = (np.array([[0, 0], [size, 0], [0, size], [size, size]]) - transform[:, 2]) @ linear.T
    margin = math.ceil(_MARGIN * max(1.0, 1 / scale))
    low = np.floor(corners.min(axis=0)).astype(int) - margin
    extent = np.ceil(corners.max(axis=0)).astype(int) + margin - low
    columns, rows = (
        _reflect(np.arange(a, a + n), limit)
        for a, n, limit in zip(low, extent, frame.shape[1::-1], strict=True)
    )
    part = frame[rows[:, None], columns]
    reduced = np.maximum(np.ceil(extent * min(scale, 1.0)), 1).astype(int)
    if scale < 1:
        part = np.asarray(Image.fromarray(part).resize(tuple(reduced.tolist()), Image.Resampling.BICUBIC))
    zoom = reduced / extent
    to_part = zoom[:, None] * linear
    start = (
        zoom * (-linear @ transform[:, 2] - low) + to_part @ [0.5, 0.5] - 0.5
    )  # of the first pixel's middle
    swapped = (to_part[::-1, ::-1], start[::-1])  # rows before columns
    channels = [
        affine_transform(part[..., k].astype(np.float32), *swapped, (size, size), mode='mirror')
        for k in range(part.shape[2])
    ]
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)


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


def _quarter_turn(v: np.ndarray) -> np.ndarray:
    """Turns vectors [..., 2] from x towards y."""
    return np.stack([-v[..., 1], v[..., 0]], axis=-1)


def _reflect(index: np.ndarray, limit: int) -> np.ndarray:
    """Folds indices into [0, limit): ... 1 0 0 1 2 ..., as often as it takes."""
    folded = index % (2 * limit)
    return np.minimum(folded, 2 * limit - 1 - folded)


def _scale_and_shift(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale [T] and shift [T, 2] that best bring source to target, [T, N, 2]."""
    w = weights / weights.sum()
    mean_s, mean_t = np.einsum('n,tnk->tk', w, source), np.einsum('n,tnk->tk', w, target)
    s, t = source - mean_s[:, None], target - mean_t[:, None]
    scale = np.einsum('n,tnk,tnk->t', w, s, t) / np.einsum('n,tnk,tnk->t', w, s, s)
    return scale, mean_t - scale[:, None] * mean_s
