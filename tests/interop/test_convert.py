"""Foreign checkpoints in other forms, hostile contents, and errors in the command."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from dnnlib.config import from_dict, to_dict
from dnnlib.util import CheckpointError
from interop.convert import OUR_CONFIGS, open_foreign, trained_with
from interop.eg3d import module_state
from interop.reader import Name, Placeholder
from support import tiny
from support.foreign_files import G_CONFIG, WIDTHS, released_model, run, save_ckpt, save_eg3d
from torch_utils import checkpoint
from training.networks.discriminators import ImageDiscriminator
from training.networks.motion import MotionConfig
from training.networks.pv3d import Generator
from training.networks.registry import NETWORKS
from training.volumetric_rendering.renderer import RendererConfig

EG3D_CONFIG = dataclasses.replace(G_CONFIG, motion=MotionConfig(num_layers=0))


def test_wrapped_half_precision_in_the_older_layout(tmp_path, networks):
    """What a parallel wrapper's state is called, halved, as torch wrote it before it wrote zips."""
    model = {f'module.{n}': t.half() for n, t in released_model(networks).items()}
    torch.save(model, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    assert trained_with(tmp_path / 'a.pth') == [('generator.plane_axes', 'released')]
    snapshot = open_foreign(tmp_path / 'a.pth').snapshot
    built = checkpoint.build_network(snapshot, 'D_video', NETWORKS['D_video'])
    for name, tensor in networks['D_video'].state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor.half().float())


def test_counters_may_be_tensors_and_numpy_numbers(tmp_path, networks):
    changes = {'num_samples': torch.tensor(640), 'best_metric_value': np.float32(0.5)}
    save_ckpt(tmp_path / 'a.ckpt', released_model(networks), **changes)
    meta = open_foreign(tmp_path / 'a.ckpt').snapshot.meta
    assert meta['cur_nimg'] == 640 and meta['counters']['best_metric_value'] == 0.5


LAUGHS = functools.reduce(lambda tree, _: [tree, tree], range(60), 0)  # 2**60 elements


@pytest.mark.parametrize(
    'changes', [{'mapping_layers': 10**9}, {'resolution': LAUGHS}, {'motion': {'kind': LAUGHS}}]
)
def test_stored_configs_are_small_and_plain(tmp_path, networks, changes):
    configs = {'G': {**to_dict(G_CONFIG), **changes}}
    save_ckpt(tmp_path / 'a.ckpt', released_model(networks), config={OUR_CONFIGS: configs})
    done = run('--source', tmp_path / 'a.ckpt')
    assert done.exit_code == 1 and 'the config of G is not plain, or has more layers' in done.output


def test_errors_in_the_command(tmp_path, ckpt):
    before = ckpt.read_bytes()
    same = run('--source', ckpt, '--dest', tmp_path / '.' / 'a.ckpt')
    assert same.exit_code == 1 and 'is the source itself' in same.output and ckpt.read_bytes() == before
    assert 'must be PATH=VALUE' in run('--source', ckpt, '--set', 'renderer.resolution').output
    assert 'cannot be built' in run('--source', ckpt, '--set', 'sr_resolution=1000').output


def test_trees_of_modules_without_end_are_refused_quickly():
    def module(**children):
        return Placeholder(Name('training.A'), (), {'_modules': children})

    branching = functools.reduce(lambda node, _: module(a=node, b=node), range(30), module())
    circle = module()
    circle.state['_modules']['a'] = circle
    shared = dict.fromkeys(map(str, range(9000)))
    wide = module(**{f'a{i}': Placeholder(Name('B'), (), {'_buffers': shared}) for i in range(9000)})
    for node in (branching, circle, wide, module(**{'x' * 10**6: module()}), Placeholder(Name('B'), ())):
        with pytest.raises(CheckpointError, match='not a network of EG3D, or has too many parts'):
            module_state('x.pkl', 'G', node)


def test_eg3d_options(tmp_path):
    G = tiny.build(dataclasses.replace(EG3D_CONFIG, renderer=RendererConfig(resolution=8)))
    D = tiny.build(ImageDiscriminator.Config(**WIDTHS), 1)
    numbers = {'c_scale': np.float64(2), 'depth_resolution': np.float32(6), 'ray_start': 0.5, 'box_warp': 2}
    save_eg3d(tmp_path / 'a.pkl', G, D, '', protocol=2, **numbers)
    foreign = open_foreign(tmp_path / 'a.pkl', [('renderer.depth_samples', '9')])
    entry = foreign.snapshot.networks['G_ema']
    config = from_dict(Generator.Config, entry['config'])
    assert (config.box_warp, config.renderer.ray_start, config.renderer.depth_samples) == (2, 0.5, 9)
    assert config.renderer.resolution == 8 and config.sr_resolution == 64
    assert torch.equal(entry['state']['mapping_network.embed.weight'], G.mapping_network.embed.weight * 2)
    for option in ({'white_back': True}, {'decoder_lr_mul': 2}, {'c_scale': 'x'}, {'sr_antialias': [0]}):
        save_eg3d(tmp_path / 'a.pkl', G, D, '', **option)
        with pytest.raises(CheckpointError, match=next(iter(option))):
            open_foreign(tmp_path / 'a.pkl')
