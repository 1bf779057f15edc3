"""Finds faces with BlazeFace (short range) of MediaPipe.

Source: Bazarevsky et al., BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs, 2019; anchors,
decoding and thresholds as MediaPipe configures the short-range model.

The network sees 128x128 pixels and finds faces larger than about 15 % of its picture. So it looks at the
whole frame, letterboxed, and at overlapping squares as large as its short side; where they show nothing, at
tiles half as large.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from preprocessing.faces.files import read_data
from preprocessing.faces.tflite_graph import TfliteGraph

RIGHT_EYE, LEFT_EYE, NOSE, MOUTH, RIGHT_EAR, LEFT_EAR = range(6)  # keypoints of a Face; sides of the person
MIN_SCORE = 0.5
SAME_FACE = 0.3  # boxes that overlap (intersection over union) by more are of one face
_SIZE = 128  # pixels of the network's input, and unit of its output
_CELLS = ((16, 2), (8, 6))  # cells along each side of the picture, anchors in each

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a picture; coordinates in its pixels, 0 = left/top edge of pixel 0."""

    box: np.ndarray  # float64 [4]: left, top, right, bottom; from eyebrows to chin
    score: float  # 0..1
    keypoints: np.ndarray  # float64 [6, 2]: x, y; see RIGHT_EYE and so on


class FaceDetector(nn.Module):
    """Finds faces in pictures."""

    def __init__(self):
        super().__init__()
        self._graph = TfliteGraph(read_data('face_detection_short_range.tflite'))
        self.register_buffer('_anchors', _anchor_centers())

    def detect(self, images: np.ndarray, tiles: bool = True) -> list[list[Face]]:
        """Finds the faces in each picture.

        Args:
            images: uint8 RGB [N, H, W, 3].
            tiles: look closer where no large face is.

        Returns:
            for each picture its faces, the best score first.
        """
        large, small = search_places(*images.shape[1:3])
        found = []
        for image in images:
            picture = Image.fromarray(image)
            faces = self._search(picture, large)
            if small and tiles and not faces:
                faces = self._search(picture, small)
            found.append(faces)
        return found

    @torch.inference_mode()
    def _search(self, picture: Image.Image, places: Sequence[Box]) -> list[Face]:
        views = [_letterbox(picture, place) for place in places]
        pixels = torch.from_numpy(np.stack([view for view, _ in views])).to(self._anchors.device)
        raw = self._graph(pixels / 127.5 - 1)
        points, scores = _decode(raw['regressors'], raw['classificators'], self._anchors)
        candidates, weights = [], []
        for k, (_, (scale, shift)) in enumerate(views):
            good = scores[k] >= MIN_SCORE
            candidates.append(points[k, good] * scale + shift)
            weights.append(scores[k, good])
        return merge(np.concatenate(candidates), np.concatenate(weights))


def search_places(height: int, width: int) -> tuple[list[Box], list[Box]]:
    """Lists where to look in a picture for large faces, and for small ones."""
    short = min(height, width)
    squares = _tiles(height, width, short) if max(height, width) > 1.2 * short else []
    small = _tiles(height, width, short // 2) if short >= 2 * _SIZE else []
    return [(0, 0, width, height), *squares], small


def _tiles(height: int, width: int, side: int) -> list[Box]:
    return [(x, y, side, side) for y in _starts(height, side) for x in _starts(width, side)]


def _starts(length: int, side: int) -> list[int]:
    """Places tiles of a side along a length, at least half of each upon its neighbour."""
    count = 1 + -(-2 * (length - side) // side)
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _letterbox(picture: Image.Image, place: Box) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Cuts out a place, as large as it fits into the network's input, black bars around.

    Returns:
        uint8 [128, 128, 3], and (scale, shift) from there in 0..1 to pixels of the picture.
    """
    left, top, width, height = place
    factor = _SIZE / max(width, height)
    size = np.maximum(np.round([width * factor, height * factor]), 1).astype(int)
    box = (left, top, left + width, top + height)
    small = picture.resize(tuple(size.tolist()), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    start = (_SIZE - size) // 2
    canvas = np.zeros((_SIZE, _SIZE, 3), np.uint8)
    canvas[start[1] : start[1] + size[1], start[0] : start[0] + size[0]] = small
    scale = np.array([width, height]) / size
    return canvas, (scale * _SIZE, np.array([left, top]) - start * scale)


def _anchor_centers() -> Tensor:
    """Returns the x, y of all anchors in 0..1: float32 [896, 2]."""
    parts = []
    for cells, count in _CELLS:
        y, x = torch.meshgrid(*[(torch.arange(cells) + 0.5) / cells] * 2, indexing='ij')
        parts.append(torch.stack([x, y], dim=-1).reshape(-1, 2).repeat_interleave(count, dim=0))
    return torch.cat(parts)


def _decode(regressors: Tensor, logits: Tensor, anchors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Reads the network's outputs.

    Args:
        regressors: [N, A, 16]: centre, size and six keypoints in pixels of the input, relative to the anchor.
        logits: [N, A, 1].
        anchors: [A, 2] in 0..1.

    Returns:
        float64 [N, A, 8, 2] in 0..1: top left, bottom right, keypoints; and scores [N, A].
    """
    center, size, keypoints = regressors.unflatten(2, (8, 2)).split([1, 1, 6], dim=2)
    points = torch.cat([center - size / 2, center + size / 2, keypoints], dim=2) / _SIZE + anchors[:, None]
    scores = logits[..., 0].clamp(-100, 100).sigmoid()
    return points.double().cpu().numpy(), scores.double().cpu().numpy()


def merge(points: np.ndarray, scores: np.ndarray) -> list[Face]:
    """Averages what was found of one face, weighted by score.

    Args:
        points: [K, 8, 2]: top left, bottom right, keypoints.
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
    area = np.clip(box[2:] - box[:2], 0, None).prod()
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    return common / np.maximum(area + areas - common, 1e-9)
