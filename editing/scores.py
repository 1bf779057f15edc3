"""Figures of a portrait: how near it is to its source, how it moves, what it looks like from the sides.

Images are compared as 8-bit RGB. Figures of identity are SFace's and need a face that the detector finds.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from editing.cameras import SIDE_YAWS_DEG, view
from editing.codes import Portrait
from editing.inputs import Views
from editing.objective import psnr
from editing.render import Take, render_take
from metrics.detectors.face_alignment import align_faces, find_faces, project_face_points
from metrics.detectors.registry import default_cache, load_detector
from metrics.detectors.vgg16 import Perceptual
from metrics.measures.geometry_truth import shrink
from training.networks.contract import RadianceGenerator
from viz.images import to_uint8
from viz.rollout import Frames, concatenate

# of the spread of depth after tuning, in units of that before; beyond it the head has collapsed
_RELIEF_LIMITS = (0.75, 1.25)
_INSIDE = 0.5  # of a pixel that the head covers, so that its depth counts
_OPAQUE = 0.9  # opacity of the head before tuning, and in the mean after it; backgrounds may have less

Scores = dict[str, Any]


def measure(
    G: RadianceGenerator, own: RadianceGenerator, portrait: Portrait, perceptual: Perceptual | None = None
) -> Scores:
    """Measures a portrait.

    Args:
        G: the network before tuning.
        own: the network of the portrait (`codes.own_network`).
        portrait: see Portrait.
        perceptual: gives a perceptual distance, too.

    Returns:
        plain values: `image` (figures of all frames), `motion` (of a video), `geometry`, `identity` (none
        where no face is found), `warnings`.
    """
    take = Take(portrait.ws, portrait.u, portrait.cameras)
    seen = concatenate(list(render_take(own, take)))
    before = concatenate(list(render_take(G, take)))
    source = portrait.images.permute(0, 2, 3, 1).numpy()
    shown = to_uint8(seen.image)
    scores: Scores = {'image': image_scores(source, shown, perceptual)}
    scores['geometry'] = geometry_scores(seen, before)
    if len(source) > 1:
        scores['motion'] = motion_scores(source, shown)
    scores['identity'] = identity_scores(own, portrait, torch.from_numpy(shown).permute(0, 3, 1, 2))
    return {**scores, 'warnings': warnings(scores['geometry'])}


def image_scores(source: np.ndarray, shown: np.ndarray, perceptual: Perceptual | None = None) -> Scores:
    """Compares frames, uint8 [T, H, W, 3]: PSNR in dB (mean over frames, worst frame), SSIM, LPIPS or VGG."""
    from skimage.metrics import structural_similarity

    square = ((source.astype(np.float64) - shown) ** 2).mean(axis=(1, 2, 3))
    decibels = 20 * math.log10(255) - 10 * np.log10(np.maximum(square, 1e-5))
    ssim = [structural_similarity(a, b, channel_axis=2) for a, b in zip(source, shown, strict=True)]
    scores = {'psnr': float(decibels.mean()), 'worst psnr': float(decibels.min())}
    scores['ssim'] = float(np.mean(ssim))
    if perceptual is not None:
        pairs = zip(
            *(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in (source, shown)), strict=True
        )
        near = [float(perceptual.distance(a[None], b[None])) for a, b in pairs]
        scores['lpips' if perceptual.linear else 'vgg distance'] = float(np.mean(near))
    return scores


@torch.no_grad()
def view_scores(
    own: RadianceGenerator, portrait: Portrait, views: Views, perceptual: Perceptual | None = None
) -> Scores:
    """Compares a portrait with other images of the same head, which the search need not have seen.

    Motion is that of each frame where there are as many images as frames in the portrait, otherwise that of
    the neutral frame.

    Args:
        own: the network of the portrait.
        portrait: see Portrait.
        views: the images.
        perceptual: as in `measure`.
    """
    count = len(views.cameras)
    u = portrait.u if count == len(portrait.u) else portrait.neutral.expand(count, -1)
    seen = concatenate(list(render_take(own, Take(portrait.ws, u, views.cameras))))
    source = views.images.permute(0, 2, 3, 1).numpy()
    scores = {'images': count, **image_scores(source, to_uint8(seen.image), perceptual)}
    if views.mask is None or not views.mask.any():
        return scores
    rows = views.mask.flatten(1).any(dim=1)
    wanted = views.images / 127.5 - 1
    scores['psnr in the head'] = float(psnr(seen.image[rows], wanted[rows], views.mask[rows]).mean())
    size = seen.depth.shape[-1]
    inside = shrink(views.mask, size) > _INSIDE
    depths = zip(seen.depth, shrink(views.depth, size, views.mask), inside, strict=True)
    errors = [depth_error(*x) for x in depths if x[2].any()]
    return scores | {'depth error': float(np.mean(errors)) if errors else None}


def depth_error(a: Tensor, b: Tensor, head: Tensor) -> float:
    """Returns the root mean square difference of depths in the head without its median, scene units."""
    difference = (a - b)[head]
    return float((difference - difference.median()).square().mean().sqrt())


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

    Of a video, also how steady the person is, see `steadiness`.

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
    faces = find_faces(portrait.images, yunet)
    rows = [i for i, points in enumerate(faces) if points is not None]
    if not rows:
        return None
    points = torch.stack([faces[i] for i in rows])
    source = sface(align_faces(portrait.images[rows], points))
    found = sface(align_faces(shown[rows], points))
    scores = {'found': _cosine(source, found), **steadiness(source, found, rows)}
    for yaw in SIDE_YAWS_DEG:
        cameras = view(yaw, G.config.focal).expand(len(rows), -1)
        side = concatenate(list(render_take(G, Take(portrait.ws, portrait.u[rows], cameras))))
        pixels = torch.from_numpy(to_uint8(side.image)).permute(0, 3, 1, 2)
        crops = align_faces(pixels, project_face_points(cameras, pixels.shape[-1]))
        scores[f'yaw {yaw:.0f}'] = _cosine(source, sface(crops))
    return {**scores, 'frames': len(rows)}


def steadiness(source: Tensor, found: Tensor, rows: Sequence[int]) -> Scores:
    """Returns TL-ID and TG-ID [Tzaban et al. 2022]: 1 = the person is as steady as in the source.

    They are the mean similarity of identity between neighbouring frames (local) and between all pairs of
    frames (global), of what was found divided by that of the source; none without such frames.

    Args:
        source, found: of unit length [N, D].
        rows: numbers of the frames.
    """
    if len(rows) < 2:
        return {}
    a, b = torch.triu_indices(len(rows), len(rows), 1)
    near = torch.tensor(rows)[b] - torch.tensor(rows)[a] == 1
    alike = [(x[a] * x[b]).sum(dim=1) for x in (found, source)]
    scores = {'TG-ID': float(alike[0].mean() / alike[1].mean())}
    if near.any():
        scores['TL-ID'] = float(alike[0][near].mean() / alike[1][near].mean())
    return scores


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
