"""What all sources of clips share: the interface, checks of what comes out, seeded choices."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dnnlib.util import DataError, UserError
from dnnlib.video import is_system_trouble

_BLACK = 4  # a picture whose values are all below this is black; not 1: a codec may turn 0 into 1 to 3
_ORDER, _WINDOW = 101, 102  # second words of the seeds, keep streams apart


class ClipError(UserError):
    """There is no such clip; the message is the reason alone, the source knows the name of the clip."""


class ClipSource(Protocol):
    """Clips by number."""

    size: int  # pixels of a side

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON that says exactly which frames come; the number of items is not part of it."""

    def __len__(self) -> int:
        """Returns the number of items."""

    def name(self, i: int) -> str:
        """Returns what clip i is called where failures are told."""

    def group(self, i: int) -> int:
        """Returns the number of the video that clip i is a part of; those of one are not independent."""

    def clip(self, i: int) -> np.ndarray:
        """Returns clip i, uint8 [T, H, W, 3], or raises ClipError; OSError where the machine failed."""


@contextlib.contextmanager
def failures_of_content(path: Path | str) -> Iterator[None]:
    """Turns data that cannot be decoded into ClipError, unless the machine is to blame.

    Raises:
        OSError, MemoryError: for trouble that may be gone the next time, such as too many open files.
    """
    try:
        yield
    except DataError as err:
        if is_system_trouble(err.__cause__):
            raise err.__cause__ from None
        raise ClipError(str(err)) from err


def checked(clip: np.ndarray) -> np.ndarray:
    """Returns a clip [T, H, W, 3] unless a frame of it is black.

    Raises:
        ClipError: says which.
    """
    dark = clip.reshape(len(clip), -1).max(axis=1) < _BLACK
    if dark.any():
        raise ClipError(f'frame {dark.argmax()} is black ({dark.sum()} of {len(clip)} are)')
    return clip


def window_start(seed: int, clip: int, round_: int, total: int, frames: int) -> int:
    """Chooses `frames` of the `total` frames of a clip: anywhere with equal probability.

    The windows of one clip in several rounds differ as long as it has others.

    Raises:
        ClipError: when the clip is too short.
    """
    places = total - frames + 1
    if places < 1:
        raise ClipError(f'has {total} frames, fewer than {frames}')
    order = np.random.default_rng((seed, _WINDOW, clip)).permutation(places)
    return int(order[round_ % places])


def nth_clip(seed: int, clips: int, i: int) -> tuple[int, int]:
    """Returns (clip, round) of item i: each round is another random permutation of all clips."""
    round_, position = divmod(i, clips)
    return int(np.random.default_rng((seed, _ORDER, round_)).permutation(clips)[position]), round_
