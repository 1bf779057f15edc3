"""ArcFace [Deng et al. 2019]: IR-SE50, the face recognition network of the metric `id`.

Tensors are named as in the public `model_ir_se50.pth` of InsightFace_Pytorch, so that it loads.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 512  # of an embedding
_STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels and number of units; each stage halves the size


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole image shows."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to the same shape."""
        weights = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * weights.sigmoid()


class Unit(nn.Module):
    """Residual unit with squeeze and excitation."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        if channels == width:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)  # takes every second pixel
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            SqueezeExcite(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, width, H / stride, W / stride]."""
        return self.res_layer(x) + self.shortcut_layer(x)


class ArcFace(nn.Module):
    """Identity of faces; the cosine of two embeddings says how alike two faces are."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        units, channels = [], 64
        for width, count in _STAGES:
            for i in range(count):
                units.append(Unit(channels, width, stride=2 if i == 0 else 1))
                channels = width
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, WIDTH),
            nn.BatchNorm1d(WIDTH),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Embeds faces as unit vectors [N, 512]; differentiable.

        Args:
            crops: float32 [N, 3, 112, 112], RGB in [0, 255].
        """
        x = self.body(self.input_layer(crops / 127.5 - 1))
        return F.normalize(self.output_layer(x), dim=1)
