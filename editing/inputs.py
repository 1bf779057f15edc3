"""What a person is found for: frames and cameras of an image, a video, or a clip of a data set.

Images and videos as they come from a camera go through the detection, alignment and camera estimation of
`preprocessing`; a network whose cameras have another focal length sees the middle of that crop.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
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


def clip_source(text: str, resolution: int, frames: int | None) -> Source:
    """Opens DATASET:CLIP or DATASET:CLIP:FRAME.

    Args:
        text: as the user wrote it.
        resolution: of the result.
        frames: at most so many; none = all. A FRAME is one.

    Raises:
        UserError: if there is no such data set, clip or frame.
    """
    path, clip, frame = _CLIP.fullmatch(text).groups()
    data = VideoDataset.Config(path=path).build()
    known = data.names[int(clip)] if clip.isdecimal() and int(clip) < len(data) else clip
    if known not in data.names:
        raise UserError(f'{path} has no clip {clip}; it has {len(data)}, the first is {data.names[0]}')
    count = data.num_frames(known)
    if frame is not None and int(frame) >= count:
        raise UserError(
            f'clip {known} of {path} has no frame {frame}; its {count} frames are 0 to {count - 1}'
        )
    rows = [int(frame)] if frame is not None else list(range(count))[:frames]
    images = data.clip_frames(known, rows).permute(0, 2, 3, 1).numpy()
    facts = {'source': text, 'clip': known, 'sha256': None}
    stem = '-'.join([Path(path).stem, known.replace('/', '_'), *([frame] if frame else [])])
    return Source(stem, as_planes(images, resolution), data.clip_cameras(known)[rows], data.fps, facts)


def is_clip(text: str) -> bool:
    """Returns whether a source is written as a clip of a data set."""
    match = _CLIP.fullmatch(text)
    return match is not None and not Path(text).exists()


def as_planes(images: np.ndarray | Sequence[np.ndarray], resolution: int) -> Tensor:
    """Resizes uint8 images [T, H, W, 3] to uint8 [T, 3, resolution, resolution]."""
    return torch.from_numpy(resize(np.stack(images), resolution)).permute(0, 3, 1, 2).contiguous()
