"""What a step is made of: progress, phases, and the real and fake inputs of an iteration.

Fake inputs are drawn for the whole batch of all processes, from a generator seeded by (seed, phase, clips
seen), and each process takes its own: neither the number of processes nor of micro-batches changes them.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.util import ConfigError
from torch_utils.misc import seeded_generator
from training.config import AdamConfig, TrainConfig
from training.data.dataset import Draw, VideoDataset
from training.loss_contract import FakeBatch, Loss, Networks, Phase, RealBatch
from training.networks.contract import VideoGenerator

PHASES: tuple[Phase, ...] = ('Gmain', 'Greg', 'Dmain', 'Dreg')
_ALIGNED = 16  # numbers: pieces of a buffer begin where a tensor of its own would
# purposes of random draws; each has a stream of its own
_LATENTS, _TIMES, _NOISE, _OTHER, _HELDOUT, _SINGLE_LATENTS, _SINGLE_TIMES = range(10, 17)
HELDOUT_CLIPS, IMAGES = 17, 18  # data sets beside the clips, whose draws would else be those of the clips


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
    augment: float = 0.0  # probability of each change of what the discriminators see

    @property
    def schedule_nimg(self) -> int:
        """Clips that the weights have seen, this run and before: where the schedules stand."""
        return self.seen_before + self.cur_nimg


@dataclasses.dataclass(frozen=True)
class TrainingPhase:
    """A loss, the parameters that it trains, and how often."""

    name: Phase
    params: dict[str, nn.Parameter]  # such as G.decoder.out.weight
    optimizer: torch.optim.Optimizer
    interval: int  # iterations; the loss is multiplied by it (lazy regularisation)


def make_phases(config: TrainConfig, networks: Networks, loss: Loss) -> list[TrainingPhase]:
    """Builds the phases that the loss has; main and regularisation share an optimizer.

    Raises:
        ConfigError: if `freeze` names what no network has.
    """
    found = ((name, network) for name, network in networks._asdict().items() if network is not None)
    named = {f'{name}.{n}': p for name, network in found for n, p in network.named_parameters()}
    for name in config.freeze:
        if not any(f'{n}.'.startswith(f'{name}.') for n in named):
            raise ConfigError(f'freeze={name}: no network has such a part; known are G, G.synthesis, ...')
    frozen = tuple(f'{name}.' for name in config.freeze)
    plans = ('G', config.g_opt, config.g_reg_interval), ('D', config.d_opt, config.d_reg_interval)
    phases = []
    for side, adam, interval in plans:
        params = {n: p for n, p in named.items() if n.startswith(side) and not f'{n}.'.startswith(frozen)}
        if params:
            optimizer = _adam(adam, list(params.values()), interval)
            phases.append(TrainingPhase(f'{side}main', params, optimizer, 1))
            phases.append(TrainingPhase(f'{side}reg', params, optimizer, interval))
    return [phase for phase in phases if loss.has(phase.name)]


def _adam(config: AdamConfig, params: list[nn.Parameter], interval: int) -> torch.optim.Adam:
    # k main steps and one of regularisation share the moments: correct for k + 1 steps [StyleGAN2]
    ratio = interval / (interval + 1)
    betas = tuple(beta**ratio for beta in config.betas)
    return torch.optim.Adam(params, lr=config.lr * ratio, betas=betas, eps=config.eps, fused=True)


def real_batch(draws: Draw, device: torch.device) -> RealBatch:
    """Moves a batch of draws to the device and its pixels from 0..255 to [-1, 1]."""
    frames, t, c = (draws[key].to(device, non_blocking=True) for key in ('frames', 't', 'c'))
    return RealBatch(frames.float() / 127.5 - 1, t, c)


def fake_batch(
    config: TrainConfig,
    G: VideoGenerator,
    dataset: VideoDataset,
    phase: Phase,
    nimg: int,
    part: slice,
    device: torch.device,
) -> FakeBatch:
    """Draws the fake inputs of a phase; `part` selects those of this process out of the whole batch."""
    index, n = PHASES.index(phase), config.batch
    generator = seeded_generator('cpu', config.seed, _LATENTS, index, nimg)
    codes = G.draw_codes(n, generator)
    swap = torch.rand(n, generator=generator)
    rng = np.random.default_rng((config.seed, _TIMES, index, nimg))
    c, t = sample_frames(config, dataset, rng, n)
    other = G.draw_codes(n, seeded_generator('cpu', config.seed, _OTHER, index, nimg))
    whole = (*codes, t, c, c.roll(1, dims=0), swap, other.z_m)
    return FakeBatch(*_moved([x[part] for x in whole], device))


def single_fakes(
    config: TrainConfig,
    G: VideoGenerator,
    sources: tuple[VideoDataset, VideoDataset],
    phase: Phase,
    nimg: int,
    part: slice,
    device: torch.device,
) -> FakeBatch:
    """Draws fakes that D_image sees beside single images: before their cameras, at the times of clips.

    With a time of their own, such as 0, it would learn to tell images by it.

    Args:
        config: of the run.
        G: whose codes are drawn.
        sources: clips, and images.
        phase: each has draws of its own.
        nimg: clips seen.
        part: the clips of this process out of the whole batch.
        device: where to move them.
    """
    index, each, (clips, images) = PHASES.index(phase), config.images.per_clip, sources
    n = config.batch * each
    generator = seeded_generator('cpu', config.seed, _SINGLE_LATENTS, index, nimg)
    codes, swap = G.draw_codes(n, generator), torch.rand(n, generator=generator)
    rng = np.random.default_rng((config.seed, _SINGLE_TIMES, index, nimg))
    c, _ = images.sample_cameras(rng, n)
    _, t = sample_frames(config, clips, rng, n)
    t = t.gather(1, torch.from_numpy(rng.integers(t.shape[1], size=(n, 1))))
    whole = (*codes, t, c, c.roll(1, dims=0), swap, codes.z_m)
    mine = slice(part.start * each, part.stop * each)
    return FakeBatch(*_moved([x[mine] for x in whole], device))


def sample_frames(
    config: TrainConfig, dataset: VideoDataset, rng: np.random.Generator, n: int
) -> tuple[Tensor, Tensor]:
    """Draws cameras [n, T, 25] and times [n, T] for fakes, which belong together if the config says so."""
    c, t = dataset.sample_cameras(rng, n)
    if config.sampling.tie_time or config.dataset.pairs == 'distances':
        return c, t
    return c, dataset.sample_times(rng, n, config.sampling.fake_times == 'lattice')


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copies float32 tensors to the device in one piece; pinned, so that nothing waits for the copy."""
    sizes = [-(-x.numel() // _ALIGNED) * _ALIGNED for x in tensors]
    flat = torch.zeros(sum(sizes), pin_memory=device.type == 'cuda')
    torch._foreach_copy_([_part(*pair) for pair in zip(flat.split(sizes), tensors, strict=True)], tensors)
    flat = flat.to(device, non_blocking=True)
    return [_part(*pair) for pair in zip(flat.split(sizes), tensors, strict=True)]


def _part(piece: Tensor, like: Tensor) -> Tensor:
    return piece[: like.numel()].view_as(like)


def noise_generator(
    config: TrainConfig, phase: Phase, nimg: int, first: int, device: torch.device
) -> torch.Generator:
    """Returns the generator of noise, jitter and density points of the micro-batch that begins at `first`."""
    return seeded_generator(device, config.seed, _NOISE, PHASES.index(phase), nimg, first)


def heldout_generator(config: TrainConfig, nimg: int, first: int, device: torch.device) -> torch.Generator:
    """Returns the generator of what is drawn for the held-out micro-batch that begins at `first`."""
    return seeded_generator(device, config.seed, _HELDOUT, nimg, first)


def micro_batches(batch: RealBatch | FakeBatch, size: int) -> Iterator[RealBatch | FakeBatch]:
    """Splits a batch into micro-batches of `size` clips, of the same type, with their share of singles."""
    parts = zip(*(x.split(size) for x in batch if isinstance(x, Tensor)), strict=True)
    if batch.singles is None:
        yield from (type(batch)(*part) for part in parts)
        return
    each = len(batch.singles.t) // len(batch.t)
    for part, singles in zip(parts, micro_batches(batch.singles, size * each), strict=True):
        yield type(batch)(*part, singles)
