"""What is measured: a generator with its data, folders of videos, or a folder of stored views."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dnnlib.util import UserError
from metrics.base import Settings
from metrics.records.digests import dataset_digest, network_digest
from metrics.sources.clips import DatasetClips, GeneratedClips, encoded, resized, save_clips
from metrics.sources.folders import Folder, FolderClips, is_dataset
from metrics.sources.items import Progress, Source
from metrics.sources.views import FolderViews, GeneratedViews
from training.data.dataset import VideoDataset
from training.networks.contract import VideoGenerator

_FPS = 25.0  # of images in folders without a rate

Clips = Callable[[int, int], Source]  # (frames, count) -> videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Where the items of the metrics come from; a missing source is None."""

    fakes: Clips | None = None  # generated videos
    reals: Clips | None = None  # real videos
    held: Clips | None = None  # the generated videos with a camera that stands still: only the head moves
    motions: Clips | None = None  # such videos, several in a row of one person
    frozen: Clips | None = None  # control: with heads that stand still: only the camera moves
    views: Callable[[int], Source] | None = None  # count -> views of generated clips
    real_clips: int = 0  # different real videos
    data: VideoDataset | None = None  # real clips with cameras
    bin_size: float | None = None  # distance of two samples along a ray, scene units; None = unknown
    seam: float = 15.0  # frames between knots of the motion path; of folders those of a span of 16
    encodes: bool = False  # whether the codec of the settings, or its absence, makes a difference
    facts: Mapping[str, Any]  # part of the results: files and their checksums
    # (folder, frames, count, progress) -> reasons of the failures: writes the generated videos
    save_videos: Callable[[str | Path, int, int, Progress], dict[int, str]] | None = None


def network_subject(
    G: VideoGenerator, data: VideoDataset, settings: Settings, snapshot: str, kimg: float | None
) -> Subject:
    """A generator in memory, compared with the data set, which also gives the cameras of its videos.

    Args:
        G: generator (G_ema) in eval mode, on the device of the settings.
        data: real clips.
        settings: see Settings.
        snapshot: name of the generator's file.
        kimg: thousand clips that it was trained on.
    """
    seed, protocol, renderer = settings.seed, settings.protocol, G.renderer
    cameras = [data.clip_cameras(i) for i in range(len(data))]
    moving = 'camera' if settings.clip_camera == 'held' else ''

    def clips(frames: int, count: int, still: str) -> GeneratedClips:
        made = GeneratedClips(G, cameras, frames, seed, count, protocol, still)
        return made.seen_by_mapping(settings.mapping_camera)

    def views(count: int) -> GeneratedViews:
        return GeneratedViews(G, seed, count, protocol).seen_by_mapping(settings.mapping_camera)

    def generated(still: str) -> Clips:
        return lambda frames, count: _encoded(clips(frames, count, still), settings, data.fps)

    def save_videos(folder: str | Path, frames: int, count: int, progress: Progress) -> dict[int, str]:
        if settings.codec == 'none':
            raise UserError('saved videos are encoded; leave --codec none out to save what is measured')
        made = clips(frames, count, moving)
        return save_clips(made, Path(folder, f'T{frames}'), settings.crf, data.fps, progress)

    return Subject(
        fakes=generated(still=moving),
        reals=_dataset_clips(data, settings),
        held=generated(still='camera'),
        motions=generated(still='person'),
        frozen=generated(still='head'),
        views=views if renderer else None,
        real_clips=len(data),
        data=data,
        bin_size=renderer and (renderer.ray_end - renderer.ray_start) / (renderer.depth_samples - 1),
        seam=G.knot * (G.config.span - 1),
        encodes=True,
        facts={
            'snapshot': snapshot,
            'kimg': kimg,
            'network_sha256': network_digest(G),
            **_data_facts(data),
            'resolution': G.config.resolution,
            **_codec_facts(settings, data.fps),
        },
        save_videos=save_videos,
    )


