"""Compiles the kernels of torch_utils/ops, keeps the libraries in a cache and opens them.

A library has a plain C interface (pointers, numbers, a stream), so that it builds in seconds with nvcc or g++
through ninja and does not depend on torch's headers. Every failure has its own reason and remedy.
"""

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
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from filelock import FileLock

from dnnlib.util import cache_folder as cache_folder

Target = Literal['cuda', 'cpu']
BUILD_SECONDS = 900  # a compiler that takes longer hangs
_SOURCES = Path(__file__).parent / 'csrc'
_GRACE = 2.0  # seconds that compilers have to remove their temporary files
_HASH_BYTES = 32
_C_TYPES = {'void': ctypes.c_void_p, 'double': ctypes.c_double, 'int64_t': ctypes.c_int64}
_INSTALL = {
    'cuda': 'install the CUDA toolkit (nvcc), not newer than the driver',
    'cpu': 'install g++ 9 or newer',
}
_OTHER_CACHE = 'export PV3D_CACHE_DIR=FOLDER, a writable folder on a disk that may run programs'


class BuildError(RuntimeError):
    """Kernels that cannot be used: the first line is the reason, the second the remedy."""

    def __init__(self, target: Target, reason: str, remedy: str | None = None) -> None:
        super().__init__(
            f'{target} kernels are not used, plain PyTorch is, which is slower: {reason}\n'
            f'To use them: {remedy or _INSTALL[target]}; `python -m benchmarks.doctor` shows details. '
            'To silence this: export PV3D_OPS=ref'
        )
        self.reason = reason


class Toolchain(NamedTuple):
    """How kernels are compiled for a target."""

    command: tuple[str, ...]  # compiler with flags
    version: str  # of the compiler
    devices: str  # that the code runs on: features of the processor, or architectures of GPUs


