"""The networks: sizes, independence of samples, conditions."""

import dataclasses

import numpy as np
import pytest
import torch

from dnnlib.config import from_dict, to_dict
from dnnlib.util import UserError
from interop.names import from_released, to_released
from support.tiny import (
    D_CONFIG,
    G_CONFIG,
    build,
    cameras,
    codes,
    differs,
    draw,
    generator,
    motion,
    real_batch,
    same,
    seeded,
)
from torch_utils.misc import parameter_count
from training.networks.contract import Codes
from training.networks.decoder import Decoder
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator, minibatch_deviation
from training.networks.motion import MotionConfig
from training.networks.superresolution import Superresolution
from training.presets import PRESETS


def test_numbers_of_parameters_at_512():
    """Those of the released networks."""
    config = PRESETS['pv3d-voxceleb']('d.zip')
    with torch.device('meta'):
        networks = [c.build() for c in (config.generator, config.d_image, config.d_video)]
    assert list(map(parameter_count, networks)) == [44_320_383, 31_359_744, 31_372_608]
    G = networks[0]
    layers = [getattr(G.synthesis, f'b{r}').motion for r in (4, 8, 16, 32, 64, 128, 256)]
    assert sum(map(parameter_count, layers[:4])) == 13_641_732 and layers[4:] == [None] * 3
    assert parameter_count(G.decoder) == 4257 and parameter_count(G.to_image_raw) == 16_515


@pytest.mark.parametrize(
    ('network', 'config'),
    [
        ('G', dataclasses.replace(G_CONFIG, motion=motion(learned_weight=True))),
        ('G', dataclasses.replace(G_CONFIG, sr_channels=(4, 6), camera_condition='none')),
        ('D_image', ImageDiscriminator.Config(**D_CONFIG)),
        ('D_video', VideoDiscriminator.Config(**D_CONFIG, camera=False)),
    ],
)
def test_config_rebuilds_the_network(network, config):
    """Through plain dictionaries, and its state loads; names map to the released ones and back."""
    first = build(config)
    again = from_dict(type(config), to_dict(config))
    assert again == config
    state = first.state_dict()
    build(again, seed=5).load_state_dict(state, strict=True)
    renamed = {to_released(network, name) for name in state}
    assert len(renamed) == len(state)
    assert {from_released(network, name) for name in renamed} == set(state)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'plane_resolution': 4}, 'plane_resolution=4 .*at least 8'),
        ({'motion': MotionConfig(code_dim=8, kind='shared_code')}, 'motion.code_dim = z_dim'),
        ({'motion': motion(num_layers=5)}, 'motion.num_layers=5 .*4 blocks'),
        ({'sr_resolution': 12}, 'resolution=32 .*sr_resolution=12'),
    ],
)
def test_impossible_configs_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(G_CONFIG, **options).build()


# The generator.


@pytest.fixture(scope='module')
def G():
    return generator().double()


def double(n, seed=0):
    return [x.double() for x in codes(n, seed)]


@torch.no_grad()
def test_shapes_and_independence_of_samples(G):
    together = G(*double(3))
    expected = ((3, 3, 32, 32), (3, 3, 8, 8), (3, 1, 8, 8), (3, 1, 8, 8), (3, 3, 8, 8))
    assert tuple(x.shape for x in together) == expected
    assert together.opacity.std() > 0.01  # something to see
    for i in range(3):
        alone = G(*(x[i : i + 1] for x in double(3)))
        for a, b in zip(together, alone, strict=True):
            same(a[i : i + 1], b)


@pytest.mark.parametrize('chunk', [1, 7, 1000])
@torch.no_grad()
def test_ray_chunks_change_nothing(G, chunk):
    z_a, z_m, t, c = double(2)
    ws = G.condition(Codes(z_a, z_m), c, t)
    chunked = G.render(G.scene(Codes(z_a, z_m), ws, t), ws, c, ray_chunk=chunk)
    for a, b in zip(chunked, G(z_a, z_m, t, c), strict=True):
        same(a, b)


ANCHORED = {'path': 'waves', 'anchored': True}


@pytest.mark.parametrize('options', [{}, {'kind': 'mlp'}, {'learned_weight': True}, ANCHORED], ids=str)
@torch.no_grad()
def test_every_motion_begins_with_the_same_frame(options):
    G = generator(motion=motion(**options)).double()
    z_a, z_m, t, c = double(2)
    z_a, c = z_a[:1].expand(2, -1), c[:1].expand(2, -1)
    first, later = (G(z_a, z_m, torch.full_like(t, time), c).image for time in (0, 0.7))
    same(first[0], first[1])
    differs(later[0], later[1])
    differs(first[0], later[0])


