"""Building, caching and choosing kernels: what must never cost a user an evening."""

import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from support.paths import ROOT
from torch_utils.ops import build as kernel_build
from torch_utils.ops import kernels
from torch_utils.ops.bias_act import bias_act

BUILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell may ignore it
from pathlib import Path
from torch_utils.ops import build as kernel_build
chain = kernel_build.toolchain('cpu')
print(kernel_build.build('cpu', chain, Path(sys.argv[1]), Path(sys.argv[2])))
"""
PLUS = """
#include <cstdint>
#define PV3D_API extern "C"
PV3D_API int pv3d_plus(int64_t x) { return x + 1; }
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache folder, a folder with a small source, and a compiler that counts its calls and can be slow."""
    try:
        kernel_build.toolchain('cpu')
    except kernel_build.BuildError as err:
        pytest.skip(str(err))
    sources = tmp_path / 'source files'
    sources.mkdir()
    (sources / 'one.cu').write_text('extern "C" int pv3d_one() { return 1; }\n')
    compiler = tmp_path / 'compiler'
    compiler.write_text(f"""#!/bin/sh
case "$*" in *-o*) echo "$*" >> {tmp_path}/calls; while [ -e {tmp_path}/slow ]; do sleep 0.1; done;; esac
exec g++ "$@"
""")
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    return tmp_path / 'cache', sources


def test_flags_of_cxx_come_last(monkeypatch):
    """Where they win over ours, as -O1 of `make sanitize` does; a launcher stays in front."""
    monkeypatch.setattr(kernel_build, '_ask', lambda target, *command: ' '.join(command))
    monkeypatch.setenv('CXX', 'ccache g++ -O1 -g')
    chain = kernel_build.toolchain('cpu')
    assert chain.command[:2] == ('ccache', 'g++') and chain.command[-2:] == ('-O1', '-g')
    assert '-O3' in chain.command and chain.version == 'ccache g++ --version'


def build(place, wait=True):
    command = [sys.executable, '-c', BUILD, *map(str, place)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    return finish(process) if wait else process


def finish(process):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return Path(out.strip())


def calls(place):
    log = place[0].parent / 'calls'
    return len(log.read_text().splitlines()) if log.exists() else 0


def start_slow_build(place):
    """Starts a process that builds, and waits until its compiler, which will not end, runs."""
    (place[0].parent / 'slow').touch()
    process, deadline = build(place, wait=False), time.time() + 60
    while not calls(place) and time.time() < deadline:
        time.sleep(0.05)
    return process


def left_behind(place):
    return [p for p in place[0].iterdir() if p.is_dir()]


def test_processes_build_once(place):
    processes = [build(place, wait=False) for _ in range(3)]
    libraries = {finish(p) for p in processes}
    assert len(libraries) == 1 and libraries.pop().exists()
    assert calls(place) == 2  # one source, one link
    assert not left_behind(place)


def test_a_change_builds_again(place):
    chain = kernel_build.toolchain('cpu')
    first = kernel_build.build('cpu', chain, *place)
    assert kernel_build.build('cpu', chain, *place) == first and calls(place) == 2
    others = [chain._replace(version='another'), chain._replace(devices='another')]
    (place[1] / 'some.h').write_text('// of a header\n')
    libraries = {kernel_build.build('cpu', c, *place) for c in [chain, *others]}
    assert len(libraries | {first}) == 4


def test_the_lock_of_a_dead_process_is_taken_over(place):
    process = start_slow_build(place)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (place[0].parent / 'slow').unlink()
    assert build(place).exists() and not left_behind(place)


@pytest.mark.parametrize(
    ('text', 'flags', 'match'),
    [
        ('int wrong( { }', (), r'two\.cu:1:\d+: error.*\nTo use them: install'),
        ('void f(); extern "C" int pv3d_two() { f(); return 1; }', ('-Wl,-z,now',), 'undefined symbol'),
    ],
)
def test_a_failed_build_explains(place, text, flags, match):
    (place[1] / 'two.cu').write_text(f'{text}\n')
    chain = kernel_build.toolchain('cpu')
    with pytest.raises(kernel_build.BuildError, match=match):
        kernel_build.open_library('cpu', chain._replace(command=(*chain.command, *flags)), *place)


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'garbage'])
def test_a_corrupted_library_is_built_again(place, kind):
    (place[1] / 'one.cu').write_text(PLUS)
    args = 'cpu', kernel_build.toolchain('cpu'), *place
    library = kernel_build.build(*args)
    data = library.read_bytes()
    library.unlink()  # a file that is open must not change
    library.write_bytes({'truncated': data[: len(data) // 2], 'empty': b'', 'garbage': b'x' * 9999}[kind])
    for _ in range(2):
        assert kernel_build.open_library(*args).pv3d_plus(1) == 2
        assert calls(place) == 4


def test_arguments_are_those_of_the_declarations():
    types = kernel_build._signatures(Path(kernel_build._SOURCES))
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    assert types['pv3d_bias_act'] == [pointer] * 7 + [integer] * 5 + [number] * 3 + [integer] * 3 + [pointer]
    for path in kernel_build._SOURCES.glob('*.cu'):
        assert path.read_text().count('PV3D_API') == sum(name in path.read_text() for name in types)
    x = torch.zeros(2, 3)
    if kernels.has_kernels(x, 'auto'):
        good = (x, None, None, None, None, None, x, 2, 3, 1, 1, 0, 0.2, 1.0, -1.0)
        kernels.call('bias_act', x, *good)
        with pytest.raises(ctypes.ArgumentError):
            kernels.call('bias_act', x, *good[:7], 2.0, *good[8:])
        with pytest.raises(TypeError):
            kernels.call('bias_act', x, *good[1:])


def two_lines(err, reason, remedy):
    first, second = str(err.value).splitlines()
    assert reason in first and remedy in second and 'benchmarks.doctor' in second
    assert 'g++ 9' not in second and 'CUDA toolkit' not in second


def test_an_unwritable_cache_has_its_own_remedy(place):
    chain = kernel_build.toolchain('cpu')
    place[0].write_text('a file in its place')
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.build('cpu', chain, place[0] / 'folder', place[1])
    two_lines(err, f'the cache {place[0]}/folder cannot be used: Not a directory', 'PV3D_CACHE_DIR=')


def test_a_cache_that_does_not_run_programs_has_its_own_remedy(place, monkeypatch):
    def refuse(path):
        raise OSError(f'{path}: failed to map segment from shared object')

    monkeypatch.setattr(ctypes, 'CDLL', refuse)
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.open_library('cpu', kernel_build.toolchain('cpu'), *place)
    two_lines(err, 'noexec', 'PV3D_CACHE_DIR=')


def test_ninja_may_be_of_the_system_or_missing(place, monkeypatch):
    chain = kernel_build.toolchain('cpu')
    program = shutil.which('ninja')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    if program:
        assert kernel_build.build('cpu', chain, *place).exists()
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.build('cpu', chain._replace(version='another'), *place)
    two_lines(err, 'ninja', 'pip install ninja')


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_a_build_that_hangs_is_ended_with_all_its_processes(place, monkeypatch):
    pids, compiler = place[0].parent / 'pids', place[0].parent / 'compiler'
    chain = kernel_build.toolchain('cpu')
    compiler.write_text(f'#!/bin/sh\necho $$ >> {pids}\nsleep 60 & echo $! >> {pids}\nwait; sleep 60\n')
    monkeypatch.setattr(kernel_build, 'BUILD_SECONDS', 1)
    start = time.monotonic()
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.build('cpu', chain, *place)
    assert time.monotonic() - start < 20
    two_lines(err, 'longer than 1 seconds', f'{compiler} hangs')
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2 and not [pid for pid in started if alive(pid)]
    assert not left_behind(place)


def test_an_interrupted_build_leaves_nothing(place):
    process = start_slow_build(place)
    process.send_signal(signal.SIGINT)
    assert 'KeyboardInterrupt' in process.communicate(timeout=20)[1]
    assert not left_behind(place)
    assert not subprocess.run(['pgrep', '-f', str(place[0].parent)], capture_output=True).stdout


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """Something that answers like nvcc, in the place where pip would put it, with no other around."""
    path = tmp_path / 'site' / 'nvidia' / 'cu13' / 'bin' / 'nvcc'
    path.parent.mkdir(parents=True)
    path.write_text("""#!/bin/sh
