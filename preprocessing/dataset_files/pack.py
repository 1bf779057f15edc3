"""Clips with camera labels (videos or folders of images) -> a data set zip.

Two ways in: any folder with a `cameras.json` (`find_plain`), and the layout on disk of the released PV3D data
(`find_released`). Images must be square already, because a crop would need other intrinsics. Other sizes are
resampled with an antialiased Lanczos filter. The zip depends on the input alone, not on the number of
workers. No torch here: the worker processes start quickly without it.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dnnlib.progress import follow
from dnnlib.scene import LABEL_DIM
from dnnlib.util import DataError, Skip, UserError, atomic_write, explain_os_error, remove_temp_files
from dnnlib.video import IMAGE_TYPES, find_clips, is_system_error, natural, video_frames
from training.data.archive import dataset_json, parallel, write_entry

FORMATS: dict[str, dict[str, Any]] = {  # how Pillow writes each
    # a filtered photograph has runs, but hardly repeats: smaller, and four times as fast as the default
    'png': {'format': 'PNG', 'compress_type': zlib.Z_RLE},
    'webp': {'format': 'WEBP', 'quality': 95, 'method': 4},
    'jpg': {'format': 'JPEG', 'quality': 95, 'subsampling': 0},
}
_DEFAULT_FPS = 25.0  # of folders of images
_LISTED = 10  # names in a message; the others are counted


@dataclasses.dataclass(frozen=True)
class RawClip:
    """A clip to pack: where its images and labels are."""

    name: str  # path relative to the source
    path: Path  # video file or folder of images
    labels: list[Any] | Path  # one label per frame, or the JSON file of the released layout that holds them
    fps: float | None = None  # frame rate; none = that of the video, or 25 for a folder
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for its entry in `clips`
    ready: bool = False  # a folder of files that this package wrote: those that need no change are copied


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """What the packed images look like."""

    resolution: int  # pixels of a side
    format: str = 'png'  # a key of FORMATS; png keeps every bit, the others are smaller
    max_frames: int | None = None  # keep only the first frames of a clip; none = all


@dataclasses.dataclass(frozen=True)
class PackedClip:
    """A converted clip."""

    frames: list[bytes]  # encoded images
    labels: list[list[float]]
    fps: float
    side: int  # pixels of the smallest image before resizing


def find_plain(source: str, cameras: str) -> tuple[list[RawClip], list[str]]:
    """Finds the clips of a folder that have labels in a `cameras.json`.

    Args:
        source: folder that is searched for videos and for folders of images.
        cameras: JSON file {clip path relative to source: [one 25-number label per frame]}.

    Returns:
        the clips in natural order and the relative paths of the clips that have no labels.

    Raises:
        UserError: if either is missing or invalid, or a labelled clip does not exist.
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
    except (OSError, UnicodeDecodeError) as error:
        what = explain_os_error(error, names_file) if isinstance(error, OSError) else 'is not a text file'
        raise UserError(f'the released layout needs {names_file}, a path per line: {what}') from error
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
        options: size and format of the images.
        workers: processes; 1 works in this one.
        skip_bad: skip clips that cannot be packed, instead of stopping.

    Returns:
        what was skipped, as "name: reason", and the sides of smaller images, one per clip that has them.

    Raises:
        UserError: if a clip cannot be packed (all of them are listed), or the zip cannot be written.
    """
    check_dest(dest)
    bad, small, labels, info = [], [], [], {}
    fps = collections.Counter()
    results = parallel(functools.partial(convert, options=options), clips, min(workers, len(clips)))
    with (
        contextlib.closing(results),
        atomic_write(dest) as file,
        zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive,
    ):
        for clip, packed in zip(clips, follow(results, len(clips), 'packing', 'clip'), strict=True):
            if isinstance(packed, str):
                bad.append(f'{clip.name}: {packed}')
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
            advice = 'repair or remove them' + ('' if skip_bad else ', or skip them with --skip-bad')
            raise UserError(f'{len(bad)} of {len(clips)} clips cannot be packed; {advice}: {listing(bad)}')
        write_entry(
            archive, 'dataset.json', dataset_json(options.resolution, fps.most_common(1)[0][0], labels, info)
        )
    return bad, small


def convert(clip: RawClip, options: PackOptions) -> PackedClip | str:
    """Decodes, resizes and encodes one clip; if it cannot be packed, returns the reason.

    Raises:
        OSError, MemoryError, UserError: if the machine failed or lacks ffmpeg, which is not the fault of the
            clip.
    """
    released = isinstance(clip.labels, Path)
    try:
        labels = _clip_labels(clip)
        frames, sides, fps = [], [], _DEFAULT_FPS
        for frame, side, fps in _encoded_frames(clip, options):  # noqa: B007 (the rate is that of the clip)
            frames.append(frame)
            sides.append(side)
            if len(frames) == options.max_frames:
                break
    except (Skip, DataError) as error:
        return str(error)
    if released:  # the released program uses the last camera for frames beyond the list
        labels += labels[-1:] * (len(frames) - len(labels))
    wanted = min(len(labels), options.max_frames or len(labels))
    if len(frames) < 2:
        return f'a clip needs at least two frames, this has {len(frames)}'
    if len(frames) != wanted and not released:
        return f'{len(frames)} frames but {len(labels)} labels'
    return PackedClip(frames, labels[: len(frames)], clip.fps or fps, min(sides))


def listing(names: list[str]) -> str:
    """Joins names for a message; many are cut off and counted."""
    more = f', and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
    return ', '.join(names[:_LISTED]) + more


def check_dest(dest: str) -> None:
    """Makes sure that a data set can be written; the folder of the zip is made when missing.

    Temporary files in it that a killed command left are removed.

    Raises:
        UserError: if the name is not that of a zip, or the folder cannot be made.
    """
    if not dest.endswith('.zip'):
        raise UserError(f'--dest {dest} must be the name of a zip, such as {dest}.zip')
    try:
        Path(dest).absolute().parent.mkdir(parents=True, exist_ok=True)
        remove_temp_files(Path(dest).absolute().parent)
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
        if is_system_error(error):
            raise
        raise DataError(f'cannot read {explain_os_error(error, path)}') from error
    except ValueError as error:
        raise DataError(f'{path} is not valid JSON ({error})') from error


def _clip_labels(clip: RawClip) -> list[list[float]]:
    rows = clip.labels
    if isinstance(rows, Path):  # a list of [name, numbers]
        rows = _load_json(rows)
        pairs = isinstance(rows, list) and all(isinstance(row, list) and len(row) > 1 for row in rows)
        rows = [row[1] for row in rows] if pairs else None
    if not isinstance(rows, list) or not rows:
        raise Skip('has no labels; it needs a list with one label per frame')
    labels = []
    for i, row in enumerate(rows):
        try:
            labels.append([float(value) for value in row] if isinstance(row, list) else [])
        except (TypeError, ValueError, OverflowError):
            labels.append([])
        if len(labels[i]) != LABEL_DIM or not all(map(math.isfinite, labels[i])):
            raise Skip(f'the label of frame {i} is not a list of {LABEL_DIM} finite numbers')
    return labels


def _encoded_frames(clip: RawClip, options: PackOptions) -> Iterator[tuple[bytes, int, float]]:
    """Yields the images of a clip as they are packed, the side they had, and the frame rate."""
    if not clip.path.is_dir():
        for frame, fps in video_frames(clip.path):
            yield _encode(Image.fromarray(frame), options), frame.shape[1], fps
        return
    files = [p for p in clip.path.iterdir() if p.suffix.lower() in IMAGE_TYPES]
    for file in sorted(files, key=lambda p: natural(p.name)):
        try:
            yield *_encoded_file(file, clip.ready, options), _DEFAULT_FPS
        except Exception as error:  # corrupted files make Pillow raise a dozen unrelated types
            if isinstance(error, Skip) or is_system_error(error):
                raise
            raise Skip(f'{file.name} cannot be decoded ({type(error).__name__})') from error


def _encoded_file(file: Path, ready: bool, options: PackOptions) -> tuple[bytes, int]:
    """Returns an image as it is packed, and the side it had; `ready` ones may need no change."""
    as_packed = ('PNG', 'RGB', (options.resolution, options.resolution))
    data = file.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        side = image.width
        if ready and options.format == 'png' and (image.format, image.mode, image.size) == as_packed:
            image.verify()  # the checksums; decoding takes as long as everything else together
        else:
            data = _encode(image.convert('RGB'), options)
    return data, side


def _encode(image: Image.Image, options: PackOptions) -> bytes:
    """Brings an image to size and encodes it.

    Raises:
        Skip: if it is not square.
    """
    if image.width != image.height:
        size = f'{image.width}x{image.height}'
        raise Skip(f'is {size}, not square; cut it to squares first and make its intrinsics match')
    size = (options.resolution, options.resolution)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, **FORMATS[options.format])
    return buffer.getvalue()
