"""What benchmarks.gpu_day starts as programs of their own: the build, the tests of the GPU, training."""

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, doctor
from benchmarks.gpu_items import Item, Plan
from torch_utils.ops import kernels

_ROOT = Path(__file__).parents[1]
_GPU_TESTS = 'tests/torch_utils/ops/test_gpu.py'  # by name: collecting all tests needs more packages
_RESERVE_SEC = 45  # for the last checkpoint and the sheets of a training run
_TAIL = 2500  # characters of a program's output


def machine_items(plan: Plan) -> Iterator[Item]:
    """The machine, the build of the kernels, and the tests that need a GPU."""
    yield Item('machine', 1, functools.partial(_machine, plan))
    yield Item('build', 60, functools.partial(_build, plan))
    pytest = functools.partial(_program, plan, '-m', 'pytest', '--maxfail=50', '--durations=10', _GPU_TESTS)
    yield Item('tests', 180, pytest)


def _machine(plan: Plan) -> dict[str, Any]:
    command = ['nvidia-smi'] if not plan.smoke else ['uname', '-a']
    smi = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions = {'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()}
    return common.machine(plan.device) | versions | {'lines': doctor.machine(), 'smi': smi[:_TAIL]}


def _build(plan: Plan) -> dict[str, Any]:
    start = time.perf_counter()
    library = kernels.load(plan.device)
    return {'seconds': time.perf_counter() - start, 'library': str(library._name)}


def training_items(plan: Plan) -> Iterator[Item]:
    """Trains presets on generated heads, each for the time that is left; the sheets are PNG files."""
    todo = [('pv3d-128', 128, 16), ('pv3d-256', 256, 16)]
    for cfg, size, people in [('tiny', 32, 1)] if plan.smoke else todo:
        data = plan.out.resolve() / f'heads{size}.zip'
        yield Item(f'data/{size}', 60, functools.partial(_data, plan, data, size, people))
        yield Item(f'train/{cfg}', 120, functools.partial(_train, plan, cfg, data))


def _data(plan: Plan, data: Path, size: int, people: int) -> str:
    options = f'--people {people} --motions 2 --frames 16 --resolution {size}'
    return _program(plan, 'dataset_tool.py', 'synth', '--dest', str(data), *options.split())


def _train(plan: Plan, cfg: str, data: Path) -> dict[str, Any]:
    runs = plan.out.resolve() / 'runs'
    options = ['--outdir', str(runs), '--cfg', cfg, '--data', str(data), '--device', plan.device]
    if plan.smoke:
        options += ['--kimg', '0.004', '--batch', '2', '--set', 'output.sheet_seeds=1']
    else:
        minutes = max((plan.end - time.time() - _RESERVE_SEC) / 60, 0.5)
        options += ['--max-minutes', f'{minutes:.2f}', '--tick', '0.5', '--snap', '4']
    output = _program(plan, 'train.py', *options)
    return {'sheets': sorted(str(path) for path in runs.glob('*/*.png')), 'output': output}


def _program(plan: Plan, *args: str) -> str:
    """Runs Python with arguments from the top folder; returns the end of the output, or raises with it."""
    left = max(plan.end - time.time(), 1)
    environment = os.environ | {'PYTHONUNBUFFERED': '1'}
    command = [sys.executable, *args]
    with tempfile.TemporaryFile('w+', errors='replace') as file:  # what a program has said outlives it
        pipes = {'stdout': file, 'stderr': subprocess.STDOUT}
        try:
            code = subprocess.run(
                command, cwd=_ROOT, env=environment, timeout=left, check=False, **pipes
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        file.seek(0)
        output = file.read()[-_TAIL:]
    if code is None:
        raise TimeoutError(f'ended after {left:.0f} s, the time that was left: {output}')
    if code:
        raise RuntimeError(output)
    return output
