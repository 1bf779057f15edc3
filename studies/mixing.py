"""Style mixing: what of a head the first K blocks of the synthesis decide (PV3D figure 7).

The codes w of the first K blocks come from another head. What changes says what a layer there can change,
motion layers among them.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from metrics.base import exact_network, standard_error
from metrics.detectors.face_alignment import align_faces, project_face_points
from metrics.detectors.registry import Detector
from metrics.measures.consistency import OPAQUE
from metrics.plotting import Curve
from torch_utils.misc import seeded_generator
from training.camera import front_label
from training.networks.contract import Codes, VideoGenerator
from viz.images import enlarge, to_uint8
from viz.rollout import Frames, concatenate, map_codes, render_frames
from viz.sheets import contact_sheet

TITLES = {
    'identity': 'identity, 1 - cosine',
    'pixels': 'pixels, gray levels of 255',
    'depth': 'depth, scene units',
}
_CODES = 35  # purpose of random draws
_TIME = 0.0  # of all images: the frame that motion starts from
_TILE = 64  # pixels per side, at least


class Mixing(NamedTuple):
    """What was found for P pairs; the columns are K = 0, 1, ..., all blocks, then the other head itself."""

    images: np.ndarray  # uint8 [P, C, H, W, 3]
    distances: dict[str, np.ndarray]  # to the head itself, by the names of TITLES [P, C]; nan = not measured


def mixed_ws(ws: Tensor, other: Tensor, block_ws: tuple[int, ...]) -> Tensor:
    """Puts another head's codes into the first K blocks, for every K, then everywhere.

    Args:
        ws: of the head [1, num_ws, w_dim].
        other: of the other head, alike.
        block_ws: rows that the first 1, 2, ... blocks use.

    Returns:
        [len(block_ws) + 2, num_ws, w_dim]; the first is the head, the last the other one. Between them the
        last skip output and super-resolution keep the head's code.
    """
    counts = (0, *block_ws, ws.shape[1])
    return torch.cat([torch.cat([other[:, :n], ws[:, n:]], dim=1) for n in counts])


def mix(G: VideoGenerator, pairs: int, seed: int, recognizer: Detector | None) -> Mixing:
    """Mixes pairs of heads from the front.

    Args:
        G: generator in eval mode.
        pairs: how many.
        seed: of the codes.
        recognizer: identity network, on the device of G; None = no distance of identity.

    Raises:
        UserError: if the network has no blocks to mix in.
    """
    if not G.block_ws:
        raise UserError(f'a network of the kind {G.config.kind} has no blocks whose codes could be mixed')
    draws = seeded_generator('cpu', seed, _CODES)
    images, distances = [], []
    for _ in range(pairs):
        frames, camera = _mixed_frames(G, G.draw_codes(2, draws))
        images.append(to_uint8(frames.image))
        distances.append(_distances(frames, camera, recognizer))
    names = distances[0]
    return Mixing(np.stack(images), {n: np.stack([d[n] for d in distances]) for n in names})


def curves(mixing: Mixing) -> list[Curve]:
    """Returns the mean distances against K; their level is the distance of the other head."""
    found = []
    for name, values in mixing.distances.items():
        known = [column[np.isfinite(column)] for column in values.T]
        means = [float(c.mean()) if len(c) else np.nan for c in known]
        errors = [standard_error(c) for c in known]
        at, level = list(range(len(means) - 1)), means[-1]
        found.append(Curve(TITLES[name], at, means[:-1], errors[:-1], level, 'another head'))
    return found


def sheet(images: np.ndarray) -> np.ndarray:
    """Draws pairs [P, C, H, W, 3] as rows, K as columns."""
    labels = [f'K = {k}' for k in range(images.shape[1] - 1)] + ['other']
    return contact_sheet([enlarge(row, _TILE) for row in images], col_labels=labels)


def _mixed_frames(G: VideoGenerator, drawn: Codes) -> tuple[Frames, Tensor]:
    """Renders the mixtures of two heads with the motion of the first; also returns the camera [1, 25]."""
    own, other = (Codes(*(z[i : i + 1] for z in drawn)) for i in (0, 1))
    camera, time = front_label(G.config.focal)[None], torch.tensor([_TIME])
    ws = mixed_ws(*(map_codes(G, codes, camera, time) for codes in (own, other)), G.block_ws)
    rows = camera.expand(len(ws), -1), time.expand(len(ws))
    return concatenate(list(render_frames(G, own, ws, *rows))), camera


def _distances(frames: Frames, camera: Tensor, recognizer: Detector | None) -> dict[str, np.ndarray]:
    """Returns the distances [C] of frames to the first of them."""
    image = frames.image.clamp(-1, 1)
    found = {'pixels': (image - image[:1]).abs().mean(dim=(1, 2, 3)) * 127.5}
    if frames.depth is not None:
        seen = (frames.opacity > OPAQUE) & (frames.opacity[:1] > OPAQUE)
        difference = (frames.depth - frames.depth[:1]).abs()
        found['depth'] = (difference * seen).sum(dim=(1, 2, 3)) / seen.sum(dim=(1, 2, 3))  # nan: none opaque
    if recognizer is not None:
        pixels = torch.from_numpy(to_uint8(image)).permute(0, 3, 1, 2)
        points = project_face_points(camera, pixels.shape[-1]).expand(len(pixels), -1, -1)
        crops = align_faces(pixels, points).to(next(recognizer.network.buffers()).device)
        vectors = torch.nn.functional.normalize(exact_network(recognizer.network, crops).double().cpu())
        found = {'identity': 1 - vectors @ vectors[0], **found}
    return {name: x.double().numpy() for name, x in found.items()}
