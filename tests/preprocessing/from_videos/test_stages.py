"""Stages: results by key, resumed after any kill, rejected items, the same from any number of processes."""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnlib.util import DataError, UserError
from preprocessing.from_videos.stages import (
    Results,
    StageError,
    count_reasons,
    item_name,
    locked,
    read_stage,
    rounded,
    run_stage,
    stage_key,
)
from support.paths import ROOT
from training.data.archive import parallel

ITEMS = [f'clip{i}' for i in range(7)]


def work(folder, item, fail=None):
    """Writes a file beside the result; some items are rejected; `fail` raises in the middle of one."""
    number = int(item[4:])
    if number == 3:
        raise StageError('a face is too small: 12 pixels')
    if number == 5:
        raise DataError('the video cannot be decoded')
    Path(folder, f'{item}.bin').write_bytes(bytes([number]) * 100)
    if item == fail:
        raise RuntimeError('killed here')
    with open(Path(folder, 'log.txt'), 'a') as log:
        log.write(item + '\n')
    return {'value': number / 3, 'files': [f'{item}.bin'], 'z': [1, {'a': -0.0000001}]}


def stage(folder, name='one', options=1, workers=1, **kwargs):
    function = functools.partial(work, str(folder), **kwargs)
    return run_stage(name, folder, ITEMS, lambda item: {'options': options, 'item': item}, function, workers)


def tree(folder):
    """All files but the log: what a run leaves."""
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.name != 'log.txt']
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def log(folder):
    path = folder / 'log.txt'
    done = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return done


GOOD = [item for item in ITEMS if item not in ('clip3', 'clip5')]


def test_results(tmp_path):
    results = stage(tmp_path)
    assert isinstance(results, Results) and list(results) == ITEMS and len(results) == 7
    assert results.accepted() == GOOD
    assert results.rejected == {
        'clip3': 'a face is too small: 12 pixels',
        'clip5': 'the video cannot be decoded',
    }
    inputs = {item: {'item': item, 'options': 1} for item in ITEMS}
    assert results['clip1'] == {
        'value': 0.333333,
        'files': ['clip1.bin'],
        'z': [1, {'a': 0.0}],
        'key': stage_key('one', 'clip1', inputs),
    }
    text = (tmp_path / 'one' / 'clip1.json').read_text()
    assert text == json.dumps(results['clip1'], sort_keys=True, separators=(',', ':')) + '\n'
    assert '-0.0' not in text


def test_second_run_makes_nothing(tmp_path):
    stage(tmp_path)
    before = tree(tmp_path)
    assert log(tmp_path) == GOOD
    assert stage(tmp_path).rejected.keys() == {'clip3', 'clip5'}
    assert log(tmp_path) == [] and tree(tmp_path) == before


@pytest.mark.parametrize('fail, workers', [*((item, 1) for item in GOOD), ('clip4', 2)])
def test_stopped_anywhere_and_run_again(tmp_path, fail, workers):
    stage(tmp_path / 'whole')
    with pytest.raises(RuntimeError, match='killed here'):
        stage(tmp_path / 'part', fail=fail, workers=workers)
    assert not (tmp_path / 'part' / 'one' / f'{fail}.json').exists()
    done = [item for item in log(tmp_path / 'part') if (tmp_path / 'part' / 'one' / f'{item}.json').exists()]
    assert set(done) >= set(GOOD[: GOOD.index(fail)])
    stage(tmp_path / 'part')
    assert not set(log(tmp_path / 'part')) & set(done)
    assert tree(tmp_path / 'part') == tree(tmp_path / 'whole')


