"""What the people of a procedural data set look like, rendered exactly: the other side of every figure.

A data set of `dataset_tool.py synth` states who its people are, so that they can be shown in any motion
before any camera. All of it is rendered once for a data set and kept in a file.

K people, M motions, T times, Y yaws; images are uint8 [R, R, 3].
"""

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnnlib.progress import follow
from dnnlib.util import DataError, atomic_write
from heads.identity import sample_identity
from heads.model import HeadModel
from heads.motion import Motion, sample_motion_path
from metrics.records.digests import dataset_digest, json_digest
from training.camera import orbit_label
from training.data.archive import parallel
from training.data.dataset import VideoDataset
from training.data.sampling import sample_indices

TIMES = (0.0, 0.2, 7 / 15, 1.0)  # of the grid, in units of the span
YAWS_DEG = (-25, 0, 25)
FRONT = 1  # index of the frontal camera
_PITCH_RAD = 0.02
_VERSION = 2  # of what is rendered, part of the key of the file
_MOTIONS, _PORTRAITS, _PAIRS = 30, 31, 32  # purposes of random draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of the truth is rendered."""

    people: int = 16  # most people of the grid, the first of the data
    motions: int = 12  # of each of them, even: half is what networks are compared with, half stands for data
    portraits: int = 6  # frontal frames of everybody, each of another motion
    pairs: int = 128  # of frames of one clip


class Truth(NamedTuple):
    """Real images that networks are compared with."""

    grid: np.ndarray  # [K, M, T, Y, R, R, 3]; motions of each person are its own
    portraits: np.ndarray  # everybody from the front, mean of a few motions, float32 [P, R, R, 3]
    own: np.ndarray  # pairs of the data [N, 2, R, R, 3]
    own_cameras: np.ndarray  # [N, 2, 25]
    # the same people and motions along another person's path, then the first face before the second camera
    moved: np.ndarray  # [N, 3, R, R, 3]
    cameras: np.ndarray  # of the first two of them [N, 2, 25]
    times: np.ndarray  # of the pairs, in units of the span [N, 2]


class Speech(NamedTuple):
    """How the people of a data set move."""

    span: int  # frames of a training clip
    fps: float
    blink_rate: float

    def path(self, seed: int, frames: int | None = None) -> list[Motion]:
        """Returns the motion of a seed, by default for a span."""
        return sample_motion_path(seed, frames or self.span, self.fps, self.blink_rate)


class Shot(NamedTuple):
    """A frame to render."""

    motion: Motion
    label: np.ndarray  # camera [25]


class Job(NamedTuple):
    """All frames of a person."""

    person: int  # seed
    shots: list[Shot]
    resolution: int


class Pair(NamedTuple):
    """Two frames of a clip, and where else they are seen from."""

    person: int  # seed
    clip: int  # index in the data
    frames: np.ndarray  # indices [2]
    time: np.ndarray  # [2]
    own: np.ndarray  # cameras [2, 25]
    other: np.ndarray  # cameras of the other path [2, 25]
    motions: list[Motion]  # [2]


def load_truth(
    data: VideoDataset, span: int, cache: Path | None, workers: int, amounts: Amounts | None = None
) -> Truth:
    """Renders the truth of a data set, or reads what was rendered before.

    Args:
        data: data set of `dataset_tool.py synth`.
        span: frames of a training clip.
        cache: folder of the file; None = beside the data.
        workers: processes that render.
        amounts: how much.

    Raises:
        DataError: if the data set does not state who its people are.
    """
    amounts = amounts or Amounts()
    path = Path(data.config.path)
    key = [_VERSION, dataset_digest(path), span, dataclasses.asdict(amounts), TIMES, YAWS_DEG]
    file = (cache or path.resolve().parent) / f'truth-{path.stem}-{json_digest(key)[:12]}.npz'
    if not file.exists():
        truth = _render_truth(data, span, workers, amounts)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            np.savez(stream, **truth._asdict())
    with np.load(file) as arrays:
        return Truth(**{name: arrays[name] for name in Truth._fields})


def clip_facts(data: VideoDataset) -> list[dict[str, Any]]:
    """Returns what dataset.json states of each clip: at least `identity`, the seed of the person.

    Raises:
        DataError: if it does not.
    """
    path = Path(data.config.path)
    if path.is_dir():
        text = (path / 'dataset.json').read_bytes()
    else:
        with zipfile.ZipFile(path) as archive:
            text = archive.read('dataset.json')
    stated = json.loads(text).get('clips', {})
    facts = [stated.get(name, {}) for name in data.names]
    if not all(f.get('source') == 'synthetic' and isinstance(f.get('identity'), int) for f in facts):
        raise DataError(
            f'{path} does not state which procedural people it shows, so that they cannot be rendered; use a '
            'data set of `dataset_tool.py synth`'
        )
    return facts


def grid_cameras(focal: float) -> np.ndarray:
    """Returns the cameras [Y, 25] of the grid."""
    return orbit_label(np.radians(YAWS_DEG), _PITCH_RAD, focal=focal).numpy()


