"""The contract of losses: all that the training loop knows of a loss, and what passes between the two."""

import abc
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from training.networks.contract import Codes, VideoGenerator

# Losses are multiplied by it while gradients are taken, which are then divided by it: those of fp16 would lie
# near its smallest numbers, and a power of two changes no bit of float32. [ours]
GRADIENT_SCALE = 2.0**8

Phase = Literal['Gmain', 'Greg', 'Dmain', 'Dreg']


class RealBatch(NamedTuple):
    """T real frames each of N clips: pairs, or all frames of a span."""

    frames: Tensor  # [N, T, 3, R, R] in [-1, 1]
    t: Tensor  # [N, T] in units of the span
    c: Tensor  # [N, T, 25]
    singles: 'RealBatch | None' = None  # single images beside the clips, T = 1, equally many for each clip


class FakeBatch(NamedTuple):
    """What N fake clips of T frames are made from."""

    z_a: Tensor  # [N, z_dim]
    z_m: Tensor  # [N, motion_dim]
    t: Tensor  # [N, T]
    c: Tensor  # cameras to render [N, T, 25]
    c_other: Tensor  # cameras of another clip, for swapping the condition [N, T, 25]
    swap: Tensor  # uniform draws [N]; below the swap probability the mapping sees c_other
    z_m_other: Tensor  # motion codes to compare with z_m [N, motion_dim]
    singles: 'FakeBatch | None' = None  # fakes that stand beside the single images of the real batch

    def frame_codes(self) -> Codes:
        """Returns the codes of all frames, clip by clip [N * T, ...]."""
        return Codes(*(z.repeat_interleave(self.t.shape[1], dim=0) for z in (self.z_a, self.z_m)))


class Shown(NamedTuple):
    """What discriminators judge: T frames each of N clips, clip by clip; behind them M single images."""

    image: Tensor  # [N * T + M, 3, R, R]
    image_raw: Tensor  # [N * T + M, 3, h, h]
    t: Tensor  # [N, T]
    c: Tensor  # [N, T, 25]
    w_mean: Tensor | None = None  # mean w of fakes [w_dim]
    c_singles: Tensor | None = None  # cameras of the single images [M, 25]; None = there are none

    def clips(self) -> Tensor:
        """Returns the images of the clips alone [N, T, 3, R, R]."""
        return self.image[: self.t.numel()].unflatten(0, self.t.shape)

    def with_singles(self, singles: 'Shown') -> 'Shown':
        """Returns this with single images, T = 1, behind the clips."""
        image, raw = (torch.cat(pair) for pair in zip(self[:2], singles[:2], strict=True))
        return self._replace(image=image, image_raw=raw, c_singles=singles.c.flatten(0, 1))


class Term(NamedTuple):
    """One summand of a phase's loss, with a graph of its own."""

    loss: Tensor  # scalar
    stats: dict[str, Tensor]  # figures to report
    w_mean: Tensor | None = None  # mean w of the fakes [w_dim], for the running mean that truncation uses
    made: Shown | None = None  # fakes without graph that Dmain is to judge as they are, in place of new ones


class Networks(NamedTuple):
    """The networks in training; a discriminator that the loss does not use is None."""

    G: VideoGenerator
    D_image: nn.Module | None
    D_video: nn.Module | None


class Loss(abc.ABC):
    """What the loop knows of a loss, whatever its kind."""

    # of each clip in a batch: two, all of a span, or any one
    frames: ClassVar[Literal['pair', 'clip', 'single']] = 'pair'

    takes_singles: ClassVar[bool] = False  # whether D_image judges single images beside the clips
    augments: ClassVar[bool] = False  # whether it changes what discriminators see, and has `scores`

    @property
    @abc.abstractmethod
    def discriminators(self) -> tuple[str, ...]:
        """Names of those that are built: D_image, D_video or both."""

    def num_frames(self, span: int) -> int:
        """Returns how many frames of each clip it sees; span: frames of a training clip."""
        return {'single': 1, 'pair': 2, 'clip': span}[self.frames]

    def has(self, phase: Phase) -> bool:
        """Whether the loss has terms in this phase."""
        return True

    def problem(self, networks: Networks) -> str:
        """Returns why the loss cannot train these networks; '' if it can."""
        return ''

    def warnings(self, batch: int) -> list[str]:
        """Returns what to warn about when training with so many clips per iteration."""
        return []

    def shown(
        self, G: VideoGenerator, clips: RealBatch | FakeBatch, nimg: int, generator: torch.Generator
    ) -> Shown | None:
        """Returns pairs as the discriminators see them but for augmentation, for probes; None = no pairs.

        Args:
            G: in training.
            clips: N pairs of real frames, or what N fake pairs are made from.
            nimg: as in `terms`.
            generator: draws noise and ray jitter.
        """
        return None

    @abc.abstractmethod
    def terms(
        self,
        phase: Phase,
        networks: Networks,
        real: RealBatch,
        fake: FakeBatch | Shown,
        nimg: int,
        generator: torch.Generator | None,
        augment: float = 0.0,
    ) -> Iterator[Term]:
        """Yields the terms of a phase, each with its own graph: free one before asking for the next.

        Args:
            phase: Gmain, Greg, Dmain or Dreg.
            networks: requires_grad must be set on those that the phase trains, and only on them.
            real: frames of real clips.
            fake: what fake clips are made from; in Dmain what a term of Gmain has `made`, if it has.
            nimg: clips seen before this iteration, drives the schedules.
            generator: draws noise, ray jitter, points and changes; None = noise buffers and fixed rays.
            augment: probability of each change of what the discriminators see; needs a generator.
        """

    def scores(
        self, networks: Networks, real: RealBatch, nimg: int, generator: torch.Generator, augment: float
    ) -> dict[str, Tensor]:
        """Returns the logits of each discriminator for real clips as in Dmain, by the names in its stats.

        Adaptive augmentation compares them, for held-out clips, with Loss/scores/NAME/real of Dmain and
        Loss/scores/NAME/fake of Gmain; a loss that has no such stats is not adapted.
        """
        return {}