case "$1" in --list-gpu-code) echo sm_80; echo sm_90;; *) echo Cuda compilation tools, release 12.9, V1;; esac
""")
    path.chmod(0o755)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if not [*Path(p).glob('nvidia/*/bin/nvcc')]])
    sys.path.append(str(tmp_path / 'site'))
    for name in ('CUDA_HOME', 'CUDA_PATH'):
        monkeypatch.delenv(name, raising=False)
    return path


def test_places_of_nvcc(nvcc, tmp_path, monkeypatch):
    def found():
        return kernel_build.cuda_toolchain([]).command[0]

    other, home = tmp_path / 'other', tmp_path / 'home' / 'bin'
    for folder in (other, home):
        folder.mkdir(parents=True)
        shutil.copy(nvcc, folder)
    monkeypatch.setenv('PATH', '/usr/bin:/bin')
    if shutil.which('nvcc') is None and not Path('/usr/local/cuda/bin/nvcc').exists():
        assert found() == str(nvcc)
    monkeypatch.setenv('PATH', f'{other}:/usr/bin:/bin')
    assert found() == str(other / 'nvcc')
    monkeypatch.setenv('CUDA_HOME', str(home.parent))
    assert found() == str(home / 'nvcc')


def test_all_visible_gpus_are_compiled_for(nvcc, monkeypatch):
    monkeypatch.setenv('CUDA_HOME', str(nvcc.parent.parent))
    gpus = [(8, 0), (9, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda i: gpus[i])
    both = kernel_build.toolchain('cuda')
    codes = [word for word in both.command if 'sm_' in word]
    assert codes == ['arch=compute_80,code=sm_80', 'arch=compute_90,code=sm_90']
    del gpus[1:]
    assert kernel_build._key(kernel_build.toolchain('cuda'), []) != kernel_build._key(both, [])
    gpus.append((12, 0))
    with pytest.raises(kernel_build.BuildError, match=r'12\.9.* cannot compile for sm_120,.*\n.*sm_120'):
        kernel_build.toolchain('cuda')


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', str(tmp_path / 'no-such-compiler'))
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path))
    kernels.forget()
    yield
    kernels.forget()


def test_without_a_compiler_the_reference_works_after_one_warning(no_compiler):
    x = torch.randn(2, 3)
    with pytest.warns(RuntimeWarning, match='cpu kernels are not used') as record:
        y = bias_act(x, act='lrelu')
    (warning,) = record
    assert len(str(warning.message).splitlines()) == 2 and 'benchmarks.doctor' in str(warning.message)
    assert torch.equal(y, bias_act(x, act='lrelu', impl='ref'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        bias_act(x, act='lrelu')  # a warning is enough
    with pytest.raises(kernel_build.BuildError, match='no-such-compiler'):
        bias_act(x, act='lrelu', impl='cpu')


def test_reference_on_demand_builds_nothing(no_compiler, choose_kernels):
    choose_kernels('ref')
    bias_act(torch.randn(2, 3))
    with pytest.raises(kernel_build.BuildError):  # but a demand stays one
        bias_act(torch.randn(2, 3), impl='cpu')


def test_impl_must_fit(choose_kernels):
    x = torch.randn(2, 3)
    for impl, wrong in (('fast', x), ('cuda', x), ('cpu', x.bfloat16())):
        with pytest.raises(ValueError, match=f'impl={impl!r}.*{wrong.dtype}'):
            bias_act(wrong, impl=impl)
    choose_kernels('maybe')
    with pytest.raises(ValueError, match='PV3D_OPS=maybe'):
        bias_act(x)


def test_cuda_kernels_compile():
    """Every kernel compiles for an A100 and an H100 where nvcc is installed."""
    try:
        chain = kernel_build.cuda_toolchain(['80', '90'])
    except kernel_build.BuildError as err:
        pytest.skip(str(err))
    assert kernel_build.build('cuda', chain, kernel_build.cache_folder()).stat().st_size > 10_000
