"""All figures of one network: renders what they need and puts them into rows."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from interop.convert import open_snapshot
from metrics.measures.coverage import nearest
from studies import broken, figures, samples
from studies.figures import Figure
from studies.truth import FRONT, TIMES, Truth, grid_cameras, load_truth
from torch_utils.checkpoint import Snapshot, build_network
from training.camera import front_label, project
from training.data.dataset import VideoDataset
from training.networks.contract import VideoGenerator
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.registry import NETWORKS, load_generator

# corners (x, y) of what moves, scene units on the plane of the face
_MOUTH = (-0.09, -0.19), (0.09, -0.05)
_EYES = (-0.105, 0.0), (0.105, 0.08)
_LIPS = (-0.075, -0.15), (0.075, -0.07)
_FACE_Z = 0.16
_WORST = 32  # heads that are shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many codes are looked at."""

    codes: int = 16  # appearances of the grid
    motions: int = 8  # of each appearance
    seeds: int = 256  # by nearest person, and of broken heads
    mapped: int = 64  # codes that are seen through several mapping cameras
    mapping_cameras: int = 8
    pairs: int = 128  # most that discriminators see


FULL, QUICK = Sizes(), Sizes(codes=12, motions=4, seeds=128, mapped=24, pairs=64)


class Row(NamedTuple):
    """A line of the table."""

    name: str
    goal: str
    network: Figure
    data: Figure | None  # the same of the data themselves
    sample: str  # what the figure was taken from
    percent: bool = False


class Result(NamedTuple):
    """The figures of a network, and what to look at."""

    rows: list[Row]
    grid: np.ndarray  # [A, M, T, 3, R, R] from the front, [-1, 1]
    real: np.ndarray  # the same of the data [K, M', T, 3, R, R]
    worst: np.ndarray  # heads farthest from the data [N, 3, R, R]


class Known(NamedTuple):
    """What networks are compared with."""

    dataset: VideoDataset
    truth: Truth
    seen: broken.Seen


class Judges(NamedTuple):
    """Discriminators; None = the network was trained without."""

    D_image: nn.Module | None
    D_video: nn.Module | None
    raw_resolution: int  # of the volume-rendered image

    def image(self, frames: Tensor, c: Tensor) -> np.ndarray:
        """Returns D_image's logits of frames [N, 3, R, R] before cameras [N, 25], [N]."""
        size = (self.raw_resolution,) * 2
        raw = nn.functional.interpolate(frames, size=size, mode='bilinear', antialias=True)
        return self.D_image(frames, raw, c)[:, 0].float().cpu().numpy()

    def video(self, frames: Tensor, t: Tensor, c: Tensor) -> np.ndarray:
        """Returns D_video's logits [N] of pairs [N, 2, 3, R, R] at times [N, 2], cameras [N, 2, 25]."""
        return self.D_video(self.D_video.pair_input(frames, t), c)[:, 0].float().cpu().numpy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is measured."""

    sizes: Sizes = FULL
    cache: Path | None = None  # folder of what is known of the data; None = beside them
    workers: int = 1  # processes that render real people
    device: torch.device = torch.device('cpu')
    seed: int = 0  # of codes


def prepare(data: str | Path, generator: Any, settings: Settings) -> Known:
    """Computes what is known of the data for a generator's config, or reads what was computed before."""
    config = VideoDataset.Config(path=str(data), span=generator.span, resolution=generator.resolution)
    dataset = config.build()
    truth = load_truth(dataset, generator.span, settings.cache, settings.workers)
    return Known(dataset, truth, broken.features_of_data(dataset, truth, settings.cache, settings.device))


def measure(network: str | Path, data: str | Path, settings: Settings) -> Result:
    """Measures G_ema and the discriminators of a snapshot against a procedural data set."""
    sizes, device, seed = settings.sizes, settings.device, settings.seed
    snapshot = open_snapshot(str(network))
    G = load_generator(snapshot, device)
    dataset, truth, seen = prepare(data, G.config, settings)
    cameras = torch.from_numpy(grid_cameras(dataset.focal()))
    real = as_floats(truth.grid)
    grid = samples.motion_grid(G, sizes.codes, sizes.motions, TIMES, cameras, seed)
    heads = samples.random_views(G, dataset, sizes.seeds, seed)
    broken_heads, worst = broken_rows(heads, seen, device)
    rows = [
        *motion_rows(real, grid, dataset.focal()),
        *people_rows(G, dataset, truth, cameras[FRONT], sizes, seed),
        *judge_rows(G, judges(snapshot, G, device), truth, sizes.pairs, seed),
        *broken_heads,
    ]
    return Result(rows, grid[:, :, :, FRONT], real[:, :, :, FRONT], worst)


