"""What all sources of items share: the interface, checks of what comes out, seeded choices, saving."""

import abc
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dnnlib.util import DataError, Skip
from dnnlib.video import is_system_error
from metrics.records.store import CHUNK
from torch_utils import distributed as dist

Progress = Callable[[int], object]  # gets the number of items that are done

_BLACK = 4  # an image whose values are all below this is black; not 1: a codec may turn 0 into 1 to 3
_ORDER, _WINDOW = 101, 102  # second words of the seeds, keep streams apart


class Source(abc.ABC):
    """Items by number: clips, uint8 [T, H, W, 3], or MultiViews.

    An item depends neither on how many are asked for nor on the process that asks; nothing is dropped or
    replaced in silence.
    """

    size: int  # pixels of a side of the images
    count: int  # of items
    identity: Mapping[str, Any]  # plain JSON that describes the items exactly, whatever their number

    def __len__(self) -> int:
        return self.count

    def group(self, i: int) -> int:
        """Returns the number of the video that item i is a part of; those of one are not independent."""
        return i

    def person(self, i: int) -> int:
        """Returns the number of the person in item i; where nobody knows, each video shows its own."""
        return self.group(i)

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """Returns what item i is called in reports of failures."""

    @abc.abstractmethod
    def item(self, i: int) -> Any:
        """Returns item i, or raises Skip with the reason; OSError where the machine failed."""


class Changed(Source):
    """The items of another source, changed one by one."""

    def __init__(
        self, source: Source, change: Callable[[Any, int], Any], facts: Mapping[str, Any], size: int = 0
    ) -> None:
        """Wraps a source.

        Args:
            source: of the items.
            change: maps (item, i) to the changed item.
            facts: plain JSON that describes the change.
            size: of the changed images; 0 = as before.
        """
        self.source, self.change, self.facts = source, change, facts
        self.size, self.count = size or source.size, len(source)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See Source."""
        return {**self.facts, 'of': self.source.identity}

    def name(self, i: int) -> str:
        """See Source."""
        return self.source.name(i)

    def group(self, i: int) -> int:
        """See Source."""
        return self.source.group(i)

    def person(self, i: int) -> int:
        """See Source."""
        return self.source.person(i)

    def item(self, i: int) -> Any:
        """See Source."""
        return self.change(self.source.item(i), i)


def blames_machine(err: BaseException) -> bool:
    """Returns whether an error lies with the machine at this moment, such as too many open files."""
    return is_system_error(err) or is_system_error(err.__cause__)


@contextlib.contextmanager
def skips_bad_content() -> Iterator[None]:
    """Turns data that cannot be decoded into Skip, unless the machine is to blame."""
    try:
        yield
    except (DataError, OSError) as err:
        if blames_machine(err):
            raise
        raise Skip(str(err)) from err


def checked(clip: np.ndarray) -> np.ndarray:
    """Returns a clip [T, H, W, 3] unless a frame of it is black.

    Raises:
        Skip: says which.
    """
    dark = clip.reshape(len(clip), -1).max(axis=1) < _BLACK
    if dark.any():
        raise Skip(f'frame {dark.argmax()} is black ({dark.sum()} of {len(clip)} are)')
    return clip


def window_start(seed: int, clip: int, round_: int, total: int, frames: int) -> int:
    """Chooses `frames` of the `total` frames of a clip: anywhere with equal probability.

    The windows of one clip in several rounds differ as long as it has others.

    Raises:
        Skip: when the clip is too short.
    """
    places = total - frames + 1
    if places < 1:
        raise Skip(f'has {total} frames, fewer than {frames}')
    order = np.random.default_rng((seed, _WINDOW, clip)).permutation(places)
    return int(order[round_ % places])


def nth_clip(seed: int, clips: int, i: int) -> tuple[int, int]:
    """Returns (clip, round) of item i: each round is another random permutation of all clips."""
    round_, position = divmod(i, clips)
    return int(np.random.default_rng((seed, _ORDER, round_)).permutation(clips)[position]), round_


def save_items(count: int, save: Callable[[int], object], progress: Progress) -> dict[int, str]:
    """Calls save(i) for all items below `count`, each in one of the processes.

    Returns:
        the reasons of those that were skipped, by item, in every process.
    """
    failures = {}
    for i in range(count):
        if i // CHUNK % dist.world_size() == dist.rank():
            try:
                save(i)
            except Skip as reason:
                failures[i] = str(reason)
            progress(1)
    return {i: reason for part in dist.gather_objects(failures) for i, reason in part.items()}
