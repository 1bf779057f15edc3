"""True depth and normals of synthetic data.

`dataset_tool.py synth` writes beside each frame NNNNN.png the files NNNNN.depth.png (16 bit, distance along
the unit ray in scene units x 10000, 0 = nothing) and NNNNN.normal.png (world normal * 0.5 + 0.5).
"""

import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnnlib.util import DataError
from training.camera import unpack_label
from training.data.dataset import VideoDataset
from training.data.files import FileStore, decode_image, read_index
from training.volumetric_rendering.ray_sampler import camera_rays

DEPTH_SCALE = 10000  # depth files hold distance x 10000
FAR = 3.3  # distance of what lies behind the head, scene units: the end of the rays [EG3D FFHQ]


class Truth(NamedTuple):
    """Frames with their geometry."""

    image: Tensor  # uint8 [N, 3, S, S]
    cameras: Tensor  # labels [N, 25]
    depth: Tensor  # distance along the unit ray, scene units, 0 = nothing, [N, 1, S, S]
    normal: Tensor  # unit, world axes, [N, 3, S, S]
    mask: Tensor  # fraction of the pixel that the head covers [N, 1, S, S]


class Geometry(NamedTuple):
    """The shape that a generator renders with each image, as in rollout.Frames."""

    depth: Tensor  # [N, 1, h, h]
    opacity: Tensor  # [N, 1, h, h]
    xyz: Tensor  # [N, 3, h, h]


class TruthReader:
    """Reads frames with their geometry; all of it at one size.

    Args:
        data: data set.
        clips: most clips to use, spread over the set.
        frames: most frames of each, spread over the clip.
        only: name of the only clip that is used.

    Raises:
        DataError: when the first frame has no true depth and normals beside it.
    """

    def __init__(self, data: VideoDataset, clips: int, frames: int, only: str | None = None) -> None:
        path = data.config.path
        index = read_index(path)
        self.resolution = index.resolution
        good = [i for i in range(len(data)) if index.clips[i] not in index.problems]
        good = [i for i in good if only in (None, index.clips[i])]
        bounds = [index.starts[good[i] : good[i] + 2].tolist() for i in _spread(len(good), clips)]
        self._rows = [[start + i for i in _spread(end - start, frames)] for start, end in bounds]
        every = [row for rows in self._rows for row in rows]
        self._place = {row: 3 * i for i, row in enumerate(every)}
        names = []
        for name in index.files[every].tolist():
            stem = name.rpartition(b'.')[0]
            names += [name, stem + b'.depth.png', stem + b'.normal.png']
        self._files = FileStore(path, names)
        self._cameras = torch.from_numpy(index.cameras)
        try:
            for i in range(3):
                self._files.read(i)
        except DataError as err:
            raise DataError(
                f'{path} has no files of true depth and normals, which the metric geometry needs; use a data '
                'set of dataset_tool.py synth'
            ) from err

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self._rows)

    def digest(self) -> str:
        """Returns a hash of all that `read` could read: images, truth and cameras."""
        total = hashlib.sha256()
        for row, place in self._place.items():
            total.update(self._cameras[row].numpy().tobytes())
            for i in range(place, place + 3):
                total.update(hashlib.sha256(self._files.read(i)).digest())
        return total.hexdigest()

    def read(self, clips: Sequence[int], size: int) -> Truth:
        """Decodes clips, frames in a row, and averages them down to size x size.

        Raises:
            DataError: when a file is missing or corrupted; names it.
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


def geometry_of(truth: Truth) -> Geometry:
    """Returns the true geometry as a generator would render it."""
    size = truth.depth.shape[-1]
    opacity = (truth.mask > 0.5).float()
    depth = torch.where(opacity > 0, truth.depth, FAR)
    origins, directions = camera_rays(*unpack_label(truth.cameras), size)
    xyz = origins + depth.flatten(1)[..., None] * directions
    return Geometry(depth, opacity, xyz.transpose(1, 2).unflatten(2, (size, size)))


def _spread(total: int, most: int) -> list[int]:
    """Returns at most `most` numbers below `total`, evenly spread."""
    count = min(total, most)
    return [i * total // count for i in range(count)]


def _planes(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def _decode_depth(data: bytes, name: str, resolution: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=('PNG',)) as image:
            fits = image.size == (resolution, resolution) and image.mode in ('I;16', 'I')
            if not fits:
                raise ValueError(f'not a 16 bit gray image of {resolution}x{resolution}')
            return np.array(image)
    except Exception as error:  # corrupted files make Pillow raise a dozen unrelated types
        raise DataError(f'{name} cannot be decoded ({error})') from error