def motion_rows(real: np.ndarray, grid: np.ndarray, focal: float) -> list[Row]:
    """Compares the motion in images [A, M, T, Y, 3, R, R] with that in real ones.

    Half of the real motions are what frame differences are compared with; the other half stands for the data.
    """
    half, (codes, motions) = real.shape[1] // 2, grid.shape[:2]
    front, real_front = grid[:, :, :, FRONT], real[:, :, :, FRONT]
    (distance, outside), (floor, outside_data) = (
        figures.motion_distance(real_front[:, :half], x) for x in (front, real_front[:, half:])
    )
    parts, real_parts = figures.motion_parts(grid), figures.motion_parts(real)
    mouth, eyes, lips = (region(corners, focal, grid.shape[-1]) for corners in (_MOUTH, _EYES, _LIPS))
    sample = f'{codes} codes x {motions} motions'
    pairs = f'{sample} x {len(figures.STEPS)} pairs'

    def both(function: Callable[..., Figure], *args: object) -> tuple[Figure, Figure]:
        return function(front, *args), function(real_front, *args)

    own = figures.relative_deviation(real_parts.specific, real_parts.specific)._replace(value=1.0)
    total = [p.common + p.specific for p in (parts, real_parts)]
    return [
        Row('fmd', '<= .2', distance, floor, pairs),
        Row('motion outside the subspace of the data', '<= 40 %', outside, outside_data, pairs, True),
        Row(
            'motion common to all z_m, chance subtracted',
            '<= 20 %',
            figures.common_share(parts),
            figures.common_share(real_parts),
            sample,
            True,
        ),
        Row(
            'z_m-specific motion, sd over that of the data',
            '.6 to 1.2',
            figures.relative_deviation(parts.specific, real_parts.specific),
            own,
            sample,
        ),
        Row('motion, sd over that of the data', '', figures.relative_deviation(*total), Figure(1.0), sample),
        Row('correlation of motion between seeds', '<= .3', *both(figures.motion_correlation), sample),
        Row('monotone mouth courses', '<= 30 %', *both(figures.monotone_share, lips), sample, True),
        Row('motion in mouth and eyes', '>= 60 %', *both(figures.share_inside, (mouth, eyes)), sample, True),
        Row('motion in eyes', '>= 20 %', *both(figures.share_inside, (eyes,)), sample, True),
    ]


def people_rows(
    G: VideoGenerator, dataset: VideoDataset, truth: Truth, front: Tensor, sizes: Sizes, seed: int
) -> list[Row]:
    """Who appears, and whether the mapping camera changes it."""
    count = len(truth.portraits)
    people = as_floats(truth.portraits).reshape(count, -1)
    codes = samples.draw(G, samples.SEEDS, sizes.seeds, seed)
    images = samples.portraits(G, codes, front[None], front)
    chosen = nearest(images.reshape(len(images), -1), people)
    clips = np.linspace(0, len(dataset) - 1, sizes.mapping_cameras).astype(int)
    cameras = torch.stack([dataset.clip_cameras(int(i))[0] for i in clips])
    mapped = samples.mapped_portraits(G, sizes.mapped, cameras, front, seed)
    named = nearest(mapped.reshape(-1, people.shape[1]), people).reshape(mapped.shape[:2])
    rarest, changed = figures.rarest(chosen, count, 256), figures.changed_share(named)
    seeds, views = f'{sizes.seeds} seeds', f'{sizes.mapped} codes x {sizes.mapping_cameras} cameras'
    return [
        Row('rarest of the people, seeds of 256', '>= 12', rarest, Figure(256 / count), seeds),
        Row('people, exp entropy', '', figures.effective_people(chosen), Figure(count), seeds),
        Row('people that appear', '>= 80 %', figures.coverage(chosen, count), Figure(1.0), seeds, True),
        Row('person changes with the mapping camera', '<= 15 %', changed, Figure(0.0), views, True),
    ]


