"""Full disks, folders that may not be written, killed ranks, and the memory of long training."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import reliability_runs as runs
from benchmarks.reliability_damage import sentence
from torch_utils.checkpoint import load_training_state, read_snapshot

_DISK = '16k'  # of a full disk; every command writes more
_WARM_MIN = 20  # minutes of training after which memory may not grow any more
_SAMPLE_SEC = 2.0
_LOW_RATE = ('--glr', '1e-7', '--dlr', '1e-7')  # Adam makes a whole step of what is 0 but for rounding
_STEPS = 4  # of the runs whose ranks are compared; each has 4 clips


def limited(case: runs.Case, outdir: Path, kind: str) -> dict[str, Any]:
    """Runs a command on a full disk, in a read-only folder, or with no space for temporary files.

    Returns:
        how the command ended, and temporary files that it left.
    """
    place = outdir / kind.replace(' ', '-') / case.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if kind == 'read-only' and os.geteuid() != 0:
        place.chmod(0o500)
        return _ended(case, place)
    if os.geteuid() != 0 and kind == 'full disk':
        return {'by': 'RLIMIT_FSIZE', **_ended(case, place, limits={resource.RLIMIT_FSIZE: 50_000})}
    target = place / 'tmp' if kind == 'no temporary space' else place
    target.mkdir(exist_ok=True)
    with _mounted(target, read_only=kind == 'read-only') as error:
        if error:
            return {'skipped': error}
        if target == place:
            return _ended(case, place)
        (target / 'filler').write_bytes(bytes(2**17))
        with contextlib.suppress(OSError), open(target / 'filler2', 'wb', buffering=0) as file:
            while True:
                file.write(bytes(1024))
        return _ended(case, place, {'TMPDIR': str(target)})


@contextlib.contextmanager
def _mounted(folder: Path, read_only: bool) -> Iterator[str]:
    """Mounts a small file system; yields '' or why it could not."""
    mode = f'size={_DISK}' + (',ro' if read_only else '')
    try:
        done = subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', mode, 'tmpfs', folder], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        yield 'there is no program `mount` here'
        return
    yield done.stderr.strip() or ('' if done.returncode == 0 else 'mount failed')
    if done.returncode == 0:
        subprocess.run(['umount', '-l', folder], check=False)


def _ended(
    case: runs.Case,
    place: Path,
    env: Mapping[str, str] | None = None,
    limits: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    life = runs.Life(case.words, place, env=env, limits=limits)
    code, _ = life.wait()
    text = life.log.read_text(errors='replace')
    shown = [line for line in text.splitlines() if line.startswith('Error: ')]
    left = [p.relative_to(place).as_posix() for p in place.rglob('.*.tmp')]
    return {'end': sentence(code, text), 'said': shown[0][:300] if shown else '', 'left': left}


def ranks(outdir: Path) -> dict[str, Any]:
    """Trains on two processes: undisturbed, with a killed rank, and as one process.

    Returns:
        whether the run with the killed rank has the same bits, and the largest relative difference of the
        gradients and weights of one process.
    """
    folder = outdir / 'ranks'
    shutil.rmtree(folder, ignore_errors=True)
    cases = runs.cases()
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--max-restarts=1')
    train = _with(cases['train'].words, {'--kimg': f'{_STEPS * 4 / 1000}'})
    two = (*launcher, str(runs.ROOT / 'train.py'), *train[1:], *_LOW_RATE)
    codes = {'undisturbed': _launch(two, folder / 'two', kill=False)}
    codes['killed'] = _launch(two, folder / 'killed', kill=True)
    one = (*train, *_LOW_RATE, '--batch-gpu', '2')
    codes['one'] = 0 if runs.run_well(one, folder / 'one') else 1
    found = {name: runs.trained(folder / name) for name in ('two', 'killed')}
    same = found['two'] == found['killed']
    errors = _differences(folder / 'two', folder / 'one')
    return {'exit_codes': codes, 'killed_equals_undisturbed': same, 'two_against_one': errors}


def _with(words: tuple[str, ...], changes: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(changes.get(before, word) for before, word in zip(('', *words), words, strict=False))


def _launch(words: tuple[str, ...], place: Path, kill: bool) -> int | None:
    """Runs a launcher; kills its second process once there is a checkpoint. Returns the exit code."""
    place.mkdir(parents=True)
    life = runs.Life(words, place, whole=True)
    end = time.monotonic() + runs.LIMIT_SEC
    while kill and not list(place.rglob('training-state-*.pt')) and time.monotonic() < end:
        time.sleep(0.01)
    if kill:
        children = Path(f'/proc/{life.pid}/task/{life.pid}/children').read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    code, _ = life.wait()
    return code


def _differences(first: Path, second: Path) -> dict[str, float]:
    """Returns the largest difference of gradients after the first step and of the last weights, relative.

    Adam's first moment is the gradient, since beta1 is 0.
    """
    states, weights = [], []
    for place in (first, second):
        state = load_training_state(max(place.rglob('training-state-*.pt')))
        states.append(dict(_tensors(state['optimizers'], '')))
        weights.append(dict(_tensors(read_snapshot(max(place.rglob('network-*.pkl'))).networks, '')))
    moments = [{n: t for n, t in s.items() if n.endswith('exp_avg')} for s in states]
    return {'gradients': _largest(*moments), 'weights': _largest(*weights)}


def _largest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    pairs = [(first[n].double(), second[n].double()) for n in first if first[n].numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f'{name}/{key}')


def memory(outdir: Path, minutes: float) -> dict[str, Any]:
    """Trains for some minutes with a checkpoint and sheets at short intervals; watches the resident memory.

    Returns:
        MiB at the end of the time that counts as warming up and in the last tenth (medians), their ratio.
    """
    place = outdir / 'memory' / 'run'
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words = _with(runs.cases()['train'].words, {'--kimg': '1000', '--tick': '0.04', '--snap': '2'})
    words = tuple(word for word in words if word != '--set' and not word.startswith('output.'))  # with sheets
    life = runs.Life((*words, '--max-minutes', f'{minutes}'), place)
    begin, samples = time.monotonic(), []
    while (time.monotonic() - begin) < 60 * minutes:
        time.sleep(_SAMPLE_SEC)
        rss = int(Path(f'/proc/{life.pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
        samples.append(((time.monotonic() - begin) / 60, rss / 2**20))
    code, used = life.wait()
    warm, tenth = min(_WARM_MIN, minutes / 2), minutes / 10
    start = _median([mib for at, mib in samples if warm <= at < warm + tenth])
    end = _median([mib for at, mib in samples if at >= minutes - tenth])
    clips = max(place.rglob('network-snapshot-*.pkl')).stem.rpartition('-')[2]
    found = {'minutes': minutes, 'processor_sec': round(used), 'clips': int(clips), 'exit_code': code}
    return {
        **found,
        'warm_mib': round(start, 1),
        'end_mib': round(end, 1),
        'growth': round(end / start - 1, 4),
    }


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median()) if values else float('nan')
