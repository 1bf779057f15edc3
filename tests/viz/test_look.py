"""Truncation, mixing and loops in W, against their definitions."""

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from support import tiny
from viz import rollout, trajectories
from viz.look import Look, loop_weights, map_look

FRONT, TIMES = trajectories.front(1), torch.linspace(0, 1, 6)


@pytest.fixture(scope='module')
def G():
    G = tiny.generator().eval()
    G.mapping_network.w_avg += torch.linspace(-1, 1, 16)
    return G


def ws(G, seed=3, **look):
    return map_look(G, rollout.draw_codes(G, seed), Look(**look), FRONT, TIMES)


def test_truncation_of_the_first_layers(G):
    plain, short = ws(G), ws(G, psi=0.5, cutoff=2)
    assert torch.equal(ws(G, psi=0.5)[:, :2], short[:, :2]) and torch.equal(short[:, 2:], plain[:, 2:])
    torch.testing.assert_close(short[:, :2], (plain[:, :2] + G.mapping_network.w_avg) / 2)


def test_mix_of_layers_by_weight(G):
    first, second = ws(G, 3, psi=0.7), ws(G, 8, psi=0.7)
    styles = ws(G, 3, psi=0.7, mix_seed=8, mix_layers=(0, 3), mix_weight=1.0)
    for layer in range(first.shape[1]):
        assert torch.equal(styles[:, layer], (second if layer in (0, 3) else first)[:, layer])
    torch.testing.assert_close(ws(G, 3, psi=0.7, mix_seed=8, mix_weight=0.25), 0.75 * first + 0.25 * second)
    assert torch.equal(ws(G, 3, mix_seed=8, mix_weight=0.0), ws(G, 3))


def test_loop_passes_through_its_people(G):
    loop = ws(G, path_seeds=(3, 8, 5))
    assert len(loop) == len(TIMES)
    for i, seed in enumerate((3, 8, 5)):
        assert torch.equal(loop[2 * i], ws(G, seed)[0])
    naive = tiny.generator(motion=tiny.motion(kind='naive')).eval()  # its ws depend on the time
    assert torch.equal(
        ws(naive, path_seeds=(3, 8, 5))[4],
        map_look(
            naive,
            rollout.Codes(rollout.draw_codes(naive, 5).z_a, rollout.draw_codes(naive, 3).z_m),
            Look(),
            FRONT,
            TIMES,
        )[4],
    )


@pytest.mark.parametrize('people', [2, 3, 7])
def test_loop_is_smooth_and_closed(people):
    weights = loop_weights(people, 100 * people).astype(float)
    assert np.allclose(weights.sum(1), 1)
    speed = np.diff(np.concatenate([weights, weights[:2]]), axis=0)
    assert np.abs(np.diff(speed, axis=0)).max() < 0.003  # of speeds up to 0.02: also where it closes
    assert np.allclose(weights[100:, 1], weights[:-100, 0], atol=1e-6)  # every person has the same turn


@pytest.mark.parametrize('look', [{'psi': 0.5, 'cutoff': 99}, {'mix_seed': 1, 'mix_layers': (0, 99)}])
def test_layers_beyond_the_network(G, look):
    with pytest.raises(UserError, match='layer 9[89] .* is beyond the network, whose layers are 0 to'):
        ws(G, **look)
