"""Probes: shares of a verdict, variance by cause, norms of motion layers, with known answers."""

import dataclasses

import pytest
import torch
from torch import nn

from dnnlib.config import override
from support import second_system, tiny
from support.small_runs import CPU, everything, new_trainer
from training.batching import Progress
from training.diagnostics import Probes, directions, variance_parts, watched_motion
from training.networks.contract import Codes


class Judge(nn.Module):
    """A D_video of known taste: logit = weights . (mean of the first frame, change of means, camera)."""

    def __init__(self, first, change, camera, fake_bonus=0.0):
        super().__init__()
        self.weights = torch.tensor([first, change, camera])

    def pair_input(self, images, t):
        return images.mean(dim=(2, 3, 4))

    def forward(self, pair, c):
        seen = [pair[:, 0], (pair[:, 1] - pair[:, 0]).abs(), c[:, 0, 3]]
        return (torch.stack(seen, dim=1) @ self.weights)[:, None]


def probes_of(trainer, **networks):
    """Probes of a trainer with some networks replaced."""
    parts = trainer.config, trainer.dataset, trainer.loss
    return Probes(*parts, trainer.networks._replace(**networks), trainer.G_ema, CPU)


@pytest.fixture
def trainer(small, tmp_path):
    return new_trainer(override(small, {'dataset.heldout_clips': '2'}), tmp_path)


def measured(trainer, judge):
    """What the probes of pairs say; the sign of the judge makes reals better than fakes."""
    probes = probes_of(trainer, D_video=judge, D_image=None)
    found = probes._verdicts(Progress())
    if found['Probe/video/gap'] < 0:
        judge.weights.neg_()
        found = probes._verdicts(Progress())
    return found


def test_a_judge_of_the_first_frame_does_not_see_motion(trainer):
    found = measured(trainer, Judge(50.0, 0.0, 0.0))
    assert found['Probe/video/gap'] > 0.1 and 'Probe/image/gap' not in found
    assert found['Probe/video/see_motion'] == found['Probe/video/cameras'] == found['Probe/video/person'] == 0
    assert found['Probe/video/order'] != 0


def test_a_judge_of_changes_alone_sees_nothing_but_motion(trainer):
    found = measured(trainer, Judge(0.0, 50.0, 0.0))
    frames = probes_of(trainer)._real['frames'].float() / 127.5 - 1
    # the blur of training does not change a mean by much
    change = 50 * frames.mean(dim=(2, 3, 4)).diff().abs().mean()
    share = found['Probe/video/see_motion']
    assert abs(share * found['Probe/video/gap']) == pytest.approx(change.item(), rel=0.1)
    assert found['Probe/video/order'] == pytest.approx(0, abs=1e-5) and found['Probe/video/cameras'] == 0
    assert found['Probe/video/person'] != 0


def test_a_judge_of_cameras_finds_no_gap_and_gets_no_shares(trainer):
    found = measured(trainer, Judge(0.0, 0.0, 1.0))
    assert found['Probe/video/gap'] == pytest.approx(0, abs=1e-6)  # fakes have the cameras of the reals
    assert 'Probe/video/see_motion' not in found


def test_signs_of_training_and_heldout_clips(trainer):
    probes = probes_of(trainer)
    found = probes._verdicts(Progress())
    for name in ('image', 'video'):
        assert {f'Probe/{name}/sign/train', f'Probe/{name}/sign/heldout'} <= found.keys()
        assert f'Probe/{name}/memorised' in found
    probes._heldout = probes._real
    again = probes._verdicts(Progress())
    assert again['Probe/video/sign/train'] == again['Probe/video/sign/heldout']
    assert again['Probe/video/memorised'] == 0


def test_without_heldout_clips_nothing_is_said_of_them(small, tmp_path):
    found = probes_of(new_trainer(small, tmp_path))._verdicts(Progress())
    assert 'Probe/image/sign/train' in found and not any('heldout' in n or 'memorised' in n for n in found)


