"""What is looked for, and how: code, motion, cameras and, after that, the network itself.

The frames that are wanted are compared with those of the network, and Adam changes what a stage is given a
rate for. What belongs to a frame (motion, camera) moves only when its frame is in the batch. Sources: PV3D
4.4 (W+, motion per frame, network frozen); pivotal tuning [Roich et al. 2021]; the rest is ours.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from editing.cameras import ANGLES, OFFSETS, SIDE_YAWS_DEG, improbability, turn, view
from editing.objective import Objective, Targets, psnr
from torch_utils.misc import seeded_generator
from training.camera import mirror_label
from training.networks.contract import Codes, RadianceGenerator, Rendering

MotionModel = Literal['zm+', 'single', 'none']

_RAMP, _FALL = 0.05, 0.25  # fractions of a stage in which the rates rise and fall
_BATCH_KEY, _SIDE_KEY = 1, 2  # purposes of random draws
_CAMERA_PRIOR = 0.1  # of the distance that is left, for a camera that is off by one spread
# weights of squared motion, whose prior is N(0, 1), of what is beyond training's, and of the clip's mean
_PRIOR, _NORM, _GAUGE = 1e-3, 1e-2, 1e-3
_HELD_DEPTH, _HELD_IMAGE = 40.0, 0.3  # weights of what must stay as it is at the sides
_NOTE_EVERY = 10  # steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of Adam: learning rates, 0 = stays as it is."""

    name: str
    steps: int
    code: float = 0.0  # of w
    layers: float = 0.0  # of what is added to it, layer by layer
    motion: float = 0.0
    camera: float = 0.0  # radians, image widths
    network: float = 0.0
    first_only: bool = False  # looks at the first frame alone
    batch: int = 8  # frames at a time, neighbours
    smooth: float = 0.0  # weight of squared differences of motion between neighbours
    hold: float = 0.0  # weight of the side views of the network as it was
    mirror: float = 0.0  # weight of the mirrored frames


class Fit(nn.Module):
    """A person in a network, all of it to be changed: ws, motion and camera of T frames."""

    def __init__(
        self,
        G: RadianceGenerator,
        w: Tensor,
        cameras: Tensor,
        model: MotionModel = 'none',
        neutral: int | None = None,
        free_crop: bool = False,
    ) -> None:
        """Starts at the code w [1, 1 or num_ws, w_dim], without motion, with cameras [T, 25] as estimated.

        Args:
            G: the network.
            w: one row for all layers, or one for each (W+).
            cameras: of the frames.
            model: motion of each frame by itself, that of one code z_m, or none.
            neutral: frame whose motion is 0; none = only the mean over the clip is drawn to 0.
            free_crop: roll, shift and focal length may be refined as well as yaw and pitch.
        """
        super().__init__()
        frames, width = len(cameras), G.motion_dim
        self.G, self.model, self.neutral = G, model, neutral
        self.num_ws = G.condition(_one_code(G), cameras[:1], cameras.new_zeros(1)).shape[1]
        self.w = nn.Parameter(w.clone())
        self.layers = nn.Parameter(w.new_zeros(1, self.num_ws, w.shape[-1]))
        self.u = nn.Parameter(w.new_zeros(frames, width))  # with `single` its first row is z_m
        self.offsets = nn.Parameter(w.new_zeros(frames, OFFSETS))
        free = torch.arange(OFFSETS) < (OFFSETS if free_crop else ANGLES - 1)
        self.register_buffer('free', free.to(w))
        self.register_buffer('labels', cameras)
        self.register_buffer('times', torch.linspace(0, 1, frames, device=w.device))

    @property
    def ws(self) -> Tensor:
        """Appearance [1, num_ws, w_dim]."""
        return self.w + self.layers

    def motion(self, rows: Tensor) -> Tensor:
        """Returns u [N, motion_dim] of frames."""
        if self.model == 'single':
            z_m = self.u[:1]
            return self.G.motion_at(Codes(z_m.new_zeros(1, self.G.z_dim), z_m), self.times[rows])
        return self.u[rows] if self.neutral is None else self.u[rows] - self.u[self.neutral]

    def cameras(self, rows: Tensor) -> Tensor:
        """Returns refined cameras [N, 25] of frames."""
        return turn(self.labels[rows], self.offsets[rows] * self.free)

    def forward(self, rows: Tensor, cameras: Tensor | None = None) -> Rendering:
        """Renders frames, before other cameras [N, 25] if given."""
        planes = self.G.moved_scene(self.ws, self.motion(rows))
        ws = self.ws.expand(len(rows), -1, -1)
        return self.G.render(planes, ws, self.cameras(rows) if cameras is None else cameras)

    def set_trainable(self, stage: Stage) -> None:
        """Lets gradients through to what a stage changes."""
        self.G.requires_grad_(bool(stage.network))
        rates = ((self.w, stage.code), (self.layers, stage.layers), (self.u, stage.motion))
        for tensor, rate in (*rates, (self.offsets, stage.camera)):
            tensor.requires_grad_(bool(rate))


