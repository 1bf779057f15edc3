"""The day on a GPU: items run once, errors and hangs are results, time is kept; all of it runs on a CPU."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu_items, gpu_runs, step
from benchmarks.gpu_day import Day, summary
from support.paths import ROOT
from torch_utils.misc import set_float32_precision
from torch_utils.ops import kernels


def day(folder, seconds=60.0, **options):
    return Day(folder, time.time() + seconds, **options)


def rows(folder):
    return [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]


def test_items_run_once_and_errors_are_results(tmp_path):
    first, ran = day(tmp_path), []
    first.run('good', 1, lambda: {'ms': 2})
    first.run('bad', 1, lambda: 1 / 0)
    first.run('after', 1, lambda: 3)
    found = {row['item']: row for row in rows(tmp_path)}
    assert {name: row['state'] for name, row in found.items()} == {
        'good': 'ok',
        'bad': 'error',
        'after': 'ok',
    }
    assert found['good']['result'] == {'ms': 2} and 'ZeroDivisionError' in found['bad']['result']['error']
    assert summary(first) == '2 items done, 1 failed now, 0 left'
    second = day(tmp_path)
    for name in ('good', 'bad', 'after'):
        second.run(name, 1, lambda name=name: ran.append(name))
    assert ran == ['bad'] and summary(second) == '3 items done, 0 failed now, 0 left'


def test_what_hung_and_what_does_not_fit_is_named_and_left(tmp_path, capsys):
    day(tmp_path)._write({'item': 'hangs', 'state': 'begun'})
    with open(tmp_path / 'results.jsonl', 'a') as file:
        file.write('{"item": "hal')  # killed while it was written
    second, ran = day(tmp_path), []
    second.run('hangs', 1, lambda: ran.append(1))
    second.run('long', 1000, lambda: ran.append(2))
    out = capsys.readouterr().out
    assert ran == [] and 'hangs: it hung or died before' in out and 'long: ' in out and second.left == 2
    day(tmp_path, again=True).run('hangs', 1, lambda: 5)
    assert rows(tmp_path)[-1]['result'] == 5


def test_what_the_user_interrupts_has_not_hung(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        day(tmp_path).run('item', 1, interrupt)
    day(tmp_path).run('item', 1, lambda: 7)
    assert rows(tmp_path)[-1]['result'] == 7


def test_profile_counts_kernels_once():
    """On CUDA operators carry the time of their kernels, and marked ranges that of all in them."""

    def event(key, device_type, us, marked=False):
        times = {'self_device_time_total': us, 'self_cpu_time_total': 7}
        return SimpleNamespace(key=key, count=2, device_type=device_type, is_user_annotation=marked, **times)

    averages = [
        event('aten::conv2d', DeviceType.CPU, 5e6),
        event('range', DeviceType.CUDA, 8e6, marked=True),
        event('copy', DeviceType.CUDA, 3e6),
        event('implicit_gemm', DeviceType.CUDA, 5e6),
    ]
    assert step.shares(averages, 'cuda') == [('implicit_gemm', 2, 5.0), ('copy', 2, 3.0)]
    assert len(step.shares(averages, 'cpu')) == 4


def test_floor_is_the_larger_of_arithmetic_and_bytes():
    x, w = torch.zeros(1, 64, 32, 32), torch.zeros(64, 64, 3, 3)
    with gpu_items.Floor() as floor:
        torch.conv2d(x, w, padding=1)
    flops, moved = 2 * 9 * 64 * 64 * 32 * 32, 4 * (2 * x.numel() + w.numel())
    assert floor.exact_sec == max(flops / 67e12, moved / 3e12) == flops / 67e12
    assert floor.tf32_sec == max(flops / 400e12, moved / 3e12)
    with gpu_items.Floor() as floor:
        x + 1
    assert floor.exact_sec == floor.tf32_sec == 2 * x.nbytes / 3e12


def switches():
    """What another way may change: kernels, the search of cuDNN, TF32."""
    cudnn = torch.backends.cudnn
    return kernels.has_kernels(torch.zeros(1), 'auto'), cudnn.benchmark, cudnn.allow_tf32, cudnn.enabled


@pytest.mark.parametrize(
    ('way', 'expected'),
    [
        ('reference', (False, True, True, True)),
        ('cudnn.benchmark off', (True, False, True, True)),
        ('float32 exact', (True, True, False, True)),
        ('float32 tf32', (True, True, True, True)),
    ],
)
def test_another_way_changes_one_thing(way, expected, choose_kernels):
    choose_kernels('auto')
    assert way in gpu_items.WAYS
    seen = []
    parts = {name: (1.0, lambda: seen.append(switches())) for name in ('Gmain', 'Dmain')}

    def measure(run, memory):
        run()
        return 2.0, 0

    config = SimpleNamespace(float32_precision='tf32')
    bench = SimpleNamespace(parts=lambda: parts, measure=measure, trainer=SimpleNamespace(config=config))
    set_float32_precision('tf32')
    try:
        assert gpu_items.other_way(lambda: bench, way) == {'Gmain': 2.0, 'Dmain': 2.0}
        assert set(seen) == {expected} and switches() == (True, True, True, True)
    finally:
        set_float32_precision()


@pytest.mark.parametrize('precision', ['exact', 'tf32'])
def test_rendering_chooses_its_precision(precision, tmp_path):
    """Whatever the stage before has left."""
    set_float32_precision('exact' if precision == 'tf32' else 'tf32')
    try:
        gpu_items._head(gpu_items.Plan('cpu', tmp_path, 0), 'tiny', precision)
        assert torch.backends.cudnn.allow_tf32 == (precision == 'tf32')
    finally:
        set_float32_precision()


@pytest.mark.parametrize('code', [None, 3])
def test_a_program_that_fails_or_takes_too_long_leaves_what_it_said(code, tmp_path, monkeypatch):
    def run(command, stdout, timeout, **_):
        stdout.write('13 passed so far')
        if code is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, 'run', run)
    with pytest.raises(TimeoutError if code is None else RuntimeError, match='13 passed so far'):
        gpu_runs._program(gpu_items.Plan('cpu', tmp_path, 0), 'train.py')


def test_data_of_a_step_can_be_written_again(tmp_path):
    """After a try that failed, whose error would be hidden otherwise."""
    for _ in range(2):
        step.write_noise(str(tmp_path), 8)


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path):
    command = [
        sys.executable,
        '-m',
        'benchmarks.gpu_day',
        '--out',
        str(tmp_path),
        '--minutes',
        '30',
        '--smoke',
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith('0 failed now, 0 left')
    found = {row['item']: row['result'] for row in rows(tmp_path) if row['state'] == 'ok'}
    kinds = {name.split('/')[0] for name in found}
    assert kinds == {'machine', 'build', 'tests', 'exact', 'op', 'step', 'render', 'data', 'train'}
    assert 0 < found['step/tiny/4/Dreg']['floor_tf32_sec'] <= found['step/tiny/4/Dreg']['floor_exact_sec']
    assert any('fakes' in path for path in found['train/tiny']['sheets'])
