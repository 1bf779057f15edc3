"""Pictures of a data set: where its cameras stand, and a contact sheet. Drawn with Pillow alone."""

import colorsys
import math
from collections.abc import Collection

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.camera import RADIUS
from training.data.dataset import VideoDataset
from training.data.files import FrameIndex

_Color = tuple[int, ...]
_Points = tuple[np.ndarray, np.ndarray]
_SCALE = 2  # drawn this much larger, then reduced: smooth lines
_INK, _PALE, _GRID, _PAPER, _BAD = (
    (40, 44, 52),
    (120, 126, 138),
    (226, 229, 234),
    (255, 255, 255),
    (220, 30, 40),
)
_PANEL = 460  # pixels of a side
_MARGIN = 48  # pixels around the axes of a panel
_DOT = 1.6  # radius of a camera, pixels
_MAX_DOTS = 20000  # more cameras are thinned out evenly


def contact_sheet(dataset: VideoDataset, clips: int, frames: int, size: int) -> Image.Image:
    """Draws `clips` rows (spread over the data set) of `frames` pictures (spread over each clip).

    Args:
        dataset: where from.
        clips: number of rows, at most.
        frames: number of columns, at most.
        size: pixels of a side of each picture.
    """
    rows = np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).astype(int).tolist()
    left, gap, top = 76, 3, 22
    width, height = left + frames * (size + gap), top + len(rows) * (size + gap)
    sheet = Image.new('RGB', (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f'{len(dataset):,} clips, {dataset.resolution}x{dataset.resolution}; time runs to the right'
    draw.text((left, 4), title, fill=_INK, font=_font(12))
    for y, clip in zip(range(top, height, size + gap), rows, strict=True):
        count = dataset.num_frames(clip)
        chosen = np.linspace(0, count - 1, min(frames, count)).round().astype(int).tolist()
        draw.text((6, y + 4), dataset.names[clip][:10], fill=_INK, font=_font(12))
        draw.text((6, y + 20), f'{count} frames', fill=_PALE, font=_font(10))
        for i, picture in enumerate(dataset.clip_frames(clip, chosen).permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + i * (size + gap), y))
    return sheet


def camera_plot(index: FrameIndex, bad: Collection[str], title: str) -> Image.Image:
    """Draws where the cameras stand: from above, from the side, and as yaw against pitch.

    Args:
        index: table of frames; labels that are not finite are left out.
        bad: names of clips that are drawn in red.
        title: first line of the picture.
    """
    canvas = Image.new('RGB', (3 * _PANEL * _SCALE, (_PANEL + 84) * _SCALE), _PAPER)
    draw = ImageDraw.Draw(canvas, 'RGBA')
    legend = (
        'one colour per clip, red = a clip with a problem; scene units; the square is the box of the planes'
    )
    draw.text((16 * _SCALE, 12 * _SCALE), title, fill=_INK, font=_font(16 * _SCALE))
    draw.text((16 * _SCALE, 38 * _SCALE), legend, fill=_PALE, font=_font(11 * _SCALE))
    usable = np.flatnonzero(np.isfinite(index.cameras).all(axis=1))
    usable = usable[:: -(-len(usable) // _MAX_DOTS) or 1]
    x, y, z = (index.cameras[usable, i].astype(np.float64) for i in (3, 7, 11))
    colors = _colors(index, usable, bad)
    _scene_panel(
        draw, 0, 'from above: x to the right, z (in front of the face) down', (x, z), colors, down=True
    )
    _scene_panel(draw, 1, 'from the side: z to the right, y up', (z, y), colors, down=False)
    yaw, pitch = np.degrees(np.arctan2(x, z)), np.degrees(np.arctan2(y, np.hypot(x, z)))
    _angle_panel(draw, 2, (yaw, pitch), colors)
    return canvas.resize((canvas.width // _SCALE, canvas.height // _SCALE), Image.Resampling.LANCZOS)


class _Axes:
    """Maps plane coordinates to the pixels of panel `column`; both axes have the same scale."""

    def __init__(self, column: int, low: tuple[float, float], side: float, down: bool) -> None:
        self._low, self._side, self._down = low, side, down
        self._left, self._top = column * _PANEL + _MARGIN, 64 + 8
        self._size = _PANEL - _MARGIN - 16

    def pixel(self, u: float, v: float) -> tuple[float, float]:
        """Returns the pixel of a point, before the reduction."""
        x = self._left + (u - self._low[0]) / self._side * self._size
        part = (v - self._low[1]) / self._side
        y = self._top + (part if self._down else 1 - part) * self._size
        return x * _SCALE, y * _SCALE

    def grid(self, draw: ImageDraw.ImageDraw, title: str, step: float, unit: str) -> None:
        """Draws lines at multiples of `step`, with numbers at the left and below, and the title."""
        for axis in (0, 1):
            low = self._low[axis]
            for k in range(math.ceil(low / step), math.floor((low + self._side) / step) + 1):
                ends = [list(self._low), [self._low[0] + self._side, self._low[1] + self._side]]
                ends[0][axis] = ends[1][axis] = k * step
                start, end = self.pixel(*ends[0]), self.pixel(*ends[1])
                draw.line([start, end], fill=_PALE if k == 0 else _GRID, width=_SCALE)
                x, y = (start[0], (self._top + self._size + 4) * _SCALE) if axis == 0 else start
                anchor, dx = ('ma', 0) if axis == 0 else ('rm', -5 * _SCALE)
                draw.text(
                    (x + dx, y), f'{k * step:g}{unit}', fill=_PALE, font=_font(10 * _SCALE), anchor=anchor
                )
        where = (self._left * _SCALE, (self._top + self._size + 22) * _SCALE)
        draw.text(where, title, fill=_INK, font=_font(12 * _SCALE))

    def circle(self, draw: ImageDraw.ImageDraw, u: float, v: float, radius: float) -> None:
        """Draws a circle with a radius in plane units."""
        (x, y), r = self.pixel(u, v), radius / self._side * self._size * _SCALE
        draw.ellipse([x - r, y - r, x + r, y + r], outline=_PALE, width=_SCALE)

    def dots(self, draw: ImageDraw.ImageDraw, points: _Points, colors: list[_Color]) -> None:
        """Draws one dot per camera."""
        r = _DOT * _SCALE
        for u, v, color in zip(*points, colors, strict=True):
            x, y = self.pixel(u, v)
            draw.ellipse([x - r, y - r, x + r, y + r], fill=color)


def _scene_panel(
    draw: ImageDraw.ImageDraw,
    column: int,
    title: str,
    points: _Points,
    colors: list[_Color],
    down: bool,
) -> None:
    """Draws cameras around the head: the box of the planes, the sphere for cameras, the dots."""
    low = (-2.1, -0.8) if down else (-0.8, -2.1)
    spans = [np.append(points[i], [low[i], low[i] + 4.2]) for i in (0, 1)]
    low = (float(spans[0].min()), float(spans[1].min()))
    side = max(float(span.max() - span.min()) for span in spans)
    axes = _Axes(column, low, side, down)
    axes.grid(draw, title, 1.0 if side < 12 else side / 8, '')
    corners = [
        axes.pixel(u, v) for u, v in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5))
    ]
    draw.line(corners, fill=_INK, width=_SCALE)
    axes.circle(draw, 0, 0, 0.32)  # a head
    nose = [(-0.05, 0.31), (0, 0.4), (0.05, 0.31)]
    draw.line([axes.pixel(*((u, v) if down else (v, u))) for u, v in nose], fill=_PALE, width=_SCALE)
    for degrees in range(-90, 90, 2):  # the part of the sphere that the panel shows
        a, b = math.radians(degrees), math.radians(degrees + 2)
        ends = [(RADIUS * math.sin(turn), RADIUS * math.cos(turn)) for turn in (a, b)]
        ends = ends if down else [(v, u) for u, v in ends]
        if all(low[i] <= end[i] <= low[i] + side for end in ends for i in (0, 1)):
            draw.line([axes.pixel(*end) for end in ends], fill=_PALE, width=_SCALE)
    axes.dots(draw, points, colors)


def _angle_panel(draw: ImageDraw.ImageDraw, column: int, points: _Points, colors: list[_Color]) -> None:
    reach = max([30.0, *(float(np.abs(values).max(initial=0)) for values in points)])
    reach = 15 * math.ceil(reach / 15)
    axes = _Axes(column, (-reach, -reach), 2 * reach, False)
    axes.grid(draw, 'yaw to the right, pitch up, degrees', 15 if reach <= 60 else 30, '°')
    axes.dots(draw, points, colors)


def _colors(index: FrameIndex, rows: np.ndarray, bad: Collection[str]) -> list[_Color]:
    """Returns a colour per frame: bad clips are red, the others differ from their neighbours."""
    clips = np.searchsorted(index.starts, rows, side='right') - 1
    alpha = 110 if len(rows) > 2000 else 190
    palette = []
    for i, name in enumerate(index.clips):
        # steps of the golden ratio
        rgb = colorsys.hsv_to_rgb(0.1 + 0.8 * (i * 0.618034 % 1), 0.75, 0.8)
        palette.append(_BAD if name in bad else (*(round(255 * v) for v in rgb), alpha))
    return [palette[i] for i in clips]


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
