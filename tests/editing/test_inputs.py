"""What portraits are compared with: clips of data sets, with and without their truth."""

import pytest
import torch

from dnnlib.util import UserError
from editing.inputs import open_views
from heads.dataset import HeadSet, write_dataset


def test_views_bring_their_truth(tmp_path, data):
    path = tmp_path / 'heads.zip'
    write_dataset(path, HeadSet(people=2, frames=3, resolution=32, seed=1), workers=1, progress=False)
    all_frames, one = open_views(f'{path}:1', 32), open_views(f'{path}:1:2', 32)
    assert (
        all_frames.depth.shape
        == all_frames.mask.shape
        == (3, 1, 32, 32)
        == (*all_frames.images[:, :1].shape,)
    )
    head = all_frames.mask == 1
    assert 0.1 < head.float().mean() < 0.9
    assert ((all_frames.depth[head] > 2) & (all_frames.depth[head] < 3.3)).all()  # the camera is 2.7 away
    for whole, part in zip(all_frames, one, strict=True):
        assert torch.equal(whole[2:], part)
    plain = open_views(f'{data}:0', 32)
    assert plain.depth is plain.mask is None and len(plain.images) == len(plain.cameras)
    with pytest.raises(UserError, match='is not a clip of a data set'):
        open_views('a.png', 32)
