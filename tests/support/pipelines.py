"""Stand-ins for the face parts of the pipeline, and what a run left."""

import hashlib
from pathlib import Path

import numpy as np

from preprocessing.from_videos import align, cameras, identities, stage_work, tracks
from preprocessing.from_videos.cameras import Cameras
from preprocessing.from_videos.pipeline import Options
from training.camera import orbit_label


def faces_of_ramps(path, shots, mesh, options):
    """Stands in for tracks: a face per shot, at a place that depends on the video; plain green has none."""
    del mesh
    frames = [frame for frame, _ in stage_work.video_frames(path)]
    arrays, kept, rejected = {}, [], []
    for shot, (first, end) in enumerate(shots):
        if frames[first][..., 0].max() < 60:
            rejected.append({'shot': shot, 'reason': 'no face in any frame'})
        elif end - first < options.min_frames:
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


class FakeEmbedWork:
    """Stands in for embeddings: the mean colour of the first picture says who it is."""

    def __init__(self, workdir, recognizer):
        self.workdir, self.recognizer = workdir, recognizer

    def __call__(self, clip):
        work = identities.WorkFolder(self.workdir)
        mean = work.frames(clip, [0]).mean(axis=(0, 1, 2)) - 100.0
        count = len(work.frame_files(clip))
        vectors = np.tile(mean / np.linalg.norm(mean), (count, 1)).astype(np.float32)
        identities.write_arrays(Path(self.workdir, 'embeddings', f'{clip}.npz'), {'embeddings': vectors})
        return {'files': [f'embeddings/{clip}.npz'], 'frames': list(range(count)), 'network': 'x', 'step': 1}


class FakeRecognizer:
    def __init__(self, name, files):
        del name, files

    def load(self):
        pass


def replace(patch):
    patch.setattr(tracks, 'track_video', faces_of_ramps)
    patch.setattr(stage_work, 'face_mesh', lambda: None)
    patch.setattr(
        align, 'crop_transforms', lambda points, size, sigma: np.tile(np.eye(3)[:2], (len(points), 1, 1))
    )
    patch.setattr(cameras, 'estimate_cameras', orbit_cameras)
    patch.setattr(identities, 'EmbedWork', FakeEmbedWork)
    patch.setattr(identities, 'Recognizer', FakeRecognizer)


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
