"""Frames of a generator as metrics see them: codes by item, pixels by protocol, the same bits every time."""

import dataclasses
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import Skip
from metrics.records.digests import network_digest
from metrics.sources.items import Source, checked
from torch_utils.misc import seeded_generator
from training.networks.contract import Codes, VideoGenerator
from viz import images, rollout

PROTOCOLS = ('paper', 'released')
_CODES = 110  # second word of the seeds, keeps streams apart


class Generated(Source):
    """Items of a generator in eval mode, which must not change any more; item i has its own codes.

    'paper' rounds to uint8; 'released' truncates. Its scripts ask for depth, which switches the jitter of
    coarse samples off: they then lie at the near ends of their bins. Their importance samples stay random;
    ours are fixed, so that an item gives the same image every time.
    """

    def __init__(self, G: VideoGenerator, seed: int, count: int, protocol: str = 'paper') -> None:
        self.G, self.seed, self.count, self.protocol = G, seed, count, protocol
        self.size, renderer = G.config.resolution, G.renderer
        self.mapping_camera = 'fixed'
        if protocol == 'released' and renderer is not None:
            renderer = dataclasses.replace(renderer, fixed_offset=0.0)
        self.options = dataclasses.replace(rollout.DEFAULT_OPTIONS, renderer=renderer)
        self.identity = {
            'source': 'generator',
            'network': network_digest(G),
            'renderer': None if renderer is None else dataclasses.asdict(renderer),
            'device': rollout.device_of(G).type,  # half precision is used only on GPUs
            'seed': seed,
            'protocol': protocol,
        }

    def seen_by_mapping(self, which: Literal['fixed', 'own']) -> Self:
        """Lets the mapping see the camera of each image; `fixed` changes nothing."""
        if which == 'own':
            self.mapping_camera = which
            self.identity |= {'mapping_camera': which}
        return self

    def name(self, i: int) -> str:
        """See Source."""
        return f'seed {self.seed}, item {i}'

    def codes(self, i: int) -> Codes:
        """Returns the codes of item i."""
        return item_codes(self.G, self.seed, i)

    def shoot(self, i: int, cameras: Tensor, times: Tensor) -> tuple[np.ndarray, rollout.Frames]:
        """Renders item i from cameras [T, 25] at times [T]; equal arguments give equal bits on a device.

        The mapping sees the first camera, or each frame's in a network conditioned so, or where it was asked
        for. Nothing is random:
        rays are sampled at fixed places, noise is constant, cuDNN does not try out algorithms.

        Returns:
            images uint8 [T, H, W, 3], and all that was rendered.

        Raises:
            Skip: when a frame is black or something is not finite.
        """
        codes, own = self.codes(i), self.mapping_camera == 'own'
        mapping = cameras if own else self.G.mapping_cameras(cameras, cameras[:1])
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            ws = rollout.map_codes(self.G, codes, mapping, times)
            batches = list(rollout.render_frames(self.G, codes, ws, cameras, times, self.options))
        frames = rollout.concatenate(batches)
        bad = [name for name, x in frames._asdict().items() if x is not None and not x.isfinite().all()]
        if bad:
            raise Skip(f'{" and ".join(bad)} not finite')
        return checked(to_images(frames.image, self.protocol)), frames


def item_codes(G: VideoGenerator, seed: int, i: int) -> Codes:
    """Draws the codes of item i on the CPU: z_a, then z_m, from a generator seeded by (seed, i)."""
    return G.draw_codes(1, seeded_generator('cpu', seed, _CODES, i))


def to_images(image: Tensor, protocol: str) -> np.ndarray:
    """Turns images [N, 3, H, W] in [-1, 1] (clamped) into uint8 [N, H, W, 3]; 'released' does not round."""
    if protocol == 'paper':
        return images.to_uint8(image)
    pixels = ((image.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
