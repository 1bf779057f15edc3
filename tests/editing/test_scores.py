"""Figures of portraits, against closed forms."""

import numpy as np
import pytest
import torch

from editing import scores
from editing.codes import own_network
from editing.inputs import Views
from editing.render import Take, render_take
from support import tiny
from support.portraits import portrait
from viz.images import to_uint8
from viz.rollout import concatenate

RNG = np.random.default_rng(0)


def test_figures_of_images():
    a = RNG.integers(20, 200, (2, 16, 16, 3)).astype(np.uint8)
    b = a.copy()
    b[1] += 10
    found = scores.image_scores(a, b)
    worst = 20 * np.log10(255 / 10)
    assert found['worst psnr'] == pytest.approx(worst)
    assert found['psnr'] == pytest.approx((worst + 20 * np.log10(255) + 50) / 2)
    assert 0 < found['ssim'] < 1


def test_figures_of_motion():
    a = (np.arange(4)[:, None, None, None] * np.ones((4, 8, 8, 3)) * 4).astype(np.uint8)
    same, still, half = (
        scores.motion_scores(a, a),
        scores.motion_scores(a, 0 * a),
        scores.motion_scores(a, a // 2),
    )
    assert same == {'source': 4, 'found': 4, 'kept': 1, 'error': 0}
    assert still == {'source': 4, 'found': 0, 'kept': 0, 'error': 4}  # that of a still is the motion
    assert half['kept'] == 0.5 and half['error'] == 2
    assert scores.motion_scores(0 * a, a)['kept'] is None


def test_all_figures_of_a_portrait():
    G = tiny.solid_generator()
    person = portrait(G, 2)
    found = scores.measure(G, own_network(G, person, 'a'), person)
    assert found['geometry']['ratio'] == 1 and found['warnings'] == []
    assert found['identity'] is None  # there is no face in black images
    assert set(found) == {'image', 'motion', 'geometry', 'identity', 'warnings'}


def test_steadiness_compares_neighbours_and_all_pairs():
    angle = torch.tensor([0.0, 0.1, 0.2, 0.6])
    source, found = (torch.stack([(k * angle).cos(), (k * angle).sin()], dim=1) for k in (1, 2))
    got = scores.steadiness(source, found, [0, 1, 2, 5])  # the last has no neighbour
    assert got['TL-ID'] == pytest.approx(np.cos(0.2) / np.cos(0.1))
    pairs = [abs(a - b) for a in angle.tolist() for b in angle.tolist() if a < b]
    assert got['TG-ID'] == pytest.approx(np.cos([2 * p for p in pairs]).sum() / np.cos(pairs).sum())
    assert scores.steadiness(source[:1], found[:1], [0]) == {}
    assert set(scores.steadiness(source[:2], found[:2], [0, 2])) == {'TG-ID'}


def test_views_of_the_truth():
    G = tiny.solid_generator()
    person = portrait(G)
    _, _, _, cameras = tiny.codes(3, 1, G.z_dim)
    u = person.neutral.expand(3, -1)
    seen = concatenate(list(render_take(G, Take(person.ws, u, cameras))))
    images = torch.from_numpy(to_uint8(seen.image)).permute(0, 3, 1, 2)
    depth = torch.nn.functional.interpolate(seen.depth, images.shape[-1]) + 0.25
    mask = torch.zeros_like(images[:, :1], dtype=torch.float32)
    mask[:2, :, 8:24, 8:24] = 1  # the last image shows no head
    views = Views(images, cameras, depth, mask)
    found = scores.view_scores(G, person, views)
    assert found['images'] == 3 and found['psnr'] == pytest.approx(20 * np.log10(255) + 50)
    assert found['psnr in the head'] > 50 and found['depth error'] == pytest.approx(0, abs=1e-6)
    wrong = views._replace(images=images // 2, depth=depth * torch.linspace(1, 2, 32))
    worse = scores.view_scores(G, person, wrong)
    assert worse['psnr in the head'] < 30 and worse['depth error'] > 0.1
    plain = scores.view_scores(G, person, views._replace(depth=None, mask=None))
    assert 'depth error' not in plain and plain['psnr'] == found['psnr']


def test_a_collapsed_head_is_named():
    good = {'ratio': 1.0, 'opacity': 0.95}
    assert scores.warnings(good) == []
    assert len(scores.warnings({**good, 'ratio': 1.3})) == len(scores.warnings({**good, 'ratio': None})) == 1
    assert len(scores.warnings({'ratio': 0.5, 'opacity': 0.5})) == 2
    assert scores.spread(torch.zeros(0)) == 0
