"""Errors, files, logs and formatting in plain Python.

Everything that is written goes to a temporary file in the same folder, is synced, and is renamed, so that a
reader never meets half a file. Errors of a user are `UserError`s: one sentence with what was given, what is
allowed, what to do.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_TEMP_NAME = re.compile(r'^\..+\.[0-9a-f]{32}\.tmp$')  # of the temporary files of atomic_write

# of a full CPU or GPU; other states of cuDNN and cuBLAS are bugs
_OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|alloc_failed|unable to find an engine|cublas_status_not_initialized|"
    'cudnn_status_(not_initialized|internal_error|execution_failed)',
    re.IGNORECASE,
)
_ON_GPU = re.compile('cuda|cudnn|cublas|unable to find an engine', re.IGNORECASE)
_ALLOCATOR = 'PYTORCH_ALLOC_CONF=expandable_segments:True'  # blocks that grow leave fewer holes

_OS_ADVICE = {
    errno.ENOSPC: 'the disk is full; free some space or choose another folder',
    errno.EDQUOT: 'the disk quota is used up; free some space or choose another folder',
    errno.EFBIG: 'the file is larger than this file system or process may write; choose another folder',
    errno.EACCES: 'permission denied; choose a folder that you may write to, or change its permissions',
    errno.EPERM: 'operation not permitted; choose a folder that you may write to',
    errno.EROFS: 'the file system is read-only; choose another folder',
    errno.ENOENT: 'no such file or folder; check the path',
    errno.ENOTDIR: 'one folder of the path is a file; choose another path',
    errno.EISDIR: 'it is a folder, not a file; choose another path',
    errno.EEXIST: 'it exists already; choose another path',
    errno.EIO: 'the device reports an input/output error; check the disk',
}


class UserError(Exception):
    """An error that the user can correct; scripts print the message, one sentence, and exit."""


class ConfigError(UserError):
    """A configuration value that is not allowed; the message names it and what is allowed."""


class DataError(UserError):
    """A data set or video that cannot be used; the message names it, the reason, and what to do."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names it, the reason, and what to do."""


class Skip(Exception):
    """An item, such as a clip, gives nothing; the message is the reason alone, its owner knows the name."""


def is_out_of_memory(err: BaseException) -> bool:
    """Returns whether an error means that the memory of the CPU or of the GPU ran out.

    What PyTorch raises is known by its message: on the CPU it is a plain RuntimeError, and on a full GPU its
    libraries fail in several ways when they cannot get a workspace or start.
    """
    typical = isinstance(err, RuntimeError) and _OUT_OF_MEMORY.search(str(err))
    return isinstance(err, MemoryError) or bool(typical)


def memory_advice(err: BaseException, advice: str) -> str:
    """Returns one sentence about an error that is_out_of_memory knows: what was said, and what to do."""
    said = re.search(r'(cudnn|cublas)_status_\w+|unable to find an engine', str(err), re.IGNORECASE)
    found = f' ({said[0]} is how a full GPU often shows)' if said else ''
    more = f', and export {_ALLOCATOR}, which wastes less' if _ON_GPU.search(str(err)) else ''
    return f'out of memory{found}; {advice}{more}'


def usable_cores() -> int:
    """Returns how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def cache_folder() -> Path:
    """Returns where kernels, weights and records are kept: $PV3D_CACHE_DIR, or pv3d in the user's cache."""
    default = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'pv3d')
    try:
        return Path(os.environ.get('PV3D_CACHE_DIR') or default).expanduser()
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir(), f'pv3d-{os.getuid()}')


