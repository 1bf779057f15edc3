"""Pictures and charts of the report: frames with landmarks and pose axes, thumbnails, histograms in SVG."""

import base64
import contextlib
import html
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from dnnlib.util import DataError
from dnnlib.video import video_frames
from preprocessing.from_videos.report_facts import Rejection
from preprocessing.from_videos.work_folder import WorkFolder
from training.camera import project
from viz.images import strip

# Lines of the 468-point mesh: point numbers in order; the first is drawn at the end again where closed.
_CLOSED = (
    (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152)
    + (148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),  # outline
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),  # right eye (person's)
    (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249),  # left eye
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146),  # lips
    (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95),
)
_OPEN = (
    (70, 63, 105, 66, 107),  # right brow
    (300, 293, 334, 296, 336),  # left brow
    (168, 6, 197, 195, 5, 4),  # bridge of the nose
    (98, 97, 2, 326, 327),  # nostrils
)
_AXIS = 0.16  # length of a drawn axis, scene units
_AXES = ((235, 60, 50), (40, 200, 80), (70, 130, 255))  # x, y, z
_LINE = (255, 255, 255, 170)
_SCALE = 2  # drawn this much larger, then reduced: smooth lines
_QUALITY = 82  # of JPEG
_BAR, _AXIS_INK, _MARK = '#4878a8', '#666', '#c62828'


def sheet(work: WorkFolder, clip: str, frames: Sequence[int], size: int) -> Image.Image:
    """Draws frames of an aligned clip in one row, with contours of the landmarks and the axes of the head.

    Args:
        work: the work folder.
        clip: name.
        frames: their numbers.
        size: pixels of a side of each.
    """
    labels = work.read(f'cameras/{clip}').get('labels', [])
    landmarks = work.landmarks(clip)
    row = Image.new('RGB', (size * len(frames), size))
    for i, (number, picture) in enumerate(zip(frames, work.frames(clip, frames), strict=True)):
        label = labels[number] if number < len(labels) else None
        row.paste(annotate(picture, landmarks[number], label, size), (i * size, 0))
    return row


def annotate(
    picture: np.ndarray, landmarks: np.ndarray, label: Sequence[float] | None, size: int
) -> Image.Image:
    """Draws contours and pose axes (x red, y green, z blue, from the middle of the head) on a picture.

    Args:
        picture: uint8 [S, S, 3].
        landmarks: pixels of it, 0 = left or top edge, [468, 2 or 3].
        label: camera, 25 numbers; none = no axes.
        size: pixels of a side of the result.
    """
    side = size * _SCALE
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image, 'RGBA')
    points = landmarks[:, :2] * (side / picture.shape[0]) - 0.5
    for line in _OPEN + tuple((*line, line[0]) for line in _CLOSED):
        draw.line([tuple(points[i]) for i in line], fill=_LINE, width=_SCALE)
    if label is not None:
        ends = axis_ends(label) * side - 0.5
        depth_order = np.argsort(-axis_depths(label))  # the nearest is drawn last
        for k in depth_order:
            draw.line([tuple(ends[0]), tuple(ends[k + 1])], fill=_AXES[k], width=3 * _SCALE)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def axis_ends(label: Sequence[float]) -> np.ndarray:
    """Projects the origin and the ends of the x, y and z axis into the picture [0, 1]^2; [4, 2]."""
    return project(_axis_points(), torch.tensor(label, dtype=torch.float64))[0].numpy()


def axis_depths(label: Sequence[float]) -> np.ndarray:
    """Returns how far the ends of the three axes are from the camera, [3]."""
    return project(_axis_points(), torch.tensor(label, dtype=torch.float64))[1].numpy()[1:, 0]


def _axis_points() -> torch.Tensor:
    return torch.cat([torch.zeros(1, 3), torch.eye(3) * _AXIS]).double()


