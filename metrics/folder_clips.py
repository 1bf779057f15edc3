"""Clips of a folder of videos and of folders of pictures."""

import collections
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from dnnlib.util import UserError
from dnnlib.video import PICTURE_TYPES, VIDEO_TYPES, VideoError, find_clips, natural, video_frames
from metrics.clip_source import ClipError, checked, decoder_version, nth_clip, too_short, window_rng
from metrics.digests import files_digest
from training.dataset import decode_picture
from training.dataset_files import DataError

_PROBED = 9  # clips of a folder that vote on its size
_TRUTH = ('.depth', '.normal', '.mask')  # pictures beside the frames of synthetic data: NAME.depth.png


class FolderClips:
    """Clips of a folder: video files and folders of pictures, found at any depth.

    Without a seed: the first frames of each, in natural order of their names (generated clips). With a seed:
    as DatasetClips, random windows in a random order (real clips). `size` is that of most of the first clips;
    others are failures.
    """

    def __init__(
        self, path: str | Path, frames: int, seed: int | None = None, count: int | None = None
    ) -> None:
        """Looks for clips.

        Args:
            path: folder.
            frames: of a clip.
            seed: see above.
            count: number of items; None = as many as there are clips. Without a seed there are no more.

        Raises:
            UserError: when there are none, or none can be read.
        """
        self.root, self.frames, self.seed = Path(path), frames, seed
        if not self.root.is_dir():
            raise UserError(f'{path} is not a folder; name one that holds videos or folders of pictures')
        found = [p for p in find_clips(self.root) if not p.name.startswith('.')]
        self.paths = sorted(found, key=lambda p: natural(self._name(p)))
        if not self.paths:
            types = ', '.join((*VIDEO_TYPES, *PICTURE_TYPES))
            raise UserError(f'{path} holds no videos and no folders of pictures ({types})')
        self.count = count or len(self.paths)
        if seed is None:
            self.count = min(self.count, len(self.paths))
        self.size = self._common_size()

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See ClipSource; files count by name, size and content."""
        files = [f for p in self.paths for f in (_picture_files(p) if p.is_dir() else [p])]
        videos = any(not p.is_dir() for p in self.paths)
        return {
            'source': 'folder',
            'files': files_digest(self.root, files),
            'distinct_clips': len(self.paths),
            'resolution': self.size,
            'frames': self.frames,
            'seed': self.seed,
            'decoder': decoder_version() if videos else None,
        }

    def __len__(self) -> int:
        return self.count

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        index, rng = i, None
        if self.seed is not None:
            index, repeat = nth_clip(self.seed, len(self.paths), i)
            rng = window_rng(self.seed, index, repeat)
        path = self.paths[index]
        name = self._name(path)
        try:
            clip = self._pictures(path, rng) if path.is_dir() else self._video(path, rng)
        except (VideoError, DataError) as err:
            raise ClipError(f'{name}: {err}') from err
        return checked(clip, name)

    def is_video(self, i: int) -> bool:
        """Tells whether item i comes out of a video file, that is, has been through a codec."""
        index = i if self.seed is None else nth_clip(self.seed, len(self.paths), i)[0]
        return not self.paths[index].is_dir()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _video(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        """Decodes the first window, or one of all with equal probability while no more than two are kept."""
        window: collections.deque[np.ndarray] = collections.deque(maxlen=self.frames)
        chosen: list[np.ndarray] = []
        total = 0
        with contextlib.closing(video_frames(path)) as frames:
            for total, (picture, _) in enumerate(frames, 1):
                if picture.shape[:2] != (self.size, self.size):
                    raise ClipError(f'{self._name(path)}: {self._other_size(picture.shape)}')
                window.append(picture)
                place = total - self.frames  # of this window
                if place == 0 or (place > 0 and rng.integers(place + 1) == 0):
                    chosen = list(window)
                if chosen and rng is None:
                    break
        if not chosen:
            raise ClipError(too_short(self._name(path), total, self.frames))
        return np.stack(chosen)

    def _pictures(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        files = _picture_files(path)
        places = len(files) - self.frames + 1
        if places < 1:
            raise ClipError(too_short(self._name(path), len(files), self.frames))
        start = int(rng.integers(places)) if rng is not None else 0
        window = files[start : start + self.frames]
        try:
            return np.stack([decode_picture(f.read_bytes(), f.name, self.size) for f in window])
        except OSError as err:
            raise DataError(f'a picture cannot be read ({err.strerror})') from err

    def _other_size(self, shape: Sequence[int]) -> str:
        what = 'not square' if shape[0] != shape[1] else f'unlike the other clips ({self.size}x{self.size})'
        return f'is {shape[1]}x{shape[0]}, {what}'

    def _common_size(self) -> int:
        """Returns the most frequent side of the first square clips that can be read."""
        sizes: collections.Counter[int] = collections.Counter()
        odd = ''
        for path in self.paths:
            width, height = _clip_size(path)
            if width and width == height:
                sizes[width] += 1
            elif width:
                odd = f'; {self._name(path)} is {width}x{height}, not square'
            if sizes.total() == _PROBED:
                break
        if not sizes:
            raise UserError(
                f'none of the {len(self.paths)} clips in {self.root} is a readable square video{odd}'
            )
        return sizes.most_common(1)[0][0]


def _picture_files(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in PICTURE_TYPES and not p.name.startswith('.')]
    return sorted((p for p in files if Path(p.stem).suffix not in _TRUTH), key=lambda p: natural(p.name))


def _clip_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of the first frame, (0, 0) when it cannot be read."""
    try:
        if path.is_dir():
            with PIL.Image.open(_picture_files(path)[0]) as picture:
                return picture.size
        with contextlib.closing(video_frames(path)) as frames:
            height, width, _ = next(frames)[0].shape
            return width, height
    except Exception:  # broken files make Pillow raise a dozen unrelated types; later each has its reason
        return 0, 0
