"""The PV3D loss: pure functions of networks and batches; the training loop does every backward.

Phases and their values (means over frames for the image discriminator, over clips for the video one):
Gmain  w_img softplus(-D_image(fake)) + w_vid softplus(-D_video(fake))
Greg   w_density |raw density(x) - raw density(x + noise)|
Dmain  softplus(D(fake)) + softplus(-D(real)), both discriminators, weighted alike
Dreg   gamma / 2 |gradient of D(real)|^2 (R1), both discriminators, weighted alike
Source: PV3D section 3.4, appendix A.1; schedules of EG3D.
"""

import abc
import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import ConfigError
from training.networks.contract import Codes, RadianceGenerator, Rendering, VideoGenerator
from training.volumetric_rendering.renderer import RendererConfig

Phase = Literal['Gmain', 'Greg', 'Dmain', 'Dreg']
softplus = torch.nn.functional.softplus


class RealBatch(NamedTuple):
    """T real frames each of N clips: pairs, or all frames of a span."""

    frames: Tensor  # [N, T, 3, R, R] in [-1, 1]
    t: Tensor  # [N, T] in units of the span
    c: Tensor  # [N, T, 25]


class FakeBatch(NamedTuple):
    """What N fake clips of T frames are made from."""

    z_a: Tensor  # [N, z_dim]
    z_m: Tensor  # [N, motion_dim]
    t: Tensor  # [N, T]
    c: Tensor  # cameras to render [N, T, 25]
    c_other: Tensor  # cameras of another clip, for swapping the condition [N, T, 25]
    swap: Tensor  # uniform draws [N]; below the swap probability the mapping sees c_other

    def frame_codes(self) -> Codes:
        """Returns the codes of all frames, clip by clip [N * T, ...]."""
        return Codes(*(z.repeat_interleave(self.t.shape[1], dim=0) for z in (self.z_a, self.z_m)))


class Term(NamedTuple):
    """One summand of a phase's loss, with a graph of its own."""

    loss: Tensor  # scalar
    stats: dict[str, Tensor]  # figures to report
    w_mean: Tensor | None = None  # mean w of the fakes [w_dim], for the running mean that truncation uses


class Networks(NamedTuple):
    """The networks in training; a discriminator that the loss does not use is None."""

    G: VideoGenerator
    D_image: nn.Module | None
    D_video: nn.Module | None


class Loss(abc.ABC):
    """What the loop knows of a loss, whatever its kind."""

    frames: ClassVar[Literal['pair', 'clip']] = 'pair'  # of each clip in a batch: two, or all of a span

    @property
    @abc.abstractmethod
    def discriminators(self) -> tuple[str, ...]:
        """Names of those that are built: D_image, D_video or both."""

    def has(self, phase: Phase) -> bool:
        """Whether the loss has terms in this phase."""
        return True

    def problem(self, networks: Networks) -> str:
        """Returns why the loss cannot train these networks; '' if it can."""
        return ''

    def warnings(self, batch: int) -> list[str]:
        """Returns what to warn about when training with so many clips per iteration."""
        return []

    @abc.abstractmethod
    def terms(
        self,
        phase: Phase,
        networks: Networks,
        real: RealBatch,
        fake: FakeBatch,
        nimg: int,
        generator: torch.Generator | None,
    ) -> Iterator[Term]:
        """Yields the terms of a phase, each with its own graph: free one before asking for the next.

        Args:
            phase: Gmain, Greg, Dmain or Dreg.
            networks: requires_grad must be set on those that the phase trains, and only on them.
            real: frames of real clips.
            fake: what fake clips are made from.
            nimg: clips seen before this iteration, drives the schedules.
            generator: draws noise, ray jitter and points; None = noise buffers and fixed rays.
        """


