"""The smallest networks that have every part, and batches for them, for the tests."""

import dataclasses

import torch

from training.camera import orbit_label
from training.loss_contract import FakeBatch, Networks, RealBatch
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.motion import MotionConfig
from training.networks.pv3d import Generator
from training.volumetric_rendering.renderer import RendererConfig

G_CONFIG = Generator.Config(
    resolution=32,
    z_dim=16,
    w_dim=16,
    channel_base=512,
    channel_max=16,
    plane_resolution=32,
    plane_channels=8,
    feature_channels=8,
    sr_resolution=16,
    sr_channels=(8, 8),
    motion=MotionConfig(code_dim=16),
    renderer=RendererConfig(resolution=8, depth_samples=6, importance_samples=6),
)
D_CONFIG = {'resolution': 32, 'channel_base': 512, 'channel_max': 16}


def seeded(seed):
    """Returns a generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def build(config, seed=0):
    """Builds a network from its config with reproducible weights, noise strengths and biases included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = config.build()
        for name, parameter in network.named_parameters():
            if name.endswith(('bias', 'noise_strength')):  # what begins at 0 would hide errors
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


def generator(**changes):
    """Builds the tiny generator with some fields of its config changed."""
    return build(dataclasses.replace(G_CONFIG, **changes))


def solid_generator():
    """Builds the tiny generator with a fog so dense that all rays end."""
    G = generator().eval().requires_grad_(False)
    G.decoder.out.bias[0] += 30
    return G


def networks(G=None, image=True, video=True, **video_changes):
    """Builds the three networks."""
    return Networks(
        G or generator(),
        build(ImageDiscriminator.Config(**D_CONFIG), 1) if image else None,
        build(VideoDiscriminator.Config(**D_CONFIG, **video_changes), 2) if video else None,
    )


def cameras(*shape, seed=0):
    """Draws camera labels [*shape, 25] around the front."""
    angles = torch.rand((2, *shape), generator=seeded(seed)) - 0.5
    return orbit_label(angles[0], 0.5 * angles[1])


def codes(n, seed=0, dim=16):
    """Draws z_a [n, dim], z_m [n, dim], t [n] and labels [n, 25]."""
    g = seeded(seed)
    z_a, z_m = (torch.randn((n, dim), generator=g) for _ in range(2))
    return z_a, z_m, torch.rand(n, generator=g), cameras(n, seed=seed)


def fake_batch(n=2, seed=0):
    """Draws what n fake clips are made from."""
    z_a, z_m, _, _ = codes(n, seed)
    t = torch.rand((n, 2), generator=seeded(seed + 1)).sort(dim=1).values
    c = cameras(n, 2, seed=seed)
    swap = torch.rand(n, generator=seeded(seed + 2))
    return FakeBatch(z_a, z_m, t, c, c.roll(1, 0), swap, torch.randn(z_m.shape, generator=seeded(seed + 3)))


def real_batch(n=2, seed=0, resolution=32):
    """Draws pairs of frames of n real clips."""
    frames = torch.rand((n, 2, 3, resolution, resolution), generator=seeded(seed)) * 2 - 1
    t = torch.rand((n, 2), generator=seeded(seed + 1)).sort(dim=1).values
    return RealBatch(frames, t, cameras(n, 2, seed=seed + 5))


def motion(**options):
    """Returns a motion config of the tiny generator."""
    return MotionConfig(code_dim=16, **options)


def same(a, b, atol=1e-10):
    """Asserts that two tensors are equal but for rounding."""
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def differs(a, b):
    """Asserts that two tensors differ by more than rounding."""
    assert (a - b).abs().max() > 1e-6 * a.abs().max()


def draw(*shape, seed=0, grad=False):
    """Draws normal numbers in float64."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).requires_grad_(grad)


def train_mode(nets, phase):
    """Sets requires_grad on what a phase trains; returns the networks."""
    for network in filter(None, nets):
        network.requires_grad_((network is nets.G) == (phase[0] == 'G'))
    return nets


def double(values):
    """Converts networks or a batch to float64."""
    return type(values)(*(x if x is None else x.double() for x in values))


def render_pairs(nets, fake, c_map):
    """Returns images and raw images [N, 2, ...], frame by frame."""
    frames = [
        nets.G(fake.z_a[[n]], fake.z_m[[n]], fake.t[[n], i], fake.c[[n], i], c_map[[n], i])[:2]
        for n in range(2)
        for i in range(2)
    ]
    return [torch.cat(x).unflatten(0, (2, 2)) for x in zip(*frames, strict=True)]
