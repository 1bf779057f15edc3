"""Views: rendered as the generator defines, kept where they share a scene, and stated as options."""

import dataclasses
import shlex

import pytest
import torch

from dnnlib.scene import Camera
from support import tiny
from viz import images, rollout, trajectories, view
from viz.look import Look
from viz.view import View, Views

PLAIN = View(seed=3, time=0.5, camera=Camera(yaw=20.0, pitch=-5.0))


@pytest.fixture(scope='module')
def G():
    return tiny.generator().eval()


@pytest.fixture
def synthesised(monkeypatch):
    """The times of each call of the synthesis."""
    times, plain = [], tiny.Generator.moved_scene

    def scene(self, ws, u, *rest):
        times.append(len(u))
        return plain(self, ws, u, *rest)

    monkeypatch.setattr(tiny.Generator, 'moved_scene', scene)
    return times


def test_view_is_what_the_generator_makes(G):
    codes, front = rollout.draw_codes(G, 3), trajectories.front(1)
    camera = trajectories.placed([PLAIN.camera])
    with torch.no_grad():
        direct = G(*codes, torch.tensor([0.5]), camera, front)
    frames = Views(G).render(PLAIN)
    for name in rollout.Frames._fields:
        torch.testing.assert_close(getattr(frames, name), getattr(direct, name), atol=1e-5, rtol=0)
    for kind in images.KINDS:
        assert Views(G).image(PLAIN, kind).shape == (32, 32, 3)


def test_strength_moves_away_from_the_start(G):
    codes, zero = rollout.draw_codes(G, 3), torch.zeros(1)
    start, end = (G.motion_at(codes, t) for t in (zero, zero + 0.5))
    views = Views(G)
    frozen = dataclasses.replace(PLAIN, strength=0.0)
    assert torch.equal(views.scene(frozen)[0], views.scene(dataclasses.replace(PLAIN, time=0.0))[0])
    planes, ws = views.scene(dataclasses.replace(PLAIN, strength=2.0))
    torch.testing.assert_close(planes, G.moved_scene(ws, start + 2 * (end - start)))


def test_scene_is_kept_while_the_camera_alone_moves(G, synthesised):
    views = Views(G)
    first = views.image(PLAIN)
    changes = {'camera': Camera(), 'neural_resolution': 12, 'render_samples': 8}
    for name, value in changes.items():
        views.image(dataclasses.replace(PLAIN, **{name: value}))
    assert len(synthesised) == 1
    assert (views.image(PLAIN) == first).all() and len(synthesised) == 1
    for name, value in {'seed': 4, 'time': 0.0, 'map_camera': 'per-frame', 'strength': 0.5}.items():
        views.image(dataclasses.replace(PLAIN, **{name: value}))
    assert len(synthesised) == 5


def test_kept_scenes_have_a_limit_and_the_oldest_goes(G, synthesised):
    views = Views(G, kept_bytes=2 * 4 * 3 * 8 * 32 * 32)
    for seed in (0, 1, 0, 2, 0):  # 2 takes the place of 1
        views.scene(View(seed=seed))
    assert len(synthesised) == 3
    views.scene(View(seed=1))
    assert len(synthesised) == 4
    Views(G, kept_bytes=1).scene(View())  # the one that is shown is always kept


def test_command_line_has_what_differs_and_quotes_it():
    line = view.command_line(View(seed=2), 'my net.pkl')
    words = ['--network=my net.pkl', '--seeds=2', '--image-at=0.0', '--outdir=out']
    assert shlex.split(line) == ['python', 'gen_videos.py', *words]
    mixed = View(look=Look(psi=0.7, cutoff=4, mix_seed=8, mix_layers=(1, 2), mix_weight=1 / 3))
    line = view.command_line(mixed, 'a.pkl', 'there', portrait='me.portrait.pt', more=['--depth'])
    for option in (
        'psi=0.7',
        'psi-cutoff=4',
        'mix-layers=1,2',
        f'mix-weight={1 / 3!r}',
        'portrait=me.portrait.pt',
    ):
        assert f'--{option} ' in line
    assert line.endswith('--depth --outdir=there')