def fade(nimg: int, start: float, end: float, duration: int) -> float:
    """Returns a value that goes linearly from start to end over `duration` clips and stays there."""
    return end if nimg >= duration else start + (end - start) * nimg / duration


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blurs images [..., C, H, W] by 2^-(k / sigma)^2, zero borders; sigma in pixels, 0 = none [EG3D]."""
    reach = math.floor(3 * sigma)
    if reach == 0:
        return images
    k = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp2(-((k / sigma) ** 2))
    kernel = (kernel / kernel.sum())[None, None]
    x = images.flatten(0, -3)[:, None]  # [M, 1, H, W]
    x = torch.nn.functional.conv2d(x, kernel[:, :, None], padding=(0, reach))
    x = torch.nn.functional.conv2d(x, kernel[..., None], padding=(reach, 0))
    return x.reshape(images.shape)


def r1_penalty(logits: Tensor, inputs: list[Tensor], channels: int | None = None) -> Tensor:
    """Returns the squared norm of the gradient of the logits with respect to the inputs, per sample [N].

    channels: counts only so many channels of each input; None = all.
    """
    grads = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return sum(g[:, :channels].square().sum(dim=(1, 2, 3)) for g in grads)


class PV3DLoss(Loss, Configurable):
    """The loss of the paper, for generators with 3D."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Weights and schedules; nimg counts clips."""

        kind = 'pv3d'
        image_weight: float = 1.0  # of D_image; 0 = the network is not built [PV3D A.1, table 3a]
        video_weight: float = 0.65  # of D_video; 0 = the network is not built [PV3D A.1, table 3a]
        r1_gamma: float = 2.0  # R1 weight of both discriminators; the term is gamma / 2 [PV3D A.1]
        r1_delta_t: bool = True  # R1 of D_video counts the time plane too [released]
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

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def discriminators(self) -> tuple[str, ...]:
        """See Loss."""
        weights = {'D_image': self.config.image_weight, 'D_video': self.config.video_weight}
        return tuple(name for name, weight in weights.items() if weight > 0)

    def problem(self, networks: Networks) -> str:
        """See Loss."""
        return '' if networks.G.renderer else f'the generator {networks.G.config.kind} has no 3D'

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
        fake: FakeBatch,
        nimg: int,
        generator: torch.Generator | None,
    ) -> Iterator[Term]:
        """See Loss."""
        sigma = fade(nimg, self.config.blur_sigma, 0.0, self.config.blur_fade_nimg)
        if phase == 'Gmain':
            yield self._g_main(networks, fake, nimg, sigma, generator)
        elif phase == 'Greg':
            yield self._density(networks.G, fake, nimg, generator)
        elif phase == 'Dmain':
            yield from self._d_main(networks, real, fake, nimg, sigma, generator)
        else:
            yield from self._d_reg(networks, real, nimg, sigma)

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

    def _generate(
        self, G: RadianceGenerator, fake: FakeBatch, nimg: int, generator: torch.Generator | None
    ) -> tuple[Rendering, Tensor, Tensor]:
        """Returns the rendering of 2N frames (clip by clip), their cameras [N, 2, 25] and ws."""
        scene, c, ws = self._scene(G, fake, nimg, generator)
        out = G.render(scene, ws, c.flatten(0, 1), self.renderer(G, nimg), generator)
        return out, c, ws

    def _scene(
        self, G: RadianceGenerator, fake: FakeBatch, nimg: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        c_map, c = self.conditions(G, fake, nimg)
        codes, t = fake.frame_codes(), fake.t.flatten()
        ws = G.condition(codes, c_map.flatten(0, 1), t)
        return G.scene(codes, ws, t, 'const' if generator is None else 'random', generator), c, ws

    def _g_main(
        self, networks: Networks, fake: FakeBatch, nimg: int, sigma: float, generator: torch.Generator | None
    ) -> Term:
        out, c, _ = self._generate(networks.G, fake, nimg, generator)
        images = [blur(out.image, sigma), out.image_raw]
        leaves = [image.detach().requires_grad_() for image in images]
        loss, slopes, stats = 0, [torch.zeros_like(leaf) for leaf in leaves], {}
        for name, weight, logits in self._logits(networks, *leaves, fake.t, c):
            value = softplus(-logits).mean()
            stats |= {f'Loss/G/{name}': value.detach(), f'Loss/scores/{name}/fake': logits.detach()}
            loss = loss + weight * value.detach()
            # frees the graph of this discriminator before the next one needs memory
            found = torch.autograd.grad(weight * value, leaves, allow_unused=True)
            slopes = [s if g is None else s + g for s, g in zip(slopes, found, strict=True)]
        linear = sum((s * p).sum() for s, p in zip(slopes, images, strict=True))
        return Term(linear + (loss - linear.detach()), stats)  # value of the loss, gradient of the images

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
        fake: FakeBatch,
        nimg: int,
        sigma: float,
        generator: torch.Generator | None,
    ) -> Iterator[Term]:
        with torch.no_grad():
            out, c, ws = self._generate(networks.G, fake, nimg, generator)
            image, raw = blur(out.image, sigma), out.image_raw
        w_mean = ws[:, 0].mean(dim=0)
        for name, weight, logits in self._logits(networks, image, raw, fake.t, c):
            value = softplus(logits).mean()
            yield Term(weight * value, {f'Loss/D/{name}/fake': value}, w_mean)
            w_mean = None  # once
        image, raw = self._real(networks.G, real, nimg, sigma)
        for name, weight, logits in self._logits(networks, image, raw, real.t, real.c):
            value = softplus(-logits).mean()
            stats = {f'Loss/D/{name}/real': value, f'Loss/scores/{name}/real': logits}
            yield Term(weight * value, stats | {f'Loss/signs/{name}/real': logits.sign()})

    def _d_reg(self, networks: Networks, real: RealBatch, nimg: int, sigma: float) -> Iterator[Term]:
        config = self.config
        image, raw = (x.detach().requires_grad_() for x in self._real(networks.G, real, nimg, sigma))
        if networks.D_image is not None:
            logits = networks.D_image(image, raw, real.c.flatten(0, 1))
            penalty = r1_penalty(logits, [image, raw]).mean()
            yield Term(config.image_weight * config.r1_gamma / 2 * penalty, {'Loss/r1/image': penalty})
        if networks.D_video is not None:
            pair = networks.D_video.pair_input(image.unflatten(0, (-1, 2)), real.t).detach().requires_grad_()
            channels = None if config.r1_delta_t else 6  # the time plane is the seventh channel
            penalty = r1_penalty(networks.D_video(pair, real.c), [pair], channels).mean()
            yield Term(config.video_weight * config.r1_gamma / 2 * penalty, {'Loss/r1/video': penalty})

    def _logits(
        self, networks: Networks, image: Tensor, raw: Tensor, t: Tensor, c: Tensor
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Yields (name, weight, logits) of each discriminator for 2N frames, t [N, 2], c [N, 2, 25]."""
        if networks.D_image is not None:
            yield 'image', self.config.image_weight, networks.D_image(image, raw, c.flatten(0, 1))
        if networks.D_video is not None:
            pair = networks.D_video.pair_input(image.unflatten(0, (-1, 2)), t)
            yield 'video', self.config.video_weight, networks.D_video(pair, c)

    def _real(self, G: RadianceGenerator, real: RealBatch, nimg: int, sigma: float) -> tuple[Tensor, Tensor]:
        """Returns real frames [2N, 3, R, R] and their counterpart of image_raw, both blurred."""
        frames = real.frames.flatten(0, 1)
        size = (self.renderer(G, nimg).resolution,) * 2
        raw = nn.functional.interpolate(frames, size=size, mode='bilinear', antialias=True)
        return blur(frames, sigma), blur(raw, sigma)


LOSSES = {'pv3d': PV3DLoss}
