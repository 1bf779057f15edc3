"""Clips out of a generator in bounded memory: codes that depend on their seed alone, batches of frames."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Codes(NamedTuple):
    """Latent codes of one clip, on the CPU."""

    z: Tensor  # appearance [1, z_dim], N(0, 1)
    z_m: Tensor  # motion [1, motion_dim], N(0, 1)


class Frames(NamedTuple):
    """Rendered frames, on the CPU; pictures are NCHW."""

    image: Tensor  # about [-1, 1], [T, 3, H, W]
    depth: Tensor  # distance along the unit ray, scene units, [T, 1, h, w]
    opacity: Tensor  # [T, 1, h, w] in [0, 1]
    xyz: Tensor  # world points [T, 3, h, w]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How frames are rendered; none of it changes what is seen, except the renderer's own settings."""

    renderer: Any = None  # renderer Config that replaces the network's own (resolution, samples)
    frame_batch: int = 4  # frames in memory at once
    ray_chunk: int | None = 2048  # rays of each frame in memory at once


DEFAULT_OPTIONS = RenderOptions()


def draw_codes(G: nn.Module, seed: int, motion_seed: int | None = None) -> Codes:
    """Draws the codes of a clip on the CPU: z, then z_m, from a generator seeded by `seed` alone.

    Args:
        G: generator that says the code widths.
        seed: seed of the appearance and, by default, of the motion.
        motion_seed: takes the motion that this seed would have had: the same motion for every appearance.
    """
    own = _draw(G, seed)
    return own if motion_seed is None else Codes(own.z, _draw(G, motion_seed).z_m)


def _draw(G: nn.Module, seed: int) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, G.z_dim, generator=generator)
    return Codes(z, torch.randn(1, G.motion_dim, generator=generator))


def device_of(G: nn.Module) -> torch.device:
    """Returns the device of a network's parameters."""
    return next(G.parameters()).device


@torch.no_grad()
def map_codes(G: nn.Module, codes: Codes, cameras: Tensor, times: Tensor, psi: float = 1.0) -> Tensor:
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
    if G.config.motion.kind == 'naive':  # this mapping network sees the time
        cameras = cameras.expand(len(times), -1)
    count, device = len(cameras), device_of(G)
    z, z_m = (x.to(device).expand(count, -1) for x in codes)
    return G.mapping(z, z_m, times[:count].to(device), cameras.to(device), psi)


@torch.no_grad()
def planes_at(G: nn.Module, codes: Codes, ws: Tensor, times: Tensor) -> Tensor:
    """Synthesises the planes [T, ...] of a clip at times [T] with ws [T, num_ws, w_dim]."""
    code = G.motion_code(codes.z, codes.z_m).to(ws.device)
    return G.planes(ws, code.expand(len(times), -1), times.to(ws.device))


@torch.no_grad()
def render_frames(
    G: nn.Module,
    codes: Codes,
    ws: Tensor,
    cameras: Tensor,
    times: Tensor,
    options: RenderOptions = DEFAULT_OPTIONS,
) -> Iterator[Frames]:
    """Renders a clip in batches of frames; yields each batch on the CPU.

    Frames of a batch that share ws and time share their planes too: one moment seen from many sides is cheap.

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
        planes = planes_at(G, codes, w[: len(t)], t)[which]
        out = G.render(planes, w, cameras[start:stop], renderer=options.renderer, ray_chunk=options.ray_chunk)
        yield Frames(out.image.float().cpu(), out.depth.cpu(), out.opacity.cpu(), out.xyz.cpu())


def concatenate(batches: Sequence[Frames]) -> Frames:
    """Joins batches of frames along time."""
    return Frames(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
