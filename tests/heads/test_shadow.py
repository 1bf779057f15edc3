"""Shadows: the map in two parts is the whole map, and the fraction of light is that of all 16 cells."""

import numpy as np
import pytest

from heads import rasterizer
from heads.appearance import light_direction
from heads.identity import sample_identity
from heads.model import HeadModel
from heads.motion import Motion
from heads.shadow import Shadow

TALK = Motion(jaw=0.8, smile=0.5, pucker=0.3, brow_raise=0.6, blink_left=0.7, upper_lip=0.5, lower_lip=0.4)


@pytest.fixture(scope='module')
def model():
    return HeadModel(sample_identity(3))


@pytest.fixture(scope='module')
def whole(model):
    """The shadow of the same head, all of it drawn for each frame."""
    everything = np.ones(model.vertices.shape[1], bool)
    return Shadow(light_direction(model.identity), model.vertices, model.corners, everything)


def test_what_never_moves_is_at_the_same_place_whatever_the_motion(model):
    (one, _), (two, _) = model.pose(Motion()), model.pose(TALK)
    still = np.ones(one.shape[1], bool)
    still[model.shadow.used] = False
    assert still.mean() > 0.3
    np.testing.assert_array_equal(one[:, still], two[:, still])
    assert np.abs(one - two).max() > 0.01


def test_the_map_in_two_parts_is_the_whole_map(model, whole):
    vertices, _ = model.pose(TALK)
    distance = model.shadow._draw(vertices)
    np.testing.assert_array_equal(distance, whole._draw(vertices))
    assert not np.array_equal(distance, model.shadow._draw(model.pose(Motion())[0]))


def test_light_is_the_weighted_fraction_of_the_cells_that_are_farther_away(model):
    """Every cell is asked for every point; cells beyond the map are those at its border."""
    vertices, normals = model.pose(TALK)
    rng = np.random.default_rng(0)
    some = rng.choice(vertices.shape[1], 300, replace=False)
    position = np.concatenate([vertices[:, some], rng.uniform(-0.7, 0.7, (3, 100))], axis=1)
    normal = np.concatenate([normals[:, some], np.zeros((3, 100))], axis=1)
    shadow = model.shadow
    distance, pose = shadow._draw(vertices).reshape(128, 128), shadow.label[:16].reshape(4, 4)
    expected = []
    for point in (position + 0.012 * normal).T:
        x, y, z = pose[:3, :3].T @ (point - pose[:3, 3])
        column, row = 7 * x / z * 128 + 63.5, 7 * y / z * 128 + 63.5
        lit = 0
        for i in range(int(np.floor(row)) - 1, int(np.floor(row)) + 3):
            for j in range(int(np.floor(column)) - 1, int(np.floor(column)) + 3):
                weight = (1 - abs(row - i) / 2) * (1 - abs(column - j) / 2) / 4
                cell = distance[np.clip(i, 0, 127), np.clip(j, 0, 127)]
                lit += weight * (cell > np.linalg.norm(point - pose[:3, 3]) - 0.012)
        expected.append(0.35 + 0.65 * lit)
    assert 0.1 < np.mean([0.36 < lit < 0.99 for lit in expected]) < 0.9
    np.testing.assert_allclose(shadow.lit(vertices, position, normal), expected, atol=1e-5)


def test_light_camera_looks_along_the_light(model):
    direction = light_direction(model.identity)
    origin, rays = rasterizer.camera_rays(model.shadow.label, 3)
    np.testing.assert_allclose(origin, 6 * direction, atol=1e-5)
    np.testing.assert_allclose(rays[:, 1, 1], -direction, atol=1e-6)
