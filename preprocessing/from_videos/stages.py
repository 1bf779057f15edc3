"""The engine of `from-videos`: runs a stage over its items, in any executor, and resumes after a kill.

A stage is a function `(item, options) -> result` with the decorator `Stage`, beside its mathematics. The
result of item I of stage S is the file `W/S/I.json` in the work folder W (`W/S.json` of a stage over all
clips). It carries a key, the SHA-256 of everything that it depends on: a result with the same key is kept,
any other is made again. Files that an item writes besides are listed in its "files"; the JSON file is removed
before they are touched and written after them, so that a result never stands beside the files of another.
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

from dnnlib.progress import follow
from dnnlib.util import DataError, Skip, UserError, explain_os_error, remove_temp_files
from preprocessing.from_videos.work_folder import WorkFolder
from training.data.archive import in_order

_NUMBER = re.compile(r'\d+(?:\.\d+)?')

Work = Callable[['Item', Any], dict[str, Any]]  # a stage; its options are the declared ones alone
Pool = Callable[[int], contextlib.AbstractContextManager[Executor | None]]  # opens one for so many workers


class TryAgain(Skip):
    """An item gives nothing now; the next run tries again (a network that failed)."""


@dataclasses.dataclass(frozen=True)
class Item:
    """What a stage works on; sent to worker processes."""

    name: str
    work: WorkFolder
    # where it comes from: {'path', 'file', 'listed', 'id'} of a video, {'video', 'track'} of a clip,
    # {'clips': {name: origin}} of all clips
    origin: Mapping[str, Any]
    workers: int = 1  # processes that a stage over all clips may start

    @property
    def video(self) -> str:
        """The video of a clip, or the video itself."""
        return self.origin.get('video', self.name)


@dataclasses.dataclass(frozen=True)
class Stage:
    """The decorator that makes a stage of a function, and how the stage is run.

    For example: @Stage('verify', per='clip', needs=('embeddings',), options=('similarity', 'noisy')).
    """

    name: str
    per: Literal['id', 'video', 'clip', 'all']  # the kind of its items; ids are those of a public list
    needs: tuple[str, ...] = ()  # stages that run before and whose results it depends on
    options: tuple[str, ...] = ()  # options that it gets and depends on
    paths: tuple[str, ...] = ()  # paths among the options that it gets, absolute; their names do not matter
    version: int = 1  # counted up when the same input gives another result
    torch: bool = False  # computes with torch, with one thread: sums are the same on any machine
    here: bool = False  # one item after the other, in the process of the run
    facts: tuple[str, ...] = ()  # entries of its results that other stages depend on; none = all that made it
    state: Callable[[Item, Any], Any] | None = None  # of files outside the work folder that it reads
    # whether a result still fits the files outside the work folder that it is about
    holds: Callable[[Item, Any, dict[str, Any]], bool] | None = None
    # clips that begin in a video and its result: {name: origin}
    clips: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    # called after the last item, with what was skipped before the first
    gather: Callable[[WorkFolder, 'Results', dict[str, str]], None] | None = None
    note: Callable[['Results'], str] | None = None  # what came out beside the number of items

    def __call__(self, function: Work) -> Work:
        """Marks the function as this stage."""
        function.stage = self
        return function

    def file(self, item: str) -> str:
        """Returns the name of a result in the work folder, without its suffix."""
        return item if self.per == 'all' else f'{self.name}/{item}'


class Results(Mapping[str, dict[str, Any]]):
    """Results of a stage: item -> what it returned (read from its file), rejected ones among them.

    Attributes:
        stage: whose they are.
        items: {name: item}.
        keys_of: {name: key}.
        rejected: {name: reason}.
        parts: {name: reasons of rejected parts of it, as its result has them}.
    """

    def __init__(self, stage: Stage, items: Sequence[Item], heads: dict[str, tuple[str, Any]]) -> None:
        self.stage = stage
        self.items = {item.name: item for item in items}
        self.keys_of = {name: heads[name][0] for name in self.items}
        self.rejected = {name: heads[name][1] for name in self.items if isinstance(heads[name][1], str)}
        self.parts = {name: heads[name][1] for name in self.items if name not in self.rejected}

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.items[name].work.read(self.stage.file(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def accepted(self) -> list[str]:
        """Returns the items that were not rejected, in order."""
        return [name for name in self.items if name not in self.rejected]

    def reasons(self) -> list[str]:
        """Returns the reasons why items and parts of them were rejected."""
        reasons = list(self.rejected.values())
        for parts in self.parts.values():
            reasons += parts.values() if isinstance(parts, dict) else [part['reason'] for part in parts]
        return reasons


def run_stage(
    function: Work,
    work: WorkFolder,
    tasks: Sequence[tuple[Item, str]],
    options: Any,
    pool: Pool | None = None,
    workers: int = 1,
) -> Results:
    """Makes the results of all items that are missing or outdated, and removes those of other items.

    Args:
        function: the stage. When it raises Skip or DataError the item is rejected (a stage over all clips is
            stopped); a UserError stops the stage, any other error is a bug and gets out.
        work: where results are.
        tasks: (item, key of its result).
        options: of the stage.
        pool: opens an executor for a number of workers; none = the work is done in this process.
        workers: at most; results do not depend on it.

    Returns:
        all results, in the order of the tasks.
    """
    stage = function.stage
    if stage.per != 'all':
        _clean(stage, work, {item.name for item, _ in tasks})
    heads = {item.name: _read_head(stage, item, key, options) for item, key in tasks}
    todo = [task for task in tasks if heads[task[0].name] is None]
    workers = min(workers, len(todo))
    with pool(workers) if pool and todo else contextlib.nullcontext() as executor:
        made = in_order(executor, functools.partial(_make, function, options), todo, 2 * workers)
        shown = follow(made, len(todo), stage.name, 'item')
        with contextlib.closing(made), contextlib.closing(shown):
            heads.update((item.name, head) for (item, _), head in zip(todo, shown, strict=True))
    return Results(stage, [item for item, _ in tasks], heads)


def read_stage(function: Work, tasks: Sequence[tuple[Item, str]], options: Any) -> Results:
    """Returns what `run_stage` left, without making anything; what it would try again is rejected.

    Raises:
        UserError: if results are missing or belong to other inputs.
    """
    stage = function.stage
    heads = {item.name: _read_head(stage, item, key, options, again=False) for item, key in tasks}
    old = [name for name, head in heads.items() if head is None]
    if old:
        raise UserError(
            f'stage {stage.name} has no result, or one with other options, for {len(old)} of {len(tasks)} '
            f'items (such as {old[0]}); run it first: --until {stage.name}'
        )
    return Results(stage, [item for item, _ in tasks], heads)


def stage_key(stage: Stage, item: Item, needed: Any, options: Any) -> str:
    """Returns the SHA-256 of everything that a result depends on, 64 hexadecimal digits."""
    values = {name: getattr(options, name) for name in stage.options}
    state = stage.state(item, options) if stage.state else None
    depends = [stage.name, stage.version, item.name, item.origin, needed, values, state]
    return hashlib.sha256(json.dumps(depends, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_state(path: str | Path | None) -> Any:
    """Returns names, sizes and times of a file or folder: others when it has changed; nothing is read."""
    if path is None:
        return None
    path = Path(path)
    if not path.exists():
        return path.name
    files = sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]
    stats = [(p.relative_to(path.parent).as_posix(), p.stat()) for p in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def count_reasons(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Counts reasons, the most frequent first.

    Those that differ only in numbers and in what follows a colon are one kind; a number that differs within
    a kind reads #.
    """
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for reason in reasons:
        short = reason.partition(': ')[0]
        groups[_NUMBER.sub('#', short)].append(short)
    kinds = [(_common(texts), len(texts)) for texts in groups.values()]
    return sorted(kinds, key=lambda kind: (-kind[1], kind[0]))


