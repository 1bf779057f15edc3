"""Where clips come from: a data set, a generator, a folder of videos; the H.264 round trip; two controls.

A source maps the number of an item to a clip, uint8 [T, H, W, 3], or says why there is none (ClipError):
nothing is dropped or replaced in silence. Its `identity`, plain JSON, says exactly which frames come. Item i
depends neither on how many items are asked for nor on the process that asks. Source: PV3D A.4 and its
released scripts.
"""

import errno
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib import video
from dnnlib.util import DataError, UserError, atomic_write, file_sha256
from dnnlib.video import ffmpeg_version, video_frames
from metrics.records.digests import claim_folder, dataset_digest, tensors_digest
from metrics.records.store import CHUNK
from metrics.sources import shooting
from metrics.sources.clip_source import (
    ClipError,
    ClipSource,
    checked,
    failures_of_content,
    nth_clip,
    window_start,
)
from metrics.sources.folders import FolderClips
from torch_utils import distributed as dist
from training.data.dataset import VideoDataset
from viz import rollout

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

    def name(self, i: int) -> str:
        """See ClipSource."""
        return self.dataset.names[self.group(i)]

    def group(self, i: int) -> int:
        """See ClipSource."""
        return nth_clip(self.seed, len(self.dataset), i)[0]

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        index, repeat = nth_clip(self.seed, len(self.dataset), i)
        start = window_start(self.seed, index, repeat, self.dataset.num_frames(index), self.frames)
        with failures_of_content(self.dataset.config.path):
            pictures = self.dataset.clip_frames(index, range(start, start + self.frames))
        return checked(pictures.permute(0, 2, 3, 1).numpy())


def dataset_cameras(dataset: VideoDataset) -> list[Tensor]:
    """Returns the camera labels [T_i, 25] of all clips."""
    return [dataset.clip_cameras(i) for i in range(len(dataset))]


class GeneratedClips:
    """Generated clips: item i has its own codes and the cameras of `frames` frames in a row of a real clip.

    The mapping sees the camera of frame 0 (MapT), or each frame's in a network conditioned so ('non'). Times
    run from 0 to 1, noise is constant, there is no truncation, rays are sampled at fixed places.

    'paper' rounds to uint8; 'released' truncates, and samples rays at the near ends of their bins.
    """

    moves = ''  # what alone moves; '' = head and camera

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
            **({'moves': self.moves} if self.moves else {}),
        }

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        """See ClipSource."""
        return f'seed {self.seed}, item {i}'

    def group(self, i: int) -> int:
        """See ClipSource."""
        return i

    def film(self, cameras: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Changes the cameras [T, 25] and times [T] of a clip; here not at all."""
        return cameras, times

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        rng = np.random.default_rng((self.seed, _CAMERAS, i))
        labels = self.cameras[rng.integers(len(self.cameras))]
        start = rng.integers(len(labels) - self.frames + 1)
        cameras, times = self.film(labels[start : start + self.frames], torch.linspace(0, 1, self.frames))
        codes = shooting.item_codes(self.G, self.seed, i)
        shot = shooting.shoot(self.G, codes, cameras, cameras[:1], times, self.options)
        if problem := shooting.nonfinite(shot):
            raise ClipError(problem)
        return checked(shooting.to_pictures(shot.image, self.protocol))


class HeldCamera(GeneratedClips):
    """The same clips with the camera of frame 0 all the time: what moves is the head."""

    moves = 'head'

    def film(self, cameras: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """See GeneratedClips."""
        return cameras[:1].expand(len(cameras), -1), times


class FrozenHead(GeneratedClips):
    """Control: the same clips with the time of frame 0 all the time; what moves is the camera."""

    moves = 'camera'

    def film(self, cameras: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """See GeneratedClips."""
        return cameras, times[:1].expand(len(times))


class _Changed:
    """The clips of another source, changed one by one."""

    def __init__(self, source: ClipSource) -> None:
        self.source, self.size = source, source.size

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        """See ClipSource."""
        return self.source.name(i)

    def group(self, i: int) -> int:
        """See ClipSource."""
        return self.source.group(i)


class Encoded(_Changed):
    """The H.264 round trip: each clip is written as a video and read again. Videos of a folder stay as are.

    Odd sizes grow by a row and a column, as in video.open_video. Put controls around it, not inside.
    """

    def __init__(self, source: ClipSource, crf: int, fps: float) -> None:
        """Wraps a source; see video.open_video for the quality `crf`, on which `fps` has an influence."""
        super().__init__(source)
        self.crf, self.fps = crf, fps
        self.applied = not isinstance(source, FolderClips) or source.folder.has_pictures  # to any clip at all
        self.size += self.size % 2 if self.applied else 0

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See ClipSource."""
        if not self.applied:
            return self.source.identity
        codec = {'name': 'h264', 'crf': self.crf, 'fps': self.fps, 'ffmpeg': ffmpeg_version()}
        return {'codec': codec, 'of': self.source.identity}

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        clip = self.source.clip(i)
        if isinstance(self.source, FolderClips) and self.source.is_video(i):
            return clip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'clip.mp4')
            video.write_video(path, clip, self.fps, self.crf)
            try:
                return np.stack([picture for picture, _ in video_frames(path)])
            except DataError as err:  # it was good when it was written
                raise OSError(errno.EIO, 'the encoded video cannot be read again', self.name(i)) from err


class Static(_Changed):
    """Control: the first frame of each clip, repeated."""

    def __init__(self, source: ClipSource) -> None:
        super().__init__(source)
        self.identity = {'control': 'static', 'of': source.identity}

    def clip(self, i: int) -> np.ndarray:
        """See ClipSource."""
        clip = self.source.clip(i)
        return np.repeat(clip[:1], len(clip), axis=0)


class Shuffled(_Changed):
    """Control: the frames of each clip in another order."""

    def __init__(self, source: ClipSource, seed: int) -> None:
        super().__init__(source)
        self.seed = seed
        self.identity = {'control': 'shuffled', 'seed': seed, 'of': source.identity}

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
    """Writes the clips of a source as NUMBER.mp4, those that are not there whole; processes share the work.

    NUMBER.sha256 beside each tells whether it still is what was written.

    Args:
        source: of clips.
        folder: made when missing; a file in it says what the videos are.
        crf: quality, see video.open_video.
        fps: frames per second.
        progress: gets 1 for each clip of this process.

    Returns:
        the reasons of the failures, by item.

    Raises:
        UserError: when the folder holds clips of another source, or cannot be written.
    """
    folder, failures = Path(folder), {}
    claim_folder(folder, 'clips.json', {'clips': source.identity, 'crf': crf, 'fps': fps})
    for i in range(len(source)):
        if i // CHUNK % dist.world_size() == dist.rank():
            path, note = folder / f'{i:05d}.mp4', folder / f'{i:05d}.sha256'
            try:
                if not _is_whole(path, note):
                    video.write_video(path, source.clip(i), fps, crf)
                    with atomic_write(note, 'w') as file:
                        file.write(_checksum_line(path))
            except ClipError as err:
                path.unlink(missing_ok=True)
                failures[i] = str(err)
            progress(1)
    return {i: reason for part in dist.gather_objects(failures) for i, reason in part.items()}


def _is_whole(path: Path, note: Path) -> bool:
    """Tells whether a video is there and as it was written; others of that name are written again."""
    try:
        return note.read_text() == _checksum_line(path)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _checksum_line(path: Path) -> str:
    return f'{file_sha256(path)}  {path.name}\n'  # as `sha256sum -c` reads it
