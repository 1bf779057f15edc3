"""Clips of a generator in bounded memory: codes that depend only on their seed, batches of frames."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.networks.contract import Codes, VideoGenerator
from training.volumetric_rendering.renderer import RendererConfig

_KEPT_BYTES = 1 << 30  # of scenes that later frames show again


class Frames(NamedTuple):
    """Rendered frames, NCHW; a network without 3D has only images."""

    image: Tensor  # about [-1, 1], [T, 3, H, W]
    depth: Tensor | None  # distance along the unit ray, scene units, [T, 1, h, w]
    opacity: Tensor | None  # [T, 1, h, w] in [0, 1]
    xyz: Tensor | None  # world points [T, 3, h, w]
    image_raw: Tensor | None = None  # volume-rendered image, about [-1, 1], [T, 3, h, w]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How frames are rendered; only the renderer's own settings and `strength` change what is seen."""

    renderer: RendererConfig | None = None  # sampling that replaces the network's own (resolution, samples)
    frame_batch: int = 4  # frames in memory at once
    ray_chunk: int | None = 2048  # rays of each frame in memory at once
    strength: float = 1.0  # factor on motion, counted from t = 0; other values need a network with 3D


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
def map_codes(
    G: VideoGenerator,
    codes: Codes,
    cameras: Tensor,
    times: Tensor,
    psi: float = 1.0,
    cutoff: int | None = None,
) -> Tensor:
    """Maps the codes of a clip to intermediate codes.

    Args:
        G: generator.
        codes: of one clip.
        cameras: of the mapping: one for the whole clip [1, 25], which is MapT, or one for each frame [T, 25].
        times: [T].
        psi: truncation.
        cutoff: number of the ws that are truncated; None = all.

    Returns:
        ws, one for the whole clip [1, num_ws, w_dim] where camera and network allow it, else one for each
        frame.
    """
    device = device_of(G)
    return G.condition(to(codes, device), cameras.to(device), times.to(device), psi, cutoff)


def to(codes: Codes, device: torch.device) -> Codes:
    """Moves codes to a device."""
    return Codes(*(z.to(device) for z in codes))


@torch.no_grad()
def scene_at(G: VideoGenerator, codes: Codes, ws: Tensor, times: Tensor, strength: float = 1.0) -> Tensor:
    """Synthesises the scenes [T, ...] of a clip at times [T] with ws [1 or T, num_ws, w_dim].

    strength: factor on motion, counted from t = 0; other values than 1 need a RadianceGenerator.
    """
    codes, times = to(codes, ws.device), times.to(ws.device, non_blocking=True)
    if strength == 1:
        return G.scene(codes, ws, times)
    start = G.motion_at(codes, torch.zeros_like(times))
    return G.moved_scene(ws, start + strength * (G.motion_at(codes, times) - start))


@torch.no_grad()
def render_batches(
    G: VideoGenerator,
    codes: Codes,
    ws: Tensor,
    cameras: Tensor,
    times: Tensor,
    options: RenderOptions = DEFAULT_OPTIONS,
) -> Iterator[Frames]:
    """Renders a clip in batches of frames; yields each on the device of G, which is not waited for.

    Frames with equal ws and time share their scene: one moment seen from many sides is cheap.

    Args:
        G: generator.
        codes: of one clip.
        ws: from map_codes, [1 or T, num_ws, w_dim].
        cameras: render cameras [T, 25].
        times: [T], on the CPU.
        options: see RenderOptions.
    """
    device = device_of(G)
    codes, ws, cameras = to(codes, device), ws.to(device), cameras.to(device)
    for part, scene in _scenes(G, codes, ws, times, options):
        yield render_scene(G, scene, ws if len(ws) == 1 else ws[part], cameras[part], options)


@torch.no_grad()
def render_scene(
    G: VideoGenerator, scene: Tensor, ws: Tensor, cameras: Tensor, options: RenderOptions = DEFAULT_OPTIONS
) -> Frames:
    """Renders scenes [T, ...] with ws [1 or T, num_ws, w_dim] from cameras [T, 25], on the device of G."""
    ws = ws.expand(len(scene), -1, -1)
    out = G.render(scene, ws, cameras, renderer=options.renderer, ray_chunk=options.ray_chunk)
    return Frames(out.image.float(), out.depth, out.opacity, out.xyz, out.image_raw.float())


def render_frames(
    G: VideoGenerator,
    codes: Codes,
    ws: Tensor,
    cameras: Tensor,
    times: Tensor,
    options: RenderOptions = DEFAULT_OPTIONS,
) -> Iterator[Frames]:
    """Does what render_batches does and yields each batch on the CPU."""
    for batch in render_batches(G, codes, ws, cameras, times, options):
        yield Frames(*(x if x is None else x.cpu() for x in batch))


def _scenes(
    G: VideoGenerator, codes: Codes, ws: Tensor, times: Tensor, options: RenderOptions
) -> Iterator[tuple[slice, Tensor]]:
    """Yields batches of frames: their place in the clip and their scenes [n, ...].

    A scene is kept while later frames show it, as long as there is room.
    """
    left, kept, size = Counter(times.tolist()), {}, options.frame_batch
    for start in range(0, len(times), size):
        part = slice(start, start + size)
        if len(ws) > 1:  # frames have their own
            yield part, scene_at(G, codes, ws[part], times[part], options.strength)
            continue
        moments = times[part].tolist()
        new = [t for t in dict.fromkeys(moments) if t not in kept]
        made = scene_at(G, codes, ws, times.new_tensor(new), options.strength) if new else ()
        kept |= zip(new, made, strict=True)
        yield part, made if new == moments else _stack([kept[t] for t in moments])
        left.subtract(moments)
        room = _KEPT_BYTES // kept[moments[0]].nbytes
        kept = dict(itertools.islice(((t, scene) for t, scene in kept.items() if left[t]), room))


def _stack(scenes: list[Tensor]) -> Tensor:
    """Stacks scenes without changing their layout in memory, which the renderer would have to change back."""
    first = scenes[0]
    strides = torch.empty_like(first, device='meta').stride()
    stacked = first.new_empty_strided((len(scenes), *first.shape), (first.numel(), *strides))
    return torch.stack(scenes, out=stacked)


def fetch(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, np.ndarray]]:
    """Begins to copy tensors from their device; the function returned waits for the copies."""
    if not any(x.is_cuda for x in tensors.values()):
        return lambda: {name: x.numpy() for name, x in tensors.items()}
    copies = {name: torch.empty_like(x, device='cpu', pin_memory=True) for name, x in tensors.items()}
    for name, x in tensors.items():
        copies[name].copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> dict[str, np.ndarray]:
        copied.synchronize()
        return {name: x.numpy() for name, x in copies.items()}

    return wait


def concatenate(batches: Sequence[Frames]) -> Frames:
    """Joins batches of frames along time."""
    columns = zip(*batches, strict=True)
    return Frames(*(None if parts[0] is None else torch.cat(parts) for parts in columns))
