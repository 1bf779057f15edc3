"""The path of motion: closed forms, what is constant, where it begins."""

import dataclasses
import math

import pytest
import torch

from dnnlib.config import from_dict, to_dict
from dnnlib.util import ConfigError
from support.tiny import codes, differs, draw, generator, motion, same, seeded
from training.networks.contract import Codes
from training.networks.motion import MotionConfig, MotionLayer, motion_path

WAVES = MotionConfig(path='waves', code_dim=6, wave_max=1.5)
ANCHORED = dataclasses.replace(WAVES, anchored=True)


def test_line_is_equation_1():
    z_m, t = draw(3, 6), draw(3, seed=1)
    assert torch.equal(motion_path(MotionConfig(code_dim=6), z_m, t), z_m * t[:, None])


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
    u, anchored = (motion_path(c, draw(1, 6), t)[0] for c in (WAVES, ANCHORED))
    assert u.tolist() == pytest.approx(expected, abs=1e-12)
    assert anchored.tolist() == pytest.approx(
        [x - y for x, y in zip(expected, start, strict=True)], abs=1e-12
    )


def test_waves_keep_the_length_of_the_code():
    z_m, t = draw(50, 6), 30 * draw(50, seed=1)
    same(motion_path(WAVES, z_m, t).norm(dim=1), z_m.norm(dim=1))


def test_where_paths_begin():
    z_m, zero = draw(5, 6), torch.zeros(5, dtype=torch.float64)
    for config in (MotionConfig(code_dim=6), ANCHORED):
        assert not motion_path(config, z_m, zero).any()
    assert motion_path(WAVES, z_m, zero).std(dim=0).min() > 0.1


@torch.no_grad()
def test_a_later_span_is_the_span_of_another_code():
    """So long videos that go on beyond t = 1 stay what training saw."""
    G = generator(motion=motion(path='waves')).double()
    z_a, z_m, t, c = (x.double() for x in codes(3))
    later = motion_path(G.config.motion, z_m, torch.full_like(t, 7.3))
    other = torch.cat([later[:, :8], -later[:, 8:]], dim=1)
    ws = G.condition(Codes(z_a, z_m), c, t)
    planes = G.scene(Codes(z_a, z_m), ws, t + 7.3)
    same(planes, G.scene(Codes(z_a, other), ws, t))
    differs(planes, G.scene(Codes(z_a, z_m), ws, t))


@pytest.mark.parametrize('config', [MotionConfig(code_dim=6), WAVES, ANCHORED], ids=lambda c: f'{c.path}')
def test_gradients_of_code_and_time(config):
    def path(z_m, t):
        return motion_path(config, z_m, t)

    assert torch.autograd.gradcheck(path, (draw(3, 6, grad=True), draw(3, seed=1, grad=True)))


def test_waves_are_normal_at_any_time():
    z_m = torch.randn((20_000, 6), generator=seeded(0))
    u = motion_path(WAVES, z_m, torch.full((20_000,), 0.37))
    same(u.T @ u / len(u), torch.eye(6), 0.04)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'code_dim': 7}, 'even motion.code_dim .* got code_dim=7'),
        ({'code_dim': 2}, 'at least 4'),
        ({'kind': 'naive'}, 'kind=naive; change them or choose path=line'),
        ({'wave_max': 0.0}, 'motion.wave_max=0.0 must be positive'),
        ({'lr_multiplier': 0.0}, 'motion.lr_multiplier=0.0 must be positive'),
    ],
)
def test_impossible_waves_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(WAVES, **options)


def test_configs_of_older_snapshots_mean_the_line():
    old = to_dict(MotionConfig(code_dim=7))
    for name in ('path', 'wave_max', 'anchored', 'lr_multiplier'):
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
