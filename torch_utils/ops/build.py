"""Compiles the kernels of torch_utils/ops, keeps the libraries in a cache and opens them.

A library has a plain C interface (pointers, numbers, a stream), so that it builds in seconds with nvcc or g++
through ninja and does not depend on torch's headers. What can go wrong has its own reason and remedy, in two
lines: no compiler, no ninja, a cache that cannot be used, a GPU that nvcc does not know, a build that hangs.
"""

import _ctypes
import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

Target = Literal['cuda', 'cpu']
BUILD_SECONDS = 900  # a compiler that takes longer hangs
_SOURCES = Path(__file__).parent / 'csrc'
_GRACE = 2.0  # seconds that compilers have to remove their temporary files
_C_TYPES = {'void': ctypes.c_void_p, 'double': ctypes.c_double, 'int64_t': ctypes.c_int64}
_INSTALL = {
    'cuda': 'install the CUDA toolkit (nvcc), not newer than the driver',
    'cpu': 'install g++ 9 or newer',
}
_OTHER_CACHE = (
    'export PV3D_CACHE_DIR=FOLDER, one that can be written to and is on a disk that may run programs'
)


class BuildError(RuntimeError):
    """Kernels that cannot be had: the first line is the reason, the second the remedy."""

    def __init__(self, target: Target, reason: str, remedy: str | None = None) -> None:
        super().__init__(
            f'{target} kernels are not used, plain PyTorch is, which is slower: {reason}\n'
            f'To use them: {remedy or _INSTALL[target]}; `python -m benchmarks.doctor` shows details. '
            'To silence this: export PV3D_OPS=ref'
        )
        self.reason = reason


class Toolchain(NamedTuple):
    """How kernels are compiled for a target."""

    command: tuple[str, ...]  # compiler with flags; sources and -o follow
    version: str  # of the compiler
    architecture: str  # of the machine that runs the code


def cache_folder() -> Path:
    """Returns where built kernels are kept: $PV3D_CACHE_DIR, or pv3d in the user's cache folder."""
    given = os.environ.get('PV3D_CACHE_DIR')
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    try:
        return Path(given).expanduser() if given else Path(base).expanduser() / 'pv3d'
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f'pv3d-{os.getuid()}'


