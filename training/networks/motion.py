"""Motion layers: what makes a static tri-plane generator move. Source: PV3D section 3.2, eq. 1-2."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from dnnlib.util import ConfigError
from training.networks.layers import FullyConnected, SynthesisLayer

MotionKind = Literal['modconv', 'mlp', 'naive', 'shared_code']


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Where and how motion enters the synthesis network (PV3D table 2a, 2b)."""

    # motion layers in the first K blocks (4x4 upwards); early 2, middle 4, late 7 [PV3D 4.3]
    num_layers: int = 4
    # modconv | mlp: vector per pixel | naive: z_m, t into mapping | shared_code: z_a drives
    kind: MotionKind = 'modconv'
    # multiply each layer's output by a trained scalar, initially 1 [PV3D 4.3 "learned"]
    learned_weight: bool = False
    code_dim: int = 512  # width of z_m and of the inner layers [released]

    def __post_init__(self) -> None:
        if self.num_layers < 0 or self.code_dim < 1:
            raise ConfigError(
                f'motion.num_layers={self.num_layers} must be >= 0 and code_dim={self.code_dim} positive'
            )


class MotionLayer(nn.Module):
    """f -> f + motion features of (z_m, t), for one synthesis block."""

    def __init__(self, channels: int, resolution: int, config: MotionConfig) -> None:
        super().__init__()
        width = config.code_dim
        self.head = FullyConnected(width, width, act='lrelu')
        self.mlp = nn.Sequential(FullyConnected(width, width, act='lrelu'), FullyConnected(width, width))
        if config.kind == 'mlp':
            self.vector = FullyConnected(width, channels)
        else:
            self.conv = SynthesisLayer(channels, channels, width, resolution)
        self.weight = nn.Parameter(torch.ones([])) if config.learned_weight else None

    def forward(
        self, x: Tensor, z_m: Tensor, t: Tensor, noise_mode: str, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adds motion to appearance features x [N, C, H, W].

        Args:
            z_m: motion code [N, code_dim], N(0, 1), not normalised.
            t: time in units of the training span [N]; at t = 0 every code gives the same frame.
            noise_mode, generator: as in SynthesisLayer.
        """
        w_m = self.mlp(self.head(z_m * t[:, None]))  # eq. 1
        if hasattr(self, 'vector'):
            motion = self.vector(w_m)[:, :, None, None].to(x.dtype)
        else:
            motion = self.conv(x, w_m, noise_mode, generator)  # eq. 2
        return x + (motion if self.weight is None else motion * self.weight)
