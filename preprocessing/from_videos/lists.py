"""Public clip lists: those of VoxCeleb, CelebV-HQ and TalkingHead-1KH.

A list names YouTube videos, and the time ranges and boxes of its clips; `fetch.py` brings the videos. Layouts
of the lists, from what their authors publish:
- voxceleb: a folder of .txt files, one per utterance: lines "Identity : id00012", "Reference : YouTube id",
  then rows "FRAME X Y W H" at 25 frames per second. Boxes are fractions of the image (VoxCeleb2). Those of
  VoxCeleb1 are pixels of an image of unknown size, and are left out.
- celebvhq: celebvhq_info.json, {"clips": {name: {"ytb_id", "duration": {"start_sec", "end_sec"}, "bbox":
  {"top", "bottom", "left", "right"}}}} with boxes as fractions.
- talkinghead: rows "name, H, W, start, end, left, top, right, bottom". Assumed: name is the YouTube id, '_'
  and the number of a piece of one minute, which begins with the first key frame of its minute; start and end
  are frames of that piece, boxes pixels of an HxW image. A file with ids alone stands for the whole videos.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import UserError, explain_os_error
from dnnlib.video import natural
from preprocessing.from_videos.work_folder import item_name

Box = tuple[float, float, float, float]  # left, top, right, bottom

_VIDEO_ID = re.compile(r'[A-Za-z0-9_-]{5,64}')  # it becomes a file name and part of an address
_VOXCELEB_FPS = 25.0
_PIECE_SEC = 60.0  # of TalkingHead-1KH


@dataclasses.dataclass(frozen=True)
class Listed:
    """A clip of a public list."""

    name: str  # unique in the list
    video: str  # YouTube id
    start_sec: float | None = None  # none = from the beginning, to the end
    end_sec: float | None = None
    frames: tuple[int, int] | None = None  # [first, end) counted from the first key frame after start_sec
    box: Box | None = None  # fractions of the image
    speaker: str | None = None


def read_list(kind: str, path: str) -> list[Listed]:
    """Reads a public clip list.

    Args:
        kind: a key of LISTS.
        path: its file, or its folder for voxceleb.

    Returns:
        the clips in natural order of their names.

    Raises:
        UserError: if it is missing or empty, or a part of it is invalid.
    """
    read_rows, parse, layout = LISTS[kind]
    names: dict[str, Listed] = {}
    where = path
    try:
        for where, row in read_rows(Path(path)):  # noqa: B007 (an error names the place)
            clip = parse(row)
            name = item_name(clip.name)
            if not _VIDEO_ID.fullmatch(clip.video):
                raise ValueError(f'{clip.video!r} is not the id of a YouTube video')
            if name in names:
                raise ValueError(f'the clip {clip.name} appears twice')
            names[name] = dataclasses.replace(clip, name=name)
    except OSError as err:
        raise UserError(f'cannot read the list: {explain_os_error(err, path)}') from err
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as err:
        raise UserError(f'{where} is not {layout}: {err}') from err
    if not names:
        raise UserError(f'{path} holds no clips of a {kind} list; see docs/data.md for its layout')
    return [names[name] for name in sorted(names, key=natural)]


def _voxceleb_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_dir():
        raise NotADirectoryError(None, 'not a folder; a voxceleb list is the folder of its .txt files')
    for file in path.rglob('*.txt'):
        yield str(file), (file.relative_to(path).with_suffix('').as_posix(), file.read_text(errors='replace'))


def _voxceleb(row: tuple[str, str]) -> Listed:
    name, text = row
    lines = [line for line in text.splitlines() if line.strip()]
    pairs = [line.partition(':') for line in lines if ':' in line]
    fields = {key.strip().lower(): value.strip() for key, _, value in pairs}
    rows = [line.split()[:5] for line in lines if ':' not in line and line.split()[0].upper() != 'FRAME']
    frame, x, y, width, height = np.array(rows, np.float64).reshape(-1, 5).T
    box = (x.min(), y.min(), (x + width).max(), (y + height).max())
    return Listed(
        name=name,
        video=fields['reference'],
        start_sec=float(frame.min() / _VOXCELEB_FPS),
        end_sec=float((frame.max() + 1) / _VOXCELEB_FPS),
        box=tuple(map(float, box)) if max(box) <= 2 else None,  # fractions may stand out a little
        speaker=fields.get('identity'),
    )


def _celebvhq_rows(path: Path) -> Iterator[tuple[str, Any]]:
    yield from ((str(path), row) for row in json.loads(path.read_bytes())['clips'].items())


def _celebvhq(row: tuple[str, Any]) -> Listed:
    name, clip = row
    times, box = clip['duration'], clip['bbox']
    return Listed(
        name=name,
        video=clip['ytb_id'],
        start_sec=float(times['start_sec']),
        end_sec=float(times['end_sec']),
        box=tuple(float(box[side]) for side in ('left', 'top', 'right', 'bottom')),
    )


def _talkinghead_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(path.read_text(errors='replace').splitlines(), 1):
        if line.strip():
            yield f'line {number} of {path}', [field.strip() for field in line.split(',')]


def _talkinghead(row: list[str]) -> Listed:
    name, *numbers = row
    if not numbers:
        return Listed(name=name, video=name)
    height, width, start, end, left, top, right, bottom = map(int, numbers)
    video, _, piece = name.rpartition('_')
    return Listed(
        name=f'{name}_S{start}_E{end}_L{left}_T{top}_R{right}_B{bottom}',
        video=video,
        start_sec=int(piece) * _PIECE_SEC,
        frames=(start, end),
        box=(left / width, top / height, right / width, bottom / height),
    )


# kind -> how to split a list into rows, each with its place; how to read a row; what it should be
LISTS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Any]]], Callable[[Any], Listed], str]] = {
    'voxceleb': (
        _voxceleb_rows,
        _voxceleb,
        'a file of VoxCeleb2, with a line "Reference : id" and rows "FRAME X Y W H"',
    ),
    'celebvhq': (
        _celebvhq_rows,
        _celebvhq,
        'a CelebV-HQ list, {"clips": {name: {"ytb_id", "duration", "bbox"}}}',
    ),
    'talkinghead': (
        _talkinghead_rows,
        _talkinghead,
        'an id alone, or "id_piece, H, W, start, end, left, top, right, bottom"',
    ),
}
