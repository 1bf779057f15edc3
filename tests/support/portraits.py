"""Portraits in the tiny network."""

import torch

from editing.codes import Portrait, network_digest
from support import tiny
from training.networks.contract import Codes


def portrait(G, frames=1, seed=0, **changes):
    """Makes the portrait of a person that the network knows, with random motion."""
    z_a, z_m, _, cameras = tiny.codes(frames, seed, G.z_dim)
    ws = G.condition(Codes(z_a[:1], z_m[:1]), cameras[:1], torch.zeros(1))
    facts = {
        'network': network_digest(G),
        'ws': ws.detach().contiguous(),
        'u': 0.3 * z_m,
        'cameras': cameras,
        'images': torch.zeros(frames, 3, G.config.resolution, G.config.resolution, dtype=torch.uint8),
        'fps': 25.0,
        'neutral_frame': 0,
        'tuned': {},
        'provenance': {'network': 'tiny.pkl'},
        'scores': {},
    }
    return Portrait(**{**facts, **changes})
