"""The benchmark of reliability sees what is broken, and no more."""

import io
import pickle
import random
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import (
    reliability,
    reliability_damage,
    reliability_kills,
    reliability_limits,
    reliability_runs,
)
from benchmarks.reliability_damage import mutated, sentence
from dnnlib.util import UserError

SCRIPT = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from dnnlib.util import atomic_write
for i in range(4):
    file = pathlib.Path(f'{{i}}.txt')
    if not file.exists():
        with {opened} as f:
            for part in 'abcd':
                f.write(part)
                f.flush()
                end = time.process_time() + 0.005
                while time.process_time() < end:
                    pass
"""


@pytest.mark.parametrize(('opened', 'sound'), [("atomic_write(file, 'w')", True), ("open(file, 'w')", False)])
def test_kills_reveal_files_that_are_half_written(tmp_path, opened, sound):
    script = tmp_path / 'writes.py'
    script.write_text(SCRIPT.format(root=str(reliability_runs.ROOT), opened=opened))

    def texts(place):
        return {p.name: p.read_text() for p in place.glob('?.txt')}

    case = reliability_runs.Case('writes', (str(script),), texts)
    found = reliability_kills.kill_command(case, tmp_path / 'out', 6, 0, time.time() + 600)
    assert found['results'] == 4 and found['failed'] == []
    assert (found['different'] == []) == sound
    assert (reliability.verdict(found) == 'ok') == sound
    assert not sound or found['kills'] == 6


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as new:
        new.writestr('a/data.pkl', bytes(range(200)))
        new.writestr('a/data/0', bytes(500))
    return file.getvalue()


def test_damages(tmp_path, monkeypatch):
    """All ways occur; those inside a zip leave its checksums right; the hostile pickle does run elsewhere."""
    ways = {}
    for seed in range(200):
        way, content = mutated(archive(), random.Random(seed))
        assert content != archive() or way in ('moved', 'zeroed', 'flipped', 'inside')
        ways[way] = content
        if way.endswith('inside'):
            assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    assert len(ways) == 8
    monkeypatch.chdir(tmp_path)
    pickle.loads(zipfile.ZipFile(io.BytesIO(ways['hostile inside'])).read('a/data.pkl'))
    assert Path(reliability_damage.CANARY).exists()


def test_judgement_of_commands():
    assert sentence(0, 'done\n') == 'succeeded'
    assert sentence(1, 'some\nError: x: no; do y\n') == 'refused'
    for code, printed in [
        (1, ''),
        (2, 'Error: x\n'),
        (-11, 'Error: x\n'),
        (None, ''),
        (1, 'Error: x\nError: y\n'),
        (1, 'Error: x\ny\n'),
        (0, 'Traceback (most recent call last):\n'),
    ]:
        assert sentence(code, printed) not in ('succeeded', 'refused'), (code, printed)


def test_judgement_of_files(tmp_path):
    def refuses(path):
        raise UserError(f'{path}: no')

    def breaks(_):
        raise KeyError('x')

    judged = [reliability_damage._outcome(run, tmp_path) for run in (refuses, breaks, lambda _: None)]
    assert judged == ['refused', "KeyError: 'x'", 'opened']


def test_a_full_disk_is_full(tmp_path):
    script = tmp_path / 'fills.py'
    script.write_text("open('x', 'wb').write(bytes(10**6))\nprint('Error: not full')\nraise SystemExit(1)\n")
    case = reliability_runs.Case('fills', (str(script),), lambda _: {})
    found = reliability_limits.limited(case, tmp_path / 'out', 'full disk')
    assert 'skipped' in found or 'No space left' in found['end'] or 'File too large' in found['end']
