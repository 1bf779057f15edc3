"""The Trainer in this process: exact resume, phases, moving average, memory, non-finite gradients."""

import dataclasses
import gc
import json
import math
import shutil

import pytest
import torch
from torch import Tensor

from dnnlib.config import override
from dnnlib.util import CheckpointError, UserError
from support.small_runs import CPU, assert_same, batch_of, everything, new_trainer, train
from torch_utils.checkpoint import read_snapshot, snapshot_path, training_state_path
from torch_utils.misc import seeded_generator
from training import loss as loss_module
from training import training_loop as loop_module
from training.batching import PHASES, fake_batch, make_phases
from training.config import OutputConfig, with_followers
from training.estimate import Meter, Work
from training.loss import PV3DLoss
from training.loss_contract import FakeBatch, Shown
from training.training_loop import Callbacks, Trainer

EVERY_TICK = OutputConfig(tick_nimg=4, snapshot_ticks=1, image_ticks=0, keep_states=3)


@pytest.fixture(scope='module')
def whole(small, tmp_path_factory):
    """The run that others must equal, with checkpoints at 4, 8 and 12 clips in its folder."""
    trainer = train(dataclasses.replace(small, output=EVERY_TICK), tmp_path_factory.mktemp('whole'))
    assert trainer.progress.cur_nimg == 12 and trainer.progress.batch_idx == 6
    return trainer


@pytest.fixture(scope='module')
def uninterrupted(whole):
    return everything(whole)


@pytest.fixture
def spied_terms(monkeypatch):
    """Replaces the terms of the loss by change(phase, networks, nimg, terms)."""
    terms = PV3DLoss.terms

    def install(change):
        def spy(self, phase, networks, real, fake, nimg, *draws):
            return change(phase, networks, nimg, terms(self, phase, networks, real, fake, nimg, *draws))

        monkeypatch.setattr(PV3DLoss, 'terms', spy)

    return install


@pytest.mark.parametrize(('until', 'workers'), [([2], 2), ([4, 10], 0)], ids=str)
def test_stop_and_resume_is_the_same_run(small, uninterrupted, tmp_path, until, workers):
    config = dataclasses.replace(small, workers=workers)
    for nimg in until:
        trainer = train(config, tmp_path, until=nimg)
        assert trainer.progress.cur_nimg == nimg and snapshot_path(tmp_path, nimg).exists()
    assert_same(everything(train(config, tmp_path)), uninterrupted)


def test_complete_run_is_left_as_it_is(small, whole, tmp_path):
    def times():
        return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if 'events' not in p.name}

    folder = shutil.copytree(whole.run_dir, tmp_path / 'copy')
    before = times()
    train(small, folder)
    assert before == times()


def test_what_is_written_and_when_does_not_change_the_run(small, uninterrupted, tmp_path):
    output = OutputConfig(tick_nimg=6, snapshot_ticks=1, image_ticks=1, sheet_seeds=1)
    found = everything(train(dataclasses.replace(small, output=output), tmp_path))
    assert (found.pop('/progress/tick'), uninterrupted['/progress/tick']) == (2, 3)
    assert_same(found, {n: v for n, v in uninterrupted.items() if n != '/progress/tick'})


def test_every_number_that_trains_moves(small, uninterrupted, tmp_path):
    start, other = (everything(Trainer(dataclasses.replace(small, seed=s), tmp_path, CPU)) for s in (0, 1))
    still = {n for n, v in start.items() if isinstance(v, Tensor) and torch.equal(v, uninterrupted[n])}
    constant = ('noise_const', 'superresolution', 'noise_strength')  # noise is off in super-resolution
    assert [n for n in still if not any(c in n for c in constant)] == []
    assert len([n for n in still if 'noise_strength' in n]) == 8  # four layers, in G and in G_ema
    name = '/networks/G/synthesis.b4.const'
    assert not torch.equal(start[name], other[name])  # another seed is another run


