"""Parts of a StyleNeRF generator: fields of points before and behind, and an upsampler of 1x1 convolutions.

Nothing looks at neighbours but the interpolation of the upsampler, so that views stay consistent. Source:
StyleNeRF; background: NeRF++.
"""

import math

import torch
from torch import Tensor, nn

from torch_utils.ops.modulated_conv2d import Epilogue, modulated_conv2d
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d, upsample2d
from training.networks.layers import Conv2d, FullyConnected, ToRGB
from training.volumetric_rendering.ray_marcher import activate_density

OCTAVES = 10  # of coordinates
_CLAMP = 256.0  # limit of activations of the upsampler
_BACKGROUND_SAMPLES = 4  # along a ray, even in 1 / distance from 1 / 2 to 0
_NEAREST = 0.5  # 1 / distance from the origin where the background begins, in units of the camera's
_LEAST = 4  # channels of the inner layer of an adapter, at least


def encode(x: Tensor) -> Tensor:
    """Turns coordinates [..., C] into sines and cosines of 2^i pi x [..., C * 2 * OCTAVES]."""
    angles = x[..., None] * (math.pi * 2.0 ** torch.arange(OCTAVES, dtype=x.dtype, device=x.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class ModulatedLayer(nn.Module):
    """Modulated, demodulated 1x1 convolution with bias and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Maps x [N, C_in, H, W] and w [N, w_dim] to [N, C_out, H, W]."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        epilogue = Epilogue(self.bias, 'lrelu', self.clamp)
        return modulated_conv2d(x, weight, self.affine(w), epilogue=epilogue)


class Foreground(nn.Module):
    """Points near the head -> features and raw density, each layer with a w of its own."""

    def __init__(self, w_dim: int, hidden: int, layers: int, features: int) -> None:
        super().__init__()
        widths = [3 * 2 * OCTAVES] + [hidden] * layers
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(ModulatedLayer(i, o, w_dim) for i, o in pairs)
        self.density, self.features = ToRGB(hidden, 1, w_dim), ToRGB(hidden, features, w_dim)

    @property
    def num_ws(self) -> int:
        """Codes that it sees: one for each layer, one each for density and features."""
        return len(self.layers) + 2

    def forward(self, points: Tensor, ws: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Maps points [N, M, 3] to features [N, M, F] and raw density [N, M, 1].

        Args:
            points: in units of the camera's distance.
            ws: [N, num_ws, w_dim].
            vector: is added to the output of the first layer, for all points alike [N, hidden].
        """
        x = encode(points).transpose(1, 2)[..., None]
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i])
            x = x if i else x + vector[:, :, None, None]
        found = self.features(x, ws[:, -1]), self.density(x, ws[:, -2])
        return tuple(y[..., 0].transpose(1, 2) for y in found)


class Background(nn.Module):
    """Rays and a code -> features of what lies behind, on spheres around the scene up to infinity."""

    def __init__(self, code_dim: int, hidden: int, layers: int, features: int) -> None:
        super().__init__()
        widths = [4 * 2 * OCTAVES + code_dim] + [hidden] * layers
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.Sequential(*(FullyConnected(i, o, act='lrelu') for i, o in pairs))
        self.density, self.features = FullyConnected(hidden, 1), FullyConnected(hidden, features)
        self.color = FullyConnected(features, 3)

    def forward(self, origins: Tensor, directions: Tensor, code: Tensor) -> Tensor:
        """Maps rays [N, R, 3], in units of the camera's distance, and codes [N, C] to [N, R, 3 + F]."""
        steps = torch.arange(_BACKGROUND_SAMPLES, device=origins.device, dtype=origins.dtype)
        inverse = _NEAREST * (1 - (steps + 0.5) / _BACKGROUND_SAMPLES)
        places = on_sphere(origins, directions, 1 / inverse) * inverse[:, None]
        inverse = inverse[:, None].expand(*places.shape[:-1], 1)
        x = torch.cat([encode(torch.cat([places, inverse], dim=-1)), _like(code, places)], dim=-1)
        x = self.layers(x.flatten(0, 2))
        features = self.features(x)
        colors = torch.cat([self.color(features), features], dim=1).unflatten(0, places.shape[:3])
        density = activate_density(self.density(x)).unflatten(0, places.shape[:3])
        alpha = 1 - torch.exp(-density * (_NEAREST / _BACKGROUND_SAMPLES))
        alpha = torch.cat([alpha[:, :, :-1], torch.ones_like(alpha[:, :, :1])], dim=2)  # nothing lies behind
        passed = torch.cumprod(
            torch.cat([torch.ones_like(alpha[:, :, :1]), 1 - alpha[:, :, :-1]], dim=2), dim=2
        )
        return (alpha * passed * colors).sum(dim=2)


def on_sphere(origins: Tensor, directions: Tensor, radius: Tensor) -> Tensor:
    """Returns where rays [N, R, 3] leave spheres around the origin of radius [S], [N, R, S, 3]."""
    along = (origins * directions).sum(dim=-1, keepdim=True)
    root = along.square() - origins.square().sum(dim=-1, keepdim=True) + radius.square()
    return origins[:, :, None] + (root.clamp(min=0).sqrt() - along)[..., None] * directions[:, :, None]


def _like(code: Tensor, places: Tensor) -> Tensor:
    """Repeats codes [N, C] for all places [N, R, S, 3]."""
    return code[:, None, None].expand(*places.shape[:-1], -1)


class UpsamplingBlock(nn.Module):
    """Twice the size: 1x1 convolutions, between them an interpolation, and the skip output."""

    def __init__(self, in_channels: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.conv0 = ModulatedLayer(in_channels, channels, w_dim, _CLAMP)
        inner = max(channels // 4, _LEAST)
        self.adapter = nn.Sequential(Conv2d(2 * channels, inner, 1), Conv2d(inner, channels, 1, act='linear'))
        self.conv1 = ModulatedLayer(channels, channels, w_dim, _CLAMP)
        self.torgb = ToRGB(channels, 3, w_dim, clamp=_CLAMP)
        self.register_buffer('resample_filter', make_filter(), persistent=False)

    def forward(self, x: Tensor, rgb: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Maps features [N, C, h, w] and rgb [N, 3, h, w] to twice the size; ws: [N, 3, w_dim]."""
        x = self.adapter(beside_neighbours(self.conv0(x, ws[:, 0])))
        x = self.conv1(upfirdn2d(x, self.resample_filter, padding=(2, 1, 2, 1)), ws[:, 1])
        return x, upsample2d(rgb, self.resample_filter) + self.torgb(x, ws[:, 2])


def beside_neighbours(x: Tensor) -> Tensor:
    """Doubles the size of x [N, C, H, W] twice: pixels repeated, and means of their nearest two neighbours.

    The four parts of a pixel get the means of the left and upper, upper and right, left and lower, right and
    lower neighbours; at borders the pixel itself takes the place of a missing one.

    Returns:
        [N, 2 C, 2 H, 2 W].
    """
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    wide = nn.functional.pad(x, (1, 1, 1, 1), mode='replicate')
    left, right = wide[:, :, 1:-1, :-2], wide[:, :, 1:-1, 2:]
    up, down = wide[:, :, :-2, 1:-1], wide[:, :, 2:, 1:-1]
    parts = torch.stack([left + up, up + right, left + down, right + down], dim=2).flatten(1, 2) / 2
    return torch.cat([repeated, nn.functional.pixel_shuffle(parts, 2)], dim=1)