@torch.no_grad()
def test_mapping_sees_its_own_camera(G):
    z_a, z_m, t, c = double(2)
    other = cameras(2, seed=9).double()
    same(G(z_a, z_m, t, c).image, G(z_a, z_m, t, c, c).image)
    differs(G(z_a, z_m, t, c).image, G(z_a, z_m, t, c, other).image)
    differs(G(z_a, z_m, t, c, c).image, G(z_a, z_m, t, other, c).image)
    static = generator(camera_condition='none').double()
    assert torch.equal(static.condition(Codes(z_a, z_m), c, t), static.condition(Codes(z_a, z_m), other, t))
    differs(static(z_a, z_m, t, c).image, static(z_a, z_m, t, other).image)


@torch.no_grad()
def test_every_layer_gets_its_own_code(G):
    """One code per convolution and one for the last skip output; the others share that of the next one."""
    found = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: found.update({name: x[0][0, 0].item()}))
        for name, module in G.synthesis.named_modules()
        if name.endswith('affine') and 'motion' not in name
    ]
    ws = torch.arange(8.0).double()[None, :, None].expand(1, 8, 16)
    G.scene(Codes(*double(1)[:2]), ws, double(1)[2])
    for hook in hooks:
        hook.remove()
    expected = {'b4.conv1': 0, 'b4.torgb': 1}
    for i, r in enumerate((8, 16, 32)):
        expected |= {f'b{r}.conv0': 2 * i + 1, f'b{r}.conv1': 2 * i + 2, f'b{r}.torgb': 2 * i + 3}
    assert found == {f'{name}.affine': float(k) for name, k in expected.items()}


@torch.no_grad()
def test_truncation(G):
    z_a, z_m, t, c = double(2)
    ws = G.condition(Codes(z_a, z_m), c, t)
    G.mapping_network.w_avg.zero_()
    for _ in range(3):
        G.mapping_network.update_w_avg(ws[:, 0].mean(dim=0))
    average = ws[:, 0].mean(dim=0) * (1 - 0.998**3)
    same(G.mapping_network.w_avg, average)
    same(G.condition(Codes(z_a, z_m), c, t, psi=0.0), average.expand_as(ws))
    half = G.condition(Codes(z_a, z_m), c, t, psi=0.5, cutoff=3)
    same(half[:, :3], (ws[:, :3] + average) / 2)
    same(half[:, 3:], ws[:, 3:])
    assert torch.equal(G.condition(Codes(z_a, z_m), c, t), ws)
    assert torch.equal(G.condition(Codes(z_a, z_m), c, t, psi=1.0, cutoff=3), ws)


@pytest.mark.parametrize('rendered', [8, 16])
def test_superresolution_leaves_its_inputs_alone(rendered):
    """EG3D's blocks added to the raw image in place whenever no resize came first, which 16 -> 16 is."""
    torch.manual_seed(0)
    network = Superresolution(8, 16, (16, 32), (8, 8), 'fp32')
    features = torch.randn((2, 8, rendered, rendered), generator=seeded(0), requires_grad=True)
    rgb = features[:, :3] * 1  # part of a graph whose other end needs the same values
    kept = rgb.detach().clone(), features.detach().clone()
    out = network(features, rgb, torch.randn((2, 16), generator=seeded(1)))
    assert out.shape == (2, 3, 32, 32)
    assert torch.equal(rgb, kept[0]) and torch.equal(features, kept[1])
    (out.square().sum() + rgb.square().sum()).backward()
    assert features.grad.isfinite().all()


def test_superresolution_by_four_and_without_noise():
    torch.manual_seed(0)
    network = Superresolution(8, 16, (16, 64), (8, 8), 'fp32')
    x = torch.randn((1, 8, 12, 12), generator=seeded(0))
    before = network(x, x[:, :3], torch.zeros(1, 16))
    assert before.shape == (1, 3, 64, 64)
    for block in (network.block0, network.block1):
        for layer in (block.conv0, block.conv1):
            layer.noise_strength.data.fill_(3.0)  # noise would flicker between views
    assert torch.equal(network(x, x[:, :3], torch.zeros(1, 16)), before)


# The discriminators.


def images(n):
    """Draws images and raw images for a discriminator."""
    return [torch.randn((n, 3, r, r), generator=seeded(r)) for r in (32, 8)]


