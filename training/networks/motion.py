"""What makes a static tri-plane generator move: the path of a motion code, and the layers that it drives.

Source: PV3D section 3.2, eq. 1-2.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn

from dnnlib.util import ConfigError
from training.networks.layers import FullyConnected, SynthesisLayer

MotionKind = Literal['modconv', 'mlp', 'naive', 'shared_code', 'additive']


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Where and how motion enters the synthesis network (PV3D table 2a, 2b)."""

    # motion layers in the first K blocks (4x4 upwards); early 2, middle 4, late 7 [PV3D 4.3]
    num_layers: int = 4
    # modconv | mlp: vector per pixel | naive: z_m, t into mapping | shared_code: z_a drives
    # | additive: the vector of 3DVidGen, see MotionVector
    kind: MotionKind = 'modconv'
    # multiply each layer's output by a trained scalar, initially 1 [PV3D 4.3 "learned"]
    learned_weight: bool = False
    code_dim: int = 512  # width of z_m and of the inner layers [released]
    # learning rate of the layers from u to w_m, times that of the rest; mapping networks have .01 [released]
    lr_multiplier: float = 1.0
    # what drives the layers at time t: line: z_m t [PV3D eq. 1] | waves: z_m turned, see motion_path [ours]
    path: Literal['line', 'waves'] = 'line'
    wave_max: float = 1.6  # periods of the fastest wave in a span; the slowest stands still [ours]
    anchored: bool = False  # counts the path from its own start: one first frame for all codes [ours]

    def __post_init__(self) -> None:
        if self.num_layers < 0 or self.code_dim < 1:
            raise ConfigError(
                f'motion.num_layers={self.num_layers} must be >= 0 and code_dim={self.code_dim} positive'
            )
        for name in ('wave_max', 'lr_multiplier'):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f'motion.{name}={getattr(self, name)} must be positive and finite')
        if self.path == 'waves' and (self.code_dim % 2 or self.code_dim < 4 or self.kind == 'naive'):
            raise ConfigError(
                'motion.path=waves needs an even motion.code_dim of at least 4 and motion layers, got '
                f'code_dim={self.code_dim} and kind={self.kind}; change them or choose path=line'
            )


def motion_path(config: MotionConfig, z_m: Tensor, t: Tensor) -> Tensor:
    """Returns u [N, code_dim], where motion is at a time: all that its layers see of code and time.

    line: u = z_m t. The same frame for every code at t = 0, and motion that grows with time in one direction.
    waves: each pair (a_i, b_i) of numbers, halves of z_m, turns at its own speed, from 0 to `wave_max`:
        u = [a cos(p) + b sin(p), a sin(p) - b cos(p)], p_i = 2 pi f_i t. So u keeps the length of z_m and is
        N(0, 1) at any time, also long after t = 1, and each code has its own frame at t = 0. A span that
        begins later is the span of another code: no place in time is special.
    anchored: u(t) - u(0): as with the line, every code begins with the same frame, that of the appearance.

    Args:
        config: which path.
        z_m: motion code [N, code_dim], N(0, 1), not normalised.
        t: time in units of the training span [N].
    """
    if config.path == 'line':
        return z_m * t[:, None]
    return _waves(config, z_m, t) - (_waves(config, z_m, torch.zeros_like(t)) if config.anchored else 0)


def _waves(config: MotionConfig, z_m: Tensor, t: Tensor) -> Tensor:
    a, b = z_m.chunk(2, dim=1)
    periods = torch.linspace(0, config.wave_max, a.shape[1], device=t.device, dtype=t.dtype)
    phase = 2 * math.pi * t[:, None] * periods
    cos, sin = phase.cos(), phase.sin()
    return torch.cat([a * cos + b * sin, a * sin - b * cos], dim=1)


class MotionVector(nn.Module):
    """A place u on the path of motion [N, code_dim] -> what 3DVidGen adds to all pixels alike [N, channels].

    There t multiplies the bias of the first layer, too; here, as on every path, only the code. In both all
    codes have one vector at t = 0. Source: 3DVidGen.
    """

    def __init__(self, code_dim: int, channels: int, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.head = FullyConnected(code_dim, channels, lr_mul=lr_mul)
        self.hidden = FullyConnected(channels, channels, act='lrelu', lr_mul=lr_mul)
        self.out = FullyConnected(channels, channels, lr_mul=lr_mul)

    def forward(self, u: Tensor) -> Tensor:
        """Maps u [N, code_dim] to vectors [N, channels]; the first activation has slope .01 and no gain."""
        return self.out(self.hidden(nn.functional.leaky_relu(self.head(u), 0.01)))


class MotionLayer(nn.Module):
    """f -> f + motion features of a place u on the path of motion, for one synthesis block."""

    def __init__(self, channels: int, resolution: int, config: MotionConfig) -> None:
        super().__init__()
        width, lr = config.code_dim, config.lr_multiplier
        if config.kind == 'additive':
            self.head, self.mlp = nn.Identity(), nn.Identity()
            self.vector = MotionVector(width, channels, lr)
        else:
            self.head = FullyConnected(width, width, act='lrelu', lr_mul=lr)
            self.mlp = nn.Sequential(
                FullyConnected(width, width, act='lrelu', lr_mul=lr), FullyConnected(width, width, lr_mul=lr)
            )
        if config.kind == 'mlp':
            self.vector = FullyConnected(width, channels)
        elif config.kind != 'additive':
            self.conv = SynthesisLayer(channels, channels, width, resolution)
        self.weight = nn.Parameter(torch.ones([])) if config.learned_weight else None

    def forward(
        self, x: Tensor, u: Tensor, noise_mode: str, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adds motion to appearance features x [N, C, H, W].

        Args:
            x: features.
            u: from `motion_path` [N, code_dim].
            noise_mode: as in SynthesisLayer.
            generator: as in SynthesisLayer.
        """
        w_m = self.mlp(self.head(u))  # eq. 1
        if hasattr(self, 'vector'):
            motion = self.vector(w_m)[:, :, None, None].to(x.dtype)
        else:
            motion = self.conv(x, w_m, noise_mode, generator)  # eq. 2
        return x + (motion if self.weight is None else motion * self.weight)
