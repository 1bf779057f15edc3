"""Inception-I3D for Kinetics-400 [Carreira & Zisserman 2017], the network of FVD.

Tensors are named as in the public files of PyTorch (`Mixed_3b.b1a.conv3d.weight`), so that those load.
Padding is that of TensorFlow ("SAME"): it depends on the size of what comes in; the odd cell goes to the end.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224  # pixels of a side
CLASSES = 400

# Input channels of each block, then its widths: 1x1 | 1x1, 3x3 | 1x1, 3x3 | 1x1 behind the pool.
_MIXED = {
    'Mixed_3b': (192, 64, 96, 128, 16, 32, 32),
    'Mixed_3c': (256, 128, 128, 192, 32, 96, 64),
    'Mixed_4b': (480, 192, 96, 208, 16, 48, 64),
    'Mixed_4c': (512, 160, 112, 224, 24, 64, 64),
    'Mixed_4d': (512, 128, 128, 256, 24, 64, 64),
    'Mixed_4e': (512, 112, 144, 288, 32, 64, 64),
    'Mixed_4f': (528, 256, 160, 320, 32, 128, 128),
    'Mixed_5b': (832, 256, 160, 320, 32, 128, 128),
    'Mixed_5c': (832, 384, 192, 384, 48, 128, 128),
}


def same_padding(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    """Returns TensorFlow's "SAME" padding in the order of `F.pad`: last axis first, before and after."""
    padding = []
    for n, k, s in reversed(list(zip(size, kernel, stride, strict=True))):
        total = max(k - (n % s or s), 0)
        padding += [total // 2, total - total // 2]
    return padding


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pads the last three axes of [N, C, T, H, W] with zeros as TensorFlow does."""
    padding = same_padding(x.shape[2:], kernel, stride)
    return F.pad(x, padding) if any(padding) else x


class UnitConv(nn.Module):
    """Convolution with "SAME" padding, batch normalisation and ReLU; `plain`: only convolution with bias."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, plain: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, width, kernel, stride, bias=plain)
        self.bn = None if plain else nn.BatchNorm3d(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, T, H, W] to [N, width, ceil(T / stride), ...]."""
        x = self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else F.relu(self.bn(x), inplace=not torch.is_grad_enabled())


class MaxPoolSame(nn.Module):
    """Max pool with "SAME" padding of zeros, which change nothing behind a ReLU."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pools [N, C, T, H, W]."""
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Inception block: four branches side by side."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        w0, w1a, w1b, w2a, w2b, w3 = widths
        self.b0 = UnitConv(channels, w0, 1)
        self.b1a, self.b1b = UnitConv(channels, w1a, 1), UnitConv(w1a, w1b, 3)
        self.b2a, self.b2b = UnitConv(channels, w2a, 1), UnitConv(w2a, w2b, 3)
        self.b3a, self.b3b = MaxPoolSame((3, 3, 3), (1, 1, 1)), UnitConv(channels, w3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, T, H, W] to the concatenated branches."""
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


def resize_whole(frames: Tensor) -> Tensor:
    """Resizes whole frames uint8 [N, T, 3, H, W] to [N, 3, T, 224, 224] in [-1, 1], as released PV3D does.

    Bilinear, align_corners False, no antialiasing; other shapes than squares are distorted.
    """
    n, t = frames.shape[:2]
    x = F.interpolate(frames.flatten(0, 1).float(), (SIZE, SIZE), mode='bilinear', align_corners=False)
    return (x / 127.5 - 1).unflatten(0, (n, t)).transpose(1, 2)


class I3D(nn.Module):
    """The network; its features are the 400 logits.

    Attributes:
        least_frames: of a clip; with fewer, the last pool lacks one of its two temporal cells.
    """

    least_frames = 9

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = UnitConv(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = MaxPoolSame((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = UnitConv(64, 64, 1)
        self.Conv3d_2c_3x3 = UnitConv(64, 192, 3)
        pools = {
            'Mixed_3b': MaxPoolSame((1, 3, 3), (1, 2, 2)),
            'Mixed_4b': MaxPoolSame((3, 3, 3), (2, 2, 2)),
            'Mixed_5b': MaxPoolSame((2, 2, 2), (2, 2, 2)),
        }
        for name, (channels, *widths) in _MIXED.items():
            if name in pools:
                self.add_module(f'MaxPool3d_before_{name}', pools[name])
            self.add_module(name, Mixed(channels, widths))
        self.logits = UnitConv(1024, CLASSES, 1, plain=True)

    def forward(self, frames: Tensor) -> Tensor:
        """Returns the logits [N, 400] of clips uint8 [N, T, 3, H, W] with T >= 9."""
        return self.classify(resize_whole(frames))

    def classify(self, x: Tensor) -> Tensor:
        """Returns the logits [N, 400], their mean over time, of preprocessed clips [N, 3, T, 224, 224]."""
        for name, layer in self.named_children():  # in the order of their registration
            if name != 'logits':
                x = layer(x)
        x = self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1))
        return x.mean(dim=(2, 3, 4))
