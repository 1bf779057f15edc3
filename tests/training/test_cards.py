"""Plans for GPUs that are not here, and for the disk."""

import dataclasses
import re
import shutil
from collections import Counter, namedtuple

import pytest
import torch

import train
from dnnlib.util import UserError
from support.paths import ROOT
from training import estimate
from training.cards import CARDS, check_disk, describe_disk, disk_of
from training.config import build_networks, with_followers
from training.estimate import DeviceSpeed, StepEstimate, Work, describe_fit, describe_run, speed_of
from training.presets import PRESETS


def test_cards_are_the_choices_of_the_option():
    (option,) = (p for p in train.main.params if p.name == 'gpu')
    assert list(option.type.choices) == list(CARDS)


def test_tf32_is_faster_and_half_faster_still():
    config = PRESETS['tiny']('none.zip')
    for card in CARDS.values():
        exact = speed_of(card, config).flops
        tf32 = speed_of(card, dataclasses.replace(config, float32_precision='tf32')).flops
        assert exact[torch.float32] <= tf32[torch.float32] < tf32[torch.float16] < card.half


def test_a_named_gpu_is_planned_for_without_one(monkeypatch):
    config, device = PRESETS['tiny']('none.zip'), torch.device('cpu')
    work = Work(flops=Counter({torch.float16: 10**12}), moved_bytes=1e9, calls=100)
    step = StepEstimate(work=work, network_bytes=2**20, optimizer_bytes=2**20, activation_bytes=2**30)
    monkeypatch.setattr(estimate, 'estimate_step', lambda *_: step)  # counting takes seconds
    seen = []
    real = DeviceSpeed.seconds
    monkeypatch.setattr(DeviceSpeed, 'seconds', lambda self, work: seen.append(self) or real(self, work))
    text = describe_run(config, device, 1, CARDS['rtx4090'])
    assert 'estimate for 1 x RTX 4090, 24 GB, counted, not measured' in text
    assert 'of 23.5 GiB on RTX 4090, 24 GB' in text and [speed.kind for speed in seen] == ['cuda']
    small = dataclasses.replace(CARDS['rtx4090'], room_gib=3.0)
    assert describe_fit(config, 1, device, small).startswith('does not fit: ')


@pytest.mark.parametrize('cfg', ['pv3d-128', 'pv3d-voxceleb'])
def test_the_table_of_costs_is_what_is_counted(cfg):
    page = (ROOT / 'docs' / 'training.md').read_text()
    (row,) = re.findall(rf'^\| `{cfg}`[^|]*\|(.*)\|$', page, flags=re.M)
    batch, memory, kimg, *times = (float(re.match(r' ([\d.]+)', cell)[1]) for cell in row.split('|'))
    config = with_followers(PRESETS[cfg]('none.zip'))
    step = estimate.estimate_step(config, 1, 'cuda')
    assert (batch, kimg) == (config.batch, config.total_nimg / 1000)
    assert memory == pytest.approx(step.total_bytes / 2**30, rel=0.03, abs=0.5)
    counted = [speed_of(card, config).seconds(step.work) * 1000 / config.batch for card in CARDS.values()]
    assert times == pytest.approx(counted, rel=0.03, abs=0.5)


def test_disk_of_a_run(small, tmp_path, monkeypatch):
    """Sizes are those of the files that a run writes; snapshots add up, states do not."""
    from support.small_runs import train as run

    networks = build_networks(small)
    disk = disk_of(small, networks)
    run(dataclasses.replace(small, total_nimg=2), tmp_path / 'run')
    (snapshot,), (state,) = ((tmp_path / 'run').glob(n) for n in ('network-*', 'training-state-*'))
    assert disk.snapshot_bytes == pytest.approx(snapshot.stat().st_size, rel=0.3)
    assert disk.state_bytes == pytest.approx(state.stat().st_size, rel=0.3)
    output = dataclasses.replace(small.output, snapshot_ticks=1, keep_states=2)
    many = disk_of(dataclasses.replace(small, output=output, total_nimg=41), networks)
    assert (disk.snapshots, many.snapshots, many.states) == (1, 11, 3)
    assert many.total_bytes == 11 * disk.snapshot_bytes + 3 * disk.state_bytes
    assert '11 snapshots' in describe_disk(many) and check_disk(tmp_path, many) == ''
    Usage = namedtuple('Usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: Usage(0, 0, many.total_bytes - 1))
    assert 'the whole run will write about' in check_disk(tmp_path, many)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: Usage(0, 0, disk.snapshot_bytes))
    with pytest.raises(UserError, match=r'[1-9].* MiB are free, but two checkpoints of this run take'):
        check_disk(tmp_path, many)
