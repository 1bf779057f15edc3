"""Finds videos, examines what is in them, and cuts out the clips of lists.

Every video is decoded once: how many frames it has, when they are shown, and whether it is whole.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import DataError, Skip, UserError, file_sha256
from dnnlib.video import (
    VIDEO_TYPES,
    cut_video,
    frame_times,
    is_cut_short,
    key_frame_after,
    natural,
    probe,
    video_frames,
)
from preprocessing.from_videos.lists import Box, Listed
from preprocessing.from_videos.stages import Item, Results, Stage, file_state
from preprocessing.from_videos.work_folder import WorkFolder, item_name

_SHORTFALL = 0.98  # a video that decodes to less than this fraction of its length was cut short
_SEEK_FRAMES = 50  # fewer frames before a clip are decoded


def find_sources(
    options: Any, work: WorkFolder, listed: Sequence[Listed], fetched: Results | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Finds what the stage `sources` works on: clips of a list, otherwise the videos of a folder.

    Args:
        options: source, workdir and dest are read.
        work: the work folder.
        listed: the list.
        fetched: results of the stage `fetch`, of the videos of the list.

    Returns:
        {name: origin}: path, file (as people know it), listed and id (of the video of a listed clip);
        {file: reason why it is skipped}.

    Raises:
        UserError: if the folder cannot be used, or the work folder is that of other videos, whose results
            took hours and would be removed.
    """
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    if fetched is None:
        paths, skipped = find_videos(options.source, without=(options.workdir, options.dest))
        for name, path in paths.items():
            file = path.relative_to(options.source).as_posix()
            found[name] = {'path': os.path.abspath(path), 'file': file, 'listed': None}
    for clip in listed:
        if clip.video in fetched.rejected:
            skipped[clip.name] = fetched.rejected[clip.video]
        else:
            entry = {'path': fetched[clip.video]['path'], 'file': clip.name, 'id': clip.video}
            found[clip.name] = entry | {'listed': dataclasses.asdict(clip)}
    old = work.items('sources')
    if old and not any(video in found for video in old):
        raise UserError(
            f'{work.root} holds results of other videos than {options.source}, such as {old[0]}, which would '
            'be removed; give another --workdir, or remove it first'
        )
    return found, skipped


def find_videos(source: str, without: Sequence[str] = ()) -> tuple[dict[str, Path], dict[str, str]]:
    """Finds the videos of a folder, at any depth, in natural order.

    Args:
        source: the folder.
        without: files and folders that do not count, such as the work folder, if they are in it.

    Returns:
        {id: path} and {relative path: why it is skipped}; an id is the relative path without suffix, '/' as
        '__', with a number at its end if two would be the same.

    Raises:
        UserError: if the folder is one of `without`.
        OSError: if it cannot be read.
    """
    found: dict[str, Path] = {}
    skipped = {}
    for name in sorted(_files(source, {os.path.realpath(path) for path in without}), key=natural):
        printed, suffix = name.encode(errors='backslashreplace').decode(), Path(name).suffix
        if printed != name:
            skipped[printed] = 'the name is not in UTF-8; rename the file'
        elif suffix.lower() not in VIDEO_TYPES:
            known = ', '.join(VIDEO_TYPES)
            skipped[name] = f'not a video: the suffix {suffix or "(none)"} is not one of {known}'
        else:
            base = item_name(name.removesuffix(suffix))
            names = itertools.chain([base], (f'{base}~{number}' for number in itertools.count(2)))
            found[next(video for video in names if video not in found)] = Path(source, name)
    return found, skipped


def _files(root: str, without: set[str]) -> Iterator[str]:
    """Yields the relative paths of the files below a folder that are not hidden."""

    def stop(err: OSError) -> None:
        raise err

    if os.path.realpath(root) in without:
        raise UserError(f'{root} cannot be both --source and --workdir; give another --workdir')
    for folder, folders, files in os.walk(root, onerror=stop):
        inside = [name for name in folders if not name.startswith('.')]
        paths = {name: Path(folder, name) for name in inside}
        folders[:] = [n for n, p in paths.items() if os.path.realpath(p) not in without and not _is_work(p)]
        for path in (Path(folder, name) for name in files if not name.startswith('.')):
            if path.is_file() and os.path.realpath(path) not in without:
                yield path.relative_to(root).as_posix()


def _is_work(folder: Path) -> bool:
    """Returns whether a folder is the work folder of another data set, whose images are no sources."""
    return (folder / '.lock').exists() and (folder / 'sources.json').exists()


def write_sources(work: WorkFolder, results: Results, skipped: dict[str, str]) -> None:
    """Writes sources.json: the videos that can be used, and the reasons why others cannot."""
    entries = [results[video] for video in results.accepted()]
    entries = [{k: v for k, v in entry.items() if k not in ('key', 'times')} for entry in entries]
    files = {name: item.origin['file'] for name, item in results.items.items()}
    rejected = skipped | {files[name]: reason for name, reason in results.rejected.items()}
    work.write('sources', {'videos': entries, 'rejected': rejected})


@Stage(
    'sources',
    per='video',
    needs=('fetch',),
    facts=('sha256', 'fps', 'frames', 'width', 'height', 'box', 'speaker'),
    state=lambda item, options: file_state(item.origin['path']),
    gather=write_sources,
)
def sources_stage(item: Item, options: Any) -> dict[str, Any]:
    """Examines a video, after cutting it out if it is a clip of a list; returns its entry of sources.json."""
    path, listed = Path(item.origin['path']), item.origin['listed']
    entry = {'speaker': None, 'start_sec': None, 'end_sec': None, 'box': None}
    if listed is not None:
        clip = Listed(**listed)
        entry |= {'listed': listed, **{k: listed[k] for k in ('speaker', 'start_sec', 'end_sec')}}
        if clip.box is not None or clip.frames is not None or clip.end_sec is not None or clip.start_sec:
            entry['files'] = [f'sources/{item.name}.mp4']
            dest = item.work.root / entry['files'][0]
            entry['box'] = cut_listed(path, clip, dest)
            path = dest
    try:
        return {**entry, **examine(path), 'id': item.name, 'path': str(path)}
    except DataError:
        for file in entry.get('files', []):
            Path(item.work.root, file).unlink()
        raise


