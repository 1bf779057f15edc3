"""Records of items, in a folder named by what they are records of: cache, resumption and sharing in one.

STORE/KEY/chunk-NNNNNN.npz holds the records of 16 neighbouring items, KEY/key.json the key for people. A file
appears complete or not at all, and a key always gives the same records; so runs that meet here, one after
another or at the same time, share their work and cannot harm each other.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import UserError, atomic_write, explain_os_error
from metrics.digests import json_digest
from torch_utils import distributed as dist

Record = dict[str, np.ndarray] | str  # named arrays of numbers, or the reason of a failure

CHUNK = 16  # items of a file
_VERSION = 1  # of the files; part of the key
_INDEX = 'index'  # entry of a file: JSON {"items": n, "failures": {place in the chunk: reason}}
_log = logging.getLogger(__name__)


def collect(
    store: Path,
    key: Mapping[str, Any],
    total: int,
    compute: Callable[[int], Record],
    progress: Callable[[int], object] = lambda count: None,
) -> list[Record]:
    """Returns the records of items 0 to total - 1; those that the store lacks are computed and added to it.

    Chunk k is the work of process k % world_size. Records reach the other processes by message, so that
    nothing depends on a shared file system; without one, each machine keeps what it computed itself.

    Args:
        store: folder of all keys; made when missing.
        key: plain JSON that says exactly what the records are: items, network that measures them, options.
            The number of items need not be in it: a larger total adds to the same records.
        total: number of items.
        compute: maps an item to its record. When it raises, what was computed before is kept.
        progress: gets the number of items finished since its last call, `total` all together: what the store
            holds at once, then one by one; those of other processes as their files appear, or in the end.

    Raises:
        UserError: when the store cannot be written.
    """
    folder = open_folder(store, key)
    chunks = [_Chunk(folder, start, min(CHUNK, total - start)) for start in range(0, total, CHUNK)]
    mine = chunks[dist.rank() :: dist.world_size()]
    others = [chunk for chunk in chunks if chunk not in mine]
    records = {chunk: chunk.load(warn=True) for chunk in mine}
    progress(sum(map(len, records.values())))
    for chunk in mine:
        if len(records[chunk]) < chunk.size:
            _complete(chunk, records[chunk], compute, progress)
            new = [chunk for chunk in others if chunk.path.exists()]
            progress(sum(chunk.size for chunk in new))
            others = [chunk for chunk in others if chunk not in new]
    parts = dist.gather_objects({chunk.start: done for chunk, done in records.items()})
    progress(sum(chunk.size for chunk in others))
    merged = {start: done for part in parts for start, done in part.items()}
    return [record for chunk in chunks for record in merged[chunk.start]]


def open_folder(store: Path, key: Mapping[str, Any]) -> Path:
    """Returns the folder of a key, made when missing.

    Raises:
        UserError: when it cannot be written.
    """
    folder = Path(store) / json_digest({'version': _VERSION, 'key': key})[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, folder)) from err
    if not (folder / 'key.json').exists():
        with atomic_write(folder / 'key.json', 'w') as file:
            json.dump(key, file, indent=2)
    return folder


def _complete(
    chunk: '_Chunk', done: list[Record], compute: Callable[[int], Record], progress: Callable[[int], object]
) -> None:
    """Adds the missing records of a chunk to `done` and to its file."""
    more = chunk.load(warn=False)[len(done) :]  # by another run, meanwhile
    done += more
    progress(len(more))
    try:
        while len(done) < chunk.size:
            done.append(_plain(compute(chunk.start + len(done))))
            progress(1)
    finally:
        chunk.save(done)


def _plain(record: Record) -> Record:
    """Copies a record: views of large arrays would keep these in memory."""
    if isinstance(record, str):
        return record
    arrays = {name: np.array(value) for name, value in record.items()}
    odd = [name for name, value in arrays.items() if value.dtype.kind not in 'fiub']
    if odd:
        raise ValueError(f'a record holds arrays of numbers; {", ".join(odd)} is something else')
    return arrays


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
        """Returns the first records, at most `size`; none of a damaged file."""
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
        except Exception as err:  # broken files make numpy and zipfile raise a dozen unrelated types
            if warn:
                _log.warning('%s is damaged (%s), its records are computed again', self.path, err)
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