def corrupted_copy(whole, folder, *names):
    """Copies a run and truncates some of its files, named by kind and clips; returns the folder."""
    shutil.copytree(whole.run_dir, folder)
    for path in (path_of(folder, nimg) for path_of, nimg in names):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def test_corrupted_files_are_skipped(small, whole, uninterrupted, tmp_path, capsys):
    corrupted = [(snapshot_path, 12), (training_state_path, 8)]
    folder = corrupted_copy(whole, tmp_path / 'copy', *corrupted)
    assert Trainer(small, folder, CPU).progress.cur_nimg == 4
    printed = capsys.readouterr().out
    assert all(f'skipped: {path_of(folder, nimg)}: ' in printed for path_of, nimg in corrupted)
    assert_same(everything(train(small, folder)), uninterrupted)


def test_a_run_without_a_valid_checkpoint_does_not_start_again(small, whole, tmp_path):
    corrupted = [(training_state_path, 4), (training_state_path, 8), (training_state_path, 12)]
    folder = corrupted_copy(whole, tmp_path / 'copy', *corrupted, (snapshot_path, 12))
    with pytest.raises(CheckpointError, match='--resume .*network-snapshot-000000008.pkl.*--fresh'):
        Trainer(small, folder, CPU)


def test_resume_from_weights_is_a_new_run(small, whole, uninterrupted, tmp_path):
    path = str(snapshot_path(whole.run_dir, 12))
    trainer = new_trainer(dataclasses.replace(small, seed=5, resume=path), tmp_path)
    assert trainer.progress.cur_nimg == 0 and trainer.phases[0].optimizer.state_dict()['state'] == {}
    found = everything(trainer)
    assert all(torch.equal(found[n], v) for n, v in uninterrupted.items() if n.startswith('/networks'))
    assert list(tmp_path.iterdir()) == []


def test_schedules_continue_in_a_run_from_weights(small, whole, tmp_path, spied_terms):
    config = dataclasses.replace(small, seed=5, resume=str(snapshot_path(whole.run_dir, 4)), total_nimg=6)
    seen = []
    spied_terms(lambda phase, networks, nimg, terms: (seen.append(nimg), terms)[1])
    whole = train(config, tmp_path / 'b')
    assert sorted(set(seen)) == [4, 6, 8] and whole.progress.cur_nimg == 6
    train(config, tmp_path / 'c', until=2)
    assert_same(everything(train(config, tmp_path / 'c')), everything(whole))
    last = read_snapshot(snapshot_path(tmp_path / 'c', 6))
    assert (last.meta['cur_nimg'], last.meta['schedule_nimg']) == (6, 10)


def test_metrics_at_every_checkpoint(small, tmp_path, monkeypatch):
    """That of a stop is measured by the next session: whoever stops a run does not want to wait."""
    monkeypatch.setattr(Trainer, 'run_phase', lambda *_: True)
    calls = []

    def evaluate(G_ema, kimg):
        assert not G_ema.training
        calls.append(kimg)
        return {'fvd': 1.0}

    config = dataclasses.replace(small, output=EVERY_TICK)
    train(config, tmp_path, until=6, evaluate=evaluate)
    assert calls == [0.004]
    train(config, tmp_path, evaluate=evaluate)
    assert calls == [0.004, 0.006, 0.008, 0.012]


def test_phases_and_optimizers(small, tmp_path):
    full = dataclasses.replace(small, g_reg_interval=4, d_reg_interval=16)
    networks = Trainer(full, tmp_path, CPU).networks
    phases = make_phases(full, networks, full.loss.build())
    assert [(p.name, p.interval) for p in phases] == [('Gmain', 1), ('Greg', 4), ('Dmain', 1), ('Dreg', 16)]
    assert phases[0].optimizer is phases[1].optimizer and phases[2].optimizer is phases[3].optimizer
    # reference: hyperparameters of the released run
    released = (0.002, 0.9919919678228657), (0.0018823529411764706, 0.9905854573074332)
    for phase, (lr, beta2) in zip(phases[::2], released, strict=True):
        (group,) = phase.optimizer.param_groups
        assert group['lr'] == pytest.approx(lr, rel=1e-15)
        assert group['betas'][0] == 0 and group['betas'][1] == pytest.approx(beta2, rel=1e-15)
        assert group['eps'] == 1e-8 and group['weight_decay'] == 0
    count = sum(p.numel() for n in (networks.D_image, networks.D_video) for p in n.parameters())
    assert sum(p.numel() for p in phases[2].params.values()) == count


