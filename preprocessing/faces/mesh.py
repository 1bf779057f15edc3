"""Faces and their meshes of 468 points, with the networks of MediaPipe.

Source: Kartynnik et al., Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs, 2019; the
rectangles (eyes level, 1.5 times the face) as MediaPipe configures them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from preprocessing.faces.detector import LEFT_EYE, RIGHT_EYE, Face, FaceDetector
from preprocessing.faces.files import read_data
from preprocessing.faces.tflite_graph import TfliteGraph

POINTS = 468
RIGHT_EYE_CORNER, LEFT_EYE_CORNER = 33, 263  # outer corners; sides of the person
_SIZE = 192  # pixels of the network's input, and unit of its output
_MARGIN = 1.5  # side of a rectangle, in sides of the face's box


class FaceMesh:
    """Finds faces, and 468 points on each.

    A rectangle says where a face is: float64 [4]: x, y of its centre, its side, and by how much it is turned
    (radians, clockwise as one sees the picture). Coordinates are in pixels, 0 = left/top edge of pixel 0.

    Args:
        device: where the networks run.
    """

    def __init__(self, device: str | torch.device = 'cpu'):
        self._device = torch.device(device)
        self._detector = FaceDetector().to(self._device)
        self._graph = TfliteGraph(read_data('face_landmark.tflite')).to(self._device)

    def detect(self, images: np.ndarray, tiles: bool = True) -> list[list[Face]]:
        """Finds the faces in pictures; see `FaceDetector.detect`."""
        return self._detector.detect(images, tiles)

    @torch.inference_mode()
    def landmarks(
        self, image: np.ndarray, rects: Sequence[np.ndarray] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the points of the faces in rectangles of a picture, all at once.

        Args:
            image: uint8 RGB [H, W, 3].
            rects: N rectangles.

        Returns:
            points, float32 [N, 468, 3]: x, y in pixels, z away from the viewer at the same scale, 0 near the
            centre of the head; and scores, float32 [N]: how surely there is a face, 0..1.
        """
        if not len(rects):
            return np.zeros((0, POINTS, 3), np.float32), np.zeros(0, np.float32)
        crops = torch.from_numpy(np.stack([cut_out(image, rect) for rect in rects])).to(self._device)
        found = self._graph(crops / 255)
        raw = found['conv2d_21'].reshape(-1, POINTS, 3).double().cpu().numpy()
        scores = found['conv2d_31'].reshape(-1).sigmoid().cpu().numpy()
        points = np.stack([_to_picture(p, rect) for p, rect in zip(raw, rects, strict=True)])
        return points.astype(np.float32), scores


def rect_of_face(face: Face) -> np.ndarray:
    """Returns the rectangle in which to look for the points of a face that was detected."""
    center, size = (face.box[:2] + face.box[2:]) / 2, face.box[2:] - face.box[:2]
    return np.array(
        [*center, _MARGIN * size.max(), _roll(face.keypoints[RIGHT_EYE], face.keypoints[LEFT_EYE])]
    )


def rect_of_landmarks(points: np.ndarray) -> np.ndarray:
    """Returns the rectangle in which to look for points [468, 3] in the next frame."""
    xy = points[:, :2].astype(np.float64)
    angle = _roll(xy[RIGHT_EYE_CORNER], xy[LEFT_EYE_CORNER])
    turn = _rotation(angle)
    level = xy @ turn  # along the axes of the rectangle
    low, high = level.min(axis=0), level.max(axis=0)
    return np.array([*turn @ ((low + high) / 2), _MARGIN * (high - low).max(), angle])


def cut_out(image: np.ndarray, rect: np.ndarray) -> np.ndarray:
    """Samples a rectangle of a picture: uint8 [192, 192, 3].

    Shrunk by a whole number first, so that nothing is skipped; beyond the borders their pixels go on.
    """
    x, y, side, angle = rect.tolist()
    step = side / _SIZE
    factor = max(int(step), 1)
    reach = side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle))) + factor + 1
    height, width = image.shape[:2]
    low = np.floor([x - reach, y - reach]).astype(int)
    high = np.ceil([x + reach, y + reach]).astype(int)
    first = np.clip(low, 0, [width - 1, height - 1])  # at least one row and column, also far outside
    last = np.clip(high, first + 1, [width, height])
    part = image[first[1] : last[1], first[0] : last[0]]
    before, after = (np.clip(n, 0, high - low - 1) for n in (first - low, high - last))
    if before.any() or after.any():
        part = np.pad(part, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode='edge')
    picture = Image.fromarray(part)
    if factor > 1:
        picture = picture.reduce(factor)
    scale = step / factor  # pixels of the shrunk part for one of the result
    (a, b), (c, d) = (_rotation(angle) * scale).tolist()
    u, v = ((np.array([x, y]) - low) / factor).tolist()
    middle = _SIZE / 2
    mapping = (a, b, u - (a + b) * middle, c, d, v - (c + d) * middle)
    cut = picture.transform((_SIZE, _SIZE), Image.Transform.AFFINE, mapping, Image.Resampling.BILINEAR)
    return np.asarray(cut)


def _to_picture(raw: np.ndarray, rect: np.ndarray) -> np.ndarray:
    """Turns points [468, 3] in pixels of the network's input into those of the picture."""
    scale = rect[2] / _SIZE
    xy = (raw[:, :2] - _SIZE / 2) * scale @ _rotation(rect[3]).T + rect[:2]
    return np.concatenate([xy, raw[:, 2:] * scale], axis=1)


def _roll(right_eye: np.ndarray, left_eye: np.ndarray) -> float:
    x, y = left_eye - right_eye
    return math.atan2(y, x)


def _rotation(angle: float) -> np.ndarray:
    """Returns the matrix from the axes of a rectangle to those of the picture."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
