"""Checks a data set: every image decodes, every camera is one that this framework can train on.

Cameras must stand where the renderer looks (a radius of about 2.7 scene units around the head) and look at
the box [-0.5, 0.5]^3 in which the planes lie; otherwise training sees empty space and fails without an error.
"""

import collections
import dataclasses
import math
import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dnnlib.progress import follow
from dnnlib.scene import FOCAL, RADIUS
from dnnlib.util import DataError
from dnnlib.video import IMAGE_TYPES, is_system_error
from training.data.files import FileStore, FrameIndex, are_images, decode_image, read_index

TRUTH = ('.depth.png', '.normal.png', '.mask.png')  # ground truth beside a frame, which has no label
_ROTATION_TOLERANCE = 1e-3  # largest deviation of R^T R from the identity
_RADIUS_RANGE = (0.8 * RADIUS, 1.2 * RADIUS)  # scene units; the renderer samples 2.25 to 3.3 along a ray
_FOCAL_RANGE = (FOCAL / 4, FOCAL * 4)  # image widths
_BOX = 0.5  # half side of the box of the planes, scene units


@dataclasses.dataclass(frozen=True)
class ClipReport:
    """What was found in one clip; numbers are (smallest, largest) over frames, nan without usable labels."""

    name: str
    frames: int
    yaw_deg: tuple[float, float]
    pitch_deg: tuple[float, float]
    radius: tuple[float, float]
    focal: tuple[float, float]
    problems: list[str]
    source: str = ''  # file that the clip came from


def check_dataset(path: str, workers: int) -> tuple[FrameIndex, list[ClipReport]]:
    """Decodes every image of a data set and examines every label.

    Where no folder has two images, as `from-images` writes them, each image is a clip of its own.

    Args:
        path: zip or folder.
        workers: threads that decode.

    Returns:
        the table of frames, and a report per clip in order of names (folders without any label included).

    Raises:
        DataError: if it has no table of frames.
        OSError, MemoryError: if the machine failed, which is not the fault of an image.
    """
    index = read_index(path)
    if are_images(index):
        index = read_index(path, single=True)
    extra = sorted(set(_list_images(path)) - {name.decode() for name in index.files})
    problems: dict[str, list[str]] = {clip: [] for clip in index.clips}
    for clip, what in index.problems.items():
        problems[clip].append(what)
    for name in (name for name in extra if not name.endswith(TRUTH)):
        problems.setdefault(name.rpartition('/')[0], []).append(f'{name.rpartition("/")[2]} has no label')
    for i, clip in enumerate(index.clips):
        problems[clip] += camera_problems(index.cameras[index.starts[i] : index.starts[i + 1]])
    truth = [name.encode() for name in extra if name.endswith(TRUTH)]
    for name, what in _corrupted_images(path, [*index.files, *truth], index.resolution, workers):
        problems.setdefault(name.rpartition('/')[0] or name, []).append(what)
    return index, [_report(index, clip, problems[clip]) for clip in sorted(problems)]


def camera_problems(cameras: np.ndarray) -> list[str]:
    """Returns what is wrong with the camera labels of a clip, one sentence per kind of error.

    Args:
        cameras: labels [T, 25]; rows that are not finite are skipped.
    """
    usable = np.flatnonzero(np.isfinite(cameras).all(axis=1))
    cameras = cameras[usable].astype(np.float64)
    pose, intrinsics = cameras[:, :16].reshape(-1, 4, 4), cameras[:, 16:].reshape(-1, 3, 3)
    rotation, position = pose[:, :3, :3], pose[:, :3, 3]
    gram = rotation.transpose(0, 2, 1) @ rotation
    radius = np.linalg.norm(position, axis=1)
    focal = intrinsics[:, [0, 1], [0, 1]]
    off_centre = np.abs(intrinsics[:, :2, 2] - 0.5).max(axis=1, initial=0)
    last_rows = np.concatenate([pose[:, 3] - [0, 0, 0, 1], intrinsics[:, 2] - [0, 0, 1]], axis=1)
    low, high = _RADIUS_RANGE
    rigid = np.abs(gram - np.eye(3)).max(axis=(1, 2), initial=0) <= _ROTATION_TOLERANCE
    checks = [
        (~rigid, 'rotation is not orthonormal'),
        (rigid & (np.linalg.det(rotation) < 0), 'rotation has determinant -1: a mirrored axis'),
        (np.abs(last_rows).max(axis=1) > _ROTATION_TOLERANCE, 'last rows are not (0 0 0 1) and (0 0 1)'),
        ((radius < low) | (radius > high), f'camera radius outside {low:.2f} to {high:.2f} scene units'),
        (
            (focal < _FOCAL_RANGE[0]).any(axis=1) | (focal > _FOCAL_RANGE[1]).any(axis=1),
            f'focal length outside {_FOCAL_RANGE[0]:.2f} to {_FOCAL_RANGE[1]:.2f} image widths (pixels?)',
        ),
        (off_centre > 0.25, 'principal point far from (0.5, 0.5) (pixels?)'),
        (rotation[:, 1, 1] > 0, 'camera is upside down: its y axis must point down, world y up'),
        (~_hits_box(position, rotation[:, :, 2]), 'looks past the box [-0.5, 0.5]^3 (z must point forward)'),
    ]
    return [f'{what} {_frame_list(usable[wrong])}' for wrong, what in checks if wrong.any()]


