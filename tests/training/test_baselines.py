"""The baselines of table 1: parts against closed forms, two stages end to end, sizes as published."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dnnlib.config import override
from dnnlib.util import ConfigError
from metrics.sources.clips import GeneratedClips
from metrics.sources.views import GeneratedViews
from support import tiny
from support.small_runs import assert_same, everything, train
from torch_utils.checkpoint import read_snapshot, snapshot_path
from training.baselines import BASELINES
from training.config import build_networks, with_followers
from training.networks.contract import Codes
from training.networks.motion import MotionLayer, MotionVector
from training.networks.patch_discriminators import ClipDiscriminator, PairDiscriminator
from training.networks.registry import load_generator
from training.networks.walk import NerfWalkGenerator, WalkConfig, WalkGenerator
from training.presets import PRESETS
from training.walk_loss import WalkLoss, _turned, gradient_penalty, relativistic

D_CONFIG = {'resolution': 32, 'width': 2}


def walk_config(pca_codes=100, **changes):
    """The config of the tiny walk."""
    G, walk = tiny.G_CONFIG, WalkConfig(hidden=5, components=6, pca_codes=pca_codes)
    fields = {f.name: getattr(G, f.name) for f in dataclasses.fields(G)}
    return WalkGenerator.Config(**(fields | {'motion': tiny.motion(num_layers=0), 'walk': walk} | changes))


@pytest.fixture(scope='module')
def G():
    G = tiny.build(walk_config())
    G.walk_network.to_step.weight.data *= 30
    G.walk_network.deviations.copy_(torch.linspace(0.5, 2, 6))
    return G


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_sizes_as_published():
    with torch.device('meta'):
        nets = build_networks(PRESETS['eg3d-mcg']('d.zip'))
        additive = build_networks(PRESETS['3dvidgen-eg3d']('d.zip'))
    walk = nets.G.walk_network
    assert count(walk) == 3_562_880 and count(nets.G) - count(walk) == 30_678_651
    assert (count(nets.D_video), count(nets.D_image)) == (22_136_706, 5_535_618)
    assert walk.directions.shape == (384, 512) and nets.G.motion_dim == 15 * 512
    layers = [m for m in additive.G.modules() if isinstance(m, MotionVector)]
    assert [count(layer) for layer in layers] == [787_968] * 4
    assert count(additive.D_video) == 28_983_105


def test_additive_motion_is_the_head_of_3dvidgen():
    layer = MotionLayer(16, 8, tiny.motion(kind='additive')).double().requires_grad_(False)
    x, u = tiny.draw(2, 16, 8, 8), tiny.draw(2, 16, seed=1)
    head = layer.vector
    a = u @ head.head.weight.T / 4 + head.head.bias
    a = torch.where(a > 0, a, 0.01 * a)
    a = 2**0.5 * F.leaky_relu(a @ head.hidden.weight.T / 4 + head.hidden.bias, 0.2)
    a = a @ head.out.weight.T / 4 + head.out.bias
    tiny.same(layer(x, u, 'none') - x, a[:, :, None, None].expand_as(x))


@torch.no_grad()
def test_walk_is_made_of_small_steps_along_principal_directions(G):
    z_a, cameras = tiny.draw(2, 16).float(), tiny.cameras(2)
    z_m = tiny.draw(2, G.motion_dim, seed=1).float()
    path, states = G.walk(z_a, z_m, cameras)
    assert path.shape == (2, 16, 16) and states.shape == (2, 15, 10)
    w, R = G.mapping_network(z_a, cameras), G.walk_network
    h, c = R.first(w, (torch.zeros(2, 5), torch.zeros(2, 5)))
    for k in range(15):
        tiny.same(path[:, k], w, 1e-5)
        h, c = R.next(z_m[:, 16 * k : 16 * (k + 1)], (h, c))
        a = torch.tanh(h @ R.to_step.weight.T + R.to_step.bias)
        w = w + 0.2 * (a * R.deviations) @ R.directions
        tiny.same(states[:, k], torch.cat([h, c], dim=1), 1e-5)
    steps = path.diff(dim=1)[..., :6].abs() / R.deviations
    assert 0.02 < steps.max() <= 0.2 and path.diff(dim=1)[..., 6:].abs().max() < 1e-6


@torch.no_grad()
def test_times_between_frames(G):
    codes = Codes(*(torch.randn((2, n), generator=tiny.seeded(n)) for n in (G.z_dim, G.motion_dim)))
    one, camera = Codes(*(z[:1] for z in codes)), tiny.cameras(1)
    path, _ = G.walk(*one, camera)
    times = torch.tensor([0.0, 1 / 15, 0.5, 1.0, 3.0])
    ws = G.condition(one, camera, times)
    assert ws.shape == (5, 8, 16)
    expected = [path[0, 0], path[0, 1], (path[0, 7] + path[0, 8]) / 2, path[0, 15], path[0, 15]]
    tiny.same(ws, torch.stack(expected)[:, None].expand_as(ws), 1e-5)
    rows = G.condition(codes, tiny.cameras(2), times[[2, 3]])  # a row for each clip
    tiny.same(rows[1], G.condition(Codes(*(z[1:] for z in codes)), tiny.cameras(2)[1:], times[3:4])[0], 1e-5)


@torch.no_grad()
def test_principal_directions():
    G = tiny.build(walk_config(pca_codes=8000))
    G.adopt()
    z = torch.randn((8000, 16), generator=tiny.seeded(9))
    w = G.mapping_network(z, tiny.cameras(1).expand(8000, -1)).double()  # any codes, any one camera
    vectors, deviations = (x.double() for x in (G.walk_network.directions, G.walk_network.deviations))
    tiny.same(vectors @ vectors.T, torch.eye(6, dtype=torch.float64), 1e-5)
    assert (deviations.diff() <= 0).all()
    spread = (w @ vectors.T).std(dim=0)
    assert ((spread / deviations - 1).abs() < 0.25).all()
    assert (w @ vectors.T).var(dim=0).sum() > 0.9 * torch.linalg.eigvalsh(torch.cov(w.T))[-6:].sum()


def test_patches_are_judged_beside_the_first_frame():
    clips = tiny.draw(2, 4, 3, 32, 32).float()
    D, pairs = (
        tiny.build(ClipDiscriminator.Config(**D_CONFIG)),
        tiny.build(PairDiscriminator.Config(**D_CONFIG)),
    )
    stacked = D.stack(clips)
    assert stacked.shape == (2, 6, 3, 32, 32)
    for k in (1, 3):
        beside = torch.cat([clips[:, 0], clips[:, k]], dim=1)
        assert torch.equal(stacked[:, :, k - 1], beside) and torch.equal(pairs.stack(clips, k), beside)
    assert [len(x.shape) for x in D(stacked)] == [5, 5] and [
        x.shape[1] for x in pairs(pairs.stack(clips, 2))
    ] == [1, 1]
    large = PairDiscriminator.Config(resolution=256, width=1).build()
    assert large.stack(torch.zeros(1, 2, 3, 256, 256), 1).shape == (1, 6, 128, 128)
    with pytest.raises(ConfigError, match='resolution=8'):
        PairDiscriminator.Config(resolution=8)


def test_relativistic_loss_and_penalty():
    r, f = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0])
    expected = ((3 - 0.5 - 1) ** 2 + (1 - 0.5 - 1) ** 2) / 2 + ((0 - 2) ** 2 + (1 - 2) ** 2) / 2
    assert relativistic([r], [f]).item() == pytest.approx(expected / 2)
    assert relativistic([r, r], [f, f]).item() == pytest.approx(expected)

    x = tiny.draw(2, 6, 3, 4, 4)
    weight = tiny.draw(6, seed=1, grad=True)

    def judge(x):
        return [(x * weight[:, None, None, None]).sum(dim=1), 2 * x.sum(dim=1)]

    expected = ((weight.norm() - 1) ** 2 + (2 * 6**0.5 - 1) ** 2) / 2
    assert gradient_penalty(judge, x).item() == pytest.approx(expected.item())
    slope = torch.autograd.grad(gradient_penalty(judge, x), weight)[0]
    tiny.same(slope, torch.autograd.grad(expected, weight)[0], 1e-6)


def test_time_is_turned_round_behind_the_first_frame():
    x = tiny.draw(1, 6, 3, 2, 2)
    turned = [_turned(x, tiny.seeded(seed)) for seed in range(20)]
    kinds = [torch.equal(t, x) for t in turned]
    assert 0 < sum(kinds) < 20 and torch.equal(turned[kinds.index(False)], x.flip(2))
    assert _turned(x, None) is x


def test_a_walk_needs_its_own_networks():
    config = PRESETS['tiny']('d.zip')
    with torch.device('meta'), pytest.raises(ConfigError, match='pv3d is not one of a walk'):
        build_networks(dataclasses.replace(config, loss=WalkLoss.Config()))
    with pytest.raises(ConfigError, match='num_layers=0'):
        walk_config(motion=tiny.motion())


def test_the_loss_of_pv3d_needs_its_own_discriminators():
    config = dataclasses.replace(PRESETS['tiny']('d.zip'), d_image=PairDiscriminator.Config(**D_CONFIG))
    with torch.device('meta'), pytest.raises(ConfigError, match='pair_patch judges no single images'):
        build_networks(config)


@pytest.mark.parametrize('path', ['codes', 'waves'])
@torch.no_grad()
def test_stages_of_a_walk_have_no_motion_of_pv3d(path):
    """Whatever the base has: path, mode seeking and augmentation are those of rows with motion codes."""
    base = override(PRESETS['tiny']('d.zip'), {'generator.motion.path': path, 'loss.diversity_weight': '1'})
    base = override(base, {'augment.probability': '0.3'})
    static, walk = BASELINES['eg3d-static'](base), BASELINES['eg3d-mcg'](base)
    assert static.generator.motion.path == 'line' and static.loss.diversity_weight == 0
    assert BASELINES['stylenerf-static'](base).loss.diversity_weight == 0
    assert static.augment.probability == 0.3 and walk.augment.probability == 0
    G = walk.generator.build()
    codes = G.draw_codes(1, tiny.seeded(0))
    ws = G.condition(codes, tiny.cameras(1), torch.zeros(1))
    assert G.scene(codes, ws, torch.zeros(1)).isfinite().all()


@pytest.fixture(scope='module', params=['eg3d', 'stylenerf'])
def stages(request, small, tmp_path_factory):
    """A static run and a walk that starts from it."""
    folder = tmp_path_factory.mktemp('stages')
    base = dataclasses.replace(small, total_nimg=2)
    train(BASELINES[f'{request.param}-static'](base), folder / 'static')
    resume = str(snapshot_path(folder / 'static', 2))
    config = BASELINES[f'{request.param}-mcg'](dataclasses.replace(base, resume=resume))
    config = override(config, {'generator.walk.pca_codes': '100', 'batch': '2', 'total_nimg': '4'})
    return config, train(with_followers(config), folder / 'walk')


def test_only_the_walk_is_trained(stages):
    config, trainer = stages
    before = read_snapshot(config.resume).networks['G_ema']['state']
    for network in (trainer.networks.G, trainer.G_ema):
        state = network.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        assert state['walk_network.deviations'].std() > 0  # principal directions were found
    trained = next(phase for phase in trainer.phases if phase.name == 'Gmain').params
    assert all(name.startswith('G.walk_network.') for name in trained)
    moments = [state['exp_avg'].abs().max() for state in trainer.phases[0].optimizer.state.values()]
    assert len(moments) == len(trained)
    assert sum(m == 0 for m in moments) == 1  # weights of the state that is 0 at first
    assert trainer.progress.nonfinite == 0


def test_walk_resumes_bit_for_bit(stages, tmp_path):
    config, trainer = stages
    train(with_followers(config), tmp_path / 'parts', until=2)
    assert_same(everything(train(with_followers(config), tmp_path / 'parts')), everything(trainer), least=100)


def test_walk_is_filmed_and_seen_from_sides(stages):
    _, trainer = stages
    G = load_generator(read_snapshot(snapshot_path(trainer.run_dir, 4)))
    assert isinstance(G, (WalkGenerator, NerfWalkGenerator))
    cameras = [trainer.dataset.clip_cameras(0)]
    clip = GeneratedClips(G, cameras, 16, 0, 1).item(0)
    assert clip.shape == (16, 32, 32, 3) and np.ptp(clip, axis=0).max() > 0
    assert GeneratedViews(G, 0, 1).item(0).image.shape == (4, 3, 32, 32)
