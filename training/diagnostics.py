"""Probes: what a run learns, as far as losses do not show it, measured at every tick.

What hangs D_video's verdict on: motion, order, cameras. What moves the frames of G_ema: codes, time, cameras.
What the motion layers add. Whether discriminators know their clips by heart. Networks stay as they are, and
all draws have seeds of their own, so that a run is the same with and without probes.
"""

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_utils import distributed as dist
from torch_utils.misc import seeded_generator
from training.augment import overfitting
from training.batching import Progress, micro_batches, real_batch
from training.camera import unpack_label
from training.config import TrainConfig
from training.data.dataset import Draw, VideoDataset, batches
from training.loss_contract import FakeBatch, Loss, Networks, RealBatch, Shown
from training.networks.contract import Codes, VideoGenerator
from training.networks.motion import MotionLayer

_PEOPLE, _MOTIONS, _TIMES = 4, 4, 4  # appearance codes, motion codes, times of the grid
_VIEWS, _MAPPINGS = 3, 4  # cameras of heads, and cameras that the mapping sees
_SIZE = 64  # pixels at most, of images whose variance is taken
_LEAST_GAP = 0.1  # logits; of a smaller difference between real and fake shares say nothing
_FAKES, _NOISE, _GRID = 40, 41, 42  # purposes of random draws


