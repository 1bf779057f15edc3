"""Starting a run from weights: of a snapshot, of the released PV3D, or of a static EG3D.

With EG3D's, and those of a network without motion layers, motion fades in from nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.config import flatten, to_dict
from dnnlib.util import CheckpointError, UserError
from interop.convert import EG3D, open_snapshot
from torch_utils import distributed as dist
from torch_utils.checkpoint import Snapshot, load_weights
from training.networks.registry import NETWORKS

_MAX_NAMED = 6  # tensors of a kind named in a line


def start_from(path: str, modules: dict[str, nn.Module]) -> int:
    """Fills the networks of a new run with the weights of a file; prints what was done.

    A discriminator that is built otherwise here, or is missing in the file, starts from new weights. So does
    what a generator of another kind adds to that of the file, whose moving average becomes the rest.

    Args:
        path: snapshot of ours, or a foreign checkpoint.
        modules: those of the run, by their names in a snapshot; changed in place.

    Returns:
        clips that the schedules of the run count as seen.

    Raises:
        UserError: if the file cannot be used, or does not fit.
    """
    snapshot = open_snapshot(path)
    differing = _differing_options(snapshot, modules['G'])
    # a missing one is reported where it is loaded
    stored = snapshot.networks.get('G', {}).get('state', modules['G'].state_dict())
    moves = [_has_motion(state) for state in (stored, modules['G'].state_dict())]
    static = snapshot.meta.get('source_format') == EG3D or moves == [False, True]
    if static:
        dist.print0('\n'.join(warm_start(snapshot, modules)))
    else:
        for name, module in modules.items():
            if name.startswith('D_') and not _fits(module, snapshot.networks.get(name, {}).get('state', {})):
                dist.print0(f'warning: {name} differs from that of {path} and starts from new weights')
            elif _extends(module, snapshot.networks.get('G_ema')):
                dist.print0(f'{name}: {_copy(module, "G_ema", snapshot.networks["G_ema"]["state"])}')
                module.adopt()
            else:
                _load(snapshot, name, module, differing)
    for name, (then, now) in differing.items():
        if not (static and name.startswith('motion.')):
            dist.print0(f'warning: trained with generator.{name}={then}, this run has {now}')
    seen = snapshot.meta.get('schedule_nimg', 0)
    if not isinstance(seen, int) or seen < 0:
        raise CheckpointError(f'{snapshot.path}: its schedule_nimg={seen!r} is not a number of clips')
    dist.print0(f'starting from the weights of {path}; schedules continue at {seen} clips')
    return seen


def _differing_options(snapshot: Snapshot, G: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Returns the options of the generator in which a file (first value) and a run (second) differ."""
    if 'G' not in snapshot.networks:
        return {}
    trained = NETWORKS['G'].read(snapshot.networks['G']['config'])  # with defaults for fields that are newer
    then, now = flatten(to_dict(trained)), flatten(to_dict(G.config))
    return {n: (then[n], now[n]) for n in sorted(now) if now[n] != then.get(n, now[n])}


def _load(snapshot: Snapshot, name: str, module: nn.Module, differing: Mapping[str, tuple[Any, Any]]) -> None:
    """Copies all weights of a network; where they do not fit, says with which options it was trained."""
    try:
        load_weights(snapshot, name, module)
    except CheckpointError as err:
        if not differing or name not in snapshot.networks:  # the file is damaged, or has no such network
            raise
        options = _some([f'generator.{n}={then} (here {now})' for n, (then, now) in differing.items()])
        preset = f'--cfg {snapshot.meta["cfg"]} and ' if 'cfg' in snapshot.meta else ''
        remedy = f'it was trained with {preset}{options}; give the same, or leave out --resume'
        raise CheckpointError(f'{err}; {remedy}') from err


@torch.no_grad()
def warm_start(snapshot: Snapshot, modules: Mapping[str, nn.Module]) -> list[str]:
    """Copies every tensor of a static network that fits; motion layers contribute 0 at first.

    Each motion layer keeps its random weights behind a trained weight of 0, so that the first frames equal
    the static ones and the motion then grows smoothly. (Zero convolutions would not do: demodulation brings
    them to full size with the first step.) D_video begins as D_image where shapes allow.

    Args:
        snapshot: as converted from EG3D, or trained without motion layers.
        modules: those of the run, by their names in a snapshot; changed in place.

    Returns:
        lines for people: what was copied, initialised and dropped.

    Raises:
        UserError: if the motion layers have no such weight.
    """
    lines = []
    if snapshot.meta.get('source_format') == EG3D:
        lines.append('to_image_raw begins as in EG3D: image_raw = the first three features')
    for name, module in modules.items():
        origin = name if name in snapshot.networks else 'D_image'
        lines.append(f'{name}: {_copy(module, origin, snapshot.networks[origin]["state"])}')
    for name in ('G', 'G_ema'):
        motion = {n: p for n, p in modules[name].named_parameters() if '.motion.' in n}
        gains = [p for n, p in motion.items() if n.endswith('.motion.weight')]
        if motion and not gains:
            needed = 'generator.motion.learned_weight=true'
            raise UserError(f'{snapshot.path} has no motion, which can only be added with {needed}')
        for gain in gains:
            gain.zero_()
    return lines


def _has_motion(state: Mapping[str, Tensor]) -> bool:
    return any('.motion.' in name for name in state)


def _fits(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return {n: t.shape for n, t in module.state_dict().items()} == {n: t.shape for n, t in state.items()}


def _extends(module: nn.Module, entry: Mapping[str, Any] | None) -> bool:
    """Returns whether a network is of another kind than that in a file and has all its tensors, and more."""
    if entry is None or module.config.kind == entry['config'].get('kind', 'pv3d'):
        return False
    own = module.state_dict()
    return all(n in own and own[n].shape == t.shape for n, t in entry['state'].items())


def _copy(module: nn.Module, origin: str, source: Mapping[str, Tensor]) -> str:
    own = module.state_dict()
    fits = [n for n, t in own.items() if n in source and source[n].shape == t.shape]
    for name in fits:
        own[name].copy_(source[name])
    new, dropped = ([n for n in names if n not in fits] for names in (own, source))
    return f'{len(fits)} tensors copied from {origin}; {_named(new)} initialised; {_named(dropped)} dropped'


def _named(names: list[str]) -> str:
    """Names tensors, those of motion layers by their number."""
    rest = [n for n in names if '.motion.' not in n]
    parts = [f'{len(names) - len(rest)} of motion layers'] if len(rest) < len(names) else []
    return ', '.join([*parts, *([_some(rest)] if rest else [])]) or 'none'


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ', '.join(names[:_MAX_NAMED] + ([f'{more} more'] if more > 0 else []))
