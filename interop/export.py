"""Snapshots of ours in the layout of the released PV3D."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.config import flatten, to_dict
from dnnlib.util import UserError
from interop.convert import COUNTERS, OUR_CONFIGS
from interop.names import MODEL_EXTRAS, PREFIXES, filter_names, to_released
from torch_utils.checkpoint import Snapshot, write_torch
from torch_utils.ops.upfirdn2d import make_filter
from training.networks.registry import NETWORKS

# option of a network -> values that the released ones have
_ALLOWED: dict[str, tuple[Any, ...]] = {
    'kind': ('pv3d', 'image', 'video'),
    'plane_axes': ('released',),
    'camera_condition': ('all', 'non', 'map', 'mapt'),
    'motion.kind': ('modconv',),
    'motion.learned_weight': (False,),
    'motion.num_layers': (4,),
    'motion.path': ('line',),
    'camera': (True,),
    'delta_t': (True,),
    'pair': ('frames',),
}


def released_model(snapshot: Snapshot) -> dict[str, Tensor]:
    """Returns the state of the released PV3D's model with the networks of a snapshot of ours.

    Raises:
        UserError: if a network is missing, or has parts that the released one does not have.
    """
    extras = snapshot.meta.get('extras', {})
    model = {name: extras.get(name, torch.zeros([])) for name in MODEL_EXTRAS}
    for prefix, name in PREFIXES.items():
        if name not in snapshot.networks:
            raise UserError(f'{snapshot.path}: the released layout needs {name}, which is missing here')
        config = NETWORKS[name].read(snapshot.networks[name]['config'])
        options = flatten(to_dict(config))
        excess = [f'{k}={options[k]}' for k, vs in _ALLOWED.items() if k in options and options[k] not in vs]
        if excess:
            raise UserError(f'{snapshot.path}: the released {name} cannot have {", ".join(excess)}')
        state = {to_released(name, n): t for n, t in snapshot.networks[name]['state'].items()}
        state |= {n: make_filter() for n in filter_names(name, state, config.resolution)}
        model |= {prefix + n: t for n, t in state.items()}
    return model


def export_released(snapshot: Snapshot, dest: str | Path) -> list[str]:
    """Writes a snapshot of ours in the released layout: *.pth the bare model, otherwise the whole file.

    Returns:
        lines for people: what was written.

    Raises:
        UserError: if the networks do not fit there, or the file cannot be written.
    """
    model = released_model(snapshot)
    configs = {name: entry['config'] for name, entry in snapshot.networks.items()}
    nimg = int(snapshot.meta.get('cur_nimg', 0))
    counters = dict.fromkeys(COUNTERS, 0) | {'num_samples': nimg, 'best_metric_value': 0.0}
    counters |= snapshot.meta.get('counters', {})
    content = {'model': model, 'optimizer': {}, 'fp16_scaler': {}, 'config': {OUR_CONFIGS: configs}}
    write_torch(dest, model if Path(dest).suffix == '.pth' else content | counters)
    lines = [f'{len(model)} tensors in the released layout; optimizers are not exported']
    code_dim = configs['G']['motion']['code_dim']
    if code_dim != 512:
        lines.append(f'warning: the released program has motion codes of 512 numbers, not {code_dim}')
    return lines
