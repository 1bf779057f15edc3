"""The networks and the loss are PV3D's: they agree with tensors that the released program computed.

`out/sample_mixed_*` of the golden file is not checked: the points that it was sampled at are not in the file.
"""

import dataclasses
import json

import pytest
import torch

from interop.names import from_released, to_released
from support.golden_reference import RELEASED, TOLERANCE, agrees, build, find, load, record, relative, thinned
from training.camera import unpack_label
from training.loss import PV3DLoss
from training.loss_contract import FakeBatch, Networks, RealBatch
from training.loss_math import blur, r1_penalty
from training.networks import pv3d as generator_module
from training.networks.contract import Codes
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.pv3d import Generator
from training.volumetric_rendering import renderer as renderer_module
from training.volumetric_rendering.ray_sampler import camera_rays


@pytest.fixture(scope='module')
def golden():
    return load('golden_small.npz')


@pytest.fixture(scope='module')
def networks(golden):
    return Networks(*build(golden))


@pytest.fixture(scope='module')
def inputs(golden):
    z_a, z_m = (golden[f'in/{k}'].repeat_interleave(2, dim=0) for k in ('z_a', 'z_m'))
    c, c_map = (golden[f'in/{k}'].flatten(0, 1) for k in ('c_render', 'c_cond'))
    return z_a, z_m, golden['in/t'].flatten(), c, c_map


@pytest.fixture(scope='module')
def run(networks, inputs):
    """Returns everything that one pass of the generator computes on its way."""
    G = networks.G
    z_a, z_m, t, c, c_map = inputs
    kept = {}

    def spy(module, name):
        function = getattr(module, name)

        def call(*args):
            kept.setdefault(name, (args, function(*args)))  # the first call is the coarse pass
            return function(*args)

        patch.setattr(module, name, call)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        spy(renderer_module, 'importance_depths')
        spy(generator_module, 'render_rays')
        hooks = record(G, kept)
        ws = G.condition(Codes(z_a, z_m), c_map, t)
        planes = G.scene(Codes(z_a, z_m), ws, t)
        out = G.render(planes, ws, c)
        for hook in hooks:
            hook.remove()
    return kept, ws, planes, out


def test_mapping(golden, networks, inputs, run):
    z_a, z_m, t, _, c_map = inputs
    ws = run[1]
    assert ws.shape[1] == golden['out/num_ws'] == 14
    agrees(ws[:, 0], golden['out/ws'])
    agrees(networks.G.condition(Codes(z_a, z_m), c_map, t, psi=0.7)[:, 0], golden['out/ws_psi07'])
    cut = networks.G.condition(Codes(z_a, z_m), c_map, t, psi=0.7, cutoff=8)
    agrees(cut[0, :, :8], golden['out/ws_psi07_cut8'])


def test_backbone_and_motion_layers(golden, run):
    parts = {'motion.H': 'motion.head', 'motion.w_m': 'motion.mlp', 'motion.modconv': 'motion.conv'}
    parts |= {'motion.out': 'motion', **{k: k for k in ('conv0', 'conv1', 'torgb')}}
    kept = run[0]
    checked = []
    for block in (4, 8, 16, 32, 64, 128, 256):
        for theirs, ours in parts.items():
            if f'synthesis.b{block}.{ours}' in kept:
                x = kept[f'synthesis.b{block}.{ours}']
                checked += thinned(x, golden, f'mid/b{block}.{theirs}')
    assert set(checked) == {k for k in golden if k.startswith('mid/b')}


def test_planes(golden, run):
    planes = run[2].flatten(1, 2)
    thinned(planes, golden, 'mid/planes')
    stats = torch.stack([planes.mean(dim=(2, 3)), planes.std(dim=(2, 3))], dim=-1)
    agrees(stats, golden['out/planes_b64_stats'])