def test_lazy_phases_run_when_due(small, tmp_path, spied_terms):
    ran = []

    def spy(phase, networks, nimg, _):  # trains nothing
        ran.append((nimg, phase))
        trained = [n for n in networks if any(p.requires_grad for p in n.parameters())]
        assert trained == ([networks.G] if phase[0] == 'G' else [networks.D_image, networks.D_video])
        return iter(())

    spied_terms(spy)
    train(dataclasses.replace(small, total_nimg=14), tmp_path)
    by_phase = {name: [nimg for nimg, p in ran if p == name] for name in PHASES}
    every = list(range(0, 14, 2))
    assert by_phase == {'Gmain': every, 'Greg': every[::2], 'Dmain': every, 'Dreg': every[::3]}


def test_lazy_phases_weigh_more(small, tmp_path):
    def gradient(interval):  # of Dreg alone
        trainer = Trainer(dataclasses.replace(small, d_reg_interval=interval), tmp_path, CPU)
        trainer.run_phase(trainer.phases[3], batch_of(trainer))
        return trainer.networks.D_image.b4.conv.weight.grad

    torch.testing.assert_close(gradient(16), 16 * gradient(1), rtol=1e-5, atol=1e-10)


def test_norm_of_gradients_is_reported(small, tmp_path, monkeypatch):
    """As the optimizer sees them: over all parameters of a phase; a step that is skipped has none."""
    trainer = Trainer(small, tmp_path, CPU)
    for phase in trainer.phases:
        trainer.run_phase(phase, batch_of(trainer))
        whole = torch.cat([p.grad.double().flatten() for p in phase.params.values() if p.grad is not None])
        (found,) = (v for name, v in trainer.stats.collect().items() if name == f'Gradient/{phase.name}')
        assert found.num == 1 and found.mean == pytest.approx(whole.norm().item(), rel=1e-5)
    monkeypatch.setattr(loop_module.dist, 'all_reduce_gradients', lambda params: [False] * len(params))
    trainer.run_phase(trainer.phases[0], batch_of(trainer))
    assert 'Gradient/Gmain' not in trainer.stats.collect()


def test_moving_average_beta(small, tmp_path):
    trainer = Trainer(override(small, {'ema.half_life_nimg': '5000', 'batch': '16'}), tmp_path, CPU)
    expected = {0: 0, 16: 0.5**20, 100_000: 0.5 ** (16 / 5000), 10**7: 0.5 ** (16 / 5000)}
    expected[50_000] = 0.5 ** (16 / 2500)  # ramp: half-life 5 % of the clips seen
    for nimg, beta in expected.items():
        trainer.progress.cur_nimg = nimg
        assert trainer.ema_beta() == pytest.approx(beta, rel=1e-12)


def test_moving_average_and_mean_w_of_a_run(small, tmp_path):
    def state(nimg):
        networks = read_snapshot(snapshot_path(tmp_path, nimg)).networks
        return networks['G']['state'], networks['G_ema']['state']

    output = OutputConfig(tick_nimg=2, snapshot_ticks=1, image_ticks=0)
    config = dataclasses.replace(override(small, {'ema.rampup': '1'}), output=output, total_nimg=4)
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
    for together, *apart in zip(*(x[:-1] for x in (whole, *parts)), strict=True):  # no singles
        assert torch.equal(together, torch.cat(apart))
    assert torch.equal(whole.c_other, whole.c.flip(0)) and not torch.equal(whole.c[0], whole.c[1])
    assert not torch.equal(whole.z_a, whole.z_m) and not torch.equal(whole.z_m, whole.z_m_other)
    usual = trainer.networks.G.draw_codes(2, seeded_generator('cpu', small.seed, 10, 0, 6))
    assert torch.equal(whole.z_m, usual.z_m)  # the other code is drawn elsewhere


