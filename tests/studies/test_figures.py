"""Figures of arrays whose answer is known."""

import math

import numpy as np
import pytest
import torch

from metrics.measures.coverage import nearest
from studies import figures
from training.diagnostics import variance_parts

A, M, T, D = 6, 5, 4, 40


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_a_clock_is_all_common():
    person, clock = 3 * noise(A, 1, 1, D), noise(A, 1, T, D, seed=1)
    images = np.broadcast_to(person + clock, (A, M, T, D))
    parts = figures.motion_parts(images)
    assert figures.common_share(parts).value == pytest.approx(1)
    np.testing.assert_allclose(parts.specific, 0, atol=1e-20)
    assert figures.motion_correlation(images).value == pytest.approx(1)


def test_independent_motions_have_nothing_in_common_once_chance_is_subtracted():
    """Half of each motion is constant within a clip, as moods are: the mean of 5 would hold a tenth."""
    images = noise(400, M, T, D) + noise(400, M, 1, D, seed=1)
    figure = figures.common_share(figures.motion_parts(images))
    assert abs(figure.value) < 4 * figure.error < 0.02


def test_parts_of_motion_are_unbiased():
    c, d = noise(1, 1, T, D, seed=1), 2 * noise(800, M, T, D)
    parts = figures.motion_parts(c + d + noise(800, 1, 1, D, seed=2))
    assert parts.specific.mean() == pytest.approx(4, rel=0.02)
    assert parts.common.mean() == pytest.approx((c - c.mean(axis=2, keepdims=True)).var(), abs=0.05)


def test_parts_are_those_that_training_reports():
    images = noise(A, M, T, D) + noise(A, 1, T, D, seed=1) + noise(A, 1, 1, D, seed=2)
    parts, probe = figures.motion_parts(images), variance_parts(torch.from_numpy(images))
    assert parts.specific.mean() == pytest.approx(probe.z_m)
    assert parts.common.mean() == pytest.approx(probe.t)


def test_relative_deviation_is_that_of_a_scaled_motion():
    images = noise(A, M, T, D)
    parts, half = figures.motion_parts(images).specific, figures.motion_parts(images / 2).specific
    assert figures.relative_deviation(half, parts).value == pytest.approx(0.5)


def test_correlation_does_not_depend_on_the_order_of_motions():
    images = noise(A, M, T, D) + noise(A, 1, T, D, seed=1)
    value = figures.motion_correlation(images).value
    assert figures.motion_correlation(images[:, ::-1]).value == pytest.approx(value)
    flat = figures.motion_of(images)
    pairs = [(i, j) for i in range(M) for j in range(M) if i != j]
    naive = [
        np.corrcoef(flat[a, i, t], flat[a, j, t], rowvar=False)[0, 1]
        for a in range(A)
        for t in range(T)
        for i, j in pairs
    ]
    assert value == pytest.approx(np.mean(naive), abs=0.02)  # corrcoef also takes the mean of pixels off


def test_motion_distance_is_nothing_to_itself_and_all_when_frozen():
    images = noise(A, M, T, 100)
    same, outside = figures.motion_distance(images, images)
    assert same.value == pytest.approx(0, abs=1e-9) and 0.4 < outside.value < 0.9  # 12 of 100 directions
    still = np.broadcast_to(images[:, :, :1], images.shape)
    assert figures.motion_distance(images, still)[0].value == pytest.approx(1, abs=0.1)


def test_motion_in_few_directions_lies_inside():
    basis = noise(3, 100)
    images = noise(A, M, T, 3) @ basis
    other = noise(A, M, T, 3, seed=9) @ basis
    distance, outside = figures.motion_distance(images, other)
    assert distance.value < 0.2 and outside.value == pytest.approx(0, abs=1e-9)


def test_monotone_courses_are_counted():
    images = np.zeros((2, 3, 4, 3, 2, 2))
    images[..., 0, 0] = np.array([[[0, 1, 2, 3], [3, 2, 2, 1], [0, 1, 0, 1]]] * 2)[..., None]
    images[0, 2, :, :, 1, 1] = np.arange(4)[:, None]  # elsewhere
    mask = np.array([[True, False], [False, False]])
    assert figures.monotone_share(images, mask).value == pytest.approx(2 / 3)


def test_share_inside_counts_energy():
    images = noise(A, M, T, 3, 2, 2) * np.array([[2.0, 1], [1, 0]])
    top, left = np.array([[1, 1], [0, 0]], bool), np.array([[1, 0], [1, 0]], bool)
    assert figures.share_inside(images, [top, left]).value == pytest.approx(1)
    assert figures.share_inside(images, [top]).value == pytest.approx(5 / 6, abs=0.02)


def test_people_are_counted():
    people = 10 * np.eye(4)
    chosen = nearest(people[[0, 0, 0, 1, 1, 2]] + 0.1 * noise(6, 4), people)
    assert chosen.tolist() == [0, 0, 0, 1, 1, 2]
    assert figures.coverage(chosen, 4).value == 0.75
    assert figures.rarest(chosen, 4, 256).value == 0 and figures.rarest(chosen, 3, 12).value == 2
    p = np.array([3, 2, 1]) / 6
    assert figures.effective_people(chosen).value == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert figures.changed_share(np.array([[1, 1, 1], [2, 0, 2], [3, 3, 1], [0, 0, 0]])).value == 0.5


def test_nearest_distance_is_the_naive_one():
    a, b = noise(5, 7), noise(9, 7, seed=1)
    naive = np.linalg.norm(a[:, None] - b, axis=2).min(axis=1)
    np.testing.assert_allclose(figures.nearest_distance(a, b), naive)
    assert figures.share_above(np.array([1.0, 5, 9, 0]), np.linspace(0, 4, 101)).value == 0.5


def test_logits_are_compared():
    real, fake = np.full(8, 3.0), np.full(8, -1.0)
    assert figures.gap_share(real, np.full(8, 2.0), fake).value == pytest.approx(0.25)
    signs = figures.mean_difference(np.ones((4, 2)), np.array([[1, 1], [1, -1], [-1, -1], [1, 1]]))
    assert signs.value == pytest.approx(0.75)


def test_error_is_that_of_the_mean():
    figure = figures.bootstrap(np.mean, noise(100))
    assert figure.error == pytest.approx(0.1, rel=0.3)
    assert figure == figures.bootstrap(np.mean, noise(100))
