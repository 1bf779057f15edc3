"""What all writers of data sets share: work in processes, `dataset.json`, entries of a zip.

What is written depends on the input alone, not on the number of processes or the date. No torch here: the
processes start quickly without it.
"""

import collections
import contextlib
import json
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from dnnlib.util import UserError

A, B = TypeVar('A'), TypeVar('B')

_function: ContextVar[Callable[[Any], Any]] = ContextVar('function')  # of a worker process
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is made


def parallel(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """Maps in processes, keeps the order, and has at most two items per worker under way (bounded memory).

    After an error or an interrupt, or when the iterator is closed, what is under way is given up.

    Args:
        function: what is done; it is sent to each process once, so it may hold a table of all items.
        items: each is made when its turn comes.
        workers: processes; 1 works in this one.

    Raises:
        UserError: if a process dies.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context('spawn')  # forking a process that has threads is not safe
    reader, writer = context.Pipe(duplex=False)  # nothing is sent: workers see when our end is closed
    pool = ProcessPoolExecutor(workers, context, _start_worker, (reader, function))
    pending: collections.deque[Any] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(_call, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BaseException as error:
        writer.close()  # a worker may be in the middle of an hour's work
        if isinstance(error, BrokenProcessPool):
            told = 'a worker process died, perhaps for want of memory; try fewer --workers'
            raise UserError(told) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        writer.close()
        reader.close()


def dataset_json(resolution: int, fps: float, labels: list[Any], clips: dict[str, Any]) -> bytes:
    """Returns the bytes of a `dataset.json`; labels is a list of [frame name, 25 numbers]."""
    head = {'format': 'pv3d-dataset', 'version': 1, 'resolution': resolution, 'fps': fps}
    return json.dumps({**head, 'labels': labels, 'clips': clips}, allow_nan=False).encode()


def write_entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Writes one file into a zip, stored, with a fixed date: the same input gives the same zip."""
    entry = zipfile.ZipInfo(name, _ZIP_DATE)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _call(item: Any) -> Any:
    return _function.get()(item)


def _start_worker(parent: Connection, function: Callable[[Any], Any]) -> None:
    _function.set(function)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """Ends a worker whose parent gave up or was killed: it would write beside a new run."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv_bytes()
    os._exit(1)
