"""Camera paths: a JSON file of keyframes, and the smooth way of a camera through them.

    {"format": "pv3d-camera-path", "version": 1, "loop_sec": 1.5,
     "keyframes": [{"time_sec": 0, "yaw": -20, "pitch": 5},
                   {"time_sec": 2, "yaw": 20, "pitch": 0, "fov": 12, "radius": 2.7, "look_at": [0, 0, 0.2]}]}

Angles are degrees, lengths scene units; fov, radius and look_at are optional (those of the training cameras).
loop_sec, optional, is the time from the last keyframe back to the first. Between keyframes each number
follows a monotone cubic (PCHIP): it never leaves the range of its two neighbours.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.scene import FOCAL, Camera, fov_degrees
from dnnlib.util import UserError, atomic_write

_FORMAT = {'format': 'pv3d-camera-path', 'version': 1}
_MAX_SEC = 3600.0  # of a path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keyframe:
    """Where the camera is at a time."""

    time_sec: float
    camera: Camera


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Keyframes in the order of time, the first at 0.

    Raises:
        UserError: if that is not so.
    """

    keyframes: tuple[Keyframe, ...]
    loop_sec: float | None = None  # time from the last keyframe back to the first; None = it ends there

    def __post_init__(self) -> None:
        times = [key.time_sec for key in self.keyframes]
        if len(times) < 2:
            raise UserError(f'a camera path needs at least 2 keyframes, not {len(times)}')
        if times[0] != 0 or any(b <= a for a, b in zip(times, times[1:], strict=False)):
            raise UserError(f'time_sec of the keyframes must begin at 0 and grow, not {times}')
        if self.loop_sec is not None and self.loop_sec <= 0:
            raise UserError(f'loop_sec {self.loop_sec:g} must be more than 0; leave it out for no loop')
        if self.duration_sec > _MAX_SEC:
            raise UserError(f'a camera path of {self.duration_sec:g} s is too long; {_MAX_SEC:g} are allowed')

    @property
    def duration_sec(self) -> float:
        """The time that the path takes, the way back included."""
        return self.keyframes[-1].time_sec + (self.loop_sec or 0.0)

    def frames(self, fps: float) -> int:
        """Returns the number of frames: a loop has no frame twice, other paths one at each end."""
        steps = max(round(self.duration_sec * fps), 1)
        return steps if self.loop_sec else steps + 1

    def cameras(self, fps: float, focal: float = FOCAL) -> list[Camera]:
        """Returns the camera of each frame; `focal` is that of the training cameras, image widths."""
        return self.at(np.arange(self.frames(fps)) / fps, focal)

    def at(self, sec: np.ndarray, focal: float = FOCAL) -> list[Camera]:
        """Returns the cameras at times in seconds [T], which end at the last keyframe or go round."""
        from scipy.interpolate import PchipInterpolator

        plain = all(key.camera.fov is None for key in self.keyframes)  # then it stays exactly as trained
        times = np.array([key.time_sec for key in self.keyframes])
        places = np.array([_numbers(key.camera, focal) for key in self.keyframes])
        sec = np.clip(sec, 0, times[-1]) if self.loop_sec is None else np.mod(sec, self.duration_sec)
        if self.loop_sec:  # a period before and after: the curve is smooth where it closes
            times = np.concatenate([times + i * self.duration_sec for i in (-1, 0, 1)])
            places = np.tile(places, (3, 1))
        rows = PchipInterpolator(times, places)(sec).tolist()
        return [
            Camera(yaw=yaw, pitch=pitch, fov=None if plain else fov, radius=radius, look_at=tuple(target))
            for yaw, pitch, fov, radius, *target in rows
        ]


def _numbers(camera: Camera, focal: float) -> list[float]:
    fov = fov_degrees(focal) if camera.fov is None else camera.fov
    return [camera.yaw, camera.pitch, fov, camera.radius, *camera.look_at]


def save_path(path: str | Path, camera_path: CameraPath) -> None:
    """Writes a camera path."""
    keyframes = []
    for key in camera_path.keyframes:
        numbers = {name: value for name, value in vars(key.camera).items() if value is not None}
        keyframes.append({'time_sec': key.time_sec, **numbers})
    loop = {} if camera_path.loop_sec is None else {'loop_sec': camera_path.loop_sec}
    with atomic_write(path, 'w') as file:
        json.dump({**_FORMAT, **loop, 'keyframes': keyframes}, file, indent=1)


def load_path(path: str | Path) -> CameraPath:
    """Reads a camera path.

    Raises:
        UserError: with the file and the keyframe, if it is not one.
    """
    try:
        return parse_path(Path(path).read_text(encoding='utf-8'))
    except UnicodeDecodeError as err:
        raise UserError(f'{path}: not a text file') from err
    except UserError as err:
        raise UserError(f'{path}: {err}') from err


def parse_path(text: str) -> CameraPath:
    """Parses the text of a camera path; see load_path."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise UserError(f'not JSON ({err})') from err
    if not isinstance(content, dict) or any(content.get(name) != value for name, value in _FORMAT.items()):
        raise UserError('not a camera path: it needs "format": "pv3d-camera-path" and "version": 1')
    _only(content, {*_FORMAT, 'loop_sec', 'keyframes'}, 'the file')
    loop = None if content.get('loop_sec') is None else _number(content['loop_sec'], 'loop_sec')
    entries = content.get('keyframes')
    if not isinstance(entries, list):
        raise UserError('"keyframes" must be a list')
    return CameraPath(keyframes=tuple(_keyframe(i, entry) for i, entry in enumerate(entries)), loop_sec=loop)


def _keyframe(index: int, entry: Any) -> Keyframe:
    where = f'keyframe {index}'
    needed, optional = ('time_sec', 'yaw', 'pitch'), ('fov', 'radius')
    if not isinstance(entry, dict) or not entry.keys() >= set(needed):
        raise UserError(f'{where} needs {", ".join(needed)}')
    _only(entry, {*needed, *optional, 'look_at'}, where)
    values = {name: _number(entry[name], f'{name} of {where}') for name in entry if name != 'look_at'}
    if 'look_at' in entry:
        target = entry['look_at']
        if not isinstance(target, list) or len(target) != 3:
            raise UserError(f'look_at of {where} must be a list of 3 numbers')
        values['look_at'] = tuple(_number(x, f'look_at of {where}') for x in target)
    time_sec = values.pop('time_sec')
    try:
        return Keyframe(time_sec=time_sec, camera=Camera(**values))
    except UserError as err:
        raise UserError(f'{where}: {err}') from err


def _only(entry: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(entry.keys() - known):
        raise UserError(f'{where} has an unknown {unknown[0]!r}; known are {", ".join(sorted(known))}')


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f'{name} is {value!r}, which is not a finite number')
    return float(value)
