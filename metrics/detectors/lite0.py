"""EfficientNet-lite0, an ImageNet classifier whose file is a PyPI package [Tan & Le 2019; TensorFlow TPU].

Names of the modules are those of the file, so that it loads strictly.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.detectors.i3d import same_padding

INPUT = 224  # pixels of a side
FEATURES = 1280
BATCH = 32  # images at a time, to bound memory
# channels, blocks, kernel, stride of the first block, expansion; stem and head are not scaled in lite models
STAGES = (
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: ceil(size / stride) outputs, the odd pixel right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x [N, C, H, W]."""
        return super().forward(F.pad(x, same_padding(x.shape[2:], self.kernel_size, self.stride)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual without squeeze and excitation: widen, convolve each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        middle = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv(inputs, middle, 1)
            self._bn0 = _norm(middle)
        self._depthwise_conv = SameConv(middle, middle, kernel, stride, groups=middle)
        self._bn1 = _norm(middle)
        self._project_conv = SameConv(middle, outputs, 1)
        self._bn2 = _norm(outputs)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class Lite0(nn.Module):
    """Features of images: the pooled vector before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks, inputs = [], 32
        for outputs, count, kernel, stride, expansion in STAGES:
            for i in range(count):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(inputs, FEATURES, 1)
        self._bn1 = _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)  # the ImageNet classes: in the file, but not features

    def forward(self, images: Tensor) -> Tensor:
        """Maps uint8 RGB images [N, 3, H, W] to features [N, 1280]."""
        return torch.cat([self._features(batch) for batch in images.split(BATCH)])

    def maps(self, x: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Returns feature maps after some of the blocks; differentiable.

        Args:
            x: RGB images in [-1, 1], [N, 3, H, W] of any size.
            blocks: indices, ascending.
        """
        x = F.relu6(self._bn0(self._conv_stem(x)))
        found = []
        for i, block in enumerate(self._blocks[: blocks[-1] + 1]):
            x = block(x)
            found += [x] if i in blocks else []
        return found

    def _features(self, images: Tensor) -> Tensor:
        x = preprocess(images)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


def preprocess(images: Tensor) -> Tensor:
    """Brings uint8 RGB images [N, 3, H, W] to what the network was trained on, [N, 3, 224, 224] in [-1, 1].

    The file does not say what that was. Evidence, from 84 random crops of photos in scikit-image and of
    portraits: the variances that batch normalisation has stored fit the actual ones best for (x - 127) / 128,
    as TensorFlow's lite models have it, for RGB and for TensorFlow's padding (mean |log ratio| over all
    layers 0.34; 0.38 with mean and deviation of ImageNet, 0.57 with x / 255, 0.35 for BGR, 0.36 with
    symmetric padding). At 224 pixels photos of known objects get the right classes, at 280 less surely.
    """
    x = images.float()
    if x.shape[2:] != (INPUT, INPUT):
        x = F.interpolate(x, (INPUT, INPUT), mode='bicubic', antialias=True).clamp(0, 255)
    return (x - 127) / 128


class Lite0Video(nn.Module):
    """Features of clips: mean over time, and mean absolute difference of neighbouring frames, of Lite0's."""

    least_frames = 2

    def __init__(self) -> None:
        super().__init__()
        self.image = Lite0()

    def forward(self, frames: Tensor) -> Tensor:
        """Maps uint8 RGB frames [N, T, 3, H, W], T at least 2, to features [N, 2560]."""
        features = self.image(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return torch.cat([features.mean(dim=1), features.diff(dim=1).abs().mean(dim=1)], dim=1)
