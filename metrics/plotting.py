"""Curves of the metrics of a run: `metrics.png` and TensorBoard, out of its metric-*.jsonl files."""

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dnnlib.util import UserError, atomic_write

_LEVELS = (('floor', 'floor: half of the real videos'), ('real', 'real videos'))  # key, name
_TICKS = 5  # of the axis of clips, at most


class Curve(NamedTuple):
    """One metric over training; later measurements of a snapshot replace earlier ones."""

    name: str
    kimg: list[float]  # increasing
    value: list[float]
    error: list[float]  # standard errors, nan where unknown
    level: float | None  # where the curve should end
    level_name: str = 'real videos'  # what that is
    controls: dict[str, float] = {}  # the newest values of degraded videos


def read_curves(run_dir: Path) -> list[Curve]:
    """Reads the metric-*.jsonl files of a run folder; lines without a value or a kimg are skipped.

    Raises:
        UserError: if there is nothing to draw.
    """
    curves = []
    for path in sorted(Path(run_dir).glob('metric-*.jsonl')):
        points: dict[float, dict[str, Any]] = {}
        for number, text in enumerate(path.read_bytes().splitlines(), 1):
            try:
                line = dict(json.loads(text))
            except (ValueError, TypeError) as error:
                raise UserError(f'{path}: line {number} is not a JSON object; remove it') from error
            if isinstance(line.get('value'), float) and isinstance(line.get('kimg'), (int, float)):
                points[float(line['kimg'])] = line
        if points:
            curves.append(_curve(path.stem.removeprefix('metric-'), points))
    if not curves:
        raise UserError(
            f'{run_dir} holds no metric-*.jsonl with values of its snapshots; measure some first, with '
            'calc_metrics.py --network or train.py --metrics'
        )
    return curves


def _curve(name: str, points: dict[float, dict[str, Any]]) -> Curve:
    kimg = sorted(points)
    lines = [points[k] for k in kimg]
    levels = [(line[key], n) for line in lines for key, n in _LEVELS if isinstance(line.get(key), float)]
    level, level_name = levels[-1] if levels else (None, '')
    known = [line['controls'] for line in lines if line.get('controls')]
    errors = [line.get('standard_error') for line in lines]
    return Curve(
        name,
        kimg,
        [line['value'] for line in lines],
        [np.nan if e is None else e for e in errors],
        level,
        level_name,
        {name: found['value'] for name, found in (known[-1] if known else {}).items()},
    )


def plot_run(run_dir: Path) -> Path:
    """Draws all curves of a run folder into `metrics.png`, adds them to TensorBoard, returns the file.

    Raises:
        UserError: if there is nothing to draw.
    """
    curves = read_curves(run_dir)
    path = Path(run_dir, 'metrics.png')
    with atomic_write(path) as file:
        Image.fromarray(draw_curves(curves)).save(file, format='png')
    # a folder of its own, replaced each time, so that no point is there twice
    folder = Path(run_dir, 'metrics-curves')
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(folder) as events:
        for curve in curves:
            for kimg, value in zip(curve.kimg, curve.value, strict=True):
                events.add_scalar(f'Metrics/{curve.name}', value, round(kimg * 1000))
    return path


def draw_curves(curves: Sequence[Curve], along: str = 'thousand clips') -> np.ndarray:
    """Draws one panel for each curve, with standard errors and its level; uint8 [H, W, 3]."""

    def draw(axes: Axes, curve: Curve) -> None:
        axes.errorbar(curve.kimg, curve.value, curve.error, marker='o', markersize=3, capsize=2)
        if curve.level is not None:
            axes.axhline(curve.level, color='gray', linestyle='--', label=curve.level_name)
        for number, (name, value) in enumerate(curve.controls.items(), 1):
            if value is not None:
                axes.axhline(value, color=f'C{number}', linestyle=':', label=f'control: {name}')
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(_TICKS))
        axes.set_title(curve.name)
        axes.set_xlabel(along)
        axes.grid(alpha=0.3)

    return draw_panels([functools.partial(draw, curve=curve) for curve in curves])


def draw_panels(draws: Sequence[Callable[[Axes], None]]) -> np.ndarray:
    """Lets each function draw a panel, three in a row; uint8 [H, W, 3]."""
    cols = min(3, len(draws))
    rows = -(-len(draws) // cols)
    figure = Figure(figsize=(4.5 * cols, 3.2 * rows), layout='constrained')
    for draw, axes in zip(draws, figure.subplots(rows, cols, squeeze=False).flat, strict=False):
        draw(axes)
    for axes in figure.axes[len(draws) :]:
        axes.remove()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
