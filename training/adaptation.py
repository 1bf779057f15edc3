"""Adaptive augmentation: its probability follows how much the discriminators have memorised."""

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_utils import distributed as dist
from torch_utils.training_stats import Collector
from training.augment import adapt, overfitting
from training.batching import HELDOUT_CLIPS, Progress, heldout_generator, micro_batches, real_batch
from training.config import TrainConfig
from training.data.dataset import VideoDataset, batches
from training.loss_contract import Loss, Networks

_INTERVAL = 4  # iterations between changes of the probability [ADA]


class Adaptation:
    """Measures overfitting in one iteration of four, on clips held out; without a target never.

    It keeps nothing between iterations but the probability, which is part of the progress: a run that is
    stopped at any iteration continues exactly.

    Args:
        config: of the run.
        heldout: those clips.
        batch_idx: iterations done before.
    """

    def __init__(self, config: TrainConfig, heldout: VideoDataset, batch_idx: int) -> None:
        self.config = config
        self._latest: Collector | None = None  # stats of this iteration, if it is one of those
        start = -(-batch_idx // _INTERVAL) * config.batch
        split = {'batch': config.batch, 'rank': dist.rank(), 'world_size': dist.world_size()}
        self._draws = batches(heldout, seed=(config.seed, HELDOUT_CLIPS), start=start, **split)

    @torch.no_grad()
    def begin(self, loss: Loss, networks: Networks, progress: Progress, device: torch.device) -> None:
        """Scores held-out clips, before the discriminators learn from this iteration."""
        self._latest = None
        if self.config.augment.target is None or progress.batch_idx % _INTERVAL:
            return
        self._latest = Collector()
        real, (size, _) = real_batch(next(self._draws), device), self.config.split_batch(dist.world_size())
        first = dist.rank() * len(real.t)
        for i, part in enumerate(micro_batches(real, size)):
            draws = heldout_generator(self.config, progress.cur_nimg, first + i * size, device)
            scores = loss.scores(networks, part, progress.schedule_nimg, draws, progress.augment)
            for name, logits in scores.items():
                self._latest.report(f'Loss/scores/{name}/heldout', logits)

    def note(self, name: str, value: Tensor) -> None:
        """Takes what a term of the loss reports."""
        if self._latest is not None:
            self._latest.report(name, value)

    def end(self, progress: Progress) -> Iterator[tuple[str, float]]:
        """Moves the probability by the discriminator that has memorised most; yields what to report."""
        moments = {} if self._latest is None else self._latest.collect()
        found = []
        for name in ('image', 'video'):
            scores = [moments.get(f'Loss/scores/{name}/{which}') for which in ('real', 'heldout', 'fake')]
            if all(scores):
                found.append(overfitting(*(score.mean for score in scores)))
                yield f'Loss/overfitting/{name}', found[-1]
        if found:
            clips = _INTERVAL * self.config.batch
            progress.augment = adapt(self.config.augment, progress.augment, max(found), clips)
        if progress.augment or self.config.augment.target is not None:
            yield 'Progress/augment', progress.augment
