"""What the stages do with one item: a video (`sources`, `shots`, `tracks`) or a clip (`align`, `cameras`).

Each is a small object that can be sent to a worker process, called with the name of the item, that reads from
the work folder what earlier stages left and returns the content of its JSON file. Networks are loaded once
per process; torch computes with one thread, so that results do not depend on the machine or the number of
workers.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.util import DataError, atomic_write
from dnnlib.video import video_frames
from preprocessing.dataset_files.pack import FORMATS
from preprocessing.from_videos import fetch, sources
from preprocessing.from_videos.shots import shots_result
from preprocessing.from_videos.stages import StageError, result_path
from preprocessing.from_videos.work_folder import WorkFolder, write_arrays

_SEEK_FRAMES = 50  # fewer frames before a clip are decoded


@dataclasses.dataclass(frozen=True)
class FetchWork:
    """Brings a listed video (stage `fetch`)."""

    folder: str  # where videos are kept
    download: bool  # False: only what is there is used

    def __call__(self, video: str) -> dict[str, Any]:
        """Returns {"path": file}."""
        return fetch.fetch(video, Path(self.folder), fetch.youtube if self.download else _absent)


@dataclasses.dataclass(frozen=True)
class SourceWork:
    """Examines a video, after cutting it out where it is a clip of a list (stage `sources`)."""

    workdir: str
    paths: dict[str, str]  # id -> file
    clips: dict[str, sources.Listed]  # id -> clip, where there is a list

    def __call__(self, video: str) -> dict[str, Any]:
        """Returns the entry of sources.json."""
        path, clip, entry = Path(self.paths[video]), self.clips.get(video), {}
        if clip is not None:
            entry = {'listed': dataclasses.asdict(clip)}
            if clip.box is not None or clip.frames is not None or clip.end_sec is not None or clip.start_sec:
                dest = Path(self.workdir, 'cuts', f'{video}.mp4')
                dest.parent.mkdir(exist_ok=True)
                entry['box'] = sources.cut_listed(path, clip, dest)
                entry['files'] = [f'cuts/{video}.mp4']
                path = dest
        try:
            facts = sources.examine(path)
        except DataError:
            if 'files' in entry:
                path.unlink()
            raise
        known = (
            {'start_sec': clip.start_sec, 'end_sec': clip.end_sec, 'speaker': clip.speaker} if clip else {}
        )
        empty = {'speaker': None, 'start_sec': None, 'end_sec': None, 'box': None}
        return {**empty, **known, **entry, **facts, 'id': video, 'path': os.path.abspath(path)}


@dataclasses.dataclass(frozen=True)
class ShotsWork:
    """Finds cuts (stage `shots`)."""

    workdir: str

    def __call__(self, video: str) -> dict[str, Any]:
        """Returns {"shots": [[first, end], ...]}."""
        return shots_result(read(self.workdir, 'sources', video)['path'])


@dataclasses.dataclass(frozen=True)
class TracksWork:
    """Follows the faces of a video (stage `tracks`)."""

    workdir: str
    min_frames: int
    face_size: float

    def __call__(self, video: str) -> dict[str, Any]:
        """Writes tracks/VIDEO.npz and returns {"tracks", "rejected", "files"}."""
        from preprocessing.from_videos.tracks import TrackOptions, track_video

        entry = read(self.workdir, 'sources', video)
        shots = read(self.workdir, 'shots', video)['shots']
        options = TrackOptions(min_frames=self.min_frames, min_size=self.face_size)
        with one_thread():
            arrays, result = track_video(entry['path'], shots, face_mesh(), options)
        if entry['box'] is not None:
            arrays, result = _listed_face(arrays, result, entry['box'])
        write_arrays(Path(self.workdir, 'tracks', f'{video}.npz'), arrays)
        return {**result, 'files': [f'tracks/{video}.npz']}


@dataclasses.dataclass(frozen=True)
class AlignWork:
    """Crops the frames of a clip (stage `align`)."""

    workdir: str
    clips: dict[str, tuple[str, int]]  # clip -> video, number of the track
    resolution: int
    sigma: float

    def __call__(self, clip: str) -> dict[str, Any]:
        """Writes align/CLIP/*.png and CLIP.npz, returns what the contents of align/CLIP.json are."""
        from preprocessing.from_videos.align import crop_transforms, transform_points, warp_frame

        video, k = self.clips[clip]
        entry, track = read(self.workdir, 'sources', video), read(self.workdir, 'tracks', video)['tracks'][k]
        name = f'landmarks_{k}'
        landmarks = WorkFolder(self.workdir).arrays('tracks', video, [name])[name].astype(np.float64)
        transforms = np.asarray(crop_transforms(landmarks, self.resolution, self.sigma), np.float64)
        scales = np.sqrt(np.abs(np.linalg.det(transforms[:, :, :2])))
        folder = Path(self.workdir, 'align', clip)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():  # of a run that was killed
            old.unlink()
        first, count = track['first'], track['frames']
        done = 0
        for i, frame in enumerate(_frames(entry, first, count)):
            picture = warp_frame(frame, transforms[i], self.resolution)
            with atomic_write(folder / f'{i:05d}.png') as file:
                Image.fromarray(picture).save(file, **FORMATS['png'])  # `pack` copies it
            done += 1
        if done != count:
            raise StageError(f'only {done} of {count} frames can be decoded a second time')
        points = transform_points(transforms, landmarks).astype(np.float32)
        write_arrays(folder.with_name(f'{clip}.npz'), {'landmarks': points})
        return {
            'video': video,
            'first': first,
            'frames': count,
            'fps': entry['fps'],
            'transform': transforms.tolist(),
            'landmarks': f'{clip}.npz',
            'upscale': float(scales.mean()),
            'files': [f'align/{clip}', f'align/{clip}.npz'],
        }


@dataclasses.dataclass(frozen=True)
class CamerasWork:
    """Estimates the camera labels of a clip (stage `cameras`)."""

    workdir: str
    resolution: int
    sigma: float
    deep3d: str | None  # folder of coefficients; none = from the landmarks

    def __call__(self, clip: str) -> dict[str, Any]:
        """Returns {"labels", "raw_labels", "residual"}."""
        from preprocessing.from_videos.cameras import estimate_cameras

        landmarks = WorkFolder(self.workdir).landmarks(clip).astype(np.float64)
        if self.deep3d is None:
            cameras = estimate_cameras(landmarks, self.resolution, self.sigma)
        else:
            cameras = self._from_coefficients(clip, len(landmarks))
        if not np.isfinite(cameras.labels).all():
            raise StageError('no finite camera can be estimated')
        tables = {'labels': cameras.labels.tolist(), 'raw_labels': cameras.raw_labels.tolist()}
        return {**tables, 'residual': cameras.residual}

    def _from_coefficients(self, clip: str, frames: int) -> Any:
        from preprocessing.from_videos.deep3d import coefficient_cameras, load_coefficients

        path = coefficients_of(self.deep3d or '', clip)
        if path is None:
            raise StageError('no coefficients of the clip in the folder of --deep3d', retry=True)
        angle, translation = load_coefficients(path)
        if len(angle) != frames:
            raise StageError(f'{frames} frames but {len(angle)} coefficients', retry=True)
        return coefficient_cameras(angle, translation, self.sigma)


@dataclasses.dataclass(frozen=True)
class OneThread:
    """Does the work of another with one thread of torch."""

    work: Callable[[str], dict[str, Any]]

    def __call__(self, item: str) -> dict[str, Any]:
        """Returns what the other returns."""
        with one_thread():
            return self.work(item)


def read(workdir: str, stage: str, item: str) -> dict[str, Any]:
    """Returns the result of an earlier stage."""
    return json.loads(result_path(Path(workdir), stage, item).read_bytes())


def coefficients_of(folder: str, clip: str) -> Path | None:
    """Returns the file or folder with the Deep3DFaceRecon coefficients of a clip; none = there is none."""
    named = [Path(folder, clip + suffix) for suffix in ('', '.mat', '.npz', '.json')]
    return next((path for path in named if path.exists()), None)


@functools.cache
def face_mesh() -> Any:
    """Returns the networks that find faces, loaded once per process."""
    from preprocessing.faces.mesh import FaceMesh

    return FaceMesh()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread: sums are then the same with any number of workers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _frames(entry: dict[str, Any], first: int, count: int) -> Iterator[np.ndarray]:
    """Yields frames [first, first + count) of a video of sources.json, without decoding all before them."""
    skipped, start_sec = first, 0.0
    if first > _SEEK_FRAMES and entry['pace'] is not None:
        begin, step = entry['pace']
        skipped, start_sec = 0, begin + (first - 0.5) * step
    elif first > _SEEK_FRAMES and 'times' in entry:
        before, at = entry['times'][first - 1 : first + 1]
        if before < at:  # damaged files have frames of the same time
            skipped, start_sec = 0, (before + at) / 2
    with contextlib.closing(video_frames(entry['path'], start_sec)) as frames:
        for frame, _ in itertools.islice(frames, skipped, skipped + count):
            yield frame


def _absent(video: str, folder: Path) -> None:
    raise StageError('not in the folder of --source: --download fetches what is missing', retry=True)


def _listed_face(
    arrays: dict[str, np.ndarray], result: dict[str, Any], box: list[float]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Keeps the tracks whose face lies in the box that the list gives."""
    kept, tracks, rejected = {}, [], list(result['rejected'])
    for k, track in enumerate(result['tracks']):
        left, top, right, bottom = track['box']
        x, y = (left + right) / 2, (top + bottom) / 2
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            for name in ('landmarks', 'scores'):
                kept[f'{name}_{len(tracks)}'] = arrays[f'{name}_{k}']
            tracks.append(track)
        else:
            rejected.append({'shot': track['shot'], 'reason': 'another face than the listed one'})
    return kept, {**result, 'tracks': tracks, 'rejected': rejected}