def test_memory_is_flat_in_the_number_of_micro_batches(small, tmp_path):
    def peaks(batch, batch_gpu):
        trainer = Trainer(dataclasses.replace(small, batch=batch, batch_gpu=batch_gpu), tmp_path, CPU)
        for phase in trainer.phases:
            gc.disable()  # nothing that is counted may wait for it
            with Meter(Work()) as meter:
                trainer.run_phase(phase, batch_of(trainer))
            gc.enable()
            yield meter.peak_bytes

    frames = 4 * 2 * 3 * 32 * 32  # bytes of the frames of a clip
    for two, four, whole in zip(peaks(2, 1), peaks(4, 1), peaks(4, 4), strict=True):
        assert four < 1.02 * two + 5 * frames
        assert whole > 2 * four


def test_micro_batches_give_the_gradient_of_the_whole(small, tmp_path, monkeypatch):
    """With nothing random in the networks and no minibatch deviation, whose groups are micro-batches."""
    monkeypatch.setattr('training.training_loop.noise_generator', lambda *_: None)
    deviation = 'training.networks.discriminators.minibatch_deviation'
    monkeypatch.setattr(deviation, lambda x: torch.zeros_like(x[:, :1]))

    def gradients(size):
        trainer = Trainer(dataclasses.replace(small, batch=4, batch_gpu=size), tmp_path, CPU)
        for phase in (trainer.phases[i] for i in (0, 2, 3)):
            monkeypatch.setattr(phase.optimizer, 'step', lambda: None)
            trainer.run_phase(phase, batch_of(trainer))
            yield from [p.grad.clone() for p in phase.params.values() if p.grad is not None]

    whole = list(gradients(4))
    for size in (1, 2):
        for a, b in zip(gradients(size), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max() + 1))


def test_reused_fakes_go_from_gmain_to_dmain(small, tmp_path, monkeypatch):
    """Those of each micro-batch, in order, let go when judged. Without Gmain, Dmain makes its own."""
    seen = {'Gmain': [], 'Dmain': []}
    terms = PV3DLoss.terms

    def spy(self, phase, networks, real, fake, nimg, *draws):
        if phase in seen:
            seen[phase].append(fake)
        return terms(self, phase, networks, real, fake, nimg, *draws)

    monkeypatch.setattr(PV3DLoss, 'terms', spy)
    config = dataclasses.replace(override(small, {'loss.reuse_fakes': 'true'}), batch=4, batch_gpu=2)
    trainer = Trainer(config, tmp_path, CPU)
    renders, render = [], trainer.networks.G.render
    monkeypatch.setattr(trainer.networks.G, 'render', lambda *a: (renders.append(1), render(*a))[1])
    alive = []
    for phase in (trainer.phases[0], trainer.phases[2]):
        trainer.run_phase(phase, batch_of(trainer))
        alive.append(len(trainer._made))
    assert alive == [2, 0] and len(renders) == 2
    for made_from, judged in zip(seen['Gmain'], seen['Dmain'], strict=True):
        assert isinstance(judged, Shown) and judged.image.shape == (4, 3, 32, 32)
        assert torch.equal(judged.t, made_from.t) and torch.equal(judged.c, made_from.c)
    trainer = Trainer(dataclasses.replace(config, freeze=('G',)), tmp_path, CPU)
    trainer.run_phase(trainer.phases[0], batch_of(trainer))
    assert trainer.phases[0].name == 'Dmain' and type(seen['Dmain'][-1]) is FakeBatch


