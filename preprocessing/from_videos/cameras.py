"""Head poses and camera labels from 468 landmarks of a face, frame by frame and then smoothed.

The canonical face is fitted to the landmarks (perspective n points): its pose before the camera, seen the
other way round, is the camera before a head that rests in the world of training/camera.py. No torch here:
worker processes start quickly without it.
"""

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from dnnlib.scene import FOCAL, RADIUS
from preprocessing.faces import canonical
from preprocessing.from_videos.smoothing import smooth, smooth_rotations

# The canonical face in the world of training/camera.py: world = SCALE * canonical + OFFSET.
# OFFSET [scene units] fits the landmarks of an orbit of the released generator, whose cameras are known
# exactly. SCALE [scene units per cm] is the size of the faces in 16 clips that were aligned as EG3D does:
# 0.0254 if they were at a distance of 2.7, less because they are nearer (the orbit alone: 0.0240). The point
# that the cameras of these clips look at is then (0, 0.007, 0.156); EG3D has the middle of its 3DMM at
# (0, 0.006, 0.161). A fitted tilt was 0.1 degrees for the clips and -1.8 for the orbit, which is one face; it
# is left out.
SCALE = 0.0244
OFFSET = np.array([0.0, 0.018, 0.109])

_STEPS = 30
_BLOCK = 256  # frames at a time, bounds memory: 0.2 GB, also for a clip of an hour
_CONVERGED = 1e-6  # largest step, radians and fractions of the distance
_OUTLIER = 3.0  # residual in units of the frame's own spread at which a point has half its weight
_LEAST_SPREAD = 1e-5  # image widths


@dataclasses.dataclass(frozen=True)
class Cameras:
    """Camera labels of a clip; layout and world in training/camera.py."""

    labels: np.ndarray  # smoothed over time, [T, 25]
    raw_labels: np.ndarray  # each frame by itself, [T, 25]
    residual: float | None  # mean distance of the projected face from the landmarks in pixels at 512


def estimate_cameras(landmarks: np.ndarray, size: float, sigma: float = 2.0) -> Cameras:
    """Estimates the cameras of an aligned clip.

    Args:
        landmarks: x, y in pixels of the crop (0 = its left or top edge) and z in the same unit, smaller =
            nearer, [T, 468, 3].
        size: pixels of a side of the crop.
        sigma: width of the smoothing in frames.
    """
    points = np.asarray(landmarks, dtype=np.float64) / size
    rotation, translation = face_pose(points)
    off = np.linalg.norm(project(canonical.points(), rotation, translation) - points[..., :2], axis=-1)
    return Cameras(
        labels=pose_labels(smooth_rotations(rotation, sigma), smooth(translation, sigma)),
        raw_labels=pose_labels(rotation, translation),
        residual=float(off.mean() * 512),
    )


