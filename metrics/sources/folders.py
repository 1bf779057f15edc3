"""Clips of a folder of videos and of folders of pictures."""

import collections
import contextlib
import functools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from dnnlib.util import DataError, UserError
from dnnlib.video import (
    IMAGE_TYPES,
    VIDEO_TYPES,
    ffmpeg_version,
    find_clips,
    is_system_trouble,
    natural,
    video_frames,
)
from metrics.records.digests import files_digest
from metrics.sources.clip_source import (
    ClipError,
    checked,
    failures_of_content,
    nth_clip,
    window_start,
)
from training.data.files import FORMAT, decode_image, read_index

_log = logging.getLogger(__name__)

_PROBED = 9  # clips of a folder that vote on its size
_TRUTH = ('.depth', '.normal', '.mask')  # pictures beside the frames of synthetic data: NAME.depth.png


class Folder:
    """What a folder holds: video files and folders of pictures, found at any depth."""

    def __init__(self, path: str | Path) -> None:
        """Looks for clips.

        Raises:
            UserError: when there are none, or none can be read.
        """
        self.root = Path(path)
        if not self.root.is_dir():
            raise UserError(f'{path} is not a folder; name one that holds videos or folders of pictures')
        found = _without_depth([p for p in find_clips(self.root) if not p.name.startswith('.')])
        self.paths = sorted(found, key=lambda p: natural(self.name(p)))
        if not self.paths:
            types = ', '.join((*VIDEO_TYPES, *IMAGE_TYPES))
            raise UserError(f'{path} holds no videos and no folders of pictures ({types})')
        self.has_videos = any(not p.is_dir() for p in self.paths)
        self.has_pictures = any(p.is_dir() for p in self.paths)
        self.size = self._common_size()
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum of the names and contents of all clips."""
        files = [f for p in self.paths for f in (_picture_files(p) if p.is_dir() else [p])]
        return files_digest(self.root, files)

    @functools.cached_property
    def fps(self) -> float | None:
        """Frames per second as the folder's dataset.json says; None without one."""
        return read_index(str(self.root)).fps if is_dataset(self.root) else None

    def name(self, path: Path) -> str:
        """Returns the name of a clip."""
        return path.relative_to(self.root).as_posix()

    def num_frames(self, index: int) -> int:
        """Counts the frames of a clip, once.

        Raises:
            DataError: when it cannot be decoded.
        """
        if index not in self._counts:
            path = self.paths[index]
            self._counts[index] = (
                len(_picture_files(path)) if path.is_dir() else sum(1 for _ in video_frames(path))
            )
        return self._counts[index]

    def _common_size(self) -> int:
        """Returns the most frequent side of the first square clips that can be read."""
        sizes: collections.Counter[int] = collections.Counter()
        odd = ''
        for path in self.paths:
            width, height = _clip_size(path)
            if width and width == height:
                sizes[width] += 1
            elif width:
                odd = f'; {self.name(path)} is {width}x{height}, not square'
            if sizes.total() == _PROBED:
                break
        if not sizes:
            raise UserError(
                f'none of the {len(self.paths)} clips in {self.root} is a readable square video{odd}'
            )
        return sizes.most_common(1)[0][0]


