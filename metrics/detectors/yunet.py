"""YuNet, a small face detector with five points [Wu et al. 2023; OpenCV zoo, 2023mar]."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.detectors.onnx_graph import OnnxGraph

STRIDES = (8, 16, 32)  # pixels per cell of the three output maps
BATCH = 16  # images at a time, to bound memory


class Faces(NamedTuple):
    """Faces in images, in pixels (x to the right, y down; 0 = middle of the first pixel)."""

    boxes: Tensor  # left, top, right, bottom [N, ..., 4]
    points: Tensor  # the person's right and left eye, nose, right and left corner of the mouth [N, ..., 5, 2]
    scores: Tensor  # 0..1 [N, ...]


class YuNet(nn.Module):
    """Finds the most certain face in each image, however uncertain: look at its score.

    Args:
        path: face_detection_yunet_2023mar*.onnx.
        side: images are resized, small ones up, so that their longer side has this many pixels. The network
            was trained on faces of about 10 to 300 pixels.
    """

    def __init__(self, path: str | Path, side: int = 320):
        super().__init__()
        self.graph = OnnxGraph(path)
        self.side = side

    @torch.no_grad()
    def forward(self, images: Tensor) -> Faces:
        """Returns the best face in each of the uint8 RGB images [N, 3, H, W], as `merge` makes it."""
        parts = [merge(self.detect(batch)) for batch in images.split(BATCH)]
        return Faces(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def detect(self, images: Tensor) -> Faces:
        """Returns the nearest face of each cell of the three maps, [N, cells, ...]."""
        height, width = images.shape[2:]
        scale = self.side / max(height, width)
        size = [max(round(height * scale), 1), max(round(width * scale), 1)]
        x = images.flip(1).float()  # the network wants BGR
        if size != [height, width]:
            x = F.interpolate(x, size, mode='bilinear', antialias=True)
        stride = STRIDES[-1]
        x = F.pad(x, (0, -size[1] % stride, 0, -size[0] % stride))
        boxes, points, scores = _decode(self.graph(x), x.shape)
        ratio = torch.tensor([width / size[1], height / size[0]], device=x.device)
        boxes, points = ((t.unflatten(-1, (-1, 2)) + 0.5) * ratio - 0.5 for t in (boxes, points))
        return Faces(boxes.flatten(-2), points, scores)


def merge(cells: Faces) -> Faces:
    """Returns the best face of each image [N, ...]: the mean over the cells that agree with the best one.

    Agreeing means boxes whose intersection is over half of their union, and a score over 0.6 of the best. The
    best cell alone, as OpenCV takes it, is noisier: against points fixed to the head over the frames of real
    clips, eyes are 2.6 pixels off in 512, and 2.0 with the mean.
    """
    score, best = cells.scores.max(dim=1)
    box = cells.boxes[torch.arange(len(best), device=best.device), best][:, None]
    agree = (_overlap(cells.boxes, box) > 0.5) & (cells.scores > 0.6 * score[:, None])
    weight = cells.scores * agree
    weight = (weight / weight.sum(dim=1, keepdim=True))[..., None]
    points = (cells.points * weight[..., None]).sum(dim=1)
    return Faces((cells.boxes * weight).sum(dim=1), points, score)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Returns intersection over union of boxes [..., 4] (left, top, right, bottom)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(dim=-1)
    area = [(box[..., 2:] - box[..., :2]).prod(dim=-1) for box in (a, b)]
    return both / (area[0] + area[1] - both)


def _decode(outputs: Mapping[str, Tensor], shape: torch.Size) -> Faces:
    """Reads the network's maps; shape = [N, 3, H, W] of its input."""
    count, _, height, width = shape
    scores, boxes, points = [], [], []
    for stride in STRIDES:
        # the graph puts the cells of all images one after the other in a single row of the batch
        names = ('cls', 'obj', 'bbox', 'kps')
        maps = (outputs[f'{name}_{stride}'] for name in names)
        rows, columns = height // stride, width // stride
        classes, objects, box, face = (m.reshape(count, rows * columns, m.shape[-1]) for m in maps)
        index = torch.arange(rows * columns, device=box.device)
        cell = torch.stack([index % columns, index // columns], dim=-1).to(box.dtype)  # x, y
        scores.append((classes.clamp(0, 1) * objects.clamp(0, 1)).sqrt()[..., 0])
        centre, half = (cell + box[..., :2]) * stride, box[..., 2:].exp() * stride / 2
        boxes.append(torch.cat([centre - half, centre + half], dim=-1))
        points.append(((cell[:, None] + face.unflatten(-1, (5, 2))) * stride).flatten(-2))
    return Faces(torch.cat(boxes, dim=1), torch.cat(points, dim=1), torch.cat(scores, dim=1))
