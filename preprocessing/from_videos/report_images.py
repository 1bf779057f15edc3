"""Images and charts of the report: frames with landmarks and pose axes, thumbnails, histograms."""

import base64
import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from dnnlib.util import UserError
from dnnlib.video import video_frames
from preprocessing.from_videos.report_facts import Facts, Rejection
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


class Histogram(NamedTuple):
    """A chart of 30 bins; what lies outside the limits counts in the outer bins."""

    title: str
    unit: str
    values: np.ndarray  # finite numbers [N]
    limits: tuple[float, float]
    mark: float | None = None  # a threshold, drawn as a red line

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many values are in each bin [30], and the edges [31]."""
        return np.histogram(np.clip(self.values, *self.limits), bins=30, range=self.limits)


def sheet(work: WorkFolder, clip: str, frames: Sequence[int], size: int) -> Image.Image:
    """Draws frames of an aligned clip in one row, `size` pixels wide each, with landmarks and axes."""
    labels = work.read(f'cameras/{clip}').get('labels') or [None] * (max(frames) + 1)
    landmarks, images = work.landmarks(clip), work.frames(clip, frames)
    tiles = [annotate(image, landmarks[i], labels[i], size) for i, image in zip(frames, images, strict=True)]
    return Image.fromarray(strip(np.stack(tiles)))


def annotate(
    image: np.ndarray, landmarks: np.ndarray, label: Sequence[float] | None, size: int
) -> np.ndarray:
    """Draws contours and pose axes (x red, y green, z blue, from the middle of the head) on an image.

    Args:
        image: uint8 [S, S, 3].
        landmarks: pixels of it, 0 = left or top edge, [468, 2 or 3].
        label: camera, 25 numbers; none = no axes.
        size: pixels of a side of the result.

    Returns:
        uint8 [size, size, 3].
    """
    side = size * _SCALE
    canvas = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas, 'RGBA')
    points = landmarks[:, :2] * (side / image.shape[0]) - 0.5
    for line in _OPEN + tuple((*line, line[0]) for line in _CLOSED):
        draw.line([tuple(points[i]) for i in line], fill=_LINE, width=_SCALE)
    if label is not None:
        ends, depths = project_axes(label)
        ends = ends * side - 0.5
        for k in np.argsort(-depths):  # the nearest is drawn last
            draw.line([tuple(ends[0]), tuple(ends[k + 1])], fill=_AXES[k], width=3 * _SCALE)
    return np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS))


def project_axes(label: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Projects the axes of the head.

    Args:
        label: camera, 25 numbers.

    Returns:
        the origin and the ends of x, y, z in the image [0, 1]^2, [4, 2]; how far the ends are away, [3].
    """
    points = torch.cat([torch.zeros(1, 3), torch.eye(3) * _AXIS]).double()
    places, depths = project(points, torch.tensor(label, dtype=torch.float64))
    return places.numpy(), depths.numpy()[1:, 0]


def rejection_image(work: WorkFolder, rejection: Rejection, facts: Facts, size: int) -> Image.Image | None:
    """Shows what was left out: frames of the aligned clip, otherwise one of the video; none = no image.

    It is at most `size` pixels wide, and half as high.
    """
    clip = facts.clips.get(rejection.item)
    try:
        if clip is None:
            path = facts.videos[rejection.video]['path']
            with contextlib.closing(video_frames(path, rejection.time_sec)) as frames:
                image = Image.fromarray(next(frames)[0])
        else:  # the first and the last frame, and between them the one least like the others, if examined
            worst = clip.examined[int(clip.similarity.argmin())] if len(clip.similarity) else clip.frames // 2
            image = Image.fromarray(strip(work.frames(clip.name, [0, worst, clip.frames - 1])))
    except (UserError, OSError, LookupError, StopIteration):  # the reason is shown all the same
        return None
    image.thumbnail((size, size // 2), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image) -> str:
    """Encodes an image as a JPEG in a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=_QUALITY)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


def histograms(facts: Facts) -> list[Histogram]:
    """Returns what was measured: angles, sizes and residuals of clips that were kept, similarity of all."""
    kept = [clip for clip in facts.kept() if len(clip.angles_deg)]
    turns = np.concatenate([np.zeros((0, 3)), *(clip.angles_deg for clip in kept)])
    alike = np.concatenate([np.zeros(0), *(clip.similarity for clip in facts.clips.values())])
    reach = np.ceil(np.abs(turns).max(initial=30))
    names = ('Yaw of frames', 'Pitch of frames', 'Roll of frames')
    charts = [Histogram(name, '°', turns[:, k], (-reach, reach)) for k, name in enumerate(names)]
    mark = None if np.isnan(facts.threshold) else facts.threshold
    low = min(0.0, alike.min(initial=0.0))
    charts.append(Histogram('Similarity of all examined frames', '', alike, (low, 1.0), mark))
    for values, name, least in (
        ([clip.upscale for clip in facts.kept()], 'Upscale factor of clips', 2),
        ([clip.frames for clip in facts.kept()], 'Frames of clips', 100),
        ([clip.residual for clip in kept], 'Camera residual, pixels at 512', 5),
    ):
        array = np.array(values, np.float64)
        array = array[np.isfinite(array)]
        charts.append(Histogram(name, '', array, (0.0, np.ceil(array.max(initial=least)))))
    return charts


def draw_histograms(charts: Sequence[Histogram]) -> str:
    """Draws charts in rows of three; returns a PNG in a data URI, the same bytes for the same charts."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and wants a screen

    rows = -(-len(charts) // 3)
    figure = Figure(figsize=(10.8, 1.9 * rows), dpi=130)
    figure.subplots_adjust(0.03, 0.06, 0.98, 0.95, wspace=0.14, hspace=0.45)
    for axes, chart in zip(figure.subplots(rows, 3).flat, charts, strict=False):
        counts, edges = chart.counts()
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.9, align='edge', color='#4878a8')
        title = f'{chart.title}: {len(chart.values)}'
        if len(chart.values):
            title += f', median {np.median(chart.values).round(2) + 0.0:g}{chart.unit}'
        axes.set_title(title, fontsize=8, loc='left')
        axes.set_xlim(chart.limits)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_formatter(f'{{x:g}}{chart.unit}')
        axes.spines[['top', 'right', 'left']].set_visible(False)
        if chart.mark is not None:
            axes.axvline(chart.mark, color='#c62828', linewidth=1)
    for axes in figure.axes[len(charts) :]:
        axes.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()
