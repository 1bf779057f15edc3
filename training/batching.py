"""What a step is made of: progress, phases, and the real and fake inputs of an iteration.

Fake inputs are drawn for the whole batch of all processes, from a generator seeded by (seed, phase, clips
seen), and each process takes its part: neither the number of processes nor of micro-batches changes them.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from torch_utils.misc import seeded_generator
from training.config import AdamConfig, TrainConfig
from training.data.dataset import Pair, VideoDataset, sample_times
from training.loss import FakeBatch, Networks, Phase, RealBatch

PHASES: tuple[Phase, ...] = ('Gmain', 'Greg', 'Dmain', 'Dreg')
_LATENTS, _TIMES, _NOISE = 10, 11, 12  # purposes of random draws; each has a stream of its own


@dataclasses.dataclass
class Progress:
    """Where a run stands."""

    cur_nimg: int = 0  # clips seen
    batch_idx: int = 0  # iterations done
    tick: int = 0  # whole ticks done
    seconds: float = 0.0  # training time so far, over all sessions
    nonfinite: int = 0  # iterations with a nan or infinity so far
    nonfinite_in_a_row: int = 0  # the latest of them
    seen_before: int = 0  # clips that the snapshot this run started from had seen

    @property
    def schedule_nimg(self) -> int:
        """Clips that the weights have seen, this run and before: where the schedules stand."""
        return self.seen_before + self.cur_nimg


@dataclasses.dataclass(frozen=True)
class TrainingPhase:
    """A loss, the networks that it trains, and how often."""

    name: Phase
    modules: tuple[nn.Module, ...]
    optimizer: torch.optim.Optimizer
    interval: int  # iterations; the loss is multiplied by it (lazy regularisation)

    @property
    def params(self) -> list[nn.Parameter]:
        """Parameters that the phase trains."""
        return [p for module in self.modules for p in module.parameters()]


def make_phases(config: TrainConfig, networks: Networks) -> list[TrainingPhase]:
    """Builds the four phases; main and regularisation share an optimizer."""
    discriminators = tuple(d for d in (networks.D_image, networks.D_video) if d is not None)
    g_opt = _adam(config.g_opt, (networks.G,), config.g_reg_interval)
    d_opt = _adam(config.d_opt, discriminators, config.d_reg_interval)
    return [
        TrainingPhase('Gmain', (networks.G,), g_opt, 1),
        TrainingPhase('Greg', (networks.G,), g_opt, config.g_reg_interval),
        TrainingPhase('Dmain', discriminators, d_opt, 1),
        TrainingPhase('Dreg', discriminators, d_opt, config.d_reg_interval),
    ]


def _adam(config: AdamConfig, modules: tuple[nn.Module, ...], interval: int) -> torch.optim.Adam:
    # k main steps and one of regularisation share the moments: correct for k + 1 steps [StyleGAN2]
    ratio = interval / (interval + 1)
    params = [p for module in modules for p in module.parameters()]
    betas = (0.0, config.beta2**ratio)
    return torch.optim.Adam(params, lr=config.lr * ratio, betas=betas, eps=config.eps, fused=True)


def real_batch(pair: Pair, device: torch.device) -> RealBatch:
    """Moves a batch of pairs to the device and its pixels from 0..255 to [-1, 1]."""
    frames = pair['frames'].to(device, non_blocking=True).float() / 127.5 - 1
    return RealBatch(frames, pair['t'].to(device, non_blocking=True), pair['c'].to(device, non_blocking=True))


def fake_batch(
    config: TrainConfig, dataset: VideoDataset, phase: Phase, nimg: int, part: slice, device: torch.device
) -> FakeBatch:
    """Draws the fake inputs of a phase; `part` is the share of this process in the whole batch."""
    index = PHASES.index(phase)
    generator = seeded_generator('cpu', config.seed, _LATENTS, index, nimg)
    n = config.batch
    z_a = torch.randn(n, config.generator.z_dim, generator=generator)
    z_m = torch.randn(n, config.generator.motion.code_dim, generator=generator)
    swap = torch.rand(n, generator=generator)
    rng = np.random.default_rng((config.seed, _TIMES, index, nimg))
    c, t = dataset.sample_cameras(rng, n)
    if not config.sampling.tie_time:
        lattice = config.sampling.fake_times == 'lattice'
        t = sample_times(rng, n, config.dataset.span, config.dataset.distinct, lattice)
    whole = FakeBatch(z_a, z_m, t, c, c.roll(1, dims=0), swap)
    return FakeBatch(*(x[part].to(device, non_blocking=True) for x in whole))


def noise_generator(
    config: TrainConfig, phase: Phase, nimg: int, first: int, device: torch.device
) -> torch.Generator:
    """Returns the generator of noise, jitter and density points of the micro-batch that begins at `first`."""
    return seeded_generator(device, config.seed, _NOISE, PHASES.index(phase), nimg, first)


def micro_batches(batch: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Splits a RealBatch or FakeBatch into micro-batches of `size` clips, of the same type."""
    for parts in zip(*(x.split(size) for x in batch), strict=True):
        yield type(batch)(*parts)