@pytest.mark.parametrize('of', ['loss', 'data'])
def test_resume_with_switches_is_the_same_run(small, tmp_path, of):
    """Those that draw, or hand something from phase to phase, in micro-batches; those of frames."""
    options = {
        'loss': {
            'adversarial': 'relativistic',
            'diversity_weight': '1',
            'reuse_fakes': 'true',
            'image_frames': '1',
        },
        'data': {
            'resolution_final': '12',
            'resolution_fade_nimg': '4',
            'video_weight': '0',
            'image_frames': '1',
        },
    }[of]
    changes = {f'loss.{name}': value for name, value in options.items()} | {
        'batch_gpu': '1',
        'total_nimg': '6',
    }
    if of == 'data':
        changes |= {'dataset.pairs': 'distances', 'dataset.max_distance': '4', 'dataset.heldout_clips': '2'}
        changes |= {'generator.motion.path': 'codes', 'augment.probability': '0.5', 'ema.rampup': '0.5'}
    config = with_followers(override(small, changes))
    whole = everything(train(config, tmp_path / 'whole'))
    train(config, tmp_path / 'parts', until=2)
    assert_same(everything(train(config, tmp_path / 'parts')), whole, least=300)


def multiply(bad_phase, factor, clips):
    """Returns a change of the terms: those of a phase times a factor, when so many clips have been seen."""

    def change(phase, _, nimg, terms):
        for term in terms:
            yield term._replace(loss=term.loss * (factor if phase == bad_phase and nimg in clips else 1.0))

    return change


def test_nonfinite_gradients_are_named_and_stop_the_run(small, tmp_path, spied_terms, capsys):
    spied_terms(multiply('Gmain', math.nan, (2, 4)))
    trainer = Trainer(dataclasses.replace(small, max_nonfinite=2), tmp_path, CPU)
    weight, kept = trainer.networks.G.to_image_raw.weight, {}  # which Gmain alone trains

    def should_stop():
        kept[trainer.progress.cur_nimg] = weight.clone()
        return False

    trainer.callbacks = Callbacks(should_stop=should_stop)
    with pytest.raises(UserError, match='not finite in 2 iterations in a row .*--glr'):
        trainer.train()
    printed = capsys.readouterr().out
    assert 'Gmain at 2 clips' in printed and 'G.mapping_network.embed.weight, ' in printed
    assert trainer.progress.nonfinite == 2
    assert not torch.equal(kept[2], kept[0]) and torch.equal(weight, kept[2])
    assert all(v.isfinite().all() for m in trainer.modules().values() for v in m.state_dict().values())


def test_single_nonfinite_iteration_is_counted_and_skipped(small, tmp_path, spied_terms):
    spied_terms(multiply('Dmain', math.inf, (0, 4)))
    trainer = train(dataclasses.replace(small, max_nonfinite=2, total_nimg=6), tmp_path)
    assert trainer.progress.nonfinite == 2
    assert json.loads((tmp_path / 'stats.jsonl').read_text().splitlines()[-1])['Progress/nonfinite'] == 2


def test_scale_of_gradients_changes_no_bit(small, tmp_path, monkeypatch):
    """Backward passes see losses times 2^8, optimizers the gradients as they are."""
    found = []
    for scale in (2.0**8, 1.0):
        monkeypatch.setattr(loss_module, 'GRADIENT_SCALE', scale)
        monkeypatch.setattr(loop_module, 'GRADIENT_SCALE', scale)
        trainer = Trainer(small, tmp_path / str(scale), CPU)
        seen, grads = {}, []
        trainer.networks.G.to_image_raw.bias.register_hook(lambda g, seen=seen: seen.setdefault('G', g))
        for phase in trainer.phases:
            assert trainer.run_phase(phase, batch_of(trainer))
            grads += [p.grad.clone() for p in phase.params.values() if p.grad is not None]
        found.append((seen['G'] / scale, *grads))
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours, plain)