def test_volume_rendering(golden, networks, inputs, run):
    kept, _, _, out = run
    origins, directions = camera_rays(*unpack_label(inputs[3]), networks.G.config.renderer.resolution)
    agrees(origins, golden['mid/ray_origins'])
    agrees(directions, golden['mid/ray_directions'])
    (depths, weights, _), fine = kept['importance_depths']
    agrees(depths, golden['mid/depths_coarse'])
    agrees(weights, golden['mid/weights_coarse'])
    agrees(fine, golden['mid/depths_fine'])
    result = kept['render_rays'][1]
    agrees(result.features, golden['mid/feature_samples'])
    agrees(result.depth, golden['mid/depth_samples'])
    agrees(result.opacity, golden['mid/weight_sum'])
    agrees(out.depth, golden['out/image_depth'])


def test_images(golden, run):
    kept, _, _, out = run
    thinned(kept['superresolution.block0'], golden, 'mid/sr.block0.x')
    thinned(kept['superresolution.block1'], golden, 'mid/sr.block1.x')
    agrees(out.image, golden['out/image'])
    agrees(out.image_raw, golden['out/image_raw'])


def test_depth_maps_without_jitter(golden, networks, inputs, run):
    _, ws, planes, _ = run
    config = dataclasses.replace(networks.G.config.renderer, fixed_offset=0.0)
    with torch.no_grad():
        out = networks.G.render(planes, ws, inputs[3], config)
    for name, ours in (('image', out.image), ('image_raw', out.image_raw), ('image_depth', out.depth)):
        agrees(ours, golden[f'out_rd/{name}'])
    agrees(out.xyz.permute(0, 2, 3, 1), golden['out_rd/xyz'])
    agrees(out.opacity.permute(0, 2, 3, 1), golden['out_rd/weight_total'])


def test_without_noise(golden, networks, inputs, run):
    z_a, z_m, t, c, _ = inputs
    ws = run[1]
    with torch.no_grad():
        planes = networks.G.scene(Codes(z_a, z_m), ws, t, noise_mode='none')
        out = networks.G.render(planes, ws, c)
    agrees(out.image_raw, golden['out_nonoise/image_raw'])


def test_discriminators_on_fakes(golden, networks, inputs):
    c = inputs[3]
    kept = {'img': {}, 'vid': {}}
    hooks = record(networks.D_image, kept['img']) + record(networks.D_video, kept['vid'])
    image = golden['out/image']
    with torch.no_grad():
        logits = {'img': networks.D_image(image, golden['out/image_raw'], c)}
        pair = networks.D_video.pair_input(image.unflatten(0, (2, 2)), golden['in/t'])
        logits['vid'] = networks.D_video(pair, c.unflatten(0, (2, 2)))
    for hook in hooks:
        hook.remove()
    checked = []
    for name, outputs in kept.items():
        agrees(logits[name], golden[f'D/fake/logits_{name}'])
        outputs |= {'cmap': outputs['mapping'], 'b4': logits[name]}
        for part in ('b128', 'b64', 'b32', 'b16', 'b8', 'cmap', 'b4'):
            checked += thinned(outputs[part], golden, f'D/fake/mid/{name}.{part}')
    assert set(checked) == {k for k in golden if k.startswith('D/fake/mid/')}


def test_blur(golden):
    line = torch.zeros(1, 1, 1, 31)
    line[..., 15] = 1
    agrees(blur(line, 2.4)[0, 0, 0, 8:23] / blur(line, 2.4).sum(), golden['D/blur_kernel_sigma2.4'])
    frames = golden['in/real_frames'].flatten(0, 1)
    agrees(blur(frames, 2.4)[:, :, ::4, ::4], golden['D/real_blurred_sigma2.4_s4'])
    agrees(blur(golden['D/real_raw'], 2.4), golden['D/real_raw_blurred_sigma2.4'])


@pytest.mark.parametrize('sigma', [0.0, 2.4])
def test_discriminators_on_reals(golden, networks, sigma):
    t, c = golden['in/real_t'], golden['in/real_c']
    image = blur(golden['in/real_frames'].flatten(0, 1), sigma)
    raw = golden['D/real_raw']  # never blurred here
    inputs = [image.detach().requires_grad_(), raw.detach().requires_grad_()]
    pair = networks.D_video.pair_input(image.unflatten(0, (2, 2)), t).detach().requires_grad_()
    logits = networks.D_image(*inputs, c.flatten(0, 1)), networks.D_video(pair, c)
    scores, penalties = ('D/real_blur2.4', 'R1/blur2.4') if sigma else ('D/real', 'R1/blur0')
    for name, score, watched in zip(('img', 'vid'), logits, (inputs, [pair]), strict=True):
        agrees(score, golden[f'{scores}/logits_{name}'])
        agrees(r1_penalty(score, watched), golden[f'{penalties}/{name}'])


