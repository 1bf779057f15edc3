"""The Trainer in this process: exact resume, phases, moving average, memory, non-finite gradients."""

import dataclasses
import gc
import json
import math
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnnlib.config import override
from dnnlib.util import CheckpointError, UserError
from support.small_runs import CPU, assert_same, batch_of, everything, new_trainer, stop_at, train
from torch_utils import checkpoint
from training.batching import PHASES, fake_batch, make_phases
from training.config import OutputConfig
from training.loss import PV3DLoss
from training.training_loop import Callbacks, Trainer


@pytest.fixture(scope='module')
def uninterrupted(small, tmp_path_factory):
    """The run that others must equal: all that it consists of, and which files were decoded in what order."""
    trainer = train(small, tmp_path_factory.mktemp('whole'))
    assert trainer.progress.cur_nimg == 12 and trainer.progress.batch_idx == 6
    return everything(trainer)


@pytest.mark.parametrize('until', [[2], [6], [4, 10]], ids=str)
def test_stop_and_resume_is_the_same_run(small, uninterrupted, tmp_path, until):
    for nimg in until:
        trainer = train(small, tmp_path, until=nimg)
        assert trainer.progress.cur_nimg == nimg
        assert (tmp_path / f'network-snapshot-{nimg:09d}.pkl').exists()
    assert_same(everything(train(small, tmp_path)), uninterrupted)


def test_longer_run_continues(small, uninterrupted, tmp_path):
    first = train(dataclasses.replace(small, total_nimg=6), tmp_path)
    assert first.progress.cur_nimg == 6
    assert_same(everything(train(small, tmp_path)), uninterrupted)


def test_complete_run_is_left_as_it_is(small, tmp_path):
    config = dataclasses.replace(small, total_nimg=4)
    train(config, tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if 'events' not in p.name}
    train(config, tmp_path)
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if 'events' not in p.name}
    assert before == after


def test_what_is_written_and_when_does_not_change_the_run(small, uninterrupted, tmp_path):
    output = OutputConfig(tick_nimg=6, snapshot_ticks=1, image_ticks=1, sheet_seeds=1)
    found = everything(train(dataclasses.replace(small, output=output), tmp_path))
    assert (found.pop('/progress/tick'), uninterrupted['/progress/tick']) == (2, 3)
    assert_same(found, {n: v for n, v in uninterrupted.items() if n != '/progress/tick'})


def test_data_workers_change_nothing(small, uninterrupted, tmp_path):
    config = dataclasses.replace(small, workers=2)
    train(config, tmp_path, until=6)
    assert_same(everything(train(config, tmp_path)), uninterrupted)


def test_another_seed_is_another_run(small, uninterrupted, tmp_path):
    other = everything(train(dataclasses.replace(small, seed=1, total_nimg=2), tmp_path))
    name = '/networks/G/synthesis.b4.const'
    assert not torch.equal(other[name], uninterrupted[name])


def test_every_number_that_trains_moves(small, uninterrupted, tmp_path):
    start = everything(Trainer(small, tmp_path, CPU))
    still = {n for n, v in start.items() if isinstance(v, Tensor) and torch.equal(v, uninterrupted[n])}
    constant = ('noise_const', 'superresolution', 'noise_strength')  # noise is off in super-resolution
    assert [n for n in still if not any(c in n for c in constant)] == []
    assert len([n for n in still if 'noise_strength' in n]) == 8  # four layers, in G and in G_ema