class FolderClips:
    """Clips of a folder.

    Without a seed: the first frames of each, in natural order of their names (generated clips). With a seed:
    as DatasetClips, random windows in a random order (real clips). `size` is that of most of the first clips;
    others are failures.
    """

    def __init__(
        self, folder: str | Path | Folder, frames: int, seed: int | None = None, count: int | None = None
    ) -> None:
        """Looks for clips.

        Args:
            folder: where; one that was looked through before can be used again.
            frames: of a clip.
            seed: see above.
            count: number of items; None = as many as there are clips. Without a seed there are no more.

        Raises:
            UserError: see Folder.
        """
        self.folder = folder if isinstance(folder, Folder) else Folder(folder)
        self.frames, self.seed, self.size = frames, seed, self.folder.size
        self.count = count or len(self.folder)
        if seed is None:
            self.count = min(self.count, len(self.folder))

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See ClipSource; files count by name, size and content."""
        return {
            'source': 'folder',
            'files': self.folder.sha256,
            'distinct_clips': len(self.folder),
            'resolution': self.size,
            'frames': self.frames,
            'seed': self.seed,
            'decoder': ffmpeg_version() if self.folder.has_videos else None,
        }

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        """See ClipSource."""
        return self.folder.name(self._path(i))

    def group(self, i: int) -> int:
        """See ClipSource."""
        return self._place(i)[0]

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        index, repeat = self._place(i)
        path, start = self.folder.paths[index], 0
        with failures_of_content(path):
            if self.seed is not None:
                total = self.folder.num_frames(index)
                start = window_start(self.seed, index, repeat, total, self.frames)
            return checked(self._pictures(path, start) if path.is_dir() else self._video(path, start))

    def is_video(self, i: int) -> bool:
        """Tells whether item i comes out of a video file, that is, has been through a codec."""
        return not self._path(i).is_dir()

    def _place(self, i: int) -> tuple[int, int]:
        """Returns (clip, round) of item i."""
        return (i, 0) if self.seed is None else nth_clip(self.seed, len(self.folder), i)

    def _path(self, i: int) -> Path:
        return self.folder.paths[self._place(i)[0]]

    def _video(self, path: Path, start: int) -> np.ndarray:
        chosen: list[np.ndarray] = []
        total = 0
        with contextlib.closing(video_frames(path)) as frames:
            for total, (picture, _) in enumerate(frames, 1):
                if picture.shape[:2] != (self.size, self.size):
                    raise ClipError(self._other_size(picture.shape))
                if total > start:
                    chosen.append(picture)
                if len(chosen) == self.frames:
                    return np.stack(chosen)
        raise ClipError(f'has {total} frames, fewer than {self.frames}')

    def _pictures(self, path: Path, start: int) -> np.ndarray:
        files = _picture_files(path)
        window = files[start : start + self.frames]
        if len(window) < self.frames:
            raise ClipError(f'has {len(files)} frames, fewer than {self.frames}')
        try:
            return np.stack([decode_image(f.read_bytes(), f.name, self.size) for f in window])
        except OSError as err:
            raise DataError(f'a picture cannot be read ({err.strerror})') from err

    def _other_size(self, shape: Sequence[int]) -> str:
        what = 'not square' if shape[0] != shape[1] else f'unlike the other clips ({self.size}x{self.size})'
        return f'is {shape[1]}x{shape[0]}, {what}'


def is_dataset(path: str | Path) -> bool:
    """Tells whether a path is a data set of dataset_tool.py; files count, to be refused by who reads them."""
    path = Path(path)
    if not path.is_dir():
        return path.is_file()
    try:
        return json.loads((path / 'dataset.json').read_bytes()).get('format') == FORMAT
    except (FileNotFoundError, ValueError, AttributeError):  # other programs have files of this name, too
        return False


def _picture_files(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_TYPES and not p.name.startswith('.')]
    return sorted((p for p in files if Path(p.stem).suffix not in _TRUTH), key=lambda p: natural(p.name))


def _without_depth(paths: list[Path]) -> list[Path]:
    """Leaves out what gen_videos.py writes beside its clips: NAME-depth, NAME-normals and the grid."""
    clips = {p.with_suffix('') for p in paths}

    def is_extra(path: Path) -> bool:
        name = re.fullmatch('(.+)-(depth|normals)', path.stem)
        return path.with_name(name[1]) in clips if name else path.stem == 'grid'

    kept = [path for path in paths if not is_extra(path)]
    if len(kept) < len(paths):
        _log.warning('%d videos of depth, normals or all clips are skipped', len(paths) - len(kept))
    return kept


def _clip_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of the first frame, (0, 0) when it cannot be read."""
    try:
        if path.is_dir():
            with PIL.Image.open(_picture_files(path)[0]) as picture:
                return picture.size
        with contextlib.closing(video_frames(path)) as frames:
            height, width, _ = next(frames)[0].shape
            return width, height
    except Exception as err:  # broken files make Pillow raise a dozen unrelated types
        if is_system_trouble(err):
            raise
        return 0, 0  # later each has its reason
