"""The work folder of `from-videos`: where each stage leaves what, and how it is read.

    sources.json                        the videos, and the files that are none
    shots/VIDEO.json                    cuts
    tracks/VIDEO.json, VIDEO.npz        tracked faces of a video
    align/CLIP.json, CLIP.npz, CLIP/  crops, landmarks in pixels of the crop, transforms
    cameras/CLIP.json                   labels
    embeddings/CLIP.npz, CLIP.json      unit vectors of every second frame
    verify/CLIP.json                    similarity of frames
    identities.json, pack.json          who is kept; what the data set holds

A result with the key 'rejected' and a sentence is an item that its stage could not use.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.util import UserError, atomic_write, explain_os_error
from dnnlib.video import natural


class WorkFolder:
    """Reads what the stages left in a folder.

    Args:
        root: the folder; what a stage has not written yet reads as empty.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def read(self, name: str) -> dict[str, Any]:
        """Returns the object in `name`.json; {} = not there."""
        path = self.root / f'{name}.json'
        return read_json(path) if path.exists() else {}

    def items(self, stage: str) -> list[str]:
        """Lists the items that a stage has results of, in natural order; read one as `stage`/item."""
        return sorted((path.stem for path in self.root.glob(f'{stage}/*.json')), key=natural)

    def frame_files(self, clip: str) -> list[Path]:
        """Lists the aligned pictures of a clip in order of time."""
        return sorted((self.root / 'align' / clip).glob('*.png'), key=lambda p: natural(p.name))

    def frames(self, clip: str, chosen: Iterable[int] | None = None) -> np.ndarray:
        """Decodes aligned pictures of a clip (none named = all), uint8 [N, H, W, 3].

        Raises:
            UserError: if one of them is missing or cannot be decoded.
        """
        files = self.frame_files(clip)
        try:
            return np.stack([_decode(files[i]) for i in (range(len(files)) if chosen is None else chosen)])
        except (OSError, IndexError, ValueError, SyntaxError) as error:
            raise UserError(
                f'{self.root / "align" / clip}: a picture is missing or broken; remove the folder and '
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
        except OSError as error:
            raise UserError(f'cannot read {explain_os_error(error, path)}') from error
        except Exception as error:  # a cut-off zip raises what zipfile, zlib or numpy think fit
            raise UserError(f'{path} is broken; remove it and run the stage {stage} again') from error


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


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: if it cannot be read or is something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f'cannot read {explain_os_error(error, path)}') from error
    except ValueError as error:
        raise UserError(f'{path} is not valid JSON ({error}); remove it and run its stage again') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} is no JSON object; remove it and run its stage again')
    return content


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a .npz without dates: the same arrays give the same bytes; its folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, **{name: arrays[name] for name in sorted(arrays)})


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB'))
