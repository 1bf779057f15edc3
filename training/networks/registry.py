"""The kinds of networks: what a config or a snapshot may name, and how a generator is loaded.

Adding a network = one class with its Config in this folder and a line here.
"""

import torch

from dnnlib.config import Kinds
from torch_utils.checkpoint import Snapshot, build_network
from training.networks.contract import VideoGenerator
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.nerf import NerfGenerator
from training.networks.patch_discriminators import ClipDiscriminator, PairDiscriminator
from training.networks.pv3d import Generator
from training.networks.walk import NerfWalkGenerator, WalkGenerator

GENERATORS = {
    'pv3d': Generator,
    'walk': WalkGenerator,
    'nerf': NerfGenerator,
    'nerf_walk': NerfWalkGenerator,
}
DISCRIMINATORS = {
    'image': ImageDiscriminator,
    'video': VideoDiscriminator,
    'pair_patch': PairDiscriminator,
    'clip_patch': ClipDiscriminator,
}

# Names of the networks in a snapshot: those of training.loss_contract.Networks, then the moving average.
NETWORKS = {
    'G': Kinds(GENERATORS, 'pv3d'),
    'D_image': Kinds(DISCRIMINATORS, 'image'),
    'D_video': Kinds(DISCRIMINATORS, 'video'),
    'G_ema': Kinds(GENERATORS, 'pv3d'),
}


def load_generator(snapshot: Snapshot, device: torch.device | str = 'cpu') -> VideoGenerator:
    """Rebuilds G_ema of a snapshot for inference, whatever its kind; see `build_network`."""
    return build_network(snapshot, 'G_ema', NETWORKS['G_ema'], device)