def rejection_picture(
    work: WorkFolder, rejection: Rejection, frames: Sequence[int], path: str, size: int
) -> Image.Image | None:
    """Shows what was left out: frames of the aligned clip, otherwise one of the video; none = no picture.

    Args:
        work: the work folder.
        rejection: what was left out.
        frames: which frames of an aligned clip, beside each other.
        path: file of the video, '' = not known.
        size: pixels of the width at most; the height is at most half of it.
    """
    try:
        if rejection.clip:
            picture = Image.fromarray(strip(work.frames(rejection.clip, frames)))
        else:
            picture = video_picture(path, rejection.time_sec)
    except (DataError, OSError, ValueError, LookupError):  # the reason is told all the same
        return None
    picture.thumbnail((size, size // 2), Image.Resampling.LANCZOS)
    return picture


def video_picture(path: str, time_sec: float) -> Image.Image:
    """Decodes one frame of a video.

    Raises:
        DataError, OSError: if it cannot be decoded.
    """
    with contextlib.closing(video_frames(path, time_sec)) as frames:
        return Image.fromarray(next(frames)[0])


def data_uri(picture: Image.Image) -> str:
    """Encodes a picture as a JPEG in a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=_QUALITY)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


def histogram(
    values: np.ndarray, title: str, unit: str, limits: tuple[float, float], mark: float | None = None
) -> str:
    """Draws a histogram of 30 bins as inline SVG; what lies outside the limits counts in the outer bins.

    Args:
        values: finite numbers [N].
        title: what they are.
        unit: behind the numbers of the axis.
        limits: of the axis.
        mark: a threshold, drawn as a red line.
    """
    low, high = limits
    counts, edges = np.histogram(np.clip(values, low, high), bins=30, range=limits)
    width, height, left, top, bottom = 330, 150, 8, 26, 20
    inner, plot = width - 2 * left, height - top - bottom

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * inner

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    told = f', median {np.median(values):.3g}{unit}' if len(values) else ''
    text = html.escape(f'{title}: {len(values)}{told}')
    parts.append(f'<text x="{left}" y="15" font-size="12" fill="#222">{text}</text>')
    for count, start, end in zip(counts.tolist(), edges, edges[1:], strict=False):
        tall = count / max(counts.max(), 1) * plot
        where = f'x="{place(start):.1f}" y="{top + plot - tall:.1f}"'
        extent = f'width="{inner / 30 - 1:.1f}" height="{tall:.1f}"'
        tip = html.escape(f'{start:.3g} to {end:.3g}{unit}: {count}')
        parts.append(f'<rect {where} {extent} fill="{_BAR}" data-count="{count}"><title>{tip}</title></rect>')
    y = top + plot
    parts.append(f'<line x1="{left}" x2="{width - left}" y1="{y}" y2="{y}" stroke="{_AXIS_INK}"/>')
    for tick in _ticks(low, high):
        x = place(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}" stroke="{_AXIS_INK}"/>')
        anchor = 'start' if x < left + 8 else 'end' if x > width - left - 8 else 'middle'
        number = html.escape(f'{tick:g}{unit}')
        style = f'font-size="10" fill="{_AXIS_INK}" text-anchor="{anchor}"'
        parts.append(f'<text x="{x:.1f}" y="{y + 16}" {style}>{number}</text>')
    if mark is not None and low <= mark <= high:
        x = place(mark)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y}" stroke="{_MARK}"/>')
    return ''.join([*parts, '</svg>'])


def round_limits(values: np.ndarray, at_least: tuple[float, float]) -> tuple[float, float]:
    """Returns limits that hold all values and `at_least`, ending at round numbers."""
    low = min(at_least[0], values.min(initial=at_least[0]))
    high = max(at_least[1], values.max(initial=at_least[1]))
    step = _step(low, high)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _step(low: float, high: float) -> float:
    """Returns 1, 2 or 5 times a power of ten, of which four to ten fit between the limits."""
    rough = max(high - low, 1e-6) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= rough)
