"""What all writers of data sets share: work in processes, `dataset.json`, entries of a zip.

What is written depends on the input alone, not on the number of processes or the date. No torch here: the
processes start quickly without it.
"""

import collections
import json
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dnnlib.util import UserError

A, B = TypeVar('A'), TypeVar('B')

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is made


def parallel(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """Maps in processes, keeps the order, and has at most two items per worker under way (bounded memory).

    Args:
        function: what is done; its module is imported in each process.
        items: each is made when its turn comes.
        workers: processes; 1 works in this one.

    Raises:
        UserError: if a process dies.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context('spawn')  # forking a process that has threads is not safe
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    pending: collections.deque[Any] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError('a worker process died, perhaps for want of memory; try fewer --workers') from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or an interrupt, what has not started never does


def dataset_json(resolution: int, fps: float, labels: list[Any], clips: dict[str, Any]) -> bytes:
    """Returns the bytes of a `dataset.json`; labels is a list of [frame name, 25 numbers]."""
    head = {'format': 'pv3d-dataset', 'version': 1, 'resolution': resolution, 'fps': fps}
    return json.dumps({**head, 'labels': labels, 'clips': clips}, allow_nan=False).encode()


def write_entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Writes one file into a zip, stored, with a fixed date: the same input gives the same zip."""
    entry = zipfile.ZipInfo(name, _ZIP_DATE)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for work forever, and write beside a new run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
