"""What all sources of clips share: the interface, checks of what comes out, seeded choices."""

from typing import Any, Protocol

import imageio_ffmpeg
import numpy as np

from dnnlib.util import UserError

_BLACK = 4  # a picture whose values are all below this is black; not 1: a codec may turn 0 into 1 to 3
_ORDER, _WINDOW = 101, 102  # second words of the seeds, keep streams apart


class ClipError(UserError):
    """There is no such clip; the message says why."""


class ClipSource(Protocol):
    """Clips by number."""

    size: int  # pixels of a side

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON that says exactly which frames come; the number of items is not part of it."""

    def __len__(self) -> int:
        """Returns the number of items."""

    def clip(self, i: int) -> np.ndarray:
        """Returns clip i, uint8 [T, H, W, 3], or raises ClipError."""


def checked(clip: np.ndarray, name: str) -> np.ndarray:
    """Returns a clip [T, H, W, 3] unless a frame of it is black.

    Raises:
        ClipError: says which.
    """
    dark = clip.reshape(len(clip), -1).max(axis=1) < _BLACK
    if dark.any():
        raise ClipError(f'{name}: frame {dark.argmax()} is black ({dark.sum()} of {len(clip)} are)')
    return clip


def too_short(name: str, frames: int, wanted: int) -> str:
    """Returns the reason of a failure."""
    return f'{name}: has {frames} frames, fewer than {wanted}'


def nth_clip(seed: int, clips: int, i: int) -> tuple[int, int]:
    """Returns (clip, round) of item i: each round is another random permutation of all clips."""
    round_, position = divmod(i, clips)
    return int(np.random.default_rng((seed, _ORDER, round_)).permutation(clips)[position]), round_


def window_rng(seed: int, *keys: int) -> np.random.Generator:
    """Returns the random numbers that choose a window of a clip."""
    return np.random.default_rng((seed, _WINDOW, *keys))


def decoder_version() -> str:
    """Returns the version of ffmpeg, on which the bits of videos depend."""
    return imageio_ffmpeg.get_ffmpeg_version()
