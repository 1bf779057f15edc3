"""What is rendered of the people of a data set is what the data show."""

import dataclasses
import shutil

import numpy as np
import pytest

from dnnlib.util import DataError
from heads.dataset import HeadSet, write_dataset
from studies import truth
from studies.truth import FRONT, TIMES, YAWS_DEG, Amounts, load_truth
from training.data.dataset import VideoDataset

SPAN, SIZE = 4, 16
AMOUNTS = Amounts(people=1, motions=2, portraits=2, pairs=2)


@pytest.fixture(scope='module')
def one_person(tmp_path_factory):
    """A data set of one person, so that there is no other path: pairs are seen along their own."""
    path = tmp_path_factory.mktemp('one') / 'one.zip'
    write_dataset(
        path, HeadSet(people=1, motions=2, frames=5, resolution=SIZE, focal=7, blink_rate=3), 1, False
    )
    return VideoDataset.Config(path=str(path), span=SPAN).build()


@pytest.fixture(scope='module')
def known(one_person):
    return load_truth(one_person, SPAN, None, 1, AMOUNTS)


def test_pairs_are_those_of_the_data(one_person, known):
    assert known.own.shape == (2, 2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(known.moved[:, :2], known.own)
    np.testing.assert_array_equal(known.cameras, known.own_cameras)
    assert (known.moved[:, 2] != known.moved[:, 1]).any() and (known.moved[:, 2] != known.moved[:, 0]).any()
    assert (np.diff(known.times) > 0).all() and known.times.max() <= 1


def test_grid_has_motion_and_views(known):
    grid = known.grid.astype(float)
    assert grid.shape == (1, 2, len(TIMES), len(YAWS_DEG), SIZE, SIZE, 3)
    front = grid[:, :, :, FRONT]
    between_people = np.abs(known.portraits[0] - front).mean()
    assert 0 < np.abs(np.diff(front, axis=2)).mean() < 10 * between_people
    assert np.abs(front[:, 0] - front[:, 1]).mean() > 0
    assert (
        np.abs(grid[..., 0, :, :, :] - grid[..., 2, :, :, :]).mean() > np.abs(np.diff(front, axis=2)).mean()
    )


def test_is_rendered_once(one_person, known, monkeypatch):
    monkeypatch.setattr(truth, 'render_job', None)
    again = load_truth(one_person, SPAN, None, 1, AMOUNTS)
    assert all((a == b).all() for a, b in zip(again, known, strict=True))
    with pytest.raises(TypeError):  # other amounts are other files
        load_truth(one_person, SPAN, None, 1, dataclasses.replace(AMOUNTS, pairs=1))


def test_motion_is_new_where_the_data_do_not_state_it():
    alone, twice = [{'identity': 5}, {'identity': 6}], [{'identity': 5}, {'identity': 5}]
    assert truth._motion_seed(alone, 0) == 5  # older data: one seed for a person's only clip
    assert len({truth._motion_seed(twice, i) for i in range(2)} - {5}) == 2
    assert truth._motion_seed([{'identity': 5, 'motion': 8}], 0) == 8


def test_other_data_are_refused(data, tmp_path):
    copy = tmp_path / 'clips.zip'
    shutil.copy(data, copy)
    with pytest.raises(DataError, match='procedural people'):
        load_truth(VideoDataset.Config(path=str(copy)).build(), SPAN, None, 1)
    assert [p.name for p in tmp_path.iterdir()] == ['clips.zip']
