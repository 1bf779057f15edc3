"""Writes checkpoints as the released PV3D and EG3D lay them out, from our networks."""

import dataclasses
import pickle
import sys
import types
import typing
from collections import OrderedDict, defaultdict
from unittest import mock

import torch
from click.testing import CliRunner

import legacy
from interop.names import PREFIXES, filter_names, to_released
from support import tiny
from torch_utils.ops.upfirdn2d import make_filter
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator

RENDERING = {
    **{'depth_resolution': 6, 'depth_resolution_importance': 6, 'ray_start': 2.25, 'ray_end': 3.3},
    **{'box_warp': 1, 'c_scale': 1.0, 'clamp_mode': 'softplus', 'white_back': False, 'reg_type': 'l1'},
}
WIDTHS = {'resolution': 128, 'channel_base': 512, 'channel_max': 16}  # sizes that EG3D admits
PLANES = {'plane_resolution': 32, 'plane_axes': 'released'}
G_CONFIG = dataclasses.replace(tiny.G_CONFIG, **WIDTHS, **PLANES, sr_resolution=64, sr_channels=(8, 8))


def run(*args):
    """Calls legacy.py."""
    return CliRunner().invoke(legacy.main, [str(a) for a in args])


def small_networks():
    """Returns the networks of a snapshot of 128 x 128 pixels."""
    return {
        'G': tiny.build(G_CONFIG),
        'D_image': tiny.build(ImageDiscriminator.Config(**WIDTHS), 1),
        'D_video': tiny.build(VideoDiscriminator.Config(**WIDTHS), 2),
        'G_ema': tiny.build(G_CONFIG, 3),
    }


def released_state(network, module, with_raw=True):
    """Returns the state of our network by its released names, filters included."""
    state = {to_released(network, n): t.clone() for n, t in module.state_dict().items()}
    state |= {n: make_filter() for n in filter_names(network, state, module.config.resolution)}
    return {n: t for n, t in state.items() if with_raw or not n.startswith('to_img_raw')}


def released_model(networks):
    """Returns the state of the released model; networks: by our names in a snapshot."""
    model = {'pl_mean': torch.zeros([])}
    for prefix, name in PREFIXES.items():
        model |= {prefix + n: t for n, t in released_state(name, networks[name]).items()}
    return model


def foreign_class(module, name, *bases):
    """Returns an empty class that pickles under that name."""
    return type(name, bases, {'__module__': module, '__qualname__': name})


ListConfig = foreign_class('omegaconf.listconfig', 'ListConfig')
ContainerMetadata = foreign_class('omegaconf.base', 'ContainerMetadata')
AnyNode = foreign_class('omegaconf.nodes', 'AnyNode')
EasyDict = foreign_class('dnnlib.util', 'EasyDict', dict)


def list_config(values):
    """Returns what stands for omegaconf's list, whose nodes refer back to it."""
    whole, nodes = ListConfig(), [AnyNode() for _ in values]
    for node, value in zip(nodes, values, strict=True):
        node.__dict__ |= {'_val': value, '_parent': whole}
    metadata = ContainerMetadata()  # its cache makes `weights_only` loading refuse it, too
    metadata.__dict__ |= {'ref_type': typing.Any, 'flags': None, 'resolver_cache': defaultdict(dict)}
    whole.__dict__ |= {'_content': nodes, '_parent': None, '_metadata': metadata}
    return whole


def save_ckpt(path, model, **changes):
    """Writes a .ckpt of the released layout, whose optimizers have betas of omegaconf."""
    optimizer = {'state': {}, 'param_groups': [{'lr': 0.002, 'betas': list_config([0.0, 0.99])}]}
    content = {
        **{'model': model, 'optimizer': {'generator': optimizer}, 'best_iteration': 0},
        **{'current_iteration': 30, 'current_epoch': 1, 'num_updates': 30, 'num_samples': 480},
        **{'best_update': 0, 'best_metric_value': 1.5, 'fp16_scaler': {}, 'git/branch': 'main'},
        **{'config': {'training': {'seed': -1}}, **changes},
    }
    with pretended():
        torch.save(content, path)


def _called(meta):
    raise AssertionError('the function that rebuilds a module must never be called')


_called.__module__, _called.__qualname__ = 'torch_utils.persistence', '_reconstruct_persistent_obj'
_called.__name__ = '_reconstruct_persistent_obj'


def pretended(*classes):
    """Makes foreign classes importable while the context lasts, for pickling only."""
    classes = (ListConfig, ContainerMetadata, AnyNode, EasyDict, _called, *classes)
    names = {cls.__module__ for cls in classes} | {cls.__module__.split('.')[0] for cls in classes}
    modules = {name: types.ModuleType(name) for name in names}
    for cls in classes:
        setattr(modules[cls.__module__], cls.__name__, cls)
    return mock.patch.dict(sys.modules, modules)


class Persistent:
    """Pickles as EG3D's modules do."""

    def __init__(self, name, state, source):
        self.meta = EasyDict(type='class', version=6, module_src=source, class_name=name, state=state)

    def __reduce__(self):
        return _called, (self.meta,), None


def module_tree(name, state, source, **attributes):
    """Builds the tree of a module from its state dict: persistent parts, and a container of torch."""
    own = {n: t for n, t in state.items() if '.' not in n}
    children = OrderedDict()
    for prefix in dict.fromkeys(n.split('.')[0] for n in state if '.' in n):
        part = {n.removeprefix(f'{prefix}.'): t for n, t in state.items() if n.startswith(f'{prefix}.')}
        children[prefix] = module_tree(prefix, part, source)
    buffers = ('noise_const', 'w_avg', 'resample_filter')
    inside = {
        **{'training': False, '_non_persistent_buffers_set': set(), '_backward_hooks': OrderedDict()},
        '_parameters': OrderedDict((n, torch.nn.Parameter(t)) for n, t in own.items() if n not in buffers),
        '_buffers': OrderedDict((n, t) for n, t in own.items() if n in buffers),
        **{'_modules': children, '_init_args': (), '_init_kwargs': EasyDict(a=1), **attributes},
    }
    if name == 'net':  # of the decoder: a plain container, with an activation between its layers
        container = torch.nn.Sequential()
        container._modules |= {'0': children['0'], '1': torch.nn.Softplus(), '2': children['2']}
        return container
    return Persistent(name, inside, source)


def save_eg3d(path, G, D, source, protocol=4, **rendering):
    """Writes EG3D's pickle: the generator without motion and raw image, the image discriminator."""
    attributes = {'rendering_kwargs': {**RENDERING, **rendering}, 'neural_rendering_resolution': 8}
    state = {n: t for n, t in released_state('G', G, with_raw=False).items() if 'motion_time_fuser' not in n}
    state['dataset_label_std'] = torch.ones(25)
    trees = {name: module_tree('TriPlaneGenerator', state, source, **attributes) for name in ('G', 'G_ema')}
    trees['D'] = module_tree('DualDiscriminator', released_state('D_image', D), source)
    content = {'training_set_kwargs': EasyDict(path='x.zip', resolution=128), 'augment_pipe': None, **trees}
    with pretended():
        path.write_bytes(pickle.dumps(content, protocol=protocol))
