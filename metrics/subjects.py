"""What is judged: a generator with its data, folders of videos, or a folder of stored views."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from metrics.base import Settings
from metrics.clips import (
    ClipSource,
    DatasetClips,
    FolderClips,
    GeneratedClips,
    dataset_digest,
    network_digest,
)
from metrics.views import FolderViews, GeneratedViews, ViewSource
from training.dataset import VideoDataset

_FPS = 25.0  # of folders
EG3D_BIN = 1.05 / 47  # 48 samples from 2.25 to 3.3 scene units: of views whose network is not known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Where the items of the metrics come from; a source that there is not is None."""

    fakes: Callable[[int, int], ClipSource] | None = None  # (frames, count) -> generated videos
    reals: Callable[[int, int], ClipSource] | None = None  # (frames, count) -> real videos
    views: Callable[[int], ViewSource] | None = None  # count -> views of generated clips
    data: VideoDataset | None = None  # real clips with cameras
    bin_size: float = EG3D_BIN  # distance of two samples along a ray, scene units
    facts: Mapping[str, Any]  # what stands in the results: files and their checksums


def network_subject(
    G: nn.Module, data: VideoDataset, settings: Settings, snapshot: str, kimg: float | None
) -> Subject:
    """A generator in memory, compared with the data set, which also gives the cameras of its videos.

    Args:
        G: generator (G_ema) in eval mode, on the device of the settings.
        data: real clips.
        settings: see Settings.
        snapshot: name of the generator's file.
        kimg: thousand clips that it was trained on.
    """
    seed, protocol, renderer = settings.seed, settings.protocol, G.config.renderer
    return Subject(
        fakes=lambda frames, count: GeneratedClips(G, data, frames, seed, count, protocol),
        reals=lambda frames, count: DatasetClips(data, frames, seed, count),
        views=lambda count: GeneratedViews(G, seed, count, protocol),
        data=data,
        fps=data.fps,
        bin_size=(renderer.ray_end - renderer.ray_start) / (renderer.depth_samples - 1),
        facts={
            'snapshot': snapshot,
            'kimg': kimg,
            'network_sha256': network_digest(G),
            'data': data.config.path,
            'data_sha256': dataset_digest(data),
        },
    )


def folder_subject(fake: str, real: str | None, settings: Settings) -> Subject:
    """Folders of videos: the generated ones and, for metrics that compare, the real ones."""
    seed = settings.seed
    return Subject(
        fakes=lambda frames, count: FolderClips(fake, frames, None, count),
        reals=(lambda frames, count: FolderClips(real, frames, seed, count)) if real else None,
        facts={'fake': fake, 'real': real},
    )


def views_subject(folder: str) -> Subject:
    """A folder of stored views, so that other people's networks can be measured; see views.FolderViews."""
    return Subject(views=lambda count: FolderViews(folder, count), facts={'views': folder})
