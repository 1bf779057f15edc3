"""Clips of a folder of videos and of folders of images."""

import collections
import contextlib
import functools
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from dnnlib.util import Skip, UserError
from dnnlib.video import IMAGE_TYPES, VIDEO_TYPES, ffmpeg_version, find_clips, natural, video_frames
from metrics.records.digests import files_digest
from metrics.sources.items import Source, blames_machine, checked, nth_clip, skips_bad_content, window_start
from training.data.files import FORMAT, decode_image, read_index

_log = logging.getLogger(__name__)

_PROBED = 9  # clips of a folder that vote on its size
_TRUTH = ('.depth', '.normal', '.mask')  # images beside the frames of synthetic data: NAME.depth.png


class Folder:
    """What a folder holds: video files and folders of images, found at any depth."""

    def __init__(self, path: str | Path) -> None:
        """Looks for clips.

        Raises:
            UserError: when there are no clips, or none can be read.
        """
        self.root = Path(path)
        found = _without_extras([p for p in find_clips(self.root) if not p.name.startswith('.')])
        self.paths = sorted(found, key=lambda p: natural(self.name(p)))
        if not self.paths:
            types = ', '.join((*VIDEO_TYPES, *IMAGE_TYPES))
            raise UserError(f'{path} is not a folder with videos or folders of images ({types})')
        self.has_videos = any(not p.is_dir() for p in self.paths)
        self.has_images = any(p.is_dir() for p in self.paths)
        self.size = self._common_size()
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum of the names and contents of all clips."""
        files = [f for p in self.paths for f in (_image_files(p) if p.is_dir() else [p])]
        return files_digest(self.root, files)

    @functools.cached_property
    def fps(self) -> float | None:
        """Frames per second of the folder's dataset.json; None without one."""
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
            frames = _image_files(path) if path.is_dir() else video_frames(path)
            self._counts[index] = sum(1 for _ in frames)
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


class FolderClips(Source):
    """Clips of a folder; `size` is that of most of the first ones, clips of another size are failures.

    Without a seed: the first frames of each, in natural order of their names (generated clips). With a seed:
    as DatasetClips, random windows in a random order (real clips).
    """

    def __init__(
        self, folder: str | Path | Folder, frames: int, seed: int | None = None, count: int | None = None
    ) -> None:
        """Looks for clips.

        Args:
            folder: its path, or one that was opened before.
            frames: of a clip.
            seed: see above.
            count: number of items; None = as many as there are clips, also the most without a seed.

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
        """See Source; files count by name, size and content."""
        return {
            'source': 'folder',
            'files': self.folder.sha256,
            'distinct_clips': len(self.folder),
            'resolution': self.size,
            'frames': self.frames,
            'seed': self.seed,
            'decoder': ffmpeg_version() if self.folder.has_videos else None,
        }

    def name(self, i: int) -> str:
        """See Source."""
        return self.folder.name(self._path(i))

    def group(self, i: int) -> int:
        """See Source."""
        return self._place(i)[0]

    def item(self, i: int) -> np.ndarray:
        """See Source."""
        index, repeat = self._place(i)
        path, start = self.folder.paths[index], 0
        with skips_bad_content():
            if self.seed is not None:
                total = self.folder.num_frames(index)
                start = window_start(self.seed, index, repeat, total, self.frames)
            window = self._images(path, start) if path.is_dir() else self._video(path, start)
        if len(window) < self.frames:
            raise Skip(f'has {start + len(window)} frames, fewer than {self.frames}')
        return checked(np.stack(window))

    def is_video(self, i: int) -> bool:
        """Returns whether item i comes from a video file, that is, has been through a codec."""
        return not self._path(i).is_dir()

    def _place(self, i: int) -> tuple[int, int]:
        """Returns (clip, round) of item i."""
        return (i, 0) if self.seed is None else nth_clip(self.seed, len(self.folder), i)

    def _path(self, i: int) -> Path:
        return self.folder.paths[self._place(i)[0]]

    def _video(self, path: Path, start: int) -> list[np.ndarray]:
        window: list[np.ndarray] = []
        with contextlib.closing(video_frames(path)) as frames:
            for number, (image, _) in enumerate(frames):
                height, width = image.shape[:2]
                if (height, width) != (self.size, self.size):
                    others = f'unlike the other clips ({self.size}x{self.size})'
                    raise Skip(f'is {width}x{height}, {"not square" if height != width else others}')
                if number >= start:
                    window.append(image)
                if len(window) == self.frames:
                    break
        return window

    def _images(self, path: Path, start: int) -> list[np.ndarray]:
        files = _image_files(path)[start : start + self.frames]
        return [decode_image(f.read_bytes(), f.name, self.size) for f in files]


def is_dataset(path: str | Path) -> bool:
    """Returns whether a path is a data set of dataset_tool.py; a file counts, its reader may refuse it."""
    path = Path(path)
    if not path.is_dir():
        return path.is_file()
    try:
        return json.loads((path / 'dataset.json').read_bytes()).get('format') == FORMAT
    except (FileNotFoundError, ValueError, AttributeError):  # other programs have such files, too
        return False


def _image_files(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_TYPES and not p.name.startswith('.')]
    return sorted((p for p in files if Path(p.stem).suffix not in _TRUTH), key=lambda p: natural(p.name))


def _without_extras(paths: list[Path]) -> list[Path]:
    """Leaves out what gen_videos.py writes beside its seedNNNN videos: their depth and the like, and grid."""
    known, generated = set(paths), {p.parent for p in paths if p.stem.startswith('seed')}

    def is_extra(path: Path) -> bool:
        name = re.fullmatch('(seed.+)-(raw|depth|normals|opacity)', path.stem)
        if name:
            return path.with_name(name[1] + path.suffix) in known
        return path.stem == 'grid' and path.parent in generated

    extra = [path for path in paths if is_extra(path)]
    if extra:
        _log.warning(
            'skipped, not clips but their depth, normals or grid: %s', ', '.join(p.name for p in extra)
        )
    return [path for path in paths if path not in extra]


def _clip_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of the first frame, (0, 0) when it cannot be read."""
    try:
        if path.is_dir():
            with PIL.Image.open(_image_files(path)[0]) as image:
                return image.size
        with contextlib.closing(video_frames(path)) as frames:
            height, width, _ = next(frames)[0].shape
            return width, height
    except Exception as err:  # corrupted files make Pillow raise a dozen unrelated types
        if blames_machine(err):
            raise
        return 0, 0  # its item gives the reason
