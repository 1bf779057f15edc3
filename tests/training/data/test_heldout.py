"""Clips that are held out: which, and that training does not see them."""

import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from dnnlib.util import DataError, UserError
from support.small_data import CLIPS, write_zip
from training import camera
from training.data.dataset import VideoDataset
from training.data.heldout import choose_heldout


def opened(path, **options):
    return VideoDataset.Config(path=str(path), **options).build()


def with_facts(clip_files, path, clips):
    """Writes the data set with other facts of its clips."""
    table = {**json.loads(clip_files['dataset.json']), 'clips': clips}
    return write_zip(path, {**clip_files, 'dataset.json': json.dumps(table).encode()})


def test_heldout_clips_are_spread_over_people():
    people = [*'aaaa', *'bbbb', *'cc', 'd']
    orders = [choose_heldout(people, n).tolist() for n in range(len(people))]
    given = [sorted(people[clip] for clip in order) for order in orders]
    assert given[3] == [*'abc'] and given[5] == [*'aabbc'] and given[7] == [*'aaabbbc']
    assert set(given[9]) >= {*'ab'} and len(set(orders[9])) == 9
    assert all(set(a) < set(b) for a, b in itertools.pairwise(orders))
    unknown = choose_heldout([f'{i}' for i in range(50)], 10)
    assert unknown.tolist() == sorted(set(unknown.tolist())) != list(range(10))


def test_heldout_clips_are_neither_trained_on_nor_give_cameras(data, clip_files, tmp_path):
    whole, rest = opened(data), opened(data, heldout_clips=2)
    held = rest.heldout()
    assert len(whole.heldout()) == 0 and (len(rest), len(held)) == (CLIPS - 2, 2)
    assert sorted([*rest.names, *held.names]) == whole.names
    for part in (rest, held):
        for i, name in enumerate(part.names):
            assert torch.equal(part.clip_cameras(i), whole.clip_cameras(name))
            assert torch.equal(part.clip_frames(i, [3]), whole.clip_frames(name, [3]))
    cameras = rest.sample_cameras(np.random.default_rng(0), 100)[0]
    seen = torch.cat([rest.clip_cameras(i) for i in range(len(rest))])
    seen = torch.cat([seen, camera.mirror_label(seen)])
    assert (cameras[:, 0, None] == seen).all(dim=2).any(dim=1).all()
    assert 'held out' not in whole.describe() and '2 more held out' in rest.describe()
    pair = pickle.loads(pickle.dumps(held)).draw(1, 4)
    assert (
        all(torch.equal(pair[key], x) for key, x in held.draw(1, 4).items())
        and held.names[1] not in rest.names
    )
    identities = {name: {'identity': 7 if name < '000003' else 'eight'} for name in whole.names}
    path = with_facts(clip_files, tmp_path / 'x.zip', identities)
    assert [name < '000003' for name in opened(path, heldout_clips=2).heldout().names] == [True, False]


def test_clips_must_be_left_to_train_on(data):
    assert len(opened(data, heldout_clips=CLIPS - 1)) == 1
    with pytest.raises(DataError, match='heldout_clips=4 must be below the 4 clips'):
        opened(data, max_clips=4, heldout_clips=4)
    with pytest.raises(UserError, match='heldout_clips=-1 must not be negative'):
        VideoDataset.Config(path='x', heldout_clips=-1)


@pytest.mark.parametrize('clips', [3, {'000000': 5}, {'000000': {'identity': [1]}}, {'0': {}}])
def test_other_facts_of_clips_are_ignored(clips, clip_files, tmp_path):
    path = with_facts(clip_files, tmp_path / 'x.zip', clips)
    assert len(opened(path, heldout_clips=1)) == CLIPS - 1
