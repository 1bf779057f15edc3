"""Records of items, in a folder named by what they are records of: cache, resumption and sharing in one.

STORE/KEY/chunk-NNNNNN.npz holds the records of 16 neighbouring items, KEY/key.json the key for people. A file
appears complete or not at all, and a key always gives the same records; so runs that use it, one after
another or at the same time, share their work and cannot harm each other.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnnlib.util import UserError, atomic_write
from metrics.records.digests import json_digest
from torch_utils import distributed as dist

Record = dict[str, np.ndarray] | str  # named arrays of numbers, or the reason of a failure

CHUNK = 16  # items of a file
_VERSION = 1  # of the files; part of the key
_INDEX = 'index'  # entry of a file: JSON {"items": n, "failures": {place in the chunk: reason}}
_log = logging.getLogger(__name__)


class Task(NamedTuple):
    """Records that are wanted."""

    key: Mapping[str, Any]  # plain JSON that describes them exactly: items, network, options
    total: int  # items, from 0 on; a larger total adds to the same records


def collect(
    store: Path,
    tasks: Sequence[Task],
    compute: Callable[[int, Sequence[int]], Sequence[Record]],
    progress: Callable[[int], object] = lambda count: None,
) -> list[list[Record]]:
    """Returns the records of each task; those that the store lacks are computed and added to it.

    Item by item all missing records are computed together, because an item is expensive. Chunk k is the work
    of process k % world_size. Records reach the other processes by message, so that nothing depends on a
    shared file system; without one, each machine keeps what it computed itself.

    Args:
        store: folder of all keys; made when missing.
        tasks: what is wanted; tasks of equal keys share their records.
        compute: maps (item, numbers of tasks) to one record for each of these tasks. When it raises, what was
            computed before is kept.
        progress: gets the number of records finished since its last call: at once what the store holds, then
            item by item, in the end those of other processes.

    Raises:
        UserError: when processes see different keys.
    """
    _check_keys(tasks)
    folders = [open_folder(store, task.key) for task in tasks]
    totals = {
        folder: max(t.total for t, f in zip(tasks, folders, strict=True) if f == folder) for folder in folders
    }
    columns = [
        {f: _Chunk(f, start, min(CHUNK, total - start)) for f, total in totals.items() if start < total}
        for start in range(0, max(totals.values(), default=0), CHUNK)
    ]
    mine = columns[dist.rank() :: dist.world_size()]
    done = [{folder: chunk.load(warn=True) for folder, chunk in column.items()} for column in mine]
    known = sum(len(records) for column in done for records in column.values())
    progress(known)
    for column, records in zip(mine, done, strict=True):
        _complete(column, records, lambda i, wanted: compute(i, [folders.index(f) for f in wanted]), progress)
    # by name: the folders of machines without a shared file system may differ
    parts = dist.gather_objects([{folder.name: r for folder, r in records.items()} for records in done])
    ours = sum(chunk.size for column in mine for chunk in column.values())
    progress(sum(totals.values()) - ours)
    columns_of_all = [parts[k % len(parts)][k // len(parts)] for k in range(len(columns))]
    return [
        [record for column in columns_of_all for record in column.get(folder.name, ())][: task.total]
        for task, folder in zip(tasks, folders, strict=True)
    ]


def _check_keys(tasks: Sequence[Task]) -> None:
    """Refuses processes that see different things: their records would not belong together."""
    everywhere = dist.gather_objects([dict(task.key) for task in tasks])
    for rank, keys in enumerate(everywhere):
        for ours, theirs in zip(everywhere[0], keys, strict=True):
            differ = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
            if differ:
                raise UserError(
                    f'processes 0 and {rank} differ in {", ".join(differ)}: they need the same code, data, '
                    'networks and version of ffmpeg'
                )


def open_folder(store: Path, key: Mapping[str, Any]) -> Path:
    """Returns the folder of a key, made when missing."""
    folder = Path(store) / json_digest({'version': _VERSION, 'key': key})[:32]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'key.json').exists():
        with atomic_write(folder / 'key.json', 'w') as file:
            json.dump(key, file, indent=2)
    return folder


def _complete(
    column: Mapping[Path, '_Chunk'],
    done: dict[Path, list[Record]],
    compute: Callable[[int, Sequence[Path]], Sequence[Record]],
    progress: Callable[[int], object],
) -> None:
    """Adds the missing records of the same items to `done`, one list for each folder, and to the files."""
    for folder, chunk in column.items():
        if len(done[folder]) < chunk.size:
            more = chunk.load(warn=False)[len(done[folder]) :]  # by another run, meanwhile
            done[folder] += more
            progress(len(more))
    try:
        for place in range(CHUNK):
            wanted = [f for f, chunk in column.items() if len(done[f]) == place < chunk.size]
            if wanted:
                records = compute(column[wanted[0]].start + place, wanted)
                for folder, record in zip(wanted, records, strict=True):
                    done[folder].append(_plain(record))
                progress(len(wanted))
    finally:
        for folder, chunk in column.items():
            chunk.save(done[folder])


def _plain(record: Record) -> Record:
    """Copies a record: views of large arrays would keep these in memory."""
    if isinstance(record, str):
        return record
    return {name: np.array(value) for name, value in record.items()}


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Neighbouring items and their file, which may hold fewer or more of them, from the first on."""

    folder: Path
    start: int  # first item
    size: int  # number of items that are wanted

    @property
    def path(self) -> Path:
        return self.folder / f'chunk-{self.start // CHUNK:06d}.npz'

    def load(self, warn: bool) -> list[Record]:
        """Returns the first records, at most `size`; none of a corrupted file."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                index = json.loads(str(file[_INDEX]))
                names: list[list[str]] = [[] for _ in range(index['items'])]
                for name in file.files:
                    if name != _INDEX:
                        names[int(name.partition('/')[0])].append(name)
                return [
                    index['failures'].get(str(i)) or {name.partition('/')[2]: file[name] for name in names[i]}
                    for i in range(min(self.size, index['items']))
                ]
        except FileNotFoundError:
            return []
        except Exception as err:  # corrupted files make numpy and zipfile raise a dozen unrelated types
            if warn:
                _log.warning('%s is corrupted (%s); its records are computed again', self.path, err)
            return []

    def save(self, records: Sequence[Record]) -> None:
        """Writes records, unless the file has as many already."""
        if not records or len(self.load(warn=False)) >= len(records):
            return
        failures = {i: record for i, record in enumerate(records) if isinstance(record, str)}
        arrays = {
            f'{i}/{name}': value
            for i, record in enumerate(records)
            if i not in failures
            for name, value in record.items()
        }
        arrays[_INDEX] = np.array(json.dumps({'items': len(records), 'failures': failures}))
        with atomic_write(self.path) as file:
            np.savez(file, **arrays)
