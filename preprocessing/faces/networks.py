"""The two networks of MediaPipe that find faces and 468 points on each; weights: data/NOTICE.

Sources: Bazarevsky et al., BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs, 2019; Kartynnik
et al., Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs, 2019. Layers of stride 2 pad
more at the right and bottom, as TensorFlow does.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACE_POINTS = 468
_DATA = Path(__file__).parent / 'data'


class BlazeBlock(nn.Module):
    """A depthwise and a pointwise convolution beside a shortcut, whose additional channels are 0."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: nn.Module):
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 2 - stride, groups=in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        shortcut = x
        if self.stride == 2:
            shortcut, x = F.max_pool2d(x, 2), F.pad(x, (0, 1, 0, 1))
        y = self.pointwise(self.depthwise(x))
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, y.shape[1] - shortcut.shape[1]))
        return self.activation(y + shortcut)


class BlazeFace(nn.Module):
    """Finds faces: a box, six keypoints and a score for each of 896 anchors.

    Attributes:
        anchors: x, y of their centres in 0..1, [896, 2].
    """

    def __init__(self):
        super().__init__()
        fine = (  # (channels, stride) of each block
            *((24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2)),
            *((56, 1), (64, 1), (72, 1), (80, 1), (88, 1)),
        )
        coarse = ((96, 2), (96, 1), (96, 1), (96, 1), (96, 1))
        self.stem = nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, 24, 5, 2), nn.ReLU())
        self.fine = _blocks(24, fine, lambda _: nn.ReLU())  # 16x16 cells, 2 anchors in each
        self.coarse = _blocks(88, coarse, lambda _: nn.ReLU())  # 8x8 cells, 6 anchors in each
        self.boxes = nn.ModuleList([nn.Conv2d(88, 2 * 16, 1), nn.Conv2d(96, 6 * 16, 1)])
        self.scores = nn.ModuleList([nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)])
        _load(self, 'blaze_face.npz')
        self.register_buffer('anchors', torch.cat([_anchors(16, 2), _anchors(8, 6)]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps RGB images in -1..1, [N, 3, 128, 128], to boxes and scores.

        Returns:
            boxes [N, 896, 8, 2]: x, y of centre, size and keypoints in pixels of the input, all but the size
            relative to the anchor; and logits [N, 896].
        """
        fine = self.fine(self.stem(images))
        levels = fine, self.coarse(fine)
        boxes, logits = (
            torch.cat(
                [head(x).permute(0, 2, 3, 1).flatten(1) for head, x in zip(heads, levels, strict=True)], 1
            )
            for heads in (self.boxes, self.scores)
        )
        return boxes.unflatten(1, (-1, 8, 2)), logits


class MeshNetwork(nn.Module):
    """Finds the 468 points of a face."""

    def __init__(self):
        super().__init__()
        trunk = (
            *((16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)),
            *((128, 2), (128, 1), (128, 1), (128, 2), (128, 1), (128, 1)),
        )
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 16, 3, 2), nn.PReLU(16))
        self.trunk = _blocks(16, trunk, nn.PReLU)
        self.points = _mesh_head(((128, 2), (128, 1), (128, 1)), 3 * FACE_POINTS)
        self.score = _mesh_head(((128, 2),), 1)
        _load(self, 'face_mesh.npz')

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps RGB images in 0..1, [N, 3, 192, 192], to points and scores.

        Returns:
            points [N, 468, 3] in pixels of the input, z away from the viewer; and logits [N].
        """
        features = self.trunk(self.stem(images))
        return self.points(features).reshape(-1, FACE_POINTS, 3), self.score(features).flatten()


def _blocks(
    channels: int, table: Iterable[tuple[int, int]], activation: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Makes a block of each (channels, stride)."""
    blocks = nn.Sequential()
    for width, stride in table:
        blocks.append(BlazeBlock(channels, width, stride, activation(width)))
        channels = width
    return blocks


def _mesh_head(table: Iterable[tuple[int, int]], outputs: int) -> nn.Sequential:
    bottleneck = (nn.Conv2d(128, 32, 1), nn.PReLU(32), BlazeBlock(32, 32, 1, nn.PReLU(32)))
    return nn.Sequential(*_blocks(128, table, nn.PReLU), *bottleneck, nn.Conv2d(32, outputs, 3))


def _anchors(cells: int, count: int) -> Tensor:
    """Returns the centres of cells in 0..1, each `count` times: [cells^2 count, 2]."""
    axis = (torch.arange(cells) + 0.5) / cells
    return torch.cartesian_prod(axis, axis).flip(1).repeat_interleave(count, dim=0)


def _load(module: nn.Module, name: str) -> None:
    with np.load(_DATA / name, allow_pickle=False) as arrays:
        module.load_state_dict({key: torch.from_numpy(x).float() for key, x in arrays.items()})
    module.eval().requires_grad_(False)
