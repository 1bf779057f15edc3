"""Compiles the kernels of torch_utils/ops on first use, keeps them in a cache, and finds them for a tensor.

The libraries have a plain C interface (pointers, numbers, a stream), so they build in seconds with nvcc or
g++ through ninja and do not depend on torch's headers. A failed build warns once; the plain
PyTorch reference of every op then does its work. `python -m torch_utils.doctor` says what is in use and why.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Target = Literal['cuda', 'cpu']
IMPLS = ('auto', 'ref', 'cuda', 'cpu')
ENVIRONMENT = 'PV3D_OPS'  # ref: impl='auto' means the reference
DEVICE_BODY = 'cuda-on-cpu'  # value of PV3D_OPS for tests: kernels run what a GPU would run, on the CPU
_LIBRARY = torch.library.Library('pv3d', 'FRAGMENT')
_SOURCES = Path(__file__).parent / 'ops'
_BUILD_SECONDS = 900  # a compiler that takes longer hangs
_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # enum Type of portable.h
_HOST_TYPES = (torch.float32, torch.float64)


class BuildError(RuntimeError):
    """Kernels that cannot be had: the first line is the reason, the second the remedy."""


class Toolchain(NamedTuple):
    """How kernels are compiled for a target."""

    command: tuple[str, ...]  # compiler with flags; sources and -o follow
    version: str  # of the compiler
    architecture: str  # of the machine that runs the code


def has_kernels(x: Tensor, impl: str) -> bool:
    """Tells whether kernels work on x, and not the reference.

    Args:
        x: the tensor that an op is called with.
        impl: `ref`: never kernels. `cuda`, `cpu`: kernels, or an error. `auto`: kernels when they build and
            know the type of x, and PV3D_OPS=ref is not set.

    Raises:
        ValueError: for an unknown impl, or one that does not fit the device or type of x.
        BuildError: if the kernels that impl demands cannot be had.
    """
    return _decide(x.device.type, x.dtype, impl)


@torch.compiler.assume_constant_result  # torch.compile asks once, and does not look into the build
def _decide(target: str, dtype: torch.dtype, impl: str) -> bool:
    environment = os.environ.get(ENVIRONMENT, 'auto')
    if impl not in IMPLS:
        raise ValueError(f'impl={impl!r} must be one of {", ".join(IMPLS)}')
    if environment not in ('auto', 'ref', DEVICE_BODY):
        raise ValueError(f'{ENVIRONMENT}={environment} must be auto or ref')
    if impl == 'ref' or (impl == 'auto' and environment == 'ref'):
        return False
    known = target in ('cuda', 'cpu') and dtype in (_TYPES if target == 'cuda' else _HOST_TYPES)
    if impl != 'auto':
        if impl != target or not known:
            raise ValueError(f'impl={impl!r} does not work on {dtype} on {target}; use impl="auto"')
        load(target)
        return True
    return known and _loads(target)


def register(schema: str, kernel: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Makes torch.ops.pv3d.<name> of a function that calls kernels, opaque to torch.compile.

    Args:
        schema: such as `bias_act(Tensor x, float gain) -> Tensor`.
        kernel: does the work, on CPU and CUDA.
        fake: returns empty tensors of the right shape, type and layout.
    """
    name = schema.partition('(')[0]
    _LIBRARY.define(schema)
    for device in ('CPU', 'CUDA'):
        _LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f'pv3d::{name}', fake)


def call(name: str, x: Tensor, *args: Tensor | float | int | None) -> None:
    """Runs a kernel on the device of x, whose element type the kernel is told.

    Args:
        name: of the C function, without pv3d_.
        x: any of the tensors.
        args: its arguments: tensors, null pointers (None), float (double) or int (int64_t).

    Raises:
        RuntimeError: if the kernel cannot be started.
    """
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None
    device_body = os.environ.get(ENVIRONMENT) == DEVICE_BODY
    last = (_TYPES[x.dtype], int(device_body), torch.get_num_threads())
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        function = getattr(load(x.device.type), f'pv3d_{name}')
        code = function(*map(_as_c, args), *map(_as_c, last), ctypes.c_void_p(stream))
    if code:
        raise RuntimeError(f'kernel {name} cannot be started on {x.dtype}: CUDA error {code}')


def _as_c(value: Tensor | float | int | None) -> ctypes.c_void_p | ctypes.c_double | ctypes.c_int64:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr() if value is not None else None)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last for a 4D tensor that is so and not contiguous, otherwise contiguous."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@functools.cache
def _loads(target: Target) -> bool:
    """Tells whether kernels can be had; if not, warns, once."""
    try:
        load(target)
        return True
    except BuildError as err:
        warnings.warn(f'{err}', RuntimeWarning, stacklevel=2)
        return False


@functools.cache
def load(target: Target) -> ctypes.CDLL:
    """Returns the library of all kernels for `cuda` or `cpu`, building it when the cache has none.

    Raises:
        BuildError: if it cannot be built or loaded.
    """
    try:
        chain = toolchain(target)
        library = ctypes.CDLL(str(build(target, chain, cache_folder())))
    except (OSError, subprocess.SubprocessError) as err:
        raise _unusable(target, str(err)) from err
    if target == 'cuda' and library.pv3d_probe():
        raise _unusable(target, f'the driver does not run code of {chain.version}')
    return library


