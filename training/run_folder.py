"""Choosing the folder of a run: the same command continues its unfinished run.

Another command gets a new folder. A run that is being trained is locked.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dnnlib.config import flatten, from_dict, to_dict
from dnnlib.provenance import session_facts
from dnnlib.util import ConfigError, UserError, atomic_write, explain_os_error
from training.config import TrainConfig

_OPTIONS = 'training_options.json'
_SESSION = 'session'  # in that file, beside the options: what the newest session ran
# Options that may change between two sessions of one run, because they do not change what is learned.
_FREE = ('total_nimg', 'output', 'workers', 'max_nonfinite')


def choose_run_dir(outdir: Path, config: TrainConfig, name: str, fresh: bool) -> tuple[Path, bool]:
    """Returns the folder to train in, made and with the options in it, and whether it is new.

    Args:
        outdir: folder of all runs.
        config: options of this run.
        name: description that follows the number, for example `demo-heads-gpus1-batch8-gamma0.3`.
        fresh: a new folder even if one with the same options exists.

    Returns:
        The newest folder of this name with the same options, otherwise a new one with the next number.

    Raises:
        UserError: if the folder cannot be written, or the weights of a new run cannot be read.
    """
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        numbered = sorted(p for p in outdir.iterdir() if p.is_dir() and re.match(r'\d{5}-', p.name))
        same = [p for p in numbered if p.name[6:] == name and not fresh and _is_same(p, config)]
        if not same and config.resume is not None:
            _check_readable(config.resume)
        number = int(numbered[-1].name[:5]) + 1 if numbered else 0
        run_dir = same[-1] if same else outdir / f'{number:05d}-{name}'
        run_dir.mkdir(exist_ok=True)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, outdir)) from err
    if not same:
        try:
            write_options(run_dir, config)
        except UserError:
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # if it is empty: it was made just now
            raise
    return run_dir, not same


def write_options(run_dir: Path, config: TrainConfig) -> None:
    """Writes the options of a run; in a folder that is not new, only who holds `exclusive` may."""
    with atomic_write(run_dir / _OPTIONS, 'w') as file:
        json.dump(to_dict(config) | {_SESSION: session_facts()}, file, indent=2)


def read_options(path: str | Path) -> TrainConfig:
    """Reads the options of a run from its training_options.json.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not JSON.
        TypeError: if it is not an object.
        ConfigError: if the options are not those of this code.
    """
    options = dict(json.loads(Path(path).read_bytes()))
    options.pop(_SESSION, None)
    return from_dict(TrainConfig, options)


def run_name(config: TrainConfig, world_size: int, desc: str | None) -> str:
    """Returns for example `pv3d-voxceleb-vox-gpus8-batch16-gamma2`."""
    parts = [config.cfg, Path(config.dataset.path).stem, f'gpus{world_size}', f'batch{config.batch}']
    gamma = getattr(config.loss, 'r1_gamma', None)  # not every loss has one
    parts += [] if gamma is None else [f'gamma{gamma:g}']
    return re.sub(r'[^\w.+-]+', '_', '-'.join(parts + ([desc] if desc else [])))


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Keeps other processes from training in the same folder; the lock ends with this process.

    Raises:
        UserError: if another process trains there.
    """
    with open(run_dir / '.lock', 'w') as file:
        try:
            # a record lock: unlike flock it is not inherited by data workers, which outlive a killed trainer
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f'{run_dir}: another process is training there; wait for it, stop it, or use --fresh'
                ) from err  # any other error: this file system has no locks
        yield


def _check_readable(path: str) -> None:
    try:
        open(path, 'rb').close()
    except OSError as err:
        raise UserError('cannot read ' + explain_os_error(err, path)) from err


def _is_same(folder: Path, config: TrainConfig) -> bool:
    try:
        stored = read_options(folder / _OPTIONS)
    except (OSError, ValueError, TypeError, ConfigError) as err:
        print(f'warning: {folder} is skipped, its {_OPTIONS} cannot be read: {err}', flush=True)
        return False
    return _essence(to_dict(stored)) == _essence(to_dict(config))


def _essence(options: dict) -> dict:
    """Flattens options to those that make a run what it is; one data file has one name."""
    kept = flatten({name: value for name, value in options.items() if name not in _FREE})
    for name in ('dataset.path', 'resume'):
        if isinstance(kept.get(name), str):
            kept[name] = os.path.realpath(kept[name])
    return kept
