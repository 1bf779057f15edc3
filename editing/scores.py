"""Figures of a portrait: how near it is to its source, how it moves, what it looks like from the sides.

Images are compared as 8-bit RGB. Figures of identity are SFace's and need a face that the detector finds.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from editing.cameras import SIDE_YAWS_DEG, view
from editing.codes import Portrait
from editing.render import Take, render_take
from metrics.detectors.face_alignment import align_faces, find_faces, project_face_points
from metrics.detectors.registry import default_cache, load_detector
from training.networks.contract import RadianceGenerator
from viz.images import to_uint8
from viz.rollout import Frames, concatenate

# of the spread of depth after tuning, in units of that before; beyond it the head has collapsed
_RELIEF_LIMITS = (0.75, 1.25)
_OPAQUE = 0.9  # opacity of the head before tuning, and in the mean after it; backgrounds may have less

Scores = dict[str, Any]


def measure(G: RadianceGenerator, own: RadianceGenerator, portrait: Portrait) -> Scores:
    """Measures a portrait.

    Args:
        G: the network before tuning.
        own: the network of the portrait (`codes.own_network`).
        portrait: see Portrait.

    Returns:
        plain values: `image` (figures of all frames), `motion` (of a video), `geometry`, `identity` (none
        where no face is found), `warnings`.
    """
    take = Take(portrait.ws, portrait.u, portrait.cameras)
    seen = concatenate(list(render_take(own, take)))
    before = concatenate(list(render_take(G, take)))
    source = portrait.images.permute(0, 2, 3, 1).numpy()
    shown = to_uint8(seen.image)
    scores: Scores = {'image': image_scores(source, shown), 'geometry': geometry_scores(seen, before)}
    if len(source) > 1:
        scores['motion'] = motion_scores(source, shown)
    scores['identity'] = identity_scores(own, portrait, torch.from_numpy(shown).permute(0, 3, 1, 2))
    return {**scores, 'warnings': warnings(scores['geometry'])}


def image_scores(source: np.ndarray, shown: np.ndarray) -> Scores:
    """Compares frames, uint8 [T, H, W, 3]: PSNR in dB (mean over frames, worst frame) and SSIM."""
    from skimage.metrics import structural_similarity

    square = ((source.astype(np.float64) - shown) ** 2).mean(axis=(1, 2, 3))
    psnr = 20 * math.log10(255) - 10 * np.log10(np.maximum(square, 1e-5))
    ssim = [structural_similarity(a, b, channel_axis=2) for a, b in zip(source, shown, strict=True)]
    return {'psnr': float(psnr.mean()), 'worst psnr': float(psnr.min()), 'ssim': float(np.mean(ssim))}


def motion_scores(source: np.ndarray, shown: np.ndarray) -> Scores:
    """Compares the changes from frame to frame, uint8 [T, H, W, 3], in grey levels.

    Returns:
        `source`, `found`: mean absolute change; `kept`: their ratio; `error`: mean absolute difference of the
        changes; that of a still is `source`.
    """
    a, b = (np.diff(x.astype(np.float64), axis=0) for x in (source, shown))
    amounts = {'source': float(np.abs(a).mean()), 'found': float(np.abs(b).mean())}
    kept = amounts['found'] / amounts['source'] if amounts['source'] else None
    return {**amounts, 'kept': kept, 'error': float(np.abs(a - b).mean())}


def geometry_scores(seen: Frames, before: Frames) -> Scores:
    """Compares depth and opacity with those of the network before tuning, where that is opaque."""
    inside = before.opacity > _OPAQUE
    relief = [spread(frames.depth[inside]) for frames in (seen, before)]
    opacity = float(seen.opacity[inside].mean()) if inside.any() else 0.0
    ratio = relief[0] / relief[1] if relief[1] else None
    return {'relief': relief[0], 'relief before tuning': relief[1], 'ratio': ratio, 'opacity': opacity}


def spread(depth: Tensor) -> float:
    """Returns the standard deviation of depths, scene units; 0 for none."""
    return float(depth.std(correction=0)) if len(depth) else 0.0


def identity_scores(G: RadianceGenerator, portrait: Portrait, shown: Tensor) -> Scores | None:
    """Returns cosines of SFace, means over frames: of the source with what was found, and with its sides.

    Args:
        G: network of the portrait.
        portrait: see Portrait.
        shown: frames that were found, uint8 [T, 3, H, W].
    """
    look = {'files': {}, 'cache_dir': default_cache(), 'device': 'cpu', 'offline': True}
    try:
        sface = load_detector('sface', 'identity', **look).network
        yunet = load_detector('yunet', 'faces', **look).network
    except UserError:
        return None  # the packages are optional
    found = find_faces(portrait.images, yunet)
    rows = [i for i, points in enumerate(found) if points is not None]
    if not rows:
        return None
    points = torch.stack([found[i] for i in rows])
    source = sface(align_faces(portrait.images[rows], points))
    scores = {'found': _cosine(source, sface(align_faces(shown[rows], points)))}
    for yaw in SIDE_YAWS_DEG:
        cameras = view(yaw, G.config.focal).expand(len(rows), -1)
        side = concatenate(list(render_take(G, Take(portrait.ws, portrait.u[rows], cameras))))
        pixels = torch.from_numpy(to_uint8(side.image)).permute(0, 3, 1, 2)
        crops = align_faces(pixels, project_face_points(cameras, pixels.shape[-1]))
        scores[f'yaw {yaw:.0f}'] = _cosine(source, sface(crops))
    return {**scores, 'frames': len(rows)}


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dim=1).mean())


def warnings(geometry: Scores) -> list[str]:
    """Returns sentences about what looks wrong."""
    found = []
    low, high = _RELIEF_LIMITS
    if geometry['ratio'] is None or not low <= geometry['ratio'] <= high:
        found.append('tuning has changed the depth of the head much: look at the side views, tune less')
    if geometry['opacity'] < _OPAQUE:
        found.append('the head is partly transparent: look at the side views, tune less')
    return found
