"""The fused renderer against its plain definition, over all implementations that run on a CPU."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from support.tiny import cameras, codes, generator, seeded
from torch_utils.ops import kernels as custom_ops
from torch_utils.ops import triplane_render
from training.networks import pv3d as generator_module
from training.networks.contract import Codes
from training.volumetric_rendering.fused import (
    DecoderWeights,
    Rays,
    Spec,
    fused_field,
    integrate,
    integrate_weights,
)
from training.volumetric_rendering.ray_marcher import composite, interval_weights
from training.volumetric_rendering.renderer import RendererConfig
from training.volumetric_rendering.triplane import PLANE_AXES, sample_planes

SPEC = Spec('xy_xz_yz', 1.0, 0.001)
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}  # of the largest value


@pytest.fixture(params=['auto', custom_ops.DEVICE_BODY])
def kernels(request, choose_kernels):
    """Runs a test with the kernels of the host, then with those of the GPU, on the CPU."""
    choose_kernels(request.param)
    if not custom_ops.has_kernels(torch.zeros(1), 'auto'):
        pytest.skip('no kernels: a C++ compiler is missing')


def scene(c=5, f=3, size=(6, 7), rays=4, samples=6, n=2, dtype=torch.float64):
    """Draws planes, rays from in front that partly miss the box, and a decoder."""
    random = seeded(0)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    directions = torch.nn.functional.normalize(draw(n, rays, 3) * 0.15 - torch.eye(3)[2].to(dtype), dim=2)
    origins = torch.tensor([0.0, 0.0, 2.7]).to(dtype).expand(n, rays, 3)
    depths = 2.1 + 1.3 * torch.rand((n, rays, samples), generator=random, dtype=torch.float64)
    decoder = DecoderWeights(draw(64, c) / c**0.5, draw(64), draw(1 + f, 64) / 8, draw(1 + f))
    return draw(n, 3, c, *size), Rays(origins, directions, depths.sort(dim=2).values.to(dtype)), decoder


def derivatives(planes, rays, decoder, spec, impl):
    """Returns features, weights and the gradients of a random combination of them."""
    leaves = [x.detach().requires_grad_() for x in (planes, *decoder)]  # in their layout
    out = integrate(leaves[0], rays, DecoderWeights(*leaves[1:]), spec, impl)
    random = seeded(1)
    total = sum((x * torch.randn(x.shape, generator=random).to(x.dtype)).sum() for x in out)
    return [*out, *torch.autograd.grad(total, leaves)]


def agree(ours, reference, limit):
    for x, y in zip(ours, reference, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        assert (x - y).abs().max() <= limit * y.abs().max()


CASES = {
    'small': {},
    'one interval': {'samples': 2},
    'usual widths': {'c': 32, 'f': 32, 'size': (16, 16), 'samples': 20},
    'wider than a vector': {'c': 20, 'f': 37, 'samples': 9},
    'one channel': {'c': 1, 'f': 1, 'size': (4, 4)},
    'several tiles of a block': {'samples': 300, 'rays': 2, 'n': 1},
    'several parts of a batch': {'rays': 150, 'n': 1, 'samples': 3},
}
SPECS = {'small': [SPEC, *(Spec(axes, 1.3, 0.1) for axes in PLANE_AXES)]}


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', CASES)
def test_kernels_are_the_definition(case, dtype, kernels):
    args = scene(**CASES[case], dtype=dtype)
    for spec in SPECS.get(case, [SPEC]):
        agree(derivatives(*args, spec, 'cpu'), derivatives(*args, spec, 'ref'), TOLERANCE[dtype])
        weights = [integrate_weights(*args, spec, impl) for impl in ('cpu', 'ref')]
        agree(weights[:1], weights[1:], TOLERANCE[dtype])


def test_the_reference_is_what_the_networks_compute():
    G = generator().double()
    planes, rays, _ = scene(c=8, size=(32, 32))
    points = rays.origins[:, :, None] + rays.depths[..., None] * rays.directions[:, :, None]
    colors, density = (x.unflatten(1, (4, 6)) for x in G.sample_field(planes, points.flatten(1, 2)))
    expected = composite(colors, density, rays.depths[..., None])
    spec = Spec(G.config.plane_axes, G.config.box_warp, generator_module.MARGIN)
    features, weights = integrate(planes, rays, G.decoder.weights(), spec, 'ref')
    agree((features, weights), (expected.features, expected.weights[..., 0]), 1e-14)
    weights = integrate_weights(planes, rays, G.decoder.weights(), spec, 'ref')
    agree((weights,), (interval_weights(density, rays.depths[..., None])[..., 0],), 1e-14)


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last', 'part of a larger tensor'])
def test_planes_in_any_layout(memory, kernels):
    planes, rays, decoder = scene()
    expected = derivatives(planes, rays, decoder, SPEC, 'ref')
    if memory == 'channels_last':
        planes = planes.flatten(1, 2).contiguous(memory_format=torch.channels_last).unflatten(1, (3, 5))
    if memory == 'part of a larger tensor':
        wide = torch.zeros(2, 3, 6, 7, 9, dtype=torch.float64)[..., 2:7].permute(0, 1, 4, 2, 3)
        planes = wide.copy_(planes)
    agree(derivatives(planes, rays, decoder, SPEC, 'cpu'), expected, 1e-12)


def test_derivatives_of_first_and_second_order(kernels):
    planes, rays, decoder = scene(c=2, f=2, size=(3, 4), rays=2, samples=4)

    def op(*x):
        return integrate(x[0], rays, DecoderWeights(*x[1:]), SPEC, 'cpu')

    inputs = [x.requires_grad_() for x in (planes, *decoder)]
    assert gradcheck(op, inputs, fast_mode=True)
    assert gradgradcheck(op, inputs, fast_mode=True)


def test_lookup_has_derivatives_of_any_order():
    planes, rays, _ = scene(c=2, size=(3, 4), rays=2, samples=3)
    points = rays.origins[:, :, None] + rays.depths[..., None] * rays.directions[:, :, None]

    def op(x):
        return sample_planes(x, points.flatten(1, 2), 'released', 1.0).pow(3)

    assert gradcheck(op, planes.requires_grad_(), fast_mode=True)
    assert gradgradcheck(op, planes, fast_mode=True)
    points = points.flatten(1, 2)[:, :3].requires_grad_()
    assert gradcheck(lambda p: sample_planes(planes, p, 'released', 1.3), points, fast_mode=True)


def test_gradients_of_rays_come_from_the_reference(kernels):
    planes, rays, decoder = scene()
    rays = Rays(*(x.detach().clone().requires_grad_() for x in rays))
    found = (integrate(planes, rays, decoder, SPEC, impl)[0].sum() for impl in ('auto', 'ref'))
    agree(*(torch.autograd.grad(x, rays) for x in found), 1e-14)


@pytest.mark.parametrize('bias', [-1e4, 1e4])
def test_empty_and_opaque_rays(bias, kernels):
    """Nothing along a ray, or a wall at its first sample, where the transmittance underflows."""
    planes, rays, decoder = scene(dtype=torch.float32, samples=12)
    decoder.out_bias[0] += bias
    found = derivatives(planes, rays, decoder, SPEC, 'cpu')
    agree(found, derivatives(planes, rays, decoder, SPEC, 'ref'), 3e-5)
    opacity = found[1].sum(dim=2)
    assert torch.equal(opacity, torch.zeros_like(opacity)) if bias < 0 else (opacity > 0.99).all()
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_what_is_not_finite_shows(value, dtype, kernels):
    planes, rays, decoder = scene(dtype=dtype)
    bad = rays.origins.clone()
    bad[0, 1, 0] = value
    features, weights = integrate(planes, rays._replace(origins=bad), decoder, SPEC, 'cpu')
    good = torch.ones(2, 4, dtype=torch.bool)
    good[0, 1] = False
    for x in (features, weights):
        assert x[~good].isnan().all() and x[good].isfinite().all()
    planes[1] = float('nan')
    features, _ = integrate(planes, rays, decoder, SPEC, 'cpu')
    assert features[0].isfinite().all() and features[1].isnan().any()


def test_samples_and_rays_do_not_see_each_other(kernels):
    planes, rays, decoder = scene(rays=5, n=3)
    whole = integrate(planes, rays, decoder, SPEC, 'cpu')
    part = integrate(planes[1:2], Rays(*(x[1:2, 2:4] for x in rays)), decoder, SPEC, 'cpu')
    for x, y in zip(whole, part, strict=True):
        assert torch.equal(x[1:2, 2:4], y)


def test_same_bits_with_any_number_of_threads():
    args = scene(c=20, rays=70, dtype=torch.float32)
    runs = []
    for threads in (1, 1, 2, 5):
        torch.set_num_threads(threads)
        runs.append(derivatives(*args, SPEC, 'auto'))
    torch.set_num_threads(1)
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


def test_sizes_beyond_the_kernels_use_the_reference(kernels):
    args = scene(samples=600, rays=1, n=1)
    agree(derivatives(*args, SPEC, 'auto'), derivatives(*args, SPEC, 'ref'), 0)
    assert not triplane_render.usable(args[0], 600, 3)
    assert fused_field(args[0], args[2], SPEC, 600) is None


@pytest.mark.parametrize('cut', [(1, 3, 3), (2, 1, 3), (2, 3, 1)])
def test_fewer_rays_than_planes_are_refused(cut, kernels):
    """The kernel would read beyond their end: one camera for two frames aborted the process."""
    planes, rays, decoder = scene(rays=3)
    short = Rays(*(x[: cut[0], : cut[i]] for i, x in zip((1, 2, 1), rays, strict=True)))
    with pytest.raises(ValueError, match='do not fit planes of 2 frames'):
        integrate(planes, short, decoder, SPEC)
    with pytest.raises(ValueError, match='do not fit planes of 2 frames'):
        integrate_weights(planes, short, decoder, SPEC)


def test_one_camera_for_two_frames_is_refused(kernels):
    G = generator().eval()
    with pytest.raises(ValueError, match='as many cameras as frames'):
        G(*codes(2)[:3], cameras(1))


def test_half_precision_is_computed_in_single():
    planes, rays, decoder = scene(dtype=torch.float32)
    half = planes.half()
    features, _ = integrate(half, rays, decoder, SPEC)
    assert torch.equal(features, integrate(half.float(), rays, decoder, SPEC)[0])


@pytest.mark.parametrize('fine', [0, 6])
@pytest.mark.parametrize('jitter', [False, True])
def test_generator_renders_the_same_image(jitter, fine, kernels, choose_kernels):
    G = generator(plane_axes='released').double()
    z_a, z_m, t, c = (x.double() for x in codes(2))
    ws = G.condition(Codes(z_a, z_m), c, t)
    config = RendererConfig(resolution=8, depth_samples=6, importance_samples=fine)
    planes = G.scene(Codes(z_a, z_m), ws, t).detach().requires_grad_()
    found = []
    for environment in (None, 'ref'):
        if environment:
            choose_kernels(environment)
        G.zero_grad()
        out = G.render(planes, ws.detach(), cameras(2), config, seeded(1) if jitter else None, ray_chunk=40)
        sum(x.square().sum() for x in out).backward(inputs=[planes, *G.decoder.parameters()])
        found.append([*out, planes.grad, *(p.grad for p in G.decoder.parameters())])
        planes.grad = None
    agree(*found, 1e-9)


def test_generator_uses_the_kernels(monkeypatch, choose_kernels):
    """The plain field is not called where kernels render."""
    G = generator()
    monkeypatch.setattr(G, 'sample_field', None)
    z_a, z_m, t, c = codes(1)
    config = dataclasses.replace(G.config.renderer, resolution=4)
    ws = G.condition(Codes(z_a, z_m), c, t)
    with torch.no_grad():
        G.render(G.scene(Codes(z_a, z_m), ws, t), ws, c, config)
        choose_kernels('ref')
        with pytest.raises(TypeError):
            G.render(G.scene(Codes(z_a, z_m), ws, t), ws, c, config)


@pytest.mark.parametrize('environment', ['auto', 'ref'])
def test_half_precision_planes_are_rendered_as_float32(environment, choose_kernels):
    choose_kernels(environment)
    G = generator()
    z_a, z_m, t, c = codes(2)
    with torch.no_grad():
        ws = G.condition(Codes(z_a, z_m), c, t)
        half = G.scene(Codes(z_a, z_m), ws, t).to(torch.bfloat16)
        found = [G.render(planes, ws, c) for planes in (half, half.float())]
    for ours, expected in zip(*found, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, expected)
    with pytest.raises(AssertionError, match='bfloat16: convert the planes'):
        fused_field(half, G.decoder.weights(), SPEC, 6)


def test_the_gpu_of_the_planes_is_asked(monkeypatch):
    current, asked = [0], []

    @contextlib.contextmanager
    def device(wanted):
        current.append(wanted.index)
        yield
        current.pop()

    library = SimpleNamespace(pv3d_triplane_fits=lambda *sizes: asked.append(current[-1]) or 1)
    monkeypatch.setattr(torch.cuda, 'device', device)
    monkeypatch.setattr(custom_ops, 'load', lambda target: library)
    assert triplane_render._fits(torch.device('cuda', 1), 32, 96, 32, False)
    assert asked == [1]
