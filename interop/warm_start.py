"""Starting a run from weights: of a snapshot, of the released PV3D, or of a static EG3D.

With EG3D's, motion fades in from nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dnnlib.config import flatten, to_dict
from dnnlib.util import CheckpointError, UserError
from interop.convert import EG3D, open_snapshot
from torch_utils import distributed as dist
from torch_utils.checkpoint import Snapshot, load_weights

_MAX_NAMED = 6  # tensors of a kind named in a line


def start_from(path: str, modules: dict[str, nn.Module]) -> int:
    """Fills the networks of a new run with the weights of a file; prints what was done.

    Args:
        path: snapshot of ours, or a foreign checkpoint.
        modules: those of the run, by their names in a snapshot; changed in place.

    Returns:
        clips that the schedules of the run count as seen.

    Raises:
        UserError: if the file cannot be used, or does not fit.
    """
    snapshot = open_snapshot(path)
    if snapshot.meta.get('source_format') == EG3D:
        dist.print0('\n'.join(warm_start(snapshot, modules)))
        _warn_of_differences(snapshot, modules, besides='motion.')
    else:
        for name, module in modules.items():
            load_weights(snapshot, name, module)
        _warn_of_differences(snapshot, modules, besides=())
    seen = snapshot.meta.get('schedule_nimg', 0)
    if not isinstance(seen, int) or seen < 0:
        raise CheckpointError(f'{snapshot.path}: its schedule_nimg={seen!r} is not a number of clips')
    dist.print0(f'starting from the weights of {path}; schedules continue at {seen} clips')
    return seen


def _warn_of_differences(
    snapshot: Snapshot, modules: Mapping[str, nn.Module], besides: str | tuple[str, ...]
) -> None:
    """Names options of G that differ from those its weights were trained with, but for some prefixes."""
    then, now = flatten(snapshot.networks['G']['config']), flatten(to_dict(modules['G'].config))
    differ = (n for n in now if now[n] != then.get(n, now[n]) and not n.startswith(besides))
    for name in sorted(differ):
        dist.print0(f'warning: trained with generator.{name}={then[name]}, this run has {now[name]}')


@torch.no_grad()
def warm_start(snapshot: Snapshot, modules: dict[str, nn.Module]) -> list[str]:
    """Copies every tensor of a converted EG3D that fits; motion layers contribute 0 at first.

    Each motion layer keeps its random weights behind a trained weight of 0, so that the first frames equal
    the static ones and the motion then grows smoothly. (Zero convolutions would not do: demodulation brings
    them to full size with the first step.) D_video begins as D_image where shapes allow.

    Args:
        snapshot: as converted from EG3D.
        modules: those of the run, by their names in a snapshot; changed in place.

    Returns:
        lines that say what was copied, initialised and dropped.

    Raises:
        UserError: if the motion layers have no such weight.
    """
    lines = ['to_image_raw begins as what EG3D does: image_raw = the first three features']
    for name, module in modules.items():
        origin = name if name in snapshot.networks else 'D_image'
        source = snapshot.networks[origin]['state']
        lines.append(_copy(name, module, origin, source))
    for name in ('G', 'G_ema'):
        gains = [n for n, _ in modules[name].named_parameters() if n.endswith('.motion.weight')]
        moving = any('.motion.' in n for n, _ in modules[name].named_parameters())
        if moving and not gains:
            raise UserError(
                f'{snapshot.path}: EG3D has no motion, which can only grow from nothing with '
                'generator.motion.learned_weight=true; leave the other value out'
            )
        for gain in gains:
            modules[name].get_parameter(gain).zero_()
    return lines


def _copy(name: str, module: nn.Module, origin: str, source: dict[str, Tensor]) -> str:
    own = module.state_dict()
    fits = [n for n, t in own.items() if n in source and source[n].shape == t.shape]
    for tensor in fits:
        own[tensor].copy_(source[tensor])
    fresh = [n for n in own if n not in fits]
    dropped = [n for n in source if n not in fits]
    return (
        f'{name}: {len(fits)} tensors copied from {origin}; {_named(fresh)} initialised anew; '
        f'{_named(dropped)} dropped'
    )


def _named(names: list[str]) -> str:
    """Names tensors, those of motion layers by their number."""
    motion = [n for n in names if '.motion.' in n]
    rest = [n for n in names if n not in motion]
    parts = [f'{len(motion)} of motion layers'] if motion else []
    parts += rest[:_MAX_NAMED] + ([f'{len(rest) - _MAX_NAMED} more'] if len(rest) > _MAX_NAMED else [])
    return ', '.join(parts) or 'none'
