"""Frames of a generator as metrics see them: codes by item, pixels by protocol, the same bits every time."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.records.digests import network_digest
from torch_utils.misc import seeded_generator
from training.networks.contract import Codes, VideoGenerator
from viz import images, rollout

PROTOCOLS = ('paper', 'released')
_CODES = 110  # second word of the seeds, keeps streams apart


def item_codes(G: VideoGenerator, seed: int, i: int) -> Codes:
    """Draws the codes of item i on the CPU: z_a, then z_m, from a generator seeded by (seed, i)."""
    generator = seeded_generator('cpu', seed, _CODES, i)
    return G.draw_codes(1, generator)


def protocol_options(
    G: VideoGenerator, protocol: str, options: rollout.RenderOptions
) -> rollout.RenderOptions:
    """Completes the options with the network's own renderer, changed as the protocol wants.

    The released scripts ask for depth, which switches the jitter of coarse samples off: they then lie at the
    near ends of their bins. Their importance samples stay random; ours are fixed, so that an item gives the
    same picture every time.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f'protocol {protocol!r} must be one of {", ".join(PROTOCOLS)}')
    renderer = options.renderer or G.renderer
    if protocol == 'released' and renderer is not None:
        renderer = dataclasses.replace(renderer, fixed_offset=0.0)
    return dataclasses.replace(options, renderer=renderer)


def network_identity(G: VideoGenerator, options: rollout.RenderOptions) -> dict[str, Any]:
    """Returns plain JSON that says which network renders how.

    The kind of device is part of it: half precision is used on GPUs alone.
    """
    if G.training:
        raise ValueError('the generator must be in eval mode')
    renderer = None if options.renderer is None else dataclasses.asdict(options.renderer)
    return {'network': network_digest(G), 'renderer': renderer, 'device': rollout.device_of(G).type}


def shoot(
    G: VideoGenerator,
    codes: Codes,
    cameras: Tensor,
    mapping: Tensor,
    times: Tensor,
    options: rollout.RenderOptions,
) -> rollout.Frames:
    """Renders the frames of an item; equal arguments give equal bits, in any process on the same device.

    Nothing is random: rays are sampled at fixed places, noise is constant, cuDNN does not try algorithms out.

    Args:
        G: generator.
        codes: of the item.
        cameras: of the pictures [T, 25].
        mapping: camera of the mapping network [1, 25]; networks conditioned on the camera of each frame
            see `cameras` instead.
        times: [T].
        options: from `protocol_options`.
    """
    mapping = G.mapping_cameras(cameras, mapping)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        ws = rollout.map_codes(G, codes, mapping, times)
        return rollout.concatenate(list(rollout.render_frames(G, codes, ws, cameras, times, options)))


def nonfinite(frames: rollout.Frames) -> str:
    """Says what of the frames is not finite; '' when everything is."""
    bad = [
        name for name, value in frames._asdict().items() if value is not None and not value.isfinite().all()
    ]
    return f'{" and ".join(bad)} not finite' if bad else ''


def to_pictures(image: Tensor, protocol: str) -> np.ndarray:
    """Turns images [N, 3, H, W] in [-1, 1] (clamped) into uint8 [N, H, W, 3]; 'released' does not round."""
    if protocol == 'paper':
        return images.to_uint8(image)
    pixels = ((image.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
