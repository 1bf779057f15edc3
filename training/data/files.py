"""The files of a data set: its table of frames (`dataset.json`) and the bytes of its images.

The images of a zip are read by position from one plain file, so that a process needs neither the zip's
directory nor a handle of its own: reading is safe after a fork, cheap to pickle, and a frame costs 70 bytes.
Nothing is unpacked beyond the limits below, whatever a file states about itself.
"""

import dataclasses
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from dnnlib.scene import LABEL_DIM
from dnnlib.util import DataError

FORMAT, VERSION = 'pv3d-dataset', 1
IMAGE_FORMATS = ('PNG', 'JPEG', 'WEBP')  # what Pillow may take a file for
_DEFAULT_FPS = 25.0
_MAX_FPS = 1000  # no camera of talking heads is faster
_MAX_INT = 2**63  # longer integers do not fit into a float
_MAX_TABLE = 1 << 30  # bytes of dataset.json, about two million frames
_MAX_RATIO = 250  # of dataset.json to its deflated size; equal labels in all frames come to half of it
_MAX_IMAGE = 1 << 26  # bytes of the file of an image; a PNG of 4096x4096 needs fewer
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what is read of a zip
_LOCAL_HEADER = struct.Struct('<4s22xHH')  # zip local file header: signature, ..., lengths of name and extra


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The table of frames, sorted by clip and name: rows starts[i] to starts[i + 1] belong to clips[i]."""

    resolution: int  # pixels of a side
    fps: float  # frames per second
    clips: list[str]  # [N]
    people: list[str]  # who is in each clip [N]; where dataset.json does not say, each clip has its own
    sources: list[str]  # the file that each clip came from [N]; '' where dataset.json does not say
    starts: np.ndarray  # int64 [N + 1]
    files: np.ndarray  # names of the images, utf-8 bytes [F]
    cameras: np.ndarray  # labels, float32 [F, 25]; nan where the label is invalid
    problems: dict[str, str]  # clip -> what is wrong with its labels or their number


def read_index(path: str, single: bool = False) -> FrameIndex:
    """Reads `dataset.json` of a zip or folder; single: clips may have one frame, as images in no folder do.

    Raises:
        DataError: if it is missing or not of this format. What is wrong with clips is in `problems`.
    """
    try:
        table = json.loads(_read_table(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path}: dataset.json is not valid JSON ({error})') from error
    if problem := _table_problem(table):
        raise DataError(f'{path}: dataset.json {problem}')
    # JSON can hold half a character (a lone surrogate), which no file name is and no terminal prints
    labels = {name.encode(errors='replace').decode(): label for name, label in table['labels']}
    if len(labels) < len(table['labels']):
        raise DataError(f'{path}: dataset.json has names that cannot be told apart as UTF-8')
    rows = sorted(
        ((*name.rpartition('/')[::2], label) for name, label in labels.items()), key=lambda row: row[:2]
    )
    cameras, bad = _parse_cameras([row[2] for row in rows])
    folders = [row[0] or (row[1] if single else '') for row in rows]
    starts = [i for i in range(len(rows)) if i == 0 or folders[i] != folders[i - 1]] + [len(rows)]
    clips = [folders[i] for i in starts[:-1]]
    problems = {folders[i]: f'the label of {rows[i][1]} {what}' for i, what in reversed(bad)}
    for clip, start, end in zip(clips, starts, starts[1:], strict=False):
        if single:
            continue
        if clip == '':
            problems[clip] = f'{rows[start][1]} is in no folder, but a clip is a folder of frames'
        elif end - start < 2:
            problems[clip] = 'has one frame, but a clip needs at least two'
    return FrameIndex(
        resolution=table['resolution'],
        fps=float(table.get('fps', _DEFAULT_FPS)),
        clips=clips,
        people=_people(table, clips),
        sources=[str(info.get('source', '')) for info in _infos(table, clips)],
        starts=np.array(starts, dtype=np.int64),
        files=np.array([f'{folder}/{name}'.removeprefix('/').encode() for folder, name, _ in rows]),
        cameras=cameras,
        problems=problems,
    )


def are_images(index: FrameIndex) -> bool:
    """Returns whether no folder has two images: for train.py --images and edit_videos.py, not for --data."""
    counts = np.diff(index.starts)
    return all(clip == '' or n == 1 for clip, n in zip(index.clips, counts, strict=True))


class FileStore:
    """Bytes of a fixed list of files of a zip or folder, by their place in the list.

    Safe to fork and to pickle. A listed file that does not exist is an error when it is read, not before.
    """

    def __init__(self, path: str, names: Sequence[bytes]) -> None:
        self._path = os.path.abspath(path)
        self._names = np.asarray(names)
        self._entries = None if os.path.isdir(path) else _locate(path, self._names)
        self._file: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_file': None}

    def name(self, i: int) -> str:
        """Returns the name of file i."""
        return self._names[i].decode()

    def read(self, i: int) -> bytes:
        """Reads file i; of a zip its checksum is compared.

        Raises:
            DataError: if the file is missing or corrupted.
        """
        name = self.name(i)
        try:
            if self._entries is None:
                with open(os.path.join(self._path, name), 'rb') as file:
                    data = file.read(_MAX_IMAGE + 1)
                _check_size(name, len(data))
                return data
            return self._read_entry(name, *self._entries[i].tolist())
        except (OSError, OverflowError, struct.error, zlib.error) as error:
            reason = getattr(error, 'strerror', None) or 'it is corrupted'
            raise DataError(f'{name} cannot be read: {reason}') from error

    def _read_entry(self, name: str, offset: int, stored: int, size: int, crc: int, method: int) -> bytes:
        if offset < 0:
            raise DataError(f'{name} is missing from the zip')
        _check_size(name, max(stored, size))
        # stays open for the life of the store; held here too, because another thread may put its own in place
        file = self._file or open(self._path, 'rb', buffering=0)  # noqa: SIM115
        self._file = file
        # pread leaves the position of the file alone, which forked processes share
        signature, *skip = _LOCAL_HEADER.unpack(os.pread(file.fileno(), _LOCAL_HEADER.size, offset))
        data = os.pread(file.fileno(), stored, offset + _LOCAL_HEADER.size + sum(skip))
        if method == zipfile.ZIP_DEFLATED:
            # no further than it should be: it may hold more than it states
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        if signature != b'PK\3\4' or zlib.crc32(data) != crc:
            raise DataError(f'{name} is corrupted: its bytes do not match the checksum of the zip')
        return data


def decode_image(data: bytes, name: str, resolution: int) -> np.ndarray:
    """Decodes an image to uint8 [R, R, 3].

    Raises:
        DataError: if it cannot be decoded or is not `resolution` pixels wide and high.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            fits = width == height == resolution
            pixels = np.array(image.convert('RGB')) if fits else None  # a bomb is not unpacked
    except Exception as error:  # corrupted files make Pillow raise a dozen unrelated types
        raise DataError(f'{name} cannot be decoded ({type(error).__name__})') from error
    if pixels is None:
        raise DataError(f'{name} is {width}x{height} instead of {resolution}x{resolution}')
    return pixels