GAINS = {'Gmain': 1, 'Greg': 4, 'Dmain': 1, 'Dreg': 16}  # of lazy regularisation, in the golden figures

# Largest and median relative error of gradient norms, largest of the projections. Float32 noise limits them:
# our float64 gradients differ from the golden ones as much. Greg is noisiest: its loss is a difference of
# close densities, and each sign that rounding flips in its L1 norm is a full step of the gradient. In Dreg
# the biases are: R1 sees them through the minibatch deviation alone.
FINGERPRINT_LIMITS = {
    'Gmain': (1e-3, 1e-4, 1e-2),
    'Greg': (3e-3, 5e-4, 2e-2),
    'Dmain': (1e-4, 1e-5, 3e-4),
    'Dreg': (3e-3, 1e-5, 1e-2),
}


@pytest.fixture(scope='module')
def phases():
    return load('golden_phases.npz')


@pytest.fixture(scope='module')
def silent_networks(golden):
    """The golden networks with the noise of G switched off, as the golden phases had it."""
    networks = Networks(*build(golden))
    for name, parameter in networks.G.named_parameters():
        if name.endswith('noise_strength'):
            parameter.data.zero_()
    return networks


def fingerprints(networks):
    """Returns the released name of every parameter with a gradient -> [norm, sum g cos(0.7 k)]."""
    found = {}
    for ours, network in networks._asdict().items():
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                g = parameter.grad.double().flatten()
                wave = torch.cos(0.7 * torch.arange(len(g), dtype=torch.float64))
                released = f'{RELEASED[ours]}.{to_released(ours, name)}'
                found[released] = torch.stack([g.norm(), (g * wave).sum()])
    return found


def run_phase(phase, networks, golden, phases, nimg, patch):
    """Runs a phase as the training loop does; returns the terms (gradients stay in the networks)."""
    for network in networks:
        network.zero_grad(set_to_none=True)
        network.requires_grad_((network is networks.G) == (phase[0] == 'G'))
    z_a, z_m, t, c, swap = (phases[f'in/{k}'] for k in ('z_a', 'z_m', 'gen_t', 'gen_cam', 'swap_rand'))
    fake = FakeBatch(z_a, z_m, t, c, c.roll(1, 0), swap, -z_m)
    real = RealBatch(golden['in/real_frames'], golden['in/real_t'], golden['in/real_c'])
    if phase == 'Greg':  # the golden draws of the density points
        where = f'{SETS[nimg]}/Greg'
        patch.setattr(torch, 'rand', lambda *_, **__: phases[f'{where}/initial_coordinates'])
        patch.setattr(torch, 'randn', lambda *_, **__: phases[f'{where}/perturb_randn'])
    terms = []
    # 12,500: the released fade, 200,000 x clips per GPU / 32
    loss = PV3DLoss.Config(density_box='released', blur_fade_nimg=12_500).build()
    for term in loss.terms(phase, networks, real, fake, nimg, None):
        (term.loss * GAINS[phase]).backward()
        terms.append(term)
    return terms


SETS = {500_000: 'ns500k', 1250: 'ns1250'}  # clips seen -> name in the golden file: no blur, sigma 9