def test_probes_change_nothing_and_repeat(trainer):
    before, state = everything(trainer), torch.get_rng_state()
    first, second = (probes_of(trainer).measure(Progress(cur_nimg=4)) for _ in range(2))
    later = trainer.probes.measure(Progress(cur_nimg=8))
    drop = 'Timing/probe_sec'
    assert {**first, drop: 0} == {**second, drop: 0} and later['Probe/variance/z_a'] != first[
        'Probe/variance/z_a'
    ]
    assert torch.equal(state, torch.get_rng_state())
    after = everything(trainer)
    assert all(torch.equal(a, after[n]) if torch.is_tensor(a) else a == after[n] for n, a in before.items())
    shares = [value for name, value in first.items() if name.startswith('Probe/variance/')]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1)


def test_networks_of_another_kind_are_probed_as_far_as_they_go(small, tmp_path, monkeypatch):
    for registry, kind, made in second_system.KINDS:
        monkeypatch.setitem(registry, kind, made)
    found = new_trainer(second_system.second(small.dataset.path), tmp_path).probes.measure(Progress())
    assert found['Probe/variance/z_a'] > 0
    assert found['Probe/variance/camera'] == pytest.approx(0, abs=1e-9)  # it has no 3D
    assert not any('video' in name or 'layers' in name for name in found)


def test_variance_by_cause_is_not_biased():
    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    g = tiny.seeded(0)
    people, motions, times, pixels = 4, 3, 4, 20_000
    clock = torch.tensor([-1.5, 0.5, 0.5, 0.5], dtype=torch.float64)[:, None]
    images = 5 + 2 * normal(people, 1, 1, pixels) + 0.7 * clock
    images = images + 0.6 * normal(people, motions, 1, pixels) + 0.5 * normal(people, motions, times, pixels)
    parts = variance_parts(images)
    assert parts.z_m == pytest.approx(0.6**2 + 0.5**2, rel=0.02)
    assert parts.t == pytest.approx(0.7**2 * 0.75, rel=0.02)
    # what changes at random keeps a part of its mean over times
    assert parts.z_a == pytest.approx(4, rel=0.02)


def test_pure_causes():
    clock = torch.arange(4.0, dtype=torch.float64).expand(2, 3, 4)
    assert variance_parts(clock) == pytest.approx((0, 0, 1.25))
    codes = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None].expand(2, 3, 4)
    assert variance_parts(codes) == pytest.approx((0, 1, 0))


def test_motion_layers_are_watched_and_left_alone(trainer):
    G = tiny.generator().eval().requires_grad_(False)
    z_a, z_m, t, c = tiny.codes(4)
    alone = G(z_a, z_m, t, c).image
    with watched_motion(G) as layers:
        watched = G(z_a, z_m, t, c).image
    assert torch.equal(alone, watched) and len(layers) == 4
    seen = {name: {kind: x[0].clone() for kind, x in kinds.items()} for name, kinds in layers.items()}
    G(z_a, z_m, t, c)
    assert all(len(x) == 1 for kinds in layers.values() for x in kinds.values())
    first = seen['synthesis.b4.motion']
    block = G.synthesis.b4
    f = block.conv1(block.const.expand(4, -1, -1, -1), G.condition(Codes(z_a, z_m), c, t)[:, 0], 'const')
    assert torch.allclose(first['f'], f.square().mean(dim=(1, 2, 3)))
    w_m = block.motion.mlp(block.motion.head(z_m * t[:, None]))
    assert torch.allclose(first['f_m'], block.motion.conv(f, w_m, 'const'), atol=1e-5)
    assert torch.allclose(first['style'], block.motion.conv.affine(w_m).mean(1))


def test_directions_count_those_that_vary_alike():
    g = tiny.seeded(0)
    turn = torch.linalg.qr(torch.randn((9, 9), generator=g)).Q
    one, three = torch.zeros(2, 9), torch.zeros(6, 9)
    one[:, 0] = torch.tensor([-1.0, 1.0])
    three[range(6), [0, 0, 1, 1, 2, 2]] = torch.tensor([2.0, -2.0] * 3)
    for expected, rows in ((1, one), (3, three)):
        assert directions(5 + rows @ turn).item() == pytest.approx(expected, rel=1e-4)
    assert directions(torch.ones(4, 9)) == 0


def test_ticks_without_probes(small, tmp_path):
    trainer = new_trainer(dataclasses.replace(small, total_nimg=2), tmp_path)
    trainer.probes = None  # would fail
    assert trainer.train()
    assert 'Probe' not in (tmp_path / 'stats.jsonl').read_text()
