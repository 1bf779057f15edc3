"""The data set of procedural talking heads, with exact cameras, depth, normals and masks.

People, motion and cameras are random but smooth functions of a seed; `write_dataset` renders clips of them in
processes, which import no torch and so start quickly. World, cameras and labels as in training/camera.py. No
outside source: all shapes and colours are made here.
"""

import contextlib
import dataclasses
import functools
import io
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dnnlib.progress import follow
from dnnlib.scene import FOCAL
from dnnlib.util import UserError, atomic_write, explain_os_error, usable_cores
from dnnlib.video import IMAGE_TYPES, VIDEO_TYPES
from heads.identity import sample_identity
from heads.model import Frame, HeadModel
from heads.motion import sample_camera_angles, sample_motion_path
from training.data.archive import dataset_json, parallel, write_entry

DEPTH_SCALE = 10000  # 16-bit depth files contain distance x 10000, in scene units
FPS = 25.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSet:
    """What a data set shows; equal sets are equal to the byte."""

    people: int
    motions: int = 1  # clips of each person, each with its own motion and camera path
    frames: int  # per clip
    resolution: int  # pixels per side
    seed: int = 0  # selects people, motions and cameras
    focal: float = FOCAL  # focal length, image widths
    blink_rate: float = 1.0  # factor on the number of blinks per second
    camera_speed: float = 1.0  # factor on how far and fast cameras move within a clip


class Job(NamedTuple):
    """A clip to render."""

    index: int  # of the clip in the data set
    person: int  # seed of the identity
    motion: int  # seed of the motion
    labels: np.ndarray  # one camera per frame, float32 [T, 25]
    heads: HeadSet


class Clip(NamedTuple):
    """A rendered clip."""

    name: str
    files: list[tuple[str, bytes]]  # name, content
    labels: list[tuple[str, list[float]]]  # frame name, 25 numbers
    info: dict[str, str | float]


def clip_seed(seed: int, person: int, motion: int) -> int:
    """Returns the seed of a clip's motion and camera; that of motion 0 is also the seed of the person."""
    return int(np.random.SeedSequence([seed, person, motion]).generate_state(1)[0])


def sample_camera_path(seed: int, num_frames: int, focal: float = FOCAL, speed: float = 1.0) -> np.ndarray:
    """Samples a smooth, mostly frontal camera path: labels [T, 25], yaw to 45 and pitch to 20 degrees.

    `focal` is in image widths, `speed` a factor on how far and fast the camera moves.
    """
    import torch  # here: render processes do without it

    from training import camera

    yaw, pitch = torch.from_numpy(sample_camera_angles(seed, num_frames, speed)).unbind(dim=1)
    return camera.orbit_label(yaw, pitch, focal=focal).numpy()


def render_clip(job: Job) -> Clip:
    """Renders a clip; equal jobs give equal bytes."""
    model = HeadModel(sample_identity(job.person))
    name, files, labels = f'{job.index:06d}', [], []
    motions = sample_motion_path(job.motion, len(job.labels), FPS, job.heads.blink_rate)
    for i, (motion, label) in enumerate(zip(motions, job.labels, strict=True)):
        stem = f'{name}/{i:05d}'
        files += _encode(stem, model.render(motion, label, job.heads.resolution))
        labels.append((f'{stem}.png', [float(v) for v in label]))
    info = {'identity': job.person, 'motion': job.motion, 'blink_rate': job.heads.blink_rate}
    return Clip(name, files, labels, {'source': 'synthetic', **info})


def write_dataset(
    dest: str | os.PathLike[str], heads: HeadSet, workers: int | None = None, progress: bool = True
) -> None:
    """Renders clips of random people into a data set: a zip when `dest` ends with .zip, else a new folder.

    Equal arguments give equal bytes, whatever the number of workers. Nothing is left behind when it fails.

    Args:
        dest: file or folder to write.
        heads: what to render; the clips of a person follow each other.
        workers: processes, by default one per usable CPU core.
        progress: show a progress bar.

    Raises:
        UserError: if `dest` is a folder with files in it, it cannot be written, or a process dies.
    """
    dest = Path(dest)
    write = _write_zip if dest.suffix == '.zip' else _write_folder
    if dest.suffix.lower() in (*IMAGE_TYPES, *VIDEO_TYPES):
        raise UserError(f'{dest}: a data set is a .zip or a folder, not a file of images or videos')
    if dest.is_dir() and (dest.suffix == '.zip' or any(dest.iterdir())):
        raise UserError(f'{dest} is a folder that exists already; give another name or remove it')
    num_clips = heads.people * heads.motions
    jobs = (_job(heads, index) for index in range(num_clips))
    results = parallel(render_clip, jobs, min(workers or usable_cores(), num_clips))
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(results) as clips:  # here, not when and where memory is collected
            write(dest, follow(clips, num_clips, 'rendering', 'clip', progress), heads.resolution)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, dest)) from err


def _job(heads: HeadSet, index: int) -> Job:
    person, motion = divmod(index, heads.motions)
    seed = clip_seed(heads.seed, person, motion)
    labels = sample_camera_path(seed, heads.frames, heads.focal, heads.camera_speed)
    return Job(index, clip_seed(heads.seed, person, 0), seed, labels, heads)


def _encode(stem: str, frame: Frame) -> list[tuple[str, bytes]]:
    depth = np.round(frame.depth * DEPTH_SCALE).astype(np.uint16)
    normal = np.round((frame.normal * 0.5 + 0.5) * 255).astype(np.uint8)
    mask = frame.mask.astype(np.uint8) * 255
    images = {'.depth.png': depth, '.mask.png': mask, '.normal.png': normal, '.png': frame.image}
    return [(stem + suffix, _png(pixels)) for suffix, pixels in images.items()]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # run lengths alone: half the time of the default, files 6 % larger
    Image.fromarray(pixels).save(buffer, format='PNG', compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _write_zip(dest: Path, clips: Iterable[Clip], resolution: int) -> None:
    with atomic_write(dest) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        _write_files(functools.partial(write_entry, archive), clips, resolution)


def _write_folder(dest: Path, clips: Iterable[Clip], resolution: int) -> None:
    temporary = dest.with_name(f'.{dest.name}.{uuid.uuid4().hex}.tmp')

    def write(name: str, data: bytes) -> None:
        path = temporary / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    try:
        temporary.mkdir()
        _write_files(write, clips, resolution)
        os.replace(temporary, dest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(write: Callable[[str, bytes], None], clips: Iterable[Clip], resolution: int) -> None:
    labels, info = [], {}
    for clip in clips:
        for name, data in clip.files:
            write(name, data)
        labels += clip.labels
        info[clip.name] = clip.info
    write('dataset.json', dataset_json(resolution, FPS, labels, info))
