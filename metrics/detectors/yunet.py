"""YuNet, a small face detector with five points [Wu et al. 2023; OpenCV zoo, 2023mar]."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.detectors.onnx_graph import OnnxGraph

STRIDES = (8, 16, 32)  # pixels per cell of the three output maps
BATCH = 16  # pictures at a time, to bound memory


class Faces(NamedTuple):
    """The best face of each picture, in pixels (x to the right, y down; 0 = middle of the first pixel)."""

    boxes: Tensor  # left, top, width, height [N, 4]
    points: Tensor  # right eye, left eye (the person's), nose, right and left corner of the mouth [N, 5, 2]
    scores: Tensor  # 0..1 [N]


class YuNet(nn.Module):
    """Finds the most certain face in each picture, however uncertain: look at its score.

    Args:
        path: face_detection_yunet_2023mar*.onnx.
        side: pictures are resized so that their longer side has this many pixels. The network was trained on
            faces of about 10 to 300 pixels.
    """

    def __init__(self, path: str | Path, side: int = 320):
        super().__init__()
        self.graph = OnnxGraph(path)
        self.side = side

    @torch.no_grad()
    def forward(self, images: Tensor) -> Faces:
        """Returns the best face in each of the uint8 RGB images [N, 3, H, W]."""
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f'images must be uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}')
        parts = [self._detect(batch) for batch in images.split(BATCH)]
        return Faces(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _detect(self, images: Tensor) -> Faces:
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
        corner = _to_picture(boxes[:, :2], ratio)
        return Faces(torch.cat([corner, boxes[:, 2:] * ratio], dim=1), _to_picture(points, ratio), scores)


def _to_picture(xy: Tensor, ratio: Tensor) -> Tensor:
    """Brings coordinates of a resized picture to the original: pixel i covers [i - 1/2, i + 1/2]."""
    return (xy + 0.5) * ratio - 0.5


def _decode(outputs: Mapping[str, Tensor], shape: torch.Size) -> Faces:
    """Returns the best face of each picture from the network's maps; shape = [N, 3, H, W] of its input."""
    count, _, height, width = shape
    scores, boxes, points = [], [], []
    for stride in STRIDES:
        rows, columns = torch.meshgrid(
            torch.arange(height // stride), torch.arange(width // stride), indexing='ij'
        )
        cell = torch.stack([columns, rows], dim=-1).reshape(-1, 2).to(outputs['cls_8'])  # x, y

        # the graph puts the cells of all pictures one after the other in a single row of the batch
        def get(name: str, stride: int = stride) -> Tensor:
            value = outputs[f'{name}_{stride}']
            return value.reshape(count, -1, value.shape[-1])

        scores.append((get('cls').clamp(0, 1) * get('obj').clamp(0, 1)).sqrt()[..., 0])
        box = get('bbox')
        size = box[..., 2:].exp() * stride
        boxes.append(torch.cat([(cell + box[..., :2]) * stride - size / 2, size], dim=-1))
        points.append((cell[:, None] + get('kps').unflatten(-1, (5, 2))) * stride)
    score, best = torch.cat(scores, dim=1).max(dim=1)
    index = torch.arange(count, device=best.device)
    return Faces(torch.cat(boxes, dim=1)[index, best], torch.cat(points, dim=1)[index, best], score)
