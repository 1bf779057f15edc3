"""Stages: results by key, resumed after any kill, rejected items, the same from any number of processes."""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dnnlib.util import DataError, Skip, UserError
from preprocessing.from_videos.stages import (
    Item,
    Stage,
    TryAgain,
    count_reasons,
    file_state,
    locked,
    read_stage,
    run_stage,
    stage_key,
)
from preprocessing.from_videos.work_folder import WorkFolder, item_name, rounded
from support.paths import ROOT
from training.data.archive import parallel, worker_pool

ITEMS = [f'clip{i}' for i in range(7)]
GOOD = [item for item in ITEMS if item not in ('clip3', 'clip5')]


@Stage('one', per='clip', options=('value',), paths=('fail',))
def work(item, options):
    """Writes a file beside the result; some items are rejected; `fail` raises in the middle of one."""
    number, root = int(item.name[4:]), item.work.root
    if number == 3:
        raise Skip('a face is too small: 12 pixels')
    if number == 5:
        raise DataError('the video cannot be decoded')
    (root / f'{item.name}.bin').write_bytes(bytes([number]) * 100)
    if item.name == options.fail:
        raise RuntimeError('killed here')
    with open(root / 'log.txt', 'a') as log:
        log.write(item.name + '\n')
    return {'value': number / 3, 'files': [f'{item.name}.bin'], 'z': [1, {'a': -0.0000001}]}


def tasks_of(function, folder, options, items):
    found = [Item(name, WorkFolder(folder), {}) for name in items]
    return [(item, stage_key(function.stage, item, (), options)) for item in found]


def stage(folder, value=1, workers=1, fail=None, read=False):
    options = SimpleNamespace(value=value, fail=fail)
    tasks = tasks_of(work, folder, options, ITEMS)
    if read:
        return read_stage(work, tasks, options)
    return run_stage(work, WorkFolder(folder), tasks, options, worker_pool, workers)


def run_one(function, folder):
    options = SimpleNamespace()
    return run_stage(function, WorkFolder(folder), tasks_of(function, folder, options, ['x']), options)


def tree(folder):
    """All files but the log: what a run leaves."""
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.name != 'log.txt']
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def log(folder):
    path = folder / 'log.txt'
    done = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return done


def test_results(tmp_path):
    results = stage(tmp_path)
    assert list(results) == ITEMS and len(results) == 7 and results.accepted() == GOOD
    reasons = {'clip3': 'a face is too small: 12 pixels', 'clip5': 'the video cannot be decoded'}
    assert results.rejected == reasons and results.reasons() == list(reasons.values())
    made = {'value': 0.333333, 'files': ['clip1.bin'], 'z': [1, {'a': 0.0}]}
    assert results['clip1'] == {**made, 'key': results.keys_of['clip1']}
    text = (tmp_path / 'one' / 'clip1.json').read_text()
    assert text == json.dumps(results['clip1'], sort_keys=True, separators=(',', ':')) + '\n'
    assert '-0.0' not in text
    assert dict(stage(tmp_path, read=True)) == dict(results)
    before = tree(tmp_path)
    assert log(tmp_path) == GOOD
    assert stage(tmp_path).rejected == reasons and log(tmp_path) == [] and tree(tmp_path) == before


@pytest.mark.parametrize('fail, workers', [*((item, 1) for item in GOOD), ('clip4', 2)])
def test_stopped_anywhere_and_run_again(tmp_path, fail, workers):
    whole = stage(tmp_path / 'whole')
    with pytest.raises(RuntimeError, match='killed here'):
        stage(tmp_path / 'part', fail=fail, workers=workers)
    assert not (tmp_path / 'part' / 'one' / f'{fail}.json').exists()
    done = [item for item in log(tmp_path / 'part') if (tmp_path / 'part' / 'one' / f'{item}.json').exists()]
    assert set(done) >= set(GOOD[: GOOD.index(fail)])
    part = stage(tmp_path / 'part', workers=workers)
    assert not set(log(tmp_path / 'part')) & set(done)
    assert tree(tmp_path / 'part') == tree(tmp_path / 'whole')
    assert part.keys_of == whole.keys_of and part.rejected == whole.rejected and list(part) == list(whole)


def test_changed_options_and_lost_files(tmp_path):
    keys = stage(tmp_path).keys_of
    log(tmp_path)
    changed = stage(tmp_path, value=2).keys_of
    assert log(tmp_path) == GOOD and all(keys[item] != changed[item] for item in ITEMS)
    (tmp_path / 'clip2.bin').unlink()
    (tmp_path / 'one' / 'clip4.json').write_text('{"key": ')
    (tmp_path / 'one' / '.clip4.json.0123456789abcdef0123456789abcdef.tmp').write_text('{')
    stage(tmp_path, value=2)
    assert log(tmp_path) == ['clip2', 'clip4']
    assert not list((tmp_path / 'one').glob('.*'))


def test_old_result_is_gone_before_its_files_change(tmp_path):
    """Otherwise options that go there and back, with a kill between, would leave files of the others."""
    stage(tmp_path, value=1)
    with pytest.raises(RuntimeError):
        stage(tmp_path, value=2, fail='clip0')
    log(tmp_path)
    stage(tmp_path, value=1)
    assert log(tmp_path) == ['clip0']