@pytest.mark.parametrize('n', [1, 2, 4, 12])
def test_minibatch_deviation(n):
    x = draw(n, 3, 4, 4)
    group = min(4, n)
    found = minibatch_deviation(x)
    assert found.shape == (n, 1, 4, 4)
    for i in range(n):
        members = x.numpy()[i % (n // group) :: n // group]
        expected = np.sqrt(members.var(axis=0) + 1e-8).mean()
        same(found[i], torch.full((1, 4, 4), expected, dtype=torch.float64))


@torch.no_grad()
def test_discriminators_mix_groups_only():
    D = build(ImageDiscriminator.Config(**D_CONFIG)).double()
    image, raw, c = draw(8, 3, 32, 32), draw(8, 3, 8, 8, seed=1), cameras(8).double()
    before = D(image, raw, c)
    image[2] *= -1
    after = D(image, raw, c)
    same(before[1::2], after[1::2])
    assert ((before - after)[::2].abs() > 1e-9).all()


@torch.no_grad()
def test_image_discriminator():
    """Uses all that it gets; the score is the product of what it makes of the image and of the camera."""
    D = build(ImageDiscriminator.Config(**D_CONFIG))
    seen = {}
    for name, module in (('image', D.b4), ('camera', D.mapping)):
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    image, raw = images(4)
    score = D(image, raw, cameras(4))
    assert score.shape == (4, 1) and seen['camera'].shape == (4, 16)
    same(score[:, 0], (seen['image'] * seen['camera']).sum(dim=1) / 4, 1e-6)  # 4 = root of the width
    differs(score, D(image, 2 * raw, cameras(4)))
    differs(score, D(2 * image, raw, cameras(4)))
    differs(score, D(image, raw, cameras(4, seed=1)))


@pytest.mark.parametrize('camera', [True, False])
@pytest.mark.parametrize('delta_t', [True, False])
@torch.no_grad()
def test_video_discriminator_conditions(camera, delta_t):
    D = build(VideoDiscriminator.Config(**D_CONFIG, camera=camera, delta_t=delta_t))
    real = real_batch(2)

    def score(frames=real.frames, t=real.t, c=real.c):
        return D(D.pair_input(frames, t), c)

    pair = D.pair_input(real.frames, real.t)
    assert pair.shape == (2, 7 if delta_t else 6, 32, 32)
    assert torch.equal(pair[:, :3], real.frames[:, 0]) and torch.equal(pair[:, 3:6], real.frames[:, 1])
    if delta_t:
        same(pair[:, 6].mean(dim=(1, 2)), real.t[:, 1] - real.t[:, 0], 1e-6)
    assert score().shape == (2, 1)
    assert torch.equal(score(t=real.t + 0.25 * torch.tensor([0.0, 1.0])), score()) != delta_t
    assert torch.equal(score(c=cameras(2, 2, seed=8)), score()) != camera
    differs(score(frames=real.frames.flip(1)), score())


@pytest.mark.parametrize('delta_t', [True, False])
@torch.no_grad()
def test_video_discriminator_of_differences(delta_t):
    """Sees the second frame minus the first, times the gain, and nothing that both have in common."""
    D = build(VideoDiscriminator.Config(**D_CONFIG, pair='difference', difference_gain=3.0, delta_t=delta_t))
    D.double()
    frames, t, c = draw(2, 2, 3, 32, 32), draw(2, 2, seed=1), cameras(2, 2).double()
    pair = D.pair_input(frames, t)
    assert pair.shape == (2, 4 if delta_t else 3, 32, 32)
    same(pair[:, :3], 3 * frames[:, 1] - 3 * frames[:, 0])
    if delta_t:
        same(pair[:, 3].mean(dim=(1, 2)), t[:, 1] - t[:, 0])
    same(D(D.pair_input(frames + draw(2, 1, 3, 32, 32, seed=2), t), c), D(pair, c))
    differs(D(D.pair_input(frames.flip(1), t), c), D(pair, c))
    differs(D(pair, cameras(2, 2, seed=8).double()), D(pair, c))


def test_decoder_is_its_formula():
    """Two layers with equalised learning rate, a softplus between them; the density comes first."""
    torch.manual_seed(0)
    decoder = Decoder(5, 3, lr_mul=0.5)
    for bias in (decoder.hidden.bias, decoder.out.bias):
        bias.data = torch.randn(bias.shape, generator=seeded(len(bias)))
    x = torch.randn(2, 4, 5, generator=seeded(1))
    w1, b1, w2, b2 = (p.detach().numpy() * 0.5 for p in decoder.parameters())
    hidden = np.logaddexp(0, x.numpy() @ w1.T / 5**0.5 + b1)
    out = hidden @ w2.T / 8 + b2
    colors, density = decoder(x)
    same(density, torch.from_numpy(out[..., :1]), 1e-5)
    same(colors, torch.from_numpy(1.002 / (1 + np.exp(-out[..., 1:])) - 0.001), 1e-5)
