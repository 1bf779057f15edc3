"""The path of motion: closed forms, what is constant, where it begins."""

import dataclasses
import math

import pytest
import torch

from dnnlib.config import from_dict, to_dict
from dnnlib.util import ConfigError
from support.tiny import codes, differs, draw, generator, motion, same, seeded
from training.networks.contract import Codes
from training.networks.motion import MotionConfig, MotionLayer, MotionPath, b_spline, code_at

WAVES = MotionConfig(path='waves', code_dim=6, wave_max=1.5)
ANCHORED = dataclasses.replace(WAVES, anchored=True)
SPLINE, CODES = (MotionConfig(path=name, code_dim=6, knot=0.8) for name in ('spline', 'codes'))


def build(config):
    """Builds a path in float64, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MotionPath(config).double()


def test_line_is_equation_1():
    z_m, t = draw(3, 6), draw(3, seed=1)
    assert torch.equal(MotionPath(MotionConfig(code_dim=6))(z_m, t), z_m * t[:, None])


@pytest.mark.parametrize('time', [0.0, 0.3, 1.0, 40.2])
def test_waves_closed_form(time):
    """Number by number; the first pair stands still, the last one is the fastest."""
    z_m = draw(1, 6)[0].tolist()
    expected = [0.0] * 6
    for i, f in enumerate((0, 0.75, 1.5)):
        a, b, p = z_m[i], z_m[i + 3], 2 * math.pi * f * time
        expected[i], expected[i + 3] = (
            a * math.cos(p) + b * math.sin(p),
            a * math.sin(p) - b * math.cos(p),
        )
    start = [*z_m[:3], *(-b for b in z_m[3:])]
    t = torch.tensor([time], dtype=torch.float64)
    u, anchored = (MotionPath(c)(draw(1, 6), t)[0] for c in (WAVES, ANCHORED))
    assert u.tolist() == pytest.approx(expected, abs=1e-12)
    assert anchored.tolist() == pytest.approx(
        [x - y for x, y in zip(expected, start, strict=True)], abs=1e-12
    )


def test_waves_keep_the_length_of_the_code():
    z_m, t = draw(50, 6), 30 * draw(50, seed=1)
    same(MotionPath(WAVES)(z_m, t).norm(dim=1), z_m.norm(dim=1))


def test_where_paths_begin():
    z_m, zero = draw(5, 6), torch.zeros(5, dtype=torch.float64)
    for config in (MotionConfig(code_dim=6), ANCHORED, dataclasses.replace(SPLINE, anchored=True)):
        assert not MotionPath(config)(z_m, zero).any()
    assert MotionPath(WAVES)(z_m, zero).std(dim=0).min() > 0.1


@torch.no_grad()
def test_a_later_span_is_the_span_of_another_code():
    """So long videos that go on beyond t = 1 stay what training saw."""
    G = generator(motion=motion(path='waves')).double()
    z_a, z_m, t, c = (x.double() for x in codes(3))
    later = G.motion_path(z_m, torch.full_like(t, 7.3))
    other = torch.cat([later[:, :8], -later[:, 8:]], dim=1)
    ws = G.condition(Codes(z_a, z_m), c, t)
    planes = G.scene(Codes(z_a, z_m), ws, t + 7.3)
    same(planes, G.scene(Codes(z_a, other), ws, t))
    differs(planes, G.scene(Codes(z_a, z_m), ws, t))


ALL = [MotionConfig(code_dim=6), WAVES, ANCHORED, SPLINE, dataclasses.replace(SPLINE, anchored=True), CODES]


@pytest.mark.parametrize('config', ALL, ids=lambda c: f'{c.path}-{c.anchored}')
def test_gradients_of_code_and_time(config):
    path = build(config)
    assert torch.autograd.gradcheck(path, (draw(3, 6, grad=True), draw(3, seed=1, grad=True)))


@pytest.mark.parametrize('config', ALL, ids=lambda c: f'{c.path}-{c.anchored}')
def test_a_window_is_the_same_alone(config):
    """Also where it begins long before or after the training span."""
    path, z_m = build(config), draw(1, 6)
    times = torch.linspace(-30, 400, 300, dtype=torch.float64)
    whole = path(z_m.expand(300, -1), times)
    assert torch.equal(whole[200:203], path(z_m.expand(3, -1), times[200:203]))


@pytest.mark.parametrize('config', [SPLINE, CODES], ids=lambda c: c.path)
def test_paths_have_no_jump_at_knots(config):
    path, z_m = build(config), draw(1, 6).expand(3, -1)
    for knot in (0, 0.8, 4, 32):  # every 0.8
        before, at, after = path(z_m, knot + 1e-7 * torch.tensor([-1.0, 0, 1], dtype=torch.float64))
        same(before, at, 1e-4), same(at, after, 1e-4)
        if config.path == 'spline':  # its speed has none, either
            same(at - before, after - at, 1e-11)


def test_weights_of_the_spline_add_up_to_1():
    s = torch.linspace(0, 1, 7, dtype=torch.float64)
    same(b_spline(torch.ones(4, 7, 2, dtype=torch.float64), s), torch.ones(7, 2, dtype=torch.float64))


def test_spline_through_codes_in_a_line_is_equation_1():
    z_m, s = draw(5, 6), torch.linspace(0, 1, 5, dtype=torch.float64)
    for k in (0, 3):
        points = torch.stack([(k + j - 1) * z_m for j in range(4)])
        same(b_spline(points, s), z_m * (k + s)[:, None])


def test_speed_of_the_spline_is_nearly_even():
    """Mean square: 1 / 2 at a knot, 13 / 16 between; a quadratic spline has 2 and 1 / 2."""
    points = draw(4, 4000, 8)
    for place, expected in ((0.0, 0.5), (0.5, 0.8125), (1.0, 0.5)):
        s = torch.full((4000,), place, dtype=torch.float64)
        speed = (b_spline(points, s + 1e-5) - b_spline(points, s - 1e-5)) / 2e-5
        assert speed.var().item() == pytest.approx(expected, rel=0.05)


def test_spline_against_a_sum_of_basis_functions():
    """Number by number, by the recursion of de Boor."""

    def basis(i, degree, x):
        if degree == 0:
            return float(i <= x < i + 1)
        return (x - i) / degree * basis(i, degree - 1, x) + (i + degree + 1 - x) / degree * basis(
            i + 1, degree - 1, x
        )

    z_m, time = draw(1, 6), 4.1
    x = time / SPLINE.knot
    expected = sum(1.44 * basis(i, 3, x + 3) * code_at(z_m, torch.tensor([i])) for i in range(20))
    same(MotionPath(SPLINE)(z_m, torch.tensor([time], dtype=torch.float64)), expected)


def test_codes_are_independent_draws():
    z_m = draw(1, 4096).expand(5, -1)
    found = code_at(z_m, torch.tensor([-70, 0, 1, 2, 9000]))
    same(found @ found.T / 4096, torch.eye(5, dtype=torch.float64) * (z_m[0] ** 2).mean(), 0.06)
    assert torch.equal(found.abs().sort(dim=1).values, z_m.abs().sort(dim=1).values)  # of one length


@pytest.mark.parametrize('config', [SPLINE, CODES], ids=lambda c: c.path)
def test_no_place_in_time_is_special(config):
    """Mean and variance of a path are the same early and late; anchored ones come to those of the line."""
    config = dataclasses.replace(config, code_dim=64)
    z_m = torch.randn((2000, 64), generator=seeded(3), dtype=torch.float64)
    path = build(config)
    moments = []
    for time in (0.13, 3.33, 80.13):
        u = path(z_m, torch.full((2000,), time, dtype=torch.float64)).detach()
        moments.append((u.mean().item(), u.var().item()))
    assert moments == [pytest.approx(moments[0], abs=0.05)] * 3
    if config.path == 'spline':
        anchored = MotionPath(dataclasses.replace(config, anchored=True))
        variance = [
            anchored(z_m, torch.full((2000,), t * config.knot).double()).var() for t in (0.5, 1, 2, 9)
        ]
        assert torch.stack(variance).tolist() == pytest.approx([0.155, 0.556, 0.944, 1], abs=0.03)
        assert moments[0] == pytest.approx((0, 1), abs=0.15)


def test_codes_end_in_the_aligners_at_knots():
    path, z_m = build(CODES), draw(1, 6)
    k = torch.arange(-8, 13)
    codes = torch.stack([code_at(z_m, k[[i]])[0] for i in range(21)])

    def layer(fc, x):
        weight, bias = fc.scaled()
        rows = [x[i : i + 11].T.flatten() @ weight.T + bias for i in range(len(x) - 10)]
        return torch.nn.functional.leaky_relu(torch.stack(rows), 0.2) * math.sqrt(2)

    h = layer(path.codes.conv1, layer(path.codes.conv0, codes)) / math.sqrt(6)
    same(path(z_m, torch.tensor([2 * CODES.knot], dtype=torch.float64)), h @ path.codes.aligners)


def test_waves_are_normal_at_any_time():
    z_m = torch.randn((20_000, 6), generator=seeded(0))
    u = MotionPath(WAVES)(z_m, torch.full((20_000,), 0.37))
    same(u.T @ u / len(u), torch.eye(6), 0.04)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'code_dim': 7}, 'even motion.code_dim .* got code_dim=7'),
        ({'code_dim': 2}, 'at least 4'),
        ({'kind': 'naive'}, 'kind=naive; change them or choose path=line'),
        ({'wave_max': 0.0}, 'motion.wave_max=0.0 must be positive'),
        ({'knot': -1.0}, 'motion.knot=-1.0 must be positive'),
        ({'lr_multiplier': 0.0}, 'motion.lr_multiplier=0.0 must be positive'),
    ],
)
def test_impossible_waves_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(WAVES, **options)


def test_configs_of_older_snapshots_mean_the_line():
    old = to_dict(MotionConfig(code_dim=7))
    for name in ('path', 'wave_max', 'knot', 'anchored', 'lr_multiplier'):
        del old[name]
    assert from_dict(MotionConfig, old) == MotionConfig(code_dim=7, path='line')


def test_a_learning_rate_of_its_own_scales_steps_and_nothing_else():
    """Adam changes stored weights alike, so that w_m moves by the multiplier; at first it is as random."""
    u, moved, sizes = draw(64, 8).float(), [], []
    for lr in (1.0, 0.01):
        torch.manual_seed(0)
        layer = MotionLayer(4, 8, MotionConfig(code_dim=8, lr_multiplier=lr))
        before = layer.mlp(layer.head(u))
        steps = torch.optim.Adam(layer.parameters(), lr=1e-3)
        before.sum().backward()
        steps.step()
        sizes.append(before.detach())
        moved.append((layer.mlp(layer.head(u)) - before).detach().norm())
    same(*sizes, 1e-5)
    assert moved[1] / moved[0] == pytest.approx(0.01, rel=0.05)