def toolchain(target: Target) -> Toolchain:
    """Finds the compiler for a target, for cuda with the architectures of all visible GPUs.

    Raises:
        BuildError: if there is none that serves.
    """
    if target == 'cuda':
        devices = range(torch.cuda.device_count())
        archs = {'{}{}'.format(*torch.cuda.get_device_capability(i)) for i in devices}
        return cuda_toolchain(find_nvcc(), sorted(archs))
    compiler = shlex.split(os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++') or '')
    if not compiler:
        raise BuildError(target, 'there is no C++ compiler')
    # not -ffast-math: it would hide nan, and change the rounding mode of the whole process
    flags = '-x c++ -std=c++17 -O3 -march=native -fopenmp -fno-math-errno -fno-trapping-math -fPIC -shared'
    return Toolchain((*compiler, *flags.split()), _ask(target, *compiler, '--version'), _processor())


def find_nvcc() -> str:
    """Returns CUDA's compiler: in $CUDA_HOME, in $PATH, where CUDA usually is, or of pip's nvidia-cuda-nvcc.

    Raises:
        BuildError: if there is none.
    """
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    pip = (str(path) for folder in sys.path for path in sorted(Path(folder).glob('nvidia/*/bin/nvcc')))
    for place in (home and f'{home}/bin/nvcc', shutil.which('nvcc'), '/usr/local/cuda/bin/nvcc', *pip):
        if place and os.access(place, os.X_OK):
            return place
    raise BuildError('cuda', 'there is no nvcc')


def cuda_toolchain(nvcc: str, archs: list[str]) -> Toolchain:
    """Returns how nvcc compiles for architectures such as `90` (an H100).

    Raises:
        BuildError: if it does not know one of them.
    """
    version = _ask('cuda', nvcc, '--version')
    known = _ask('cuda', nvcc, '--list-gpu-code').split()
    unknown = [f'sm_{a}' for a in archs if f'sm_{a}' not in known]
    if unknown:
        release = re.search(r'release ([\d.]+)', version)
        raise BuildError(
            'cuda',
            f'{nvcc} of CUDA {release[1] if release else "?"} cannot compile for {", ".join(unknown)}, '
            'the architecture of a GPU of this machine',
            f'install a CUDA toolkit that knows {", ".join(unknown)} and is not newer than the driver, '
            'or hide that GPU with CUDA_VISIBLE_DEVICES',
        )
    codes = [flag for a in archs for flag in ('-gencode', f'arch=compute_{a},code=sm_{a}')]
    flags = ['-x', 'cu', '-std=c++17', '-O3', '--extra-device-vectorization', *codes, '-Xcompiler', '-fPIC']
    return Toolchain((nvcc, *flags, '-shared'), version, f'{platform.machine()} {",".join(archs)}')


def open_library(target: Target, chain: Toolchain, folder: Path, sources: Path = _SOURCES) -> ctypes.CDLL:
    """Returns the library of all kernels in `sources`, which checks arguments against their C declarations.

    One that the cache has but that cannot be used here is built again, once.

    Raises:
        BuildError: if it cannot be built or opened.
    """
    for last in (False, True):
        path = build(target, chain, folder, sources)
        try:
            return _open(path, _signatures(sources))
        except (OSError, AttributeError) as err:  # intact, but of another system, or without a function
            if 'failed to map segment' in str(err) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
                reason = f'the cache {folder} is on a file system that does not run programs (noexec)'
                raise BuildError(target, reason, _OTHER_CACHE) from err
            if last:
                raise BuildError(target, str(err)) from err
            with _cache_errors(target, folder):
                path.unlink(missing_ok=True)
    raise AssertionError('not reached')


def _open(path: Path, signatures: dict[str, list[type]]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    try:
        for name, types in signatures.items():
            getattr(library, name).argtypes = types
    except AttributeError:
        _ctypes.dlclose(library._handle)  # or the same name would give this one again
        raise
    return library


def _signatures(sources: Path) -> dict[str, list[type]]:
    """Reads the types of the arguments of all C functions from their declarations."""
    text = ' '.join(path.read_text() for path in sorted(sources.glob('*.cu')))
    found = re.findall(r'PV3D_API int (\w+)\(([^)]*)\)', text)
    return {
        name: [_C_TYPES[word] for word in re.findall(r'\b(void|double|int64_t)\b', arguments)]
        for name, arguments in found
    }


def build(target: Target, chain: Toolchain, folder: Path, sources: Path = _SOURCES) -> Path:
    """Compiles the kernels in `sources` into `folder` unless that was done before; returns the library.

    Several processes build once: the lock is the operating system's, so that a dead process cannot hold it.
    A damaged library is replaced: it ends with a hash of itself.

    Raises:
        BuildError: with the compiler's first error, or what is wrong with the folder.
    """
    files = sorted(sources.glob('*.cu'))
    library = folder / f'kernels-{target}-{_key(chain, [*files, *sorted(sources.glob("*.h"))])}.so'
    with _cache_errors(target, folder):
        if _intact(library):
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(library.with_suffix('.lock')) as alone:
            if not _intact(library):
                for left in folder.glob(f'{_work_prefix(library)}*') if alone else ():  # by a killed process
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=folder, prefix=_work_prefix(library)) as work:
                    _run_ninja(target, chain, files, Path(work))
                    seal(Path(work) / 'kernels.so')
                    os.replace(Path(work) / 'kernels.so', library)
    return library


@contextlib.contextmanager
def _cache_errors(target: Target, folder: Path) -> Iterator[None]:
    """Explains what the operating system says about the cache."""
    try:
        yield
    except OSError as err:
        reason = f'the cache {folder} cannot be used: {err.strerror or err}'
        raise BuildError(target, reason, _OTHER_CACHE) from err


def seal(library: Path) -> None:
    """Appends the hash of a library to it; loaders do not look behind the end.

    Opening a truncated library does not always fail: it can also kill the process with SIGBUS.
    """
    with open(library, 'r+b') as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)


def _intact(library: Path) -> bool:
    try:
        data = library.read_bytes()
    except FileNotFoundError:
        return False
    size = hashlib.sha256().digest_size
    return hashlib.sha256(data[:-size]).digest() == data[-size:]


def _work_prefix(library: Path) -> str:
    return f'build-{library.stem}-'


