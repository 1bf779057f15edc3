"""Images of a data set: where its cameras stand, and a contact sheet."""

import colorsys
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dnnlib.scene import RADIUS
from training.data.dataset import VideoDataset
from training.data.files import FrameIndex

_INK, _PALE, _PAPER = (40, 44, 52), (120, 126, 138), (255, 255, 255)
_BAD = (220 / 255, 30 / 255, 40 / 255, 1.0)
_MAX_DOTS = 20000  # more cameras are thinned out evenly


def contact_sheet(dataset: VideoDataset, clips: int, frames: int, size: int) -> Image.Image:
    """Draws `clips` rows (spread over the data set) of `frames` images (spread over each clip).

    Args:
        dataset: where from; with frames='single' rows are filled with images one by one.
        clips: number of rows, at most.
        frames: number of columns, at most.
        size: pixels of a side of each image.
    """
    rows = _rows(dataset, clips, frames)
    left, gap, top = 76, 3, 22
    width, height = left + frames * (size + gap), top + len(rows) * (size + gap)
    sheet = Image.new('RGB', (width, height), _PAPER)
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(12), ImageFont.load_default(10)
    draw.text((left, 4), _title(dataset), fill=_INK, font=font)
    for y, (name, note, images) in zip(range(top, height, size + gap), rows, strict=True):
        draw.text((6, y + 4), name[:10], fill=_INK, font=font)
        draw.text((6, y + 20), note, fill=_PALE, font=small)
        for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + i * (size + gap), y))
    return sheet


def _rows(dataset: VideoDataset, clips: int, frames: int) -> list[tuple[str, str, Tensor]]:
    """Returns name, note and images, uint8 [T, 3, R, R], of each row: a clip, or some of single images."""
    if dataset.config.frames == 'single':
        count = min(clips * frames, len(dataset))
        chosen = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
        rows = [chosen[i : i + frames] for i in range(0, count, frames)]
        return [
            (
                dataset.names[row[0]],
                f'and {len(row) - 1} more',
                torch.cat([dataset.clip_frames(i, [0]) for i in row]),
            )
            for row in rows
        ]
    rows = np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).astype(int).tolist()
    counts = [dataset.num_frames(clip) for clip in rows]
    places = [np.linspace(0, n - 1, min(frames, n)).round().astype(int).tolist() for n in counts]
    return [
        (dataset.names[clip], f'{count} frames', dataset.clip_frames(clip, chosen))
        for clip, count, chosen in zip(rows, counts, places, strict=True)
    ]


def _title(dataset: VideoDataset) -> str:
    size, count = f'{dataset.resolution}x{dataset.resolution}', f'{len(dataset):,}'
    if dataset.config.frames == 'single':
        return f'{count} images, {size}'
    return f'{count} clips, {size}; time runs to the right'


def camera_plot(index: FrameIndex, bad: Collection[str], title: str) -> Image.Image:
    """Draws where the cameras stand: from above, from the side, and as yaw against pitch.

    Args:
        index: table of frames; labels that are not finite are left out.
        bad: names of clips that are drawn in red.
        title: first line of the image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and wants a screen

    usable = np.flatnonzero(np.isfinite(index.cameras).all(axis=1))
    usable = usable[:: -(-len(usable) // _MAX_DOTS) or 1]
    x, y, z = (index.cameras[usable, i].astype(np.float64) for i in (3, 7, 11))
    dots = {'c': _colors(index, usable, bad), 's': 4, 'linewidths': 0, 'zorder': 3}
    figure = Figure(figsize=(13.8, 5.4), dpi=100)
    figure.subplots_adjust(0.04, 0.1, 0.99, 0.84)
    figure.text(0.012, 0.94, title.replace('$', r'\$'), fontsize=13)
    legend = (
        'one colour per clip, red = a clip with a problem; scene units; the square is the box of the planes'
    )
    figure.text(0.012, 0.89, legend, fontsize=8, color='gray')
    above, side, angles = figure.subplots(1, 3)
    _draw_scene(above, x, z, False)
    above.scatter(x, z, **dots)
    above.invert_yaxis()
    above.set_title('from above: x to the right, z (in front of the face) down', fontsize=9)
    _draw_scene(side, z, y, True)
    side.scatter(z, y, **dots)
    side.set_title('from the side: z to the right, y up', fontsize=9)
    yaw, pitch = np.degrees(np.arctan2(x, z)), np.degrees(np.arctan2(y, np.hypot(x, z)))
    reach = max(30, *(np.abs(values).max(initial=0) for values in (yaw, pitch)))
    angles.scatter(yaw, pitch, **dots)
    angles.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal')
    angles.set_title('yaw to the right, pitch up, degrees', fontsize=9)
    for axes in (above, side, angles):
        axes.grid(color='#e2e5ea')
        axes.tick_params(labelsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')


def _draw_scene(axes: Any, across: np.ndarray, along: np.ndarray, turned: bool) -> None:
    """Draws what cameras stand around, the face upwards (`turned`: to the right), and sets the limits."""
    low = (-0.8, -2.1) if turned else (-2.1, -0.8)
    spans = [np.append(v, [edge, edge + 4.2]) for v, edge in zip((across, along), low, strict=True)]
    reach = max(np.ptp(span) for span in spans)
    limits = [(span.min() - 0.05, span.min() + reach + 0.05) for span in spans]
    axes.set(xlim=limits[0], ylim=limits[1], aspect='equal')
    turn = np.linspace(-np.pi, np.pi, 200)
    circle = np.stack([np.sin(turn), np.cos(turn)])
    lines = {'sphere': RADIUS * circle[:, 50:151], 'head': 0.32 * circle}
    lines['nose'] = np.array([[-0.05, 0, 0.05], [0.31, 0.4, 0.31]])
    for line in lines.values():
        axes.plot(*(line[::-1] if turned else line), color='#787e8a', linewidth=1)
    axes.plot([-0.5, 0.5, 0.5, -0.5, -0.5], [-0.5, -0.5, 0.5, 0.5, -0.5], color='#282c34', linewidth=1)


def _colors(index: FrameIndex, rows: np.ndarray, bad: Collection[str]) -> np.ndarray:
    """Returns a colour RGBA per frame, [N, 4]: bad clips are red, the others differ from their neighbours."""
    alpha = 0.45 if len(rows) > 2000 else 0.75
    hues = [0.1 + 0.8 * (i * 0.618034 % 1) for i in range(len(index.clips))]  # steps of the golden ratio
    palette = [(*colorsys.hsv_to_rgb(hue, 0.75, 0.8), alpha) for hue in hues]
    palette = [_BAD if name in bad else color for name, color in zip(index.clips, palette, strict=True)]
    clips = np.searchsorted(index.starts, rows, side='right') - 1
    return np.array(palette).reshape(-1, 4)[clips]
