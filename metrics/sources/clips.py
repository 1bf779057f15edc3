"""Clips of a data set and of a generator, and the H.264 round trip [PV3D A.4 and its released scripts]."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from dnnlib import video
from dnnlib.util import UserError
from metrics.records.digests import claim_folder, dataset_digest, json_digest, tensors_digest
from metrics.sources import shooting
from metrics.sources.folders import FolderClips
from metrics.sources.items import (
    Changed,
    Progress,
    Source,
    checked,
    nth_clip,
    save_items,
    skips_bad_content,
    window_start,
)
from training.data.dataset import VideoDataset
from training.networks.contract import Codes, VideoGenerator

MOTIONS = 4  # of each person, in videos that show several
_CAMERAS = 103  # second word of the seeds, keeps streams apart


class DatasetClips(Source):
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
        """See Source; `distinct_clips` = how many there are to draw from."""
        return {
            'source': 'dataset',
            'data': dataset_digest(self.dataset.config.path),
            'distinct_clips': len(self.dataset),
            'clips': json_digest(self.dataset.names),  # not all of the data, where some are held out
            'resolution': self.size,
            'frames': self.frames,
            'seed': self.seed,
        }

    def name(self, i: int) -> str:
        """See Source."""
        return self.dataset.names[self.group(i)]

    def group(self, i: int) -> int:
        """See Source."""
        return nth_clip(self.seed, len(self.dataset), i)[0]

    def person(self, i: int) -> int:
        """See Source; the number of the first clip of the person."""
        return self.dataset.people.index(self.dataset.people[self.group(i)])

    def item(self, i: int) -> np.ndarray:
        """See Source."""
        index, repeat = nth_clip(self.seed, len(self.dataset), i)
        start = window_start(self.seed, index, repeat, self.dataset.num_frames(index), self.frames)
        with skips_bad_content():
            images = self.dataset.clip_frames(index, range(start, start + self.frames))
        return checked(images.permute(0, 2, 3, 1).numpy())


class GeneratedClips(shooting.Generated):
    """Generated clips: item i has its own codes and the cameras of `frames` frames in a row of a real clip.

    The mapping sees the camera of frame 0 (MapT), or each frame's in a network conditioned so ('non'). Times
    run from 0 to 1, in clips longer than the training span on at its pace; noise is constant, nothing is
    truncated, rays are sampled at fixed places.
    """

    def __init__(
        self,
        G: VideoGenerator,
        cameras: Sequence[Tensor],
        frames: int,
        seed: int,
        count: int,
        protocol: str = 'paper',
        still: Literal['', 'camera', 'head', 'person'] = '',
    ) -> None:
        """Prepares `count` clips.

        Args:
            G: see Generated, as seed, count and protocol.
            cameras: labels of real clips [T_i, 25]; those of at least `frames` frames are used.
            frames: of a clip.
            seed: not negative.
            count: number of items.
            protocol: 'paper' or 'released'.
            still: what stays as in frame 0 of the same clips: the camera, so that only the head moves, or (a
                control) the head; or the camera, and who it is, in MOTIONS clips in a row.

        Raises:
            UserError: when no real clip is long enough.
        """
        super().__init__(G, seed, count, protocol)
        self.frames, self.still = frames, still
        self.cameras = [labels for labels in cameras if len(labels) >= frames]
        if not self.cameras:
            raise UserError(
                f'none of the {len(cameras)} clips of the data has {frames} frames, whose cameras generated '
                'clips need; choose shorter clips or other data'
            )
        digest = tensors_digest((str(i), labels) for i, labels in enumerate(self.cameras))
        self.identity |= {'cameras': digest, 'frames': frames, 'still': still}

    def item(self, i: int) -> np.ndarray:
        """See Source."""
        rng = np.random.default_rng((self.seed, _CAMERAS, self.person(i)))
        labels = self.cameras[rng.integers(len(self.cameras))]
        start = rng.integers(len(labels) - self.frames + 1)
        cameras, end = labels[start : start + self.frames], (self.frames - 1) / (self.G.config.span - 1)
        times = torch.linspace(0, max(1.0, end), self.frames)
        if self.still in ('camera', 'person'):
            cameras = cameras[:1].expand(len(cameras), -1)
        elif self.still == 'head':
            times = times[:1].expand(len(times))
        return self.shoot(i, cameras, times)[0]

    def person(self, i: int) -> int:
        """See Source; the number of the first item that shows the person."""
        return i - i % MOTIONS if self.still == 'person' else i

    def codes(self, i: int) -> Codes:
        """See Generated."""
        return super().codes(i)._replace(z_a=super().codes(self.person(i)).z_a)


def encoded(source: Source, crf: int, fps: float) -> Source:
    """Returns the clips of a source as they are when written as an H.264 video and read again.

    Videos of a folder stay as they are. Odd sizes grow by a row and a column. Put controls around it, not
    inside. See video.open_video for the quality `crf`, on which `fps` has an influence.
    """
    files = source if isinstance(source, FolderClips) else None
    if files and not files.folder.has_images:
        return source

    def round_trip(clip: np.ndarray, i: int) -> np.ndarray:
        if files and files.is_video(i):
            return clip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'clip.mp4')
            video.write_video(path, clip, fps, crf)
            return np.stack([image for image, _ in video.video_frames(path)])

    codec = {'name': 'h264', 'crf': crf, 'fps': fps, 'ffmpeg': video.ffmpeg_version()}
    return Changed(source, round_trip, {'codec': codec}, source.size + source.size % 2)


def resized(source: Source, size: int) -> Source:
    """Returns the clips of a source as squares of `size` pixels, by an antialiased Lanczos filter."""

    def resize(clip: np.ndarray, _: int) -> np.ndarray:
        images = map(PIL.Image.fromarray, clip)
        return np.stack([np.asarray(x.resize((size, size), PIL.Image.Resampling.LANCZOS)) for x in images])

    return Changed(source, resize, {'resized': size}, size)


def save_clips(source: Source, folder: Path, crf: int, fps: float, progress: Progress) -> dict[int, str]:
    """Writes the clips of a source as NUMBER.mp4, those that are missing; processes share the work.

    A file in the folder describes the videos. Returns the reasons of the failures, by item.

    Raises:
        UserError: when the folder holds clips of another source, or of other options.
    """
    claim_folder(folder, 'clips.json', {'clips': source.identity, 'crf': crf, 'fps': fps})

    def save(i: int) -> None:
        path = folder / f'{i:05d}.mp4'
        if not path.exists():
            video.write_video(path, source.item(i), fps, crf)

    return save_items(len(source), save, progress)
