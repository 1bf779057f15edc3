"""Clips with camera labels (videos or folders of pictures) -> a data set zip.

Two ways in: any folder with a `cameras.json` (`find_plain`), and the layout on disk of the released PV3D data
(`find_released`). Pictures must be square already: to crop would need other intrinsics, so it is refused.
Other sizes are resampled with an antialiased Lanczos filter. The zip depends on the input alone, not on the
number of workers. No torch here: the worker processes start quickly without it.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dnnlib.progress import follow
from dnnlib.scene import LABEL_DIM
from dnnlib.util import UserError, atomic_write, explain_os_error
from dnnlib.video import (
    IMAGE_TYPES,
    find_clips,
    is_system_trouble,
    natural,
    video_frames,
)
from training.data.archive import dataset_json, parallel, write_entry

FORMATS: dict[str, dict[str, Any]] = {  # how Pillow writes each
    # a filtered photograph has runs, but hardly repeats: smaller, and four times as fast as the default
    'png': {'format': 'PNG', 'compress_type': zlib.Z_RLE},
    'webp': {'format': 'WEBP', 'quality': 95, 'method': 4},
    'jpg': {'format': 'JPEG', 'quality': 95, 'subsampling': 0},
}
_DEFAULT_FPS = 25.0  # of folders of pictures
_LISTED = 10  # names in a message before it says how many more


@dataclasses.dataclass(frozen=True)
class RawClip:
    """A clip to pack: where its pictures and labels are."""

    name: str  # path relative to the source
    path: Path  # video file or folder of pictures
    labels: list[Any] | Path  # one label per frame, or the JSON file of the released layout that holds them
    fps: float | None = None  # frame rate; none = that of the video, or 25 for a folder
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for its entry in `clips`
    ready: bool = False  # a folder of files that this package wrote: those that need no change are copied


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """What the packed pictures look like."""

    resolution: int  # pixels of a side
    format: str = 'png'  # a key of FORMATS; png keeps every bit, the others are smaller
    max_frames: int | None = None  # keep only the first frames of a clip; none = all


@dataclasses.dataclass(frozen=True)
class PackedClip:
    """A converted clip, or the reason why there is none."""

    frames: list[bytes]  # encoded pictures
    labels: list[list[float]]
    fps: float
    side: int = 0  # pixels of the smallest picture before resizing
    error: str | None = None


def find_plain(source: str, cameras: str) -> tuple[list[RawClip], list[str]]:
    """Finds the clips of a folder that have labels in a `cameras.json`.

    Args:
        source: folder that is searched for videos and for folders of pictures.
        cameras: JSON file {clip path relative to source: [one 25-number label per frame]}.

    Returns:
        the clips in natural order and the relative paths of the clips that have no labels.

    Raises:
        UserError: if either is missing or broken, or a labelled clip does not exist.
    """
    root = _folder(source)
    if not Path(cameras).exists():
        raise UserError(f'{cameras}: no such file; --cameras is the JSON file with the labels of the clips')
    table = _load_json(Path(cameras))
    if not isinstance(table, dict) or not table:
        raise UserError(f'{cameras} must be a JSON object {{"clip.mp4": [one 25-number label per frame]}}')
    found = {path.relative_to(root).as_posix(): path for path in find_clips(root)}
    lost = sorted(set(table) - set(found), key=natural)
    if lost:
        raise UserError(f'{cameras} has labels of clips that {source} does not hold: {listing(lost)}')
    clips = [RawClip(name, found[name], table[name]) for name in sorted(table, key=natural)]
    return clips, sorted(set(found) - set(table), key=natural)


def find_released(source: str) -> tuple[list[RawClip], list[str]]:
    """Finds the clips of the released layout: voxceleb.list, recrop_faces/, smoothed_camera2world/.

    The labels of `a/b.mp4` are in `smoothed_camera2world/b.json`, a list of [name, 25 numbers]; the released
    program makes that name by replacing every "mp4" in the file name, which is tried first.

    Returns:
        the clips in natural order and the names of listed clips whose video or labels do not exist.

    Raises:
        UserError: if the list is missing or nothing in it exists.
    """
    root = _folder(source)
    names_file = root / 'voxceleb.list'
    try:
        lines = names_file.read_text(encoding='utf-8').split('\n')
    except UnicodeDecodeError as error:
        raise UserError(f'{names_file} is not a text file; it must hold one path per line') from error
    except OSError as error:
        raise UserError(
            f'the released layout starts at its list: {explain_os_error(error, names_file)}'
        ) from error
    clips, lost = [], []
    for line in sorted({line.strip() for line in lines} - {''}, key=natural):
        name = line if line.endswith('.mp4') else line + '.mp4'
        video, base = root / 'recrop_faces' / name, Path(name).name
        names = (base.replace('mp4', 'json'), Path(base).stem + '.json')
        labels = [path for n in names if (path := root / 'smoothed_camera2world' / n).is_file()]
        if video.is_file() and labels:
            clips.append(RawClip(name, video, labels[0]))
        else:
            lost.append(name)
    if not clips:
        raise UserError(
            f'{names_file} names {len(lost)} clips, but none of them has recrop_faces/NAME.mp4 and '
            f'smoothed_camera2world/NAME.json in {source}'
        )
    return clips, lost


def pack(
    clips: list[RawClip], dest: str, options: PackOptions, *, workers: int, skip_bad: bool
) -> tuple[list[str], list[int]]:
    """Converts clips and writes them to a data set zip, which appears only when it is complete.

    Args:
        clips: what to pack; clip i becomes the folder `i:06d`.
        dest: path of the zip; its folder is made when missing.
        options: size and format of the pictures.
        workers: processes; 1 works in this one.
        skip_bad: leave clips out that cannot be packed, instead of giving up.

    Returns:
        what was left out, as "name: reason", and the sides of smaller pictures, one per clip that has them.

    Raises:
        UserError: if a clip cannot be packed (all of them are listed), or the zip cannot be written.
    """
    check_options(dest, options)
    bad, small, labels, info = [], [], [], {}
    fps = collections.Counter()
    with atomic_write(dest) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        results = parallel(functools.partial(convert, options=options), clips, min(workers, len(clips)))
        for clip, packed in zip(clips, follow(results, len(clips), 'packing', 'clip'), strict=True):
            if packed.error is not None:
                bad.append(f'{clip.name}: {packed.error}')
                continue
            if packed.side < options.resolution:
                small.append(packed.side)
            folder = f'{len(info):06d}'
            for i, (frame, label) in enumerate(zip(packed.frames, packed.labels, strict=True)):
                name = f'{folder}/{i:05d}.{options.format}'
                write_entry(archive, name, frame)
                labels.append([name, label])
            info[folder] = {'source': clip.name, 'fps': packed.fps, **clip.info}
            fps[packed.fps] += 1
        if bad and (not skip_bad or not info):
            advice = 'mend or remove them' + ('' if skip_bad else ', or leave them out with --skip-bad')
            raise UserError(f'{len(bad)} of {len(clips)} clips cannot be packed; {advice}: {listing(bad)}')
        write_entry(
            archive, 'dataset.json', dataset_json(options.resolution, fps.most_common(1)[0][0], labels, info)
        )
    return bad, small


def convert(clip: RawClip, options: PackOptions) -> PackedClip:
    """Decodes, resizes and encodes one clip; what is wrong with it comes back as a reason.

    Raises:
        OSError, MemoryError: when the machine could not do it, which says nothing of the clip.
    """
    try:
        labels = _clip_labels(clip)
        frames, sides, fps = [], [], _DEFAULT_FPS
        made = _ready_frames(clip.path, options) if clip.ready else _encoded_frames(clip.path, options)
        for frame, side, fps in made:  # noqa: B007 (the rate is that of the clip)
            frames.append(frame)
            sides.append(side)
            if len(frames) == options.max_frames:
                break
    except UserError as error:
        return PackedClip([], [], 0.0, error=str(error))
    if isinstance(clip.labels, Path):  # the released program uses the last camera for frames beyond the list
        labels += labels[-1:] * (len(frames) - len(labels))
    wanted = len(labels) if options.max_frames is None else min(len(labels), options.max_frames)
    if len(frames) < 2:
        return PackedClip([], [], 0.0, error=f'a clip needs at least two frames, this has {len(frames)}')
    if len(frames) != wanted and not isinstance(clip.labels, Path):
        return PackedClip([], [], 0.0, error=f'{len(frames)} frames but {len(labels)} labels')
    return PackedClip(frames, labels[: len(frames)], clip.fps or fps, min(sides))


def listing(names: list[str]) -> str:
    """Joins names for a message; many are cut off and counted."""
    more = f', and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
    return ', '.join(names[:_LISTED]) + more


def check_options(dest: str, options: PackOptions) -> None:
    """Makes sure that a data set can be written; the folder of the zip is made when missing.

    Raises:
        UserError: if it is no zip, a size or format cannot be, or the folder cannot be made.
    """
    if not dest.endswith('.zip'):
        raise UserError(f'--dest {dest} must be the name of a zip, such as {dest}.zip')
    if options.format not in FORMATS:
        raise UserError(f'format {options.format} must be one of {", ".join(FORMATS)}')
    if options.resolution < 1 or (options.max_frames is not None and options.max_frames < 2):
        raise UserError('--resolution must be at least 1 and --max-frames at least 2')
    try:
        Path(dest).absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError('cannot write ' + explain_os_error(error, dest)) from error


def _folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f'{path} is not a folder; --source is the folder that holds the clips')
    return Path(path)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f'cannot read {explain_os_error(error, path)}') from error
    except ValueError as error:
        raise UserError(f'{path} is not valid JSON ({error})') from error


def _clip_labels(clip: RawClip) -> list[list[float]]:
    rows = clip.labels
    if isinstance(rows, Path):
        rows = _load_json(rows)
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) > 1 for row in rows):
            raise UserError(f'{clip.labels} must be a list of [name, [25 numbers]]')
        rows = [row[1] for row in rows]
    if not isinstance(rows, list) or not rows:
        raise UserError('has no labels; it needs a list with one label per frame')
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != LABEL_DIM:
            what = f'{len(row)} numbers' if isinstance(row, list) else 'no list'
            raise UserError(f'the label of frame {i} is {what} instead of {LABEL_DIM} numbers')
    try:
        labels = [[float(value) for value in row] for row in rows]
    except (TypeError, ValueError) as error:
        raise UserError(f'a label holds something that is not a number ({error})') from error
    bad = [i for i, row in enumerate(labels) if not all(map(math.isfinite, row))]
    if bad:
        raise UserError(f'the label of frame {bad[0]} is not finite')
    return labels


def _encoded_frames(path: Path, options: PackOptions) -> Iterator[tuple[bytes, int, float]]:
    """Yields the pictures of a video or folder as they are packed, the side they had, and the frame rate."""
    frames: Iterable[tuple[Image.Image, float]] = (
        _folder_frames(path) if path.is_dir() else _video_frames(path)
    )
    for picture, fps in frames:
        yield _encode(picture, options), picture.width, fps


def _ready_frames(path: Path, options: PackOptions) -> Iterator[tuple[bytes, int, float]]:
    """Does the same with a folder, but copies each PNG that is as it would be packed."""
    as_packed = ('PNG', 'RGB', (options.resolution, options.resolution))
    for file in _picture_files(path):
        with _naming_broken(file):
            data = file.read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                side = picture.width
                if options.format == 'png' and (picture.format, picture.mode, picture.size) == as_packed:
                    picture.verify()  # the checksums; decoding takes as long as everything else together
                else:
                    data = _encode(picture.convert('RGB'), options)
        yield data, side, _DEFAULT_FPS


def _folder_frames(path: Path) -> Iterator[tuple[Image.Image, float]]:
    for file in _picture_files(path):
        with _naming_broken(file), Image.open(file) as opened:
            picture = opened.convert('RGB')
        yield picture, _DEFAULT_FPS


def _picture_files(path: Path) -> list[Path]:
    files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_TYPES]
    return sorted(files, key=lambda p: natural(p.name))


@contextlib.contextmanager
def _naming_broken(file: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # broken files make Pillow raise a dozen unrelated types
        if is_system_trouble(error):
            raise
        raise UserError(f'{file.name} cannot be decoded ({type(error).__name__})') from error


def _video_frames(path: Path) -> Iterator[tuple[Image.Image, float]]:
    for picture, fps in video_frames(path):
        yield Image.fromarray(picture), fps


def _encode(picture: Image.Image, options: PackOptions) -> bytes:
    """Brings a picture to size and encodes it.

    Raises:
        UserError: if it is not square.
    """
    if picture.width != picture.height:
        size = f'{picture.width}x{picture.height}'
        raise UserError(f'is {size}, not square; cut it to squares first and make its intrinsics match')
    size = (options.resolution, options.resolution)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, **FORMATS[options.format])
    return buffer.getvalue()