def starts_moving(G: RadianceGenerator) -> bool:
    """Returns whether motion codes change a frame at t = 0 already, as paths without a beginning do."""
    device = next(G.parameters()).device
    z = torch.ones(1, G.motion_dim, device=device)
    return bool(G.motion_at(Codes(_one_code(G).z_a, z), torch.zeros(1, device=device)).any())


def _one_code(G: RadianceGenerator) -> Codes:
    like = {'device': next(G.parameters()).device}
    return Codes(torch.zeros(1, G.z_dim, **like), torch.zeros(1, G.motion_dim, **like))


class RowAdam(torch.optim.Optimizer):
    """Adam in which a row without a gradient stays where it is and keeps its moments and its count.

    Frames that are not in the batch are not moved by old momentum. If all rows are in it, this is Adam, but
    where a group is `isotropic`: then one size of gradients counts for the whole row, so that its direction
    stays. Motion codes have no axes of their own, and what does not change the images stays 0.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(groups, {'betas': betas, 'eps': 1e-8, 'isotropic': False})

    @torch.no_grad()
    def step(self) -> None:
        """Changes the rows that have a gradient."""
        for group in self.param_groups:
            first, second = group['betas']
            for p in (p for p in group['params'] if p.grad is not None):
                if not self.state[p]:
                    moments = {'mean': torch.zeros_like(p), 'square': torch.zeros_like(p)}
                    self.state[p].update(moments, count=torch.zeros(len(p), device=p.device))
                s, rows = self.state[p], p.grad.flatten(1).any(dim=1).nonzero()[:, 0]
                g, s['count'][rows] = p.grad[rows], s['count'][rows] + 1
                s['mean'][rows] = torch.lerp(s['mean'][rows], g, 1 - first)
                square = g * g
                if group['isotropic']:
                    square = square.mean(dim=1, keepdim=True).expand_as(g)
                s['square'][rows] = torch.lerp(s['square'][rows], square, 1 - second)
                n = s['count'][rows].view(-1, *[1] * (p.ndim - 1))
                root = (s['square'][rows] / (1 - second**n)).sqrt() + group['eps']
                p[rows] -= group['lr'] * s['mean'][rows] / (1 - first**n) / root


class Optimizers:
    """The optimizers of a stage: of what all frames share, and of what belongs to one."""

    def __init__(self, fit: Fit, stage: Stage) -> None:
        shared = [
            {'params': [fit.w], 'rate': stage.code},
            {'params': [fit.layers], 'rate': stage.layers},
            {'params': list(fit.G.parameters()), 'rate': stage.network},
        ]
        single = [
            {'params': [fit.u], 'rate': stage.motion, 'isotropic': True},
            {'params': [fit.offsets], 'rate': stage.camera},
        ]
        shared, single = ([{**g, 'lr': 0.0} for g in groups if g['rate']] for groups in (shared, single))
        kinds = ((torch.optim.Adam, shared), (RowAdam, single))
        self.parts = [kind(groups) for kind, groups in kinds if groups]

    def step(self, loss: Tensor, factor: float) -> None:
        """Changes what is to be changed; `factor` is on all rates."""
        for part in self.parts:
            part.zero_grad()
        loss.backward()
        for part in self.parts:
            for group in part.param_groups:
                group['lr'] = factor * group['rate']
            part.step()

    def state(self) -> list[dict[str, Any]]:
        """Returns the states of all parts."""
        return [part.state_dict() for part in self.parts]

    def load(self, states: list[dict[str, Any]]) -> None:
        """Takes states over."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def rate_factor(step: int, steps: int) -> float:
    """Returns the factor on learning rates: up over the first 5 %, down as a cosine over the last 25 %."""
    done = (step + 0.5) / steps
    falling = min((1 - done) / _FALL, 1)
    return min(done / _RAMP, 1) * (0.5 - 0.5 * math.cos(math.pi * falling))


def choose_rows(stage: Stage, frames: int, step: int, seed: int) -> Tensor:
    """Returns the frames of a step: neighbours, from a place that depends on seed and step alone."""
    count = 1 if stage.first_only else frames
    size = min(stage.batch, count)
    generator = seeded_generator('cpu', seed, _BATCH_KEY, step)
    # windows that reach over the ends are moved inside, so that the ends are seen as often as the middle
    start = int(torch.randint(1 - size, count, (), generator=generator)) if size < count else 0
    return torch.arange(size) + min(max(start, 0), count - size)


