"""What EG3D's pickles hold: modules as trees of attributes, and the options of their rendering.

A module was pickled through a function that takes one dictionary: class name, source code, state. The source
is a text like any other here and stays one.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import CheckpointError
from interop.pickle_reader import Placeholder

EG3D_KEYS = ('G', 'D', 'G_ema')
PERSISTENT_NAME = '_reconstruct_persistent_obj'  # the function that EG3D's modules are pickled through
_PERSISTENT = f'torch_utils.persistence.{PERSISTENT_NAME}'
_MAX_DEPTH = 32  # modules inside each other
_MAX_PARTS = 10_000  # modules and tensors

# option of EG3D's rendering -> path in our generator's config
_OPTIONS = {
    'depth_resolution': 'renderer.depth_samples',
    'depth_resolution_importance': 'renderer.importance_samples',
    'ray_start': 'renderer.ray_start',
    'ray_end': 'renderer.ray_end',
    'box_warp': 'box_warp',
}
# options that our generator has in one way only
_FIXED = {
    'white_back': False,
    'disparity_space_sampling': False,
    'clamp_mode': 'softplus',
    'superresolution_noise_mode': 'none',
    'decoder_lr_mul': 1,
    'sr_antialias': True,
}


def module_state(path: Path, name: str, module: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Walks the tree of a pickled module.

    Returns:
        parameters and buffers by their dotted names; attributes of the outermost module.

    Raises:
        CheckpointError: if it is no such tree.
    """
    state: dict[str, Tensor] = {}
    todo, modules = [('', module, 0)], 0
    while todo:
        prefix, node, depth = todo.pop()
        attributes, modules = _attributes(node), modules + 1
        if attributes is None or depth > _MAX_DEPTH or modules + len(state) + len(todo) > _MAX_PARTS:
            what = 'nested too deeply or has too many parts' if attributes else 'no pickled module'
            raise CheckpointError(f'{path}: {name} is no network of EG3D: {prefix or name} is {what}')
        unsaved = attributes.get('_non_persistent_buffers_set')
        unsaved = unsaved if isinstance(unsaved, set) else set()
        for kind in ('_parameters', '_buffers'):
            for key, value in _items(attributes, kind):
                if isinstance(value, Tensor) and (kind == '_parameters' or key not in unsaved):
                    state[f'{prefix}{key}'] = value
        children = [c for c in _items(attributes, '_modules') if c[1] is not None]
        todo += [(f'{prefix}{key}.', child, depth + 1) for key, child in reversed(children)]
    return state, _attributes(module) or {}


def _attributes(node: Any) -> dict[str, Any] | None:
    """Returns the __dict__ of a pickled module; None for anything else."""
    if not isinstance(node, Placeholder):
        return None
    state = node.state
    if str(node.cls) == _PERSISTENT:
        described = node.args[0] if len(node.args) == 1 else None
        state = described.get('state') if isinstance(described, dict) else None
    return state if isinstance(state, dict) else None


def _items(attributes: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
    found = attributes.get(kind)
    return [(k, v) for k, v in found.items() if isinstance(k, str)] if isinstance(found, dict) else []


def eg3d_options(path: Path, attributes: dict[str, Any]) -> tuple[list[tuple[str, str]], float]:
    """Reads how a generator of EG3D renders.

    Returns:
        (path, value) for our generator's config; the factor of camera labels.

    Raises:
        CheckpointError: names an option that our generator cannot have.
    """
    given = attributes.get('rendering_kwargs')
    if not isinstance(given, dict):
        raise CheckpointError(f'{path}: the generator has no rendering_kwargs, so it is none of EG3D')
    for key, ours in _FIXED.items():
        value = given.get(key, ours)
        if type(value) not in (bool, int, float, str) or value != ours:
            raise CheckpointError(f'{path}: {key}={_shown(value)}, but only {ours} can be rendered here')
    numbers = [(key, _number(given[key])) for key in _OPTIONS if key in given]
    size = _number(attributes.get('neural_rendering_resolution', 64))
    for key, value in [*numbers, ('neural resolution', size), ('c_scale', _number(given.get('c_scale', 0)))]:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f'{path}: {key} is no finite number, which is needed here')
    options = [(_OPTIONS[key], str(value)) for key, value in numbers]
    scale = 0 if given.get('c_gen_conditioning_zero') else given.get('c_scale', 0)  # 0 when it is not said
    return [*options, ('renderer.resolution', str(size))], float(scale)


def _number(value: Any) -> Any:
    """Turns numbers of numpy into those of Python, and whole floats into integers: sizes may be either."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shown(value: Any) -> str:
    return ascii(value)[:40] if type(value) in (bool, int, float, str) else f'a {type(value).__name__}'


def eg3d_identity_raw(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a to_img_raw that passes the first three features on, whatever the style.

    The style's weight is 0 and its bias the root of the number of features, which the layer divides by.
    """
    features, w_dim = len(state['decoder.net.2.bias']) - 1, len(state['backbone.mapping.w_avg'])
    weight = torch.zeros(3, features, 1, 1)
    weight[range(3), range(3)] = 1
    return {
        'to_img_raw.weight': weight,
        'to_img_raw.bias': torch.zeros(3),
        'to_img_raw.affine.weight': torch.zeros(features, w_dim),
        'to_img_raw.affine.bias': torch.full([features], math.sqrt(features)),
    }
