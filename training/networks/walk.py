"""MoCoGAN-HD: a recurrent network walks in the space of w of a static generator, frame by frame.

The static generator comes from a run of its own and is not trained any more. Source: MoCoGAN-HD.
"""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from dnnlib.config import Configurable
from dnnlib.util import ConfigError
from torch_utils.misc import seeded_generator
from training.camera import front_label
from training.networks.contract import Codes
from training.networks.motion import MotionConfig
from training.networks.nerf import NerfGenerator
from training.networks.pv3d import Generator

_BATCH = 4000  # codes at a time [MoCoGAN-HD]
_OUTPUT_STD = 0.02  # of the first weights of steps [MoCoGAN-HD]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WalkConfig:
    """How a generator walks."""

    hidden: int = 384  # width of the recurrent state [MoCoGAN-HD]
    components: int = 384  # principal directions of w that steps go along, 75 % of w_dim [MoCoGAN-HD]
    step: float = 0.2  # longest step along each, standard deviations per frame [MoCoGAN-HD]
    pca_codes: int = 1_000_000  # codes that give these directions [MoCoGAN-HD]

    def __post_init__(self) -> None:
        if min(self.hidden, self.components, self.pca_codes) < 1 or self.step <= 0:
            raise ConfigError(f'generator.walk: all of {self} must be positive')


class Walk(nn.Module):
    """w of the first frame and noises -> w of all frames, and the states that led there."""

    def __init__(self, config: WalkConfig, w_dim: int) -> None:
        super().__init__()
        self.config, hidden = config, config.hidden
        self.first, self.next = nn.LSTMCell(w_dim, hidden), nn.LSTMCell(w_dim, hidden)
        self.to_step = nn.Linear(hidden, config.components)
        self.recover = nn.Sequential(nn.Linear(2 * hidden, w_dim), nn.ReLU(), nn.Linear(w_dim, w_dim))
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if 'bias' in name else nn.init.orthogonal_(parameter)
        nn.init.normal_(self.to_step.weight, std=_OUTPUT_STD)
        self.register_buffer('directions', torch.eye(config.components, w_dim))
        self.register_buffer('deviations', torch.ones(config.components))

    def forward(self, w: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
        """Maps w [N, w_dim] and noises [N, T - 1, w_dim] to [N, T, w_dim] and [N, T - 1, 2 hidden]."""
        path, state, states = [w], self.first(w), []
        for noise in noises.unbind(1):
            state = self.next(noise, state)
            along = torch.tanh(self.to_step(state[0])) * self.deviations
            path.append(path[-1] + self.config.step * along @ self.directions)
            states.append(torch.cat(state, dim=1))
        return torch.stack(path, dim=1), torch.stack(states, dim=1)

    @torch.no_grad()
    def set_directions(self, mean: Tensor, square: Tensor) -> None:
        """Takes the principal directions of w with this mean [w_dim] and mean of w w^T [w_dim, w_dim]."""
        values, vectors = torch.linalg.eigh(square - mean[:, None] * mean)
        keep = values.argsort(descending=True)[: self.config.components]
        self.directions.copy_(vectors.T[keep])
        self.deviations.copy_(values[keep].clamp(min=0).sqrt())


class Walking:
    """What makes a static generator walk; stands before its class among the parents of a new one.

    z_m are the noises of the steps, one behind the other. A time between two frames has a w between theirs;
    after the last one nothing moves. Those who join in say how w is made and what becomes of it.
    """

    static_parts: ClassVar[tuple[str, ...]]  # that are not trained

    def first_w(self, z_a: Tensor, cameras: Tensor) -> Tensor:
        """Maps appearance codes [N, z_dim] and cameras [N, 25] to w [N, w_dim]."""
        raise NotImplementedError

    def as_ws(self, w: Tensor, z_a: Tensor, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Makes ws of w [M, w_dim], as `condition` returns them; z_a [M, z_dim]."""
        raise NotImplementedError

    def begin(self) -> None:
        """Builds the walk, the last step of a constructor."""
        config = self.config
        self.motion_dim = (config.span - 1) * config.w_dim
        self.walk_network = Walk(config.walk, config.w_dim)

    @torch.no_grad()
    def adopt(self) -> None:
        """Finds the principal directions of w, all for the frontal camera, so that none is the camera."""
        device, generator = self.walk_network.directions.device, seeded_generator('cpu', 0)
        cameras = front_label(self.config.focal).to(device).expand(_BATCH, -1)
        mean, square, count = 0, 0, -(-self.config.walk.pca_codes // _BATCH)
        for _ in range(count):
            z_a = torch.randn((_BATCH, self.z_dim), generator=generator).to(device)
            w = self.first_w(z_a, cameras).double()
            mean, square = mean + w.mean(dim=0) / count, square + w.T @ w / (_BATCH * count)
        self.walk_network.set_directions(mean, square)

    def walk(self, z_a: Tensor, z_m: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
        """Walks through all frames of N clips: w [N, span, w_dim], states [N, span - 1, 2 hidden].

        Args:
            z_a: appearance codes [N, z_dim].
            z_m: noises [N, (span - 1) * w_dim].
            cameras: that the mapping sees [N, 25].
        """
        return self.walk_network(self.first_w(z_a, cameras), z_m.unflatten(1, (-1, self.config.w_dim)))

    def condition(
        self, codes: Codes, cameras: Tensor, times: Tensor, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """See the contract; every time has its own w."""
        rows = max(len(codes.z_a), len(codes.z_m), len(cameras))
        path, _ = self.walk(*(x.expand(rows, -1) for x in (*codes, cameras)))
        place = times.clamp(0, 1) * (self.config.span - 1)
        below = place.long().clamp(max=self.config.span - 2)
        path, row = path.expand(len(times), -1, -1), torch.arange(len(times), device=times.device)
        w = torch.lerp(path[row, below], path[row, below + 1], (place - below)[:, None])
        return self.as_ws(w, codes.z_a.expand(len(times), -1), psi, cutoff)

    def update_w_avg(self, w_mean: Tensor) -> None:
        """Leaves the mean w as it is: the mapping is not trained."""


class WalkGenerator(Walking, Generator, Configurable):
    """A walk through the tri-planes of EG3D."""

    static_parts = ('mapping_network', 'synthesis', 'decoder', 'to_image_raw', 'superresolution')

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Generator.Config):
        """A static generator, and the walk."""

        kind = 'walk'
        motion: MotionConfig = MotionConfig(num_layers=0)
        walk: WalkConfig = WalkConfig()

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.motion.num_layers:
                raise ConfigError(f'a walk needs motion.num_layers=0, got {self.motion.num_layers}')

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.begin()

    def first_w(self, z_a: Tensor, cameras: Tensor) -> Tensor:
        """See Walking."""
        return self.mapping_network(z_a, cameras)

    def as_ws(self, w: Tensor, z_a: Tensor, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """See Walking."""
        ws = w[:, None].expand(-1, self.synthesis.num_ws, -1)
        return self.mapping_network.truncate(ws, psi, cutoff)


class NerfWalkGenerator(Walking, NerfGenerator, Configurable):
    """A walk through the fields of StyleNeRF, which has first_w and as_ws; the background stays."""

    static_parts = ('mapping_network', 'foreground', 'color', 'background', 'blocks')

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(NerfGenerator.Config):
        """A static generator, and the walk."""

        kind = 'nerf_walk'
        moving: bool = False
        walk: WalkConfig = WalkConfig()

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.moving:
                raise ConfigError('a walk needs generator.moving=false')

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.begin()

    first_w, as_ws = NerfGenerator.first_w, NerfGenerator.as_ws
