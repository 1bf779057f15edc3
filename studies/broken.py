"""Which heads look like nothing in the data: distances of lite0 features to the nearest real frame."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.progress import follow
from dnnlib.util import atomic_write
from metrics.detectors.registry import default_cache, load_detector
from metrics.records.digests import dataset_digest, json_digest
from studies import figures
from studies.truth import Truth, clip_facts
from training.data.dataset import VideoDataset

_FRAMES = 1024  # of the data, to which the nearest is looked for
_VERSION, _PURPOSE = 2, 34
_BATCH = 64  # images at a time


class Seen(NamedTuple):
    """What is known of the data."""

    reference: np.ndarray  # features of frames of the data [1024, D]
    distances: np.ndarray  # to the nearest of them, of the same people seen from elsewhere [N]
    between: np.ndarray  # of each of them to the nearest of another person, no order [1024]


def features(images: np.ndarray, device: torch.device) -> np.ndarray:
    """Returns the lite0 features [N, D] of images [N, 3, R, R] in [-1, 1], with progress."""
    network = load_detector('lite0', 'image', {}, default_cache(), device, offline=True).network
    batches = torch.from_numpy(images).mul(127.5).add(127.5).round().to(torch.uint8).split(_BATCH)
    with torch.no_grad():
        looked = follow(batches, len(batches), 'features of images', 'part')
        return torch.cat([network(pixels.to(device)).float().cpu() for pixels in looked]).numpy()


def features_of_data(data: VideoDataset, truth: Truth, cache: Path | None, device: torch.device) -> Seen:
    """Computes them, or reads what was computed before; cache: folder of the file, None = beside the data."""
    path = Path(data.config.path)
    key = json_digest([_VERSION, dataset_digest(path), truth.moved.shape])
    file = (cache or path.resolve().parent) / f'lite0-{path.stem}-{key[:12]}.npz'
    if not file.exists():
        rng = np.random.default_rng(_PURPOSE)
        clips = rng.integers(len(data), size=_FRAMES)
        frames = [data.clip_frames(int(k), [int(rng.integers(data.num_frames(int(k))))]) for k in clips]
        reference = features(torch.cat(frames).numpy() / np.float32(127.5) - 1, device)
        moved = np.moveaxis(truth.moved[:, :2], -1, -3).reshape(-1, *frames[0].shape[1:])
        other = features(moved / np.float32(127.5) - 1, device)
        people = np.array([fact['identity'] for fact in clip_facts(data)])[clips]
        distances = figures.nearest_distance(other, reference)
        seen = Seen(reference, distances, distance_between(reference, people))
        with atomic_write(file) as stream:
            np.savez(stream, **seen._asdict())
    with np.load(file) as arrays:
        return Seen(**{name: arrays[name] for name in Seen._fields})


def distance_between(features: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Returns the distances [N], in any order, of features [N, D] to the nearest of another person [N]."""
    groups = [people == person for person in np.unique(people)]
    if len(groups) < 2:
        return np.zeros(0)
    return np.concatenate([figures.nearest_distance(features[g], features[~g]) for g in groups])