@pytest.mark.parametrize('nimg', SETS)
@pytest.mark.parametrize('phase', GAINS)
def test_phase(golden, phases, silent_networks, phase, nimg, monkeypatch):
    where = f'{SETS[nimg]}/{phase}'
    networks = silent_networks
    kept = {}
    spy = {'Gmain': 'render', 'Greg': 'sample_field'}.get(phase)
    if spy:
        function = getattr(networks.G, spy)
        monkeypatch.setattr(networks.G, spy, lambda *a: kept.setdefault(spy, function(*a)))
    w_avg = networks.G.mapping_network.w_avg
    w_avg.copy_(phases[f'{SETS[nimg]}/Dmain/w_avg_before'])
    terms = run_phase(phase, networks, golden, phases, nimg, monkeypatch)
    total = sum(term.loss.item() for term in terms) * GAINS[phase]
    assert total == pytest.approx(phases[f'{where}/loss_img_vid_total'][2].item(), rel=1e-5)
    check_figures(phase, {k.removeprefix(f'{where}/'): v for k, v in phases.items()}, terms, kept)
    theirs = dict(zip(phases[f'{where}/grad_names'], phases[f'{where}/grad_fp'], strict=True))
    check_fingerprints(fingerprints(networks), theirs, FINGERPRINT_LIMITS[phase])
    if phase == 'Dmain':  # moves the running mean of w, by the mean of the fakes' w that it reports once
        before, after = (phases[f'{where}/w_avg_{when}'] for when in ('before', 'after'))
        assert relative(before, after) > 10 * TOLERANCE
        (mean,) = [t.w_mean for t in terms if t.w_mean is not None]
        networks.G.update_w_avg(mean)
        agrees(w_avg, after)


def check_figures(phase, golden, terms, kept):
    """Compares scores, images, densities and penalties."""
    stats = {k: v for term in terms for k, v in term.stats.items()}
    if phase == 'Gmain':
        agrees(stats['Loss/scores/image/fake'], golden['generated_img_scores'])
        agrees(stats['Loss/scores/video/fake'], golden['generated_vid_scores'])
        agrees(blur(kept['render'].image, golden['schedule'][0].item()), golden['generated_imgs'])
        agrees(kept['render'].image_raw, golden['render_imgs'])
    elif phase == 'Greg':
        near, moved = kept['sample_field'][1].chunk(2, dim=1)
        agrees(near, golden['sigma_initial'])
        agrees(moved, golden['sigma_perturbed'])
    elif phase == 'Dmain':
        agrees(stats['Loss/scores/image/real'], golden['real_img_scores'])
        agrees(stats['Loss/scores/video/real'], golden['real_vid_scores'])
    else:
        agrees(stats['Loss/r1/image'], golden['grad_img_penalty'].mean())
        agrees(stats['Loss/r1/video'], golden['grad_vid_penalty'].mean())


def check_fingerprints(ours, theirs, limits):
    assert set(ours) == set(theirs)
    # noise_strength: its gradient is that of the fixed noise buffers here, of random noise there
    names = [n for n in theirs if not n.endswith('noise_strength')]
    still = [n for n in names if theirs[n][0] == 0]
    assert all(ours[n][0] == 0 for n in still)
    names = [n for n in names if n not in still]
    norms = torch.stack([theirs[n][0] for n in names])
    floor = 1e-5 * norms.max()  # nothing but noise below: the density's bias has no gradient in Greg
    errors = torch.stack([(ours[n] - theirs[n]).abs() for n in names]) / norms.clamp_min(floor)[:, None]
    largest, median, projection = limits
    assert errors[:, 0].max() < largest, names[errors[:, 0].argmax()]
    assert errors[:, 0].median() < median
    assert errors[:, 1].max() < projection, names[errors[:, 1].argmax()]


FULL = [
    ('G', 'state_G.json', Generator),
    ('D_image', 'state_D_img.json', ImageDiscriminator),
    ('D_video', 'state_D_vid.json', VideoDiscriminator),
]


@pytest.mark.parametrize(('network', 'file', 'cls'), FULL)
def test_names_and_shapes_of_the_released_networks(network, file, cls):
    released = json.loads(find(file).read_text())
    filters = {k for k in released if k.endswith('resample_filter')}
    with torch.device('meta'):
        ours = cls.Config().build().state_dict()
    names = {to_released(network, name): name for name in ours}
    assert len(names) == len(ours)
    assert {k: from_released(network, k) for k in released} == names | dict.fromkeys(filters)
    assert all(list(ours[v].shape) == released[k] for k, v in names.items())
