"""Contact sheets with labels, and what a training run draws of its network at a tick."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor, nn

from dnnlib.util import DataError
from dnnlib.video import write_video
from training.data.dataset import VideoDataset
from viz import rollout, trajectories
from viz.images import colorize_depth, depth_range, enlarge, grid, save_png, strip, to_uint8

_LABEL_HEIGHT = 20  # pixels of a label bar
_GEOMETRY_TILE = 128  # pixels of a side, at least, by which people judge geometry
_SHEET_HEADS = 4  # heads in the 'views', 'strip' and 'video' sheets of a tick
_REALS = 64  # frames at most on the sheet of reals
_STRIP_FRAMES = 8  # columns at most of the 'strip' sheet


def label_tile(height: int, width: int, text: str) -> np.ndarray:
    """Returns a white tile [height, width, 3] with `text` in its middle."""
    tile = PIL.Image.new('RGB', (width, height), 'white')
    font = PIL.ImageFont.load_default(size=12)
    PIL.ImageDraw.Draw(tile).text((width / 2, height / 2), text, 'black', font=font, anchor='mm')
    return np.asarray(tile)


def label_bar(texts: Sequence[str], width: int) -> np.ndarray:
    """Returns a white bar [20, width * len(texts), 3] with one text over each column of `width` pixels."""
    return np.concatenate([label_tile(_LABEL_HEIGHT, width, text) for text in texts], axis=1)


def contact_sheet(
    rows: Sequence[np.ndarray], row_labels: Sequence[str] = (), col_labels: Sequence[str] = ()
) -> np.ndarray:
    """Stacks rows of pictures, each [T, H, W, 3], into one picture; optional labels stand left and on top."""
    lines = [strip(row) for row in rows]
    if col_labels:
        lines.insert(0, label_bar(col_labels, rows[0].shape[2]))
    if row_labels:
        margin = 8 * max(map(len, row_labels)) + 8  # pixels; a character is at most 8 wide
        texts = ['', *row_labels] if col_labels else row_labels
        lines = [
            np.concatenate([label_tile(line.shape[0], margin, text), line], axis=1)
            for line, text in zip(lines, texts, strict=True)
        ]
    return np.concatenate(lines)


def training_sheets(
    G: nn.Module,
    seeds: Sequence[int],
    cameras: Tensor,
    options: rollout.RenderOptions = rollout.DEFAULT_OPTIONS,
    on_frames: Callable[[int], object] = lambda count: None,
) -> dict[str, np.ndarray]:
    """Renders what a training tick shows of a generator; about len(seeds) + 4 * (3 + span) frames.

    Args:
        G: generator, usually the EMA copy in eval mode.
        seeds: one head per seed; the first four also get views, strip and video.
        cameras: real camera labels for the 'fakes' grid, used in turn, [K, 25].
        options: rendering batch and resolution.
        on_frames: called with the number of frames after each batch, for a progress bar.

    Returns:
        uint8 images: 'fakes' and, with 3D, 'depth' (a grid of heads at t = 0.5, real cameras), 'views' (rows:
        heads, columns: yaw -30, 0, 30 degrees), 'strip' (rows: heads, columns: t from 0 on, frontal), and
        'video' [span, H, W, 3]. Tiles of 'depth' and 'views' are enlarged to at least 128 pixels.
    """
    codes = [rollout.draw_codes(G, seed) for seed in seeds]
    labels = cameras[torch.arange(len(seeds)) % len(cameras)]
    views = trajectories.view_labels()
    front = trajectories.front(G.config.span)
    times = trajectories.frame_times(G.config.span, G.config.span)

    def shoot(index: int, render: Tensor, mapping: Tensor, t: Tensor) -> rollout.Frames:
        ws = rollout.map_codes(G, codes[index], mapping, t)
        batches = []
        for batch in rollout.render_frames(G, codes[index], ws, render, t, options):
            batches.append(batch)
            on_frames(len(batch.image))
        return rollout.concatenate(batches)

    fakes = rollout.concatenate(
        [shoot(i, c[None], c[None], torch.tensor([0.5])) for i, c in enumerate(labels)]
    )
    heads = range(min(len(seeds), _SHEET_HEADS))
    canonical = front[:1]
    middle = torch.full([len(views)], 0.5)
    sides = [enlarge(to_uint8(shoot(i, views, canonical, middle).image), _GEOMETRY_TILE) for i in heads]
    clips = np.stack(
        [to_uint8(shoot(i, front, canonical, times).image) for i in heads]
    )  # [heads, T, H, W, 3]
    columns = np.arange(0, len(times), -(-len(times) // _STRIP_FRAMES))
    sheets = {'fakes': grid(to_uint8(fakes.image))}
    if fakes.depth is not None:
        near_far = depth_range(fakes.depth, fakes.opacity)
        depth = colorize_depth(fakes.depth, fakes.opacity, *near_far)
        sheets['depth'] = grid(enlarge(depth, _GEOMETRY_TILE))
    return sheets | {
        'views': contact_sheet(sides, col_labels=trajectories.VIEW_NAMES),
        'strip': contact_sheet(list(clips[:, columns]), col_labels=[f't {t:.2f}' for t in times[columns]]),
        'video': np.stack([grid(frame) for frame in clips.swapaxes(0, 1)]),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSheets:
    """Draws a training run: called at a tick, writes PNGs and a video into the run folder."""

    run_dir: Path
    dataset: VideoDataset  # gives real frames, and cameras
    heads: int  # on the sheet of fakes

    def __call__(self, G_ema: nn.Module, nimg: int) -> dict[str, np.ndarray]:
        """Writes NAME-NIMG files, and at the beginning of a run reals.png; returns the images by name."""
        if nimg == 0:
            self._reals()
        seeds = range(self.heads)
        cameras = torch.stack([self.dataset.clip_cameras(i % len(self.dataset))[0] for i in seeds])
        sheets = training_sheets(G_ema, seeds, cameras.to(rollout.device_of(G_ema)))
        for name, image in sheets.items():
            if name == 'video':
                write_video(self.run_dir / f'{name}{nimg:09d}.mp4', image, self.dataset.fps)
            else:
                save_png(self.run_dir / f'{name}{nimg:09d}.png', image)
        return sheets

    def _reals(self) -> None:
        clips = np.linspace(0, len(self.dataset) - 1, min(len(self.dataset), _REALS)).astype(int)
        frames = []
        for clip in clips:
            with contextlib.suppress(DataError):  # training reports what it cannot read
                frames.append(self.dataset.clip_frames(int(clip), [0])[0].permute(1, 2, 0).numpy())
        if frames:
            save_png(self.run_dir / 'reals.png', grid(np.stack(frames)))