def test_corrupted_files_are_named_and_skipped(small, uninterrupted, tmp_path, capsys):
    config = dataclasses.replace(small, output=OutputConfig(tick_nimg=4, snapshot_ticks=1, image_ticks=0))
    train(config, tmp_path, until=12)
    snapshot, state = (tmp_path / 'network-snapshot-000000012.pkl', tmp_path / 'training-state-000000008.pt')
    snapshot.write_bytes(snapshot.read_bytes()[: snapshot.stat().st_size // 2])
    capsys.readouterr()
    trainer = Trainer(config, tmp_path, CPU)
    assert f'skipped: {snapshot}: cut short' in capsys.readouterr().out
    assert trainer.progress.cur_nimg == 8
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match='--resume .*network-snapshot-000000008.pkl.*--fresh'):
        Trainer(config, tmp_path, CPU)  # it does not begin again from nothing
    state.write_bytes(whole)
    assert_same(everything(train(config, tmp_path)), uninterrupted)


@pytest.mark.parametrize('name', ['network-snapshot-000000008.pkl', 'training-state-000000008.pt'])
def test_half_written_newest_file_costs_one_checkpoint(small, uninterrupted, tmp_path, capsys, name):
    config = dataclasses.replace(small, output=OutputConfig(tick_nimg=4, snapshot_ticks=1, image_ticks=0))
    train(config, tmp_path, until=8)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
    trainer = Trainer(config, tmp_path, CPU)
    assert trainer.progress.cur_nimg == 4 and name in capsys.readouterr().out
    assert_same(everything(train(config, tmp_path)), uninterrupted)


def test_resume_from_weights_is_a_new_run(small, tmp_path):
    source = train(dataclasses.replace(small, total_nimg=4), tmp_path / 'a')
    path = tmp_path / 'a' / 'network-snapshot-000000004.pkl'
    (tmp_path / 'b').mkdir()
    trainer = new_trainer(dataclasses.replace(small, seed=5, resume=str(path)), tmp_path / 'b')
    assert trainer.progress.cur_nimg == 0 and trainer.phases[0].optimizer.state_dict()['state'] == {}
    networks = [n for n in everything(source) if n.startswith('/networks')]
    found, wanted = everything(trainer), everything(source)
    assert all(torch.equal(found[n], wanted[n]) for n in networks)
    assert list((tmp_path / 'b').iterdir()) == []


def test_schedules_go_on_in_a_run_from_weights(small, tmp_path, monkeypatch):
    train(dataclasses.replace(small, total_nimg=4), tmp_path / 'a')
    path = str(tmp_path / 'a' / 'network-snapshot-000000004.pkl')
    config = dataclasses.replace(small, seed=5, resume=path, total_nimg=6)
    seen = []
    terms = PV3DLoss.terms

    def spy(self, phase, networks, real, fake, nimg, generator):
        seen.append(nimg)
        return terms(self, phase, networks, real, fake, nimg, generator)

    monkeypatch.setattr(PV3DLoss, 'terms', spy)
    whole = train(config, tmp_path / 'b')
    assert sorted(set(seen)) == [4, 6, 8] and whole.progress.cur_nimg == 6
    train(config, tmp_path / 'c', until=2)
    assert_same(everything(train(config, tmp_path / 'c')), everything(whole))
    last = checkpoint.read_snapshot(tmp_path / 'c' / 'network-snapshot-000000006.pkl')
    assert (last.meta['cur_nimg'], last.meta['schedule_nimg']) == (6, 10)


def test_resume_from_half_precision(small, tmp_path):
    source = Trainer(small, tmp_path, CPU)
    path = tmp_path / 'half.pkl'
    checkpoint.save_snapshot(path, source.modules(), {}, dtype=torch.float16)
    trainer = new_trainer(dataclasses.replace(small, seed=5, resume=str(path)), tmp_path)
    for ours, theirs in zip(trainer.G_ema.parameters(), source.G_ema.parameters(), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-3, atol=1e-3)


def test_snapshot_that_does_not_fit(small, tmp_path):
    source = Trainer(small, tmp_path, CPU)
    path = tmp_path / 'a.pkl'
    checkpoint.save_snapshot(path, source.modules(), {})
    wider = override(small, 'generator.channel_max', '32')
    with pytest.raises(UserError, match=r'a\.pkl: G does not fit: .*synthesis') as err:
        new_trainer(dataclasses.replace(wider, resume=str(path)), tmp_path)
    assert '\n' not in str(err.value)
    checkpoint.save_snapshot(path, {'G_ema': source.G_ema}, {})
    with pytest.raises(UserError, match=r"no network 'G' in this snapshot; it has G_ema"):
        new_trainer(dataclasses.replace(small, resume=str(path)), tmp_path)


def test_metrics_at_every_checkpoint(small, tmp_path):
    """That of a stop is measured by the next session: whoever stops a run does not want to wait."""
    calls = []

    def evaluate(G_ema, kimg):
        assert not G_ema.training
        calls.append(kimg)
        return {'fvd': 1.0}

    output = OutputConfig(tick_nimg=4, snapshot_ticks=1, image_ticks=0)
    config = dataclasses.replace(small, output=output, total_nimg=12)
    should_stop, box = stop_at(6)
    trainer = new_trainer(config, tmp_path, should_stop=should_stop, evaluate=evaluate)
    box.append(trainer)
    assert not trainer.train() and calls == [0.004]
    assert new_trainer(config, tmp_path, evaluate=evaluate).train()
    assert calls == [0.004, 0.006, 0.008, 0.012]


def test_phases_and_optimizers(small, tmp_path):
    full = dataclasses.replace(small, g_reg_interval=4, d_reg_interval=16)
    networks = Trainer(full, tmp_path, CPU).networks
    phases = make_phases(full, networks, full.loss.build())
    assert [(p.name, p.interval) for p in phases] == [('Gmain', 1), ('Greg', 4), ('Dmain', 1), ('Dreg', 16)]
    g, g_reg, d, d_reg = (p.optimizer for p in phases)
    assert g is g_reg and d is d_reg
    # reference: hyperparameters of the released run
    for optimizer, lr, beta2 in (
        (g, 0.002, 0.9919919678228657),
        (d, 0.0018823529411764706, 0.9905854573074332),
    ):
        (group,) = optimizer.param_groups
        assert group['lr'] == pytest.approx(lr, rel=1e-15)
        assert group['betas'][0] == 0 and group['betas'][1] == pytest.approx(beta2, rel=1e-15)
        assert group['eps'] == 1e-8 and group['weight_decay'] == 0
    count = sum(p.numel() for n in (networks.D_image, networks.D_video) for p in n.parameters())
    assert sum(p.numel() for p in phases[2].params.values()) == count


def test_lazy_phases_run_when_due_and_weigh_more(small, tmp_path, monkeypatch):
    ran = []
    terms = PV3DLoss.terms

    def spy(self, phase, networks, real, fake, nimg, generator):
        ran.append((nimg, phase))
        trained = [n for n in networks if any(p.requires_grad for p in n.parameters())]
        assert trained == ([networks.G] if phase[0] == 'G' else [networks.D_image, networks.D_video])
        yield from terms(self, phase, networks, real, fake, nimg, generator)

    monkeypatch.setattr(PV3DLoss, 'terms', spy)
    train(dataclasses.replace(small, total_nimg=14), tmp_path)
    by_phase = {name: [nimg for nimg, p in ran if p == name] for name in PHASES}
    every = list(range(0, 14, 2))
    assert by_phase == {'Gmain': every, 'Greg': every[::2], 'Dmain': every, 'Dreg': every[::3]}

    def gradient(interval):  # Dreg alone, without the optimizer's normalisation
        trainer = Trainer(dataclasses.replace(small, d_reg_interval=interval), tmp_path / str(interval), CPU)
        phase = trainer.phases[3]
        monkeypatch.setattr(phase.optimizer, 'step', lambda: None)
        trainer.run_phase(phase, batch_of(trainer))
        return trainer.networks.D_image.b4.conv.weight.grad

    torch.testing.assert_close(gradient(16), 16 * gradient(1), rtol=1e-5, atol=1e-10)


def test_moving_average_beta(small, tmp_path):
    trainer = Trainer(override(override(small, 'ema.half_life_nimg', '5000'), 'batch', '16'), tmp_path, CPU)
    expected = {0: 0, 16: 0.5**20, 100_000: 0.5 ** (16 / 5000), 10**7: 0.5 ** (16 / 5000)}
    expected[50_000] = 0.5 ** (16 / 2500)  # ramp: half-life 5 % of the clips seen
    for nimg, beta in expected.items():
        trainer.progress.cur_nimg = nimg
        assert trainer.ema_beta() == pytest.approx(beta, rel=1e-12)


def test_moving_average_and_mean_w_of_a_run(small, tmp_path):
    def state(nimg):
        snapshot = checkpoint.read_snapshot(tmp_path / f'network-snapshot-{nimg:09d}.pkl')
        return snapshot.networks['G']['state'], snapshot.networks['G_ema']['state']

    output = OutputConfig(tick_nimg=2, snapshot_ticks=1, image_ticks=0)
    config = dataclasses.replace(override(small, 'ema.rampup', '1'), output=output, total_nimg=4)
    train(config, tmp_path)
    (first, first_ema), (second, second_ema) = state(2), state(4)
    for name, value in first.items():
        assert torch.equal(first_ema[name], value), name  # the first iteration copies
    beta = 0.5 ** (2 / min(16, 2))
    for name, value in second.items():
        buffer = name.endswith(('w_avg', 'noise_const'))
        wanted = value if buffer else beta * first[name] + (1 - beta) * value
        torch.testing.assert_close(second_ema[name], wanted, rtol=1e-6, atol=1e-7)
    assert second['mapping_network.w_avg'].abs().max() > 0


def test_fakes_of_phases_differ_and_do_not_depend_on_the_split(small, tmp_path):
    trainer = Trainer(small, tmp_path, CPU)

    def draw(phase, nimg, part=slice(None)):
        return fake_batch(small, trainer.networks.G, trainer.dataset, phase, nimg, part, CPU)

    whole = draw('Gmain', 6)
    for phase, nimg in (('Dmain', 6), ('Greg', 6), ('Gmain', 8)):
        assert not torch.equal(whole.z_a, draw(phase, nimg).z_a)
        assert not torch.equal(whole.c, draw(phase, nimg).c)
    parts = [draw('Gmain', 6, slice(i, i + 1)) for i in range(2)]
    for together, *apart in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(apart))
    assert torch.equal(whole.c_other, whole.c.flip(0)) and not torch.equal(whole.c[0], whole.c[1])
    assert not torch.equal(whole.z_a, whole.z_m)


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while these are alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (x for x in tree_leaves(out) if isinstance(x, Tensor)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.seen:
                self.seen[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.drop, key)
        return out

    def drop(self, key):
        self.now -= self.seen.pop(key)


def test_memory_is_flat_in_the_number_of_micro_batches(small, tmp_path):
    def peaks(batch, batch_gpu):
        config = dataclasses.replace(small, batch=batch, batch_gpu=batch_gpu, d_reg_interval=1)
        trainer = Trainer(config, tmp_path / f'{batch}{batch_gpu}', CPU)
        found = []
        for phase in trainer.phases:
            trainer.run_phase(phase, batch_of(trainer))  # makes gradients and optimizer states
            gc.collect()
            gc.disable()  # nothing may wait for the cycle collector
            try:
                with Alive() as alive:
                    trainer.run_phase(phase, batch_of(trainer))
            finally:
                gc.enable()
            found.append(alive.peak)
        return found

    pictures = 4 * 2 * 3 * 32 * 32  # bytes of the frames of a clip
    for two, four, whole in zip(peaks(4, 2), peaks(8, 2), peaks(8, 8), strict=True):
        assert four < 1.02 * two + 5 * pictures
        assert whole > 2 * four


@pytest.mark.parametrize('batch_gpu', [1, 4])
def test_micro_batches_give_the_gradient_of_the_whole(small, tmp_path, monkeypatch, batch_gpu):
    """With nothing random in the networks and no minibatch deviation, whose groups are micro-batches."""
    monkeypatch.setattr('training.training_loop.noise_generator', lambda *_: None)
    monkeypatch.setattr(
        'training.networks.discriminators.minibatch_deviation', lambda x: torch.zeros_like(x[:, :1])
    )
    results = []
    for size in (batch_gpu, 2):
        trainer = Trainer(dataclasses.replace(small, batch=4, batch_gpu=size), tmp_path, CPU)
        for phase in (trainer.phases[i] for i in (0, 2, 3)):
            monkeypatch.setattr(phase.optimizer, 'step', lambda: None)
            trainer.run_phase(phase, batch_of(trainer))
            results.append([p.grad.clone() for p in phase.params.values() if p.grad is not None])
    for ours, theirs in zip(results[:3], results[3:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max() + 1))


def test_nonfinite_gradients_are_named_left_out_and_stop_the_run(small, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(small, max_nonfinite=3)
    trainer = Trainer(config, tmp_path, CPU)
    terms = PV3DLoss.terms

    def poisoned(self, phase, networks, *args):
        for term in terms(self, phase, networks, *args):
            poison = math.nan if phase == 'Gmain' and trainer.progress.cur_nimg >= 4 else 1.0
            yield term._replace(loss=term.loss * poison)

    monkeypatch.setattr(PV3DLoss, 'terms', poisoned)
    at_four = []

    def should_stop():
        if trainer.progress.cur_nimg == 4:
            at_four.append({n: v.clone() for n, v in trainer.networks.G.state_dict().items()})
        return False

    trainer.callbacks = Callbacks(should_stop=should_stop)
    with pytest.raises(UserError, match='not finite in 3 iterations in a row .*diverged.*--glr'):
        trainer.train()
    named = r'warning: Gmain at 4 clips: gradient not finite in G.mapping_network.embed.weight, '
    printed = capsys.readouterr().out
    assert named in printed and ' more; this step is skipped' in printed
    assert trainer.progress.nonfinite == 3
    after = trainer.networks.G.state_dict()
    assert all(v.isfinite().all() for v in after.values())
    density_only = 'to_image_raw.weight'  # Gmain alone trains it
    assert torch.equal(after[density_only], at_four[0][density_only])
    assert all(v.isfinite().all() for m in trainer.modules().values() for v in m.state_dict().values())


def test_single_nonfinite_iteration_is_counted_and_passed(small, tmp_path, monkeypatch):
    terms = PV3DLoss.terms

    def poisoned(self, phase, networks, real, fake, nimg, generator):
        for term in terms(self, phase, networks, real, fake, nimg, generator):
            bad = phase == 'Dmain' and nimg in (2, 6)
            yield term._replace(loss=term.loss * math.inf) if bad else term

    monkeypatch.setattr(PV3DLoss, 'terms', poisoned)
    trainer = train(dataclasses.replace(small, max_nonfinite=2), tmp_path)
    assert trainer.progress.nonfinite == 2
    assert json.loads((tmp_path / 'stats.jsonl').read_text().splitlines()[-1])['Progress/nonfinite'] == 2
