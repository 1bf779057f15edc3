"""Crops of a talking head: as FFHQ turns them, as EG3D places them, steady over time.

A transform is a similarity [2, 3] from pixels of the frame to pixels of the crop; pixel coordinates begin at
the left and top edge of the first pixel, whose middle is 0.5.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from preprocessing.faces.canonical import SIXTY_EIGHT
from preprocessing.from_videos import cameras
from preprocessing.from_videos.smoothing import smooth

PIVOT = np.array([0.0, 0.0, 0.2])  # what the standard camera looks at, as training.camera has it
_ROUNDS = 4  # of pose and placement in turn; the crop moves by less than 0.1 pixels of 512 in a fifth
_MARGIN = 8  # pixels around the part of the frame that is resampled, for the filters
_POLE = math.sqrt(3) - 2  # of the recursion that finds cubic splines [Unser et al. 1993, part 2]
_ROWS = 64  # of the crop at a time, so that what is computed for them stays in the cache


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
        canonical: as for `cameras.estimate_cameras`.
        weights: as for `cameras.estimate_cameras`.

    Returns:
        float64 [T, 2, 3].
    """
    canonical, weights = cameras.canonical_face(canonical, weights)
    landmarks = smooth(landmarks, sigma)
    transforms = ffhq_quad(landmarks[:, list(SIXTY_EIGHT), :2])
    for _ in range(_ROUNDS):
        points = transform_points(transforms, landmarks)
        rotation, translation = cameras.face_pose(points, canonical, weights)
        target = cameras.project(canonical, rotation, standard_translation(rotation))
        scale, shift = _scale_and_shift(cameras.project(canonical, rotation, translation), target, weights)
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
    """Brings landmarks [T, N, 2 or 3] from the frames into the crops; z is scaled like x and y."""
    moved = points[..., :2] @ transforms[:, :, :2].swapaxes(1, 2) + transforms[:, None, :, 2]
    scale = np.sqrt(np.linalg.det(transforms[:, :, :2]))
    return np.concatenate([moved, points[..., 2:] * scale[:, None, None]], axis=-1)


def warp_frame(frame: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Cuts the crop out of a frame, antialiased; beyond its borders the frame is reflected.

    The part of the frame that is seen is reduced with a bicubic filter of the right width where the crop is
    smaller than it, then turned and shifted with cubic splines, in float32.

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
    part = frame.take(rows, axis=0).take(columns, axis=1)
    reduced = np.maximum(np.ceil(extent * min(scale, 1.0)), 1).astype(int)
    if scale < 1:
        part = np.asarray(Image.fromarray(part).resize(tuple(reduced.tolist()), Image.Resampling.BICUBIC))
    zoom = reduced / extent
    to_part = zoom[:, None] * linear
    start = zoom * (-linear @ transform[:, 2] - low) + to_part @ [0.5, 0.5] - 0.5  # middle of pixel 0
    coefficients = _spline_coefficients(part)
    crop = torch.empty(size, size, part.shape[2], dtype=torch.uint8)
    across = torch.arange(size, dtype=torch.float64)
    for some, down in zip(crop.split(_ROWS), across[:, None].split(_ROWS), strict=True):
        x, y = (start[k] + to_part[k, 0] * across + to_part[k, 1] * down for k in (0, 1))
        values = _evaluate_spline(coefficients, x.float(), y.float())
        some.copy_(values.round_().clamp_(0, 255).permute(1, 2, 0))
    return crop.numpy()


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


def _spline_coefficients(picture: np.ndarray) -> torch.Tensor:
    """Returns coefficients [C, W, H] of the cubic B-splines that go through the pixels of [H, W, C]."""
    height, width, channels = picture.shape
    rows = picture.reshape(height, width * channels).astype(np.float32)
    _filter_spline(rows)
    columns = np.ascontiguousarray(rows.reshape(height, width, channels).transpose(1, 2, 0))
    _filter_spline(columns.reshape(width, channels * height))
    return torch.from_numpy(columns).permute(1, 0, 2)


def _filter_spline(rows: np.ndarray) -> None:
    """Turns values into coefficients of cubic splines along the first axis of [N, M], in place.

    The two recursions of Unser et al., mirrored at both ends. A row at a time: many short vectors are
    several times faster than a recursion along each column.
    """
    rows *= 6
    last = len(rows) - 1
    powers = np.float32(_POLE) ** np.arange(min(last, 16) + 1, dtype=np.float32)  # 1e-9 in the end
    rows[0] = powers @ rows[: len(powers)]
    for i in range(1, last + 1):
        rows[i] += _POLE * rows[i - 1]
    rows[last] = _POLE / (_POLE**2 - 1) * (rows[last] + _POLE * rows[last - 1])
    for i in range(last - 1, -1, -1):
        rows[i] = _POLE * (rows[i + 1] - rows[i])


def _evaluate_spline(coefficients: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Evaluates splines with coefficients [C, W, H] at points [R, N]; returns [C, R, N].

    The sum of 4 x 4 coefficients is made of 2 x 2 linear interpolations between them, at places that give
    the right weights [Sigg and Hadwiger 2005, GPU Gems 2, chapter 20].
    """
    channels, width, height = coefficients.shape
    (left, right, to_right), (above, below, to_below) = _two_places(x), _two_places(y)
    grid = torch.empty(2, 2, *x.shape, 2)  # above or below, left or right; -1 to 1 over the coefficients
    grid[..., 1] = torch.stack([left, right]).mul_(2 / (width - 1)).sub_(1)
    grid[..., 0] = torch.stack([above, below]).mul_(2 / (height - 1)).sub_(1)[:, None]
    found = F.grid_sample(coefficients[None], grid.view(1, -1, x.shape[1], 2), align_corners=True)
    found = found.view(channels, 2, 2, *x.shape)
    across = torch.lerp(found[:, :, 0], found[:, :, 1], to_right)
    return torch.lerp(across[:, 0], across[:, 1], to_below)


def _two_places(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns where to interpolate linearly, before and behind x, and the weight of what is behind it."""
    whole = x.floor()
    t = x - whole
    u = 1 - t
    first, fourth = u**3 / 6, t**3 / 6  # weights of the neighbours whole - 1 and whole + 2
    behind = 2 / 3 - u * u * (2 - u) / 2 + fourth  # of the third and the fourth
    return whole - first / (1 - behind), whole + 1 + fourth / behind, behind


def _scale_and_shift(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale [T] and shift [T, 2] that best bring source to target, [T, N, 2]."""
    w = weights / weights.sum()
    mean_s, mean_t = np.einsum('n,tnk->tk', w, source), np.einsum('n,tnk->tk', w, target)
    s, t = source - mean_s[:, None], target - mean_t[:, None]
    scale = np.einsum('n,tnk,tnk->t', w, s, t) / np.einsum('n,tnk,tnk->t', w, s, s)
    return scale, mean_t - scale[:, None] * mean_s
