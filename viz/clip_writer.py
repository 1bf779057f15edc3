"""Files of one generated clip: videos, folders of frames or an image, a contact sheet, meshes."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib import video
from dnnlib.background import in_background
from dnnlib.util import Skip
from viz import images, rollout, shapes, sheets, trajectories
from viz.look import Look, map_look

SHEET_COLUMNS = 8  # moments on a contact sheet
_AHEAD = 2  # batches that are fetched and encoded while the next one is rendered
SHEET_TILE = 128  # smaller images are enlarged to this on contact sheets, so that labels fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """What a video shows: who, from where, when."""

    name: str  # stem of its files
    codes: rollout.Codes
    cameras: Tensor  # of the frames [T, 25]
    map_cameras: Tensor  # of the mapping network [1 or T, 25]
    times: Tensor  # [T]
    look: Look = Look()  # truncation and the like


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipWriter:
    """Renders clips and writes them into a folder."""

    G: nn.Module
    outdir: Path
    report: Callable[[str], None]  # gets a line for each file
    # gets the number of frames after each batch, and 1 after each mesh
    count: Callable[[int], object] = lambda frames: None
    render: rollout.RenderOptions = rollout.DEFAULT_OPTIONS
    # of videos: .mp4, .gif, none for a folder of numbered PNG files, .png for a single image
    suffix: str = '.mp4'
    fps: float = 25.0
    crf: int = 15  # quality of mp4, see video.open_video
    upscale: int = 1  # enlarges the frames of videos
    note: str = ''  # comment in the metadata of all files

    def videos(
        self,
        clip: Clip,
        beside: Sequence[str] = (),
        tile: int | None = None,
        near_far: tuple[float, float] | None = None,
    ) -> list[np.ndarray]:
        """Writes NAME.mp4 and the likes of NAME-depth.mp4, all while they are rendered.

        Frames become uint8 where they are rendered; a thread fetches and encodes them beside the next ones.

        Args:
            clip: see Clip.
            beside: what else is written, of images.KINDS; depth in the same colours for the whole clip.
            tile: side of the frames returned; by default none are, and memory does not grow with the clip.
            near_far: depths of the first and last colour; by default the first frames choose them.

        Returns:
            the frames, uint8 [tile, tile, 3] each.
        """
        ws = map_look(self.G, clip.codes, clip.look, clip.map_cameras, clip.times)
        size = self.G.config.resolution * self.upscale
        names = {'image': clip.name, **{kind: f'{clip.name}-{kind}' for kind in beside}}
        paths = {kind: self.outdir / f'{name}{self.suffix}' for kind, name in names.items()}
        tiles = []
        with contextlib.ExitStack() as stack:
            videos = {kind: self.open(path) for kind, path in paths.items()}
            append = {kind: stack.enter_context(writer) for kind, writer in videos.items()}

            def write(fetched: Callable[[], dict[str, np.ndarray]]) -> None:
                shown = fetched()
                for kind, frames in shown.items():
                    for frame in images.resize(frames, size):
                        append[kind](frame)
                tiles.extend(images.resize(shown['image'], tile) if tile else ())
                self.count(len(shown['image']))

            later = stack.enter_context(in_background(write, _AHEAD))
            inputs = clip.codes, ws, clip.cameras, clip.times, self.render
            for batch in rollout.render_batches(self.G, *inputs):
                if 'depth' in beside and near_far is None:
                    near_far = images.depth_range(batch.depth, batch.opacity)
                shown = {kind: images.pixels(images.shown(batch, kind, near_far)) for kind in append}
                later(rollout.fetch(shown))
        for path in paths.values():
            self.report(str(path))
        return tiles

    def open(self, path: Path) -> contextlib.AbstractContextManager[Callable[[np.ndarray], None]]:
        """Opens a file or folder of videos; the context gives a function that appends a frame."""
        if self.suffix in ('', '.png'):
            return images.open_frames(path, self.note)
        return video.open_video(path, self.fps, self.crf, self.note)

    def sheet(self, clip: Clip) -> None:
        """Writes NAME-sheet.png: columns are moments of the training span, rows three views of the head."""
        moments = torch.linspace(0, 1, min(SHEET_COLUMNS, self.G.config.span))
        views = trajectories.view_labels(self.G.config.focal)
        times = moments.repeat_interleave(len(views))  # views of a moment are neighbours: they share planes
        cameras = views.repeat(len(moments), 1)
        ws = map_look(self.G, clip.codes, clip.look, clip.map_cameras[:1], times)
        tiles = []
        for batch in rollout.render_batches(self.G, clip.codes, ws, cameras, times, self.render):
            tiles.append(images.to_uint8(batch.image))
            self.count(len(batch.image))
        side = max(self.G.config.resolution, SHEET_TILE)
        rows = images.resize(np.concatenate(tiles), side)
        rows = rows.reshape(len(moments), len(views), *rows.shape[1:]).swapaxes(0, 1)
        path = self.outdir / f'{clip.name}-sheet.png'
        labels = [f't {t:.2f}' for t in moments.tolist()]
        images.save_png(path, sheets.contact_sheet(list(rows), trajectories.VIEW_NAMES, labels), self.note)
        self.report(str(path))

    def meshes(
        self,
        clip: Clip,
        kind: str,
        frames: Sequence[int],
        resolution: int = 128,
        level: float | None = None,
        parts: str = 'head',
    ) -> int:
        """Writes NAME-FRAME.KIND for each of `frames`; one without a surface is explained and skipped.

        Args:
            clip: see Clip.
            kind: one of shapes.FORMATS.
            frames: indices of frames of the clip.
            resolution, level, parts: see shapes.head_mesh.

        Returns:
            the number of meshes.
        """
        ws = map_look(self.G, clip.codes, clip.look, clip.map_cameras, clip.times)
        made = 0
        for i in frames:
            w = ws[min(i, len(ws) - 1)][None]
            planes = rollout.scene_at(self.G, clip.codes, w, clip.times[i : i + 1], self.render.strength)
            try:
                mesh, chosen = shapes.head_mesh(self.G, planes, w, resolution, level, parts)
            except Skip as reason:
                self.report(f'{clip.name}: no mesh of frame {i}, {reason}')
                continue
            finally:
                self.count(1)
            path = self.outdir / f'{clip.name}-{i:04d}.{kind}'
            shapes.save_mesh(path, mesh, self.note)
            self.report(f'{path}  ({len(mesh.faces)} triangles; surface at {chosen.reason})')
            made += 1
        return made