def explain_os_error(err: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """Returns one sentence about a failed file operation: which file, what is wrong, what to do.

    Args:
        err: the error.
        path: the file that the user knows of; by default the one that the error names.
    """
    name = path if path is not None else err.filename
    what = _OS_ADVICE.get(err.errno or 0, err.strerror or str(err))
    return f'{os.fspath(name)}: {what}' if name is not None else what


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = 'wb') -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that takes its place when the block ends without an error.

    After the block the data are on the disk (file and folder are synced). On any error the temporary file is
    removed and an older file of that name is left as it was; a killed process leaves only a file that
    `remove_temp_files` finds.

    Args:
        path: the file to write; its folder must exist. A symbolic link is followed.
        mode: 'wb' for bytes or 'w' for UTF-8 text.

    Raises:
        UserError: if the file cannot be written (full disk, no permission, ...).
    """
    target = Path(os.path.realpath(path))
    temp = target.with_name(f'.{target.name}.{uuid.uuid4().hex}.tmp')
    try:
        with open(temp, mode.replace('w', 'x'), encoding=None if 'b' in mode else 'utf-8') as file:
            with contextlib.suppress(OSError):  # not all file systems have locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `remove_temp_files` sees that it is used
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, target)
        _sync_folder(target.parent)
    except OSError as err:
        if err.filename not in (None, str(temp), temp):  # an error of the caller with another file
            raise
        raise UserError('cannot write ' + explain_os_error(err, path)) from err
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def remove_temp_files(folder: str | os.PathLike[str]) -> list[str]:
    """Deletes what killed writers left in `folder` and returns the names; files of living ones stay."""
    names = sorted(p.name for p in Path(folder).iterdir() if _TEMP_NAME.match(p.name))
    return [name for name in names if _removed(Path(folder, name))]


def _removed(path: Path) -> bool:
    """Deletes a temporary file unless its writer lives."""
    with contextlib.suppress(FileNotFoundError), open(path, 'rb') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # no locks here: nobody else may be writing into the folder
        path.unlink(missing_ok=True)
        return True
    return False


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the rename is still atomic
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Logger:
    """Context manager that copies everything printed to stdout into a log file, line by line.

    The file is appended to and flushed after each line, so that it survives a kill. An error that ends the
    block is written to the file with its traceback. When the file cannot be written any more, the program
    reports that once on stderr and continues.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._stdout = sys.stdout
        self._file: IO[str] | None = None

    def __enter__(self) -> 'Logger':
        # noqa because __exit__ closes it
        self._file = open(self._path, 'a', encoding='utf-8', errors='replace')  # noqa: SIM115
        self._stdout = sys.stdout
        sys.stdout = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout = self._stdout
        if err is not None and not (isinstance(err, SystemExit) and not err.code):
            self._log(''.join(traceback.format_exception(kind, err, trace)))
        self._close()

    def write(self, text: str) -> int:
        """Writes to stdout and to the file."""
        self._stdout.write(text)
        self._log(text)
        return len(text)

    def flush(self) -> None:
        """Flushes stdout."""
        self._stdout.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)  # encoding, isatty, fileno, ...

    def _log(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(text)
            if '\n' in text:
                self._file.flush()
        except OSError as err:
            self._close()
            print(f'log stopped: cannot write {explain_os_error(err, self._path)}', file=sys.stderr)

    def _close(self) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            if file is not None:
                file.close()


def format_time(sec: float) -> str:
    """Formats a duration: 5s, 1m 05s, 2h 03m 04s, 3d 04h 05m."""
    if not math.isfinite(sec):
        return 'unknown'
    minutes, s = divmod(int(round(max(sec, 0.0))), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f'{days}d {h:02d}h {m:02d}m'
    if hours:
        return f'{h}h {m:02d}m {s:02d}s'
    return f'{m}m {s:02d}s' if m else f'{s}s'


def format_count(count: float) -> str:
    """Formats a number with three significant digits and a unit: 999, 1.23k, 30.7M, 2.00G."""
    value, units = float(count), ['', 'k', 'M', 'G', 'T']
    if abs(value) < 1000:
        return f'{value:g}'
    while abs(value) >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f'{value:.{digits}f}{units[0]}'


def append_json_line(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Appends one JSON object as one line; numbers that JSON does not know (nan, inf) become null.

    A last line that a killed process left half-written is removed first.

    Raises:
        UserError: if the file cannot be written.
    """
    line = json.dumps(_finite(dict(record)), allow_nan=False).encode() + b'\n'
    try:
        with open(path, 'ab+') as file:
            size = file.tell()
            file.seek(max(size - 1, 0))
            if size and file.read(1) != b'\n':
                file.seek(0)
                file.truncate(file.read(size).rfind(b'\n') + 1)
            file.write(line)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, path)) from err


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