def format_table(reports: Sequence[ClipReport], limit: int) -> str:
    """Formats reports as a table: the first `limit` clips, then every clip with a problem."""
    heads = ''.join(f'{head:>15}' for head in ('yaw (deg)', 'pitch (deg)', 'radius', 'focal'))
    lines = [f'{"clip":<12} {"frames":>6}{heads}']
    for i, report in enumerate(reports):
        if i < limit or report.problems:
            numbers = [report.yaw_deg, report.pitch_deg, report.radius, report.focal]
            spans = [
                _span(low, high, digits) for (low, high), digits in zip(numbers, (0, 0, 2, 2), strict=True)
            ]
            columns = ''.join(f'{span:>15}' for span in spans)
            lines.append(f'{report.name:<12} {report.frames:>6}{columns}')
            source = f'; source: {report.source}' if report.source else ''
            lines += [f'    BAD: {problem}{source}' for problem in report.problems]
    if len(reports) > limit:
        lines.append(f'... {len(reports)} clips, only the first {limit} and the bad ones are listed')
    return '\n'.join(lines)


def people_lines(index: FrameIndex) -> list[str]:
    """Says how many clips and camera paths people have, and warns of one; nothing if people are unknown."""
    clips, paths = collections.Counter(), collections.defaultdict(set)
    for who, start, stop in zip(index.people, index.starts[:-1], index.starts[1:], strict=True):
        if who.startswith('identity '):
            clips[who] += 1
            paths[who].add(index.cameras[start:stop].tobytes())
    if not clips:
        return []
    views = [len(path) for path in paths.values()]
    counts = f'{_counted(clips.values(), "clip")} and {_counted(views, "camera path")}'
    single = sum(count == 1 for count in views)
    lines = [f'people: {len(clips):,}, each with {counts}']
    if single:
        lines.append(
            f'warning: {single:,} of them have one clip or one camera path, which then tells who it is, '
            'so that no motion code is needed; give each several (synth --motions, from-videos --per-person)'
        )
    return lines


def _counted(numbers: Collection[int], what: str) -> str:
    low, high = min(numbers), max(numbers)
    return f'{low} {what}{"s" * (low > 1)}' if low == high else f'{low} to {high} {what}s'


def _corrupted_images(
    path: str, names: Sequence[bytes], resolution: int, workers: int
) -> Iterator[tuple[str, str]]:
    """Yields (name, what is wrong) of images that do not decode to the resolution."""
    store = FileStore(path, names)

    def look(i: int) -> str | None:
        try:
            decode_image(store.read(i), store.name(i), resolution)
        except DataError as error:
            if is_system_error(error.__cause__):
                raise error.__cause__ from None
            return str(error)
        return None

    # threads: Pillow decodes without the interpreter lock
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(look, range(len(names)))
        for i, what in enumerate(follow(results, len(names), 'decoding', 'image')):
            if what is not None:
                yield store.name(i), what


def _list_images(path: str) -> list[str]:
    if os.path.isdir(path):
        files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
        names = [os.path.relpath(file, path).replace(os.sep, '/') for file in files]
    else:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    names = [name for name in names if name.lower().endswith(IMAGE_TYPES)]
    return [name.encode(errors='backslashreplace').decode() for name in names]  # as a terminal prints them


def _hits_box(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Returns which rays [N, 3], [N, 3] meet the box of the planes in front of them (slab test), [N]."""
    safe = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    near, far = np.sort(np.stack([(-_BOX - origin) / safe, (_BOX - origin) / safe]), axis=0)
    return (near.max(axis=1) <= far.min(axis=1)) & (far.min(axis=1) > 0)


def _report(index: FrameIndex, clip: str, problems: list[str]) -> ClipReport:
    rows, source = np.zeros((0, 25)), ''
    if clip in index.clips:
        i = index.clips.index(clip)
        source = index.sources[i]
        rows = index.cameras[index.starts[i] : index.starts[i + 1]]
    x, y, z = rows[:, 3], rows[:, 7], rows[:, 11]
    return ClipReport(
        name=clip,
        frames=len(rows),
        yaw_deg=_range(np.degrees(np.arctan2(x, z))),
        pitch_deg=_range(np.degrees(np.arctan2(y, np.hypot(x, z)))),
        radius=_range(np.sqrt(x**2 + y**2 + z**2)),
        focal=_range(rows[:, 16]),
        problems=problems,
        source=source,
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (math.nan, math.nan)


def _span(low: float, high: float, digits: int) -> str:
    return '-' if math.isnan(low) else f'{low:.{digits}f} to {high:.{digits}f}'


def _frame_list(frames: np.ndarray) -> str:
    shown = ', '.join(str(int(i)) for i in frames[:5])
    return f'(frame {shown}{", ..." if len(frames) > 5 else ""})'
