"""States: limits, and images that are those of the generator."""

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from support import tiny
from training.camera import front_label, orbit_label
from viz import images, rollout
from viz.web.painter import Painter
from viz.web.people import Model, Person
from viz.web.state import LIMITS, State


@pytest.fixture(scope='module')
def G():
    return tiny.generator(span=4).eval().requires_grad_(False)


@pytest.fixture
def painter(G):
    return Painter(Model(G=G, path='a.pkl'))


@pytest.mark.parametrize('name', LIMITS)
def test_values_from_browsers_are_checked(name):
    low, high, digits = LIMITS[name]
    for good in (low, high):
        assert getattr(State(**{name: good}), name) == good
    for bad in (low - 1, high + 1, float('nan'), float('inf'), 'x'):
        with pytest.raises(UserError, match=name.split('_')[0]):
            State(**{name: bad})


def test_numbers_are_those_that_are_printed():
    assert State(yaw=1.23456, time=1 / 3) == State(yaw=1.23, time=0.33333)
    with pytest.raises(UserError, match='kind'):
        State(kind='x')


def test_image_is_that_of_the_generator(painter, G):
    state = State(seed=3, motion_seed=5, time=0.4, yaw=10, pitch=-4)
    codes = rollout.draw_codes(G, 3, 5)
    angles = np.radians([10.0, -4.0])
    image = G(*codes, torch.tensor([0.4]), orbit_label(*angles)[None], front_label()[None]).image
    assert np.array_equal(painter.paint(state), images.to_uint8(image)[0])


def test_split_shows_two_kinds_of_one_rendering(painter):
    left, right = (painter.paint(State(kind=kind)) for kind in ('depth', 'opacity'))
    both = painter.paint(State(kind='depth', second='opacity', split_at=0.25))
    assert np.array_equal(both[:, :8], left[:, :8]) and np.array_equal(both[:, 8:], right[:, 8:])


def test_a_camera_move_synthesises_nothing(painter, G, monkeypatch):
    made = []
    synthesis = G.synthesis.forward
    monkeypatch.setattr(G.synthesis, 'forward', lambda *args: made.append(1) or synthesis(*args))
    for yaw in range(4):
        painter.paint(State(yaw=yaw, kind='raw', second='normals'))
    assert len(made) == 1
    painter.paint(State(yaw=1, map_camera='current'))
    painter.paint(State(time=0.5))
    assert len(made) == 3


@pytest.mark.parametrize(
    'change',
    [
        {'seed': 1},
        {'mix': 0.5},
        {'psi': 0.3},
        {'time': 1.0},
        {'time': 1.0, 'motion_seed': 9},
        {'time': 1.0, 'strength': 0.5},
        {'yaw': 9},
        {'pitch': 9},
        {'fov': 20},
        {'samples': 2},
        {'kind': 'normals'},
        {'yaw': 9, 'map_camera': 'current'},
        {'yaw': 9, 'map_camera': 'first', 'first': (20.0, 3.0, None)},
    ],
)
def test_every_field_changes_the_image_and_going_back_restores_it(painter, change):
    before = painter.paint(State())
    assert np.abs(painter.paint(State(**change)).astype(int) - before).mean() > 0
    assert np.array_equal(painter.paint(State()), before)


def test_a_person_takes_the_place_of_the_seeds(painter, G):
    other = tiny.build(tiny.G_CONFIG, seed=7).eval()
    motions, sources = {'sampled': other, 'recorded': G}, {'recorded': 'bob.portrait.pt'}
    painter.add('ann', Person(motions=motions, sources=sources, path='ann.portrait.pt', private=True))
    shown = painter.paint(State(person='ann'))
    assert not np.array_equal(shown, painter.paint(State()))
    assert np.array_equal(painter.paint(State(person='ann', motion='recorded')), painter.paint(State()))
    assert painter.model.names([]) == () and painter.model.names(['ann']) == ('ann',)
    assert '--portrait=ann.portrait.pt --seeds' in painter.command(State(person='ann'))
    moved = painter.command(State(person='ann', motion='recorded'))
    assert '--motion-of=bob.portrait.pt' in moved and '--seeds' not in moved
    painter.remove('ann')
    assert np.array_equal(painter.paint(State(person='ann')), painter.paint(State()))
