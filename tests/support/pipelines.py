"""Stand-ins for the face parts of the pipeline, and what a run left."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from dnnlib.video import video_frames
from preprocessing.from_videos import align, deep3d, identities, report, tracks
from preprocessing.from_videos.cameras import Cameras
from preprocessing.from_videos.pipeline import Options
from training.camera import orbit_label


def faces_of_ramps(path, shots, mesh, min_frames, min_size):
    """Stands in for tracks: a face per shot, at a place that depends on the video; plain green has none."""
    del mesh, min_size
    frames = [frame for frame, _ in video_frames(path)]
    arrays, kept, rejected = {}, [], []
    for shot, (first, end) in enumerate(shots):
        if frames[first][..., 0].max() < 60:
            rejected.append({'shot': shot, 'reason': 'no face in any frame'})
        elif end - first < min_frames:
            rejected.append({'shot': shot, 'reason': f'face only in {end - first} frames'})
        else:
            points = np.zeros((end - first, 468, 3), np.float32)
            points[..., :2] = np.random.default_rng(0).uniform(16, 48, (468, 2))
            arrays[f'landmarks_{len(kept)}'] = points
            arrays[f'scores_{len(kept)}'] = np.ones(end - first, np.float32)
            kept.append({'shot': shot, 'first': first, 'frames': end - first, 'box': [16, 16, 48, 48]})
    return arrays, {'tracks': kept, 'rejected': rejected}


def orbit_cameras(landmarks, size, sigma):
    del size, sigma
    labels = np.array([orbit_label(0.01 * i, 0.1).tolist() for i in range(len(landmarks))])
    return Cameras(labels, labels, 1.0)


def mean_colours(frames, points, network):
    """Stands in for embeddings: the mean colour of an image is that of a person."""
    del points, network
    means = frames.mean(axis=(1, 2)) - 100.0
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def replace(patch):
    patch.setattr(tracks, 'track_video', faces_of_ramps)
    patch.setattr(tracks, 'FaceMesh', lambda: None)
    patch.setattr(
        align, 'crop_transforms', lambda points, size, sigma: np.stack([np.eye(3)[:2]] * len(points))
    )
    patch.setattr(deep3d, 'estimate_cameras', orbit_cameras)
    patch.setattr(identities, 'load_recognizer', lambda name, file: None)
    patch.setattr(identities, 'embed_faces', mean_colours)
    patch.setattr(report, 'draw_histograms', lambda charts: '')  # takes seconds


def work_slowly(address, folder):
    """Runs a Dask worker with the stand-ins; a file NUMBER.pid shows that this process crops a clip."""
    from distributed.cli.dask_worker import main

    replace(pytest.MonkeyPatch())
    transforms = align.crop_transforms

    def slowly(points, size, sigma):
        Path(folder, f'{os.getpid()}.pid').touch()
        time.sleep(1)
        return transforms(points, size, sigma)

    align.crop_transforms = slowly
    main([address, '--no-nanny', '--nthreads', '1', '--no-dashboard', '--death-timeout', '60'])


def options(videos, tmp_path, **change):
    return Options(str(videos), str(tmp_path / 'x.zip'), str(tmp_path / 'w'), 64, **change)


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def contents(folder):
    files = [p for p in sorted(Path(folder).rglob('*')) if p.is_file() and p.name != '.lock']
    return {p.relative_to(folder).as_posix(): digest(p) for p in files}


def made(folder):
    """When the results of each stage were written."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in Path(folder).rglob('*.json')}
