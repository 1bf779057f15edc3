"""Finds faces with BlazeFace (short range) of MediaPipe; decoding and thresholds as MediaPipe configures it.

The network sees 128x128 pixels and finds faces larger than about 15 % of its image. So it looks at the whole
frame, letterboxed, and at overlapping squares as large as its short side; where these show nothing, at tiles
half as large.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from preprocessing.faces.networks import BlazeFace

RIGHT_EYE, LEFT_EYE = 0, 1  # keypoints of a Face; sides of the person
MIN_SCORE = 0.5
SAME_FACE = 0.3  # boxes whose intersection over union is larger are of one face
_SIZE = 128  # pixels of the network's input, and unit of its output

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in an image; coordinates in its pixels, 0 = left/top edge of pixel 0."""

    box: np.ndarray  # float64 [4]: left, top, right, bottom; from eyebrows to chin
    score: float  # 0..1
    keypoints: np.ndarray  # float64 [6, 2]: x, y of right and left eye, nose, mouth, right and left ear


class FaceDetector:
    """Finds faces in images."""

    def __init__(self):
        self._blaze_face = BlazeFace()

    def detect(self, image: np.ndarray, tiles: bool = True) -> list[Face]:
        """Returns the faces in an image, the best score first.

        Args:
            image: uint8 RGB, [H, W, 3].
            tiles: look closer if no large face is found.
        """
        large, small = search_places(*image.shape[:2])
        faces = self._search(image, large)
        return self._search(image, small) if small and tiles and not faces else faces

    @torch.inference_mode()
    def _search(self, image: np.ndarray, places: Sequence[Box]) -> list[Face]:
        views, scales, shifts = zip(*(_letterbox(Image.fromarray(image), p) for p in places), strict=True)
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        boxes, logits = self._blaze_face(pixels / 127.5 - 1)
        center, size, keypoints = boxes.split([1, 1, 6], dim=2)
        points = torch.cat([center - size / 2, center + size / 2, keypoints], dim=2) / _SIZE
        points = (points + self._blaze_face.anchors[:, None]).double().numpy()
        points = points * np.array(scales)[:, None, None] + np.array(shifts)[:, None, None]
        scores = logits.sigmoid().double().numpy()
        return merge(points[scores >= MIN_SCORE], scores[scores >= MIN_SCORE])


def search_places(height: int, width: int) -> tuple[list[Box], list[Box]]:
    """Lists where to look in an image for large faces, and for small ones."""
    short = min(height, width)
    squares = _tiles(height, width, short) if max(height, width) > 1.2 * short else []
    small = _tiles(height, width, short // 2) if short >= 2 * _SIZE else []
    return [(0, 0, width, height), *squares], small


def merge(points: np.ndarray, scores: np.ndarray) -> list[Face]:
    """Averages what was found of one face, weighted by score.

    Args:
        points: top left, bottom right and keypoints, [K, 8, 2].
        scores: [K].
    """
    faces = []
    order = np.argsort(-scores, kind='stable')
    points, scores = points[order], scores[order]
    while len(scores):
        same = overlap(points[0, :2].reshape(4), points[:, :2].reshape(-1, 4)) > SAME_FACE
        same[0] = True  # also if its box is empty
        mean = np.average(points[same], axis=0, weights=scores[same])
        faces.append(Face(mean[:2].reshape(4), float(scores[0]), mean[2:]))
        points, scores = points[~same], scores[~same]
    return faces


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns intersection over union of a box [4] and boxes [K, 4] (left, top, right, bottom): [K]."""
    common = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.clip(common, 0, None).prod(axis=1)
    area, areas = (np.clip(b[..., 2:] - b[..., :2], 0, None).prod(axis=-1) for b in (box, boxes))
    return common / np.maximum(area + areas - common, 1e-9)


def _tiles(height: int, width: int, side: int) -> list[Box]:
    return [(x, y, side, side) for y in _starts(height, side) for x in _starts(width, side)]


def _starts(length: int, side: int) -> list[int]:
    """Places tiles of a side along a length, each covering at least half of the one before."""
    count = 1 + -(-2 * (length - side) // side)
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _letterbox(image: Image.Image, place: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits a place into the network's input, with black bars.

    Returns:
        uint8 [128, 128, 3]; scale [2] and shift [2] from there in 0..1 to pixels of the image.
    """
    left, top, width, height = place
    size = np.maximum(np.round(np.array([width, height]) * (_SIZE / max(width, height))), 1).astype(int)
    box = (left, top, left + width, top + height)
    small = image.resize(tuple(size.tolist()), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    x, y = start = (_SIZE - size) // 2
    canvas = np.zeros((_SIZE, _SIZE, 3), np.uint8)
    canvas[y : y + size[1], x : x + size[0]] = small
    scale = np.array([width, height]) / size
    return canvas, scale * _SIZE, np.array([left, top]) - start * scale
