"""Commands of this project in processes that can be killed at any moment, and digests of what they leave."""

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import editing.results  # noqa: F401  # what commands import, imported once: forked processes have it
import interop.warm_start  # noqa: F401
import metrics.metric_main  # noqa: F401
import preprocessing.from_videos.pipeline
import training.training_loop  # noqa: F401
import viz.sheets  # noqa: F401
from dnnlib.video import write_video
from heads.identity import sample_identity
from heads.model import HeadModel
from heads.motion import sample_motion_path
from torch_utils.checkpoint import load_training_state
from torch_utils.ops import kernels
from training.camera import orbit_label

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SEC = 600.0  # what takes longer hangs
PORTRAIT = 'portrait/x.portrait.pt'  # below FILES, like what make_files writes
_FILES = '../../files'  # as a command in PLACE sees them
_TICK_SEC = 1 / os.sysconf('SC_CLK_TCK')
_POLL_SEC = 0.02
_VIDEO_FRAMES, _VIDEO_SIZE = 8, 192


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that is run in an empty folder, and what must be equal however often it was killed."""

    name: str
    words: tuple[str, ...]  # script or `-m module`, then options
    digests: Callable[[Path], dict[str, str]]


class Life:
    """One process that runs a command; its output goes to a file.

    Args:
        words: script or `-m module`, then options.
        place: working folder.
        whole: a new interpreter, which imports everything; otherwise a fork of this process, which has
            imported it. A fork saves seconds of a core; the command itself is the same.
        env: added to the environment.
        limits: resource -> most of it.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        place: Path,
        whole: bool = False,
        env: Mapping[str, str] | None = None,
        limits: Mapping[int, int] | None = None,
    ) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        self.log = place.parent / f'{place.name}.txt'
        cache = {'PV3D_CACHE_DIR': str(place / 'cache'), kernels.ENVIRONMENT: 'ref', 'OMP_NUM_THREADS': '1'}
        self._env = {**cache, 'COLUMNS': '200', 'PYTHONPATH': str(ROOT), **(env or {})}
        with open(self.log, 'wb') as log:
            if whole:
                script = [words[0]] if words[0] == '-m' else [str(ROOT / words[0])]
                self._process = subprocess.Popen(
                    [sys.executable, *script, *words[1:]],
                    cwd=place,
                    env={**os.environ, **self._env},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                self.pid = self._process.pid
            else:
                self._process = None
                sys.stdout.flush()
                self.pid = os.fork()
                if self.pid == 0:
                    self._child(words, place, log.fileno(), limits or {})

    def _child(self, words: tuple[str, ...], place: Path, log: int, limits: Mapping[int, int]) -> None:
        code = 1
        try:
            os.setsid()
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (os.fdopen(fd, 'w', closefd=False) for fd in (1, 2))
            os.chdir(place)
            os.environ.update(self._env)
            tempfile.tempdir = None  # it is chosen once in a process
            for kind, most in limits.items():
                resource.setrlimit(kind, (most, most))
            if words[0] == '-m':
                sys.argv = list(words[1:])
                runpy.run_module(words[1], run_name='__main__', alter_sys=True)
            else:
                sys.argv = [str(ROOT / words[0]), *words[1:]]
                runpy.run_path(sys.argv[0], run_name='__main__')
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else bool(end.code)
        except BaseException:  # as an interpreter would print it
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def cpu_sec(self) -> float:
        """Returns the processor time that it has used."""
        fields = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_SEC

    def wait(self, kill_at: float | None = None, delay_sec: float = 0.0) -> tuple[int | None, float]:
        """Waits for its end, or kills it alone, with SIGKILL.

        Args:
            kill_at: seconds of processor time after which it is killed.
            delay_sec: time of the clock after that, so that it can be hit where it waits for the disk.

        Returns:
            its exit code, None if it was killed; seconds of processor time. Beyond LIMIT_SEC: -1.
        """
        used, end = 0.0, time.monotonic() + LIMIT_SEC
        while (status := self._poll()) is None:
            used = self.cpu_sec() if os.path.exists(f'/proc/{self.pid}/stat') else used
            hangs = time.monotonic() > end
            if hangs or (kill_at is not None and used >= kill_at):
                time.sleep(delay_sec)
                if (status := self._poll()) is None:
                    os.kill(self.pid, signal.SIGKILL)
                    while self._poll() is None:
                        time.sleep(_POLL_SEC)
                    return (-1 if hangs else None), used
                break
            time.sleep(_POLL_SEC)
        return status, used

    def _poll(self) -> int | None:
        if self._process is not None:
            return self._process.poll()
        found, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None

    def clean_up(self) -> None:
        """Ends what a killed process left behind, such as an encoder."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def digest(data: bytes) -> str:
    """Returns the first digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def files_in(folder: Path, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns the digests of all files below a folder, by relative path, temporary ones included."""
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.name not in without]
    return {p.relative_to(folder).as_posix(): digest(p.read_bytes()) for p in files}


def trained(place: Path) -> dict[str, str]:
    """Returns digests of all snapshots, and of all that the last training state holds but the seconds."""
    (run,) = (p for p in place.rglob('training_options.json'))
    found = {p.name: digest(p.read_bytes()) for p in sorted(run.parent.glob('network-snapshot-*.pkl'))}
    last = max(run.parent.glob('training-state-*.pt'))
    state = load_training_state(last)
    state['progress'].pop('seconds', None)
    found[last.name] = digest(b''.join(_bytes_of(state)))
    found['ticks'] = str(_ticks(run.parent / 'stats.jsonl'))
    return found


def _ticks(file: Path) -> list[Any]:
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row['Progress/kimg'] for row in rows]


def _bytes_of(tree: Any) -> list[bytes]:
    if isinstance(tree, torch.Tensor):
        return [tree.contiguous().numpy().tobytes()]
    if isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [part for key, value in items for part in (repr(key).encode(), *_bytes_of(value))]
    return [repr(tree).encode()]


def measured(place: Path) -> dict[str, str]:
    """Returns the values of the last line of each metric-*.jsonl."""
    rows = {
        p.name: json.loads(p.read_text().splitlines()[-1]) for p in sorted(place.glob('out/metric-*.jsonl'))
    }
    return {name: f'{row["value"]!r} +- {row["standard_error"]!r}' for name, row in rows.items()}


def studied(place: Path) -> dict[str, str]:
    """Returns the metrics of the run of a study, and the digest of its newest snapshot."""
    (file,) = place.glob('out/*/metrics.json')
    record = json.loads(file.read_text())
    return {
        'metrics': json.dumps(record['metrics']),
        'newest': digest((file.parent / 'newest.pkl').read_bytes()),
    }


def cases() -> dict[str, Case]:
    """Returns the commands, as small as they can be."""
    data, network = f'{_FILES}/h32.zip', f'{_FILES}/net.pkl'
    small = ('--set', 'output.image_ticks=0', '--set', 'output.sheet_seeds=1')
    train = ('train.py', '--outdir', 'runs', '--cfg', 'tiny', '--data', data, '--device', 'cpu', *small)
    videos = ('from-videos', '--source', f'{_FILES}/videos', '--dest', 'x.zip', '--min-frames', '2')
    measure = ('--metrics', 'motion6_4f,flicker6_4f', '--cache', 'cache', '--outdir', 'out')
    person = ('project', f'{data}:1:2', '--steps', '6', '--tune-steps', '4', '--outdir', 'out', '--name', 'x')
    study = ('--rows', 'pv3d', '--preset', 'tiny', '--seeds', '0', '--kimg', '0.016', '--outdir', 'out')
    used = ('--network', network, '--device', 'cpu')
    found = [
        Case('train', (*train, '--kimg', '0.016', '--tick', '0.004', '--snap', '1'), trained),
        Case(
            'from-videos',
            ('dataset_tool.py', *videos, '--resolution', '64', '--workers', '1'),
            lambda place: files_in(place, ('.lock',)),
        ),
        Case('calc_metrics', ('calc_metrics.py', *used, '--data', data, *measure), measured),
        Case('edit_videos', ('edit_videos.py', *person, *used), lambda place: files_in(place / 'out')),
        Case(
            'studies',
            ('-m', 'studies.run', '2a', *study, '--data', data, '--metrics', 'motion4_4f'),
            studied,
        ),
    ]
    return {case.name: case for case in found}


def make_files(outdir: Path) -> Path:
    """Writes what commands read, once: a data set, a video, a snapshot and a portrait; returns the folder."""
    preprocessing.from_videos.pipeline.stages()  # imports them
    folder = outdir / 'files'
    (folder / 'videos').mkdir(parents=True, exist_ok=True)
    made = {
        'h32.zip': ('dataset_tool.py', 'synth', '--dest', 'h32.zip', *_words('--clips 6 --frames 18')),
        'net.pkl': ('train.py', *_words('--outdir runs --cfg tiny --data h32.zip --device cpu --kimg 0.004')),
        PORTRAIT: ('edit_videos.py', *_words('project h32.zip:1:2 --name x --network net.pkl --device cpu')),
    }
    more = {
        'h32.zip': _words('--resolution 32 --workers 1'),
        'net.pkl': _words('--set output.image_ticks=0 --fresh'),
        PORTRAIT: _words('--outdir portrait --steps 2 --tune-steps 1'),
    }
    for name, words in made.items():
        if not (folder / name).exists():
            run_well((*words, *more[name]), folder)
            if name == 'net.pkl':
                max(folder.glob('runs/*/network-snapshot-*.pkl')).rename(folder / name)
    if not (folder / 'videos' / 'head.mp4').exists():
        model, path = HeadModel(sample_identity(4)), sample_motion_path(0, _VIDEO_FRAMES)
        labels = [orbit_label(0.02 * i, 0.0).numpy() for i in range(_VIDEO_FRAMES)]
        frames = [model.render(m, c, _VIDEO_SIZE).image for m, c in zip(path, labels, strict=True)]
        write_video(folder / 'videos' / 'head.mp4', frames)
    return folder


def run_well(words: tuple[str, ...], place: Path) -> float:
    """Runs a command that must succeed; returns its seconds of processor time."""
    place.mkdir(parents=True, exist_ok=True)
    life = Life(words, place)
    code, used = life.wait()
    if code != 0:
        raise ChildProcessError(f'{" ".join(words)}: exit code {code}\n{life.log.read_text()[-2000:]}')
    return used


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())
