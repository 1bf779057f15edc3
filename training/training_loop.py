"""The training loop: step, tick, checkpoint, resume.

`Trainer.train()` is: while not done, step(); if a tick is due, tick(). Every random draw is seeded by (seed,
purpose, clips seen), so a run that stops at any step and is resumed is the same run, bit for bit on a CPU.
"""

import copy
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from dnnlib.config import to_dict
from dnnlib.util import UserError, usable_cores
from torch_utils import checkpoint, misc
from torch_utils import distributed as dist
from torch_utils.training_stats import Collector, Moments
from training.adaptation import Adaptation
from training.batching import (
    IMAGES,
    Progress,
    TrainingPhase,
    fake_batch,
    make_phases,
    micro_batches,
    noise_generator,
    real_batch,
    single_fakes,
)
from training.config import TrainConfig, build_networks, describe_data, images_dataset
from training.data.dataset import Draw, Seed, VideoDataset, batches, killed_workers_explained
from training.diagnostics import Probes
from training.loss_contract import GRADIENT_SCALE, FakeBatch, Networks, RealBatch, Shown
from training.networks.registry import NETWORKS
from training.reporting import DrawSheets, Reporter

Evaluate = Callable[[nn.Module, float], dict[str, float]]
"""(G_ema, kimg) -> metrics, called on every rank."""
Start = Callable[[dict[str, nn.Module]], int]
"""Fills the networks of a new run with weights and returns the clips that its schedules count as seen."""
_MAX_NAMED = 3  # tensors named in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the loop asks of its caller; None = not at all."""

    should_stop: Callable[[], bool] = lambda: False  # asked after every step; True ends with a checkpoint
    start: Start | None = None  # called for a new run, on every rank
    evaluate: Evaluate | None = None  # called at every checkpoint; its numbers go to the logs
    draw: DrawSheets | None = None  # called when sheets are due, on the leader


_NO_CALLBACKS = Callbacks()


