"""What EG3D's pickles hold: modules as trees of attributes, and the options of their rendering.

A module was pickled through a function that takes one dictionary: class name, source code, state. The source
is a text like any other here and stays one.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.util import CheckpointError
from interop.reader import Placeholder

EG3D_KEYS = ('G', 'D', 'G_ema')
PERSISTENT_NAME = '_reconstruct_persistent_obj'  # the function that EG3D's modules are pickled through
_MAX_DEPTH = 32  # modules inside each other
_MAX_PARTS = 10_000  # modules and tensors
_MAX_NAME = 256  # characters of the name of a part

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
    """Walks the tree of a pickled module, which may be of any size, or contain itself.

    Returns:
        parameters and buffers by their dotted names; attributes of the outermost module.

    Raises:
        CheckpointError: if it is not such a tree.
    """
    state: dict[str, Tensor] = {}
    todo, parts = [('', module, 0)], 0
    while todo:
        prefix, node, depth = todo.pop()
        attributes = _attributes(node)
        tables = [_table(attributes, kind) for kind in ('_parameters', '_buffers', '_modules')]
        parameters, buffers, children = tables
        parts += 1 + sum(map(len, tables))
        small = depth <= _MAX_DEPTH and parts <= _MAX_PARTS
        names = (isinstance(key, str) and len(key) <= _MAX_NAME for table in tables for key in table)
        if attributes is None or not small or not all(names):
            raise CheckpointError(f'{path}: {name} is not a network of EG3D, or has too many parts')
        unsaved = attributes.get('_non_persistent_buffers_set')
        unsaved = unsaved if isinstance(unsaved, set) else set()
        tensors = parameters | {key: value for key, value in buffers.items() if key not in unsaved}
        state |= {f'{prefix}{key}': value for key, value in tensors.items() if isinstance(value, Tensor)}
        todo += [(f'{prefix}{key}.', c, depth + 1) for key, c in reversed(children.items()) if c is not None]
    return state, _attributes(module) or {}


def _table(attributes: dict[str, Any] | None, kind: str) -> dict[Any, Any]:
    found = (attributes or {}).get(kind)
    return found if isinstance(found, dict) else {}


def _attributes(node: Any) -> dict[str, Any] | None:
    """Returns the __dict__ of a pickled module; None for anything else."""
    state = node.state if isinstance(node, Placeholder) else None
    if isinstance(node, Placeholder) and node.name == f'torch_utils.persistence.{PERSISTENT_NAME}':
        described = node.args[0] if len(node.args) == 1 else None
        state = described.get('state') if isinstance(described, dict) else None
    return state if isinstance(state, dict) else None


def eg3d_options(path: Path, attributes: dict[str, Any]) -> tuple[list[tuple[str, str]], float]:
    """Reads how a generator of EG3D renders.

    Returns:
        (path, value) for our generator's config; the factor of camera labels.

    Raises:
        CheckpointError: names an option that our generator cannot have.
    """
    given = attributes.get('rendering_kwargs')
    if not isinstance(given, dict):
        raise CheckpointError(f'{path}: the generator has no rendering_kwargs, so it is not one of EG3D')
    for key, ours in _FIXED.items():
        value = given.get(key, ours)
        plain = type(value) in (bool, int, float, str)
        shown = ascii(value)[:40] if plain else f'a {type(value).__name__}'
        if not plain or value != ours:
            raise CheckpointError(f'{path}: {key}={shown}, but only {ours} can be rendered here')
    numbers = {key: given[key] for key in _OPTIONS if key in given}
    numbers['c_scale'] = 0 if given.get('c_gen_conditioning_zero') is True else given.get('c_scale', 0)
    numbers['neural_rendering_resolution'] = attributes.get('neural_rendering_resolution', 64)
    for key, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f'{path}: {key} is not a finite number, which is needed here')
    names = {**_OPTIONS, 'neural_rendering_resolution': 'renderer.resolution'}
    whole = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in numbers.items()}
    return [(names[k], str(v)) for k, v in whole.items() if k in names], float(numbers['c_scale'])


def eg3d_identity_raw(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a to_img_raw that passes the first three features on, whatever the style.

    The style's weight is 0 and its bias the root of the number of features, which the layer divides by.
    """
    features, w_dim = state['decoder.net.2.bias'].numel() - 1, state['backbone.mapping.w_avg'].numel()
    return {
        'to_img_raw.weight': torch.eye(3, features)[..., None, None],
        'to_img_raw.bias': torch.zeros(3),
        'to_img_raw.affine.weight': torch.zeros(1).expand(features, w_dim),
        'to_img_raw.affine.bias': torch.full([features], math.sqrt(features)),
    }
