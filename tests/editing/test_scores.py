"""Figures of portraits, against closed forms."""

import numpy as np
import pytest
import torch

from editing import scores
from editing.codes import own_network
from support import tiny
from support.portraits import portrait

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


def test_a_collapsed_head_is_named():
    good = {'ratio': 1.0, 'opacity': 0.95}
    assert scores.warnings(good) == []
    assert len(scores.warnings({**good, 'ratio': 1.3})) == len(scores.warnings({**good, 'ratio': None})) == 1
    assert len(scores.warnings({'ratio': 0.5, 'opacity': 0.5})) == 2
    assert scores.spread(torch.zeros(0)) == 0
