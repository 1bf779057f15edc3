"""How well people and motion are found again, where the truth is known: the figures of docs/editing.md.

`python -m benchmarks.editing --network FILE --json REPORT`. The truth is an image or a clip of the network
itself, and a procedural head that it has never seen. Views are compared at cameras that the search did not
see. Seconds are those of the processor. `--head` takes another procedural head.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from dnnlib.util import file_sha256
from editing.cameras import view
from editing.codes import Portrait, PortraitGenerator
from editing.fit import Fit
from editing.inputs import Source
from editing.motion import sampled, transferred
from editing.objective import psnr
from editing.recipes import PRESETS, Recipe, find_person
from editing.render import Take, render_take
from editing.scores import depth_error
from editing.search import Session
from heads.dataset import FPS, clip_seed, sample_camera_path
from heads.identity import sample_identity
from heads.model import Frame, HeadModel
from heads.motion import sample_motion_path
from interop.convert import open_snapshot
from training.networks.contract import RadianceGenerator, Rendering
from training.networks.registry import load_generator
from viz.images import to_uint8
from viz.rollout import draw_codes
from viz.trajectories import orbit

SEED = 5  # of the network's own person
PEOPLE = 6  # of the network, seeds 0 to 5, where more than one is looked for
YAW_DEG = 12.0
CAMERA_ERROR_DEG = (5.0, 3.0)  # yaw, pitch
STRANGER = 777  # seed of the procedural head where none is given
VIDEO_FRAMES = 6
SIDES = (15.0, 30.0)  # degrees to both sides
_OPAQUE = 0.9  # opacity of the head in a network's own image; the background has less
_CODE_ONLY = dataclasses.replace(PRESETS['standard'], layer_steps=0, tune_steps=0, mirror=0.0)
_GIVEN_CAMERA = dataclasses.replace(_CODE_ONLY, refine_camera=False)
_SHORT = dataclasses.replace(_GIVEN_CAMERA, steps=PRESETS['fast'].steps)

Row = dict[str, float]


class Bench:
    """A network, its own person, and the seed of a head that it has never seen."""

    def __init__(self, G: RadianceGenerator, head: int = STRANGER, person: int = SEED) -> None:
        self.G, self.focal, self.head = G, G.config.focal, head
        self.codes = draw_codes(G, person)

    @torch.no_grad()
    def truth(self, cameras: Tensor, times: Tensor) -> Rendering:
        """Renders the person before cameras [N, 25] at times [N]."""
        ws = self.G.condition(self.codes, view(0, self.focal)[None], times)
        planes = self.G.scene(self.codes, ws, times)
        return self.G.render(planes, ws.expand(len(times), -1, -1), cameras)

    def source(self, cameras: Tensor, times: Tensor) -> Source:
        """Returns frames of the person."""
        images = torch.from_numpy(to_uint8(self.truth(cameras, times).image)).permute(0, 3, 1, 2)
        return Source('own', images.contiguous(), cameras, FPS, {})

    def own(self, recipe: Recipe, error_deg: tuple[float, float] = (0.0, 0.0)) -> Row:
        """Finds the person in one image whose camera is stated wrongly by an angle."""
        camera = view(YAW_DEG, self.focal)[None]
        source = self.source(camera, torch.zeros(1))
        stated = view(YAW_DEG + error_deg[0], self.focal, error_deg[1])[None]
        fit, row = timed(self.G, source._replace(cameras=stated), recipe)
        first, still = torch.tensor([0]), torch.zeros(1)
        sides = [view(sign * SIDES[1], self.focal)[None] for sign in (-1, 1)]
        with torch.no_grad():
            seen, true = fit(first), self.truth(camera, still)
            views = [decibels(fit(first, side).image, self.truth(side, still).image) for side in sides]
        row |= {'input': decibels(seen.image, true.image), '30 deg': float(np.mean(views))}
        left, head = torch.tensor(error_deg) + fit.offsets[0, :2].rad2deg(), true.opacity > _OPAQUE
        return row | {
            'depth': depth_error(seen.depth, true.depth, head),
            'yaw left': left[0],
            'pitch left': left[1],
        }

    def people(self, recipe: Recipe) -> Row:
        """Finds several people of the network, each in one image: means, and the worst of them."""
        rows = [Bench(self.G, person=seed).own(recipe) for seed in range(PEOPLE)]
        found = {name: [row[name] for row in rows] for name in ('input', '30 deg')}
        means = {name: float(np.mean(values)) for name, values in found.items()}
        return means | {f'least {name}': min(values) for name, values in found.items()}

    def clip(self, recipe: Recipe) -> Row:
        """Finds the motion of a clip of the person before a moving camera."""
        yaws = torch.linspace(-10, 10, VIDEO_FRAMES).tolist()
        cameras = torch.stack([view(yaw, self.focal, 3.0) for yaw in yaws])
        times = torch.linspace(0, 1, VIDEO_FRAMES)
        source = self.source(cameras, times)
        fit, row = timed(self.G, source, dataclasses.replace(recipe, steps=120))
        every = torch.arange(VIDEO_FRAMES)
        true = source.images / 127.5 - 1
        with torch.no_grad():
            seen = fit(every).image
            sides = [view(sign * SIDES[1], self.focal).expand(VIDEO_FRAMES, -1) for sign in (-1, 1)]
            views = [decibels(fit(every, side).image, self.truth(side, times).image) for side in sides]
        temporal = (seen.clamp(-1, 1).diff(dim=0) - true.diff(dim=0)).abs().mean() * 127.5
        return row | {'input': decibels(seen, true), '30 deg': float(np.mean(views)), 'temporal': temporal}

    def again(self, recipe: Recipe) -> Row:
        """Finds the motion of a clip, gives it to another person, and finds it again there.

        u is known only as far as it moves the image: most of its directions hardly do, and count in a
        correlation of u as much as the others. So the correlation of the motion is that of the changes which
        both u make to images of that person before a fixed camera. That of u itself, and of the motion of
        another code, stand beside it.
        """
        every, cameras = torch.arange(VIDEO_FRAMES), orbit(VIDEO_FRAMES, focal=self.focal)
        recipe = dataclasses.replace(recipe, steps=120)
        first, row = timed(self.G, self.source(cameras, torch.linspace(0, 1, VIDEO_FRAMES)), recipe)
        u = first.motion(every).detach()
        other = draw_codes(self.G, SEED + 1)
        with torch.no_grad():
            ws = self.G.condition(other, view(0, self.focal)[None], torch.zeros(1))
        images = filmed(self.G, Take(ws, u, cameras))
        pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).contiguous()
        second, _ = timed(self.G, Source('other', pixels, cameras, FPS, {}), recipe)
        again, front = second.motion(every).detach(), view(0, self.focal).expand(VIDEO_FRAMES, -1)
        fresh = sampled(self.G, draw_codes(self.G, 0, SEED + 1), torch.linspace(0, 1, VIDEO_FRAMES))
        shown = [filmed(self.G, Take(ws, x, front)) for x in (u, again, u[:1] + fresh)]
        row |= {'correlation of motion': correlation(*shown[:2]), 'of u itself': correlation(u, again)}
        return row | {"of another code's motion": correlation(*shown[::2])}

    @torch.no_grad()
    def animated(self) -> Row:
        """Moves the person by fresh codes: mean absolute change from t = 0 to t = 1, grey levels."""
        cameras, ends = view(0, self.focal).expand(2, -1), torch.tensor([0.0, 1.0])
        ws = self.G.condition(self.codes, cameras[:1], torch.zeros(1))
        start = self.G.motion_at(self.codes, torch.zeros(1))
        change = []
        for seed in range(VIDEO_FRAMES):
            u = start + sampled(self.G, draw_codes(self.G, 0, seed), ends)
            start_image, end_image = filmed(self.G, Take(ws, u, cameras))
            change.append(float((end_image - start_image).abs().mean()) * 127.5)
        return {'least': min(change), 'mean': np.mean(change)}

    @torch.no_grad()
    def exact(self) -> Row:
        """Returns what must be 0: largest differences of images in grey levels, as commands make them."""
        times, cameras = torch.linspace(0, 1, VIDEO_FRAMES), orbit(VIDEO_FRAMES, focal=self.focal)
        ws = self.G.condition(self.codes, cameras[:1], torch.zeros(1))
        u, fresh = self.G.motion_at(self.codes, times), draw_codes(self.G, 0, 1)
        source, fixed = self.source(cameras, times), cameras[:1].expand(VIDEO_FRAMES, -1)
        portrait = Portrait(
            network='',
            ws=ws,
            u=u,
            cameras=cameras,
            images=source.images,
            fps=FPS,
            neutral_frame=0,
            tuned={},
            provenance={},
            scores={},
        )
        moved, still = (PortraitGenerator(self.G, portrait, x).motion_at(fresh, times) for x in (1.0, 0.0))

        def film(u: Tensor, cameras: Tensor) -> Tensor:
            return filmed(self.G, Take(ws, u, cameras))

        found, first, calm = film(u, cameras), film(moved, fixed)[:1], film(still, fixed)
        oneself = film(transferred(u, u[:1], u[:1]), cameras)
        other = film(transferred(still, still[:1], u[1:2]), fixed)
        pairs = {'animate at t = 0': (first, found[:1]), 'animate by strength 0': (calm, calm[:1])}
        pairs |= {'transfer to oneself': (oneself, found), 'transfer of a still': (other, other[:1])}
        return {name: float((a - b).abs().max()) * 127.5 for name, (a, b) in pairs.items()}

    def stranger(self, recipe: Recipe) -> Row:
        """Finds a head that the network has never seen."""
        person = clip_seed(self.head, 0, 0)
        model, motion = HeadModel(sample_identity(person)), sample_motion_path(person, 1, FPS)[0]
        label = torch.from_numpy(sample_camera_path(person, 2, self.focal)[:1]).float()

        def truth(camera: Tensor) -> Frame:
            return model.render(motion, camera.numpy(), self.G.config.resolution)

        images = torch.from_numpy(truth(label[0]).image).permute(2, 0, 1)[None].contiguous()
        source = Source('stranger', images, label, FPS, {})
        fit, row = timed(self.G, source, recipe)
        first = torch.tensor([0])

        def masked(camera: Tensor) -> float:
            true, seen = truth(camera), fit(first, camera[None]).image
            wanted = torch.from_numpy(true.image).permute(2, 0, 1)[None] / 127.5 - 1
            return decibels(seen, wanted, torch.from_numpy(true.mask)[None, None].float())

        with torch.no_grad():
            seen = fit(first)
            row |= {'input': decibels(seen.image, images / 127.5 - 1), 'masked': masked(label[0])}
            for yaw in SIDES:
                row[f'{yaw:.0f} deg'] = np.mean([masked(view(s * yaw, self.focal)) for s in (-1, 1)])
            true, size = truth(label[0]), seen.depth.shape[-1]
            place = ((torch.arange(size) + 0.5) * (len(true.depth) / size)).long()  # nearest pixels
            depth, mask = (torch.from_numpy(x)[place][:, place][None, None] for x in true[1:4:2])
            row['depth'] = depth_error(seen.depth, depth, mask)
            fit.G, tuned = self.G, fit.G  # the pivot: the same code in the network as it was
            row['depth of the pivot'] = depth_error(fit(first).depth, depth, mask)
            fit.G = tuned
            row['opacity'] = seen.opacity[mask].mean()
        return row


def timed(G: RadianceGenerator, source: Source, recipe: Recipe) -> tuple[Fit, Row]:
    """Finds a person; returns also the seconds of the processor, in all and per step of each stage."""
    marks = [time.process_time()]

    def report(line: object) -> None:
        click.echo(line)
        marks.append(time.process_time())

    fit, found = find_person(G, source, recipe, 0, Session(report=report))
    row = {'seconds': marks[-1] - marks[0]}
    for (name, notes), seconds in zip(found.notes.items(), np.diff(marks), strict=True):
        row[f'seconds a step, {name}'] = seconds / (notes[-1][0] + 1)
    return fit, row


def filmed(G: RadianceGenerator, take: Take) -> Tensor:
    """Returns the images [T, 3, R, R] of a take."""
    return torch.cat([frames.image for frames in render_take(G, take)])


def correlation(a: Tensor, b: Tensor) -> float:
    """Returns the correlation of changes over time [T, ...]: means over time are removed."""
    a, b = (x - x.mean(dim=0) for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def decibels(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Returns the mean PSNR of images."""
    return float(psnr(a, b, mask).mean())


