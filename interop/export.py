"""The other direction: snapshots as the released PV3D has them, and its optimizers as our training state."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dnnlib.config import to_dict
from dnnlib.util import UserError
from interop.convert import OUR_CONFIGS, PV3D, Foreign, build_networks
from interop.names import MODEL_EXTRAS, PREFIXES, filter_names, to_released
from torch_utils.checkpoint import Snapshot, save_training_state, write_torch
from torch_utils.ops.upfirdn2d import make_filter
from training.batching import Progress, make_phases
from training.config import TrainConfig
from training.loss import Networks
from training.networks.pv3d import Generator
from training.networks.registry import NETWORKS
from training.presets import pv3d_released

_OPTIMIZERS = {'G': 'generator', 'D_image': 'img_discriminator', 'D_video': 'vid_discriminator'}
_COUNTERS = ('best_iteration', 'current_iteration', 'current_epoch', 'num_updates', 'best_update')


def released_model(snapshot: Snapshot) -> dict[str, Tensor]:
    """Returns the state of the released PV3D's model that a snapshot of ours amounts to.

    Raises:
        UserError: if its networks have parts that the released ones have not.
    """
    extras = snapshot.meta.get('extras', {})
    model = {name: extras.get(name, torch.zeros([])) for name in MODEL_EXTRAS}
    for prefix, name in PREFIXES.items():
        if name not in snapshot.networks:
            raise UserError(f'{snapshot.path}: the released layout needs {name}, which this snapshot lacks')
        table = 'G' if name == 'G_ema' else name
        config = NETWORKS[name].read(snapshot.networks[name]['config'])
        if table == 'G':
            _check_generator(snapshot.path, config)
        elif table == 'D_video' and not (config.camera and config.delta_t):
            raise UserError(
                f'{snapshot.path}: the released D_video sees cameras and times, this one does not'
            )
        state = {to_released(table, n): t for n, t in snapshot.networks[name]['state'].items()}
        state |= {n: make_filter() for n in filter_names(table, state, config.resolution)}
        model |= {prefix + n: t for n, t in state.items()}
    return model


def _check_generator(path: Path, config: Generator.Config) -> None:
    motion = config.motion
    reasons = {
        f'plane_axes={config.plane_axes}': config.plane_axes != 'released',
        f'motion.kind={motion.kind}': motion.kind != 'modconv',
        'motion.learned_weight=true': motion.learned_weight,
        f'motion.num_layers={motion.num_layers}': motion.num_layers != 4,
        'camera_condition=none': config.camera_condition == 'none',
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UserError(
            f'{path}: the released PV3D cannot have {", ".join(found)}; networks trained with --cfg '
            'pv3d-released can be exported'
        )


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
    counters = {**dict.fromkeys(_COUNTERS, 0), 'num_samples': nimg, 'best_metric_value': 0.0}
    counters |= snapshot.meta.get('counters', {})
    content = {
        **{'model': model, 'optimizer': {}, **counters},
        **{'fp16_scaler': {}, 'config': {OUR_CONFIGS: configs}},
    }
    write_torch(dest, model if Path(dest).suffix == '.pth' else content)
    lines = [f'{len(model)} tensors in the released layout; optimizers are not exported']
    code_dim = configs['G']['motion']['code_dim']
    if code_dim != 512:
        lines.append(f'warning: the released program has motion codes of 512 numbers, not {code_dim}')
    return lines


def save_optimizers(foreign: Foreign, path: str | Path) -> list[str]:
    """Writes the Adam moments of a released checkpoint as a training state, parameter by parameter.

    Indices there follow the order of the parameters in the model's state, which is that of its modules.

    Args:
        foreign: a converted checkpoint.
        path: by convention training-state-NNNNNNNNN.pt beside the snapshot of that number.

    Returns:
        lines for people: what was kept.

    Raises:
        UserError: if there are no moments, or they do not fit.
    """
    source = foreign.snapshot.path
    if foreign.kind != PV3D or not isinstance(foreign.optimizers, dict) or not foreign.optimizers:
        raise UserError(f'{source}: it holds no optimizers; leave --optimizer out')
    if not set(_OPTIMIZERS) <= set(foreign.snapshot.networks):
        raise UserError(f'{source}: it lacks networks that its optimizers belong to; leave --optimizer out')
    built = build_networks(foreign.snapshot)
    networks = Networks(*(built[name] for name in _OPTIMIZERS))
    config = _train_config(networks)
    states, lines = {}, []
    for phase in make_phases(config, networks):
        if phase.interval != 1:
            continue
        names = [n for n in _OPTIMIZERS if built[n] in phase.modules]
        saved, first = phase.optimizer.state_dict(), 0
        for name in names:
            moments = _moments(source, name, foreign)
            ours = [n for n, _ in built[name].named_parameters()]
            _check_shapes(source, name, moments, dict(built[name].named_parameters()))
            saved['state'] |= {first + ours.index(n): m for n, m in moments.items()}
            first += len(ours)
            lines.append(f'{name}: moments of {len(moments)} of {len(ours)} parameters')
        states[phase.name] = saved
    counters = foreign.snapshot.meta['counters']
    progress = Progress(
        cur_nimg=foreign.snapshot.meta['cur_nimg'], batch_idx=int(counters.get('num_updates', 0))
    )
    content = {'progress': dataclasses.asdict(progress), 'optimizers': states, 'config': to_dict(config)}
    save_training_state(path, content)
    group = states['Gmain']['param_groups'][0]
    return [*lines, f'learning rates and betas are those of --cfg pv3d-released (G: {group["lr"]:g})']


def _train_config(networks: Networks) -> TrainConfig:
    config = pv3d_released('unknown')
    return dataclasses.replace(
        config,
        generator=networks.G.config,
        d_image=networks.D_image.config,
        d_video=networks.D_video.config,
    )


def _moments(source: Path, name: str, foreign: Foreign) -> dict[str, dict[str, Tensor]]:
    """Returns Adam's state of each parameter that has one, by our names."""
    saved = foreign.optimizers.get(_OPTIMIZERS[name])
    groups = saved.get('param_groups') if isinstance(saved, dict) else None
    state = saved.get('state') if isinstance(saved, dict) else None
    if not isinstance(groups, list) or not isinstance(state, dict):
        raise UserError(f'{source}: the optimizer of {name} is missing; leave --optimizer out')
    lists = [g.get('params') for g in groups if isinstance(g, dict)]
    order = [i for group in lists if isinstance(group, list) for i in group if type(i) is int]
    names = foreign.parameters[name]
    if len(order) != len(names) or set(state) - set(order):
        raise UserError(
            f'{source}: the optimizer of {name} has {len(order)} parameters, the network {len(names)}, '
            'so that nobody can say which is which; leave --optimizer out'
        )
    by_index = dict(zip(order, names, strict=True))
    found = {}
    for index, entry in state.items():
        if not isinstance(entry, dict) or not isinstance(entry.get('step'), (int, float, Tensor)):
            raise UserError(f'{source}: the optimizer of {name} is not Adam; leave --optimizer out')
        step = torch.as_tensor(entry['step'], dtype=torch.float32)
        found[by_index[index]] = {'step': step, **{k: entry.get(k) for k in ('exp_avg', 'exp_avg_sq')}}
    return found


def _check_shapes(
    source: Path, name: str, moments: Mapping[str, dict[str, Tensor]], parameters: Mapping[str, Tensor]
) -> None:
    wrong = [
        n
        for n, m in moments.items()
        if any(
            not isinstance(m[k], Tensor) or m[k].shape != parameters[n].shape
            for k in ('exp_avg', 'exp_avg_sq')
        )
    ]
    if wrong:
        raise UserError(
            f'{source}: moments of {name} have other shapes than its parameters: {", ".join(wrong[:6])}; '
            'leave --optimizer out'
        )
