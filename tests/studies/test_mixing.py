"""Style mixing: which blocks see which codes, distances with known answers, the command."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dnnlib.util import UserError
from studies import mixing, style_mixing
from support import tiny
from support.second_system import FlatGenerator
from torch_utils.checkpoint import save_snapshot
from training.camera import front_label
from viz.rollout import Frames

BLOCKS = (4, 8, 16, 32)


@pytest.fixture(scope='module')
def G():
    return tiny.solid_generator()


def features(G, ws, u):
    """The features after each block."""
    found, hooks = {}, []
    for r in BLOCKS:
        block = getattr(G.synthesis, f'b{r}')
        hooks.append(block.register_forward_hook(lambda m, i, out, r=r: found.update({r: out[0]})))
    G.moved_scene(ws, u)
    for hook in hooks:
        hook.remove()
    return [found[r] for r in BLOCKS]


@torch.no_grad()
def test_the_first_blocks_are_those_of_the_other_head(G):
    assert G.block_ws == (1, 3, 5, 7) and G.synthesis.num_ws == 8
    ws, other = tiny.draw(2, 1, 8, 16).float()
    rows = mixing.mixed_ws(ws[None, 0], other[None, 0], G.block_ws)
    u = torch.zeros(1, 16)
    theirs = features(G, other, u)
    for k in range(5):
        mixed = features(G, rows[k : k + 1], u)
        equal = [torch.allclose(a, b, atol=1e-5) for a, b in zip(mixed, theirs, strict=True)]
        assert equal == [i < k for i in range(4)]
    assert torch.equal(rows[0], ws[0]) and torch.equal(rows[-1], other[0])


@torch.no_grad()
def test_ends_are_the_two_heads_with_one_motion(G):
    found = mixing.mix(G, 2, 3, None)
    assert found.images.shape == (2, 6, 32, 32, 3)
    codes = G.draw_codes(2, mixing.seeded_generator('cpu', 3, mixing._CODES))
    camera, t = front_label(G.config.focal)[None], torch.zeros(1)
    for column, head in ((0, 0), (-1, 1)):
        seen = G(codes.z_a[[head]], codes.z_m[[0]], t, camera).image
        np.testing.assert_allclose(found.images[0, column], 1.0 * mixing.to_uint8(seen)[0], atol=1)
    for values in found.distances.values():
        assert (values[:, 0] == 0).all() and (values[:, 1:] > 0).all()


def test_distances_count_what_both_show():
    image = torch.zeros(2, 3, 4, 4)
    image[1] += 0.5
    depth, opacity = torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    depth[1, :, 2:] += 0.25
    depth[1, :, :, 0], opacity[1, :, :, 0] = 9.0, 0.1  # not seen
    found = mixing._distances(Frames(image, depth, opacity, None), None, None)
    assert found['pixels'][1] == pytest.approx(63.75) and found['depth'][1] == pytest.approx(0.125)
    curve, _ = mixing.curves(
        mixing.Mixing(None, {'pixels': np.array([[0.0, 1, 4], [0, 3, np.nan]]), 'depth': np.zeros((2, 3))})
    )
    assert (curve.kimg, curve.value, curve.error, curve.level) == ([0, 1], [0, 2], [0, 1], 4)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UserError, match='flat'):
        mixing.mix(FlatGenerator(FlatGenerator.Config()), 2, 0, None)


def test_command(G, tmp_path, monkeypatch):
    class Recognizer(torch.nn.Module):
        """Takes the mean colour for who it is."""

        def __init__(self):
            super().__init__()
            self.register_buffer('middle', torch.tensor(127.5))

        def forward(self, crops):
            assert crops.shape[1:] == (3, 112, 112)
            return (crops - self.middle).mean(dim=(2, 3))

    class Loaded:
        network = Recognizer()

    monkeypatch.setattr('metrics.detectors.registry.load_detector', lambda *args: Loaded)
    save_snapshot(tmp_path / 'a.pkl', {'G_ema': G}, {})
    args = ['--network', str(tmp_path / 'a.pkl'), '--pairs', '2', '--rows', '1', '--device', 'cpu']
    result = CliRunner().invoke(style_mixing.main, args)
    assert result.exit_code == 0, result.output
    assert 'another head' in result.output and 'K = 4' in result.output
    curves = json.loads((tmp_path / 'style-mixing.json').read_bytes())['curves']
    assert [c['name'] for c in curves] == list(mixing.TITLES.values())
    assert all(c['kimg'] == [0, 1, 2, 3, 4] and c['value'][0] < 1e-6 < c['level'] for c in curves)
    assert Image.open(tmp_path / 'style-mixing.png').width == 6 * 64
    assert Image.open(tmp_path / 'style-mixing-curves.png').width > 500
