"""Signs of life of long work: a bar on a terminal, a line now and then in a log file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

_EVERY_SEC = 30  # between lines


@contextlib.contextmanager
def progress(
    total: int, label: str, unit: str, details: str = '', shown: bool = True
) -> Iterator[Callable[[int], object]]:
    """Shows on stderr how far work is; yields a function that adds finished items.

    Args:
        total: items in all.
        label: what is done, a few words.
        unit: name of one item.
        details: more words for the first line of a log file; a bar has no room for them.
        shown: whether this process shows anything.
    """
    if not shown or sys.stderr.isatty():
        with tqdm(total=total, desc=label, unit=unit, disable=not shown) as bar:
            yield bar.update
        return
    done, told = 0, time.monotonic()

    def tell(more: str = '') -> None:
        print(f'{label}{more}: {done}/{total} {unit}s', file=sys.stderr, flush=True)

    def count(items: int) -> None:
        nonlocal done, told
        done += items
        if time.monotonic() - told >= _EVERY_SEC and done < total:
            told = time.monotonic()
            tell()

    tell(details and f' ({details})')
    yield count
    tell()
