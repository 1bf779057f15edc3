"""Finds hard cuts in a video.

Two differences between neighbouring frames, neither of which depends on brightness: 1 - the correlation of
small grey images, and the distance of histograms of chromaticity. A cut is where their sum stands out from
the frames around it: heads that turn fast change for several frames in a row, cuts for one. A flash of a few
frames is not a cut. Fades are not detected.
"""

import collections
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.video import video_frames
from preprocessing.from_videos.stages import Item, Stage

_GRID = 32  # pixels of a side of the small grey image
_SAMPLES = 4  # samples per pixel of the small image and axis
_BINS = 16  # of each of the two chromaticities
_FLOOR = 0.35  # smallest difference that can be a cut; see tests/preprocessing/from_videos/test_shots.py
_RATIO = 4.0  # times the difference around it
_AROUND = 8  # frames before and after
_FLASH = 3  # frames that a flash lasts at most


def find_shots(path: Path | str) -> list[tuple[int, int]]:
    """Returns the shots of a video as frame indices [first, end), together all of its frames.

    Raises:
        DataError: if it cannot be decoded.
    """
    return split(signature(frame) for frame, _ in video_frames(path))


def signature(frame: np.ndarray) -> np.ndarray:
    """Describes a frame for `difference`.

    Args:
        frame: uint8 RGB [H, W, 3].

    Returns:
        float32 [1024 + 289]: grey image with mean 0 and norm 1, histogram of chromaticity with sum 1.
    """
    side = _GRID * _SAMPLES
    rows, columns = (((np.arange(side) + 0.5) * n / side).astype(int) for n in frame.shape[:2])
    rgb = frame[rows][:, columns].astype(np.float32)
    blocks = rgb.reshape(_GRID, _SAMPLES, _GRID, _SAMPLES, 3).mean(axis=(1, 3))
    grey = (blocks @ np.array([0.299, 0.587, 0.114], np.float32)).ravel()
    grey = grey - grey.mean()
    grey /= max(float(np.linalg.norm(grey)), _GRID * 1.0)  # a plain image stays near 0
    light = blocks.sum(axis=-1) + 8.0  # damps the colour of dark pixels, which is noise
    chroma = [np.clip((blocks[..., i] + 8 / 3) / light, 0, 0.999) for i in (0, 1)]
    place = [_soft(c.ravel() * _BINS) for c in chroma]
    histogram = np.zeros((_BINS + 1, _BINS + 1), np.float32)
    for row, row_weight in place[0]:
        for column, column_weight in place[1]:
            np.add.at(histogram, (row, column), row_weight * column_weight)
    return np.concatenate([grey, histogram.ravel() / len(grey)]).astype(np.float32)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Compares two signatures: 0 for the same image, about 1 and more for unrelated ones."""
    n = _GRID**2
    scale = max(float(np.linalg.norm(a[:n]) * np.linalg.norm(b[:n])), 1e-6)
    unlike = 1 - float(a[:n] @ b[:n]) / scale if scale > 1e-3 else 0.0
    return unlike + 0.5 * float(np.abs(a[n:] - b[n:]).sum())


def split(signatures: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Returns the shots of a sequence of signatures, as `find_shots`; few of them are held at a time."""
    unlike = _differences(signatures)
    steps = unlike[:-1, 0]
    cuts = []
    for i, step in enumerate(steps):  # between frame i and i + 1
        around = np.concatenate([steps[max(0, i - _AROUND) : i], steps[i + 1 : i + 1 + _AROUND]])
        usual = float(np.median(around)) if len(around) else 0.0
        if step < max(_FLOOR, _RATIO * usual):
            continue
        last = cuts[-1] if cuts else 0
        back = unlike[i].min()  # the image before, seen again: a flash began
        begun = min(unlike[k, i - k] for k in range(max(last, i - _FLASH), i + 1))  # or it ended
        if min(back, begun) >= max(_FLOOR, 0.5 * step):
            cuts.append(i + 1)
    ends = [0, *cuts, len(unlike)]
    return list(zip(ends, ends[1:], strict=False)) if len(unlike) else []


def _differences(signatures: Iterable[np.ndarray]) -> np.ndarray:
    """Returns how unlike each frame is to the next ones: float64 [N, _FLASH + 1], beyond the end inf."""
    rows: list[list[float]] = []
    held: collections.deque[np.ndarray] = collections.deque(maxlen=_FLASH + 1)
    for new in signatures:
        for back, earlier in enumerate(reversed(held), 1):
            rows[-back].append(difference(earlier, new))
        held.append(new)
        rows.append([])
    table = np.full((len(rows), _FLASH + 1), np.inf)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


def _soft(place: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits each value between its two bins, so that small changes of colour stay small."""
    low = np.floor(place).astype(int)
    fraction = (place - low).astype(np.float32)
    return [(low, 1 - fraction), (low + 1, fraction)]


@Stage(
    'shots',
    per='video',
    needs=('sources',),
    note=lambda results: f', {sum(len(results[video]["shots"]) for video in results.accepted())} shots',
)
def shots_stage(item: Item, options: Any) -> dict[str, Any]:
    """Finds the shots of a video; returns {"shots": [[first, end], ...]}."""
    return {'shots': [list(shot) for shot in find_shots(item.work.read(f'sources/{item.name}')['path'])]}