def test_two_workers_are_one_worker(tmp_path):
    one, two = (stage(tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert one.keys_of == two.keys_of and one.rejected == two.rejected and list(one) == list(two)
    assert tree(tmp_path / '1') == tree(tmp_path / '2')


def test_changed_options_and_lost_files(tmp_path):
    keys = stage(tmp_path).keys_of
    log(tmp_path)
    changed = stage(tmp_path, options=2).keys_of
    assert log(tmp_path) == GOOD and all(keys[item] != changed[item] for item in ITEMS)
    (tmp_path / 'clip2.bin').unlink()
    (tmp_path / 'one' / 'clip4.json').write_text('{"key": ')
    (tmp_path / 'one' / '.clip4.json.0123456789abcdef0123456789abcdef.tmp').write_text('{')
    stage(tmp_path, options=2)
    assert log(tmp_path) == ['clip2', 'clip4']
    assert not list((tmp_path / 'one').glob('.*'))


def chain(folder, first, second):
    """Two stages of one item; the second depends on the first by its key."""
    done = []

    def step(name, item):
        done.append(name)
        return {}

    a = run_stage('a', folder, ['x'], {'x': first}, functools.partial(step, 'a'), 1)
    run_stage('b', folder, ['x'], {'x': [a.keys_of['x'], second]}, functools.partial(step, 'b'), 1)
    return done


def test_only_what_depends_on_a_change_is_made_again(tmp_path):
    assert chain(tmp_path, 1, 1) == ['a', 'b']
    assert chain(tmp_path, 1, 1) == []
    assert chain(tmp_path, 1, 2) == ['b']
    assert chain(tmp_path, 2, 2) == ['a', 'b']


def test_old_result_is_gone_before_its_files_change(tmp_path):
    """Otherwise options that go there and back, with a kill between, would leave files of the others."""
    stage(tmp_path, options=1)
    with pytest.raises(RuntimeError):
        stage(tmp_path, options=2, fail='clip0')
    log(tmp_path)
    stage(tmp_path, options=1)
    assert log(tmp_path) == ['clip0']


def test_user_errors_and_bugs_stop(tmp_path):
    for error in (UserError('the disk is full'), KeyError('x')):

        def broken(item, error=error):
            raise error

        with pytest.raises(type(error)):
            run_stage('s', tmp_path, ['x'], {'x': 1}, broken, 1)
        assert not (tmp_path / 's' / 'x.json').exists()
    with pytest.raises(ValueError, match='nan in the result'):
        run_stage('s', tmp_path, ['x'], {'x': 1}, lambda item: {'a': float('nan')}, 1)


def test_retried_rejections(tmp_path):
    calls = []

    def offline(item):
        calls.append(item)
        raise StageError('no network', retry=True)

    for _ in range(2):
        assert run_stage('s', tmp_path, ['x'], {'x': 1}, offline, 1).rejected == {'x': 'no network'}
    assert calls == ['x', 'x']


def test_read_stage(tmp_path):
    with pytest.raises(UserError, match=r'stage one has no result.*7 of 7 items.*--until one'):
        read_stage('one', tmp_path, ITEMS, {item: 1 for item in ITEMS})
    run = stage(tmp_path)
    read = read_stage('one', tmp_path, ITEMS, lambda item: {'options': 1, 'item': item})
    assert dict(read) == dict(run) and read.rejected == run.rejected
    with pytest.raises(UserError, match='other options'):
        read_stage('one', tmp_path, ITEMS, lambda item: {'options': 2, 'item': item})


def test_a_folder_is_for_one_run(tmp_path):
    with locked(tmp_path / 'w'):
        code = 'import sys; from pathlib import Path; from preprocessing.from_videos.stages import locked\n'
        code += 'with locked(Path(sys.argv[1])): pass'
        command = [sys.executable, '-c', code, str(tmp_path / 'w')]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode and 'another run works in' in done.stderr
    with locked(tmp_path / 'w'):
        pass


def test_small_helpers():
    assert rounded({'a': (1, 2.00000049, [-1e-9, True, None, 'x'])}) == {
        'a': [1, 2.0, [0.0, True, None, 'x']]
    }
    assert item_name('a/b c/d') == 'a__b c__d'
    long = item_name('ä' * 200 + '/x')
    assert len(long.encode()) <= 150 and long != item_name('ä' * 200 + '/y')
    reasons = ['3 of 24 are noisy', '5 of 24 are noisy', 'is red: x 7', 'is red: y', '16 long', 'at 1.5 s']
    kinds = [('# of 24 are noisy', 2), ('is red', 2), ('16 long', 1), ('at 1.5 s', 1)]
    assert count_reasons(reasons) == kinds


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


def test_a_folder_that_cannot_be_locked_is_no_other_run(tmp_path):
    (tmp_path / '.lock').mkdir()
    with pytest.raises(UserError, match='cannot lock .*lock: it is a folder'), locked(tmp_path):
        pass


def fail_or_sleep(sec):
    if not sec:
        raise ValueError('wrong')
    time.sleep(sec)


@pytest.mark.parametrize('items, ends', [([0.01, 600, 600], GeneratorExit), ([0, 600, 600], ValueError)])
def test_what_is_under_way_is_given_up(items, ends):
    """Ctrl-C, or an error of one item, does not wait for the hours that another may take."""
    results = parallel(fail_or_sleep, items, 2)
    start = time.monotonic()
    if ends is ValueError:
        with pytest.raises(ValueError, match='wrong'):
            next(results)
    else:
        next(results)
        results.close()
    assert time.monotonic() - start < 60
    with pytest.raises(StopIteration):
        next(results)


class Heavy:
    """Counts how often it is sent to another process; its results tell from which one."""

    def __init__(self, folder):
        self.folder = folder

    def __getstate__(self):
        Path(self.folder, f'{time.monotonic_ns()}.sent').touch()
        return {'folder': self.folder}

    def __call__(self, item):
        return item, os.getpid()


def test_work_is_sent_once_to_each_process(tmp_path):
    """It holds a table of all clips: with each clip it would cost the square of their number."""
    results = list(parallel(Heavy(str(tmp_path)), range(20), 2))
    assert [item for item, _ in results] == list(range(20)) and os.getpid() not in {p for _, p in results}
    assert 1 <= len(list(tmp_path.glob('*.sent'))) <= 2
