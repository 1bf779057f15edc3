"""Meshes of 468 points on faces, with the networks of MediaPipe.

The rectangles in which the network looks (eyes level, 1.5 times the face) are as MediaPipe configures them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from preprocessing.faces.detector import LEFT_EYE, RIGHT_EYE, Face, FaceDetector
from preprocessing.faces.networks import FACE_POINTS, MeshNetwork

RIGHT_EYE_CORNER, LEFT_EYE_CORNER = 33, 263  # outer corners; sides of the person
_SIZE = 192  # pixels of the network's input, and unit of its output
_MARGIN = 1.5  # side of a rectangle, in sides of the face's box


class FaceMesh(FaceDetector):
    """Finds faces, and 468 points on each.

    A rectangle is the place of a face: float64 [4]: x, y of its centre, its side, and its angle (radians,
    clockwise in the image). Coordinates are in pixels, 0 = left/top edge of pixel 0.
    """

    def __init__(self):
        super().__init__()
        self._network = MeshNetwork()

    @torch.inference_mode()
    def landmarks(self, image: np.ndarray, rects: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Finds the points of the faces in rectangles of an image, all at once.

        Args:
            image: uint8 RGB [H, W, 3].
            rects: N rectangles.

        Returns:
            points, float32 [N, 468, 3]: x, y in pixels, z away from the viewer at the same scale, 0 near the
            centre of the head; and scores, float32 [N]: how surely there is a face, 0..1.
        """
        if not len(rects):
            return np.zeros((0, FACE_POINTS, 3), np.float32), np.zeros(0, np.float32)
        crops = torch.from_numpy(np.stack([cut_out(image, rect) for rect in rects]))
        found, logits = self._network(crops.permute(0, 3, 1, 2) / 255)
        points = [_to_image(p, rect) for p, rect in zip(found.double().numpy(), rects, strict=True)]
        return np.stack(points).astype(np.float32), logits.sigmoid().numpy()


def rect_of_face(face: Face) -> np.ndarray:
    """Returns the rectangle in which to look for the points of a face that was detected."""
    center, size = (face.box[:2] + face.box[2:]) / 2, face.box[2:] - face.box[:2]
    angle = _roll(face.keypoints[RIGHT_EYE], face.keypoints[LEFT_EYE])
    return np.array([*center, _MARGIN * size.max(), angle])


def rect_of_landmarks(points: np.ndarray) -> np.ndarray:
    """Returns the rectangle in which to look for points [468, 3] in the next frame."""
    xy = points[:, :2].astype(np.float64)
    angle = _roll(xy[RIGHT_EYE_CORNER], xy[LEFT_EYE_CORNER])
    turn = _rotation(angle)
    level = xy @ turn  # along the axes of the rectangle
    low, high = level.min(axis=0), level.max(axis=0)
    return np.array([*turn @ ((low + high) / 2), _MARGIN * (high - low).max(), angle])


def cut_out(image: np.ndarray, rect: np.ndarray) -> np.ndarray:
    """Samples a rectangle of an image: uint8 [192, 192, 3].

    Reduced by a whole number first, so that no pixel is skipped; outside, the border pixels are repeated.
    """
    x, y, side, angle = rect.tolist()
    step = side / _SIZE
    factor = max(int(step), 1)
    reach = side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle))) + factor + 1
    low = np.floor([x - reach, y - reach]).astype(int)
    high = np.ceil([x + reach, y + reach]).astype(int)
    columns, rows = (
        np.arange(a, b).clip(0, n - 1) for a, b, n in zip(low, high, image.shape[1::-1], strict=True)
    )
    part = Image.fromarray(image.take(rows, axis=0).take(columns, axis=1))
    if factor > 1:
        part = part.reduce(factor)
    turn = _rotation(angle) * step / factor  # pixels of the reduced part for one of the result
    start = (np.array([x, y]) - low) / factor - turn.sum(axis=1) * _SIZE / 2
    mapping = np.concatenate([turn, start[:, None]], axis=1).ravel().tolist()
    return np.asarray(
        part.transform((_SIZE, _SIZE), Image.Transform.AFFINE, mapping, Image.Resampling.BILINEAR)
    )


def _to_image(raw: np.ndarray, rect: np.ndarray) -> np.ndarray:
    """Maps points [468, 3] from pixels of the network's input to those of the image."""
    scale = rect[2] / _SIZE
    xy = (raw[:, :2] - _SIZE / 2) * scale @ _rotation(rect[3]).T + rect[:2]
    return np.concatenate([xy, raw[:, 2:] * scale], axis=1)


def _roll(right_eye: np.ndarray, left_eye: np.ndarray) -> float:
    x, y = left_eye - right_eye
    return math.atan2(y, x)


def _rotation(angle: float) -> np.ndarray:
    """Returns the matrix from the axes of a rectangle to those of the image."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
