"""Identities of aligned clips: face embeddings, pseudo-identities, at most two clips of each [PV3D A.3].

An embedding is a unit vector of a face recognition network of metrics.detectors (SFace, or ArcFace from a
file); the cosine of two is the similarity of two faces. Clips whose speaker is known keep that label; the
others are joined by agglomerative clustering with average linkage [Day & Edelsbrunner 1984].
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.cluster import hierarchy
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from metrics.detectors.face_alignment import align_faces
from metrics.detectors.registry import default_cache, load_detector
from preprocessing.from_videos.stages import Item, Stage, file_state
from preprocessing.from_videos.work_folder import WorkFolder

STEP = 2  # every second frame is looked at [PV3D A.3]
# Points of the 468-point mesh whose means are the five points of metrics.detectors.face_alignment: the
# person's right and left eye, tip of the nose, right and left corner of the mouth.
FIVE_POINTS = ((33, 133, 159, 145), (362, 263, 386, 374), (4,), (61,), (291,))
# Clips join at this mean similarity. Measured with SFace on 16 aligned clips of 15 people (heads turn by up
# to 50 degrees): clips of two people at most 0.38 (mean 0.13), two clips of one person 0.93, the first and
# last third of a clip at least 0.77; every threshold from 0.40 to 0.90 finds the 15 people. It is not higher
# because other light and another camera lower the similarity of one person. ArcFace has not been measured.
THRESHOLD = 0.5
_BATCH = 16  # faces at a time, bounds memory
_BLOCK = 1024  # rows of the matrix of similarities at a time


@functools.lru_cache(maxsize=1)
def load_recognizer(name: str, file: str | None) -> nn.Module:
    """Opens a face recognition network, once per process.

    Args:
        name: 'sface' or 'arcface'.
        file: FILE or FILE@sha256:HEX; none = the one of its package.
    """
    files = {name: file} if file else {}
    return load_detector(name, 'identity', files, default_cache(), 'cpu', False).network


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Reduces meshes to the five points that face recognition aligns by.

    Args:
        landmarks: x, y(, z) in pixels where 0 = left or top edge of pixel 0, [T, 468, 2 or 3].

    Returns:
        x, y in pixels where 0 = middle of pixel 0, [T, 5, 2].
    """
    means = [landmarks[:, list(indices), :2].mean(axis=1) for indices in FIVE_POINTS]
    return np.stack(means, axis=1) - 0.5


@torch.no_grad()
def embed_faces(frames: np.ndarray, points: np.ndarray, network: nn.Module) -> np.ndarray:
    """Embeds the faces of images.

    Args:
        frames: uint8 [N, H, W, 3].
        points: five points of each, as `five_points` gives them, [N, 5, 2].
        network: identity network of metrics.detectors.

    Returns:
        unit vectors, float32 [N, D].
    """
    device = next((t.device for t in [*network.parameters(), *network.buffers()]), torch.device('cpu'))
    images, where = torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(points).double()
    parts = [
        network(align_faces(some.to(device), at))
        for some, at in zip(images.split(_BATCH), where.split(_BATCH), strict=True)
    ]
    return nn.functional.normalize(torch.cat(parts).float(), dim=1).cpu().numpy()


@Stage(
    'embeddings',
    per='clip',
    needs=('align',),
    options=('recognizer',),
    paths=('recognizer_file',),
    torch=True,
    state=lambda item, options: file_state(options.recognizer_file),
)
def embeddings_stage(item: Item, options: Any) -> dict[str, Any]:
    """Embeds the faces of a clip; writes embeddings/CLIP.npz and returns what was looked at."""
    landmarks = item.work.landmarks(item.name)
    chosen = range(0, len(landmarks), STEP)
    network = load_recognizer(options.recognizer, options.recognizer_file)
    vectors = embed_faces(item.work.frames(item.name, chosen), five_points(landmarks[chosen]), network)
    file = item.work.write_arrays('embeddings', item.name, {'embeddings': vectors})
    return {'files': [file], 'frames': list(chosen), 'network': options.recognizer, 'step': STEP}


def mean_direction(vectors: np.ndarray) -> np.ndarray:
    """Returns the unit vector [D] of the mean of unit vectors [N, D]."""
    mean = vectors.astype(np.float64).mean(axis=0)
    return mean / np.linalg.norm(mean)