def folder_subject(
    fake: str | Path, real: str | Path | None, settings: Settings, data: VideoDataset | None = None
) -> Subject:
    """A folder of generated videos and, for metrics that compare, the real ones.

    Args:
        fake: folder of videos or of folders of images.
        real: such a folder, or a data set (zip or folder with dataset.json); optional.
        settings: see Settings.
        data: real side instead of `real`; its windows and frame rate are those of `network_subject`.

    Raises:
        UserError: when a folder cannot be used, or images of the two sides differ in size.
    """
    if real and is_dataset(real):
        data, real = VideoDataset.Config(path=str(real)).build(), None
    ours, theirs = Folder(fake), Folder(real) if real else None
    real_fps = data.fps if data else theirs.fps if theirs else None
    fps = ours.fps or real_fps or _FPS
    reals, facts = None, {'fake': str(fake), 'fake_sha256': ours.sha256, 'fake_videos': len(ours)}
    if data:
        reals, facts = _dataset_clips(data, settings), facts | _data_facts(data)
    elif theirs:
        reals = _folder_clips(theirs, settings, settings.seed, real_fps or fps)
        facts |= {'real': str(real), 'real_sha256': theirs.sha256, 'real_clips': len(theirs)}
    fakes = _folder_clips(ours, settings, None, fps)
    sizes = [side(1, 1).size for side in (fakes, reals) if side]
    if len(set(sizes)) > 1:
        raise UserError(
            f'{fake} holds images of {sizes[0]}x{sizes[0]}, but {data.config.path if data else real} of '
            f'{sizes[1]}x{sizes[1]}; bring both to one size with --resolution {min(sizes)}'
        )
    sides = {'fake_codec': ours, 'real_codec': theirs}
    facts |= {side: 'as stored' for side, folder in sides.items() if folder and not folder.has_images}
    encodes = data is not None or any(folder.has_images for folder in sides.values() if folder)
    codec = _codec_facts(settings, fps) if encodes else {'codec': 'none', 'crf': None}
    return Subject(
        fakes=fakes,
        reals=reals,
        real_clips=len(data or theirs or ()),
        encodes=encodes,
        facts={**facts, 'resolution': settings.resolution or ours.size, **codec},
    )


def views_subject(folder: str | Path, settings: Settings) -> Subject:
    """A folder of stored views, so that other people's networks can be measured; see views.FolderViews.

    Raises:
        UserError: when they cannot be used, or are of another protocol than the settings.
    """
    stored = FolderViews(folder)
    if stored.protocol not in (None, settings.protocol):
        raise UserError(
            f'{folder} holds views of the protocol {stored.protocol}, which cannot be measured as '
            f'{settings.protocol}; give --protocol {stored.protocol}'
        )
    return Subject(
        views=lambda count: FolderViews(folder, count),
        bin_size=stored.bin_size,
        facts={
            'views': str(folder),
            'views_sha256': stored.identity['files'],
            'views_files': len(stored),
            'views_protocol': stored.protocol,
            'resolution': stored.size,
        },
    )


def _dataset_clips(data: VideoDataset, settings: Settings) -> Clips:
    return lambda frames, count: _encoded(
        DatasetClips(data, frames, settings.seed, count), settings, data.fps
    )


def _folder_clips(folder: Folder, settings: Settings, seed: int | None, fps: float) -> Clips:
    return lambda frames, count: _encoded(FolderClips(folder, frames, seed, count), settings, fps)


def _encoded(source: Source, settings: Settings, fps: float) -> Source:
    coded = source if settings.codec == 'none' else encoded(source, settings.crf, fps)
    return coded if settings.resolution is None else resized(coded, settings.resolution)


def _data_facts(data: VideoDataset) -> dict[str, Any]:
    path = data.config.path
    return {'data': path, 'data_sha256': dataset_digest(path), 'real_clips': len(data)}


def _codec_facts(settings: Settings, fps: float) -> dict[str, Any]:
    """Returns how the generated videos are encoded, if they are."""
    return (
        {'codec': 'none'} if settings.codec == 'none' else {'codec': 'h264', 'crf': settings.crf, 'fps': fps}
    )
