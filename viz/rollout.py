"""Clips of a generator in bounded memory: codes that depend only on their seed, batches of frames."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.networks.contract import Codes, VideoGenerator
from training.volumetric_rendering.renderer import RendererConfig


class Frames(NamedTuple):
    """Rendered frames, on the CPU, NCHW; a network without 3D has only images."""

    image: Tensor  # about [-1, 1], [T, 3, H, W]
    depth: Tensor | None  # distance along the unit ray, scene units, [T, 1, h, w]
    opacity: Tensor | None  # [T, 1, h, w] in [0, 1]
    xyz: Tensor | None  # world points [T, 3, h, w]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How frames are rendered; none of it changes what is seen, except the renderer's own settings."""

    renderer: RendererConfig | None = None  # sampling that replaces the network's own (resolution, samples)
    frame_batch: int = 4  # frames in memory at once
    ray_chunk: int | None = 2048  # rays of each frame in memory at once


DEFAULT_OPTIONS = RenderOptions()


def draw_codes(G: VideoGenerator, seed: int, motion_seed: int | None = None) -> Codes:
    """Draws the codes of a clip on the CPU; they depend only on their seed and the code widths of G.

    Args:
        G: generator.
        seed: seed of the appearance and, by default, of the motion.
        motion_seed: takes the motion that belongs to this seed: the same motion for every appearance.
    """
    seeds = seed, seed if motion_seed is None else motion_seed
    own, other = (G.draw_codes(1, torch.Generator().manual_seed(s)) for s in seeds)
    return Codes(own.z_a, other.z_m)


def device_of(G: nn.Module) -> torch.device:
    """Returns the device of a network's parameters."""
    return next(G.parameters()).device


@torch.no_grad()
def map_codes(G: VideoGenerator, codes: Codes, cameras: Tensor, times: Tensor, psi: float = 1.0) -> Tensor:
    """Maps the codes of a clip to intermediate codes.

    Args:
        G: generator.
        codes: of one clip.
        cameras: of the mapping: one for the whole clip [1, 25], which is MapT, or one for each frame [T, 25].
        times: [T].
        psi: truncation.

    Returns:
        ws, one for the whole clip [1, num_ws, w_dim] where camera and network allow it, else one for each
        frame.
    """
    device = device_of(G)
    return G.condition(to(codes, device), cameras.to(device), times.to(device), psi)


def to(codes: Codes, device: torch.device) -> Codes:
    """Moves codes to a device."""
    return Codes(*(z.to(device) for z in codes))


@torch.no_grad()
def scene_at(G: VideoGenerator, codes: Codes, ws: Tensor, times: Tensor) -> Tensor:
    """Synthesises the scenes [T, ...] of a clip at times [T] with ws [1 or T, num_ws, w_dim]."""
    return G.scene(to(codes, ws.device), ws, times.to(ws.device))


@torch.no_grad()
def render_frames(
    G: VideoGenerator,
    codes: Codes,
    ws: Tensor,
    cameras: Tensor,
    times: Tensor,
    options: RenderOptions = DEFAULT_OPTIONS,
) -> Iterator[Frames]:
    """Renders a clip in batches of frames; yields each batch on the CPU.

    Frames of a batch with equal ws and time share their scene: one moment seen from many sides is cheap.

    Args:
        G: generator.
        codes: of one clip.
        ws: from map_codes, [1 or T, num_ws, w_dim].
        cameras: render cameras [T, 25].
        times: [T].
        options: see RenderOptions.
    """
    device = device_of(G)
    ws, cameras, times = (x.to(device) for x in (ws, cameras, times))
    for start in range(0, len(times), options.frame_batch):
        stop = min(start + options.frame_batch, len(times))
        if len(ws) == 1:
            t, which = times[start:stop].unique(return_inverse=True)
            w = ws.expand(stop - start, -1, -1)
        else:
            t, which, w = times[start:stop], torch.arange(stop - start, device=device), ws[start:stop]
        scene = scene_at(G, codes, w[: len(t)], t)[which]
        out = G.render(scene, w, cameras[start:stop], renderer=options.renderer, ray_chunk=options.ray_chunk)
        geometry = (x if x is None else x.cpu() for x in (out.depth, out.opacity, out.xyz))
        yield Frames(out.image.float().cpu(), *geometry)


def concatenate(batches: Sequence[Frames]) -> Frames:
    """Joins batches of frames along time."""
    columns = zip(*batches, strict=True)
    return Frames(*(None if parts[0] is None else torch.cat(parts) for parts in columns))
