"""Every ablation of the paper (PV3D tables 2, 3) and our decisions: each trains and has an effect."""

import json

import pytest
import torch

from dnnlib.config import override
from studies.paper import resolved, rows_of
from support.small_runs import config_of, train
from support.tiny import codes, differs, generator, motion, same, seeded
from train import with_facts_of_data
from training.networks.contract import Codes
from training.presets import tiny as tiny_preset
from training.training_loop import Trainer


def options_of(row):
    """What --set takes for a row of the paper in the preset tiny, with a block more where all blocks move."""
    more = {'generator.plane_resolution': '64'} if 'blocks' in row.changes.values() else {}
    changes = more | resolved(override(tiny_preset('d.zip'), more), row.changes)
    return ' '.join(f'{path}={value}' for path, value in changes.items())


ABLATIONS = [  # options of --set
    *(options_of(row) for row in rows_of('all').values() if row.changes),
    'generator.motion.num_layers=0',
    'generator.motion.kind=additive',
    'generator.motion.path=waves',
    'generator.motion.path=waves generator.motion.anchored=true',
    'generator.motion.path=spline',
    'generator.motion.path=codes generator.motion.knot=0.5',
    *(f'generator.renderer.resolution={r}' for r in (5, 40)),
    'generator.plane_axes=released',
    'generator.span=8',
    'd_video.camera=false d_video.delta_t=false',
    'd_video.pair=difference',
    'loss.density_weight=0',
    'loss.density_box=released',
    'loss.r1_delta_t=false',
    'loss.r1_gamma_video=9',
    'loss.reuse_fakes=true',
    'loss.image_frames=1',
    'loss.adversarial=relativistic',
    'loss.adversarial=relativistic loss.image_frames=1 loss.reuse_fakes=true d_video.pair=difference',
    'loss.diversity_weight=1',
    'loss.resolution_final=12 loss.resolution_fade_nimg=4',
    'loss.blur_sigma=0',
    'loss.swap_start=0 loss.swap_end=0',
    'augment.probability=0.5',
    'sampling.fake_times=continuous',
    'sampling.tie_time=true',
    'dataset.pairs=distances dataset.max_distance=4',
    *(f'dataset.{which}=false' for which in ('distinct', 'mirror', 'mirror_fakes')),
    'batch=1',
]
# figures that the paper's loss does not have
ADDED = {
    'loss.diversity_weight=1': {'Loss/G/diversity'},
    'loss.adversarial=relativistic': {'Loss/D/image', 'Loss/D/video', 'Loss/r2/image', 'Loss/r2/video'},
}


def check_gradients(trainer, phase):
    """Gradients are finite, reach all that the phase trains, and nothing else."""
    for network in filter(None, trainer.networks):
        grads = {n: p.grad for n, p in network.named_parameters() if p.requires_grad}
        assert bool(grads) == ((network is trainer.networks.G) == (phase[0] == 'G'))
        assert all(g.isfinite().all() for g in grads.values() if g is not None)
        if phase in ('Gmain', 'Dmain'):  # all but the noise that super-resolution never uses
            unused = [n for n, g in grads.items() if g is None]
            assert all(n.startswith('superresolution') and n.endswith('noise_strength') for n in unused)
            assert all(g.abs().max() > 0 for g in grads.values() if g is not None), phase


def two_steps(data, folder, changes):
    """Trains two steps of all phases with options of --set; returns the trainer and its losses."""
    base = 'batch=2 g_reg_interval=1 d_reg_interval=1 total_nimg=4 output.tick_nimg=2 output.image_ticks=0'
    options = dict(change.split('=') for change in f'{base} {changes}'.split())
    sets = [x for path, value in options.items() for x in ('--set', f'{path}={value}')]
    trainer = train(with_facts_of_data(config_of('--cfg', 'tiny', *sets, data=data)), folder)
    lines = [json.loads(line) for line in (folder / 'stats.jsonl').read_text().splitlines()]
    return trainer, [{name: line[name] for name in line if name.startswith('Loss/')} for line in lines]


@pytest.fixture(scope='module')
def paper(data, tmp_path_factory):
    """The losses without an ablation."""
    return two_steps(data, tmp_path_factory.mktemp('paper'), '')[1]