def cache_folder() -> Path:
    """Returns where built kernels are kept: $PV3D_CACHE_DIR, or pv3d in the user's cache folder."""
    given = os.environ.get('PV3D_CACHE_DIR')
    if given:
        return Path(given).expanduser()
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    try:
        return Path(base).expanduser() / 'pv3d'
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f'pv3d-{os.getuid()}'


def toolchain(target: Target) -> Toolchain:
    """Finds the compiler for a target.

    Raises:
        BuildError: if there is none.
    """
    if target == 'cpu':
        compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
        if compiler is None:
            raise _unusable(target, 'there is no C++ compiler')
        # not -ffast-math: it would hide nan, and change the rounding mode of the whole process
        flags = (
            '-x c++ -std=c++17 -O3 -march=native -fopenmp -fno-math-errno -fno-trapping-math -fPIC -shared'
        )
        return Toolchain(
            (*shlex.split(compiler), *flags.split()), _version(shlex.split(compiler)), _processor()
        )
    devices = range(torch.cuda.device_count())
    archs = sorted({'{}{}'.format(*torch.cuda.get_device_capability(i)) for i in devices})
    return cuda_toolchain(find_nvcc(), archs)


def find_nvcc() -> str:
    """Returns the path of CUDA's compiler: in $CUDA_HOME, in $PATH, or where CUDA is usually installed.

    Raises:
        BuildError: if there is none.
    """
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    places = [home and f'{home}/bin/nvcc', shutil.which('nvcc'), '/usr/local/cuda/bin/nvcc']
    for place in places:
        if place and os.access(place, os.X_OK):
            return place
    raise _unusable('cuda', 'there is no nvcc')


def cuda_toolchain(nvcc: str, archs: list[str]) -> Toolchain:
    """Returns how nvcc compiles for architectures such as `90` (an H100)."""
    codes = [flag for a in archs for flag in ('-gencode', f'arch=compute_{a},code=sm_{a}')]
    flags = ['-x', 'cu', '-std=c++17', '-O3', '--extra-device-vectorization', *codes, '-Xcompiler', '-fPIC']
    return Toolchain((nvcc, *flags, '-shared'), _version([nvcc]), f'{platform.machine()} {",".join(archs)}')


def build(target: Target, chain: Toolchain, folder: Path, sources: Path = _SOURCES) -> Path:
    """Compiles the kernels in `sources` into `folder` unless that was done before; returns the library.

    Several processes build once: the lock is the operating system's, so that a dead process cannot hold it.

    Raises:
        BuildError: with the compiler's first error.
    """
    files = sorted(sources.glob('*.cu'))
    library = folder / f'kernels-{target}-{_key(chain, [*files, *sorted(sources.glob("*.h"))])}.so'
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(library.with_suffix('.lock')) as alone:
        if not library.exists():
            for left in folder.glob(f'{_work_prefix(library)}*') if alone else ():  # by a killed process
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=_work_prefix(library)) as work:
                _run_ninja(target, chain, files, Path(work))
                os.replace(Path(work) / 'kernels.so', library)
    return library


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
    ninja = [sys.executable, '-m', 'ninja']
    done = subprocess.run(
        ninja, cwd=work, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
    )
    if done.returncode:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if 'error' in line.lower()]
        raise _unusable(target, (errors or done.stderr.splitlines() or ['ninja failed'])[0].strip())


def _escape(text: str, characters: str = '$ :') -> str:
    """Escapes what ninja reads as syntax: in paths $, space and colon; in commands only $."""
    return ''.join(f'${c}' if c in characters else c for c in text)


def _key(chain: Toolchain, files: list[Path]) -> str:
    """Hashes everything that decides what a library holds."""
    digest = hashlib.sha256()
    for part in (
        *chain.command,
        chain.version,
        chain.architecture,
        torch.__version__,
        str(torch.version.cuda),
    ):
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


def _version(compiler: list[str]) -> str:
    done = subprocess.run([*compiler, '--version'], capture_output=True, text=True, check=True, timeout=60)
    return ' '.join(done.stdout.split())[:200]


def _processor() -> str:
    """Names the processor: code for one may not run on another that shares the cache folder."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith(('flags', 'Features')):
                return hashlib.sha256(line.encode()).hexdigest()
    return platform.processor() or platform.machine()


def _unusable(target: Target, reason: str) -> BuildError:
    wanted = {'cuda': 'the CUDA toolkit (nvcc), not newer than the driver', 'cpu': 'g++ 9 or newer'}[target]
    return BuildError(
        f'{target} kernels are not used, plain PyTorch is, which is slower: {reason}\n'
        f'To use them: install {wanted}; `python -m torch_utils.doctor` shows details. To silence this: '
        f'export {ENVIRONMENT}=ref'
    )