class Probes:
    """Measures networks in training, in one process.

    Args:
        config: of the run.
        dataset: of the run; its held-out clips are probed too, if there are any.
        loss: it says what discriminators see; where they do not see pairs they are not probed.
        networks: in training.
        G_ema: moving average of G.
        device: of the networks.
        clips: real ones that are looked at, the same every time.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: VideoDataset,
        loss: Loss,
        networks: Networks,
        G_ema: VideoGenerator,
        device: torch.device,
        clips: int = 16,
    ) -> None:
        self.config, self.dataset, self.loss = config, dataset, loss
        self.networks, self.G_ema, self.device, self.clips = networks, G_ema, device, clips
        self.batch, _ = config.split_batch(dist.world_size())

    @torch.no_grad()
    def measure(self, progress: Progress) -> dict[str, float]:
        """Returns figures by name: Probe/video/see_motion and others, see docs/training.md."""
        start = time.time()
        cameras = self._real['c'].to(self.device)
        found = self._verdicts(progress) | self._variances(cameras[:, 0], progress.cur_nimg)
        return found | {'Timing/probe_sec': time.time() - start}

    @functools.cached_property
    def _real(self) -> Draw:
        return _first_draws(self.dataset, self.config.seed, self.clips)

    @functools.cached_property
    def _heldout(self) -> Draw | None:
        held = self.dataset.heldout()
        return _first_draws(held, self.config.seed, self.clips) if len(held) else None

    def _verdicts(self, progress: Progress) -> dict[str, float]:
        """Returns what discriminators say of real pairs, of changed ones, and of fakes with their cameras."""
        nimg, seen, G = progress.cur_nimg, progress.schedule_nimg, self.networks.G
        noise = seeded_generator(self.device, self.config.seed, _NOISE, nimg)
        see = functools.partial(self.loss.shown, G, nimg=seen, generator=noise)
        real = real_batch(self._real, self.device)
        scores, moved = defaultdict(list), defaultdict(list)
        parts = (micro_batches(x, self.batch) for x in (real, self._fakes(real, nimg)))
        for real_part, fake_part in zip(*parts, strict=True):
            shown, made = see(real_part), see(fake_part)
            if shown is None:
                return {}
            kinds = {'real': shown, 'fake': made, **_changed(shown, fake_part.c_other)}
            self._judge(kinds, scores)
            for name in ('real', 'fake'):
                one, two = kinds[name].image.unflatten(0, (-1, 2)).unbind(1)
                moved[f'Probe/motion/difference/{name}'].append((two - one).square().flatten(1).mean(1))
        if self._heldout is not None:
            for part in micro_batches(real_batch(self._heldout, self.device), self.batch):
                self._judge({'heldout': see(part)}, scores)
        sds = {name: torch.cat(x).mean().sqrt().item() for name, x in moved.items()}
        return sds | _shares({name: torch.cat(x) for name, x in scores.items()})

    def _fakes(self, real: RealBatch, nimg: int) -> FakeBatch:
        """Draws fakes at the times and before the cameras of the real pairs."""
        draws = seeded_generator('cpu', self.config.seed, _FAKES, nimg)
        codes = self.networks.G.draw_codes(len(real.t), draws)
        swap, other = torch.rand(len(real.t), generator=draws), real.c.roll(1, 0)
        return FakeBatch(*(x.to(self.device) for x in (*codes, real.t, real.c, other, swap, codes.z_m)))

    def _judge(self, kinds: dict[str, Shown], scores: dict[tuple[str, str], list[Tensor]]) -> None:
        """Adds logits to (discriminator, kind)."""
        _, D_image, D_video = self.networks
        for name, shown in kinds.items():
            if D_video is not None:
                pair = D_video.pair_input(shown.image.unflatten(0, (-1, 2)), shown.t)
                scores['video', name].append(D_video(pair, shown.c))
            if D_image is not None and name in ('real', 'fake', 'heldout'):
                scores['image', name].append(D_image(shown.image, shown.image_raw, shown.c.flatten(0, 1)))

    def _variances(self, cameras: Tensor, nimg: int) -> dict[str, float]:
        """Returns where the variance of G_ema's frames comes from, and what its motion layers do.

        cameras: some real ones [N, 25].
        """
        draws = seeded_generator('cpu', self.config.seed, _GRID, nimg)
        z_a, z_m = (x.to(self.device) for x in self.G_ema.draw_codes(_PEOPLE * _MOTIONS, draws))
        z_a = z_a[:_PEOPLE]
        front = cameras[unpack_label(cameras)[0][:, 2, 2].argmin()][None]  # looks most nearly along -z
        middle = torch.full((1,), 0.5, device=self.device)
        times = torch.linspace(0, 1, _TIMES, device=self.device)

        shape = (_PEOPLE, _MOTIONS, _TIMES)
        each = torch.cartesian_prod(*(torch.arange(n, device=self.device) for n in shape)).unbind(1)
        with watched_motion(self.G_ema) as layers:
            codes = Codes(z_a[each[0]], z_m[each[0] * _MOTIONS + each[1]])
            grid = self._frames(codes, front, times[each[2]], front)
        parts = variance_parts(grid.unflatten(0, shape))

        def spread(count: int, mapping: Tensor, views: Tensor) -> float:
            """Returns the variance over `count` cameras, of which one kind changes."""
            heads = Codes(z_a.repeat_interleave(count, 0), z_m[:1].expand(_PEOPLE * count, -1))
            seen, rendered = (x.expand(count, -1).repeat(_PEOPLE, 1) for x in (mapping, views))
            images = self._frames(heads, seen, middle.expand(len(seen)), rendered)
            return images.unflatten(0, (_PEOPLE, count)).var(dim=1).mean().item()

        variances = {**parts._asdict(), 'camera': spread(_VIEWS, front, cameras[:_VIEWS])}
        variances['mapping_camera'] = spread(_MAPPINGS, cameras[:_MAPPINGS], front)
        total = max(sum(variances.values()), 1e-12)
        return {
            **{f'Probe/variance/{name}': value / total for name, value in variances.items()},
            'Probe/motion/common': parts.t / max(parts.t + parts.z_m, 1e-12),
            'Probe/motion/common_sd': parts.t**0.5,
            'Probe/motion/specific_sd': parts.z_m**0.5,
            **_layer_figures(layers, shape),
        }

    def _frames(self, codes: Codes, mapping: Tensor, times: Tensor, cameras: Tensor) -> Tensor:
        """Renders N moments of G_ema without noise of its own: images of at most 64 pixels, float64.

        mapping, cameras: [N, 25] or one for all.
        """
        n, step = len(times), 2 * self.batch
        rows = (*codes, mapping.expand(n, -1), times, cameras.expand(n, -1))
        size = (min(_SIZE, self.G_ema.config.resolution),) * 2
        images = []
        for z_a, z_m, c_map, t, c in zip(*(x.split(step) for x in rows), strict=True):
            part = Codes(z_a, z_m)
            ws = self.G_ema.condition(part, c_map, t).expand(len(t), -1, -1)
            image = self.G_ema.render(self.G_ema.scene(part, ws, t), ws, c).image.float().clamp(-1, 1)
            images.append(nn.functional.interpolate(image, size=size, mode='bilinear', antialias=True))
        return torch.cat(images).double()


class VarianceParts(NamedTuple):
    """Variance of images by its causes, per number."""

    z_a: float  # people
    z_m: float  # what differs between motions of a person, at all times or at some
    t: float  # what all motions of a person have in common: a clock


class MotionParts(NamedTuple):
    """Variance of motion, per person [A]; unbiased, so that it can be a little below 0."""

    common: Tensor  # what all motions of a person have in common: a clock
    steady: Tensor  # of motions, the same at all times
    changing: Tensor  # of motions, with time


def motion_parts(images: Tensor) -> MotionParts:
    """Splits the motion in images [A, M, T, ...]: A people, M motions of each at T times.

    Motions are c(t) + s_m + d_m(t), s and d drawn independently with mean 0. The mean over M motions still
    holds a 1 / M of what differs between them, which is subtracted from what is common.
    """
    count, rest = images.shape[1], tuple(range(1, images.ndim))
    clips = images.mean(dim=2, keepdim=True)
    common = images.mean(dim=1, keepdim=True)
    people = common.mean(dim=2, keepdim=True)
    changing = (images - clips - common + people).square().mean(rest) * count / (count - 1)
    clock = (common - people).square().mean(rest) - changing / count
    return MotionParts(clock, clips.var(dim=1).mean(rest[:-1]), changing)


def variance_parts(images: Tensor) -> VarianceParts:
    """Splits the variance of images [A, M, T, ...], see `motion_parts`; what is below 0 counts as 0.

    Of people, too, a share of what differs between their motions is subtracted.
    """
    common, steady, changing = (part.mean().item() for part in motion_parts(images))
    people = images.mean(dim=(1, 2)).var(dim=0).mean().item() - steady / images.shape[1]
    return VarianceParts(z_a=max(people, 0.0), z_m=steady + changing, t=max(common, 0.0))


@contextlib.contextmanager
def watched_motion(G: nn.Module) -> Iterator[dict[str, dict[str, list[Tensor]]]]:
    """Collects what motion layers of G see (`f`), add (`f_m`) and are modulated with (`style`, `w_m`)."""
    layers: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def added(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        layers[name]['f'].append(inputs[0].float().square().flatten(1).mean(1))
        layers[name]['f_m'].append((output - inputs[0]).float())

    def styled(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        layers[name]['style'].append(output.float().mean(1))
        layers[name]['w_m'].append(inputs[0].float())

    with contextlib.ExitStack() as stack:
        for name, module in G.named_modules():
            if isinstance(module, MotionLayer):
                hooks = [module.register_forward_hook(functools.partial(added, name))]
                if hasattr(module, 'conv'):
                    hooks.append(module.conv.affine.register_forward_hook(functools.partial(styled, name)))
                for hook in hooks:
                    stack.callback(hook.remove)
        yield layers


def _layer_figures(layers: dict[str, dict[str, list[Tensor]]], shape: Sequence[int]) -> dict[str, float]:
    """Returns norms of motion layers from what was seen for a grid of people, motions and times."""
    figures = {}
    for name, lists in layers.items():
        seen = {kind: torch.cat(x) for kind, x in lists.items()}
        size = seen['f_m'].square().mean().sqrt()
        over_motions = seen['f_m'].unflatten(0, shape).var(dim=1).mean().sqrt()
        tag = f'Probe/layers/{name.removesuffix(".motion")}'
        figures[f'{tag}/size'] = (size / seen['f'].mean().sqrt().clamp(min=1e-12)).item()
        figures[f'{tag}/over_z_m'] = (over_motions / size.clamp(min=1e-12)).item()
        if 'style' in seen:
            figures[f'{tag}/style'] = seen['style'].unflatten(0, shape)[:, :, -1].mean().item()
            figures[f'{tag}/directions'] = directions(seen['w_m']).item()
    return figures


def directions(x: Tensor) -> Tensor:
    """Returns in how many directions rows [N, C] differ: (sum of variances)^2 / sum of their squares."""
    moved = x - x.mean(dim=0)
    gram = moved @ moved.T
    return gram.trace().square() / gram.square().sum().clamp(min=1e-30)


def _first_draws(dataset: VideoDataset, seed: int, count: int) -> Draw:
    return next(batches(dataset, seed=seed, start=0, batch=count, rank=0, world_size=1, num_workers=0))


def _changed(shown: Shown, other: Tensor) -> dict[str, Shown]:
    """Returns real pairs with a frozen image, in the other order, with other cameras, and of two people."""
    frames = shown.image.unflatten(0, (-1, 2))
    two = torch.stack([frames[:, 0], frames[:, 1].roll(1, 0)], dim=1)
    return {
        'see_motion': shown._replace(image=frames[:, :1].expand_as(frames).flatten(0, 1)),
        'order': shown._replace(image=frames.flip(1).flatten(0, 1), c=shown.c.flip(1)),
        'cameras': shown._replace(c=other),
        'person': shown._replace(image=two.flatten(0, 1)),
    }


def _shares(scores: dict[tuple[str, str], Tensor]) -> dict[str, float]:
    """Turns logits by discriminator and kind into what is reported."""
    means = {key: logits.mean().item() for key, logits in scores.items()}
    signs = {key: logits.sign().mean().item() for key, logits in scores.items()}
    figures = {}
    for name in sorted({name for name, _ in scores}):
        real, fake = means[name, 'real'], means[name, 'fake']
        figures[f'Probe/{name}/gap'] = gap = real - fake
        figures[f'Probe/{name}/sign/train'] = signs[name, 'real']
        if (name, 'heldout') in means:
            figures[f'Probe/{name}/sign/heldout'] = signs[name, 'heldout']
            figures[f'Probe/{name}/memorised'] = overfitting(real, means[name, 'heldout'], fake)
        for kind in ('see_motion', 'order', 'cameras', 'person'):
            if (name, kind) in means and gap > _LEAST_GAP:
                figures[f'Probe/{name}/{kind}'] = (real - means[name, kind]) / gap
    return figures
