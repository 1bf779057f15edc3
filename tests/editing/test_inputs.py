"""What portraits are compared with: clips of data sets, with and without their truth."""

import pytest
import torch

from dnnlib.scene import FOCAL
from dnnlib.util import UserError
from editing.inputs import Piece, clip_source, open_views
from heads.dataset import HeadSet, write_dataset


def test_views_bring_their_truth(tmp_path, data):
    path = tmp_path / 'heads.zip'
    write_dataset(path, HeadSet(people=2, frames=3, resolution=32, seed=1), workers=1, progress=False)
    all_frames, one = (open_views(f'{path}:{clip}', 32, FOCAL) for clip in ('1', '1:2'))
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
    middle = open_views(f'{path}:1', 32, 2 * FOCAL)
    assert middle.mask is None and len(middle.images) == 3  # the truth is that of whole images
    plain = open_views(f'{data}:0', 32, FOCAL)
    assert plain.depth is plain.mask is None and len(plain.images) == len(plain.cameras)
    with pytest.raises(UserError, match='is not a clip of a data set'):
        open_views('a.png', 32, FOCAL)


def test_networks_with_a_longer_focal_length_see_the_middle_of_clips(data):
    whole, middle = (clip_source(f'{data}:0', 32, focal, Piece()) for focal in (FOCAL, 2 * FOCAL))
    assert torch.equal(middle.cameras[:, [16, 20]], 2 * whole.cameras[:, [16, 20]])
    assert torch.equal(middle.cameras[:, :16], whole.cameras[:, :16])
    inner = torch.nn.functional.avg_pool2d(middle.images.float(), 2)
    assert (inner - whole.images[..., 8:24, 8:24]).abs().mean() < 6
    with pytest.raises(UserError, match='0 has cameras of focal length 4.265; it sees too little'):
        clip_source(f'{data}:0', 32, FOCAL / 2, Piece())
