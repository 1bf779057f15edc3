"""Which videos there are: those of a folder, or of the lists of VoxCeleb, CelebV-HQ and TalkingHead-1KH.

A list names YouTube videos, the time ranges and the boxes of its clips; `fetch.py` brings
them. Layouts of the lists, from what their authors publish:
- voxceleb: a folder of .txt files, one per utterance: lines "Identity : id00012", "Reference : YouTube id",
  then rows "FRAME X Y W H" at 25 frames per second. Boxes are fractions of the picture (VoxCeleb2). Those of
  VoxCeleb1 are pixels of a picture whose size is not told, and are left out.
- celebvhq: celebvhq_info.json, {"clips": {name: {"ytb_id", "duration": {"start_sec", "end_sec"}, "bbox":
  {"top", "bottom", "left", "right"}}}} with boxes as fractions.
- talkinghead: rows "name, H, W, start, end, left, top, right, bottom". Assumed: name is the YouTube id, '_'
  and the number of a piece of one minute, which begins with the first key frame of its minute; start and end
  are frames of that piece, boxes pixels of an HxW picture. A file with ids alone stands for the whole videos.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import DataError, UserError, explain_os_error, file_sha256
from dnnlib.video import VIDEO_TYPES, cut_video, frame_times, is_cut_short, key_frame_after, natural, probe
from preprocessing.from_videos.stages import StageError, item_name

Box = tuple[float, float, float, float]  # left, top, right, bottom

_VIDEO_ID = re.compile(r'[A-Za-z0-9_-]{5,64}')  # it becomes a file name and part of an address
_VOXCELEB_FPS = 25.0
_PIECE_SEC = 60.0  # of TalkingHead-1KH
_SHORTFALL = 0.98  # a video that decodes to less than this part of its length was cut short


@dataclasses.dataclass(frozen=True)
class Listed:
    """A clip of a public list."""

    name: str  # unique in the list
    video: str  # YouTube id
    start_sec: float | None = None  # none = from the beginning, to the end
    end_sec: float | None = None
    frames: tuple[int, int] | None = None  # [first, end) counted from the first key frame after start_sec
    box: Box | None = None  # fractions of the picture
    speaker: str | None = None


def find_videos(source: str, without: Sequence[str] = ()) -> tuple[dict[str, Path], dict[str, str]]:
    """Finds the videos of a folder, at any depth, in natural order.

    Args:
        source: the folder.
        without: files and folders that do not count, such as the work folder, if they are in it.

    Returns:
        {id: path} and {relative path: why it is passed over}; an id is the relative path without suffix, '/'
        as '__', with a number behind it where two would be the same.

    Raises:
        UserError: if there is no such folder, or it cannot be read.
    """
    root = Path(source)
    if not root.is_dir():
        raise UserError(f'{source} is not a folder; --source is the folder that holds the videos')
    found, passed = {}, {}
    for name in sorted(_files(source, {os.path.realpath(path) for path in without}), key=natural):
        try:
            name.encode()
        except UnicodeEncodeError:
            told = name.encode('utf-8', 'backslashreplace').decode()
            passed[told] = 'the name is not in UTF-8; rename the file'
            continue
        suffix = Path(name).suffix
        if suffix.lower() not in VIDEO_TYPES:
            passed[name] = f'no video: the suffix {suffix or "(none)"} is not one of {", ".join(VIDEO_TYPES)}'
            continue
        base = video = item_name(name.removesuffix(suffix))
        number = 1
        while video in found:
            number += 1
            video = f'{base}~{number}'
        found[video] = root / name
    return found, passed


def _files(root: str, without: set[str]) -> Iterator[str]:
    """Yields the relative paths of the files below a folder that are not hidden."""

    def stop(err: OSError) -> None:
        raise UserError('cannot read ' + explain_os_error(err)) from err

    if os.path.realpath(root) in without:
        raise UserError(f'{root} cannot be --source and --workdir at once; give another --workdir')
    for folder, folders, files in os.walk(root, onerror=stop):
        inside = [name for name in folders if not name.startswith('.')]
        folders[:] = [name for name in inside if os.path.realpath(Path(folder, name)) not in without]
        for path in (Path(folder, name) for name in files if not name.startswith('.')):
            if path.is_file() and os.path.realpath(path) not in without:
                yield path.relative_to(root).as_posix()


def examine(path: Path) -> dict[str, Any]:
    """Decodes a whole video.

    Returns:
        sha256, fps, frames, width, height, and pace: [time of the first frame, time between frames] in
        seconds where frames are evenly spaced, otherwise none, and then times: of all frames, where the
        container tells them.

    Raises:
        DataError: if it is empty, not a video, or cut short.
        OSError: if the machine could not do it, which says nothing of the video.
    """
    stated = probe(path)
    seconds, errors = frame_times(path)
    frames, expected = len(seconds), stated.fps * stated.length_sec
    short = is_cut_short(errors) or frames < _SHORTFALL * expected - 1
    if frames < 1 or (errors and short):
        raise DataError(f'the video is cut short: {frames} of about {expected:.0f} frames can be decoded')
    pace = _pace(seconds)
    told = pace is None and re.match('mov|matroska', stated.container)  # others may not find a time exactly
    times = {'times': seconds.tolist()} if told else {}
    facts = {'fps': stated.fps, 'width': stated.width, 'height': stated.height}
    return {**facts, 'sha256': file_sha256(path), 'frames': frames, 'pace': pace, **times}


def cut_listed(path: Path, clip: Listed, dest: Path) -> Box | None:
    """Cuts a listed clip out of its video: one encoding, visually lossless, from the fetched file.

    A wider region than the listed box is kept, since the crop of a head needs more than its face.

    Args:
        path: the fetched video.
        clip: what to cut.
        dest: mp4 file to write; its folder must exist.

    Returns:
        the listed box in pixels of what was written, none where the list has no box.

    Raises:
        StageError: if the range or the box lies outside the video.
        DataError: if the video cannot be decoded, or was cut short.
    """
    stated = probe(path)  # to decode all of an hour for each of its clips would take days
    start, end = clip.start_sec or 0.0, clip.end_sec
    if clip.frames is not None:
        start = key_frame_after(path, start)
        start, end = (start + (frame - 0.5) / stated.fps for frame in clip.frames)
    length = stated.length_sec or math.inf
    if start >= length or (end is not None and end <= start):
        raise StageError(f'the listed time {start:.2f} s to {end} s is not in the video of {length:.2f} s')
    region, box = (None, None) if clip.box is None else _regions(clip.box, stated.width, stated.height)
    cut_video(path, dest, max(start, 0.0), end, region)
    return box


def read_list(kind: str, path: str) -> list[Listed]:
    """Reads a public clip list.

    Args:
        kind: a key of LISTS.
        path: its file, or its folder for voxceleb.

    Returns:
        the clips in natural order of their names.

    Raises:
        UserError: if it is missing, holds nothing, or a part of it cannot be understood.
    """
    try:
        clips = list(LISTS[kind](Path(path)))
    except OSError as err:
        raise UserError(f'cannot read the list: {explain_os_error(err, path)}') from err
    if not clips:
        raise UserError(f'{path} holds no clips of a {kind} list; see docs/data.md for its layout')
    names: dict[str, Listed] = {}
    for clip in clips:
        if not _VIDEO_ID.fullmatch(clip.video):
            raise UserError(f'{path}: {clip.video!r} of {clip.name} is not the id of a YouTube video')
        name = item_name(clip.name)
        if names.setdefault(name, clip) is not clip:
            raise UserError(f'{path} names the clip {clip.name} twice')
    return [dataclasses.replace(names[name], name=name) for name in sorted(names, key=natural)]


def _voxceleb(path: Path) -> Iterator[Listed]:
    if not path.is_dir():
        raise UserError(f'{path} is not a folder; a voxceleb list is the folder with its .txt files')
    for file in path.rglob('*.txt'):
        fields, rows = {}, []
        for line in file.read_text(errors='replace').splitlines():
            if ':' in line:
                name, _, value = line.partition(':')
                fields[name.strip().lower()] = value.strip()
            elif line.strip() and not line.lstrip().upper().startswith('FRAME'):
                rows.append(line.split())
        try:
            numbers = [[float(value) for value in row[:5]] for row in rows]
            frames, boxes = [row[0] for row in numbers], [row[1:] for row in numbers]
            box = _union([(x, y, x + w, y + h) for x, y, w, h in boxes])
            video, first, last = fields['reference'], min(frames), max(frames)
        except (KeyError, ValueError) as err:
            raise UserError(
                f'{file} must have a line "Reference : id" and rows "FRAME X Y W H", as those of VoxCeleb2'
            ) from err
        yield Listed(
            name=file.relative_to(path).with_suffix('').as_posix(),
            video=video,
            start_sec=first / _VOXCELEB_FPS,
            end_sec=(last + 1) / _VOXCELEB_FPS,
            box=box if max(box) <= 2 else None,  # fractions may stand out a little
            speaker=fields.get('identity'),
        )


def _celebvhq(path: Path) -> Iterator[Listed]:
    try:
        table = json.loads(path.read_bytes())['clips']
        for name, clip in table.items():
            times, box = clip['duration'], clip['bbox']
            yield Listed(
                name=name,
                video=clip['ytb_id'],
                start_sec=float(times['start_sec']),
                end_sec=float(times['end_sec']),
                box=tuple(float(box[side]) for side in ('left', 'top', 'right', 'bottom')),
            )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise UserError(
            f'{path} is not a CelebV-HQ list, {{"clips": {{name: {{"ytb_id", "duration", "bbox"}}}}}}: {err}'
        ) from err


def _talkinghead(path: Path) -> Iterator[Listed]:
    for number, line in enumerate(path.read_text(errors='replace').splitlines(), 1):
        fields = [field.strip() for field in line.split(',')]
        if fields == ['']:
            continue
        if len(fields) == 1:
            yield Listed(name=fields[0], video=fields[0])
            continue
        try:
            height, width, start, end, left, top, right, bottom = (int(field) for field in fields[1:])
            video, _, piece = fields[0].rpartition('_')
            yield Listed(
                name=f'{fields[0]}_S{start}_E{end}_L{left}_T{top}_R{right}_B{bottom}',
                video=video,
                start_sec=int(piece) * _PIECE_SEC,
                frames=(start, end),
                box=(left / width, top / height, right / width, bottom / height),
            )
        except (ValueError, ZeroDivisionError) as err:
            what = 'an id alone, or "id_piece, H, W, start, end, left, top, right, bottom"'
            raise UserError(f'line {number} of {path} must be {what}') from err


LISTS: dict[str, Callable[[Path], Iterator[Listed]]] = {
    'voxceleb': _voxceleb,
    'celebvhq': _celebvhq,
    'talkinghead': _talkinghead,
}


def _pace(seconds: np.ndarray) -> list[float] | None:
    """Returns [first time, step] of evenly spaced times of frames, otherwise none."""
    step = float(seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
    even = seconds[0] + step * np.arange(len(seconds))
    return [float(seconds[0]), step] if step > 0 and np.abs(seconds - even).max() < 0.3 * step else None


def _union(boxes: list[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _regions(box: Box, width: int, height: int) -> tuple[tuple[int, int, int, int], Box]:
    """Returns the region to keep (width, height, left, top; even numbers) and the box in its pixels."""
    left, top, right, bottom = (v * s for v, s in zip(box, (width, height) * 2, strict=True))
    margin = (
        max(right - left, bottom - top) / 2
    )  # on each side: twice the box, where the picture goes that far
    x0, y0 = max(0, int(left - margin)) // 2 * 2, max(0, int(top - margin)) // 2 * 2
    x1, y1 = min(width, int(right + margin)), min(height, int(bottom + margin))
    w, h = (x1 - x0) // 2 * 2, (y1 - y0) // 2 * 2
    if right <= left or bottom <= top or w < 16 or h < 16:
        raise StageError('the listed box is not in the picture')
    return (w, h, x0, y0), (left - x0, top - y0, right - x0, bottom - y0)
