"""Runs a stage of the pipeline over its items: in processes, with a bar, and so that a kill costs nothing.

The result of item I of stage S is the file `W/S/I.json` in the work folder W. It carries a key, the SHA-256
of everything that it depends on (stage, version, options, keys of its inputs): a result with the same key is
kept, any other is made anew. Files and folders that an item writes besides are listed in its "files"; the
JSON file is removed before they are touched and written after them, so that a result never stands beside the
files of another. JSON is written with sorted keys and rounded numbers: a second run gives the same bytes. No
torch here.
"""

import collections
import contextlib
import functools
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.progress import follow
from dnnlib.util import DataError, UserError, atomic_write, explain_os_error, remove_temp_files
from training.data.archive import parallel

try:
    import fcntl
except ImportError:  # not on Windows: two runs in one work folder are then not noticed
    fcntl = None

_DIGITS = 6  # of numbers in results
_NUMBER = re.compile(r'\d+(?:\.\d+)?')
_LONGEST_NAME = 150  # bytes of an item: file systems take 255 bytes with the suffixes

Inputs = Mapping[str, Any] | Callable[[str], Any]  # item -> what its result depends on, JSON


class StageError(Exception):
    """An item cannot be used; the reason is recorded and the others go on.

    Args:
        reason: one sentence for the table of reasons.
        retry: whether the next run should try again (a network that failed), instead of remembering.
    """

    def __init__(self, reason: str, retry: bool = False) -> None:
        super().__init__(reason, retry)  # both, so that it can be sent between processes
        self.reason, self.retry = reason, retry

    def __str__(self) -> str:
        return self.reason


class Results(Mapping[str, dict[str, Any]]):
    """Results of a stage: item -> what its work returned (read from its file), rejected ones among them.

    Attributes:
        keys_of: {item: key}; what later stages depend on.
        rejected: {item: reason}.
    """

    def __init__(self, paths: dict[str, Path], heads: dict[str, tuple[str, str | None]]) -> None:
        self._paths = paths
        self.keys_of = {item: head[0] for item, head in heads.items()}
        self.rejected = {item: head[1] for item, head in heads.items() if head[1] is not None}

    def __getitem__(self, item: str) -> dict[str, Any]:
        return json.loads(self._paths[item].read_bytes())

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def accepted(self) -> list[str]:
        """Returns the items that were not rejected, in order."""
        return [item for item in self._paths if item not in self.rejected]


def run_stage(
    name: str,
    workdir: Path,
    items: Sequence[str],
    inputs: Inputs,
    work: Callable[[str], dict[str, Any]],
    workers: int = 1,
) -> Results:
    """Makes the results of all items that are missing or outdated.

    Args:
        name: of the stage, also of the folder of its results, from which those of other items are removed;
            '' puts results of the whole into the work folder itself.
        workdir: work folder; made when it is missing.
        items: names of the items, each fit for a file name (see `item_name`).
        inputs: what the result of an item depends on (version, options, keys of inputs).
        work: makes the result of an item, a JSON object; its "files" are those that it wrote, relative to
            the work folder. It runs in another process when workers > 1. A StageError rejects the item, a
            DataError too; a UserError stops the stage, any other error is a bug and gets out.
        workers: processes; 1 works in this one. Results do not depend on it.

    Returns:
        all results, in the order of items.
    """
    folder = Path(workdir, name)
    _make_folder(folder)
    remove_temp_files(folder)
    known = set(items)
    if name:
        for path in folder.glob('*.json'):
            if path.stem not in known:
                _remove(workdir, path)
    tasks = [(item, stage_key(name, item, inputs)) for item in items]
    heads = {item: _read_head(workdir, name, item, key) for item, key in tasks}
    todo = [task for task in tasks if heads[task[0]] is None]
    made = parallel(functools.partial(_make, name, workdir, work), todo, min(workers, len(todo)))
    shown = follow(made, len(todo), name or items[0], 'item')
    with contextlib.closing(made), contextlib.closing(shown):
        for (item, _), head in zip(todo, shown, strict=True):
            heads[item] = head
    return Results({item: result_path(workdir, name, item) for item, _ in tasks}, heads)


