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
import sys
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


def build(place, wait=True):
    command = [sys.executable, '-c', BUILD, *map(str, place)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    return finish(process) if wait else process


def finish(process):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return Path(out.strip())


def calls(place):
    log = place[0].parent / 'calls'
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_processes_build_once(place):
    processes = [build(place, wait=False) for _ in range(3)]
    libraries = {finish(p) for p in processes}
    assert len(libraries) == 1 and libraries.pop().exists()
    assert calls(place) == 2  # one source, one link
    assert not [p for p in place[0].iterdir() if p.is_dir()]


def test_a_change_builds_again(place):
    chain = kernel_build.toolchain('cpu')
    first = kernel_build.build('cpu', chain, *place)
    assert kernel_build.build('cpu', chain, *place) == first and calls(place) == 2
    others = [chain._replace(version='another'), chain._replace(architecture='another')]
    (place[1] / 'some.h').write_text('// of a header\n')
    libraries = {kernel_build.build('cpu', c, *place) for c in [chain, *others]}
    assert len(libraries | {first}) == 4


def test_the_lock_of_a_dead_process_is_taken_over(place):
    slow = place[0].parent / 'slow'
    slow.touch()
    process = build(place, wait=False)
    deadline = time.time() + 60
    while not calls(place) and time.time() < deadline:
        time.sleep(0.05)
    assert list(place[0].glob('*.lock'))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    slow.unlink()
    assert build(place).exists()
    assert not [p for p in place[0].iterdir() if p.is_dir()]  # nor what it left


def test_a_failed_build_says_why(place):
    (place[1] / 'two.cu').write_text('int broken( { }\n')
    with pytest.raises(kernel_build.BuildError, match=r'two\.cu:1:\d+: error.*\nTo use them: install'):
        kernel_build.build('cpu', kernel_build.toolchain('cpu'), *place)
    assert not list(place[0].glob('*.so'))


def damage(library, kind):
    data = library.read_bytes()
    library.unlink()  # a file that is open must not change
    if kind == 'of another system':
        library.write_bytes(b'no library')
        kernel_build.seal(library)
    elif kind == 'without a function':
        source = library.with_suffix('.c')
        source.write_text('int nothing;')
        subprocess.run(['gcc', '-shared', '-o', library, source], check=True)
        kernel_build.seal(library)
    else:
        library.write_bytes({'truncated': data[: len(data) // 2], 'empty': b'', 'garbage': b'x' * 9999}[kind])


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'garbage', 'of another system', 'without a function'])
def test_a_damaged_library_is_built_again(place, kind):
    (place[1] / 'one.cu').write_text(PLUS)
    args = 'cpu', kernel_build.toolchain('cpu'), *place
    damage(kernel_build.build(*args), kind)
    assert kernel_build.open_library(*args).pv3d_plus(1) == 2
    assert calls(place) == 4
    kernel_build.open_library(*args)
    assert calls(place) == 4


def test_a_library_that_never_opens_is_built_twice_and_reported(place):
    (place[1] / 'one.cu').write_text('void missing();\nextern "C" int pv3d_one() { missing(); return 1; }\n')
    chain = kernel_build.toolchain('cpu')
    chain = chain._replace(command=(*chain.command, '-Wl,-z,now'))
    with pytest.raises(kernel_build.BuildError, match='undefined symbol.*missing'):
        kernel_build.open_library('cpu', chain, *place)
    assert calls(place) == 4


def test_arguments_are_those_of_the_declarations():
    types = kernel_build._signatures(Path(kernel_build._SOURCES))
    assert {'pv3d_probe', 'pv3d_bias_act', 'pv3d_bias_act_grad', 'pv3d_upfirdn2d'} <= set(types)
    assert types['pv3d_probe'] == []
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    assert types['pv3d_bias_act'] == [pointer] * 7 + [integer] * 5 + [number] * 3 + [integer] * 3 + [pointer]
    for path in kernel_build._SOURCES.glob('*.cu'):
        assert path.read_text().count('PV3D_API') == sum(name in path.read_text() for name in types)


def test_wrong_arguments_are_refused():
    x = torch.zeros(2, 3)
    if not kernels.has_kernels(x, 'auto'):
        pytest.skip('no kernels: there is no C++ compiler')
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
    two_lines(err, f'the cache {place[0]}/folder cannot be used: Not a directory', 'export PV3D_CACHE_DIR=')
    assert calls(place) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_cache_is_used_but_not_filled(place):
    chain = kernel_build.toolchain('cpu')
    library = kernel_build.build('cpu', chain, *place)
    place[0].chmod(0o500)
    assert kernel_build.build('cpu', chain, *place) == library
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.build('cpu', chain._replace(version='another'), *place)
    place[0].chmod(0o700)
    two_lines(err, 'cannot be used: Permission denied', 'export PV3D_CACHE_DIR=')


def test_a_cache_that_does_not_run_programs_has_its_own_remedy(place, monkeypatch):
    def refuse(path):
        raise OSError(f'{path}: failed to map segment from shared object')

    monkeypatch.setattr(ctypes, 'CDLL', refuse)
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.open_library('cpu', kernel_build.toolchain('cpu'), *place)
    two_lines(err, 'noexec', 'export PV3D_CACHE_DIR=')
    assert calls(place) == 2  # another build would not help


def test_without_ninja_the_remedy_is_ninja(place, monkeypatch):
    chain = kernel_build.toolchain('cpu')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(shutil, 'which', lambda name: f'/somewhere/{name}')
    assert kernel_build.find_ninja('cpu') == ['/somewhere/ninja']
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.build('cpu', chain, *place)
    two_lines(err, 'there is no ninja', 'pip install ninja')


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
@pytest.mark.parametrize('stubborn', [False, True])
def test_a_build_that_hangs_is_ended_with_all_its_processes(place, monkeypatch, stubborn):
    pids = place[0].parent / 'pids'
    compiler = place[0].parent / 'compiler'
    trap = "trap '' TERM" if stubborn else ''
    chain = kernel_build.toolchain('cpu')
    compiler.write_text(
        f'#!/bin/sh\n{trap}\necho $$ >> {pids}\nsleep 60 & echo $! >> {pids}\nwait; sleep 60\n'
    )
    monkeypatch.setattr(kernel_build, 'BUILD_SECONDS', 1)
    monkeypatch.setattr(kernel_build, '_GRACE', 0.5)
    start = time.monotonic()
    with pytest.raises(kernel_build.BuildError) as err:
        kernel_build.build('cpu', chain, *place)
    assert time.monotonic() - start < 20
    two_lines(err, 'longer than 1 seconds', f'see whether {compiler} hangs')
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2 and not [pid for pid in started if alive(pid)]
    assert not [p for p in place[0].iterdir() if p.is_dir()]


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


def test_nvcc_of_pip_is_found_last(nvcc, tmp_path, monkeypatch):
    access = os.access
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setattr(os, 'access', lambda path, mode: '/usr/local' not in path and access(path, mode))
    assert kernel_build.find_nvcc() == str(nvcc)
    monkeypatch.setattr(shutil, 'which', lambda name: str(nvcc.parent / '..' / 'bin' / name))
    assert kernel_build.find_nvcc() == str(nvcc.parent / '..' / 'bin' / 'nvcc')
    home = tmp_path / 'home' / 'bin'
    home.mkdir(parents=True)
    shutil.copy(nvcc, home / 'nvcc')
    monkeypatch.setenv('CUDA_HOME', str(home.parent))
    assert kernel_build.find_nvcc() == str(home / 'nvcc')


def test_all_visible_gpus_are_compiled_for(nvcc, monkeypatch):
    monkeypatch.setenv('CUDA_HOME', str(nvcc.parent.parent))
    gpus = [(8, 0), (9, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda i: gpus[i])
    both = kernel_build.toolchain('cuda')
    codes = [word for word in both.command if 'sm_' in word]
    assert codes == ['arch=compute_80,code=sm_80', 'arch=compute_90,code=sm_90']
    assert both.architecture.endswith(' 80,90')
    del gpus[1:]
    one = kernel_build.toolchain('cuda')
    assert kernel_build._key(one, []) != kernel_build._key(both, [])
    assert kernel_build._key(both._replace(architecture=one.architecture), []) != kernel_build._key(both, [])
    gpus.append((12, 0))
    with pytest.raises(
        kernel_build.BuildError, match=r'CUDA 12\.9 cannot compile for sm_120,.*\n.*knows sm_120'
    ):
        kernel_build.toolchain('cuda')


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', str(tmp_path / 'no-such-compiler'))
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path))
    kernels.load.cache_clear()
    kernels._loads.cache_clear()
    yield
    kernels.load.cache_clear()
    kernels._loads.cache_clear()


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


def test_reference_on_demand_builds_nothing(no_compiler, monkeypatch):
    monkeypatch.setenv(kernels.ENVIRONMENT, 'ref')
    bias_act(torch.randn(2, 3))
    with pytest.raises(kernel_build.BuildError):  # but a demand stays one
        bias_act(torch.randn(2, 3), impl='cpu')


def test_impl_must_fit(monkeypatch):
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match='must be one of auto, ref, cuda, cpu'):
        bias_act(x, impl='fast')
    with pytest.raises(ValueError, match="impl='cuda' does not work on torch.float32 on cpu"):
        bias_act(x, impl='cuda')
    with pytest.raises(ValueError, match="impl='cpu' does not work on torch.bfloat16"):
        bias_act(x.bfloat16(), impl='cpu')
    monkeypatch.setenv(kernels.ENVIRONMENT, 'maybe')
    with pytest.raises(ValueError, match='PV3D_OPS=maybe must be auto or ref'):
        bias_act(x)


def test_cuda_kernels_compile(tmp_path):
    """Every kernel compiles for an A100 and an H100 where nvcc is installed."""
    try:
        nvcc = kernel_build.find_nvcc()
    except kernel_build.BuildError as err:
        pytest.skip(str(err))
    library = kernel_build.build(
        'cuda', kernel_build.cuda_toolchain(nvcc, ['80', '90']), kernel_build.cache_folder()
    )
    assert library.stat().st_size > 10_000
