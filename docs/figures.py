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
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageFilter
from scipy.spatial.transform import Rotation
from torch import Tensor

from dnnlib import scene
from heads.identity import sample_identity
from heads.model import HeadModel
from heads.motion import Motion
from interop.convert import open_snapshot
from metrics.plotting import draw_panels
from metrics.sources.controls import plane_view
from preprocessing.faces import canonical
from preprocessing.faces.mesh import FaceMesh
from preprocessing.from_videos import align, cameras
from preprocessing.from_videos.report_images import annotate
from preprocessing.one_face import faces
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
    save_gif(dest, frames, 80)


def save_gif(dest: Path, frames: list[Image.Image], milliseconds: int) -> None:
    """Writes an endless GIF whose frames are shown so long."""
    frames[0].save(dest, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


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
@click.argument('folders', type=Path, nargs=-1, required=True)
@click.argument('dest', type=Path)
def long(folders: tuple[Path, ...], dest: Path) -> None:
    """Puts the videos of each folder into a row of the GIF DEST, every fourth frame of them.

    \b
    python gen_videos.py --network NETWORK --seeds 0,3,8,9 --outdir FOLDER --trajectory front --frames 128
        --time extend --video-format png --upscale 2
    """
    clips = [[sorted(clip.glob('*.png'))[::4] for clip in sorted(f.glob('seed????'))] for f in folders]
    count = min(len(paths) for row in clips for paths in row)
    frames = []
    for i in range(count):
        rows = [np.concatenate([read(paths[i]) for paths in row], axis=1) for row in clips]
        image = Image.fromarray(np.concatenate(rows))
        frames.append(image.quantize(128, dither=Image.Dither.NONE))  # half the size of a dithered one
    save_gif(dest, frames, 160)


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


@main.command()
@click.argument('dest', type=Path)
def crop(dest: Path) -> None:
    """Draws what `from-videos` keeps of a frame, here of a procedural head, and what its camera sees."""
    head, size = HeadModel(sample_identity(3)), 512
    label = camera.orbit_label(np.deg2rad(-20), 0.1, focal=2.4)
    pose, intrinsics = camera.unpack_label(label)
    roll = Rotation.from_euler('z', 16, degrees=True).as_matrix()
    pose[:3, :3] = pose[:3, :3] @ torch.from_numpy(roll).float()
    intrinsics[:2, 2] = torch.tensor([0.4, 0.56])  # the head is not in the middle
    frame = head.render(Motion(jaw=0.2), camera.pack_label(pose, intrinsics).numpy(), size).image
    (points,) = faces(frame, FaceMesh())
    ffhq = align.ffhq_quad(points[list(canonical.SIXTY_EIGHT), :2])
    transform = align.crop_transforms(points[None], size)
    kept = align.transform_points(transform, points[None])
    estimated = cameras.estimate_cameras(kept, size).labels[0]
    figure = Figure(figsize=(11.5, 3.4), dpi=110)
    shown = figure.subplots(1, 3, width_ratios=(1, 1, 1.75))
    titles = (
        'frame: landmarks, crop of FFHQ, crop',
        'crop: landmarks, axes of the camera',
        'the camera, from the side',
    )
    for axes, title in zip(shown, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.axis('off')
    shown[0].imshow(frame)
    shown[0].plot(*points[:, :2].T, 'w.', markersize=1)
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    for similarity, side, line in ((ffhq, 1, 'y--'), (transform[0], size, 'c-')):
        corners = np.linalg.solve(similarity[:, :2], (side * unit - similarity[:, 2]).T)
        shown[0].plot(*corners, line, linewidth=1.5)
    shown[1].imshow(annotate(align.warp_frame(frame, transform[0], size), kept[0], estimated, size))
    side_view(shown[2], head.pose(Motion())[0])
    figure.tight_layout()
    figure.savefig(dest, pil_kwargs={'quality': 90})


def side_view(axes: Axes, vertices: np.ndarray) -> None:
    """Draws the standard camera, its field of view, and a head [3, V] before it; z runs to the left."""
    radius, (_, _, pivot), half = scene.RADIUS, scene.PIVOT, 0.5 / scene.FOCAL
    axes.scatter(-vertices[2], vertices[1], s=0.05, color='0.7')
    face = cameras.SCALE * canonical.points() + cameras.OFFSET
    axes.scatter(-face[:, 2], face[:, 1], s=0.5, color='tab:blue')
    axes.add_patch(Rectangle((-0.5, -0.5), 1, 1, fill=False, linestyle=':', color='0.4'))
    for sign in (-1, 1):
        axes.plot([-radius, 0.6], [0, sign * half * (radius + 0.6)], 'c-', linewidth=1)
    for depth in (2.25, 3.3):  # where rays are sampled
        axes.plot([depth - radius] * 2, [-half * depth, half * depth], color='tab:orange', linewidth=1)
    axes.plot([-radius, -pivot], [0, 0], 'k:', linewidth=1)
    axes.plot([-radius, -pivot, 0], [0, 0, 0], 'k.')
    texts = (  # what, where it stands, and what it means
        ('camera', (-2.4, 0.3), (-radius, 0.02)),
        (
            f'focal length {scene.FOCAL} image widths:\n{scene.fov_degrees(scene.FOCAL):.1f} degrees',
            (-1.5, 0.42),
            (-1.4, 0.16),
        ),
        (f'it looks at {scene.PIVOT}', (-1.15, -0.5), (-pivot - 0.01, -0.02)),
        (f'{scene.RADIUS} from the origin', (-2, -0.3), (-1.8, -0.02)),
        ('box of the planes', (0.1, 0.6), (0.1, 0.51)),
        ('rays are sampled from 2.25 to 3.3', (-0.1, -0.68), (2.25 - radius, -0.27)),
    )
    for text, place, tip in texts:
        arrow = {'arrowstyle': '-', 'color': '0.5', 'linewidth': 0.7}
        axes.annotate(text, tip, place, fontsize=8, ha='center', arrowprops=arrow)
    axes.set(xlim=(-2.8, 0.75), ylim=(-0.75, 0.8), aspect='equal')


if __name__ == '__main__':
    main()
