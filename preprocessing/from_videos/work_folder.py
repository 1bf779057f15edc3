"""The work folder of `from-videos`: where each stage leaves what, and how it is read and written.

    sources.json                        the videos, and the files that are not videos
    fetch/ID.json, sources/VIDEO.json   where a video is; what is in it; VIDEO.mp4 = a listed clip, cut out
    shots/VIDEO.json                    cuts
    tracks/VIDEO.json, VIDEO.npz        tracked faces of a video
    align/CLIP.json, CLIP.npz, CLIP/    crops, landmarks in pixels of the crop, transforms
    cameras/CLIP.json                   labels
    embeddings/CLIP.npz, CLIP.json      unit vectors of every second frame
    verify/CLIP.json                    similarity of frames
    identities.json, pack.json          who is kept; what the data set holds

A result whose 'rejected' is a sentence is an item that its stage could not use. JSON has sorted keys and
rounded numbers, and .npz files have no dates: a second run gives the same bytes.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.util import UserError, atomic_write
from dnnlib.video import natural

_DIGITS = 6  # of numbers in results
_LONGEST_NAME = 150  # bytes of the name of an item: file systems take 255 bytes with the suffixes


class WorkFolder:
    """Reads and writes what the stages leave in a folder.

    Args:
        root: the folder; what a stage has not written yet reads as empty.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def read(self, name: str) -> dict[str, Any]:
        """Returns the object in `name`.json; {} = the file is missing.

        Raises:
            UserError: if the file holds something else.
        """
        path = self.root / f'{name}.json'
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise UserError(f'{path} is not valid JSON; remove it and run its stage again')
        return content

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes `name`.json, whole or not at all; numbers are rounded."""
        data = json.dumps(rounded(value), sort_keys=True, allow_nan=False, separators=(',', ':'))
        with atomic_write(self.root / f'{name}.json') as file:
            file.write(data.encode() + b'\n')

    def items(self, stage: str) -> list[str]:
        """Lists the items that a stage has results of, in natural order; read one as `stage`/item."""
        return sorted((path.stem for path in self.root.glob(f'{stage}/*.json')), key=natural)

    def frame_files(self, clip: str) -> list[Path]:
        """Lists the aligned images of a clip in order of time."""
        return sorted((self.root / 'align' / clip).glob('*.png'), key=lambda p: natural(p.name))

    def frames(self, clip: str, chosen: Iterable[int] | None = None) -> np.ndarray:
        """Decodes aligned images of a clip (none named = all), uint8 [N, H, W, 3].

        Raises:
            UserError: if one of them is missing or cannot be decoded.
        """
        files = self.frame_files(clip)
        try:
            return np.stack([_decode(files[i]) for i in (range(len(files)) if chosen is None else chosen)])
        except (OSError, IndexError, ValueError, SyntaxError) as error:
            raise UserError(
                f'{self.root / "align" / clip}: an image is missing or corrupted; remove the folder and '
                f'align/{clip}.json and run the stage align again'
            ) from error

    def landmarks(self, clip: str) -> np.ndarray:
        """Returns landmarks [T, 468, 3] of a clip in pixels of the crop; 0 = left or top edge of pixel 0."""
        return self.arrays('align', clip)['landmarks']

    def arrays(self, stage: str, item: str, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the arrays in `stage`/item.npz, those named or all; others are not read.

        Raises:
            UserError: if they cannot be read.
        """
        path = self.root / stage / f'{item}.npz'
        try:
            with np.load(path) as file:
                return {name: file[name] for name in (file.files if names is None else names)}
        except Exception as error:  # corrupted files make numpy raise a dozen unrelated types
            raise UserError(
                f'{path} cannot be read ({error}); remove it and run the stage {stage} again'
            ) from error

    def write_arrays(self, stage: str, item: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Writes `stage`/item.npz; returns its name for the "files" of the result."""
        path = self.root / stage / f'{item}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(file, **{name: arrays[name] for name in sorted(arrays)})
        return f'{stage}/{item}.npz'


def clip_names(video: str, tracks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the clips that the tracks of a video become: video, first frame, and a number
    where several faces begin in the same frame.

    Args:
        video: its id.
        tracks: those of tracks/VIDEO.json.
    """
    firsts = [track['first'] for track in tracks]
    numbers = [f'-{firsts[:k].count(f)}' if firsts.count(f) > 1 else '' for k, f in enumerate(firsts)]
    return [f'{video}-{first:06d}{number}' for first, number in zip(firsts, numbers, strict=True)]


def item_name(path: str) -> str:
    """Turns a path into the name of an item: one file name, not too long."""
    name = path.replace('/', '__').replace('\\', '__')
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        name = name.encode()[: _LONGEST_NAME - 17].decode(errors='ignore') + '-' + digest
    return name


def rounded(value: Any) -> Any:
    """Rounds all numbers to 6 digits after the point, in lists and objects of any depth; -0 becomes 0."""
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f'{value} in the result of a stage')
        return round(value, _DIGITS) + 0.0
    return value


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'))
