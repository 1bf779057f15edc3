"""Inception-v3 of the FID [Heusel et al. 2017]: TensorFlow's graph of 2015-12-05 in PyTorch.

torchvision's blocks and tensor names, with the pools of that graph: averages do not count the padding, and
the last block takes the maximum. Images are resized as TensorFlow 1 did.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

SIZE = 299  # pixels of a side
CLASSES = 1008


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """Resizes [N, C, H, W] to squares, bilinearly, as TensorFlow 1 did with align_corners=False.

    Pixel i of the result lies at i * H / size of the source, not at the centres' (i + 0.5) * H / size - 0.5.
    """
    for axis in (-1, -2):
        have = images.shape[axis]
        place = torch.arange(size, device=images.device, dtype=torch.float32) * (have / size)
        low = place.long().clamp(max=have - 1)
        weight = place - low
        if axis == -2:
            weight = weight[:, None]
        first = images.index_select(axis, low)
        second = images.index_select(axis, (low + 1).clamp(max=have - 1))
        images = first + (second - first) * weight
    return images


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _chain(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class _BlockA(InceptionA):
    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.branch1x1(x),
            _chain(x, self.branch5x5_1, self.branch5x5_2),
            _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            self.branch_pool(_average(x)),
        )
        return torch.cat(branches, dim=1)


class _BlockC(InceptionC):
    def forward(self, x: Tensor) -> Tensor:
        double = (getattr(self, f'branch7x7dbl_{i}') for i in range(1, 6))
        branches = (
            self.branch1x1(x),
            _chain(x, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3),
            _chain(x, *double),
            self.branch_pool(_average(x)),
        )
        return torch.cat(branches, dim=1)


class _BlockE(InceptionE):
    def pool(self, x: Tensor) -> Tensor:
        return _average(x)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2)
        branches = (
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        )
        return torch.cat(branches, dim=1)


class _LastBlock(_BlockE):
    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 1, 1)


class FIDInception(Inception3):
    """The network; its features are the 2048 averages before the classifier ("pool3")."""

    def __init__(self) -> None:
        super().__init__(num_classes=CLASSES, aux_logits=False, init_weights=False)
        self.Mixed_5b = _BlockA(192, pool_features=32)
        self.Mixed_5c = _BlockA(256, pool_features=64)
        self.Mixed_5d = _BlockA(288, pool_features=64)
        for name, width in (('b', 128), ('c', 160), ('d', 160), ('e', 192)):
            setattr(self, f'Mixed_6{name}', _BlockC(768, channels_7x7=width))
        self.Mixed_7b = _BlockE(1280)
        self.Mixed_7c = _LastBlock(2048)

    def forward(self, images: Tensor) -> Tensor:
        """Returns features [N, 2048] of uint8 [N, 3, H, W]."""
        x = (resize_tf1(images.float(), SIZE) - 128) / 128
        for name, layer in self.named_children():  # torchvision registers them in the order of their use
            if name == 'avgpool':
                break
            x = layer(x)
        return x.mean(dim=(2, 3))
