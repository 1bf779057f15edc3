"""The loss: schedules, penalties and each phase's value against their formulas."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from support.tiny import (
    differs,
    double,
    fake_batch,
    generator,
    networks,
    real_batch,
    render_pairs,
    same,
    seeded,
    train_mode,
)
from training.loss import PV3DLoss
from training.loss_contract import Networks
from training.loss_math import blur, fade, r1_penalty
from training.networks.contract import Codes

softplus = torch.nn.functional.softplus
LATE = 10**9  # clips seen: every schedule has ended


def test_fade():
    assert [fade(n, 10.0, 0.0, 100) for n in (0, 25, 100, 1000)] == [10.0, 7.5, 0.0, 0.0]
    assert fade(0, 1.0, 0.5, 0) == 0.5


@pytest.mark.parametrize('sigma', [0.0, 0.3, 0.4, 1.0, 2.4, 10.0])
def test_blur(sigma):
    x = torch.randn((2, 2, 3, 17, 20), generator=seeded(0), dtype=torch.float64)
    reach = int(3 * sigma)
    kernel = np.array([2.0 ** -((k / (sigma or 1)) ** 2) for k in range(-reach, reach + 1)])
    expected = x.numpy()
    for axis in (-1, -2):
        expected = ndimage.correlate1d(expected, kernel / kernel.sum(), axis=axis, mode='constant')
    np.testing.assert_allclose(blur(x, sigma).numpy(), expected, atol=1e-12)


def test_r1_of_linear_and_quadratic_functions():
    x, y = (torch.randn((4, 2, r, r), generator=seeded(r), dtype=torch.float64) for r in (3, 5))
    a, b = (torch.randn((2, r, r), generator=seeded(r + 9), dtype=torch.float64) for r in (3, 5))
    inputs = [x.requires_grad_(), y.requires_grad_()]
    linear = (x * a).sum(dim=(1, 2, 3)) + (y * b).sum(dim=(1, 2, 3)) + 7
    expected = (a.square().sum() + b.square().sum()).expand(4)
    same(r1_penalty(linear[:, None], inputs), expected)
    quadratic = 1.5 * x.square().sum(dim=(1, 2, 3))
    penalty = r1_penalty(quadratic, [x])
    same(penalty, 9 * x.square().sum(dim=(1, 2, 3)))
    penalty.sum().backward()
    same(x.grad, 18 * x)


@pytest.mark.parametrize(
    ('r1_delta_t', 'pair'), [(True, 'frames'), (False, 'frames'), (True, 'difference')], ids=str
)
def test_r1_gradient_is_the_finite_difference(r1_delta_t, pair):
    """The second derivative through both discriminators and their regularisation, along random directions."""
    nets = train_mode(double(networks(pair=pair)), 'Dreg')
    loss = PV3DLoss.Config(r1_delta_t=r1_delta_t, blur_fade_nimg=100).build()
    real, fake = double(real_batch()), double(fake_batch())

    def values():
        terms = loss.terms('Dreg', nets, real, fake, 90, None)  # blur sigma 1
        return torch.stack([term.loss for term in terms])

    parameters = [list(D.parameters()) for D in nets[1:]]
    slopes = [torch.autograd.grad(v, p, allow_unused=True) for v, p in zip(values(), parameters, strict=True)]
    for seed in range(3):
        g = seeded(seed)
        ways = [[torch.randn(p.shape, generator=g, dtype=p.dtype) for p in group] for group in parameters]
        found = []
        for step in (1e-8, -2e-8, 1e-8):  # there, to the other side, and back; no activation crosses its kink
            with torch.no_grad():
                for p, way in zip(sum(parameters, []), sum(ways, []), strict=True):
                    p += step * way
            found.append(values().detach())
        numeric = (found[0] - found[1]) / 2e-8
        for value, slope, way in zip(numeric, slopes, ways, strict=True):
            exact = sum((s * w).sum() for s, w in zip(slope, way, strict=True) if s is not None)
            assert value.item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize('r1_delta_t', [True, False])
def test_dreg_is_its_formula(r1_delta_t):
    """R1 of blurred frames: image and raw image together for D_image, pair (and delta t) for D_video."""
    nets = train_mode(networks(), 'Dreg')
    config = PV3DLoss.Config(r1_delta_t=r1_delta_t, r1_gamma=3.0, video_weight=0.5, image_weight=2.0)
    real = real_batch()
    terms = list(config.build().terms('Dreg', nets, real, fake_batch(), 80_000, None))  # blur sigma 2
    frames = real.frames.flatten(0, 1)
    raw = torch.nn.functional.interpolate(frames, (8, 8), mode='bilinear', antialias=True)
    image, raw = (blur(x, 2.0).requires_grad_() for x in (frames, raw))
    grads = torch.autograd.grad(nets.D_image(image, raw, real.c.flatten(0, 1)).sum(), (image, raw))
    expected = 2.0 * 3.0 / 2 * sum(g.square().sum() for g in grads) / 4  # mean over frames
    assert terms[0].loss.item() == pytest.approx(expected.item(), rel=1e-4)
    pair = nets.D_video.pair_input(blur(real.frames, 2.0), real.t).requires_grad_()
    (grad,) = torch.autograd.grad(nets.D_video(pair, real.c).sum(), pair)
    kept = grad if r1_delta_t else grad[:, :6]
    expected = 0.5 * 3.0 / 2 * kept.square().sum() / 2  # mean over clips
    assert terms[1].loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert grad[:, 6].abs().max() > 0


def judge(nets, image, raw, t, c):
    """Returns the logits of both discriminators for [N, 2, ...] images."""
    pair = nets.D_video.pair_input(image, t)
    return nets.D_image(image.flatten(0, 1), raw.flatten(0, 1), c.flatten(0, 1)), nets.D_video(pair, c)


def test_discriminators_see_scaled_gradients_in_gmain():
    """Where their backward is in half precision; the term keeps its size, see the test of the formulas."""
    nets, found = networks(video=False), []
    forward = nets.D_image.forward

    def watched(*inputs):
        logits = forward(*inputs)
        logits.register_hook(lambda grad: found.append((grad, logits.detach())))
        return logits

    nets.D_image.forward = watched
    config = PV3DLoss.Config(video_weight=0, image_weight=0.8)
    list(config.build().terms('Gmain', nets, real_batch(), fake_batch(), 0, None))
    ((grad, logits),) = found
    same(grad, -256 * 0.8 * torch.sigmoid(-logits) / len(logits), 1e-5)


def test_gmain_and_dmain_are_their_formulas():
    """Frames in the order of clips, each with its own condition, the swapped one below the probability.

    The discriminators' graphs are freed one by one, which must not change what reaches the generator.
    """
    nets, real = networks(), real_batch()
    fake = fake_batch()._replace(swap=torch.tensor([0.74, 0.76]))  # at 500,000 clips the probability is 0.75
    config = PV3DLoss.Config(video_weight=0.65, image_weight=0.8, blur_fade_nimg=625_000)
    loss, nimg, sigma = config.build(), 500_000, 2.0
    c_map = torch.stack([fake.c[1], fake.c[1]])
    image, raw = render_pairs(nets, fake, c_map)
    fakes = judge(nets, blur(image, sigma), raw, fake.t, fake.c)
    (term,) = loss.terms('Gmain', nets, real, fake, nimg, None)
    expected = 0.8 * softplus(-fakes[0]).mean() + 0.65 * softplus(-fakes[1]).mean()
    assert term.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    params = [nets.G.to_image_raw.weight, nets.G.synthesis.b4.const]
    for ours, formula in zip(*(torch.autograd.grad(x, params) for x in (term.loss, expected)), strict=True):
        same(ours, formula, 1e-4)
    terms = list(loss.terms('Dmain', nets, real, fake, nimg, None))
    raw = torch.nn.functional.interpolate(real.frames.flatten(0, 1), (8, 8), mode='bilinear', antialias=True)
    raw = raw.unflatten(0, (2, 2))
    reals = judge(nets, blur(real.frames, sigma), blur(raw, sigma), real.t, real.c)
    judged = zip((0.8, 0.65, 0.8, 0.65), (fakes[0], fakes[1], -reals[0], -reals[1]), strict=True)
    expected = [(weight * softplus(x).mean()).item() for weight, x in judged]
    assert [term.loss.item() for term in terms] == pytest.approx(expected, rel=1e-5)
    codes = Codes(fake.z_a.repeat_interleave(2, 0), fake.z_m[[0, 0, 1, 1]])
    w = nets.G.condition(codes, c_map.flatten(0, 1), fake.t.flatten())[:, 0]
    same(terms[0].w_mean, w.mean(dim=0), 1e-6)
    assert all(term.w_mean is None for term in terms[1:])


@pytest.mark.parametrize('missing', ['image', 'video'])
def test_a_weight_of_zero_leaves_the_other_discriminator(missing):
    def stats(phase, nets, **options):
        loss = PV3DLoss.Config(**options).build()
        terms = list(loss.terms(phase, train_mode(nets, phase), real_batch(), fake_batch(), LATE, None))
        return len(terms), {k: v for term in terms for k, v in term.stats.items()}

    for phase, expected in (('Gmain', 1), ('Dmain', 2), ('Dreg', 1)):
        count, found = stats(phase, networks(**{missing: False}), **{f'{missing}_weight': 0.0})
        full = stats(phase, networks())[1]
        assert count == expected and set(found) == {k for k in full if missing not in k}
        for name, value in found.items():
            same(value, full[name], 1e-6)


def test_random_draws_follow_the_generator():
    nets = networks()

    def value(phase, seed):
        terms = PV3DLoss.Config().build().terms(phase, nets, real_batch(), fake_batch(), LATE, seeded(seed))
        return sum(term.loss.item() for term in terms)

    for phase in ('Gmain', 'Greg', 'Dmain'):
        assert value(phase, 1) == value(phase, 1) != value(phase, 2)


def test_conditions_swap_below_the_probability():
    """Linear from 1 to 0.5 over 1,000,000 clips, one draw for both frames of a clip."""
    G, fake = generator(), fake_batch(4)._replace(swap=torch.tensor([0.0, 0.49, 0.51, 0.999]))
    loss = PV3DLoss.Config().build()
    for nimg, n in ((0, 4), (900_000, 3), (10**6, 2), (LATE, 2)):
        c_map, c = loss.conditions(G, fake, nimg)
        assert torch.equal(c, fake.c) and torch.equal(c_map, torch.cat([fake.c_other[:n], fake.c[n:]]))


@pytest.mark.parametrize('condition', ['all', 'non', 'map', 'mapt', 'none'])
def test_conditions_of_the_ablations(condition):
    """One camera for both frames of a clip: in the mapping for all and map, in rendering for all."""
    G = generator(camera_condition=condition)
    fake = fake_batch(2)._replace(swap=torch.tensor([0.0, 1.0]))
    c_map, c = PV3DLoss.Config().build().conditions(G, fake, LATE)
    first = c_map[:, 0]
    assert torch.equal(first, torch.stack([fake.c_other[0, 0], fake.c[1, 0]]))
    assert torch.equal(c_map[:, 1], first) == (condition in ('all', 'map'))
    assert torch.equal(c, fake.c[:, :1].expand_as(c) if condition == 'all' else fake.c)


def test_resolution_fades():
    G = generator()
    constant = PV3DLoss.Config().build()
    assert constant.renderer(G, 0) == constant.renderer(G, LATE) == G.config.renderer
    loss = PV3DLoss.Config(resolution_final=20, resolution_fade_nimg=1000).build()
    assert [loss.renderer(G, n).resolution for n in (0, 250, 500, 1000, LATE)] == [8, 11, 14, 20, 20]
    assert dataclasses.replace(loss.renderer(G, 500), resolution=8) == G.config.renderer
    seen = []
    nets = networks(G)
    nets.D_image.register_forward_pre_hook(lambda _, args: seen.append(args[1].shape[-1]))
    for phase in ('Gmain', 'Dmain', 'Dreg'):
        train_mode(nets, phase)
        list(loss.terms(phase, nets, real_batch(), fake_batch(), 500, None))
    assert seen == [14, 14, 14, 14]  # fakes, fakes, reals, reals


def density_value(field, monkeypatch, box_warp=1.0, **options):
    """Returns the density term on a given field of points, and the points it was evaluated at."""
    G = generator(box_warp=box_warp)
    seen = []
    monkeypatch.setattr(G, 'sample_field', lambda _, points: (seen.append(points), (None, field(points)))[1])
    loss = PV3DLoss.Config(density_weight=0.6, **options).build()
    (term,) = loss.terms('Greg', Networks(G, None, None), real_batch(), fake_batch(), LATE, seeded(0))
    return term.loss.item(), seen[0]


@pytest.mark.parametrize(('box', 'half', 'fraction'), [('released', 1.0, 1.0), ('inside', 0.4, 0.4**3)])
def test_density_of_a_linear_field(box, half, fraction, monkeypatch):
    """|a . shift| has mean |a| d sqrt(2 / pi); points inside the box count by its fraction of [-1, 1]^3."""
    a = torch.tensor([3.0, -1.0, 2.0])
    options = {'box_warp': 0.8, 'density_box': box, 'density_points': 5000}
    value, points = density_value(lambda x: (x @ a)[..., None], monkeypatch, **options)
    expected = 0.6 * fraction * a.norm().item() * 0.004 * math.sqrt(2 / math.pi)
    assert value == pytest.approx(expected, rel=0.03)  # 20,000 points: standard error 0.5 %
    near, moved = points.chunk(2, dim=1)
    assert points.shape == (4, 10_000, 3)
    assert near.abs().max() <= half and near.amin() < -0.99 * half and near.amax() > 0.99 * half
    assert (moved - near).std().item() == pytest.approx(0.004, rel=0.02)
    differs(near[0], near[1])


def test_density_inside_the_box_keeps_the_published_weight(monkeypatch):
    """On a field that vanishes outside the box both ways to draw points have the same expectation."""

    def bump(x):
        return torch.cos(math.pi * x.clamp(-0.5, 0.5)).prod(dim=-1, keepdim=True)

    boxes = ('inside', 'released')
    values = [density_value(bump, monkeypatch, density_box=b, density_points=40_000)[0] for b in boxes]
    assert values[0] == pytest.approx(values[1], rel=0.04)  # 20,000 of the released points lie inside
