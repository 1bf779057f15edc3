"""Frames and files of a person that moves: videos, meshes, comparisons with a source."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import Skip, UserError
from dnnlib.video import open_video
from editing.cameras import SIDE_YAWS_DEG, view
from editing.codes import Portrait
from training.networks.contract import RadianceGenerator
from viz import images, shapes
from viz.clip_writer import SHEET_TILE
from viz.rollout import DEFAULT_OPTIONS, Frames, RenderOptions, device_of
from viz.sheets import contact_sheet

PANELS = ('source', 'found', *(f'yaw {yaw:.0f}' for yaw in SIDE_YAWS_DEG), 'depth')
_SHEET_FRAMES = 8  # at most so many columns
_CRF = 15  # quality of videos


class Take(NamedTuple):
    """What is filmed: who, who moves how, from where."""

    ws: Tensor  # [1, num_ws, w_dim]
    u: Tensor  # motion [T, motion_dim]
    cameras: Tensor  # [T, 25]


@torch.no_grad()
def render_take(
    G: RadianceGenerator, take: Take, options: RenderOptions = DEFAULT_OPTIONS
) -> Iterator[Frames]:
    """Renders a take in batches of frames; frames of a batch with equal motion share their scene."""
    ws, u, cameras = (x.to(device_of(G)) for x in take)
    for places, labels in zip(u.split(options.frame_batch), cameras.split(options.frame_batch), strict=True):
        different, which = places.unique(dim=0, return_inverse=True)
        w = ws.expand(len(places), -1, -1)
        scene = G.moved_scene(ws, different)[which]
        out = G.render(scene, w, labels, renderer=options.renderer, ray_chunk=options.ray_chunk)
        yield Frames(out.image.float().cpu(), *(x.cpu() for x in (out.depth, out.opacity, out.xyz)))


def write_take(
    path: Path, G: RadianceGenerator, take: Take, fps: float, note: str, depth: bool = False
) -> list[Path]:
    """Writes an mp4 of a take, and NAME-depth.mp4 if asked for; returns their paths."""
    paths = [path, path.with_name(f'{path.stem}-depth{path.suffix}')][: 1 + depth]
    near_far = None
    with contextlib.ExitStack() as stack:
        append, *others = [stack.enter_context(open_video(p, fps, _CRF, note)) for p in paths]
        for batch in render_take(G, take):
            for frame in images.to_uint8(batch.image):
                append(frame)
            for write in others:
                near_far = near_far or images.depth_range(batch.depth, batch.opacity)
                shown = images.to_uint8(images.colorize_depth(batch.depth, batch.opacity, *near_far))
                for frame in images.resize(shown, G.config.resolution):
                    write(frame)
    return paths


def write_mesh(path: Path, G: RadianceGenerator, portrait: Portrait, resolution: int, note: str) -> None:
    """Writes a coloured mesh of the first frame of a portrait, in the format of the suffix.

    Raises:
        UserError: if the scene has no surface.
    """
    ws, u = (x.to(device_of(G)) for x in (portrait.ws, portrait.u[:1]))
    with torch.no_grad():
        planes = G.moved_scene(ws, u)
    try:
        mesh, _ = shapes.head_mesh(G, planes, ws, resolution)
    except Skip as reason:
        raise UserError(f'no mesh of {path.stem} can be made, {reason}') from reason
    shapes.save_mesh(path, mesh, note)


def panels(G: RadianceGenerator, portrait: Portrait, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields, frame by frame, what is to be compared, uint8 [len(PANELS), S, S, 3].

    That is the source, what was found for it, the same from both sides, and its depth; sides of tiles are at
    least SHEET_TILE.
    """
    sides = torch.stack([view(yaw, G.config.focal) for yaw in SIDE_YAWS_DEG])
    size, near_far = max(G.config.resolution, SHEET_TILE), None
    for i in frames:
        cameras = torch.cat([portrait.cameras[i : i + 1], sides])
        u = portrait.u[i : i + 1].expand(len(cameras), -1)
        (seen,) = render_take(G, Take(portrait.ws, u, cameras))
        near_far = near_far or images.depth_range(seen.depth[:1], seen.opacity[:1])
        depth = images.to_uint8(images.colorize_depth(seen.depth[:1], seen.opacity[:1], *near_far))
        source = portrait.images[i : i + 1].permute(0, 2, 3, 1).numpy()
        tiles = (source, images.to_uint8(seen.image), depth)
        yield np.concatenate([images.resize(tile, size) for tile in tiles])


def comparison(G: RadianceGenerator, portrait: Portrait) -> np.ndarray:
    """Returns the sheet of a portrait: what is compared, of an image in a row, of a video in columns."""
    count = min(len(portrait.u), _SHEET_FRAMES)
    frames = np.linspace(0, len(portrait.u) - 1, count).round().astype(int).tolist()
    tiles = list(panels(G, portrait, frames))
    if count == 1:
        return contact_sheet(tiles, col_labels=PANELS)
    return contact_sheet(list(np.stack(tiles, axis=1)), PANELS, [f'frame {i}' for i in frames])


def write_comparison(path: Path, G: RadianceGenerator, portrait: Portrait, note: str) -> None:
    """Writes an mp4 of all frames of a portrait, what is compared side by side."""
    with open_video(path, portrait.fps, _CRF, note) as append:
        for tiles in panels(G, portrait, range(len(portrait.u))):
            append(images.strip(tiles))