def _common(texts: Sequence[str]) -> str:
    """Returns a text for texts that differ only in numbers; those numbers read #."""
    values = [set(column) for column in zip(*map(_NUMBER.findall, texts), strict=True)]
    numbers = iter(column.pop() if len(column) == 1 else '#' for column in values)
    return _NUMBER.sub(lambda match: next(numbers), texts[0])


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps a second run out of a work folder, which is made when it is missing.

    Raises:
        UserError: if another run works in it.
    """
    path = _make_folder(workdir) / '.lock'
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, 'w'))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise UserError(f'another run works in {workdir}; wait for it or choose another folder') from err
        except OSError as err:
            raise UserError(f'cannot lock {explain_os_error(err, path)}') from err
        yield


def _make(function: Work, options: Any, task: tuple[Item, str]) -> tuple[str, Any]:
    """Makes a result and returns its head; runs in a worker."""
    (item, key), stage = task, function.stage
    if stage.torch:
        import torch

        torch.set_num_threads(1)  # for good: other tasks of the same process may run beside this one
    _remove(stage, item.work, item.name)  # it would not fit the files that are about to be written
    try:
        result = function(item, options)
    except (Skip, DataError) as err:
        if stage.per == 'all':  # without it no later stage can run
            raise
        result = {'rejected': str(err)} | ({'retry': True} if isinstance(err, TryAgain) else {})
    item.work.write(stage.file(item.name), {**result, 'key': key})
    return key, result.get('rejected', [])


def _read_head(
    stage: Stage, item: Item, key: str, options: Any, again: bool = True
) -> tuple[str, Any] | None:
    """Returns (key, what was rejected) of a result that holds, otherwise None.

    Args:
        again: whether a result that is to be tried again does not hold.
    """
    try:
        result = item.work.read(stage.file(item.name))
    except UserError:  # not ours
        return None
    valid = result.get('key') == key and not (again and result.get('retry'))
    valid = valid and all(Path(item.work.root, file).exists() for file in result.get('files', []))
    if not valid or (stage.holds and not stage.holds(item, options, result)):
        return None
    return key, result.get('rejected', [])


def _clean(stage: Stage, work: WorkFolder, keep: Container[str]) -> None:
    """Removes temporary files, and the results of items that are not asked for any more."""
    remove_temp_files(_make_folder(work.root / stage.name))
    for name in work.items(stage.name):
        if name not in keep:
            _remove(stage, work, name)


def _remove(stage: Stage, work: WorkFolder, name: str) -> None:
    """Removes a result and the files that it names."""
    try:
        files = work.read(stage.file(name)).get('files', [])
    except UserError:
        files = []
    Path(work.root, stage.file(name) + '.json').unlink(missing_ok=True)
    for target in (work.root / file for file in files):
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, folder)) from err
    return folder