CASES: dict[str, Callable[[Bench], Row]] = {
    'own image, W': lambda bench: bench.own(_GIVEN_CAMERA),
    'own image, W, camera refined': lambda bench: bench.own(_CODE_ONLY),
    'camera off by 5 and 3 degrees': lambda bench: bench.own(_CODE_ONLY, CAMERA_ERROR_DEG),
    'the same, camera fixed': lambda bench: bench.own(_GIVEN_CAMERA, CAMERA_ERROR_DEG),
    'six own images, W, 100 steps': lambda bench: bench.people(_SHORT),
    'the same, from the mean code': lambda bench: bench.people(dataclasses.replace(_SHORT, tries=0)),
    'new head, standard': lambda bench: bench.stranger(PRESETS['standard']),
    'new head, fast': lambda bench: bench.stranger(PRESETS['fast']),
    'new head, best': lambda bench: bench.stranger(PRESETS['best']),
    'new head, paper': lambda bench: bench.stranger(PRESETS['paper']),
    'own clip, z_m+': lambda bench: bench.clip(_GIVEN_CAMERA),
    'own clip, no motion': lambda bench: bench.clip(dataclasses.replace(_GIVEN_CAMERA, motion='none')),
    'fresh motion codes': Bench.animated,
    'exact': Bench.exact,
    'motion found again on another person': lambda bench: bench.again(_CODE_ONLY),
}


@click.command()
@click.option('--network', required=True, help='Snapshot to measure.')
@click.option('--case', 'cases', multiple=True, type=click.Choice(list(CASES)), help='Only these.')
@click.option('--head', default=STRANGER, help='Seed of the procedural head.')
@click.option('--json', 'json_file', default=None, help='Report to write.')
def main(network: str, cases: tuple[str, ...], head: int, json_file: str | None) -> None:
    """Measures how well people and motion are found again."""
    torch.set_num_threads(1)
    snapshot = open_snapshot(network)
    bench = Bench(load_generator(snapshot), head)
    rows: dict[str, Any] = {}
    for name in cases or CASES:
        rows[name] = {key: round(float(value), 4) for key, value in CASES[name](bench).items()}
        click.echo(f'{name}: ' + ', '.join(f'{key} {value:.4g}' for key, value in rows[name].items()))
    report = {'sha256': file_sha256(network), 'head': head, **common.machine('cpu'), 'cases': rows}
    common.write_report(json_file, report)


if __name__ == '__main__':
    main()
