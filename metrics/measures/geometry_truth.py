"""True depth and normals of synthetic data, and the same pictures with wrong geometry as controls.

`dataset_tool.py synth` writes beside each frame NNNNN.png the files NNNNN.depth.png (16 bit, distance along
the unit ray in scene units x 10000, 0 = nothing) and NNNNN.normal.png (world normal * 0.5 + 0.5).
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnnlib.util import DataError
from training.camera import unpack_label
from training.data.dataset import VideoDataset
from training.data.files import FileStore, FrameIndex, decode_image, read_index
from training.volumetric_rendering.ray_sampler import camera_rays

DEPTH_SCALE = 10000  # depth files hold distance x 10000
_FAR = 3.3  # distance of what lies behind the head, scene units: the end of the rays [EG3D FFHQ]
_TILT_RAD = 0.35  # of the control 'tilted', 20 degrees
_SHIFT = 1 / 8  # of the control 'shifted', in picture widths

Wrong = Literal['none', 'flat', 'tilted', 'shifted', 'other']


class Truth(NamedTuple):
    """Frames with their geometry."""

    image: Tensor  # uint8 [N, 3, S, S]
    cameras: Tensor  # labels [N, 25]
    depth: Tensor  # distance along the unit ray, scene units, 0 = nothing, [N, 1, S, S]
    normal: Tensor  # unit, world axes, [N, 3, S, S]
    mask: Tensor  # share of the pixel that the head covers [N, 1, S, S]


class Geometry(NamedTuple):
    """What a generator says of the shape beside each picture; as in rollout.Frames."""

    depth: Tensor  # [N, 1, h, h]
    opacity: Tensor  # [N, 1, h, h]
    xyz: Tensor  # [N, 3, h, h]


def has_truth(path: str | Path) -> bool:
    """Tells whether the first frame of a data set has true depth and normals beside it.

    Raises:
        DataError: when there is no data set.
    """
    index = read_index(str(path))
    files = _files(path, index, [0])
    try:
        return all(files.read(i) for i in range(len(files)))
    except DataError:
        return False


class TruthReader:
    """Reads frames with their geometry; all of it at one size.

    Args:
        data: data set or its path.
        clips: most clips to use, spread over the set.
        frames: most frames of each, spread over the clip.

    Raises:
        DataError: when there is no data set, or none with truth.
    """

    def __init__(self, data: VideoDataset | str | Path, clips: int, frames: int) -> None:
        path = data.config.path if isinstance(data, VideoDataset) else str(data)
        if not has_truth(path):
            raise DataError(
                f'{path} has no files of true depth and normals beside its frames, which the error of '
                'geometry needs; use a data set made by dataset_tool.py synth'
            )
        index = read_index(path)
        self.resolution = index.resolution
        total = len(data) if isinstance(data, VideoDataset) else len(index.clips)
        good = [i for i in range(total) if index.clips[i] not in index.problems]
        bounds = [index.starts[good[i] : good[i] + 2].tolist() for i in _spread(len(good), clips)]
        self._rows = [[start + i for i in _spread(end - start, frames)] for start, end in bounds]
        every = [row for rows in self._rows for row in rows]
        self._place = {row: 3 * i for i, row in enumerate(every)}
        self._files = _files(path, index, every)
        self._cameras = torch.from_numpy(index.cameras)

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self._rows)

    def digest(self) -> str:
        """Returns a hash of all that `read` could read: pictures, truth and cameras."""
        total = hashlib.sha256()
        for row, place in self._place.items():
            total.update(self._cameras[row].numpy().tobytes())
            for i in range(place, place + 3):
                total.update(hashlib.sha256(self._files.read(i)).digest())
        return total.hexdigest()

    def read(self, clips: Sequence[int], size: int) -> Truth:
        """Decodes clips, frames in a row, and averages them down to size x size.

        Raises:
            DataError: when a file is missing or broken; names it.
        """
        parts = [self._frame(row, size) for clip in clips for row in self._rows[clip]]
        return Truth(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _frame(self, row: int, size: int) -> Truth:
        place, side = self._place[row], self.resolution
        image, depth, normal = (
            decode(self._files.read(i), self._files.name(i), side)
            for i, decode in zip(
                range(place, place + 3), (decode_image, _decode_depth, decode_image), strict=True
            )
        )
        distance = torch.from_numpy(depth.astype(np.float32) / DEPTH_SCALE)[None, None]
        direction = _planes(normal) / 255 * 2 - 1
        hit = (distance > 0).float()
        return Truth(
            shrink(_planes(image), size).round().to(torch.uint8),
            self._cameras[row : row + 1],
            shrink(distance, size, hit),
            torch.nn.functional.normalize(shrink(direction, size, hit), dim=1),
            shrink(hit, size),
        )


def shrink(x: Tensor, size: int, weight: Tensor | None = None) -> Tensor:
    """Averages maps [N, C, H, H] down to [N, C, size, size], by weights [N, 1, H, H]; 0 where they are 0."""
    if weight is not None:
        total = shrink(weight, size)
        return shrink(x * weight, size) / total.clamp(min=1e-6)
    return x if x.shape[-1] == size else torch.nn.functional.interpolate(x, size=(size, size), mode='area')


def geometry_of(truth: Truth, wrong: Wrong = 'none') -> Geometry:
    """Returns the true geometry as a generator would give it, or a wrong one: what a metric must tell apart.

    Args:
        truth: frames.
        wrong: 'none'; 'flat', a plane across the view; 'tilted', depth that grows to the right as on a plane
            turned by 20 degrees; 'shifted', moved to the right by an eighth of the picture; 'other', that of
            the frame half the list away.
    """
    size = truth.depth.shape[-1]
    origins, directions = camera_rays(*unpack_label(truth.cameras), size)
    depth, opacity = truth.depth, (truth.mask > 0.5).float()
    if wrong in ('shifted', 'other'):
        step, axis = (max(1, round(size * _SHIFT)), 3) if wrong == 'shifted' else (len(depth) // 2, 0)
        depth, opacity = depth.roll(step, axis), opacity.roll(step, axis)
    elif wrong == 'flat':
        axis = unpack_label(truth.cameras)[0][:, None, :3, 2]
        middle = depth.sum(dim=(1, 2, 3)) / opacity.sum(dim=(1, 2, 3)).clamp(min=1)
        depth = (middle[:, None] / (directions * axis).sum(dim=-1)).view_as(depth)
    elif wrong == 'tilted':
        depth = depth + float(np.tan(_TILT_RAD)) * _across(truth.cameras, directions, depth)
    depth = torch.where(opacity > 0, depth, _FAR)
    xyz = origins + depth.flatten(1)[..., None] * directions
    return Geometry(depth, opacity, xyz.transpose(1, 2).unflatten(2, (size, size)))


def _across(cameras: Tensor, directions: Tensor, depth: Tensor) -> Tensor:
    """Returns how far right of the optical axis each pixel sees, scene units, like depth."""
    right = unpack_label(cameras)[0][:, None, :3, 0]
    return (directions * right).sum(dim=-1).view_as(depth) * depth


def _files(path: str | Path, index: FrameIndex, rows: Sequence[int]) -> FileStore:
    """Opens picture, depth and normals of frames, three files for each row."""
    names = []
    for row in rows:
        name = index.files[row].decode()
        stem = name.rpartition('.')[0]
        names += [name.encode(), f'{stem}.depth.png'.encode(), f'{stem}.normal.png'.encode()]
    return FileStore(str(path), names)


def _spread(total: int, most: int) -> list[int]:
    """Returns at most `most` numbers below `total`, evenly spread."""
    count = min(total, most)
    return [i * total // count for i in range(count)]


def _planes(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float()


def _decode_depth(data: bytes, name: str, resolution: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=('PNG',)) as image:
            fits = image.size == (resolution, resolution) and image.mode in ('I;16', 'I')
            depth = np.array(image) if fits else None
    except Exception as error:  # as in decode_image
        raise DataError(f'{name} cannot be decoded ({type(error).__name__})') from error
    if depth is None:
        raise DataError(f'{name} is not a 16 bit gray picture of {resolution}x{resolution}')
    return depth