def _check_size(name: str, size: int) -> None:
    if size > _MAX_IMAGE:
        raise DataError(f'{name} is larger than {_MAX_IMAGE >> 20} MiB; no image of a data set is')


def _locate(path: str, names: np.ndarray) -> np.ndarray:
    """Returns place (-1 = missing), stored size, size, checksum, method of files of a zip, int64 [F, 5]."""
    entries = np.full((len(names), 5), -1, dtype=np.int64)
    with zipfile.ZipFile(path) as archive:
        known = archive.NameToInfo
        for i, name in enumerate(names):
            info = known.get(name.decode())
            if info is not None:
                row = info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type
                entries[i] = [min(value, _MAX_INT - 1) for value in row]
    return entries


def _read_table(path: str) -> bytes:
    advice = 'make a data set with dataset_tool.py (synth, from-videos, pack)'
    try:
        if os.path.isdir(path):
            return Path(path, 'dataset.json').read_bytes()
        with zipfile.ZipFile(path) as archive:
            return _unpack_table(path, archive)
    except (FileNotFoundError, KeyError) as error:
        what = 'holds no dataset.json' if os.path.exists(path) else 'no such file or folder'
        raise DataError(f'{path}: {what}; {advice}') from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError) as error:
        # RuntimeError: it is encrypted; UnicodeDecodeError: so are the names of its files
        empty = os.path.getsize(path) == 0
        what = 'is empty' if empty else 'is not a zip, or a zip that was cut short or corrupted'
        raise DataError(f'{path} {what}; copy it again or {advice}') from error
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error


