"""What a person is found for: frames and cameras of an image, a video, or a clip of a data set.

Images and videos as they come from a camera go through the detection, alignment and camera estimation of
`preprocessing`; a network whose cameras have another focal length sees the middle of that crop.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import DataError, UserError, file_sha256
from dnnlib.video import IMAGE_TYPES, VIDEO_TYPES
from metrics.measures.geometry_truth import TruthReader
from preprocessing.one_face import align_image, align_video, known_labels, narrowed, read_aligned
from training.data.dataset import VideoDataset
from viz.images import resize

_CLIP = re.compile(r'(?P<path>.+?):(?P<clip>\w+)(?::(?P<frame>\d+))?')


class Source(NamedTuple):
    """Frames of one person."""

    name: str  # stem of files about it
    images: Tensor  # uint8 [T, 3, R, R]
    cameras: Tensor  # [T, 25]
    fps: float
    facts: dict[str, Any]  # where it is from, plain values
    photo: bool = False  # its cameras are estimates of a real camera's
    sound: Path | None = None  # file whose sound belongs to the frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Which frames of a source are used."""

    first: int = 0
    frames: int | None = None  # none = all


def open_source(text: str, resolution: int, focal: float, piece: Piece) -> Source:
    """Opens an image, a video, or DATASET:CLIP[:FRAME].

    Args:
        text: as the user wrote it.
        resolution: of the result.
        focal: focal length of the network's cameras, image widths.
        piece: frames of a video or clip.

    Raises:
        UserError: if it is none of these, or shows no face that can be used.
    """
    if _CLIP.fullmatch(text) and not Path(text).exists():
        return clip_source(text, resolution, focal, piece)
    path = Path(text)
    if not path.is_file():
        raise UserError(f'{text} is not a file; give an image, a video, or a clip as DATASET.zip:0')
    facts = {'source': path.name, 'sha256': file_sha256(path)}
    labels, sound = known_labels(path), path if path.suffix.lower() in VIDEO_TYPES else None
    if labels is not None:
        found = read_aligned(path, labels, resolution, focal, piece.first, piece.frames)
    elif path.suffix.lower() in IMAGE_TYPES:
        found = align_image(path, resolution, focal)
    elif path.suffix.lower() in VIDEO_TYPES:
        found = align_video(path, resolution, focal, piece.first, piece.frames)
    else:
        known = ', '.join([*IMAGE_TYPES, *VIDEO_TYPES])
        raise UserError(f'{text} is neither an image nor a video by its name; known are {known}')
    images, labels = as_planes(found.images, resolution), torch.from_numpy(found.labels)
    facts |= {'note': found.note, 'first frame': piece.first}
    return Source(path.stem, images, labels, found.fps, facts, True, sound)


def clip_source(text: str, resolution: int, focal: float, piece: Piece) -> Source:
    """Opens DATASET:CLIP or DATASET:CLIP:FRAME; a longer focal length sees the middle of it.

    Args:
        text: as the user wrote it.
        resolution: of the result.
        focal: of the result, image widths.
        piece: frames; a FRAME is one by itself.

    Raises:
        UserError: if there is no such data set, clip or frame, or it sees too little.
    """
    path, clip, frame = _CLIP.fullmatch(text).groups()
    data = VideoDataset.Config(path=path).build()
    known = data.names[int(clip)] if clip.isdecimal() and int(clip) < len(data) else clip
    if known not in data.names:
        raise UserError(f'{path} has no clip {clip}; it has {len(data)}, the first is {data.names[0]}')
    count = data.num_frames(known)
    piece = piece if frame is None else Piece(first=int(frame), frames=1)
    rows = list(range(count))[piece.first :][: piece.frames]
    if not rows:
        last = f'its {count} frames are 0 to {count - 1}'
        raise UserError(f'clip {known} of {path} has no frame {piece.first}; {last}')
    images = data.clip_frames(known, rows).permute(0, 2, 3, 1).numpy()
    cameras = data.clip_cameras(known)[rows]
    if not math.isclose(cameras[0, 16], focal, rel_tol=1e-3):
        images, labels = narrowed(images, cameras.numpy(), resolution, focal, text)
        cameras = torch.from_numpy(labels)
    facts = {'source': Path(text).name, 'clip': known, 'first frame': rows[0]}
    stem = '-'.join([Path(path).stem, known.replace('/', '_'), *([frame] if frame else [])])
    return Source(stem, as_planes(images, resolution), cameras, data.fps, facts)


class Views(NamedTuple):
    """Other images of a head, for comparison."""

    images: Tensor  # uint8 [T, 3, R, R]
    cameras: Tensor  # [T, 25]
    depth: Tensor | None  # distance along the unit ray, scene units [T, 1, R, R]; none = not known
    mask: Tensor | None  # fraction of the pixel that the head covers [T, 1, R, R]


def open_views(text: str, resolution: int, focal: float) -> Views:
    """Opens DATASET:CLIP or DATASET:CLIP:FRAME, with depth and mask where the data set has them.

    Depth and mask are those of whole images: without its border a clip is compared by its images alone.

    Raises:
        UserError: as `clip_source`, and for anything else.
    """
    if not _CLIP.fullmatch(text):
        raise UserError(
            f'{text} is not a clip of a data set; give DATASET.zip:0, or one frame as DATASET.zip:0:5'
        )
    source = clip_source(text, resolution, focal, Piece())
    data = VideoDataset.Config(path=_CLIP.fullmatch(text)['path']).build()
    clip, count = source.facts['clip'], len(source.cameras)
    rows = slice(source.facts['first frame'], source.facts['first frame'] + count)
    depth = mask = None
    if torch.equal(source.cameras, data.clip_cameras(clip)[rows]):
        with contextlib.suppress(DataError):  # of a data set without truth
            truth = TruthReader(data, 1, data.num_frames(clip), clip).read([0], resolution)
            depth, mask = truth.depth[rows], truth.mask[rows]
    return Views(source.images, source.cameras, depth, mask)


def as_planes(images: np.ndarray | Sequence[np.ndarray], resolution: int) -> Tensor:
    """Resizes uint8 images [T, H, W, 3] to uint8 [T, 3, resolution, resolution]."""
    return torch.from_numpy(resize(np.stack(images), resolution)).permute(0, 3, 1, 2).contiguous()
