"""Records of items: computed once, whoever computes them; kills, corruption, other runs and processes."""

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from metrics.records import store as feature_store
from metrics.records.store import CHUNK, Task
from torch_utils import distributed as dist

KEY = {'source': {'data': 'abc', 'frames': 16}, 'detector': 'i3d'}
TOTAL = 3 * CHUNK + 5
LIMIT_SEC = 60


def collect(folder, key, total, compute, progress=lambda n: None):
    """Collects one task."""
    return feature_store.collect(folder, [Task(key, total)], lambda i, wanted: [compute(i)], progress)[0]


class Work:
    """Computes records and notes for which items."""

    def __init__(self, stop_at=None, error=KeyboardInterrupt):
        self.items, self.stop_at, self.error, self.ticks = [], stop_at, error, []

    def __call__(self, i):
        if i == self.stop_at:
            raise self.error
        self.items.append(i)
        return record(i)

    def collect(self, folder, total=TOTAL, key=None):
        self.ticks = []
        return collect(folder, key or KEY, total, self, self.ticks.append)


def record(i):
    if i % 7 == 3:
        return f'item {i}: "no" face'
    rng = np.random.default_rng(i)
    feature = rng.normal(size=(1 + i % 3, 4)).astype(np.float32)
    return {'x': feature, 'score': np.float64(i / 3), 'a/b index': np.arange(i % 2), 'file': feature > 0}


def assert_records(found, total=TOTAL):
    assert len(found) == total
    for i, ours in enumerate(found):
        expected = record(i)
        if isinstance(expected, str):
            assert ours == expected
            continue
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert ours[name].dtype == value.dtype and np.array_equal(ours[name], value), (i, name)


def files(folder):
    return sorted(folder.glob('*/chunk-*.npz'))


def test_computed_once(tmp_path):
    work = Work()
    assert_records(work.collect(tmp_path / 'new' / 'store'))
    assert work.items == list(range(TOTAL)) and sum(work.ticks) == TOTAL and set(work.ticks) == {0, 1}
    again = Work()
    assert_records(again.collect(tmp_path / 'new' / 'store'))
    assert again.items == [] and again.ticks[0] == TOTAL == sum(again.ticks)
    folder = next((tmp_path / 'new' / 'store').iterdir())
    assert len(folder.name) == 32 and json.loads((folder / 'key.json').read_text()) == KEY
    assert sorted(p.name for p in folder.iterdir())[:2] == ['chunk-000000.npz', 'chunk-000001.npz']
    assert len(list(folder.iterdir())) == 5  # nothing temporary is left


def test_keys_are_apart(tmp_path):
    keys = [KEY, dict(reversed(KEY.items())), {**KEY, 'detector': 'lite0'}]
    works = [Work() for _ in keys]
    for work, key in zip(works, keys, strict=True):
        work.collect(tmp_path, 3, key)
    assert [work.items for work in works] == [[0, 1, 2], [], [0, 1, 2]] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_stopped_runs_resume(tmp_path, error):
    with pytest.raises(error):
        Work(stop_at=CHUNK + 4, error=error).collect(tmp_path)
    again = Work()
    assert_records(again.collect(tmp_path))
    assert again.items == list(range(CHUNK + 4, TOTAL))
    assert again.ticks[0] == CHUNK + 4 and sum(again.ticks) == TOTAL


def test_killed_runs_lose_a_chunk_at_most(tmp_path):
    """A process that ends without any clean-up."""
    pid = os.fork()
    if pid == 0:
        collect(tmp_path, KEY, TOTAL, lambda i: os._exit(9) if i == 2 * CHUNK + 3 else record(i))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    work = Work()
    assert_records(work.collect(tmp_path))
    assert work.items == list(range(2 * CHUNK, TOTAL))


def test_tasks_share_items(tmp_path):
    """Item by item, all that is missing and nothing else; equal keys are one."""
    Work().collect(tmp_path, 3)
    tasks = [Task(KEY, 5), Task({'b': 1}, CHUNK + 2), Task(KEY, 4), Task({'c': 1}, 0)]
    calls, ticks = [], []

    def compute(i, wanted):
        calls.append((i, list(wanted)))
        return [record(i + 100 * k) for k in wanted]

    found = feature_store.collect(tmp_path, tasks, compute, ticks.append)
    assert [len(records) for records in found] == [5, CHUNK + 2, 4, 0]
    both = {3, 4}  # of KEY three were there
    assert calls == [(i, [0, 1] if i in both else [1]) for i in range(CHUNK + 2)]
    assert_records(found[0], 5)
    assert_records(found[2], 4)
    assert found[1][6]['score'] == 106 / 3 and sum(ticks) == 5 + CHUNK + 2
    assert feature_store.collect(tmp_path, [], compute) == []