def render_job(job: Job) -> np.ndarray:
    """Renders all frames of a person, uint8 [S, R, R, 3]."""
    model = HeadModel(sample_identity(job.person))
    return np.stack([model.render(shot.motion, shot.label, job.resolution).image for shot in job.shots])


def _render_truth(data: VideoDataset, span: int, workers: int, amounts: Amounts) -> Truth:
    facts = clip_facts(data)
    people = list(dict.fromkeys(f['identity'] for f in facts))
    front, speech = grid_cameras(data.focal()), Speech(span, data.fps, facts[0].get('blink_rate', 1.0))
    pairs = list(_draw_pairs(data, facts, speech, amounts.pairs))
    jobs = []
    for index, person in enumerate(people):
        shots = list(_portrait_shots(person, speech, front[FRONT], amounts.portraits))
        for pair in (p for p in pairs if p.person == person):
            first, second = pair.motions
            seen = zip((first, second, first), pair.other[[0, 1, 1]], strict=True)
            shots += [Shot(motion, label) for motion, label in seen]
        if index < amounts.people:
            shots += _grid_shots(person, speech, front, amounts.motions)
        jobs.append(Job(person, shots, data.resolution))
    rendered = follow(
        parallel(render_job, jobs, min(workers, len(jobs))), len(jobs), 'rendering people', 'person'
    )
    portraits, grid, moved = [], [], {}
    for person, images in zip(people, rendered, strict=True):
        portraits.append(images[: amounts.portraits].mean(axis=0, dtype=np.float32))
        mine = [i for i, pair in enumerate(pairs) if pair.person == person]
        end = amounts.portraits + 3 * len(mine)
        triples = images[amounts.portraits : end].reshape(len(mine), 3, *images.shape[1:])
        moved |= dict(zip(mine, triples, strict=True))
        if len(grid) < amounts.people:
            shape = (amounts.motions, len(TIMES), len(YAWS_DEG), *images.shape[1:])
            grid.append(images[end:].reshape(shape))
    own = [data.clip_frames(p.clip, p.frames.tolist()).permute(0, 2, 3, 1).numpy() for p in pairs]
    return Truth(
        grid=np.stack(grid),
        portraits=np.stack(portraits),
        own=np.stack(own),
        own_cameras=np.stack([p.own for p in pairs]),
        moved=np.stack([moved[i] for i in range(len(pairs))]),
        cameras=np.stack([p.other for p in pairs]),
        times=np.stack([p.time for p in pairs]),
    )


def _grid_shots(person: int, speech: Speech, cameras: np.ndarray, motions: int) -> Iterator[Shot]:
    """Yields motions x times x yaws of a person, motions of its own."""
    for i in range(motions):
        path = speech.path(_seed(_MOTIONS, person, i))
        for time in TIMES:
            motion = path[round(time * (speech.span - 1))]
            yield from (Shot(motion, label) for label in cameras)


def _portrait_shots(person: int, speech: Speech, label: np.ndarray, count: int) -> Iterator[Shot]:
    for i in range(count):
        yield Shot(speech.path(_seed(_PORTRAITS, person, i))[speech.span // 2], label)


def _draw_pairs(
    data: VideoDataset, facts: list[dict[str, Any]], speech: Speech, count: int
) -> Iterator[Pair]:
    """Draws pairs of frames as training does, spread over the clips, with the path of another person."""
    rng = np.random.default_rng(_PAIRS)
    people = [f['identity'] for f in facts]
    # in random order, since discriminators compare neighbours of a batch with each other
    for clip in rng.permutation(np.arange(max(count, len(data))) % len(data))[:count].tolist():
        others = [j for j, person in enumerate(people) if person != people[clip]] or [clip]
        other = others[rng.integers(len(others))]
        length = min(data.num_frames(clip), data.num_frames(other))
        window = min(length, speech.span)
        places = sample_indices(rng, np.array([window]), True)[0]
        frames = rng.integers(length - window + 1) + places
        path = speech.path(_motion_seed(facts, clip), data.num_frames(clip))
        yield Pair(
            person=people[clip],
            clip=clip,
            frames=frames,
            time=places.astype(np.float32) / (speech.span - 1),
            own=data.clip_cameras(clip)[frames].numpy(),
            other=data.clip_cameras(other)[frames].numpy(),
            motions=[path[k] for k in frames],
        )


def _motion_seed(facts: list[dict[str, Any]], clip: int) -> int:
    """Returns the seed of a clip's motion, or a new one where the data does not state it."""
    fact = facts[clip]
    if 'motion' in fact:
        return fact['motion']
    alone = sum(f['identity'] == fact['identity'] for f in facts) == 1
    return fact['identity'] if alone else _seed(_PAIRS, fact['identity'], clip)


def _seed(purpose: int, *keys: int) -> int:
    return int(np.random.SeedSequence([purpose, *keys]).generate_state(1)[0])
