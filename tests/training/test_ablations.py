"""Every ablation of the paper (PV3D tables 2, 3) builds, trains a step of every phase and has an effect."""

import dataclasses

import pytest
import torch

from support.tiny import (
    G_CONFIG,
    codes,
    differs,
    fake_batch,
    generator,
    motion,
    networks,
    real_batch,
    same,
    seeded,
)
from training.loss import PV3DLoss
from training.networks.contract import Codes

WIDE = {'plane_resolution': 64}  # five blocks
ABLATIONS = {
    'static': {'motion': motion(num_layers=0)},
    'early': {'motion': motion(num_layers=2)},
    'middle': {'motion': motion(num_layers=4)},
    'late': {'motion': motion(num_layers=5)},
    'learned weight': {'motion': motion(learned_weight=True)},
    'mlp': {'motion': motion(kind='mlp')},
    'naive': {'motion': motion(kind='naive')},
    'shared code': {'motion': motion(kind='shared_code')},
    **{f'camera {k}': {'camera_condition': k} for k in ('all', 'non', 'map', 'mapt', 'none')},
    'rendering at 5': {'renderer': dataclasses.replace(G_CONFIG.renderer, resolution=5)},
    'rendering at 40': {'renderer': dataclasses.replace(G_CONFIG.renderer, resolution=40)},
    'released planes': {'plane_axes': 'released'},
}
D_ABLATIONS = {
    'no camera': ({'camera': False}, {}),
    'no delta t': ({'delta_t': False}, {}),
    'neither': ({'camera': False, 'delta_t': False}, {}),
    'no D_image': ({'image': False}, {'image_weight': 0.0}),
    'no D_video': ({'video': False}, {'video_weight': 0.0}),
}


def train_every_phase(nets, **loss_options):
    """Runs each phase once; gradients are finite, reach what the phase trains and nothing else."""
    loss = PV3DLoss.Config(density_points=50, blur_fade_nimg=10, **loss_options).build()
    for phase in ('Gmain', 'Greg', 'Dmain', 'Dreg'):
        for network in filter(None, nets):
            network.zero_grad(set_to_none=True)
            network.requires_grad_((network is nets.G) == (phase[0] == 'G'))
        terms = 0
        for term in loss.terms(phase, nets, real_batch(), fake_batch(), 5, seeded(1)):
            assert term.loss.shape == () and term.loss.item() > 0
            term.loss.backward()
            terms += 1
        judges = len([D for D in nets[1:] if D is not None])
        assert terms == {'Gmain': 1, 'Greg': 1, 'Dmain': 2 * judges, 'Dreg': judges}[phase]
        for network in filter(None, nets):
            grads = {n: p.grad for n, p in network.named_parameters()}
            assert all(g.isfinite().all() for g in grads.values() if g is not None)
            trained = (network is nets.G) == (phase[0] == 'G')
            unused = [n for n, g in grads.items() if g is None]
            assert trained or len(unused) == len(grads)
            if phase in ('Gmain', 'Dmain') and trained:  # all but the noise that super-resolution never uses
                assert all(n.startswith('superresolution') and n.endswith('noise_strength') for n in unused)
                assert all(g.abs().max() > 0 for n, g in grads.items() if g is not None), phase


@pytest.mark.parametrize('name', ABLATIONS)
def test_generator_ablations_train(name):
    train_every_phase(networks(generator(**WIDE, **ABLATIONS[name])))


@pytest.mark.parametrize('name', D_ABLATIONS)
def test_discriminator_ablations_train(name):
    changes, loss_options = D_ABLATIONS[name]
    train_every_phase(networks(**changes), **loss_options)


@pytest.mark.parametrize('number', [0, 2, 4, 5])
def test_number_of_motion_layers(number):
    G = generator(**WIDE, motion=motion(num_layers=number))
    blocks = [getattr(G.synthesis, f'b{r}') for r in (4, 8, 16, 32, 64)]
    assert [b.motion is not None for b in blocks] == [i < number for i in range(5)]
    z_a, z_m, t, c = codes(2)
    with torch.no_grad():
        ws = G.condition(Codes(z_a, z_m), c, t)
        moved = not torch.equal(G.scene(Codes(z_a, z_m), ws, t), G.scene(Codes(z_a, z_m), ws, 0 * t))
    assert moved == (number > 0)


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
def test_mlp_motion_is_a_vector_per_picture():
    layer = generator(motion=motion(kind='mlp')).synthesis.b8.motion
    x = torch.randn((2, 16, 8, 8), generator=seeded(0))
    z_a, z_m, t, _ = codes(2)
    added = layer(x, z_m, t, 'none') - x
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
    moves = [
        not torch.equal(G.scene(Codes(z_a, z_m), ws, t), G.scene(Codes(z_a, -z_m), ws, t))
        for G in (shared, plain)
    ]
    assert moves == [False, True]
    assert torch.equal(shared(z_a, z_m, t, c).image, shared(z_a, -z_m, t, c).image)
    differs(shared(z_a, z_m, t, c).image, shared(z_a, z_m, 0 * t, c).image)
    differs(plain(z_a, z_m, t, c).image, plain(z_a, -z_m, t, c).image)