def test_totals_share_records(tmp_path):
    small, large, again = Work(), Work(), Work()
    assert_records(small.collect(tmp_path, CHUNK + 3), CHUNK + 3)
    assert_records(large.collect(tmp_path))
    assert large.items == list(range(CHUNK + 3, TOTAL)) and sum(large.ticks) == TOTAL
    assert_records(again.collect(tmp_path, 5), 5)
    assert again.items == [] and again.ticks[0] == 5
    assert_records(Work(stop_at=0).collect(tmp_path))  # the smaller run has taken nothing away
    assert small.collect(tmp_path, 0) == []


@pytest.mark.parametrize('change', [lambda data: b'', lambda data: data[: len(data) // 2]])
def test_corrupted_chunks_are_computed_again(tmp_path, caplog, change):
    Work().collect(tmp_path)
    path = files(tmp_path)[1]
    good = path.read_bytes()
    path.write_bytes(change(good))
    work = Work()
    assert_records(work.collect(tmp_path))
    assert work.items == list(range(CHUNK, 2 * CHUNK)) and sum(work.ticks) == TOTAL
    assert len(caplog.records) == 1 and 'is corrupted' in caplog.text and path.name in caplog.text
    assert path.read_bytes() == good


def test_no_flipped_byte_changes_a_record(tmp_path, caplog):
    Work().collect(tmp_path, 5)
    path = files(tmp_path)[0]
    good = path.read_bytes()
    for place in range(0, len(good), 41):
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        assert_records(Work().collect(tmp_path, 5), 5)
    assert len(caplog.records) > 20


def test_pickles_are_refused(tmp_path, caplog):
    Work().collect(tmp_path, 2)
    path = files(tmp_path)[0]
    index = np.array(json.dumps({'items': 2, 'failures': {}}))
    np.savez(path, index=index, **{'0/x': np.array([print], dtype=object), '1/x': np.zeros(2)})
    assert_records(Work().collect(tmp_path, 2), 2)
    assert 'is corrupted' in caplog.text


def test_records_are_copies(tmp_path):
    shared = np.zeros(3)
    found = collect(tmp_path, KEY, 3, lambda i: {'x': np.copyto(shared, i) or shared})
    assert [r['x'].tolist() for r in found] == [[i] * 3 for i in range(3)]


def test_concurrent_runs(tmp_path):
    """Four runs at once, of different totals; all see the same and the store stays whole."""
    totals, works, start = [TOTAL, CHUNK + 3, TOTAL, 7], [Work() for _ in range(4)], threading.Barrier(4)

    def run(k):
        start.wait()
        return works[k].collect(tmp_path, totals[k])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    for found, work, total in zip(results, works, totals, strict=True):
        assert_records(found, total)
        assert sum(work.ticks) == total
    last = Work()
    assert_records(last.collect(tmp_path))
    # the runs of 7 and of 19 items may have put their shorter files over others
    assert set(last.items) <= set(range(2 * CHUNK))
    assert not list(tmp_path.glob('*/.*'))


def test_work_of_another_run_is_taken_over(tmp_path):
    """A chunk that appears after the beginning is not computed again."""
    items, ticks = [], []

    def compute(i):
        items.append(i)
        if i == 3:
            Work().collect(tmp_path)
        return record(i)

    assert_records(collect(tmp_path, KEY, TOTAL, compute, ticks.append))
    assert items == list(range(CHUNK)) and sum(ticks) == TOTAL


def process(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    os.environ['MASTER_PORT'] = str(port)
    dist.init('cpu')
    items = []
    for store in (folder / 'shared', folder / f'own{rank}'):
        work, again = Work(), Work()
        assert_records(work.collect(store))
        assert_records(again.collect(store))
        assert again.items == [] and sum(work.ticks) == sum(again.ticks) == TOTAL
        items.append(work.items)
    (folder / f'{rank}.json').write_text(json.dumps(items))
    dist.finish()


def test_two_processes(tmp_path):
    """Each computes its chunks and has all records, as one process has, with a shared disk and without."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = mp.start_processes(process, (port, tmp_path), 2, join=False, start_method='fork')
    try:
        done = any(context.join(timeout=LIMIT_SEC) for _ in range(2))  # each join waits for one more
        assert done, 'the two processes hang'
    finally:
        for child in context.processes:
            child.kill()
    seen = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2)]
    for case in range(2):
        assert [{i // CHUNK for i in part[case]} for part in seen] == [{0, 2}, {1, 3}]
        assert sorted(seen[0][case] + seen[1][case]) == list(range(TOTAL))
    one = Work()  # resumes where two were
    assert_records(one.collect(tmp_path / 'shared'))
    assert one.items == [] and [len(files(tmp_path / d)) for d in ('shared', 'own0', 'own1')] == [4, 2, 2]
