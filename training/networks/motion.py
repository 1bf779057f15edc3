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

_GOLDEN = (math.sqrt(5) - 1) / 2  # no few steps of it come back to where they began
_SPLINE_GAIN = 1.44  # variance .5 at the knots and .46 between becomes 1.04 and .95
_KERNEL = 11  # codes that a convolution of CodePath sees [StyleGAN-V]
_LONGEST = 64.0  # knots of the slowest wave [StyleGAN-V: 1024 frames of 16]

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
    # what drives the layers at time t, see MotionPath: line [PV3D eq. 1] | waves [ours] | spline [StyleSV]
    # | codes [StyleGAN-V]
    path: Literal['line', 'waves', 'spline', 'codes'] = 'line'
    wave_max: float = 1.6  # periods of the fastest wave in a span; the slowest stands still [ours]
    # time between the codes of a spline or of codes, spans: smaller = faster motion [StyleGAN-V: 16 frames]
    knot: float = 1.0
    # counts the path from its own start: one first frame for all codes; else no time is special [ours]
    anchored: bool = False

    def __post_init__(self) -> None:
        if self.num_layers < 0 or self.code_dim < 1:
            raise ConfigError(
                f'motion.num_layers={self.num_layers} must be >= 0 and code_dim={self.code_dim} positive'
            )
        for name in ('wave_max', 'knot', 'lr_multiplier'):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f'motion.{name}={getattr(self, name)} must be positive and finite')
        odd = self.path in ('waves', 'codes') and (self.code_dim % 2 or self.code_dim < 4)
        if odd or (self.path != 'line' and self.kind == 'naive'):
            raise ConfigError(
                f'motion.path={self.path} needs motion layers and an even motion.code_dim of at least 4 '
                f'(spline: any), got code_dim={self.code_dim} and kind={self.kind}; change them or choose '
                'path=line'
            )