def _run_ninja(target: Target, chain: Toolchain, sources: list[Path], work: Path) -> None:
    """Compiles every source to an object and links them to kernels.so in the folder `work`."""
    command = [_escape(shlex.quote(word), '$') for word in chain.command if word != '-shared']
    compiler, *flags = chain.command
    flags = [word for word in flags if word not in ('-x', 'c++', 'cu')]  # objects are no sources
    link = [_escape(shlex.quote(word), '$') for word in (compiler, *flags)]
    lines = [
        f'rule compile\n  command = {" ".join(command)} -c $in -o $out',
        f'rule link\n  command = {" ".join(link)} $in -o $out',
        *(f'build {s.stem}.o: compile {_escape(str(s))}' for s in sources),
        f'build kernels.so: link {" ".join(f"{s.stem}.o" for s in sources)}',
    ]
    (work / 'build.ninja').write_text('\n'.join(lines) + '\n')
    try:
        code, output = _run(find_ninja(target), work)
    except subprocess.TimeoutExpired as err:
        remedy = f'see whether {compiler} hangs, or start again when the machine is less busy'
        reason = f'compiling took longer than {BUILD_SECONDS} seconds'
        raise BuildError(target, reason, remedy) from err
    if code:
        said = output.splitlines()
        errors = [line for line in said if re.search('error|fatal|No space left', line, re.IGNORECASE)]
        reason = (errors or said or ['ninja failed'])[0].strip()
        raise BuildError(target, reason, _OTHER_CACHE if 'No space left' in reason else None)


def find_ninja(target: Target) -> list[str]:
    """Returns the command that runs ninja: of the package, otherwise in $PATH.

    Raises:
        BuildError: if there is none.
    """
    if importlib.util.find_spec('ninja'):
        return [sys.executable, '-m', 'ninja']
    ninja = shutil.which('ninja')
    if ninja is None:
        raise BuildError(target, 'there is no ninja, which runs the compiler', 'pip install ninja')
    return [ninja]


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Returns exit code and output of a command; when that takes too long or is interrupted, nothing goes on.

    It is in a session of its own, so that Ctrl-C reaches this process alone, which then ends it.
    """
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    options = {**pipes, 'text': True, 'errors': 'replace', 'start_new_session': True}
    with subprocess.Popen(command, cwd=folder, **options) as process:
        try:
            output, _ = process.communicate(timeout=BUILD_SECONDS)
        except BaseException:
            _end_session(process)
            raise
    return process.returncode, output


def _end_session(process: subprocess.Popen) -> None:
    """Ends a process and all that it started.

    One signal to its process group is not enough: ninja gives each compiler a group of its own. But it passes
    SIGTERM on to them; and all of them stay in the session, which /proc tells (elsewhere than on Linux, the
    first has to do).
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    start = time.monotonic()
    while process.poll() is None or _session(process.pid):
        passed = time.monotonic() - start
        if passed > 2 * _GRACE:  # the kernel keeps one that waits for a disk
            break
        if passed > _GRACE:
            for pid in {process.pid, *_session(process.pid)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _session(leader: int) -> list[int]:
    """Lists the living processes of a session, where there is /proc."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, _, session, *_ = path.read_text(errors='replace').rpartition(')')[2].split()
            found += [int(path.parent.name)] if int(session) == leader and state not in 'ZX' else []
    return found


def _escape(text: str, characters: str = '$ :') -> str:
    """Escapes what ninja reads as syntax: in paths $, space and colon; in commands only $."""
    return ''.join(f'${c}' if c in characters else c for c in text)


def _key(chain: Toolchain, files: list[Path]) -> str:
    """Hashes everything that decides what a library holds."""
    digest = hashlib.sha256()
    parts = (*chain.command, chain.version, chain.architecture, torch.__version__, str(torch.version.cuda))
    for part in parts:
        digest.update(part.encode() + b'\0')
    for path in files:
        digest.update(path.name.encode() + b'\0' + path.read_bytes())
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds a lock that the operating system frees when this process ends, however it ends.

    False: this file system has no locks. Then several processes may do the same work, each in its own folder.
    """
    import fcntl  # noqa: PLC0415 - not on Windows, where kernels are not built

    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone


def _ask(target: Target, *command: str) -> str:
    """Returns the first 2000 characters, in one line, of what a compiler says about itself."""
    options = {'capture_output': True, 'text': True, 'errors': 'replace', 'timeout': 60}
    try:
        done = subprocess.run(command, check=True, **options)
    except (OSError, subprocess.SubprocessError) as err:
        raise BuildError(target, str(err)) from err
    return ' '.join(done.stdout.split())[:2000]


def _processor() -> str:
    """Names the processor: code for one may not run on another that shares the cache folder."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith(('flags', 'Features')):
                return hashlib.sha256(line.encode()).hexdigest()
    return platform.processor() or platform.machine()
