"""Clips with camera labels: reading, drawing pairs of frames and cameras, and the order of training.

A data set is a zip or a folder with `dataset.json` and one folder of images per clip; `dataset_tool.py` makes
them. Nothing here keeps a random state: every draw is a pure function of a seed and a position, so that a run
that was stopped at any clip continues as if it had not been. Times are in units of a span: frame i of a
window has t = i / (span - 1). Frames stay uint8 until they reach the device. Source: PV3D as released.
"""

import contextlib
import copy
import dataclasses
import io
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnnlib.config import BaseConfig, Configurable
from dnnlib.util import ConfigError, DataError, UserError
from training.camera import mirror_label
from training.data.files import IMAGE_FORMATS, FileStore, decode_image, read_index
from training.data.heldout import choose_heldout
from training.data.sampling import sample_distances, sample_indices, sample_times

_MAX_BAD = 0.01  # fraction of unreadable clips that training accepts
_MAX_REPLACED = 8  # unreadable clips in a row after which training gives up
_ORDER, _PAIR = 0, 1  # second word of the seeds, keeps the streams apart
_log = logging.getLogger(__name__)
Seed = int | tuple[int, ...]


class Draw(TypedDict):
    """T frames of one clip: a pair, or all of a span (with a leading batch axis in batches)."""

    frames: Tensor  # uint8 [T, 3, R, R]
    t: Tensor  # times in units of the span, float32 [T], increasing
    c: Tensor  # camera labels, float32 [T, 25]


