"""Draws the images of docs/architecture.md: `python docs/draw.py`.

The network is figures 2 and 3 of PV3D, redrawn; the rooms are read off CONTRIBUTING.md.
"""

import re
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

_HERE = Path(__file__).resolve().parent
_INPUT, _PART, _DATA, _JUDGE = '#e8eaf0', '#cfe3f7', '#fbe6c6', '#f6cfcf'  # colours by role
_INK = '#2b3038'


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure whose coordinates are tenths of an inch."""
    figure = Figure(figsize=(width, height), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    axes.axis('off')
    return figure, axes


def box(axes: Axes, place: tuple[float, float, float, float], text: str, color: str) -> None:
    """Draws a box with text; place: middle, width and height."""
    x, y, width, height = place
    style = {'boxstyle': 'round,pad=0,rounding_size=0.8', 'facecolor': color, 'edgecolor': _INK}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, linewidth=1, **style))
    axes.text(x, y, text, ha='center', va='center', fontsize=8.5, color=_INK, linespacing=1.3)


def arrow(axes: Axes, *points: tuple[float, float], text: str = '') -> None:
    """Draws a line through points that ends in an arrow, with text at its middle."""
    x, y = zip(*points, strict=True)
    axes.plot(x[:-1], y[:-1], color=_INK, linewidth=1)
    tip = {'arrowstyle': '-|>', 'color': _INK, 'linewidth': 1, 'shrinkA': 0, 'shrinkB': 0}
    axes.annotate('', points[-1], points[-2], arrowprops=tip)
    if text:
        (x0, y0), (x1, y1) = points[-2:]
        axes.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.9, text, ha='center', fontsize=7.5, color=_INK)


def network() -> Figure:
    """The way from codes to verdicts, figure 2 of the paper."""
    figure, axes = canvas(11.5, 4.6)
    for y, text in (
        (38, 'appearance z_a'),
        (31, 'mapping camera'),
        (14, 'motion z_m'),
        (7, 'times t_i, t_j'),
    ):
        box(axes, (8, y, 13, 4.4), text, _INPUT)
    box(axes, (25, 34.5, 13, 6), 'mapping network\n(MapT: one camera\nfor a clip)', _PART)
    box(axes, (25, 10.5, 13, 6), 'motion layers\nH_m, MLP (eq. 1)', _PART)
    box(
        axes,
        (43, 22.5, 14, 12),
        'temporal tri-plane\nsynthesis\n4x4 to 256x256,\nmotion added in\nK blocks (eq. 2)',
        _PART,
    )
    box(axes, (60.5, 22.5, 12, 8), 'tri-planes at\nt_i and t_j\n3 x 32 channels', _DATA)
    box(axes, (60.5, 37, 12, 4.4), 'cameras c_i, c_j', _INPUT)
    box(axes, (76, 22.5, 12, 10), 'volume\nrendering,\ndecoder\n(eq. 3)', _PART)
    box(axes, (91.5, 22.5, 11, 8), 'super-\nresolution', _PART)
    box(axes, (107, 37, 13, 7), 'image\ndiscriminator\n(image, raw; c)', _JUDGE)
    box(axes, (107, 8, 13, 8), 'video\ndiscriminator\n(pair, t_j - t_i;\nc_i, c_j)', _JUDGE)
    arrow(axes, (14.5, 38), (18.5, 36))
    arrow(axes, (14.5, 31), (18.5, 33))
    arrow(axes, (14.5, 14), (18.5, 12))
    arrow(axes, (14.5, 7), (18.5, 9))
    arrow(axes, (31.5, 34.5), (43, 34.5), (43, 28.5))
    axes.text(37, 35.3, 'w_a', ha='center', fontsize=8, color=_INK)
    arrow(axes, (31.5, 10.5), (43, 10.5), (43, 16.5))
    axes.text(37, 11.3, 'w_m (one a layer)', ha='center', fontsize=8, color=_INK)
    arrow(axes, (50, 22.5), (54.5, 22.5))
    arrow(axes, (66.5, 22.5), (70, 22.5))
    arrow(axes, (66.5, 37), (76, 37), (76, 27.5))
    arrow(axes, (82, 22.5), (86, 22.5))
    arrow(axes, (97, 22.5), (107, 22.5), (107, 33.5))
    arrow(axes, (107, 22.5), (107, 12))
    axes.text(103, 23.4, 'I_i, I_j', ha='center', fontsize=8, color=_INK)
    arrow(axes, (79, 27.5), (79, 31), (95, 31), (95, 37), (100.5, 37))
    axes.text(87, 31.7, 'raw images', ha='center', fontsize=8, color=_INK)
    return figure


def block() -> Figure:
    """One block of the synthesis network with its motion layer, figure 3 of the paper."""
    figure, axes = canvas(9.2, 3.0)
    box(axes, (7, 20, 10, 4.4), 'f of block k-1', _DATA)
    box(axes, (24, 20, 14, 6), 'convolution S0,\nmodulated by w_a', _PART)
    box(axes, (46, 8, 15, 6), 'convolution,\nmodulated by w_m', _PART)
    box(axes, (24, 8, 14, 6), 'H_m, MLP of\nlayer k', _PART)
    box(axes, (7, 8, 10, 4.4), 'z_m * t', _INPUT)
    box(axes, (62, 20, 4, 4), '+', _DATA)
    box(axes, (75, 20, 14, 6), 'convolution S1,\nmodulated by w_a', _PART)
    arrow(axes, (12, 20), (17, 20))
    arrow(axes, (31, 20), (60, 20), text='f*')
    arrow(axes, (46, 20), (46, 11))
    arrow(axes, (12, 8), (17, 8))
    arrow(axes, (31, 8), (38.5, 8), text='w_m')
    arrow(axes, (53.5, 8), (62, 8), (62, 18), text='')
    axes.text(58, 8.9, 'f_m', ha='center', fontsize=8, color=_INK)
    arrow(axes, (64, 20), (68, 20))
    arrow(axes, (82, 20), (88, 20))
    axes.text(88.5, 20, 'f_k', va='center', fontsize=8.5, color=_INK)
    return figure


def rooms() -> Figure:
    """The rooms of the code, each above those that it may import."""
    text = (_HERE.parent / 'CONTRIBUTING.md').read_text()
    line = re.search(r'^dnnlib <- .*$', text, flags=re.MULTILINE)
    names = dict(re.findall(r'^\| `(\w+)/` \| ([^|]+?) \|$', text, flags=re.MULTILINE))
    rows = [row.split(', ') for row in line[0].split(' <- ')]
    figure, axes = canvas(9.6, 0.75 * len(rows) + 0.2)
    for i, row in enumerate(rows):
        width = 94 / len(row)
        for j, name in enumerate(row):
            words = re.sub(r'\[([^]]*)\]\([^)]*\)|`', r'\1', re.split(r'; | \(', names.get(name, ''))[0])
            words = textwrap.shorten(words, 44 if len(row) > 2 else 88, placeholder=' ...')
            lines = f'{name}/\n{words}' if words else name
            box(axes, (1 + width * (j + 0.5), 7.5 * i + 4.5, width - 2, 5.2), lines, _PART)
        if i:
            arrow(axes, (48, 7.5 * i - 0.4), (48, 7.5 * i + 1.9))
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """Returns a figure as uint8 [H, W, 3]."""
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    return np.asarray(drawn.buffer_rgba())[..., :3]


def main() -> None:
    """Writes the images beside this file."""
    for draw in (network, block, rooms):
        image = Image.fromarray(pixels(draw())).quantize(64)
        image.save(_HERE / f'architecture-{draw.__name__}.png', optimize=True)


if __name__ == '__main__':
    main()
