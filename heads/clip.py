"""Renders one synthetic clip into encoded files: the work of the render processes (imports no torch)."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from heads.identity import sample_identity
from heads.model import Frame, HeadModel
from heads.motion import sample_motion_path

DEPTH_SCALE = 10000  # 16-bit depth files hold distance x 10000, in scene units


class Job(NamedTuple):
    """What to render."""

    index: int  # of the clip in the data set
    seed: int  # of identity, motion and camera
    labels: np.ndarray  # one camera per frame, float32 [T, 25]
    fps: float
    resolution: int


class Clip(NamedTuple):
    """One rendered clip."""

    name: str
    files: list[tuple[str, bytes]]  # name, content
    labels: list[tuple[str, list[float]]]  # frame name, 25 numbers
    info: dict[str, str | int]


def render_clip(job: Job) -> Clip:
    """Renders a clip; equal jobs give equal bytes."""
    model = HeadModel(sample_identity(job.seed))
    name, files, labels = f'{job.index:06d}', [], []
    motions = sample_motion_path(job.seed, len(job.labels), job.fps)
    for i, (motion, label) in enumerate(zip(motions, job.labels, strict=True)):
        stem = f'{name}/{i:05d}'
        files += _encode(stem, model.render(motion, label, job.resolution))
        labels.append((f'{stem}.png', [float(v) for v in label]))
    return Clip(name, files, labels, {'source': 'synthetic', 'identity': job.seed})


def _encode(stem: str, frame: Frame) -> list[tuple[str, bytes]]:
    depth = np.round(frame.depth * DEPTH_SCALE).astype(np.uint16)
    normal = np.round((frame.normal * 0.5 + 0.5) * 255).astype(np.uint8)
    mask = frame.mask.astype(np.uint8) * 255
    pictures = {'.depth.png': depth, '.mask.png': mask, '.normal.png': normal, '.png': frame.image}
    return [(stem + suffix, _png(pixels)) for suffix, pixels in pictures.items()]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format='PNG')
    return buffer.getvalue()