class VideoDataset(Configurable):
    """Clips of a zip or folder. Safe to pickle and to fork; images are read when asked for.

    Raises:
        DataError: if the data cannot be used; the message names what is wrong and what to do.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Which data, and how pairs are drawn from them."""

        path: str  # zip or folder with dataset.json
        resolution: int | None = None  # pixels of a side; none = that of the data
        span: int = 16  # frames in which a pair is drawn; t = 1 at the last of them [PV3D 3]
        # of a draw: two [PV3D 3] | clip: all of a span | single: any one of the clip, which may have no other
        frames: Literal['pair', 'clip', 'single'] = 'pair'
        # span: two frames of a window of `span` [PV3D 3] | distances: 1, 2, 4 ... max_distance frames apart,
        # anywhere in a clip; times of fakes then are those of their cameras [StyleGAN-V]
        pairs: Literal['span', 'distances'] = 'span'
        max_distance: int = 32  # frames, a power of two; clips of one more have all distances [StyleGAN-V]
        distinct: bool = True  # draw again until the two frames differ [ours; released: false]
        mirror: bool = True  # mirror real clips (image and camera) with probability 1/2 [PV3D 3]
        mirror_fakes: bool = True  # mirror cameras for fakes likewise [ours; released: false]
        max_clips: int | None = None  # use only the first clips; none = all
        # clips of them that are never trained on and give no cameras to fakes: what tells learning from
        # memorising; the same for every seed of a run, spread over people [ours; StyleGAN2-ADA 3.1]
        heldout_clips: int = 0

        def __post_init__(self) -> None:
            if self.span < 2:
                raise ConfigError(f'span={self.span} must be at least 2 frames')
            if self.max_distance < 1 or self.max_distance & (self.max_distance - 1):
                raise ConfigError(f'max_distance={self.max_distance} must be a power of two')
            if self.max_clips is not None and self.max_clips < 1:
                raise ConfigError(f'max_clips={self.max_clips} must be at least 1, or none for all clips')
            if self.heldout_clips < 0:
                raise ConfigError(f'heldout_clips={self.heldout_clips} must not be negative')

    def __init__(self, config: Config) -> None:
        self.config = config
        index = read_index(config.path, single=config.frames == 'single')
        if index.problems:
            named = [f'{name or "(no clip)"}: {what}' for name, what in list(index.problems.items())[:5]]
            more = f'({len(index.problems)} bad clips); `dataset_tool.py check` lists all'
            raise DataError(f'{config.path}: {"; ".join(named)} {more}')
        self.names = index.clips[: config.max_clips]
        self.people = index.people[: len(self)]  # who is in each clip
        self.fps = index.fps
        starts = index.starts[: len(self.names) + 1]
        self._starts, self._counts = starts[:-1], np.diff(starts)
        self._cameras = torch.from_numpy(index.cameras[: starts[-1]])
        self.unreadable: dict[str, str] = {}  # clips that loaders have met, with reasons
        self._files = FileStore(config.path, index.files[: starts[-1]])
        self.resolution = index.resolution
        self._check_resolution()
        if config.heldout_clips >= len(self):
            raise DataError(
                f'{config.path}: dataset.heldout_clips={config.heldout_clips} must be below the {len(self)} '
                'clips that there are'
            )
        held = choose_heldout(self.people, config.heldout_clips)
        self._heldout = copy.copy(self)
        self._heldout._keep(held)
        self._keep(np.setdiff1d(np.arange(len(self)), held))

    def _keep(self, clips: np.ndarray) -> None:
        """Keeps only the clips of these indices."""
        self.names, self.people = ([x[i] for i in clips] for x in (self.names, self.people))
        self._starts, self._counts = self._starts[clips], self._counts[clips]

    @property
    def _whole(self) -> bool:
        """Whether frames are drawn from whole clips, not from windows of a span."""
        kind, pairs = self.config.frames, self.config.pairs
        return kind == 'single' or (kind == 'pair' and pairs == 'distances')

    def heldout(self) -> 'VideoDataset':
        """Returns the clips that are kept from training, as a data set; empty with heldout_clips = 0."""
        return self._heldout

    def _check_resolution(self) -> None:
        config, known = self.config, self.resolution
        if config.resolution not in (None, known):
            raise DataError(
                f'{config.path} holds {known}x{known} images, not {config.resolution}x{config.resolution}; '
                f'make the set again with --resolution {config.resolution}, or take another preset or network'
            )
        try:
            with Image.open(io.BytesIO(self._files.read(0)), formats=IMAGE_FORMATS) as image:
                size = image.size
        except Exception:  # as in decode_image: training accepts a few unreadable images
            return
        if size != (known, known):
            raise DataError(
                f'{config.path}: {self._files.name(0)} is {size[0]}x{size[1]} but dataset.json states '
                f'{known}x{known}; make the set again with dataset_tool.py pack'
            )

    def __len__(self) -> int:
        return len(self.names)

    def describe(self) -> str:
        """Returns one line: clips, frames, resolution."""
        counts = self._counts
        each = f'{counts.min()}' if counts.min() == counts.max() else f'{counts.min()} to {counts.max()}'
        size = f'{self.resolution}x{self.resolution}'
        held = f', {self.config.heldout_clips} more held out' if self.config.heldout_clips else ''
        frames = f'{counts.sum():,} frames ({each} a clip)'
        clips = '1 clip' if len(self) == 1 else f'{len(self):,} clips'
        return f'{clips}, {frames}, {size}, {self.config.path}{held}'

    def num_frames(self, clip: int | str) -> int:
        """Returns the number of frames of a clip, given by index or name."""
        return self._range(clip)[1]

    def clip_cameras(self, clip: int | str) -> Tensor:
        """Returns the camera labels [T, 25] of a clip, given by index or name."""
        start, count = self._range(clip)
        return self._cameras[start : start + count].clone()

    def focal(self) -> float:
        """Returns the median focal length of the cameras, in image widths."""
        return round(float(self._cameras[:, 16].median()), 4)

    def clip_frames(self, clip: int | str, frames: Sequence[int]) -> Tensor:
        """Decodes the given frames of a clip, uint8 [len(frames), 3, R, R].

        Raises:
            DataError: if a frame is missing, corrupted or of another size.
        """
        start, count = self._range(clip)
        if not all(0 <= i < count for i in frames):
            raise IndexError(f'frames {list(frames)} of clip {clip}, which has {count}')
        return torch.stack([self._decode(start + i) for i in frames])

    def draw(self, index: int, seed: Seed) -> Draw:
        """Draws frames of the given clip; a pure function of its arguments.

        They lie in a window of `span` frames at a uniform place in the clip. A shorter clip is one
        window: indices are spread over its frames, but t is still in units of the span. With
        pairs=distances the window is the whole clip, and t counts from its first frame.

        Raises:
            DataError: if a frame is missing, corrupted or of another size.
        """
        rng = np.random.default_rng((*_words(seed), index))
        where, t, mirrored = self._draw(rng, np.array([index]), self.config.mirror)
        frames = torch.stack([self._decode(i) for i in where[0]])
        c = self._cameras[where[0]]
        if mirrored[0]:
            frames, c = frames.flip(-1), mirror_label(c)
        return Draw(frames=frames, t=t[0], c=c)

    def sample_cameras(self, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """Draws camera labels [n, T, 25] for fakes, and the times [n, T] of the frames that they belong to.

        Each row is drawn as real frames are, from a random clip; nothing is decoded.
        """
        where, t, mirrored = self._draw(rng, rng.integers(len(self), size=n), self.config.mirror_fakes)
        c = self._cameras[torch.from_numpy(where)]
        return torch.where(torch.from_numpy(mirrored)[:, None, None], mirror_label(c), c), t

    def _draw(
        self, rng: np.random.Generator, clips: np.ndarray, mirror: bool
    ) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Draws rows of the frame table [n, T], their times [n, T] and whether to mirror [n]."""
        starts, totals = self._starts[clips], self._counts[clips]
        counts = totals if self._whole else np.minimum(totals, self.config.span)
        offsets = rng.integers(totals - counts + 1)
        places = self._places(rng, counts)
        t = torch.from_numpy((places / (self.config.span - 1)).astype(np.float32))
        mirrored = (rng.random(len(clips)) < 0.5) & mirror
        return (starts + offsets)[:, None] + places, t, mirrored

    def sample_times(self, rng: np.random.Generator, n: int, lattice: bool) -> Tensor:
        """Draws times [n, T] for fakes, independently of their cameras; see the function of this name."""
        if self.config.frames == 'clip':
            return torch.linspace(0, 1, self.config.span).expand(n, -1)
        times = sample_times(rng, n, self.config.span, self.config.distinct, lattice)
        if self.config.frames == 'pair':
            return times
        return times.gather(1, torch.from_numpy(rng.integers(2, size=(n, 1))))

    def _places(self, rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
        """Draws indices [n, T] of frames among the first `counts` [n] of a window."""
        if self.config.frames == 'clip':
            return np.arange(self.config.span) * counts[:, None] // self.config.span
        if self.config.frames == 'single':
            return rng.integers(counts)[:, None]
        if self._whole:
            return sample_distances(rng, counts, self.config.max_distance)
        return sample_indices(rng, counts, self.config.distinct)

    def _range(self, clip: int | str) -> tuple[int, int]:
        index = self.names.index(clip) if isinstance(clip, str) else range(len(self))[clip]
        return int(self._starts[index]), int(self._counts[index])

    def _decode(self, row: int) -> Tensor:
        image = decode_image(self._files.read(row), self._files.name(row), self.resolution)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def _words(seed: Seed) -> tuple[int, ...]:
    return (seed,) if isinstance(seed, int) else seed


def clip_order(seed: Seed, start: int, num_clips: int) -> Iterator[tuple[int, int]]:
    """Yields (k, clip index) for k = start, start + 1, ...; an epoch is a permutation."""
    k = start
    while True:
        epoch, position = divmod(k, num_clips)
        for clip in np.random.default_rng((*_words(seed), _ORDER, epoch)).permutation(num_clips)[position:]:
            yield k, int(clip)
            k += 1


def batches(
    dataset: VideoDataset,
    *,
    seed: Seed,
    start: int,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[Draw]:
    """Yields batches of pairs forever, each of which is a pure function of (seed, clips seen).

    All ranks together see the clips k = start, start + 1, ... in the order of `clip_order`; of every `batch`
    of them rank r gets the r-th of world_size equal parts. Neither world_size nor num_workers changes pairs.

    Args:
        dataset: source of the clips.
        seed: not negative; a run that reads several data sets tells them apart by a second number.
        start: clips seen before.
        batch: clips per iteration over all ranks, a multiple of world_size.
        rank, world_size: number of this process, and of processes.
        num_workers: processes that decode ahead of time; 0 decodes in this one.

    Raises:
        DataError: if more than 1 % of the clips, and more than one, cannot be read. Such a clip is named in
            the log once and replaced by the next one.
    """
    assert batch >= 1 and batch % world_size == 0
    loader = torch.utils.data.DataLoader(
        _Draws(dataset, seed),
        batch_sampler=_rank_order(clip_order(seed, start, len(dataset)), batch, rank, world_size),
        collate_fn=_collate,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(
            _words(seed)[0]
        ),  # else the loader would draw from the global one
    )
    return _watch(iter(loader), dataset)


def _watch(loader: Iterator[tuple[Draw | None, dict[str, str]]], dataset: VideoDataset) -> Iterator[Draw]:
    """Counts the clips that could not be read, over all workers, and stops when there are too many."""
    known = dataset.unreadable
    for pair, bad in loader:
        for name, reason in bad.items():
            if name not in known:
                _log.warning('clip %s is skipped, another takes its place: %s', name, reason)
        known.update(bad)
        if pair is None or len(known) > max(1, _MAX_BAD * len(dataset)):
            named = ', '.join(list(known)[:5]) + (', ...' if len(known) > 5 else '')
            raise DataError(
                f'{dataset.config.path}: {len(known)} of {len(dataset)} clips cannot be read ({named}); '
                f'training stops above {_MAX_BAD:.0%}: `dataset_tool.py check` lists them'
            )
        yield pair


class KilledWorkerError(UserError):
    """A process that loads data was killed."""


@contextlib.contextmanager
def killed_workers_explained() -> Iterator[None]:
    """Makes a loading process that was killed an error of the user.

    torch reports it by a signal, so in the middle of whatever runs then, not only where batches are taken.
    """
    try:
        yield
    except RuntimeError as err:
        if not re.search(r'DataLoader worker .*(killed by signal|exited unexpectedly)', str(err)):
            raise
        raise KilledWorkerError(
            'a process that loads data was killed, maybe because memory ran out; the same command continues '
            'from the newest checkpoint, with --workers 1 or 0 in less memory'
        ) from err


class _Draws(torch.utils.data.Dataset):
    """Maps (k, clip index) to the pair of draw k and the clips found unreadable, {name: reason}."""

    def __init__(self, dataset: VideoDataset, seed: Seed) -> None:
        self.dataset = dataset
        self.seed = _words(seed)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Draw | None, dict[str, str]]:
        k, clip = draw
        bad: dict[str, str] = {}
        for step in range(min(_MAX_REPLACED, len(self.dataset))):
            index = (clip + step) % len(self.dataset)
            try:
                return self.dataset.draw(index, (*self.seed, _PAIR, k)), bad
            except DataError as error:
                bad[self.dataset.names[index]] = str(error)
        return None, bad


def _rank_order(
    order: Iterator[tuple[int, int]], batch: int, rank: int, world_size: int
) -> Iterator[list[tuple[int, int]]]:
    part = batch // world_size
    while True:
        yield [next(order) for _ in range(batch)][rank * part : (rank + 1) * part]


def _collate(items: list[tuple[Draw | None, dict[str, str]]]) -> tuple[Draw | None, dict[str, str]]:
    bad = {name: reason for _, names in items for name, reason in names.items()}
    pairs = [pair for pair, _ in items]
    if any(pair is None for pair in pairs):
        return None, bad
    return Draw(**{key: torch.stack([pair[key] for pair in pairs]) for key in ('frames', 't', 'c')}), bad


def _start_worker(worker: int) -> None:
    """Keeps from a worker the signals that are for the trainer, which needs it to finish its step.

    Ctrl-C reaches a process group, so the worker leaves the group. Schedulers send SIGTERM to every process
    of a job: the worker obeys only a SIGTERM of its own trainer.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(trainer: int) -> None:
    """Ends this process when process `trainer` sends SIGTERM."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer:
        pass
    os._exit(0)  # torch would report another code as a failure
