"""How codes become ws: truncation, mixing of two people, a path through several people.

Mixing and paths happen in W, on the truncated ws; the motion code stays that of the clip.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from training.networks.contract import Codes, VideoGenerator
from viz import rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """Who is seen: changes of the person that the appearance code gives."""

    psi: float = 1.0  # truncation: 1 = none, 0 = the mean face
    cutoff: int | None = None  # number of the ws, coarse ones first, that are truncated; None = all
    mix_seed: int | None = None  # the second person of a mix
    mix_layers: tuple[int, ...] | None = None  # ws that the second person enters; None = all
    mix_weight: float = 0.5  # fraction of the second person there
    path_seeds: tuple[int, ...] = ()  # a loop through these people, in place of the appearance code


def map_look(G: VideoGenerator, codes: Codes, look: Look, cameras: Tensor, times: Tensor) -> Tensor:
    """Maps the codes of a clip to intermediate codes, as rollout.map_codes does, and changes them.

    Args:
        G: generator.
        codes: of one clip.
        look: the changes.
        cameras: of the mapping, [1, 25] or [T, 25].
        times: [T].

    Returns:
        ws [1 or T, num_ws, w_dim]; T rows for a path.

    Raises:
        UserError: if cutoff or mix_layers are beyond the ws of the network.
    """

    def ws_of(seed: int | None) -> Tensor:
        z_a = codes.z_a if seed is None else rollout.draw_codes(G, seed).z_a
        return rollout.map_codes(G, Codes(z_a, codes.z_m), cameras, times, look.psi, look.cutoff)

    if look.path_seeds:
        people = torch.stack([ws_of(seed) for seed in look.path_seeds])
        weights = torch.from_numpy(loop_weights(len(people), len(times))).to(people)
        ws = torch.einsum('ts,stnw->tnw', weights, people.expand(-1, len(times), -1, -1))
    else:
        ws = ws_of(None)
    last = max(look.cutoff or 0, *(i + 1 for i in look.mix_layers or (0,)))
    if last > ws.shape[1]:
        raise UserError(
            f'layer {last - 1} of --psi-cutoff or --mix-layers is beyond the network, whose layers are 0 to '
            f'{ws.shape[1] - 1}; give smaller numbers'
        )
    if look.mix_seed is None:
        return ws
    layers = slice(None) if look.mix_layers is None else list(look.mix_layers)
    mixed = ws.clone()
    mixed[:, layers] = ws[:, layers].lerp(ws_of(look.mix_seed)[:, layers], look.mix_weight)
    return mixed


def loop_weights(people: int, frames: int) -> np.ndarray:
    """Returns the weights [frames, people] of a smooth loop, float32: frame i shows person i people / frames.

    Rows sum to 1; a person whose turn it is has weight 1. Source: periodic cubic spline.
    """
    from scipy.interpolate import CubicSpline

    knots = np.concatenate([np.eye(people), np.eye(people)[:1]])
    curve = CubicSpline(np.arange(people + 1), knots, bc_type='periodic')
    return curve(np.arange(frames) * people / frames).astype(np.float32)
