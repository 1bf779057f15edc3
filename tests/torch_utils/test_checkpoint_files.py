"""Checkpoints of a run folder: full disks, kills, corrupted files, the newest valid pair."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import CheckpointError, UserError
from support.paths import ROOT
from torch_utils.checkpoint import (
    latest_checkpoint,
    load_training_state,
    prune_training_states,
    save_snapshot,
    save_training_state,
    snapshot_path,
    training_state_path,
)


class Net(nn.Linear, Configurable):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        width: int = 100

    def __init__(self, config):
        super().__init__(4, config.width)
        self.config = config


def save_one(path):
    torch.manual_seed(1)
    save_snapshot(path, {'G': Net(Net.Config())}, {})


class FullDisk:
    """A file that takes a few bytes and then reports a full disk, as the operating system does."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return self.file.write(data)

    def flush(self):
        self.file.flush()


@pytest.mark.parametrize('room', [0, 200, 2000])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, room):
    path = tmp_path / 'a.pkl'
    save_one(path)
    before = path.read_bytes()
    save = torch.save
    monkeypatch.setattr(torch, 'save', lambda content, file: save(content, FullDisk(file, room)))
    with pytest.raises(UserError, match=r'cannot write .*a\.pkl: the disk is full; free some space'):
        save_one(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['a.pkl']


def write_pair(folder, number):
    save_one(snapshot_path(folder, number))
    save_training_state(training_state_path(folder, number), {'number': number})


def test_latest_checkpoint_is_the_newest_pair(tmp_path):
    warnings = []
    assert latest_checkpoint(tmp_path / 'no', warnings.append) is None
    assert latest_checkpoint(tmp_path, warnings.append) is None
    for number in (2, 10, 1000000):
        write_pair(tmp_path, number)
    (tmp_path / 'network-snapshot-best.pkl').touch()
    newest = tmp_path / 'network-snapshot-001000000.pkl', tmp_path / 'training-state-001000000.pt', 1000000
    assert latest_checkpoint(tmp_path, warnings.append) == newest and warnings == []


def test_corrupted_checkpoints_are_named_and_skipped(tmp_path):
    for number in (1, 2, 3, 4):
        write_pair(tmp_path, number)
    os.truncate(snapshot_path(tmp_path, 4), 1000)
    os.truncate(training_state_path(tmp_path, 3), 300)
    save_one(snapshot_path(tmp_path, 5))
    warnings = []
    assert latest_checkpoint(tmp_path, warnings.append)[2] == 2
    named = snapshot_path(tmp_path, 5), snapshot_path(tmp_path, 4), training_state_path(tmp_path, 3)
    assert all(path.name in warning for path, warning in zip(named, warnings, strict=True))


def cannot_continue(folder, match):
    with pytest.raises(CheckpointError, match=match) as err:
        latest_checkpoint(folder, lambda _: None)
    assert str(folder) in str(err.value) and '--fresh' in str(err.value)
    return str(err.value)


@pytest.mark.parametrize('kind', ['missing', 'corrupted'])
def test_snapshots_without_a_training_state_are_not_overlooked(tmp_path, kind):
    """The run would begin again from nothing, and its weights be lost from sight."""
    for number in (1, 2, 3):
        save_one(snapshot_path(tmp_path, number))
        if kind == 'corrupted':
            training_state_path(tmp_path, number).write_bytes(b'PK')
    os.truncate(snapshot_path(tmp_path, 3), 1000)
    cannot_continue(tmp_path, f'--resume {snapshot_path(tmp_path, 2)}')


def test_training_states_without_a_snapshot(tmp_path):
    save_training_state(training_state_path(tmp_path, 3), {})
    warnings = []
    assert latest_checkpoint(tmp_path, warnings.append) is None  # the first save was interrupted
    assert training_state_path(tmp_path, 3).name in warnings[0]
    snapshot_path(tmp_path, 3).write_bytes(b'PK')
    assert '--resume' not in cannot_continue(tmp_path, 'cannot be continued')


def test_a_kill_while_saving_costs_only_that_checkpoint(tmp_path):
    write_pair(tmp_path, 1)
    code = (
        'import sys, time, torch\nfrom torch_utils import checkpoint\n'
        'def slow(content, file):\n'
        '    file.write(b"PK half"); file.flush(); print("half", flush=True); time.sleep(60)\n'
        'torch.save = slow\ncheckpoint.save_training_state(sys.argv[1], {"a": 1})\n'
    )
    command = [sys.executable, '-c', code, str(training_state_path(tmp_path, 1))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'half\n'
        process.send_signal(signal.SIGKILL)
    assert len(os.listdir(tmp_path)) == 3
    warnings = []
    found = latest_checkpoint(tmp_path, warnings.append)
    assert found[2] == 1 and load_training_state(found[1]) == {'number': 1} and warnings == []
    assert len(os.listdir(tmp_path)) == 2  # the half-written file is gone


def test_prune_keeps_snapshots(tmp_path):
    for number in (9, 10, 100):
        write_pair(tmp_path, number)
    for number in (101, 102):  # of saves that were interrupted before the snapshot
        save_training_state(training_state_path(tmp_path, number), {})
    prune_training_states(tmp_path, keep=2)
    states = sorted(p.name for p in tmp_path.glob('training-state-*'))
    assert states == ['training-state-000000010.pt', 'training-state-000000100.pt']
    assert len(list(tmp_path.glob('network-snapshot-*'))) == 3
