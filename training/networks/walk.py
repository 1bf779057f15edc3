"""MoCoGAN-HD on a static tri-plane generator: a recurrent network walks in the space of w, frame by frame.

The static generator comes from a run of its own and is not trained any more. Source: MoCoGAN-HD.
"""

import dataclasses

import torch
from torch import Tensor, nn

from dnnlib.config import Configurable
from dnnlib.util import ConfigError
from torch_utils.misc import seeded_generator
from training.camera import front_label
from training.networks.contract import Codes
from training.networks.motion import MotionConfig
from training.networks.pv3d import Generator

STATIC = ('mapping_network', 'synthesis', 'decoder', 'to_image_raw', 'superresolution')  # parts that stay
_BATCH = 4000  # codes at a time [MoCoGAN-HD]
_OUTPUT_STD = 0.02  # of the first weights of steps [MoCoGAN-HD]


class WalkGenerator(Generator, Configurable):
    """z_a, camera -> w of the first frame; the noises of the steps, together z_m -> w of the others.

    A time between two frames has a w between theirs; after the last one nothing moves.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Generator.Config):
        """A static generator, and the walk."""

        kind = 'walk'
        motion: MotionConfig = MotionConfig(num_layers=0)
        hidden: int = 384  # width of the recurrent state [MoCoGAN-HD]
        components: int = 384  # principal directions of w that steps go along, 75 % of w_dim [MoCoGAN-HD]
        step: float = 0.2  # longest step along each, standard deviations per frame [MoCoGAN-HD]
        pca_codes: int = 1_000_000  # codes that give these directions [MoCoGAN-HD]

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.motion.num_layers or self.components > self.w_dim:
                raise ConfigError(
                    f'a walk needs motion.num_layers=0, got {self.motion.num_layers}, and at most w_dim='
                    f'{self.w_dim} components, got {self.components}'
                )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, hidden = config.w_dim, config.hidden
        self.motion_dim = (config.span - 1) * width
        self.first, self.next = nn.LSTMCell(width, hidden), nn.LSTMCell(width, hidden)
        self.to_step = nn.Linear(hidden, config.components)
        self.recover = nn.Sequential(nn.Linear(2 * hidden, width), nn.ReLU(), nn.Linear(width, width))
        walk = self.first, self.next, self.to_step, self.recover
        for name, parameter in (item for part in walk for item in part.named_parameters()):
            nn.init.zeros_(parameter) if 'bias' in name else nn.init.orthogonal_(parameter)
        nn.init.normal_(self.to_step.weight, std=_OUTPUT_STD)
        self.register_buffer('directions', torch.eye(config.components, width))
        self.register_buffer('deviations', torch.ones(config.components))

    @torch.no_grad()
    def adopt(self) -> None:
        """Finds the principal directions of w, all for the frontal camera, so that none is the camera."""
        device, generator = self.directions.device, seeded_generator('cpu', 0)
        camera = front_label(self.config.focal)[None].to(device)
        total, count = 0, -(-self.config.pca_codes // _BATCH)
        for _ in range(count):
            z = torch.randn((_BATCH, self.z_dim), generator=generator).to(device)
            w = self.mapping_network(z, camera.expand(_BATCH, -1)).double()
            w = torch.cat([w, w.new_ones(_BATCH, 1)], dim=1)
            total = total + w.T @ w
        mean = total[:-1, -1] / total[-1, -1]
        covariance = total[:-1, :-1] / total[-1, -1] - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)
        keep = values.argsort(descending=True)[: self.config.components]
        self.directions.copy_(vectors.T[keep])
        self.deviations.copy_(values[keep].clamp(min=0).sqrt())

    def walk(self, z_a: Tensor, z_m: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
        """Walks through all frames of N clips.

        Args:
            z_a: appearance codes [N, z_dim].
            z_m: noises of the steps, one behind the other [N, (span - 1) * w_dim].
            cameras: that the mapping sees [N, 25].

        Returns:
            w of the frames [N, span, w_dim], and the states that led to all but the first
            [N, span - 1, 2 * hidden].
        """
        path = [self.mapping_network(z_a, cameras)]
        state, states = self.first(path[0]), []
        for noise in z_m.unflatten(1, (-1, self.config.w_dim)).unbind(1):
            state = self.next(noise, state)
            along = torch.tanh(self.to_step(state[0])) * self.deviations
            path.append(path[-1] + self.config.step * along @ self.directions)
            states.append(torch.cat(state, dim=1))
        return torch.stack(path, dim=1), torch.stack(states, dim=1)

    def as_ws(self, w: Tensor) -> Tensor:
        """Gives w [M, w_dim] to all layers [M, num_ws, w_dim]."""
        return w[:, None].expand(-1, self.synthesis.num_ws, -1)

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
        return self.mapping_network.truncate(self.as_ws(w), psi, cutoff)

    def update_w_avg(self, w_mean: Tensor) -> None:
        """Leaves the mean w as it is: the mapping is not trained."""