def face_pose(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the pose of the canonical face before the camera of every frame.

    Args:
        points: landmarks in image widths, the image is [0, 1]^2, [T, 468, 3].

    Returns:
        rotation [T, 3, 3] and translation [T, 3] in cm, camera = rotation @ canonical + translation.
    """
    face = canonical.points()
    rotations, translations = np.empty((len(points), 3, 3)), np.empty((len(points), 3))
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        begin = procrustes_pose(points[block], face)
        rotations[block], translations[block] = refine_pose(points[block, :, :2], face, *begin)
    return rotations, translations


def procrustes_pose(points: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses the face [N, 3] as if seen from far away: the similarity that best brings it to points [T, N, 3].

    Result as of `face_pose`; closed form [Umeyama 1991].
    """
    mean_f, mean_p = face.mean(axis=0), points.mean(axis=1)
    f, p = face - mean_f, points - mean_p[:, None]
    u, values, v = np.linalg.svd(p.swapaxes(1, 2) @ f)
    sign = np.ones_like(values)
    sign[:, 2] = np.sign(np.linalg.det(u @ v))
    rotation = (u * sign[:, None]) @ v
    scale = (values * sign).sum(axis=1) / (f * f).sum()  # image widths per cm
    middle = np.concatenate([mean_p[:, :2] - 0.5, np.full((len(points), 1), FOCAL)], axis=1) / scale[:, None]
    return rotation, middle - rotation @ mean_f


def refine_pose(
    points: np.ndarray, face: np.ndarray, rotation: np.ndarray, translation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises the reprojection error of every frame (Levenberg-Marquardt; outliers lose their weight).

    Args:
        points: in image widths, [T, N, 2].
        face: cm, [N, 3].
        rotation: to start from, [T, 3, 3].
        translation: to start from, cm, [T, 3].
    """
    damping = np.full(len(points), 1e-3)
    residual, jacobian = _linearise(points, face, rotation, translation)
    for _ in range(_STEPS):
        weights = _robust_weights(residual)
        rows = jacobian.reshape(len(points), -1, 6)
        weighted = (weights[:, :, None, None] * jacobian).reshape(rows.shape).swapaxes(1, 2)
        gradient = weighted @ residual.reshape(len(points), -1, 1)
        hessian = weighted @ rows
        diagonal = np.einsum('tii->ti', hessian)
        damped = hessian + np.eye(6) * (damping[:, None] * diagonal)[:, None]
        step = -np.linalg.solve(damped, gradient)[..., 0]
        turned = Rotation.from_rotvec(step[:, :3]).as_matrix() @ rotation
        moved = translation + step[:, 3:] * translation[:, 2:]
        new_residual, new_jacobian = _linearise(points, face, turned, moved)
        better = _cost(new_residual, weights) <= _cost(residual, weights)
        rotation = np.where(better[:, None, None], turned, rotation)
        translation = np.where(better[:, None], moved, translation)
        residual = np.where(better[:, None, None], new_residual, residual)
        jacobian = np.where(better[:, None, None, None], new_jacobian, jacobian)
        damping = np.clip(np.where(better, damping / 10, damping * 10), 1e-9, 1e6)
        if np.abs(step).max() < _CONVERGED:
            break
    return rotation, translation


def project(face: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Projects the face [N, 3] in poses [T, 3, 3], [T, 3] to image widths [T, N, 2]."""
    seen = face @ rotation.swapaxes(1, 2) + translation[:, None]
    return FOCAL * seen[..., :2] / seen[..., 2:] + 0.5


def pose_labels(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Turns poses of the face [T, 3, 3], [T, 3] into camera labels [T, 25] at RADIUS from the origin."""
    axes, position = world_cameras(rotation, translation)
    return make_labels(axes, RADIUS * position / np.linalg.norm(position, axis=1, keepdims=True))


def world_cameras(rotation: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the camera's axes as columns [T, 3, 3] and its position [T, 3] before the resting face."""
    axes = rotation.swapaxes(1, 2)
    return axes, OFFSET - SCALE * (axes @ translation[..., None])[..., 0]


def make_labels(axes: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Packs camera axes [T, 3, 3] (right, down, forward as columns) and positions [T, 3] into [T, 25]."""
    labels = np.zeros((len(axes), 25))
    pose = labels[:, :16].reshape(-1, 4, 4)
    pose[:, :3, :3], pose[:, :3, 3], pose[:, 3, 3] = axes, position, 1
    labels[:, 16:] = [FOCAL, 0, 0.5, 0, FOCAL, 0.5, 0, 0, 1]
    return labels


def _linearise(
    points: np.ndarray, face: np.ndarray, rotation: np.ndarray, translation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns residuals [T, N, 2] and their derivatives [T, N, 2, 6].

    The parameters are a small rotation after the present one and a shift in fractions of the distance.
    """
    turned = face @ rotation.swapaxes(1, 2)
    a, b, c = np.moveaxis(turned, -1, 0)
    near = FOCAL / (c + translation[:, 2:])
    u, v = near * (a + translation[:, :1]), near * (b + translation[:, 1:2])
    x, y = u * near / FOCAL, v * near / FOCAL  # how much a shift along z brings the point to the middle
    zero, distance = np.zeros_like(near), translation[:, 2:]
    by_u = [-b * x, near * c + a * x, -near * b, near * distance, zero, -x * distance]
    by_v = [-near * c - b * y, a * y, near * a, zero, near * distance, -y * distance]
    jacobian = np.stack([np.stack(by_u, axis=-1), np.stack(by_v, axis=-1)], axis=-2)
    return np.stack([u, v], axis=-1) + 0.5 - points, jacobian


def _cost(residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums weighted squares of residuals [T, N, 2] to [T]."""
    return np.einsum('tn,tnk,tnk->t', weights, residual, residual)


def _robust_weights(residual: np.ndarray) -> np.ndarray:
    """Returns weights [T, N] that are smaller for far points (Cauchy's function of the distance)."""
    distance = np.linalg.norm(residual, axis=-1)
    spread = np.maximum(np.median(distance, axis=1, keepdims=True), _LEAST_SPREAD)
    return 1 / (1 + (distance / (_OUTLIER * spread)) ** 2)