def penalties(fit: Fit, rows: Tensor, stage: Stage, distance: Tensor) -> Tensor:
    """Returns what motion and cameras of some frames cost by themselves.

    Cameras cost in proportion to the distance that is left: where the network cannot show the person, its
    errors must not turn the camera, and where it can, a wrong camera must not be held.
    """
    cost = fit.w.new_zeros(())
    if stage.camera:
        cost = cost + _CAMERA_PRIOR * distance.detach() * improbability(fit.offsets[rows])
    if stage.motion:
        u = fit.motion(rows)
        beyond = (u.square().mean(dim=1) - 1).clamp(min=0).mean()
        cost = cost + _PRIOR * u.square().mean() + _NORM * beyond + _GAUGE * u.mean(dim=0).square().mean()
        if len(u) > 1:
            cost = cost + stage.smooth * u.diff(dim=0).square().mean()
    return cost


def side_change(fit: Fit, before: RadianceGenerator, row: Tensor, camera: Tensor) -> Tensor:
    """Returns how far depth and image of a frame [1] have moved at a side [25] since `before`."""
    now = fit(row, camera[None])
    with torch.no_grad():
        old = before.render(before.moved_scene(fit.ws, fit.motion(row)), fit.ws, camera[None])
    depth, image = (now.depth - old.depth).square().mean(), (now.image - old.image).square().mean()
    return _HELD_DEPTH * depth + _HELD_IMAGE * image


def learned(fit: Fit) -> dict[str, Tensor]:
    """Returns copies of what gradients reach, by name."""
    return {name: p.detach().clone() for name, p in fit.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(fit: Fit, values: Mapping[str, Tensor]) -> None:
    """Takes over what `learned` returned."""
    known = dict(fit.named_parameters())
    for name, value in values.items():
        known[name].copy_(value)


class StageRun:
    """One stage: its steps, and the best that was met; `state` is all that it needs to continue."""

    def __init__(
        self,
        fit: Fit,
        stage: Stage,
        objective: Objective,
        targets: Targets,
        before: RadianceGenerator,
        seed: int,
    ) -> None:
        fit.set_trainable(stage)
        self.fit, self.stage, self.objective, self.targets = fit, stage, objective, targets
        self.mirrored = objective.mirrored(targets) if stage.mirror else None
        self.before, self.seed, self.step = before, seed, 0
        self.optimizers = Optimizers(fit, stage)
        self.best, self.best_loss = learned(fit), math.inf
        self.notes: list[tuple[int, float, float]] = []  # step, loss, PSNR in dB

    def advance(self) -> float:
        """Makes a step; returns the PSNR of the frames before it, in dB."""
        fit, stage = self.fit, self.stage
        frames = len(fit.labels)
        rows = choose_rows(stage, frames, self.step, self.seed).to(fit.w.device)
        seen, wanted = fit(rows), self.targets.rows(rows)
        distance = self.objective(seen, wanted)
        loss = distance + penalties(fit, rows, stage, distance)
        generator = seeded_generator('cpu', self.seed, _SIDE_KEY, self.step)
        row = rows[torch.randint(len(rows), (1,), generator=generator)]
        if self.mirrored is not None:
            # the refined camera is mirrored, not the stated one: a face is seen twice, from both sides
            other = self.objective(fit(row, mirror_label(fit.cameras(row))), self.mirrored.rows(row))
            met = (distance / (other + 1e-8)).detach().clamp(max=1)  # a person who is met need not be even
            loss = loss + stage.mirror * met * other
        if stage.hold:
            side = view(SIDE_YAWS_DEG[self.step % len(SIDE_YAWS_DEG)], fit.G.config.focal)
            loss = loss + stage.hold * side_change(fit, self.before, row, side.to(fit.w.device))
        value, quality = loss.item(), psnr(seen.image.detach(), wanted.image).mean().item()
        # losses of different frames cannot be compared: then the last counts as the best
        if value < self.best_loss or len(rows) < (1 if stage.first_only else frames):
            self.best, self.best_loss = learned(fit), value
        if self.step % _NOTE_EVERY == 0 or self.step == stage.steps - 1:
            self.notes.append((self.step, value, quality))
        self.optimizers.step(loss, rate_factor(self.step, stage.steps))
        self.step += 1
        return quality

    def finish(self) -> None:
        """Returns to the best that was met."""
        restore(self.fit, self.best)

    def state(self) -> dict[str, Any]:
        """Returns what `load` needs to continue exactly."""
        names = ('step', 'best', 'best_loss', 'notes')
        facts = {name: getattr(self, name) for name in names}
        return {**facts, 'learned': learned(self.fit), 'optimizers': self.optimizers.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken."""
        restore(self.fit, state['learned'])
        self.optimizers.load(state['optimizers'])
        self.step, self.best, self.best_loss = state['step'], state['best'], state['best_loss']
        self.notes = [tuple(note) for note in state['notes']]
