"""Contact sheets with labels, and the images that a training run draws of its network at a tick."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dnnlib import progress
from dnnlib.util import DataError
from dnnlib.video import write_video
from training.data.dataset import VideoDataset
from training.networks.contract import VideoGenerator
from viz import rollout, trajectories
from viz.images import colorize_depth, depth_range, enlarge, grid, save_png, strip, to_uint8

_LABEL_HEIGHT = 20  # pixels of a label bar
_LARGE_TILE = 128  # pixels per side, at least, of tiles that show geometry or move
_SHEET_HEADS = 4  # heads in the 'views', 'strip' and 'video' sheets of a tick
_REALS = 64  # at most this many frames on the sheet of reals
_VIDEO_CYCLES = 3  # of the 'video' of a tick: a few seconds
_SHOWN_AFTER_SEC = 10  # a bar of progress
_STRIP_FRAMES = 8  # at most this many columns of the 'strip' sheet


def _label(height: int, width: int, text: str) -> np.ndarray:
    """Returns a white tile [height, width, 3] with `text` in its middle."""
    tile = Image.new('RGB', (width, height), 'white')
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(tile).text((width / 2, height / 2), text, 'black', font=font, anchor='mm')
    return np.asarray(tile)


def contact_sheet(
    rows: Sequence[np.ndarray], row_labels: Sequence[str] = (), col_labels: Sequence[str] = ()
) -> np.ndarray:
    """Stacks rows of images, each [T, H, W, 3], into one image; optional labels are left and on top."""
    lines = [strip(row) for row in rows]
    if col_labels:
        width = rows[0].shape[2]
        lines.insert(0, np.concatenate([_label(_LABEL_HEIGHT, width, text) for text in col_labels], axis=1))
    if row_labels:
        margin = 8 * max(map(len, row_labels)) + 8  # pixels; a character is at most 8 wide
        texts = ['', *row_labels] if col_labels else row_labels
        labels = [_label(line.shape[0], margin, text) for line, text in zip(lines, texts, strict=True)]
        lines = [np.concatenate(pair, axis=1) for pair in zip(labels, lines, strict=True)]
    return np.concatenate(lines)


def training_sheets(G: VideoGenerator, seeds: Sequence[int], cameras: Tensor) -> dict[str, np.ndarray]:
    """Renders what a training tick shows of a generator: len(seeds) + 4 * (3 + span) frames, with progress.

    Args:
        G: generator, usually the EMA copy in eval mode.
        seeds: one head per seed; the first four also get views, strip and video.
        cameras: real camera labels for the 'fakes' grid, used in turn, [K, 25].

    Returns:
        uint8 images: 'fakes' and, with 3D, 'depth' (a grid of heads at t = 0.5, real cameras), 'views' (rows:
        heads, columns: yaw -30, 0, 30 degrees), 'strip' (rows: heads, columns: t from 0 on, frontal), and
        'video' [span, H, W, 3]. Tiles of 'depth', 'views' and 'video' are enlarged to at least 128 pixels.
    """
    codes = [rollout.draw_codes(G, seed) for seed in seeds]
    labels = cameras[torch.arange(len(seeds)) % len(cameras)]
    focal = G.config.focal
    views, front = trajectories.view_labels(focal), trajectories.front(G.config.span, focal)
    times = trajectories.frame_times(G.config.span, G.config.span)
    middle = torch.tensor([0.5])

    def shoot(index: int, render: Tensor, mapping: Tensor, t: Tensor) -> rollout.Frames:
        ws = rollout.map_codes(G, codes[index], mapping, t)
        frames = []
        for frame in rollout.render_frames(G, codes[index], ws, render, t):
            frames.append(frame)
            count(len(frame.image))
        return rollout.concatenate(frames)

    heads = range(min(len(seeds), _SHEET_HEADS))
    total = len(seeds) + len(heads) * (len(views) + len(times))
    with progress.progress(total, 'drawing', 'frame', after_sec=_SHOWN_AFTER_SEC) as count:
        fakes = rollout.concatenate([shoot(i, c[None], c[None], middle) for i, c in enumerate(labels)])
        sides = [to_uint8(shoot(i, views, front[:1], middle.expand(len(views))).image) for i in heads]
        clips = np.stack(
            [to_uint8(shoot(i, front, front[:1], times).image) for i in heads]
        )  # [N, T, H, W, 3]
    sides = [enlarge(side, _LARGE_TILE) for side in sides]
    columns = np.arange(0, len(times), -(-len(times) // _STRIP_FRAMES))
    sheets = {'fakes': grid(to_uint8(fakes.image))}
    if fakes.depth is not None:
        depth = colorize_depth(fakes.depth, fakes.opacity, *depth_range(fakes.depth, fakes.opacity))
        sheets['depth'] = grid(enlarge(to_uint8(depth), _LARGE_TILE))
    return sheets | {
        'views': contact_sheet(sides, col_labels=trajectories.VIEW_NAMES),
        'strip': contact_sheet(list(clips[:, columns]), col_labels=[f't {t:.2f}' for t in times[columns]]),
        'video': np.stack([grid(enlarge(frame, _LARGE_TILE)) for frame in clips.swapaxes(0, 1)]),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSheets:
    """Draws a training run: at a tick, writes PNGs and then a video into the run folder."""

    run_dir: Path
    dataset: VideoDataset  # gives real frames, and cameras
    heads: int  # on the sheet of fakes

    def __call__(self, G_ema: VideoGenerator, nimg: int) -> Iterator[tuple[str, np.ndarray]]:
        """Writes NAME-NIMG files, and at the beginning of a run reals.png; yields images and their names."""
        if nimg == 0:
            yield from self._reals()
        seeds = range(self.heads)
        cameras = torch.stack([self.dataset.clip_cameras(i % len(self.dataset))[0] for i in seeds])
        sheets = training_sheets(G_ema, seeds, cameras)
        video = sheets.pop('video')
        for name, image in sheets.items():
            save_png(self.run_dir / f'{name}{nimg:09d}.png', image)
            yield name, image
        cycle = np.concatenate([video, video[-2:0:-1]])  # forth and back, as gen_videos.py
        yield 'video', cycle
        shown = itertools.chain.from_iterable([cycle] * _VIDEO_CYCLES)
        write_video(self.run_dir / f'video{nimg:09d}.mp4', shown, self.dataset.fps)  # last: it needs ffmpeg

    def _reals(self) -> Iterator[tuple[str, np.ndarray]]:
        clips = np.linspace(0, len(self.dataset) - 1, min(len(self.dataset), _REALS)).astype(int)
        frames = []
        for clip in clips:
            with contextlib.suppress(DataError):  # training reports what it cannot read
                frames.append(self.dataset.clip_frames(int(clip), [0])[0].permute(1, 2, 0).numpy())
        if frames:
            image = grid(np.stack(frames))
            save_png(self.run_dir / 'reals.png', image)
            yield 'reals', image
