"""Where clips come from: a data set, a generator, a folder of videos; the H.264 round trip; two controls.

A source maps the number of an item to a clip, uint8 [T, H, W, 3], or says why there is none (ClipError):
nothing is dropped or replaced in silence. Its `identity`, plain JSON, says exactly which frames come. Item i
depends neither on how many items are asked for nor on the process that asks. Source: PV3D A.4 and its
released scripts.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.util import UserError
from dnnlib.video import video_frames
from metrics import shooting
from metrics.clip_source import (
    ClipError,
    ClipSource,
    checked,
    decoder_version,
    nth_clip,
    too_short,
    window_rng,
)
from metrics.digests import claim_folder, dataset_digest, tensors_digest
from metrics.feature_store import CHUNK
from metrics.folder_clips import FolderClips
from torch_utils import distributed as dist
from training import rollout, visualize
from training.dataset import VideoDataset
from training.dataset_files import DataError

_CAMERAS, _SHUFFLE = 103, 104  # second words of the seeds, keep streams apart


class DatasetClips:
    """Real clips: item i is a window of the i-th clip of a seeded permutation; further rounds, other windows.

    Windows lie anywhere in a clip with equal probability; frames are not mirrored. Windows of one clip differ
    as long as it has others. A clip that is too short is a failure.
    """

    def __init__(self, dataset: VideoDataset, frames: int, seed: int, count: int | None = None) -> None:
        """Takes `frames` consecutive frames of `count` clips; by default of each clip once."""
        self.dataset = dataset
        self.frames, self.seed, self.count = frames, seed, count or len(dataset)
        self.size = dataset.resolution

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See ClipSource; `distinct_clips` says how many there are to draw from."""
        return {
            'source': 'dataset',
            'data': dataset_digest(self.dataset.config.path),
            'distinct_clips': len(self.dataset),
            'resolution': self.size,
            'frames': self.frames,
            'seed': self.seed,
        }

    def __len__(self) -> int:
        return self.count

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        index, repeat = nth_clip(self.seed, len(self.dataset), i)
        name, places = self.dataset.names[index], self.dataset.num_frames(index) - self.frames + 1
        if places < 1:
            raise ClipError(too_short(name, places + self.frames - 1, self.frames))
        rng = window_rng(self.seed, index)
        start = int(rng.permutation(places)[repeat % places])
        try:
            pictures = self.dataset.clip_frames(index, range(start, start + self.frames))
        except DataError as err:
            raise ClipError(str(err)) from err
        return checked(pictures.permute(0, 2, 3, 1).numpy(), name)


def dataset_cameras(dataset: VideoDataset) -> list[Tensor]:
    """Returns the camera labels [T_i, 25] of all clips."""
    return [dataset.clip_cameras(i) for i in range(len(dataset))]


class GeneratedClips:
    """Generated clips: item i has its own codes and the cameras of `frames` frames in a row of a real clip.

    The mapping sees the camera of frame 0 (MapT), or each frame's in a network conditioned so ('non'). Times
    run from 0 to 1, noise is constant, there is no truncation, rays are sampled at fixed places.

    'paper' rounds to uint8; 'released' truncates, and samples rays at the near ends of their bins.
    """

    def __init__(
        self,
        G: nn.Module,
        cameras: Sequence[Tensor],
        frames: int,
        seed: int,
        count: int,
        protocol: str = 'paper',
        options: rollout.RenderOptions = rollout.DEFAULT_OPTIONS,
    ) -> None:
        """Prepares `count` clips.

        Args:
            G: generator in eval mode; must not change any more.
            cameras: labels of real clips [T_i, 25]; those of at least `frames` frames are used.
            frames: of a clip.
            seed: not negative.
            count: number of items.
            protocol: see above.
            options: how to render.

        Raises:
            UserError: when no real clip is long enough.
        """
        self.G, self.frames, self.seed, self.count, self.protocol = G, frames, seed, count, protocol
        self.options = shooting.protocol_options(G, protocol, options)
        self.size = G.config.resolution
        self.cameras = [labels for labels in cameras if len(labels) >= frames]
        if not self.cameras:
            raise UserError(
                f'none of the {len(cameras)} clips of the data has {frames} frames, whose cameras generated '
                'clips need; choose shorter clips or other data'
            )
        self.identity = {
            'source': 'generator',
            **shooting.network_identity(G, self.options),
            'cameras': tensors_digest((str(i), labels) for i, labels in enumerate(self.cameras)),
            'frames': frames,
            'seed': seed,
            'protocol': protocol,
        }

    def __len__(self) -> int:
        return self.count

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        rng = np.random.default_rng((self.seed, _CAMERAS, i))
        labels = self.cameras[rng.integers(len(self.cameras))]
        start = rng.integers(len(labels) - self.frames + 1)
        cameras, times = labels[start : start + self.frames], torch.linspace(0, 1, self.frames)
        codes = shooting.item_codes(self.G, self.seed, i)
        shot = shooting.shoot(self.G, codes, cameras, cameras[:1], times, self.options)
        name = f'seed {self.seed}, item {i}'
        if problem := shooting.nonfinite(shot):
            raise ClipError(f'{name}: {problem}')
        return checked(shooting.to_pictures(shot.image, self.protocol), name)