class MotionPath(nn.Module):
    """u(t), where motion is at a time: all that the motion layers see of code and time.

    line: u = z_m t. The same frame for every code at t = 0, and motion that grows with time in one direction.
    waves: each pair (a_i, b_i) of numbers, halves of z_m, turns at its own speed, from 0 to `wave_max`:
        u = [a cos(p) + b sin(p), a sin(p) - b cos(p)], p_i = 2 pi f_i t. So u keeps the length of z_m and is
        N(0, 1) at any time, also long after t = 1, and each code has its own frame at t = 0. A span that
        begins later is the span of another code: no place in time is special.
    spline: a cubic B-spline along endless codes (`code_at`), one every `knot`: u, its speed and its change
        of speed are continuous. With codes (k - 1) z_m it would be the line.
    codes: small convolutions over the same codes, then waves between them, see CodePath.
    anchored: u(t) - u(0): as with the line, every code begins with the same frame, that of the appearance.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config
        self.codes = CodePath(config.code_dim) if config.path == 'codes' else None

    def forward(self, z_m: Tensor, t: Tensor) -> Tensor:
        """Returns u [N, code_dim]; any time can be asked for alone.

        Args:
            z_m: motion code [N, code_dim], N(0, 1), not normalised.
            t: time in units of the training span [N].
        """
        if self.config.path == 'line':
            return z_m * t[:, None]
        u = self._place(z_m, t)
        return u - self._place(z_m, torch.zeros_like(t)) if self.config.anchored else u

    def _place(self, z_m: Tensor, t: Tensor) -> Tensor:
        if self.config.path == 'waves':
            return _waves(self.config, z_m, t)
        place = t / self.config.knot
        k = place.floor()
        s, k = place - k, k.long()
        if self.codes is not None:
            return self.codes(z_m, k, s)
        # without an anchor of variance 1 on average; from the anchor the difference has it
        gain = 1.0 if self.config.anchored else _SPLINE_GAIN
        return gain * b_spline(torch.stack([code_at(z_m, k + j) for j in range(4)]), s)


def _waves(config: MotionConfig, z_m: Tensor, t: Tensor) -> Tensor:
    a, b = z_m.chunk(2, dim=1)
    periods = torch.linspace(0, config.wave_max, a.shape[1], device=t.device, dtype=t.dtype)
    phase = 2 * math.pi * t[:, None] * periods
    cos, sin = phase.cos(), phase.sin()
    return torch.cat([a * cos + b * sin, a * sin - b * cos], dim=1)


def b_spline(points: Tensor, s: Tensor) -> Tensor:
    """Returns the uniform cubic B-spline of four control points [4, N, C] at places s [N] in [0, 1].

    A quadratic one would be twice as fast at its knots as between them, a pulse with every code.
    """
    s = s[:, None]
    weights = (1 - s) ** 3, 4 - 6 * s**2 + 3 * s**3, 1 + 3 * s + 3 * s**2 - 3 * s**3, s**3
    return sum(w * p for w, p in zip(weights, points, strict=True)) / 6


def code_at(z_m: Tensor, k: Tensor) -> Tensor:
    """Returns the k-th of the endless codes that belong to z_m [N, C], for whole numbers k [N], of any sign.

    It has the numbers of z_m, moved round by an offset of k and with signs that depend on k and place: so it
    is N(0, 1), of the length of z_m and linear in it, and any of them is known without those before. [ours]
    """
    width = z_m.shape[1]
    start = max(1, int(_GOLDEN * width))
    stride = next(n for n in range(start, start + width) if math.gcd(n, width) == 1)
    place = torch.arange(width, device=k.device)
    # whole numbers that wrap around, on any device: no table, and nothing that a GPU would wait for
    mixed = place * 0x632BE59BD9B4E019 + k[:, None] * 0x1E3779B97F4A7C15
    for shift in (31, 27):
        mixed = (mixed ^ (mixed >> shift)) * 0x3F58476D1CE4E5B9
    signs = 1 - 2 * ((mixed >> 40) & 1)
    return z_m.gather(1, (place + k[:, None] * stride) % width) * signs


class CodePath(nn.Module):
    """Convolutions over the codes around a time, and waves of learned speed and phase between two of them.

    h_k comes from codes k - 10 to k + 10 by two convolutions of 11. At a place s between h_k and h_(k+1)
        u = e(s) - [(1 - s) e(0) + s e(1)] + (1 - s) A h_k + s A h_(k+1),
        e(s) = [sin, cos](2 pi s (1 + tanh(P h_k)) / period + longest / period * F h_k),
    so that u is continuous and A h_k at the knots. Periods count from one knot to 64. P, F and A have no
    bias, which would let motion collapse. Source: StyleGAN-V; its time in e counts from the start of the
    video, here from the knot, so that all spans are alike.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv0, self.conv1 = (
            FullyConnected(_KERNEL * width, width, act='lrelu', lr_mul=0.01) for _ in range(2)
        )
        self.speeds, self.phases = (nn.Parameter(torch.randn(width, width // 2)) for _ in range(2))
        self.aligners = nn.Parameter(torch.randn(width, width))

    def forward(self, z_m: Tensor, k: Tensor, s: Tensor) -> Tensor:
        """Maps z_m [N, C], the number of the knot before [N] and the place after it [N] to u [N, C]."""
        reach = _KERNEL - 1  # of both convolutions to one side
        codes = torch.stack([code_at(z_m, k + j) for j in range(-reach, reach + 2)], dim=1)
        h = self._convolve(self.conv1, self._convolve(self.conv0, codes)) / math.sqrt(z_m.shape[1])
        speed, phase, ends = (h[:, 0] @ self.speeds).tanh() + 1, h[:, 0] @ self.phases, h @ self.aligners
        periods = torch.logspace(0, math.log2(_LONGEST), speed.shape[1], 2, device=h.device, dtype=h.dtype)

        def wave(place: Tensor) -> Tensor:
            angle = 2 * math.pi * place * speed / periods + _LONGEST / periods * phase
            return torch.cat([angle.sin(), angle.cos()], dim=1)

        s = s[:, None]
        first, last = wave(torch.zeros_like(s)), wave(torch.ones_like(s))
        return wave(s) + (1 - s) * (ends[:, 0] - first) + s * (ends[:, 1] - last)

    @staticmethod
    def _convolve(layer: FullyConnected, x: Tensor) -> Tensor:
        windows = x.unfold(1, _KERNEL, 1).flatten(2)
        return layer(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])


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
            u: from MotionPath [N, code_dim].
            noise_mode: as in SynthesisLayer.
            generator: as in SynthesisLayer.
        """
        w_m = self.mlp(self.head(u))  # eq. 1
        if hasattr(self, 'vector'):
            motion = self.vector(w_m)[:, :, None, None].to(x.dtype)
        else:
            motion = self.conv(x, w_m, noise_mode, generator)  # eq. 2
        return x + (motion if self.weight is None else motion * self.weight)