STOPS = [(UserError('full'), 'clip'), (KeyError('x'), 'clip'), (None, 'clip'), (DataError('x'), 'all')]


@pytest.mark.parametrize('error, per', STOPS)
def test_user_errors_and_bugs_stop(tmp_path, error, per):
    @Stage('s', per=per)
    def failing(item, options):
        if error:
            raise error
        return {'a': float('nan')}

    with pytest.raises(type(error) if error else ValueError):
        run_one(failing, tmp_path)
    assert not list(tmp_path.rglob('*.json'))


def test_retried_rejections_and_files_elsewhere(tmp_path):
    calls, there = [], [True]

    @Stage('s', per='clip', holds=lambda item, options, result: there[0])
    def offline(item, options):
        calls.append(item.name)
        if len(calls) < 3:
            raise TryAgain('no network')
        return {}

    assert [run_one(offline, tmp_path).rejected for _ in range(4)] == [{'x': 'no network'}] * 2 + [{}] * 2
    assert len(calls) == 3
    there[0] = False
    run_one(offline, tmp_path)
    assert len(calls) == 4


def test_reading_takes_what_would_be_tried_again_as_rejected(tmp_path):
    """Otherwise --only could not work while a listed video is missing."""

    @Stage('s', per='clip')
    def offline(item, options):
        raise TryAgain('no network')

    made = run_one(offline, tmp_path)
    tasks = [(item, made.keys_of[name]) for name, item in made.items.items()]
    assert read_stage(offline, tasks, SimpleNamespace()).rejected == {'x': 'no network'}


def test_torch_computes_with_one_thread(tmp_path, monkeypatch):
    """Sums are then the same on any machine, with any number of workers."""
    threads = []
    monkeypatch.setattr(torch, 'set_num_threads', threads.append)
    run_one(Stage('s', per='clip', torch=True)(lambda item, options: {'seen': list(threads)}), tmp_path)
    assert threads == [1]


def test_a_folder_is_for_one_run(tmp_path):
    with locked(tmp_path / 'w'):
        code = 'import sys; from pathlib import Path; from preprocessing.from_videos.stages import locked\n'
        code += 'with locked(Path(sys.argv[1])): pass'
        command = [sys.executable, '-c', code, str(tmp_path / 'w')]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode and 'another run works in' in done.stderr
    with locked(tmp_path / 'w'):
        pass
    (tmp_path / '.lock').mkdir()
    with pytest.raises(UserError, match='cannot lock .*lock: it is a folder'), locked(tmp_path):
        pass


def test_small_helpers(tmp_path):
    numbers = {'a': (1, 2.00000049, [-1e-9, True, None, 'x'])}
    assert rounded(numbers) == {'a': [1, 2.0, [0.0, True, None, 'x']]}
    assert item_name('a/b c/d') == 'a__b c__d'
    long = item_name('ä' * 200 + '/x')
    assert len(long.encode()) <= 150 and long != item_name('ä' * 200 + '/y')
    reasons = ['3 of 24 are noisy', '5 of 24 are noisy', 'is red: x 7', 'is red: y', '16 long', 'at 1.5 s']
    kinds = [('# of 24 are noisy', 2), ('is red', 2), ('16 long', 1), ('at 1.5 s', 1)]
    assert count_reasons(reasons) == kinds
    (tmp_path / 'a').write_text('x')
    assert file_state(tmp_path)[0][1] == 1 and file_state(tmp_path / 'b') == 'b' and file_state(None) is None


def sleepy(folder):
    Path(folder, f'{os.getpid()}.pid').touch()
    time.sleep(60)


def parent(folder):
    list(parallel(sleepy, [folder] * 2, 2))


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='looks for processes in /proc')
def test_workers_end_with_a_killed_parent(tmp_path):
    process = multiprocessing.get_context('spawn').Process(target=parent, args=(str(tmp_path),))
    process.start()
    limit = time.monotonic() + 30
    while len(pids := [p.stem for p in tmp_path.glob('*.pid')]) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(pids) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    def alive(pid):
        try:
            return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
        except OSError:
            return False

    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def fail_or_sleep(sec):
    if not sec:
        raise ValueError('wrong')
    time.sleep(sec)


@pytest.mark.parametrize('items, ends', [([0.01, 600, 600], GeneratorExit), ([0, 600, 600], ValueError)])
def test_what_is_under_way_is_given_up(items, ends):
    """Ctrl-C, or an error of one item, does not wait for the hours that another may take."""
    results = parallel(fail_or_sleep, items, 2)
    start = time.monotonic()
    with contextlib.closing(results) if ends is GeneratorExit else pytest.raises(ValueError, match='wrong'):
        next(results)
    assert time.monotonic() - start < 60 and not list(results)


def test_a_dead_worker_is_a_sentence():
    with pytest.raises(UserError, match='a worker process died'):
        list(parallel(os._exit, [1, 1], 2))


def test_few_items_are_under_way():
    """Memory stays bounded: items are made when their turn comes."""
    made = []
    results = parallel(functools.partial(pow, 2), (made.append(i) or i for i in range(50)), 2)
    assert next(results) == 1 and len(made) == 4
    assert list(results) == [2**i for i in range(1, 50)]