def _unpack_table(path: str, archive: zipfile.ZipFile) -> bytes:
    info = archive.getinfo('dataset.json')
    limit = min(_MAX_TABLE, _MAX_RATIO * info.compress_size)
    if info.compress_type not in _METHODS or info.file_size > limit:
        raise DataError(
            f'{path}: dataset.json is not unpacked ({info.compress_size} bytes become {info.file_size}); it '
            f'must be stored or deflated, at most {_MAX_RATIO} times, and have at most {_MAX_TABLE >> 30} GiB'
        )
    with archive.open(info) as file:
        return file.read(info.file_size)  # not read(): that unpacks more if there is more than it states


def _table_problem(table: Any) -> str | None:
    """Returns what is wrong with the content of dataset.json as a whole, if anything."""
    if not isinstance(table, dict) or table.get('format') != FORMAT:
        return f'is not of the format "{FORMAT}"; make the set with dataset_tool.py pack'
    if table.get('version') != VERSION:
        return f'has version {table.get("version")} of the format, not {VERSION}; update the code'
    resolution, fps, labels = table.get('resolution'), table.get('fps', _DEFAULT_FPS), table.get('labels')
    if type(resolution) is not int or resolution < 1:
        return f'has resolution={resolution!r}, which must be a whole number of pixels'
    if type(fps) not in (int, float) or not 0 < fps <= _MAX_FPS:
        return f'has fps={fps!r}, which must be a number up to {_MAX_FPS}'
    if not isinstance(labels, list) or not labels:
        return 'has no labels; every frame needs a camera, see dataset_tool.py pack'
    if not all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in labels):
        return f'has labels that are not a list of [file name, [{LABEL_DIM} numbers]]'
    if len({row[0] for row in labels}) < len(labels):
        return 'names a frame twice'
    return None


def _people(table: dict[str, Any], clips: list[str]) -> list[str]:
    """Names who is in each clip, from the optional `identity` of its entry in `clips`."""
    known = [info.get('identity') for info in _infos(table, clips)]
    named = zip(clips, known, strict=True)
    return [f'identity {who}' if isinstance(who, (int, str)) else f'clip {clip}' for clip, who in named]


def _infos(table: dict[str, Any], clips: list[str]) -> list[dict[str, Any]]:
    """Returns the optional entry of each clip in `clips`."""
    entries = table.get('clips')
    entries = entries if isinstance(entries, dict) else {}
    return [entries[clip] if isinstance(entries.get(clip), dict) else {} for clip in clips]


def _parse_cameras(labels: list[Any]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Turns labels into float32 [F, 25] (nan where invalid) and a list of (row, what is wrong)."""
    bad = []
    try:
        cameras = np.asarray(labels, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        cameras = np.empty(0)
    if cameras.shape != (len(labels), LABEL_DIM):
        cameras = np.full((len(labels), LABEL_DIM), np.nan, dtype=np.float32)
        for i, label in enumerate(labels):
            if not isinstance(label, list):
                bad.append((i, 'is missing'))
            elif len(label) != LABEL_DIM:
                bad.append((i, f'has {len(label)} numbers instead of {LABEL_DIM}'))
            elif all(isinstance(v, float) or (isinstance(v, int) and abs(v) < _MAX_INT) for v in label):
                cameras[i] = label
    finite = np.isfinite(cameras).all(axis=1)
    known = {i for i, _ in bad}
    bad += [(int(i), 'is not finite') for i in np.flatnonzero(~finite) if int(i) not in known]
    return cameras, sorted(bad)
