"""Progress reporting of long work: a bar on a terminal, in a log file a line with the time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from dnnlib.util import format_time

_EVERY_SEC = 30  # between lines

T = TypeVar('T')


@contextlib.contextmanager
def progress(
    total: int, label: str, unit: str, details: str = '', shown: bool = True, after_sec: float = 0
) -> Iterator[Callable[[int], object]]:
    """Shows on stderr how far work is; yields a function that adds finished items.

    Args:
        total: items in all.
        label: what is done, a few words.
        unit: name of one item.
        details: more words for a first line of a log file, which is there only with them; short work without
            them writes no line at all.
        shown: whether this process shows anything.
        after_sec: a bar appears when the work takes longer.
    """
    if not shown or sys.stderr.isatty():
        with tqdm(total=total, desc=label, unit=unit, disable=not shown, delay=after_sec) as bar:
            yield bar.update
        return
    start = time.monotonic()
    done, reported, lines = 0, start, 0

    def report(more: str = '') -> None:
        nonlocal lines
        lines += 1
        left = (total - done) / done * (time.monotonic() - start) if done else 0
        more_left = f', {format_time(left)} left' if left else ''
        print(f'{label}{more}: {done}/{total} {unit}s{more_left}', file=sys.stderr, flush=True)

    def count(items: int) -> None:
        nonlocal done, reported
        done += items
        if time.monotonic() - reported >= _EVERY_SEC and done < total:
            reported = time.monotonic()
            report()

    if details:
        report(f' ({details})')
    yield count
    if lines:
        report()


def follow(items: Iterable[T], total: int, label: str, unit: str, shown: bool = True) -> Iterator[T]:
    """Yields items and shows how far they are, as `progress`."""
    with progress(total, label, unit, shown=shown) as count:
        for item in items:
            yield item
            count(1)