class Encoded:
    """The H.264 round trip: each clip is written as a video and read again. Videos of a folder stay as are.

    Odd sizes grow by a row and a column, as in visualize.open_video. Put controls around it, not inside.
    """

    def __init__(self, source: ClipSource, crf: int, fps: float, folder: Path | None = None) -> None:
        """Wraps a source.

        Args:
            source: of clips.
            crf: quality, see visualize.open_video.
            fps: of the videos; it has a small influence on the quality.
            folder: keeps the videos there as `save_clips` does, and reads those that are there already.
        """
        self.source, self.crf, self.fps, self.folder = source, crf, fps, folder
        self.size = source.size + source.size % 2
        if folder is not None:
            _claim(folder, source, crf, fps)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See ClipSource."""
        if isinstance(self.source, FolderClips) and not any(p.is_dir() for p in self.source.paths):
            return self.source.identity
        codec = {'name': 'h264', 'crf': self.crf, 'fps': self.fps, 'ffmpeg': decoder_version()}
        return {'codec': codec, 'of': self.source.identity}

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        if isinstance(self.source, FolderClips) and self.source.is_video(i):
            return self.source.clip(i)
        with contextlib.ExitStack() as stack:
            folder = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = _write(self.source, i, folder, self.crf, self.fps)
            return np.stack([picture for picture, _ in video_frames(path)])


class Static:
    """Control: the first frame of each clip, repeated."""

    def __init__(self, source: ClipSource) -> None:
        self.source, self.size = source, source.size
        self.identity = {'control': 'static', 'of': source.identity}

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        clip = self.source.clip(i)
        return np.repeat(clip[:1], len(clip), axis=0)


class Shuffled:
    """Control: the frames of each clip in another order."""

    def __init__(self, source: ClipSource, seed: int) -> None:
        self.source, self.seed, self.size = source, seed, source.size
        self.identity = {'control': 'shuffled', 'seed': seed, 'of': source.identity}

    def __len__(self) -> int:
        return len(self.source)

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        clip = self.source.clip(i)
        rng = np.random.default_rng((self.seed, _SHUFFLE, i))
        order = rng.permutation(len(clip))
        while len(clip) > 1 and (order == np.arange(len(clip))).all():
            order = rng.permutation(len(clip))
        return clip[order]


def save_clips(
    source: ClipSource,
    folder: str | Path,
    crf: int,
    fps: float,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[int, str]:
    """Writes the clips of a source as NUMBER.mp4, those that are not there yet; processes share the work.

    Args:
        source: of clips.
        folder: made when missing; a file in it says what the videos are.
        crf: quality, see visualize.open_video.
        fps: frames per second.
        progress: gets 1 for each clip of this process.

    Returns:
        the reasons of the failures, by item.

    Raises:
        UserError: when the folder holds clips of another source, or cannot be written.
    """
    folder, failures = Path(folder), {}
    _claim(folder, source, crf, fps)
    for i in range(len(source)):
        if i // CHUNK % dist.world_size() == dist.rank():
            try:
                _write(source, i, folder, crf, fps)
            except ClipError as err:
                failures[i] = str(err)
            progress(1)
    return {i: reason for part in dist.gather_objects(failures) for i, reason in part.items()}


def _write(source: ClipSource, i: int, folder: Path, crf: int, fps: float) -> Path:
    path = folder / f'{i:05d}.mp4'
    if not path.exists():
        visualize.write_video(path, source.clip(i), fps, crf)
    return path


def _claim(folder: Path, source: ClipSource, crf: int, fps: float) -> None:
    claim_folder(folder, 'clips.json', {'clips': source.identity, 'crf': crf, 'fps': fps})
