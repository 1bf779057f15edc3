"""Whether D_video sees in which order cameras come (PV3D figure 8), and what its verdict hangs on."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from metrics.plotting import draw_panels
from studies import figures, samples
from studies.figures import Figure
from studies.measure import Judges
from training.batching import Progress
from training.config import TrainConfig, with_followers
from training.data.dataset import VideoDataset
from training.diagnostics import Probes
from training.loss import PV3DLoss
from training.loss_contract import Networks
from training.networks.contract import VideoGenerator
from training.networks.discriminators import ImageDiscriminator

_CAMERAS = 36  # purpose of random draws
_BATCH = 32  # pairs at a time; they are compared in groups, which stay the same
GROUP = 4  # pairs of which minibatch deviation makes a group
_PROBED = 64  # real clips whose verdict is taken apart


class Alignment(NamedTuple):
    """What D_video makes of the cameras of N generated pairs, in their order and in others."""

    cosines: dict[str, np.ndarray]  # between embeddings, 'reversed' and 'another clip' [N]
    scores: np.ndarray  # logits of the pairs with their cameras [N]
    changed: dict[str, np.ndarray]  # logits with other cameras, by the same names [N]

    @property
    def changes(self) -> dict[str, np.ndarray]:
        """By how much scores change, absolute [N]."""
        return {name: np.abs(x - self.scores) for name, x in self.changed.items()}


@torch.no_grad()
def align(G: VideoGenerator, judged: Judges, data: VideoDataset, pairs: int, seed: int) -> Alignment:
    """Generates pairs before cameras of the data and shows them to D_video with cameras in both orders.

    Args:
        G: generator in eval mode.
        judged: discriminators.
        data: gives cameras and times.
        pairs: a multiple of GROUP.
        seed: of cameras and codes.

    Raises:
        UserError: if D_video sees no cameras, or there is none.
    """
    D = judged.D_video
    if getattr(D, 'mapping', None) is None:
        raise UserError('the snapshot needs a video discriminator that sees cameras; this one has none')
    device = next(D.parameters()).device
    cameras, times = data.sample_cameras(np.random.default_rng((seed, _CAMERAS)), pairs)
    images = samples.pairs(G, times, cameras, seed)
    orders = {'own': cameras, 'reversed': cameras.flip(1), 'another clip': cameras.roll(1, 0)}

    def all_of(function: Callable[..., Tensor | np.ndarray], *inputs: Tensor) -> np.ndarray:
        parts = zip(*(x.split(_BATCH) for x in inputs), strict=True)
        return np.concatenate([np.asarray(function(*(x.to(device) for x in part))) for part in parts])

    def embed(c: Tensor) -> Tensor:
        return torch.nn.functional.normalize(D.mapping(None, c.flatten(1)).double()).cpu()

    embedded = {name: all_of(embed, c) for name, c in orders.items()}
    scores = {name: all_of(judged.video, images, times, c) for name, c in orders.items()}
    own = embedded.pop('own')
    cosines = {name: (own * x).sum(axis=1) for name, x in embedded.items()}
    return Alignment(cosines, scores.pop('own'), scores)


def summary(alignment: Alignment) -> dict[str, dict[str, Figure]]:
    """Returns figures by name and by order of the cameras."""
    spread = float(alignment.scores.std())
    changes = alignment.changes.items()
    return {
        'cosine of the embeddings': {n: figures.bootstrap(np.mean, x) for n, x in alignment.cosines.items()},
        'change of the score, logits': {n: figures.bootstrap(np.mean, x) for n, x in changes},
        'the same over the sd of scores': {n: figures.bootstrap(np.mean, x / spread) for n, x in changes},
    }


def draw(alignment: Alignment) -> np.ndarray:
    """Draws the histograms of both figures; uint8 [H, W, 3]."""
    shown = {'cosine of the embeddings': alignment.cosines, 'change of the score': alignment.changes}

    def panel(title: str, values: dict[str, np.ndarray]) -> Callable[..., None]:
        def fill(axes: object) -> None:
            axes.hist(list(values.values()), bins=30, label=list(values))
            axes.set_title(title)
            axes.legend()

        return fill

    return draw_panels([panel(*item) for item in shown.items()])


def verdict_shares(
    G: VideoGenerator, judged: Judges, data: VideoDataset, seed: int, clips: int = _PROBED
) -> dict[str, float]:
    """Returns what D_video's verdict hangs on and where the variance of frames comes from.

    The figures are those of a run's probes (`training/diagnostics.py:Probes`) when schedules have ended.
    """
    unused = ImageDiscriminator.Config(resolution=G.config.resolution)
    config = TrainConfig(
        cfg='',
        dataset=data.config,
        generator=G.config,
        d_image=unused if judged.D_image is None else judged.D_image.config,
        d_video=judged.D_video.config,
        loss=PV3DLoss.Config(blur_sigma=0, swap_fade_nimg=0),
        seed=seed,
        batch=min(clips, _BATCH),
    )
    networks, device = Networks(G, judged.D_image, judged.D_video), next(G.parameters()).device
    loss = with_followers(config).loss.build()
    found = Probes(config, data, loss, networks, G, device, clips).measure(Progress())
    kept = ('Probe/video/', 'Probe/variance/', 'Probe/motion/')
    return {name.removeprefix('Probe/'): x for name, x in found.items() if name.startswith(kept)}


def open_data(path: str, G: VideoGenerator) -> VideoDataset:
    """Opens a data set for the pairs that a generator has learned from."""
    return VideoDataset.Config(path=path, span=G.config.span, resolution=G.config.resolution).build()