def read_stage(name: str, workdir: Path, items: Sequence[str], inputs: Inputs) -> Results:
    """Returns what `run_stage` left, without making anything.

    Raises:
        UserError: if results are missing or belong to other inputs.
    """
    heads = {item: _read_head(workdir, name, item, stage_key(name, item, inputs)) for item in items}
    old = [item for item, head in heads.items() if head is None]
    if old:
        raise UserError(
            f'stage {name} has no result, or one with other options, for {len(old)} of {len(items)} items '
            f'(such as {old[0]}); run it first: --until {name or old[0]}'
        )
    return Results({item: result_path(workdir, name, item) for item in items}, heads)


def stage_key(name: str, item: str, inputs: Inputs) -> str:
    """Returns the SHA-256 of everything that a result depends on, 64 hexadecimal digits."""
    depends = inputs(item) if callable(inputs) else inputs[item]
    text = json.dumps([name, item, depends], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def result_path(workdir: Path, name: str, item: str) -> Path:
    """Returns the file of the result of an item."""
    return Path(workdir, name, f'{item}.json')


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys and rounded numbers, whole or not at all."""
    data = json.dumps(rounded(value), sort_keys=True, allow_nan=False, separators=(',', ':'))
    with atomic_write(path) as file:
        file.write(data.encode() + b'\n')


def rounded(value: Any) -> Any:
    """Rounds all numbers to 6 digits after the point, in lists and objects of any depth; -0 becomes 0."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f'{value} in the result of a stage')
        return round(value, _DIGITS) + 0.0
    return value


def item_name(path: str) -> str:
    """Turns a path into a name of an item: one file name, not too long."""
    name = path.replace('/', '__').replace('\\', '__')
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        name = name.encode()[: _LONGEST_NAME - 17].decode(errors='ignore') + '-' + digest
    return name


def count_reasons(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Counts reasons, the most frequent first.

    Those that differ in numbers and in what follows a colon alone are one kind; a number that differs within
    a kind reads #.
    """
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for reason in reasons:
        short = reason.partition(': ')[0]
        groups[_NUMBER.sub('#', short)].append(short)
    kinds = [(_common(texts), len(texts)) for texts in groups.values()]
    return sorted(kinds, key=lambda kind: (-kind[1], kind[0]))


def _common(texts: Sequence[str]) -> str:
    """Returns a text for texts that differ in numbers alone; those numbers read #."""
    values = [set(column) for column in zip(*map(_NUMBER.findall, texts), strict=True)]
    numbers = iter(column.pop() if len(column) == 1 else '#' for column in values)
    return _NUMBER.sub(lambda match: next(numbers), texts[0])


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps a second run out of a work folder, which is made when it is missing.

    Raises:
        UserError: if another run works in it.
    """
    _make_folder(workdir)
    path = Path(workdir, '.lock')
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, 'w'))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise UserError(f'another run works in {workdir}; wait for it or choose another folder') from err
        except OSError as err:
            raise UserError(f'cannot lock {explain_os_error(err, path)}') from err
        yield


def _make(name: str, workdir: Path, work: Callable[[str], dict[str, Any]], task: tuple[str, str]) -> Any:
    item, key = task
    path = result_path(workdir, name, item)
    _remove(workdir, path)  # it would not fit the files that are about to be written
    try:
        result = work(item)
    except StageError as err:
        result = {'rejected': err.reason, **({'retry': True} if err.retry else {})}
    except DataError as err:
        result = {'rejected': str(err)}
    write_json(path, {**result, 'key': key})
    return key, _reason(result)


def _remove(workdir: Path, path: Path) -> None:
    """Removes a result and the files that it names."""
    try:
        files = json.loads(path.read_bytes()).get('files', [])
    except (OSError, ValueError, AttributeError):
        files = []
    path.unlink(missing_ok=True)
    for file in files:
        target = Path(workdir, file)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _reason(result: dict[str, Any]) -> str | None:
    reason = result.get('rejected')
    return reason if isinstance(reason, str) else None  # a table of rejected parts is no rejection


def _read_head(workdir: Path, name: str, item: str, key: str) -> tuple[str, str | None] | None:
    """Returns (key, reason of rejection) of a result that holds, otherwise None."""
    try:
        result = json.loads(result_path(workdir, name, item).read_bytes())
    except (OSError, ValueError):  # none, or not ours
        return None
    valid = isinstance(result, dict) and result.get('key') == key and not result.get('retry')
    if not valid or not all(Path(workdir, file).exists() for file in result.get('files', [])):
        return None
    return key, _reason(result)


def _make_folder(folder: Path) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, folder)) from err
