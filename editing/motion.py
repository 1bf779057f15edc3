"""Paths of motion u [T, motion_dim]: sampled, continued, transferred.

Motion enters a network as u alone, so paths can be added, whatever the network's own path is: a sampled one
counts from its own start, and is added to where the face is. Source: PV3D section 4.4, eq. 1; the rest is
ours.
"""

import torch
from torch import Tensor

from training.networks.contract import Codes, RadianceGenerator


@torch.no_grad()
def sampled(G: RadianceGenerator, codes: Codes, times: Tensor) -> Tensor:
    """Returns the motion of codes (one row) at times [T], counted from t = 0: there it is 0."""
    return G.motion_at(codes, times) - G.motion_at(codes, torch.zeros_like(times))


def continued(last: Tensor, neutral: Tensor, moved: Tensor, blend: int) -> Tensor:
    """Returns motion that leaves a frame smoothly and goes its own way.

    Args:
        last: motion of the frame [1, motion_dim].
        neutral: motion without expression, in which the own way starts [1, motion_dim].
        moved: the own way, from `sampled`, its first row is the frame [T, motion_dim].
        blend: frames in which the expression of the frame fades.
    """
    done = (torch.arange(len(moved), device=moved.device) / max(blend, 1)).clamp(max=1)
    fade = 1 - done * done * (3 - 2 * done)  # a smooth step: begins and ends without a jump in speed
    return neutral + fade[:, None] * (last - neutral) + moved


def transferred(source: Tensor, source_neutral: Tensor, neutral: Tensor, strength: float = 1.0) -> Tensor:
    """Returns the motion of one person on another: how far the source is from its neutral, times strength.

    With one person as source and target it is exactly the motion of the source.

    Args:
        source: [T, motion_dim].
        source_neutral: [1, motion_dim].
        neutral: that of the other person [1, motion_dim]; for an absolute transfer that of the source.
        strength: 0 = a still.
    """
    return strength * source + (neutral - strength * source_neutral)
