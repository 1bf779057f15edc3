"""Order of cameras: a judge that sees it, one that does not, and the command."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dnnlib.util import UserError
from studies import alignment, camera_order
from studies.measure import Judges
from support import tiny
from torch_utils.checkpoint import save_snapshot
from training.loss import PV3DLoss


@pytest.fixture(scope='module')
def G():
    return tiny.solid_generator()


@pytest.fixture(scope='module')
def opened(data, G):
    return camera_order.open_data(data, G)


def judge(**changes):
    return tiny.networks(**changes).D_video.eval().requires_grad_(False)


def test_figures_are_those_of_each_pair(G, opened):
    D = judge()
    found = camera_order.align(G, Judges(None, D, 8), opened, 8, 1)
    cameras, times = opened.sample_cameras(np.random.default_rng((1, camera_order._CAMERAS)), 8)
    for n in (0, 5):
        one, other = (D.mapping(None, c.flatten()[None]) for c in (cameras[n], cameras[n].flip(0)))
        cosine = torch.nn.functional.cosine_similarity(one, other).item()
        assert found.cosines['reversed'][n] == pytest.approx(cosine, abs=1e-5)
    pair = D.pair_input(camera_order.samples.pairs(G, times, cameras, 1), times)
    change = (D(pair, cameras.flip(1)) - D(pair, cameras)).abs()[:, 0]
    np.testing.assert_allclose(found.changes['reversed'], change.numpy(), atol=1e-5)
    rows = camera_order.summary(found)
    ratio = rows['change of the score, logits']['reversed'].value / found.scores.std()
    assert rows['the same over the sd of scores']['reversed'].value == pytest.approx(ratio)


def test_a_judge_that_sees_no_order(G, opened):
    """Weights that are the same for both cameras make embeddings that do not change."""
    D = judge()
    weight = D.mapping.embed.weight.data
    weight[:, 25:] = weight[:, :25]
    found = camera_order.align(G, Judges(None, D, 8), opened, 8, 1)
    np.testing.assert_allclose(found.cosines['reversed'], 1, atol=1e-6)
    np.testing.assert_allclose(found.changes['reversed'], 0, atol=1e-5)
    assert found.cosines['another clip'].min() < 1 - 1e-6


def test_a_judge_without_cameras_is_refused(G, opened):
    for D in (judge(camera=False), None):
        with pytest.raises(UserError, match='sees cameras'):
            camera_order.align(G, Judges(None, D, 8), opened, 4, 0)


def test_fakes_see_cameras_as_at_the_end_of_training(G, opened, monkeypatch):
    """Half of them another clip's, not all as at the beginning."""
    seen, conditions = [], PV3DLoss.conditions

    def spied(self, generator, fake, nimg):
        found = conditions(self, generator, fake, nimg)
        seen.append((found[0] == fake.c).all(dim=2).all(dim=1))
        return found

    monkeypatch.setattr(PV3DLoss, 'conditions', spied)
    camera_order.verdict_shares(G, Judges(None, judge(), 8), opened, 0, clips=32)
    assert 0.2 < torch.cat(seen).float().mean() < 0.8


def test_command(G, data, tmp_path, monkeypatch):
    monkeypatch.setattr(camera_order.verdict_shares, '__defaults__', (8,))
    nets = {'G_ema': G, 'D_image': tiny.networks().D_image, 'D_video': judge()}
    save_snapshot(tmp_path / 'a.pkl', nets, {})
    args = ['--network', str(tmp_path / 'a.pkl'), '--data', data, '--pairs', '9', '--device', 'cpu']
    result = CliRunner().invoke(alignment.main, args)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / 'alignment.json').read_bytes())
    assert found['pairs'] == 8 and len(found['figures']) == 3
    assert {'video/gap', 'variance/z_a', 'motion/common'} <= set(found['probes'])
    assert (tmp_path / 'alignment.png').exists() and '±' in result.output