def cluster(embeddings: Mapping[str, np.ndarray], threshold: float) -> dict[str, int]:
    """Joins clips of the same face: average linkage of cosine distances, cut at 1 - threshold.

    A graph joins the clips that are at least as similar as the threshold. No cluster reaches beyond a
    connected part of it, because an average is at most its largest term, and average linkage only climbs. So
    each part is clustered by itself, with the same result, and 100000 clips fit into memory.

    Args:
        embeddings: clip -> mean unit vector [D].
        threshold: least average similarity (cosine) within a cluster's last merger.

    Returns:
        clip -> number of its cluster; 0 is that of the first clip in sorted order, and so on.
    """
    clips = sorted(embeddings)
    if not clips:
        return {}
    vectors = np.stack([embeddings[clip] for clip in clips]).astype(np.float64)
    keys: list[tuple[int, int]] = [(0, 0)] * len(clips)
    part_of = _connected(vectors, threshold)
    order = np.argsort(part_of, kind='stable')
    for rows in np.split(order, np.flatnonzero(np.diff(part_of[order])) + 1):
        inside = [0]
        if len(rows) > 1:
            tree = hierarchy.linkage(vectors[rows], method='average', metric='cosine')
            inside = hierarchy.fcluster(tree, 1 - threshold, criterion='distance')
        for row, number in zip(rows, inside, strict=True):
            keys[row] = int(part_of[row]), int(number)
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return {clip: numbers[key] for clip, key in zip(clips, keys, strict=True)}


def balance(
    clusters: Mapping[str, int], resolution: Mapping[str, float], limit: int = 2
) -> tuple[list[str], dict[str, str]]:
    """Keeps the clips of highest original resolution of each identity.

    Args:
        clusters: clip -> identity.
        resolution: clip -> pixels of the source that a side of its crop spans.
        limit: clips that an identity may have [PV3D A.3].

    Returns:
        clips that are kept, sorted, and clip -> reason for the others.
    """
    kept: list[str] = []
    rejected: dict[str, str] = {}
    by_identity: dict[int, list[str]] = {}
    for clip in sorted(clusters, key=lambda c: (-resolution[c], c)):
        by_identity.setdefault(clusters[clip], []).append(clip)
    for identity, clips in by_identity.items():
        kept += clips[:limit]
        better = ', '.join(f'{clip} ({resolution[clip]:.0f} pixels)' for clip in clips[:limit])
        for clip in clips[limit:]:
            rejected[clip] = (
                f'identity {identity} has {limit} clips of at least its resolution '
                f'({resolution[clip]:.0f} pixels): {better}'
            )
    return sorted(kept), dict(sorted(rejected.items()))


def people(identities: Iterable[int]) -> str:
    """Returns how many people there are, in words."""
    count = len(set(identities))
    return '1 person' if count == 1 else f'{count} people'


@Stage(
    'identities',
    per='all',
    needs=('sources', 'align', 'embeddings', 'verify'),
    options=('same_person', 'per_person'),
    here=True,
    note=lambda results: f' of {people(results["identities"]["clusters"].values())}',
)
def identities_stage(item: Item, options: Any) -> dict[str, Any]:
    """Groups the clips that have embeddings by person, and balances the groups.

    Clips whose speaker is known are not clustered.

    Returns:
        content of identities.json: {'clusters': {clip: number}, 'speakers': {number: label}, 'kept': [clip],
        'rejected': {clip: reason}, 'resolution': {clip: pixels of the source}, 'threshold', 'limit'}.
    """
    work, clips = item.work, sorted(item.origin['clips'])
    known = {clip: work.read(f'sources/{item.origin["clips"][clip]["video"]}')['speaker'] for clip in clips}
    speakers = {clip: label for clip, label in known.items() if label is not None}
    vectors = {c: work.arrays('embeddings', c)['embeddings'] for c in clips if c not in speakers}
    clusters = cluster({clip: mean_direction(v) for clip, v in vectors.items()}, options.same_person)
    labels = sorted(set(speakers.values()))
    first = max(clusters.values(), default=-1) + 1
    clusters |= {clip: first + labels.index(label) for clip, label in speakers.items()}
    resolution = {clip: _source_pixels(work, clip) for clip in clips}
    kept, rejected = balance(clusters, resolution, options.per_person)
    return {
        'clusters': clusters,
        'speakers': {str(first + i): label for i, label in enumerate(labels)},
        'kept': kept,
        'rejected': rejected,
        'resolution': resolution,
        'threshold': options.same_person,
        'limit': options.per_person,
    }


def _source_pixels(folder: WorkFolder, clip: str) -> float:
    """Returns how many pixels of the source a side of the crop spans."""
    size = folder.frames(clip, [0]).shape[1]
    return round(size / folder.read(f'align/{clip}')['upscale'], 1)


def _connected(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the part of the graph that each vector belongs to, [N]; edges = similarity of the threshold."""
    rows: list[Sequence[int]] = []
    columns: list[Sequence[int]] = []
    slack = 1e-9  # an edge too many does no harm
    for start in range(0, len(vectors), _BLOCK):
        near = vectors[start : start + _BLOCK] @ vectors.T >= threshold - slack
        row, column = np.nonzero(near)
        rows.append(row + start)
        columns.append(column)
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row), bool), (row, column)), shape=(len(vectors),) * 2)
    return connected_components(graph, directed=False)[1]
