"""Starting to train PV3D from a static EG3D: its weights, and motion that fades in from nothing."""

import torch
from torch import Tensor, nn

from dnnlib.util import UserError
from torch_utils.checkpoint import Snapshot

_MAX_NAMED = 6  # tensors of a kind named in a line


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
