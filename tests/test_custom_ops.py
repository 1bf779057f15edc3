"""Building, caching and choosing kernels: what must never cost a user an evening."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from torch_utils import custom_ops
from torch_utils.ops.bias_act import bias_act

ROOT = Path(__file__).parent.parent
BUILD = """
import sys
from pathlib import Path
from torch_utils import custom_ops
chain = custom_ops.toolchain('cpu')
print(custom_ops.build('cpu', chain, Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache folder, a folder with a small source, and a compiler that counts its calls and can be slow."""
    try:
        custom_ops.toolchain('cpu')
    except custom_ops.BuildError as err:
        pytest.skip(str(err))
    sources = tmp_path / 'source files'
    sources.mkdir()
    (sources / 'one.cu').write_text('extern "C" int pv3d_one() { return 1; }\n')
    compiler = tmp_path / 'compiler'
    compiler.write_text(f"""#!/bin/sh
case "$*" in *-o*) echo "$*" >> {tmp_path}/calls; [ -e {tmp_path}/slow ] && sleep 60;; esac
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
    chain = custom_ops.toolchain('cpu')
    first = custom_ops.build('cpu', chain, *place)
    assert custom_ops.build('cpu', chain, *place) == first and calls(place) == 2
    others = [chain._replace(version='another'), chain._replace(architecture='another')]
    (place[1] / 'some.h').write_text('// of a header\n')
    libraries = {custom_ops.build('cpu', c, *place) for c in [chain, *others]}
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
    with pytest.raises(custom_ops.BuildError, match=r'two\.cu:1:\d+: error.*\nTo use them: install'):
        custom_ops.build('cpu', custom_ops.toolchain('cpu'), *place)
    assert not list(place[0].glob('*.so'))


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', str(tmp_path / 'no-such-compiler'))
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path))
    custom_ops.load.cache_clear()
    custom_ops._loads.cache_clear()
    yield
    custom_ops.load.cache_clear()
    custom_ops._loads.cache_clear()


def test_without_a_compiler_the_reference_works_after_one_warning(no_compiler):
    x = torch.randn(2, 3)
    with pytest.warns(RuntimeWarning, match='cpu kernels are not used') as record:
        y = bias_act(x, act='lrelu')
    (warning,) = record
    assert len(str(warning.message).splitlines()) == 2 and 'torch_utils.doctor' in str(warning.message)
    assert torch.equal(y, bias_act(x, act='lrelu', impl='ref'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        bias_act(x, act='lrelu')  # a warning is enough
    with pytest.raises(custom_ops.BuildError, match='no-such-compiler'):
        bias_act(x, act='lrelu', impl='cpu')


def test_reference_on_demand_builds_nothing(no_compiler, monkeypatch):
    monkeypatch.setenv(custom_ops.ENVIRONMENT, 'ref')
    bias_act(torch.randn(2, 3))
    with pytest.raises(custom_ops.BuildError):  # but a demand stays one
        bias_act(torch.randn(2, 3), impl='cpu')


def test_impl_must_fit(monkeypatch):
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match='must be one of auto, ref, cuda, cpu'):
        bias_act(x, impl='fast')
    with pytest.raises(ValueError, match="impl='cuda' does not work on torch.float32 on cpu"):
        bias_act(x, impl='cuda')
    with pytest.raises(ValueError, match="impl='cpu' does not work on torch.bfloat16"):
        bias_act(x.bfloat16(), impl='cpu')
    monkeypatch.setenv(custom_ops.ENVIRONMENT, 'maybe')
    with pytest.raises(ValueError, match='PV3D_OPS=maybe must be auto or ref'):
        bias_act(x)


def test_cuda_kernels_compile(tmp_path):
    """Every kernel compiles for an A100 and an H100 where nvcc is installed."""
    try:
        nvcc = custom_ops.find_nvcc()
    except custom_ops.BuildError as err:
        pytest.skip(str(err))
    library = custom_ops.build(
        'cuda', custom_ops.cuda_toolchain(nvcc, ['80', '90']), custom_ops.cache_folder()
    )
    assert library.stat().st_size > 10_000
