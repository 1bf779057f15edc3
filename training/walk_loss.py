"""The loss of MoCoGAN-HD: relativistic averages on clips and pairs, a gradient penalty, noises that show.

Phases and their values, r and f logits of reals and fakes, summed over scales and both discriminators:
Gmain  ((f - mean r - 1)^2 + (r - mean f)^2) / 2, and 1 - cosine(recovered noise, noise)
Dmain  ((r - mean f - 1)^2 + (f - mean r)^2) / 2, and of clips w_gp (|gradient of a pixel's channels| - 1)^2
Order of time is turned round at random, after the first frame was stacked before the others. Left out is
that G takes five steps for one of D. Source: MoCoGAN-HD, in its setting for one domain.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import ConfigError
from training.loss_contract import FakeBatch, Loss, Networks, Phase, RealBatch, Term
from training.networks.patch_discriminators import ClipDiscriminator, PairDiscriminator
from training.networks.walk import Walking

_TINY = 1e-12  # under the root of squared gradients


def relativistic(raised: list[Tensor], lowered: list[Tensor]) -> Tensor:
    """Returns the squared distances to 1 and 0 of logits above the mean of the others, summed over scales.

    Args:
        raised: logits of patches at each scale, of what should look real.
        lowered: the same of what should not.
    """
    total = 0
    for up, down in zip(raised, lowered, strict=True):
        above, below = up - down.mean() - 1, down - up.mean()
        total = total + (above.square().mean() + below.square().mean()) / 2
    return total


def gradient_penalty(D: nn.Module, mixed: Tensor) -> Tensor:
    """Returns the mean of (|g| - 1)^2 over scales, g the gradient of all logits by a pixel's channels.

    mixed: stacked clips between real and fake [N, 6, T - 1, R, R].
    """
    mixed = mixed.detach().requires_grad_()
    penalties = []
    for logits in D(mixed):
        (slope,) = torch.autograd.grad(logits.sum(), mixed, create_graph=True)
        length = (slope.square().sum(dim=1) + _TINY).sqrt()
        penalties.append((length - 1).square().mean())
    return sum(penalties) / len(penalties)


class WalkLoss(Loss, Configurable):
    """The loss of a walk in the space of w."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Weights."""

        kind = 'walk'
        penalty_weight: float = 10.0  # of the gradient penalty [MoCoGAN-HD]
        noise_weight: float = 1.0  # of the noise that must be seen in the state of a walk [MoCoGAN-HD]

        def __post_init__(self) -> None:
            if min(self.penalty_weight, self.noise_weight) < 0:
                raise ConfigError('loss.penalty_weight and loss.noise_weight must not be negative')

    frames = 'clip'
    discriminators = ('D_image', 'D_video')

    def __init__(self, config: Config) -> None:
        self.config = config

    def problem(self, networks: Networks) -> str:
        """See Loss."""
        expected = Walking, PairDiscriminator, ClipDiscriminator
        wrong = [n for n, kind in zip(networks, expected, strict=True) if not isinstance(n, kind)]
        return f'the kind {wrong[0].config.kind} is not one of a walk' if wrong else ''

    def has(self, phase: Phase) -> bool:
        """See Loss."""
        return phase in ('Gmain', 'Dmain')

    def terms(
        self,
        phase: Phase,
        networks: Networks,
        real: RealBatch,
        fake: FakeBatch,
        nimg: int,
        generator: torch.Generator | None,
        augment: float = 0.0,
    ) -> Iterator[Term]:
        """See Loss; nothing is augmented."""
        if phase == 'Gmain':
            yield self._g_main(networks, real, fake, generator)
        else:
            yield from self._d_main(networks, real, fake, generator)

    def _g_main(
        self, networks: Networks, real: RealBatch, fake: FakeBatch, generator: torch.Generator | None
    ) -> Term:
        G, D_image, D_video = networks
        clips, states, w = _clips(G, fake, generator)
        frame = _later_frame(clips, generator)
        with torch.no_grad():
            reals = [D_video(_turned(D_video.stack(real.frames), generator))]
            reals.append(D_image(D_image.stack(real.frames, frame)))
        video = relativistic(D_video(_turned(D_video.stack(clips), generator)), reals[0])
        image = relativistic(D_image(D_image.stack(clips, frame)), reals[1])
        noises = fake.z_m.unflatten(1, (-1, G.config.w_dim))
        missed = 1 - nn.functional.cosine_similarity(G.walk_network.recover(states), noises, dim=-1).mean()
        stats = {'Loss/G/video': video, 'Loss/G/image': image, 'Loss/G/noise': missed}
        stats = {name: value.detach() for name, value in stats.items()}
        return Term(video + image + self.config.noise_weight * missed, stats, w.detach())

    def _d_main(
        self, networks: Networks, real: RealBatch, fake: FakeBatch, generator: torch.Generator | None
    ) -> Iterator[Term]:
        G, D_image, D_video = networks
        with torch.no_grad():
            clips, _, _ = _clips(G, fake, generator)
        stacked = [D_video.stack(x) for x in (real.frames, clips)]
        video = relativistic(*(D_video(_turned(x, generator)) for x in stacked))
        yield Term(video, {'Loss/D/video': video.detach()})
        frame = _later_frame(clips, generator)
        image = relativistic(*(D_image(D_image.stack(x, frame)) for x in (real.frames, clips)))
        yield Term(image, {'Loss/D/image': image.detach()})
        weight = torch.rand((len(clips), 1, 1, 1, 1), generator=generator, device=clips.device)
        penalty = gradient_penalty(D_video, torch.lerp(*stacked, weight))
        yield Term(self.config.penalty_weight * penalty, {'Loss/penalty/video': penalty.detach()})


def _clips(G: Walking, fake: FakeBatch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Renders all frames of N clips [N, T, 3, R, R]; also returns the states of their walks and the mean w.

    The mapping sees the camera of the first frame, noise maps stay the same over a clip.
    """
    path, states = G.walk(fake.z_a, fake.z_m, fake.c[:, 0])
    codes = fake.frame_codes()
    ws = G.as_ws(path.flatten(0, 1), codes.z_a)
    scene = G.scene(codes, ws, fake.t.flatten())
    image = G.render(scene, ws, fake.c.flatten(0, 1), generator=generator).image
    return image.unflatten(0, fake.t.shape), states, path.mean(dim=(0, 1))


def _later_frame(clips: Tensor, generator: torch.Generator | None) -> int:
    """Draws the frame that the pair discriminator sees beside the first one; the last without a generator."""
    count = clips.shape[1]
    if generator is None:
        return count - 1
    return int(torch.randint(1, count, [], generator=generator, device=generator.device))


def _turned(stacked: Tensor, generator: torch.Generator | None) -> Tensor:
    """Turns the time of stacked clips [N, 6, T - 1, R, R] round, all of them or none."""
    if generator is None or torch.rand([], generator=generator, device=generator.device) < 0.5:
        return stacked
    return stacked.flip(2)
