"""Searches: better after than before, interrupted and resumed to the same bits, the network left alone."""

import dataclasses
import os
import signal

import pytest
import torch

from editing.inputs import Source
from editing.objective import Weights
from editing.recipes import Recipe, find_person, stages
from editing.search import Session, stop_on_interrupt, tuned_tensors
from support import tiny

WEIGHTS = Weights(perceptual=0.0)
RECIPE = Recipe(steps=6, layer_steps=6, motion_steps=6, tune_steps=6, batch=2, weights=WEIGHTS)


@pytest.fixture(scope='module')
def G():
    return tiny.solid_generator()


@pytest.fixture(scope='module')
def source():
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=tiny.seeded(0), dtype=torch.uint8)
    return Source('x', images, tiny.cameras(3), 25.0, {'first frame': 0})


def state(fit):
    return {name: value.clone() for name, value in fit.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_stages_of_recipes():
    def names(*args):
        return [stage.name for stage in stages(*args)]

    assert names(Recipe(), 1, False) == ['code', 'layers', 'tuning']
    assert names(Recipe(), 2, False) == ['code', 'layers', 'motion', 'tuning']
    assert names(Recipe(layer_steps=0, tune_steps=0), 1, False) == ['code']
    assert stages(Recipe(), 1, False)[0].motion == 0 < stages(Recipe(), 1, True)[0].motion
    assert stages(Recipe(refine_camera=False), 1, False)[0].camera == 0


def test_search_improves_and_leaves_the_network_alone(G, source):
    before = {name: value.clone() for name, value in G.state_dict().items()}
    recipe = dataclasses.replace(RECIPE, mirror=0.0)  # it counts in the losses of code and tuning alone
    fit, found = find_person(G, source, recipe, 0, Session())
    assert_equal(before, G.state_dict())
    assert list(found.notes) == ['code', 'layers', 'motion', 'tuning'] and not found.stopped
    assert found.notes['tuning'][-1][1] < found.notes['motion'][-1][1] < found.notes['code'][0][1]
    tuned = tuned_tensors(G, fit.G)
    assert 'decoder.out.bias' in tuned and not any('mapping' in name for name in tuned)
    again, _ = find_person(G, source, recipe, 0, Session())
    assert_equal(state(fit), state(again))


@pytest.mark.parametrize('step', [3, 9, 15, 21])
def test_interrupted_and_resumed_is_the_same(G, source, tmp_path, step):
    whole, _ = find_person(G, source, RECIPE, 0, Session())
    path, calls = tmp_path / 'state.pt', []

    def should_stop():
        calls.append(1)
        return len(calls) == step

    first, found = find_person(G, source, RECIPE, 0, Session(path=path, key='a', should_stop=should_stop))
    assert found.stopped and path.exists()
    resumed, found = find_person(G, source, RECIPE, 0, Session(path=path, key='a'))
    assert not found.stopped and not path.exists()
    assert_equal(state(whole), state(resumed))


def test_state_of_another_search_is_not_continued(G, source, tmp_path):
    path = tmp_path / 'state.pt'
    recipe = Recipe(steps=2, layer_steps=0, tune_steps=0, motion_steps=0, weights=WEIGHTS)
    find_person(G, source, recipe, 0, Session(path=path, key='a', should_stop=lambda: True))
    assert Session(path=path, key='b').read() is None and Session(path=path, key='a').read()
    path.write_text('x')
    lines = []
    assert Session(path=path, key='a', report=lines.append).read() is None and len(lines) == 1


def test_ctrl_c_asks_to_stop():
    handler = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
    assert signal.getsignal(signal.SIGINT) == handler