def toolchain(target: Target) -> Toolchain:
    """Finds the compiler for a target, for cuda with the architectures of all visible GPUs.

    Raises:
        BuildError: if no compiler serves.
    """
    if target == 'cuda':
        gpus = range(torch.cuda.device_count())
        return cuda_toolchain(sorted({'{}{}'.format(*torch.cuda.get_device_capability(i)) for i in gpus}))
    words = shlex.split(os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++') or '')
    if not words:
        raise BuildError(target, 'no C++ compiler was found')
    own = next((i for i, word in enumerate(words) if word.startswith('-')), len(words))
    compiler, own_flags = words[:own], words[own:]
    # not -ffast-math: it would hide nan, and change the rounding mode of the whole process
    flags = '-std=c++17 -O3 -march=native -fopenmp -fno-math-errno -fno-trapping-math -fPIC'
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
    # those of CXX come last, where they win
    return Toolchain((*compiler, *flags.split(), *own_flags), _ask(target, *compiler, '--version'), features)


def cuda_toolchain(archs: list[str]) -> Toolchain:
    """Returns how nvcc compiles for architectures such as `90` (an H100)."""
    nvcc = cuda_program('nvcc')
    if nvcc is None:
        raise BuildError('cuda', 'nvcc was not found')
    version = _ask('cuda', nvcc, '--version')
    known = _ask('cuda', nvcc, '--list-gpu-code').split()
    unknown = ', '.join(f'sm_{a}' for a in archs if f'sm_{a}' not in known)
    if unknown:
        release = re.search(r'release [\d.]+|$', version)[0]
        reason = f'{nvcc} ({release}) cannot compile for {unknown}, the architecture of a GPU of this machine'
        remedy = f'{_INSTALL["cuda"]}, that knows {unknown}, or hide that GPU with CUDA_VISIBLE_DEVICES'
        raise BuildError('cuda', reason, remedy)
    codes = [flag for a in archs for flag in ('-gencode', f'arch=compute_{a},code=sm_{a}')]
    flags = ['-std=c++17', '-O3', '--extra-device-vectorization', *codes, '-Xcompiler', '-fPIC']
    return Toolchain((nvcc, *flags), version, ','.join(archs))


def cuda_program(name: str) -> str | None:
    """Returns the path of a program of the CUDA toolkit, or of the packages of pip that bring some."""
    homes = [os.environ[home] + '/bin' for home in ('CUDA_HOME', 'CUDA_PATH') if home in os.environ]
    folders = [Path(folder) for folder in sys.path]
    pip = [str(found) for folder in folders for found in sorted(folder.glob('nvidia/*/bin'))]
    pip += [str(folder / 'triton' / 'backends' / 'nvidia' / 'bin') for folder in folders]
    places = [*homes, *os.get_exec_path(), '/usr/local/cuda/bin', *pip]
    return shutil.which(name, path=os.pathsep.join(places))


def _ask(target: Target, *command: str) -> str:
    """Returns the first 2000 characters, in one line, of what a compiler prints about itself."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as err:
        raise BuildError(target, str(err)) from err
    return ' '.join(done.stdout.decode(errors='replace').split())[:2000]


def open_library(target: Target, chain: Toolchain, folder: Path, sources: Path = _SOURCES) -> ctypes.CDLL:
    """Returns the library of all kernels, which checks arguments against their C declarations."""
    path = build(target, chain, folder, sources)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as err:
        if 'failed to map segment' in str(err) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
            reason = f'the cache {folder} is on a file system that does not run programs (noexec)'
            raise BuildError(target, reason, _OTHER_CACHE) from err
        raise BuildError(target, str(err)) from err
    for name, types in _signatures(sources).items():
        getattr(library, name).argtypes = types
    return library


def _signatures(sources: Path) -> dict[str, list[type]]:
    """Reads the types of the arguments of all C functions from their declarations."""
    text = ' '.join(path.read_text() for path in sorted(sources.glob('*.cu')))
    found = re.findall(r'PV3D_API int (\w+)\(([^)]*)', text)
    return {name: [_C_TYPES[w] for w in re.findall(r'\w+', args) if w in _C_TYPES] for name, args in found}


def build(target: Target, chain: Toolchain, folder: Path, sources: Path = _SOURCES) -> Path:
    """Compiles the kernels in `sources` into `folder` unless that was done before; returns the library.

    Of several processes one builds. A library ends with a hash of itself, which loaders do not read: opening
    a truncated one does not always fail but can kill the process with SIGBUS.
    """
    files = sorted(path for path in sources.iterdir() if path.suffix in ('.cu', '.h'))
    library = folder / f'kernels-{target}-{_key(chain, files)}.so'
    prefix = f'build-{library.stem}-'
    try:
        if _intact(library):
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stale = []
            with contextlib.suppress(OSError):  # a file system without locks: each process builds its own
                stack.enter_context(FileLock(library.with_suffix('.lock')))
                stale = list(folder.glob(f'{prefix}*'))  # by a killed process
            if _intact(library):
                return library
            for work_folder in stale:
                shutil.rmtree(work_folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as work:
                built = _compile(target, chain, files, Path(work))
                with open(built, 'r+b') as file:
                    file.write(hashlib.sha256(file.read()).digest())
                os.replace(built, library)
    except OSError as err:
        reason = f'the cache {folder} cannot be used: {err.strerror or err}'
        raise BuildError(target, reason, _OTHER_CACHE) from err
    return library


def _key(chain: Toolchain, files: list[Path]) -> str:
    """Hashes everything that decides what a library holds."""
    parts = [*chain.command, *chain[1:], platform.machine(), *platform.libc_ver(), torch.__version__]
    parts += [str(torch.version.cuda), *(text for path in files for text in (path.name, path.read_text()))]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:20]


def _intact(library: Path) -> bool:
    data = library.read_bytes() if library.exists() else b''
    return hashlib.sha256(data[:-_HASH_BYTES]).digest() == data[-_HASH_BYTES:]


def _compile(target: Target, chain: Toolchain, files: list[Path], work: Path) -> Path:
    """Compiles every source to an object and links them in the folder `work`; returns the library."""
    for path in files:
        shutil.copyfile(path, work / path.name)
    command = shlex.join(chain.command).replace('$', '$$')
    stems = [path.stem for path in files if path.suffix == '.cu']
    rules = [
        f'rule compile\n  command = {command} {"-x c++" if target == "cpu" else ""} -c $in -o $out',
        f'rule link\n  command = {command} -shared $in -o $out',
        *(f'build {stem}.o: compile {stem}.cu' for stem in stems),
        f'build kernels.so: link {" ".join(f"{stem}.o" for stem in stems)}\n',
    ]
    Path(work, 'build.ninja').write_text('\n'.join(rules))
    ninja = [sys.executable, '-m', 'ninja'] if importlib.util.find_spec('ninja') else [shutil.which('ninja')]
    if None in ninja:
        raise BuildError(target, 'ninja, which runs the compiler, is missing', 'pip install ninja')
    try:
        code, output = _run(ninja, work)
    except subprocess.TimeoutExpired as err:
        remedy = f'see whether {chain.command[0]} hangs, or start again when the machine is less busy'
        raise BuildError(target, f'compiling took longer than {BUILD_SECONDS} seconds', remedy) from err
    if code:
        lines = [*re.findall('.*(?:error|fatal|No space left).*', output, re.IGNORECASE), output.strip()]
        raise BuildError(target, lines[0].strip(), _OTHER_CACHE if 'No space left' in lines[0] else None)
    return work / 'kernels.so'


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Returns exit code and output of a command; when it takes too long or is interrupted, nothing runs on.

    It has a session of its own, so that Ctrl-C reaches this process alone, which then ends it. Ninja, whose
    compilers have groups of their own, passes SIGTERM on to them.
    """
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'errors': 'replace'}
    with subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=BUILD_SECONDS)
        finally:
            if process.poll() is None:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(process.pid, number)
                        process.communicate(timeout=_GRACE)  # until all have closed the pipe
    return process.returncode, output
