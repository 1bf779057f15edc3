"""Makes images of the docs from what the programs write: `python docs/figures.py --help`."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
import trimesh
from matplotlib.axes import Axes
from PIL import Image, ImageFilter
from torch import Tensor

from interop.convert import open_snapshot
from metrics.plotting import draw_panels
from metrics.sources.controls import plane_view
from training import camera
from training.networks.registry import load_generator
from viz import images, rollout, trajectories
from viz.sheets import contact_sheet

_CLAY, _PAPER = np.array([205, 196, 186]), 245  # gray levels of a mesh and of what is behind it
_POINTS = 400_000  # on what is seen of a mesh, so that hardly a pixel stays empty
_CURVES = (  # title of a panel, and its statistics in stats.jsonl with their labels
    ('losses of G', {'Loss/G/image': 'G_img', 'Loss/G/video': 'G_vid'}),
    ('signs of real clips', {'Loss/signs/image/real': 'sign_img', 'Loss/signs/video/real': 'sign_vid'}),
    ('gradients of D at reals, squared', {'Loss/r1/image': 'r1/image', 'Loss/r1/video': 'r1/video'}),
    ("motion in D_video's verdict", {'Probe/video/see_motion': 'see_motion'}),
    ("G's motion", {'Probe/motion/common_sd': 'common_sd', 'Probe/motion/specific_sd': 'specific_sd'}),
    (
        'directions of motion codes',
        {f'Probe/layers/synthesis.b{size}/directions': f'{size}x{size}' for size in (4, 8, 16, 32)},
    ),
)


@click.group(context_settings={'help_option_names': ['-h', '--help']})
def main() -> None:
    """Makes images of the docs, each from what the command in its help has written."""


@main.command()
@click.argument('folder', type=Path)
@click.argument('dest', type=Path)
@click.option('--focal', default=7.0, help='of the cameras, in image widths')
def orbit(folder: Path, dest: Path, focal: float) -> None:
    """Puts image, depth, normals and mesh of seed 0 side by side into the GIF DEST.

    \b
    python gen_videos.py --network assets/demo.pkl --seeds 0 --outdir FOLDER --trajectory orbit
        --frames 30 --depth --normals --video-format png --upscale 3 --shapes ply --shape-frames 0-15
        --shape-resolution 96
    """
    frames = []
    cameras = trajectories.orbit(30, focal=focal)
    for i, label in enumerate(cameras):
        parts = [read(folder / f'seed0000{kind}' / f'{i:04d}.png') for kind in ('', '-depth', '-normals')]
        mesh = trimesh.load(folder / f'seed0000-{min(i, 30 - i):04d}.ply')  # time runs forth and back
        parts.append(clay(mesh, label, parts[0].shape[0]))
        frames.append(Image.fromarray(np.concatenate(parts, axis=1)))
    frames[0].save(dest, save_all=True, append_images=frames[1:], duration=80, loop=0)


def read(path: Path) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'))


def clay(mesh: trimesh.Trimesh, label: Tensor, size: int) -> np.ndarray:
    """Draws a mesh in one colour, lit from above the camera [25]: uint8 [size, size, 3]."""
    pose = camera.unpack_label(label)[0].numpy()
    centres = torch.from_numpy(np.array(mesh.triangles_center)).float()
    place = camera.project(centres, label)[0].numpy()
    shown = (mesh.face_normals @ pose[:3, 2] < 0) & (np.abs(place - 0.5) < 0.52).all(axis=1)
    part = trimesh.Trimesh(mesh.vertices, mesh.faces[shown], process=False)
    points, faces, *_ = trimesh.sample.sample_surface(part, _POINTS, seed=0)
    places, depth = camera.project(torch.from_numpy(points).float(), label)
    normals = mesh.vertex_normals[part.faces[faces]].mean(axis=1)
    light = -pose[:3, 2] - 0.7 * pose[:3, 1] + 0.3 * pose[:3, 0]
    shade = 0.25 + 0.75 * np.clip(normals @ (light / np.linalg.norm(light)), 0, 1)
    order = np.argsort(-depth[:, 0].numpy())  # the nearest is drawn last
    column, row = np.floor(places.numpy()[order] * size).astype(int).T
    seen = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    canvas = np.full((size, size, 3), _PAPER, np.uint8)
    canvas[row[seen], column[seen]] = shade[order][seen, None] * _CLAY
    return np.asarray(Image.fromarray(canvas).filter(ImageFilter.MedianFilter(3)))  # closes single pixels


@main.command()
@click.argument('run', type=Path)
@click.argument('dest', type=Path)
def curves(run: Path, dest: Path) -> None:
    """Draws statistics of a folder of `train.py` over the clips seen."""
    lines = [json.loads(line) for line in (run / 'stats.jsonl').read_text().splitlines()]

    def draw(axes: Axes, title: str, named: dict[str, str]) -> None:
        for name, label in named.items():
            points = [(line['Progress/kimg'], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
        axes.set_title(title)
        axes.set_xlabel('thousand clips')
        axes.set_ylim(bottom=min(axes.get_ylim()[0], 0))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)

    panels = [functools.partial(draw, title=title, named=named) for title, named in _CURVES]
    images.save_png(dest, draw_panels(panels))


@main.command()
@click.argument('network', type=Path)
@click.argument('dest', type=Path)
@click.option('--seed', default=0)
@torch.no_grad()
def geometry(network: Path, dest: Path, seed: int) -> None:
    """Draws a head of NETWORK from three sides with its depth, and the same head as a flat image."""
    G = load_generator(open_snapshot(network), 'cpu')
    codes, labels = rollout.draw_codes(G, seed=seed), trajectories.view_labels(G.config.focal)
    times = torch.full((3,), 0.5)
    ws = rollout.map_codes(G, codes, trajectories.front(1, G.config.focal), times)
    frames = list(rollout.render_frames(G, codes, ws, labels, times))
    good = torch.cat([frame.image for frame in frames]), torch.cat([frame.depth for frame in frames])
    opacity = torch.cat([frame.opacity for frame in frames])
    near_far = images.depth_range(good[1], opacity)
    head = good[1][1][opacity[1] > 0.5].double().mean()
    front = images.pixels(good[0])[1].permute(2, 0, 1)
    flat = [plane_view(front, labels[1], label, head, good[1].shape[-1]) for label in labels]
    rows = [row(images.to_uint8(good[0]), good[1], opacity, near_far)]
    stacked = [torch.stack(part) for part in zip(*flat, strict=True)]
    pasted = stacked[0].permute(0, 2, 3, 1).numpy()
    rows.append(row(pasted, stacked[1].float(), stacked[2].float(), near_far))
    names = [*trajectories.VIEW_NAMES, *(f'depth, {name}' for name in trajectories.VIEW_NAMES)]
    images.save_png(dest, contact_sheet(np.stack(rows), ['head', 'flat'], names))


def row(
    shown: np.ndarray, depth: Tensor, opacity: Tensor, near_far: Sequence[float], size: int = 128
) -> np.ndarray:
    """Returns three views [3, H, H, 3] and their depths as six images [6, size, size, 3]."""
    colors = images.to_uint8(images.colorize_depth(depth, opacity, *near_far))
    return np.concatenate([images.enlarge(shown, size), images.enlarge(colors, size)])


if __name__ == '__main__':
    main()