@pytest.mark.parametrize('changes', ABLATIONS)
def test_ablation_trains_and_has_an_effect(data, paper, tmp_path, monkeypatch, changes):
    run_phase = Trainer.run_phase

    def checked(self, phase, real):
        finite = run_phase(self, phase, real)
        check_gradients(self, phase.name)
        return finite

    monkeypatch.setattr(Trainer, 'run_phase', checked)
    trainer, losses = two_steps(data, tmp_path, changes)
    missing = {f'loss.{d}_weight=0': d for d in ('image', 'video', 'density')}.get(changes)
    expected = {n for n in paper[0] if missing is None or missing not in n}
    if 'relativistic' in changes:  # reals and fakes have no losses of their own
        expected -= {f'Loss/D/{d}/{of}' for d in ('image', 'video') for of in ('real', 'fake')}
    added = {name for change, names in ADDED.items() if change in changes for name in names}
    assert all(set(values) == expected | added for values in losses)
    assert all(value is not None for values in losses for value in values.values())  # null: not finite
    assert trainer.progress.nonfinite == 0
    absent = {name for name, network in trainer.networks._asdict().items() if network is None}
    assert absent == ({f'D_{missing}'} if missing in ('image', 'video') else set())
    before = [{name: line[name] for name in expected} for line in paper]
    same_in_training = 'generator.camera_condition=non'  # differs from mapt at inference
    assert (losses == before) == (changes == same_in_training)


@pytest.mark.parametrize('number', [0, 2, 4, 5])
@torch.no_grad()
def test_number_of_motion_layers(number):
    G = generator(plane_resolution=64, motion=motion(num_layers=number))
    blocks = [getattr(G.synthesis, f'b{r}') for r in (4, 8, 16, 32, 64)]
    assert [b.motion is not None for b in blocks] == [i < number for i in range(5)]
    z_a, z_m, t, c = codes(2)
    ws = G.condition(Codes(z_a, z_m), c, t)
    still = torch.equal(G.scene(Codes(z_a, z_m), ws, t), G.scene(Codes(z_a, z_m), ws, 0 * t))
    assert still == (number == 0)


@torch.no_grad()
def test_learned_weight_scales_the_motion():
    plain, weighted = generator(), generator(motion=motion(learned_weight=True))
    missing = weighted.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f'synthesis.b{r}.motion.weight' for r in (4, 8, 16, 32)]
    assert torch.equal(plain(*codes(2)).image, weighted(*codes(2)).image)
    for r in (4, 8, 16, 32):
        getattr(weighted.synthesis, f'b{r}').motion.weight.zero_()
    static = generator(motion=motion(num_layers=0))
    static.load_state_dict(plain.state_dict(), strict=False)
    same(static(*codes(2)).image, weighted(*codes(2)).image, 1e-6)


@torch.no_grad()
def test_mlp_motion_is_a_vector_per_image():
    layer = generator(motion=motion(kind='mlp')).synthesis.b8.motion
    x = torch.randn((2, 16, 8, 8), generator=seeded(0))
    _, z_m, t, _ = codes(2)
    added = layer(x, z_m * t[:, None], 'none') - x
    same(added, added[:, :, :1, :1].expand_as(added), 1e-5)
    differs(added[0], added[1])


@torch.no_grad()
def test_naive_motion_enters_the_mapping():
    naive, plain = generator(motion=motion(kind='naive')), generator()
    assert all(getattr(naive.synthesis, f'b{r}').motion is None for r in (4, 8, 16, 32))
    z_a, z_m, t, c = codes(2)
    assert torch.equal(plain.condition(Codes(z_a, z_m), c, t), plain.condition(Codes(z_a, -z_m), c, 1 - t))
    differs(naive.condition(Codes(z_a, z_m), c, t), naive.condition(Codes(z_a, -z_m), c, t))
    differs(naive.condition(Codes(z_a, z_m), c, t), naive.condition(Codes(z_a, z_m), c, 1 - t))


@torch.no_grad()
def test_shared_code_drives_motion_with_the_appearance():
    shared, plain = generator(motion=motion(kind='shared_code')), generator()
    z_a, z_m, t, c = codes(2)
    ws = plain.condition(Codes(z_a, z_m), c, t)
    scenes = [[G.scene(Codes(z_a, z), ws, t) for z in (z_m, -z_m)] for G in (shared, plain)]
    assert [torch.equal(*pair) for pair in scenes] == [True, False]
    assert torch.equal(shared(z_a, z_m, t, c).image, shared(z_a, -z_m, t, c).image)
    differs(shared(z_a, z_m, t, c).image, shared(z_a, z_m, 0 * t, c).image)
    differs(plain(z_a, z_m, t, c).image, plain(z_a, -z_m, t, c).image)
