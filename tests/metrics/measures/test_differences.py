"""Distances of frame differences and of motions, on sets whose answers are known."""

import math

import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter

from metrics.base import METRICS, Context, Request, Sample, Settings
from metrics.measures.differences import (
    STEP,
    aligned,
    differences,
    motions_of_people,
    principal_directions,
)

SIZE = 32


@pytest.fixture(scope='module')
def texture():
    """A smooth random image [3 SIZE, 3 SIZE] in gray levels."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(3 * SIZE, 3 * SIZE)), 4)
    return 128 + 40 * noise / noise.std()


def view(texture, matrix=((1, 0), (0, 1)), shift=(0, 0)):
    """The middle of a texture, seen through an affine map about its centre."""
    matrix, centre = np.array(matrix), np.full(2, SIZE / 2 - 0.5)
    return affine_transform(texture, matrix, SIZE + centre - matrix @ centre + shift, (SIZE, SIZE), order=3)


@pytest.mark.parametrize(
    ('matrix', 'shift'),
    [
        (((1, 0), (0, 1)), (1.5, -2)),
        (((1.05, 0), (0, 1.05)), (0, 0)),
        (((0.998, -0.06), (0.06, 0.998)), (0.5, 0.5)),
        (((1, 0.05), (0, 0.95)), (-1, 1)),
    ],
)
def test_what_moves_as_a_whole_is_taken_away(texture, matrix, shift):
    before, after = view(texture), view(texture, matrix, shift)
    inner = (slice(3, -3), slice(3, -3))
    left, all_ = ((x - before)[inner] for x in (aligned(before, after), after))
    assert np.mean(left**2) < 0.03 * np.mean(all_**2)


def test_what_moves_within_stays(texture):
    before = view(texture)
    after = before.copy()
    after[18:26, 10:22] += 60 * np.hanning(8)[:, None] * np.hanning(12)
    change = aligned(before, after) - before
    assert np.mean(change**2) > 0.8 * np.mean((after - before) ** 2)
    assert np.array_equal(aligned(before, before), before)
    plain = np.full((SIZE, SIZE), 7.0)
    assert np.array_equal(aligned(plain, plain + 5), plain + 5)


def test_pairs_of_a_clip(texture):
    frames = np.repeat(view(texture)[None, :, :, None], 16, axis=0).repeat(3, axis=3)
    frames[3, 10:20] += 10  # the end of the first pair
    frames[5] += 10  # in no pair
    x = differences(frames.astype(np.uint8), None)['x']
    assert x.shape == (4, 28 * 28) and STEP == 3
    before, after = (frames[i, :, :, 0].astype(np.uint8).astype(float) for i in (0, 3))
    expected = (aligned(before, after) - before)[2:-2, 2:-2]
    assert x[0].reshape(28, 28) == pytest.approx(expected, abs=0.01) and not x[1:].any()


def sample(x, people=None, groups=None):
    """Items with the records x [N, P, D]."""
    numbers = list(range(len(x)))
    return Sample([{'x': item} for item in x], groups or numbers, people or numbers)


def fmd(real, fake):
    request = Request(name='fmd', metric='fmd', count=None, frames=16, detector=None)
    context = Context(request, Settings(cache='x'), None, None, None, None)
    return METRICS['fmd'].reduce(context, sample(fake), sample(real))


@pytest.fixture(scope='module')
def real():
    """Differences [60, 2, 40] in 10 directions of different variance, with mean 0."""
    rng = np.random.default_rng(1)
    half = np.pad(rng.normal(size=(30, 2, 10)) * np.arange(1, 11), [(0, 0), (0, 0), (0, 30)])
    return np.concatenate([half, -half])


def test_distance_over_the_real_variance(real):
    same, none, double = (fmd(real, scale * real) for scale in (1, 0, 2))
    assert same.value == pytest.approx(0, abs=1e-9)
    assert none.value == pytest.approx(1) and none.details['energy'] == 0
    assert double.value == pytest.approx(1) and double.details['energy'] == pytest.approx(4)
    assert same.details['real_outside'] == pytest.approx(0, abs=1e-9)
    assert 0 < same.details['floor'] < 0.5 and same.error > 0


def test_order_and_unit_do_not_count(real):
    fake = np.random.default_rng(2).normal(size=(50, 2, 40))
    first = fmd(real, fake)
    order = np.random.default_rng(3).permutation(50)
    assert fmd(real[::-1], fake[order]).value == pytest.approx(first.value, rel=1e-9)
    assert fmd(3 * real, 3 * fake).value == pytest.approx(first.value, rel=1e-9)


def test_motion_that_real_videos_never_show(real):
    elsewhere = np.roll(real, 30, axis=2)
    found = fmd(real, elsewhere)
    assert found.value == pytest.approx(1) and found.details['outside'] == pytest.approx(1)
    half = fmd(real, real + elsewhere)
    assert half.value == pytest.approx(0, abs=1e-9) and half.details['outside'] == pytest.approx(0.5)


def test_real_videos_without_motion_give_no_value(real):
    assert math.isnan(fmd(0 * real, real).value)


def test_principal_directions(real):
    x = real.reshape(-1, 40)
    mean, directions = principal_directions(x + 5, 3)
    assert mean == pytest.approx(5) and directions.shape == (40, 3)
    assert directions.T @ directions == pytest.approx(np.eye(3))
    singular = np.linalg.svd(x, compute_uv=False)[:3]
    assert np.linalg.norm(x @ directions, axis=0) == pytest.approx(singular)


def test_motions_of_people():
    x, y = np.eye(16)[:2].reshape(2, 1, 16) * 4  # each has a mean square of 1
    distances, correlation = motions_of_people(sample(np.array([x, x, y, y]), people=[0, 0, 5, 5]))
    assert distances.tolist() == [0, 0] and correlation == 1
    distances, correlation = motions_of_people(sample(np.array([x, x, y, -x]), people=[1, 2, 1, 2]))
    assert distances == pytest.approx([math.sqrt(2), 2])
    assert correlation == pytest.approx(1 - (1 + 2) / 2)
    alone, correlation = motions_of_people(sample(np.array([x, y]), people=[0, 1]))
    assert len(alone) == 0 and math.isnan(correlation)
    # pieces of one clip are not two motions
    pieces = sample(np.array([x, y, y]), people=[0, 0, 0], groups=[3, 3, 4])
    assert motions_of_people(pieces)[0] == pytest.approx([math.sqrt(2)])


def test_diversity_is_that_of_pairs():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(9, 2, 8))
    people = [0, 1, 2] * 3
    distances, _ = motions_of_people(sample(x, people))
    for person in range(3):
        own = x[person::3]
        pairs = [np.mean((own[i] - own[j]) ** 2) for i in range(3) for j in range(i)]
        assert distances[person] == pytest.approx(math.sqrt(np.mean(pairs)))
    shuffled = rng.permutation(9)
    again, _ = motions_of_people(sample(x[shuffled], [people[i] for i in shuffled], shuffled.tolist()))
    assert np.sort(again) == pytest.approx(np.sort(distances))
