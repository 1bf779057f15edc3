"""What is judged: a generator with its data, folders of videos, or a folder of stored views."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from metrics.base import Settings
from metrics.clip_source import ClipSource
from metrics.clips import DatasetClips, Encoded, GeneratedClips
from metrics.digests import dataset_digest, network_digest
from metrics.folder_clips import FolderClips
from metrics.views import FolderViews, GeneratedViews, ViewSource
from training.dataset import VideoDataset

_FPS = 25.0  # of pictures in folders
_EG3D_BIN = 1.05 / 47  # 48 samples from 2.25 to 3.3 scene units: of views whose network is not known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Where the items of the metrics come from; a source that there is not is None."""

    fakes: Callable[[int, int], ClipSource] | None = None  # (frames, count) -> generated videos
    reals: Callable[[int, int], ClipSource] | None = None  # (frames, count) -> real videos
    views: Callable[[int], ViewSource] | None = None  # count -> views of generated clips
    real_clips: int = 0  # different real videos that there are
    data: VideoDataset | None = None  # real clips with cameras
    bin_size: float = _EG3D_BIN  # distance of two samples along a ray, scene units
    facts: Mapping[str, Any]  # what stands in the results: files and their checksums


def network_subject(
    G: nn.Module,
    data: VideoDataset,
    settings: Settings,
    snapshot: str,
    kimg: float | None,
    keep: Path | None = None,
) -> Subject:
    """A generator in memory, compared with the data set, which also gives the cameras of its videos.

    Args:
        G: generator (G_ema) in eval mode, on the device of the settings.
        data: real clips.
        settings: see Settings.
        snapshot: name of the generator's file.
        kimg: thousand clips that it was trained on.
        keep: folder where the generated videos stay.
    """
    seed, protocol, renderer = settings.seed, settings.protocol, G.config.renderer
    cameras = [data.clip_cameras(i) for i in range(len(data))]

    def fakes(frames: int, count: int) -> ClipSource:
        source = GeneratedClips(G, cameras, frames, seed, count, protocol)
        return _encoded(source, settings, data.fps, keep)

    return Subject(
        fakes=fakes,
        reals=lambda frames, count: _encoded(DatasetClips(data, frames, seed, count), settings, data.fps),
        views=lambda count: GeneratedViews(G, seed, count, protocol),
        real_clips=len(data),
        data=data,
        bin_size=(renderer.ray_end - renderer.ray_start) / (renderer.depth_samples - 1),
        facts={
            'snapshot': snapshot,
            'kimg': kimg,
            'network_sha256': network_digest(G),
            'data': data.config.path,
            'data_sha256': dataset_digest(data.config.path),
            'real_clips': len(data),
        },
    )


def folder_subject(fake: str, real: str | None, settings: Settings) -> Subject:
    """Folders of videos: the generated ones and, for metrics that compare, the real ones."""

    def source(folder: str, seed: int | None) -> Callable[[int, int], ClipSource]:
        return lambda frames, count: _encoded(FolderClips(folder, frames, seed, count), settings, _FPS)

    real_clips = len(FolderClips(real, 1)) if real else 0
    return Subject(
        fakes=source(fake, None),
        reals=source(real, settings.seed) if real else None,
        real_clips=real_clips,
        facts={'fake': fake, 'real': real, 'real_clips': real_clips},
    )


def views_subject(folder: str) -> Subject:
    """A folder of stored views, so that other people's networks can be measured; see views.FolderViews."""
    return Subject(views=lambda count: FolderViews(folder, count), facts={'views': folder})


def _encoded(source: ClipSource, settings: Settings, fps: float, keep: Path | None = None) -> ClipSource:
    return source if settings.codec == 'none' else Encoded(source, settings.crf, fps, keep)
