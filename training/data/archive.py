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
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from dnnlib.util import UserError

A, B = TypeVar('A'), TypeVar('B')

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is made


def parallel(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """Maps in processes and keeps the order; see `in_order` and `worker_pool`."""
    with worker_pool(workers) as pool:
        yield from in_order(pool, function, items, 2 * workers)


def in_order(
    executor: Executor | None, function: Callable[[A], B], items: Iterable[A], limit: int
) -> Iterator[B]:
    """Maps in an executor, keeps the order, and has at most `limit` items under way (bounded memory).

    Args:
        executor: where the work is done; none = in this process, one item at a time.
        function: sent with each item, so it should be small.
        items: each is made when its turn comes.
        limit: a few for each worker.
    """
    if executor is None:
        yield from map(function, items)
        return
    pending: collections.deque[Future[B]] = collections.deque()
    for item in items:
        pending.append(executor.submit(function, item))
        if len(pending) >= limit:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    """Opens a pool of processes; none for one worker, which is this process.

    After an error or an interrupt in the block what is under way is given up.

    Raises:
        UserError: if a process dies.
    """
    if workers <= 1:
        yield None
        return
    context = multiprocessing.get_context('spawn')  # forking a process that has threads is not safe
    reader, writer = context.Pipe(duplex=False)  # nothing is sent: workers see when our end is closed
    pool = ProcessPoolExecutor(workers, context, _start_worker, (reader,))
    try:
        yield pool
    except BaseException as error:
        writer.close()  # a worker may be in the middle of an hour's work
        if isinstance(error, BrokenProcessPool):
            raise UserError('a worker process died, maybe out of memory; use fewer --workers') from error
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


def _start_worker(parent: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """Ends a worker whose parent gave up or was killed: it would write beside a new run."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv_bytes()
    os._exit(1)