def clip_frames(entry: Mapping[str, Any], first: int, count: int) -> Iterator[np.ndarray]:
    """Yields frames [first, first + count) of a video of sources.json, without decoding all before them."""
    skipped, start_sec = first, 0.0
    if first > _SEEK_FRAMES and entry['pace'] is not None:
        begin, step = entry['pace']
        skipped, start_sec = 0, begin + (first - 0.5) * step
    elif first > _SEEK_FRAMES and 'times' in entry:
        before, at = entry['times'][first - 1 : first + 1]
        if before < at:  # corrupted files have frames of the same time
            skipped, start_sec = 0, (before + at) / 2
    with contextlib.closing(video_frames(entry['path'], start_sec)) as frames:
        for frame, _ in itertools.islice(frames, skipped, skipped + count):
            yield frame


def keep_listed_face(
    arrays: Mapping[str, np.ndarray], result: Mapping[str, Any], box: Sequence[float]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Keeps those of the tracks of `tracks.track_video` whose face lies in the box that the list gives."""
    kept, tracks, rejected = {}, [], list(result['rejected'])
    for k, track in enumerate(result['tracks']):
        left, top, right, bottom = track['box']
        x, y = (left + right) / 2, (top + bottom) / 2
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            for name in ('landmarks', 'scores'):
                kept[f'{name}_{len(tracks)}'] = arrays[f'{name}_{k}']
            tracks.append(track)
        else:
            rejected.append({'shot': track['shot'], 'reason': 'another face than the listed one'})
    return kept, {**result, 'tracks': tracks, 'rejected': rejected}


def examine(path: Path) -> dict[str, Any]:
    """Decodes a whole video.

    Returns:
        sha256, fps, frames, width, height, and pace: [time of the first frame, time between frames] in
        seconds, none if frames are not evenly spaced; then also times: those of all frames, if the container
        has them.

    Raises:
        DataError: if it is empty, not a video, or cut short.
        OSError: if the machine failed, which is not the fault of the video.
    """
    stated = probe(path)
    seconds, errors = frame_times(path)
    frames, expected = len(seconds), stated.fps * stated.length_sec
    short = is_cut_short(errors) or frames < _SHORTFALL * expected - 1
    if frames < 1 or (errors and short):
        raise DataError(f'the video is cut short: {frames} of about {expected:.0f} frames can be decoded')
    pace = _pace(seconds)
    exact = re.match('mov|matroska', stated.container)  # others may not seek to an exact time
    times = {'times': seconds.tolist()} if pace is None and exact else {}
    facts = {'fps': stated.fps, 'width': stated.width, 'height': stated.height}
    return {**facts, 'sha256': file_sha256(path), 'frames': frames, 'pace': pace, **times}


def cut_listed(path: Path, clip: Listed, dest: Path) -> Box | None:
    """Cuts a listed clip out of its video: one encoding, visually lossless, from the fetched file.

    A wider region than the listed box is kept, because the crop of a head needs more than its face.

    Args:
        path: the fetched video.
        clip: what to cut.
        dest: mp4 file to write; its folder must exist.

    Returns:
        the listed box in pixels of what was written, none if the list has no box.

    Raises:
        Skip: if the range or the box lies outside the video.
        DataError: if the video cannot be decoded, or was cut short.
    """
    stated = probe(path)  # to decode all of an hour for each of its clips would take days
    start, end = clip.start_sec or 0.0, clip.end_sec
    if clip.frames is not None:
        start = key_frame_after(path, start)
        start, end = (start + (frame - 0.5) / stated.fps for frame in clip.frames)
    length = stated.length_sec or math.inf
    if start >= length or (end is not None and end <= start):
        raise Skip(f'the listed time {start:.2f} s to {end} s is not in the video of {length:.2f} s')
    region, box = (None, None) if clip.box is None else _regions(clip.box, stated.width, stated.height)
    cut_video(path, dest, max(start, 0.0), end, region)
    return box


def _pace(seconds: np.ndarray) -> list[float] | None:
    """Returns [first time, step] of evenly spaced times of frames, otherwise none."""
    step = float(seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
    even = seconds[0] + step * np.arange(len(seconds))
    return [float(seconds[0]), step] if step > 0 and np.abs(seconds - even).max() < 0.3 * step else None


def _regions(box: Box, width: int, height: int) -> tuple[tuple[int, int, int, int], Box]:
    """Returns the region to keep (width, height, left, top; even numbers) and the box in its pixels."""
    left, top, right, bottom = (v * s for v, s in zip(box, (width, height) * 2, strict=True))
    margin = max(right - left, bottom - top) / 2  # on each side: twice the box, as far as the image goes
    x0, y0 = max(0, int(left - margin)) // 2 * 2, max(0, int(top - margin)) // 2 * 2
    x1, y1 = min(width, int(right + margin)), min(height, int(bottom + margin))
    w, h = (x1 - x0) // 2 * 2, (y1 - y0) // 2 * 2
    if right <= left or bottom <= top or w < 16 or h < 16:
        raise Skip('the listed box is not in the image')
    return (w, h, x0, y0), (left - x0, top - y0, right - x0, bottom - y0)
