"""The PV3D loss: pure functions of networks and batches; the training loop does every backward.

Phases and their values (means over frames for the image discriminator, over clips for the video one):
Gmain  w_img softplus(-D_image(fake)) + w_vid softplus(-D_video(fake)) + w_div .02 / (2.9 d + .01)
Greg   w_density |raw density(x) - raw density(x + noise)|
Dmain  softplus(D(fake)) + softplus(-D(real)), both discriminators, weighted alike
Dreg   gamma / 2 |gradient of D(real)|^2 (R1), both discriminators, weighted alike
d is how much two motion codes change a frame [mode seeking: MSGAN, bounded like DSGAN's; ours]. Relativistic:
softplus(D(real) - D(fake)) in Gmain, softplus(D(fake) - D(real)) in Dmain, paired by order in the batch; Dreg
on fakes too (R2) [R3GAN]. Source: PV3D section 3.4, appendix A.1; schedules of EG3D.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import ConfigError
from training.augment import augmented
from training.loss_contract import GRADIENT_SCALE, FakeBatch, Loss, Networks, Phase, RealBatch, Shown, Term
from training.loss_math import blur, fade, r1_penalty
from training.networks.contract import RadianceGenerator
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.volumetric_rendering.renderer import RendererConfig
from training.walk_loss import WalkLoss

softplus = torch.nn.functional.softplus


class PV3DLoss(Loss, Configurable):
    """The loss of the paper, for generators with 3D."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Weights and schedules; nimg counts clips."""

        kind = 'pv3d'
        image_weight: float = 1.0  # of D_image; 0 = the network is not built [PV3D A.1, table 3a]
        # frames of each clip that D_image judges; 1 = one of the two at random [ours]
        image_frames: Literal[2, 1] = 2
        video_weight: float = 0.65  # of D_video; 0 = the network is not built [PV3D A.1, table 3a]
        # logistic: each score alone, R1 [PV3D] | relativistic: fake against real, R1 and R2 [R3GAN]
        adversarial: Literal['logistic', 'relativistic'] = 'logistic'
        r1_gamma: float = 2.0  # R1 weight of both discriminators; the term is gamma / 2 [PV3D A.1]
        r1_gamma_video: float | None = None  # another one for D_video; none = r1_gamma [ours]
        # of two motion codes that give the same clip, at first; 1 is much [ours]
        diversity_weight: float = 0.0
        diversity_fade_nimg: int | None = None  # clips until it is 0; none = it stays [ours]
        r1_delta_t: bool = True  # R1 of D_video counts the time plane too, if it sees frames [released]
        # Dmain judges the fakes of Gmain, one pass of G less; keeps the images [ours]
        reuse_fakes: bool = False
        density_weight: float = 0.6  # smoothness of the density [PV3D A.1]
        density_points: int = 1000  # points per frame [EG3D]
        density_distance: float = 0.004  # std of the perturbation, scene units [EG3D]
        # released: [-1, 1]^3, mostly outside the planes [ours]
        density_box: Literal['inside', 'released'] = 'inside'
        swap_start: float = 1.0  # probability that the mapping sees another clip's cameras, at first [EG3D]
        swap_end: float = 0.5  # the same in the end [EG3D]
        swap_fade_nimg: int = 1_000_000  # clips between the two [EG3D]
        blur_sigma: float = 10.0  # blur of what the discriminators see, at first, pixels [EG3D]
        blur_fade_nimg: int = 100_000  # clips until it is 0: 200,000 x batch / 32 [EG3D, global batch: ours]
        resolution_final: int | None = None  # neural rendering resolution in the end; none = constant [EG3D]
        resolution_fade_nimg: int = 1_000_000  # clips until then [EG3D]

        def __post_init__(self) -> None:
            if self.image_weight <= 0 and self.video_weight <= 0:
                raise ConfigError('loss.image_weight and loss.video_weight are both 0: nothing would train G')
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                    raise ConfigError(f'loss.{field.name}={value} must be finite and not negative')
            if self.density_points < 1 or self.resolution_final == 0:
                raise ConfigError('loss.density_points and loss.resolution_final must be at least 1')

    takes_singles = True
    augments = True

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def frames(self) -> Literal['pair', 'single']:
        """See Loss; single where nothing judges a second frame."""
        config = self.config
        return 'single' if config.video_weight == 0 and config.image_frames == 1 else 'pair'

    @property
    def discriminators(self) -> tuple[str, ...]:
        """See Loss."""
        weights = {'D_image': self.config.image_weight, 'D_video': self.config.video_weight}
        return tuple(name for name, weight in weights.items() if weight > 0)

    @property
    def _relativistic(self) -> bool:
        return self.config.adversarial == 'relativistic'

    def problem(self, networks: Networks) -> str:
        """See Loss."""
        if not networks.G.renderer:
            return f'the generator {networks.G.config.kind} has no 3D'
        expected = zip(networks[1:], (ImageDiscriminator, VideoDiscriminator), strict=True)
        wrong = [D.config.kind for D, kind in expected if D is not None and not isinstance(D, kind)]
        return f'the discriminator {wrong[0]} judges no single images or pairs of them' if wrong else ''

    def has(self, phase: Phase) -> bool:
        """See Loss."""
        return phase != 'Greg' or self.config.density_weight > 0

    def warnings(self, batch: int) -> list[str]:
        """See Loss."""
        text = 'with one clip per batch the camera condition cannot be swapped; use --batch 2 or more'
        return [text] if batch == 1 and self.config.swap_start > 0 else []

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
        """See Loss."""
        if phase == 'Gmain':
            yield self._g_main(networks, real, fake, nimg, generator, augment)
            if self.diversity_weight(nimg) > 0:
                yield self._diversity(networks.G, fake, nimg)
        elif phase == 'Greg':
            yield self._density(networks.G, fake, nimg, generator)
        elif phase == 'Dmain':
            yield from self._d_main(networks, real, fake, nimg, generator, augment)
        else:
            yield from self._d_reg(networks, real, fake, nimg, generator, augment)

    def scores(
        self, networks: Networks, real: RealBatch, nimg: int, generator: torch.Generator, augment: float
    ) -> dict[str, Tensor]:
        """See Loss."""
        reals = self._reals(networks.G, real, nimg, generator, augment)
        return {name: logits for name, _, logits in self._logits(networks, reals, generator)}

    def shown(
        self, G: RadianceGenerator, clips: RealBatch | FakeBatch, nimg: int, generator: torch.Generator
    ) -> Shown | None:
        """See Loss."""
        if self.frames == 'single':
            return None
        if isinstance(clips, RealBatch):
            return self._reals(G, clips, nimg, generator, augment=0)
        return self._fakes(G, clips, nimg, generator)

    def sigma(self, nimg: int) -> float:
        """Returns the blur of what discriminators see after nimg clips, in pixels."""
        return fade(nimg, self.config.blur_sigma, 0.0, self.config.blur_fade_nimg)

    def diversity_weight(self, nimg: int) -> float:
        """Returns the weight of mode seeking after nimg clips."""
        weight, end = self.config.diversity_weight, self.config.diversity_fade_nimg
        return weight if end is None else fade(nimg, weight, 0.0, end)

    def renderer(self, G: RadianceGenerator, nimg: int) -> RendererConfig:
        """Returns how G renders after nimg clips."""
        start, end = G.renderer.resolution, self.config.resolution_final
        if end is None:
            return G.renderer
        now = round(fade(nimg, start, end, self.config.resolution_fade_nimg))
        return dataclasses.replace(G.renderer, resolution=now)

    def conditions(self, G: RadianceGenerator, fake: FakeBatch, nimg: int) -> tuple[Tensor, Tensor]:
        """Returns the cameras that the mapping sees and those rendered, each [N, 2, 25] (PV3D table 2c)."""
        probability = fade(nimg, self.config.swap_start, self.config.swap_end, self.config.swap_fade_nimg)
        c_map = torch.where((fake.swap < probability)[:, None, None], fake.c_other, fake.c)
        rendered, mapping = G.training_cameras(fake.c, c_map)
        return mapping, rendered

    def _scene(
        self, G: RadianceGenerator, fake: FakeBatch, nimg: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what G renders for 2N frames, clip by clip, their cameras [N, 2, 25] and ws."""
        c_map, c = self.conditions(G, fake, nimg)
        codes, t = fake.frame_codes(), fake.t.flatten()
        ws = G.condition(codes, c_map.flatten(0, 1), t)
        return G.scene(codes, ws, t, 'const' if generator is None else 'random', generator), c, ws

    def _fakes(
        self,
        G: RadianceGenerator,
        fake: FakeBatch,
        nimg: int,
        generator: torch.Generator | None,
        augment: float = 0.0,
    ) -> Shown:
        """Returns fakes, the image blurred, as they are judged."""
        scene, c, ws = self._scene(G, fake, nimg, generator)
        out = G.render(scene, ws, c.flatten(0, 1), self.renderer(G, nimg), generator)
        shown = Shown(blur(out.image, self.sigma(nimg)), out.image_raw, fake.t, c, ws[:, 0].mean(dim=0))
        shown = augmented(shown, augment, generator)
        if fake.singles is None:
            return shown
        return shown.with_singles(self._fakes(G, fake.singles, nimg, generator, augment))

    def _reals(
        self,
        G: RadianceGenerator,
        real: RealBatch,
        nimg: int,
        generator: torch.Generator | None,
        augment: float,
    ) -> Shown:
        """Returns the frames with their counterpart of image_raw, both blurred, as they are judged."""
        frames, sigma = real.frames.flatten(0, 1), self.sigma(nimg)
        size = (self.renderer(G, nimg).resolution,) * 2
        raw = nn.functional.interpolate(frames, size=size, mode='bilinear', antialias=True)
        shown = Shown(blur(frames, sigma), blur(raw, sigma), real.t, real.c)
        shown = augmented(shown, augment, generator)
        if real.singles is None:
            return shown
        return shown.with_singles(self._reals(G, real.singles, nimg, generator, augment))

    def _g_main(
        self,
        networks: Networks,
        real: RealBatch,
        fake: FakeBatch,
        nimg: int,
        generator: torch.Generator | None,
        augment: float,
    ) -> Term:
        shown = self._fakes(networks.G, fake, nimg, generator, augment)
        images = shown[:2]
        leaves = [image.detach().requires_grad_() for image in images]
        loss, slopes, stats = 0, [torch.zeros_like(leaf) for leaf in leaves], {}
        opponents = {}
        if self._relativistic:
            with torch.no_grad():
                reals = self._reals(networks.G, real, nimg, generator, augment)
                found = self._logits(networks, reals, generator)
                opponents = {name: logits for name, _, logits in found}
        for name, weight, logits in self._logits(networks, Shown(*leaves, *shown[2:]), generator):
            value = softplus(opponents.get(name, 0) - logits).mean()
            stats |= {f'Loss/G/{name}': value.detach(), f'Loss/scores/{name}/fake': logits.detach()}
            loss = loss + weight * value.detach()
            # frees the graph of this discriminator before the next one needs memory
            found = torch.autograd.grad(GRADIENT_SCALE * weight * value, leaves, allow_unused=True)
            slopes = [s if g is None else s + g / GRADIENT_SCALE for s, g in zip(slopes, found, strict=True)]
        linear = sum((s * p).sum() for s, p in zip(slopes, images, strict=True))
        made = Shown(*(x if x is None else x.detach() for x in shown)) if self.config.reuse_fakes else None
        # value of the loss, gradient of the images
        return Term(linear + (loss - linear.detach()), stats, made=made)

    def _diversity(self, G: RadianceGenerator, fake: FakeBatch, nimg: int) -> Term:
        """Punishes clips that stay the same with another motion code; a quarter of the batch, two at least.

        Noise and jitter are off: they would change images more than the codes do, and G would learn them.
        """
        few = slice(max(2, len(fake.t) // 4))
        part = FakeBatch(*(x[few] for x in fake._replace(singles=None) if x is not None))
        # the later frame, where all kinds of motion have had time to differ
        part = part._replace(**{name: getattr(part, name)[:, -1:] for name in ('t', 'c', 'c_other')})
        pairs = zip(part._replace(z_m=part.z_m_other)[:-1], part[:-1], strict=True)
        image = self._fakes(G, FakeBatch(*map(torch.cat, pairs)), nimg, None).image_raw
        one, other = image.chunk(2)
        difference = (one - other).abs().mean()
        value = 0.02 / (2.9 * difference + 0.01)  # 1 / 2.9: sd of real frames; 2 if all is the same
        return Term(self.diversity_weight(nimg) * value, {'Loss/G/diversity': difference.detach()})

    def _density(
        self, G: RadianceGenerator, fake: FakeBatch, nimg: int, generator: torch.Generator | None
    ) -> Term:
        config = self.config
        planes, _, _ = self._scene(G, fake, nimg, generator)
        shape = (len(planes), config.density_points, 3)
        inside = config.density_box == 'inside'
        half = G.config.box_warp / 2 if inside else 1.0
        like = {'generator': generator, 'device': planes.device, 'dtype': planes.dtype}
        points = (torch.rand(shape, **like) * 2 - 1) * half
        shift = torch.randn(shape, **like) * config.density_distance
        density = G.sample_field(planes, torch.cat([points, points + shift], dim=1))[1]
        near, moved = density.chunk(2, dim=1)
        value = (near - moved).abs().mean()
        # inside the box only: times its fraction of [-1, 1]^3, so that published weights keep their meaning
        fraction = half**3 if inside else 1.0
        return Term(value * (config.density_weight * fraction), {'Loss/G/density': value * fraction})

    def _d_main(
        self,
        networks: Networks,
        real: RealBatch,
        fake: FakeBatch | Shown,
        nimg: int,
        generator: torch.Generator | None,
        augment: float,
    ) -> Iterator[Term]:
        made = isinstance(fake, Shown)
        with torch.no_grad():
            fakes = fake if made else self._fakes(networks.G, fake, nimg, generator, augment)
        if self._relativistic:
            reals = self._reals(networks.G, real, nimg, generator, augment)
            yield from self._d_relativistic(networks, reals, fakes, generator)
            return
        w_mean = fakes.w_mean
        for name, weight, logits in self._logits(networks, fakes, generator):
            value = softplus(logits).mean()
            yield Term(weight * value, {f'Loss/D/{name}/fake': value}, w_mean)
            w_mean = None  # once
        reals = self._reals(networks.G, real, nimg, generator, augment)
        for name, weight, logits in self._logits(networks, reals, generator):
            value = softplus(-logits).mean()
            stats = {f'Loss/D/{name}/real': value, f'Loss/scores/{name}/real': logits}
            yield Term(weight * value, stats | {f'Loss/signs/{name}/real': logits.sign()})

    def _d_relativistic(
        self, networks: Networks, reals: Shown, fakes: Shown, generator: torch.Generator | None
    ) -> Iterator[Term]:
        w_mean = fakes.w_mean
        both = (self._logits(networks, shown, generator) for shown in (reals, fakes))
        for (name, weight, real), (_, _, fake) in zip(*both, strict=True):
            value = softplus(fake - real).mean()
            stats = {f'Loss/D/{name}': value, f'Loss/scores/{name}/real': real}
            # only differences mean something: the sign of a real is that of its lead
            yield Term(weight * value, stats | {f'Loss/signs/{name}/real': (real - fake).sign()}, w_mean)
            w_mean = None  # once

    def _d_reg(
        self,
        networks: Networks,
        real: RealBatch,
        fake: FakeBatch,
        nimg: int,
        generator: torch.Generator | None,
        augment: float,
    ) -> Iterator[Term]:
        reals = self._reals(networks.G, real, nimg, generator, augment)
        yield from self._penalties('r1', networks, reals, generator)
        if self._relativistic:
            with torch.no_grad():
                fakes = self._fakes(networks.G, fake, nimg, generator, augment)
            yield from self._penalties('r2', networks, fakes, generator)

    def _penalties(
        self, name: str, networks: Networks, shown: Shown, generator: torch.Generator | None
    ) -> Iterator[Term]:
        """Yields gamma / 2 |gradient|^2 of each discriminator."""
        config = self.config
        if networks.D_image is not None:
            image, raw, c = self._single_frames(shown, generator)
            images = [x.detach().requires_grad_() for x in (image, raw)]
            logits, dual = networks.D_image(*images, c), networks.D_image.config.dual
            penalty = r1_penalty(logits, images[: 1 + dual]).mean()
            yield Term(config.image_weight * config.r1_gamma / 2 * penalty, {f'Loss/{name}/image': penalty})
        if networks.D_video is not None:
            frames = shown.clips().detach().requires_grad_()
            pair = networks.D_video.pair_input(frames, shown.t)
            # through a difference R1 counts the frames, so that its gain does not scale gamma
            watched = pair if config.r1_delta_t and networks.D_video.sees_frames else frames
            penalty = r1_penalty(networks.D_video(pair, shown.c), [watched]).mean()
            gamma = config.r1_gamma if config.r1_gamma_video is None else config.r1_gamma_video
            yield Term(config.video_weight * gamma / 2 * penalty, {f'Loss/{name}/video': penalty})

    def _logits(
        self, networks: Networks, shown: Shown, generator: torch.Generator | None
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Yields (name, weight, logits) of each discriminator."""
        if networks.D_image is not None:
            logits = networks.D_image(*self._single_frames(shown, generator))
            yield 'image', self.config.image_weight, logits
        if networks.D_video is not None:
            pair = networks.D_video.pair_input(shown.clips(), shown.t)
            yield 'video', self.config.video_weight, networks.D_video(pair, shown.c)

    def _single_frames(
        self, shown: Shown, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns images, raw images and cameras [M, 25] of all frames or one of each clip, and singles."""
        (n, each), c = shown.t.shape, shown.c.flatten(0, 1)
        c = c if shown.c_singles is None else torch.cat([c, shown.c_singles])
        frames = (shown.image, shown.image_raw, c)
        if self.config.image_frames == 2 or each == 1:
            return frames
        device = c.device
        second = torch.zeros(n, dtype=torch.long, device=device)
        if generator is not None:
            second = torch.randint(2, [n], generator=generator, device=device)
        rows = 2 * torch.arange(n, device=device) + second
        rows = torch.cat([rows, torch.arange(2 * n, len(c), device=device)])
        return tuple(x[rows] for x in frames)


LOSSES = {'pv3d': PV3DLoss, 'walk': WalkLoss}