def judge_rows(G: VideoGenerator, judged: Judges, truth: Truth, pairs: int, seed: int) -> list[Row]:
    """What the discriminators see: memorised cameras, and motion."""
    rows, sample = [], f'{min(pairs, len(truth.own))} pairs'
    device = next(G.parameters()).device
    own, first, second, frozen = (
        torch.from_numpy(as_floats(x[:pairs])).to(device)
        for x in (truth.own, truth.moved[:, 0], truth.moved[:, 1], truth.moved[:, 2])
    )
    own_cameras, cameras, times = (
        torch.from_numpy(x[:pairs]).to(device) for x in (truth.own_cameras, truth.cameras, truth.times)
    )
    moved, still = torch.stack([first, second], dim=1), torch.stack([first, frozen], dim=1)
    if judged.D_image is not None:
        known, new = (
            np.sign(judged.image(x.flatten(0, 1), c.flatten(0, 1))).reshape(len(x), 2)
            for x, c in ((own, own_cameras), (moved, cameras))
        )
        figure = figures.mean_difference(known, new)
        rows.append(Row("D_image's sign, training minus held-out cameras", '<= .2', figure, None, sample))
    if judged.D_video is not None:
        real, motionless = judged.video(moved, times, cameras), judged.video(still, times, cameras)
        fake = judged.video(samples.pairs(G, times.cpu(), cameras.cpu(), seed).to(device), times, cameras)
        above = figures.bootstrap(np.mean, (real > motionless).astype(float))
        rows += [
            Row('real pairs scored above a frozen face', '>= 90 %', above, None, sample, True),
            Row(
                "see_motion: motion in D_video's verdict",
                '',
                figures.gap_share(real, motionless, fake),
                None,
                sample,
                True,
            ),
        ]
        known = judged.video(own, times, own_cameras)
        figure = figures.mean_difference(np.sign(known), np.sign(real))
        rows.append(Row("D_video's sign, training minus held-out cameras", '', figure, None, sample))
    return rows


def broken_rows(heads: np.ndarray, seen: broken.Seen, device: torch.device) -> tuple[list[Row], np.ndarray]:
    """How many heads [N, 3, R, R] are like none of the data, and those that are least like them."""
    distances, sample = (
        figures.nearest_distance(broken.features(heads, device), seen.reference),
        f'{len(heads)} seeds',
    )
    figure = figures.share_above(distances, seen.distances)
    rows = [Row('broken heads', '<= 2 %', figure, Figure(0.01), sample, True)]
    if len(seen.between):
        figure, data = (figures.share_above(x, seen.between) for x in (distances, seen.distances))
        rows.append(
            Row('heads farther from all people than these from each other', '', figure, data, sample, True)
        )
    return rows, heads[np.argsort(distances)[::-1][:_WORST]]


def judges(snapshot: Snapshot, G: VideoGenerator, device: torch.device) -> Judges:
    """Rebuilds the discriminators of a snapshot that judge images, and pairs of them."""
    kinds = {'D_image': ImageDiscriminator, 'D_video': VideoDiscriminator}
    known = {n: build_network(snapshot, n, NETWORKS[n], device) for n in kinds if n in snapshot.networks}
    found = [known[n].eval() if isinstance(known.get(n), kind) else None for n, kind in kinds.items()]
    return Judges(*found, G.renderer.resolution if G.renderer else G.config.resolution)


def region(corners: tuple[tuple[float, float], ...], focal: float, resolution: int) -> np.ndarray:
    """Returns which pixels [R, R] of a frontal image show a part of the face, given by two corners (x, y)."""
    points = torch.tensor([[x, y, _FACE_Z] for x, y in corners])
    (left, bottom), (right, top) = project(points, front_label(focal))[0].tolist()
    centre = (np.arange(resolution) + 0.5) / resolution
    u, v = np.meshgrid(centre, centre)
    return (left <= u) & (u <= right) & (top <= v) & (v <= bottom)


def as_floats(images: np.ndarray) -> np.ndarray:
    """Brings images [..., R, R, 3] of 0..255 to float32 [..., 3, R, R] in [-1, 1]."""
    return np.ascontiguousarray(np.moveaxis(images, -1, -3), dtype=np.float32) / 127.5 - 1