class Trainer:
    """Trains the networks of a TrainConfig in a run folder; every rank holds one.

    Args:
        config: the whole run.
        run_dir: folder of snapshots, logs and images; an unfinished run in it is continued.
        device: where to compute.
        callbacks: see Callbacks.
        deadline: as of time.time(); ends the session with a checkpoint, after at least one step.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        device: torch.device,
        callbacks: Callbacks = _NO_CALLBACKS,
        deadline: float = math.inf,
    ) -> None:
        self.config, self.run_dir, self.device = config, run_dir, device
        self.callbacks, self.deadline = callbacks, deadline
        self.batch_gpu, _ = config.split_batch(dist.world_size())
        self.dataset: VideoDataset = config.dataset.build()
        self.images = images_dataset(config)
        dist.print0(describe_data(self.dataset, self.images))
        self._singles: Iterator[Draw] | None = None  # from the images, if there are any, when training starts
        self.loss = config.loss.build()
        self.networks, self.G_ema = self._build_networks()
        self.phases = make_phases(config, self.networks, self.loss)
        self.progress = Progress(augment=config.augment.probability)
        self.stats = Collector()
        self._made: deque[Shown] = deque()  # fakes of Gmain that Dmain judges, one for each micro-batch
        self.reporter: Reporter | None = None  # made when training starts, on the leader
        self.probes = Probes(config, self.dataset, self.loss, self.networks, self.G_ema, device)
        self._saved_nimg: int | None = None  # of the newest checkpoint
        self._resume()
        self._adaptation = Adaptation(config, self.dataset.heldout(), self.progress.batch_idx)
        for module in self.modules().values():
            dist.broadcast_module(module)  # different processors may initialise a little differently
        for warning in self.loss.warnings(config.batch):
            dist.print0(f'warning: {warning}')

    @property
    def finished(self) -> bool:
        """Whether the run folder already holds the last checkpoint of the run."""
        return self._saved_nimg is not None and self._saved_nimg >= self.config.total_nimg

    @killed_workers_explained()
    def train(self) -> bool:
        """Trains to the end, or until the callbacks stop it; returns True when the run is complete."""
        config, progress = self.config, self.progress
        self._begin()
        start = self._tick_start = time.time()
        seconds_before, first_nimg, reported = progress.seconds, progress.cur_nimg, progress.cur_nimg
        while True:
            done = progress.cur_nimg >= config.total_nimg
            late = progress.cur_nimg > first_nimg and time.time() > self.deadline
            stop = done or dist.any_rank(late or self.callbacks.should_stop())
            if stop and progress.cur_nimg == self._saved_nimg:
                return done  # nothing new since the checkpoint
            progress.seconds = seconds_before + time.time() - start
            if stop or _crosses(reported, progress.cur_nimg, config.output.tick_nimg):
                self.tick(reported, stop, done)
                reported = progress.cur_nimg
            if stop:
                return done
            self.step()

    def _begin(self) -> None:
        """Opens the stream of real batches and the logs, and does what comes before the first step."""
        nimg, config = self.progress.cur_nimg, self.config
        self._data = self._stream(self.dataset, config.seed, 1)
        if self.images is not None:
            self._singles = self._stream(self.images, (config.seed, IMAGES), config.images.per_clip)
        if dist.is_leader():
            fps = self.dataset.fps
            self.reporter = Reporter(self.run_dir, config, fps, self.device, nimg, self.deadline)
            if nimg == 0 and config.output.image_ticks:
                dist.print0('drawing the first images')
                self.draw()
        if self._saved_nimg:
            self.measure()  # in case the session before was stopped before it did

    def _stream(self, dataset: VideoDataset, seed: Seed, each: int) -> Iterator[Draw]:
        """Returns batches of draws from where the run stands, `each` of them for a clip."""
        return batches(
            dataset,
            seed=seed,
            start=self.progress.cur_nimg * each,
            batch=self.config.batch * each,
            rank=dist.rank(),
            world_size=dist.world_size(),
            num_workers=min(self.config.workers, usable_cores()),  # more would only wait for each other
        )

    def step(self) -> None:
        """One iteration: every phase that is due, the moving average, the counters."""
        real = real_batch(next(self._data), self.device)
        if self._singles is not None:
            real = real._replace(singles=real_batch(next(self._singles), self.device))
        self._made.clear()  # where D is frozen, nothing has judged them
        due = [phase for phase in self.phases if self.progress.batch_idx % phase.interval == 0]
        self._adaptation.begin(self.loss, self.networks, self.progress, self.device)
        self._count_nonfinite(all([self.run_phase(phase, real) for phase in due]))  # runs all
        for name, value in self._adaptation.end(self.progress):
            self.stats.report(name, value)
        misc.update_ema(self.G_ema, self.networks.G, self.ema_beta())
        self.progress.cur_nimg += self.config.batch
        self.progress.batch_idx += 1
        if self.reporter is not None:
            elapsed = time.time() - self._tick_start
            self.reporter.advance(self.config.batch, self.progress.cur_nimg, elapsed)

    def run_phase(self, phase: TrainingPhase, real: RealBatch) -> bool:
        """Accumulates the gradients of a phase over micro-batches and ranks and steps; False if not finite.

        real: the clips of this rank.
        """
        config, nimg, seen = self.config, self.progress.cur_nimg, self.progress.schedule_nimg
        for module in self.modules().values():
            module.requires_grad_(False)
        for param in phase.params.values():
            param.requires_grad_(True)
        phase.optimizer.zero_grad(set_to_none=True)
        count = config.batch // dist.world_size()
        first = dist.rank() * count
        fake = self._fakes(phase, slice(first, first + count))
        rounds = count // self.batch_gpu
        w_means = []
        parts = zip(micro_batches(real, self.batch_gpu), micro_batches(fake, self.batch_gpu), strict=True)
        for i, (real_part, fake_part) in enumerate(parts):
            if phase.name == 'Dmain' and self._made:
                fake_part = self._made.popleft()
            noise = noise_generator(config, phase.name, nimg, first + i * self.batch_gpu, self.device)
            inputs = real_part, fake_part, seen, noise, self.progress.augment
            for term in self.loss.terms(phase.name, self.networks, *inputs):
                if term.loss.requires_grad:  # not if it depends on frozen parts only
                    (term.loss * (GRADIENT_SCALE * phase.interval / rounds)).backward()
                for name, value in term.stats.items():
                    self.stats.report(name, value)
                    self._adaptation.note(name, value)
                if term.w_mean is not None:
                    w_means.append(term.w_mean)
                if term.made is not None:
                    self._made.append(term.made)
        return self._apply(phase, w_means)

    def _fakes(self, phase: TrainingPhase, part: slice) -> FakeBatch:
        """Draws the fake inputs of a phase for a part of the whole batch."""
        config, G, where = (
            self.config,
            self.networks.G,
            (phase.name, self.progress.cur_nimg, part, self.device),
        )
        fake = fake_batch(config, G, self.dataset, *where)
        if self.images is None:
            return fake
        return fake._replace(singles=single_fakes(config, G, (self.dataset, self.images), *where))

    def ema_beta(self) -> float:
        """Decay of the moving average for this iteration; 0 in the first one, which copies."""
        ema = self.config.ema
        half_life = min(ema.half_life_nimg, self.progress.schedule_nimg * ema.rampup)
        return 0.5 ** (self.config.batch / half_life) if half_life > 0 else 0.0

    def tick(self, since: int, stop: bool, done: bool) -> None:
        """Reports, and writes checkpoints and images when they are due.

        Args:
            since: clips seen at the tick before.
            stop: this session ends, so everything is due; measuring metrics is not, unless the run is `done`.
            done: the run is complete.
        """
        output, progress, nimg = self.config.output, self.progress, self.progress.cur_nimg
        stats = self.stats.collect()
        elapsed = time.time() - self._tick_start
        progress.tick = nimg // output.tick_nimg
        probe = _crosses(since, nimg, output.probe_ticks * output.tick_nimg)
        if self.reporter is not None:
            if probe or (stop and output.probe_ticks):
                found = self.probes.measure(progress)
                stats |= {name: Moments(value, 0.0, 1) for name, value in found.items()}
            self.reporter.report(progress, stats, nimg - since, elapsed)
        save = _crosses(since, nimg, output.snapshot_ticks * output.tick_nimg)
        draw = _crosses(since, nimg, output.image_ticks * output.tick_nimg)
        if save or stop:
            self.save()
        if draw or (stop and output.image_ticks):
            self.draw()
        if done or (save and not stop):
            self.measure()
        self._tick_start = time.time()

    def measure(self) -> None:
        """Measures the metrics of G_ema as it is and reports them."""
        if self.callbacks.evaluate is None:
            return
        metrics = self.callbacks.evaluate(self.G_ema, self.progress.cur_nimg / 1000)
        if self.reporter is not None:
            self.reporter.metrics(metrics, self.progress.cur_nimg)

    def draw(self) -> None:
        """Draws G_ema as it is, on the leader."""
        if self.reporter is not None and self.callbacks.draw is not None:
            self.reporter.draw(self.callbacks.draw, self.G_ema, self.progress.cur_nimg)

    def save(self) -> None:
        """Writes a checkpoint: the snapshot that people share, and the state needed to resume."""
        nimg = self.progress.cur_nimg
        if dist.is_leader():
            state = {
                'progress': dataclasses.asdict(self.progress),
                'optimizers': {p.name: p.optimizer.state_dict() for p in self.phases if p.interval == 1},
                'config': to_dict(self.config),
            }
            checkpoint.save_training_state(checkpoint.training_state_path(self.run_dir, nimg), state)
            snapshot = checkpoint.snapshot_path(self.run_dir, nimg)
            checkpoint.save_snapshot(snapshot, self.modules(), self._meta())
            checkpoint.prune_training_states(self.run_dir, self.config.output.keep_states)
        self._saved_nimg = nimg
        dist.barrier()

    def _build_networks(self) -> tuple[Networks, nn.Module]:
        config = self.config
        with torch.random.fork_rng(devices=[]):  # layers initialise themselves from torch's global generator
            torch.manual_seed(config.seed)
            networks = build_networks(config)
        for network in filter(None, networks):
            network.to(self.device)
        return networks, copy.deepcopy(networks.G).eval().requires_grad_(False)

    def modules(self) -> dict[str, nn.Module]:
        """All networks by their names in a snapshot."""
        named = zip(NETWORKS, (*self.networks, self.G_ema), strict=True)
        return {name: module for name, module in named if module is not None}

    def _apply(self, phase: TrainingPhase, w_means: list[torch.Tensor]) -> bool:
        """Averages gradients over the ranks, steps if they are finite, and moves the running mean of w."""
        grads = [p.grad for p in phase.params.values() if p.grad is not None]
        if grads:
            torch._foreach_div_(grads, GRADIENT_SCALE)
        finite = dist.all_reduce_gradients(list(phase.params.values()))
        bad = [name for name, good in zip(phase.params, finite, strict=True) if not good]
        if bad:
            more = f' and {len(bad) - _MAX_NAMED} more' if len(bad) > _MAX_NAMED else ''
            dist.print0(
                f'warning: {phase.name} at {self.progress.cur_nimg} clips: gradient not finite in '
                f'{", ".join(bad[:_MAX_NAMED])}{more}; this step is skipped'
            )
            return False
        if grads:
            norms = torch.stack(torch._foreach_norm(grads))
            self.stats.report(f'Gradient/{phase.name}', norms.square().sum().sqrt())
        phase.optimizer.step()
        if w_means:
            w_mean = dist.all_reduce_sum(torch.stack(w_means).mean(dim=0)) / dist.world_size()
            self.networks.G.update_w_avg(w_mean)
        return True

    def _count_nonfinite(self, finite: bool) -> None:
        progress = self.progress
        progress.nonfinite_in_a_row = 0 if finite else progress.nonfinite_in_a_row + 1
        progress.nonfinite += not finite
        if progress.nonfinite_in_a_row >= self.config.max_nonfinite:
            raise UserError(
                f'gradients were not finite in {progress.nonfinite_in_a_row} iterations in a row '
                f'({progress.cur_nimg} clips): the run has diverged; start '
                'again from an earlier snapshot with a lower learning rate (--glr, --dlr), '
                'a higher --gamma, or --precision bf16 or fp32'
            )

    def _meta(self) -> dict:
        clips = range(min(len(self.dataset), 32))
        return {
            'cur_nimg': self.progress.cur_nimg,
            'kimg': self.progress.cur_nimg / 1000,
            'schedule_nimg': self.progress.schedule_nimg,
            'cfg': self.config.cfg,
            'dataset': self.dataset.describe(),
            'fps': self.dataset.fps,
            'span': self.config.dataset.span,
            'torch': str(torch.__version__),
            # a few real camera paths, so that videos along them need nothing but this file
            'cameras': [self.dataset.clip_cameras(i)[: self.config.dataset.span].tolist() for i in clips],
        }

    def _resume(self) -> None:
        """Continues the newest valid checkpoint of the run folder, or starts from the weights of `resume`."""
        found = checkpoint.latest_checkpoint(self.run_dir, print) if dist.is_leader() else None
        found = dist.broadcast_object(found)
        if found is not None:
            snapshot = checkpoint.read_snapshot(found[0])
            for name, module in self.modules().items():
                checkpoint.load_weights(snapshot, name, module)
            state = checkpoint.load_training_state(found[1])
            self.progress = Progress(**state['progress'])
            self._saved_nimg = self.progress.cur_nimg
            for phase in self.phases:
                if phase.interval == 1:
                    phase.optimizer.load_state_dict(state['optimizers'][phase.name])
            if not self.finished:
                dist.print0(f'continuing {self.run_dir} at {self.progress.cur_nimg} clips')
        elif self.callbacks.start is not None:
            self.progress.seen_before = self.callbacks.start(self.modules())
        if found is None:
            self._start_frozen_from_averages()

    @torch.no_grad()
    def _start_frozen_from_averages(self) -> None:
        """Gives frozen parts of G the weights of G_ema, which are better, so that both stay the same."""
        frozen = tuple(f'{name}.' for name in self.config.freeze)
        for name, average in self.G_ema.named_parameters():
            if f'G.{name}.'.startswith(frozen):
                self.networks.G.get_parameter(name).copy_(average)


def _crosses(before: int, now: int, interval: int) -> bool:
    """Returns whether a multiple of `interval` (0 = never) lies in (before, now]."""
    return interval > 0 and now // interval > before // interval
