"""Camera labels from files of coefficients that Deep3DFaceRecon [Deng et al. 2019] wrote for aligned crops.

Its face is turned by R = Rz Ry Rx (Euler angles in radians), shifted by t, and seen from (0, 0, 10) along
-z, y up. As in EG3D, its lengths are multiplied by 0.27 and its origin, the middle of the 3DMM, is put at
(0, 0.006, 0.161); then the camera is brought to the distance 2.7 from the origin.

Tested on numbers made from known cameras. Untested on files that Deep3DFaceRecon itself wrote: its weights
require a registration.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from scipy.spatial.transform import Rotation

from dnnlib.util import Skip, UserError, explain_os_error
from dnnlib.video import natural
from preprocessing.from_videos.cameras import RADIUS, Cameras, estimate_cameras, make_labels
from preprocessing.from_videos.smoothing import smooth, smooth_rotations
from preprocessing.from_videos.stages import Item, Stage, TryAgain, file_state

SCALE = 0.27  # scene units per unit of the 3DMM [EG3D]
OFFSET = np.array([0.0, 0.006, 0.161])  # of the middle of the 3DMM in the world, scene units [EG3D]
_DISTANCE = 10.0  # of the camera from the middle of the 3DMM, units of the 3DMM [Deep3DFaceRecon]
_COEFFICIENTS = 257  # identity 80, expression 64, texture 80, angle 3, light 27, translation 3
_ANGLE, _TRANSLATION = slice(224, 227), slice(254, 257)
_KINDS = ('.mat', '.npz', '.json')
_INVALID = (  # what the three readers raise for files that are not of their kind
    *(ValueError, TypeError, KeyError, IndexError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, scipy.io.matlab.MatReadError),
)


def load_coefficients(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads angles and translations of a clip.

    Args:
        path: a folder with one file per frame, in the natural order of their names, or one file with all
            frames. Files are .mat, .npz or .json with `angle` and `trans` ([3] or [T, 3]) or with `coeff`
            ([257] or [T, 257]).

    Returns:
        angle in radians [T, 3] and translation [T, 3], float64.

    Raises:
        UserError: if a file is missing or holds something else.
    """
    path = Path(path)
    if not path.is_dir():
        return _read(path)
    files = sorted((p for p in path.iterdir() if p.suffix in _KINDS), key=lambda p: natural(p.name))
    if not files:
        raise UserError(f'{path}: no files of coefficients; expected one {", ".join(_KINDS)} per frame')
    angles, translations = zip(*(_read(p) for p in files), strict=True)
    if many := [file for file, angle in zip(files, angles, strict=True) if len(angle) != 1]:
        raise UserError(f'{many[0]}: holds several frames; in a folder each file holds one')
    return np.concatenate(angles), np.concatenate(translations)


def coefficient_cameras(angle: np.ndarray, translation: np.ndarray, sigma: float = 2.0) -> Cameras:
    """Turns coefficients of a clip into cameras.

    Args:
        angle: Euler angles about x, y, z in radians, [T, 3].
        translation: units of the 3DMM, [T, 3].
        sigma: width of the smoothing of both in frames.
    """
    rotation = Rotation.from_euler('xyz', angle).as_matrix()
    return Cameras(
        labels=_labels(smooth_rotations(rotation, sigma), smooth(translation, sigma)),
        raw_labels=_labels(rotation, np.asarray(translation, dtype=np.float64)),
        residual=None,
    )


def _labels(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Returns labels [T, 25] of the camera before the face that is turned [T, 3, 3] and shifted [T, 3]."""
    back = rotation.swapaxes(1, 2)
    camera = np.array([0, 0, _DISTANCE]) - translation  # before the turned face
    position = SCALE * (back @ camera[..., None])[..., 0] + OFFSET
    position *= RADIUS / np.linalg.norm(position, axis=1, keepdims=True)
    return make_labels(back * np.array([1.0, -1.0, -1.0]), position)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads angle [T, 3] and translation [T, 3] of one file."""
    try:
        content = _open(path)
        if 'coeff' in content:
            coefficients = _numbers(content, 'coeff', _COEFFICIENTS)
            return coefficients[:, _ANGLE], coefficients[:, _TRANSLATION]
        angle, translation = (_numbers(content, key, 3) for key in ('angle', 'trans'))
        if len(angle) != len(translation):
            raise ValueError(f'{len(angle)} angles but {len(translation)} translations')
    except OSError as err:
        raise UserError('cannot read ' + explain_os_error(err, path)) from err
    except _INVALID as err:
        raise UserError(f'{path}: not a file of coefficients: {err}') from err
    return angle, translation


def _open(path: Path) -> Mapping[str, Any]:
    """Opens one file by its suffix; nothing in it is executed."""
    if path.suffix == '.mat':
        return scipy.io.loadmat(path)
    if path.suffix == '.npz':
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    if path.suffix == '.json':
        return dict(json.loads(path.read_text(encoding='utf-8')))
    raise ValueError('known are ' + ', '.join(_KINDS))


def _numbers(content: Mapping[str, Any], key: str, width: int) -> np.ndarray:
    """Returns an entry as float64 [T, width]; ValueError if it is not that."""
    if key not in content:
        found = ', '.join(sorted(k for k in map(str, content) if not k.startswith('__'))) or 'nothing'
        raise ValueError(f"expected 'coeff', or 'angle' and 'trans'; found {found}")
    numbers = np.asarray(content[key], dtype=np.float64)
    if numbers.size == 0 or numbers.shape[-1:] != (width,) or not np.isfinite(numbers).all():
        shape = list(numbers.shape)
        raise ValueError(f'{key} of shape {shape} must be finite numbers of shape [{width}] or [T, {width}]')
    return numbers.reshape(-1, width)


def _coefficients(item: Item, options: Any) -> Path | None:
    """Returns the file or folder with the coefficients of a clip; none = it is missing."""
    named = [Path(options.deep3d or '', item.name + suffix) for suffix in ('', *_KINDS)]
    return next((path for path in named if options.deep3d and path.exists()), None)


@Stage(
    'cameras',
    per='clip',
    needs=('align',),
    options=('resolution', 'sigma'),
    paths=('deep3d',),
    state=lambda item, options: [options.deep3d is None, file_state(_coefficients(item, options))],
)
def cameras_stage(item: Item, options: Any) -> dict[str, Any]:
    """Estimates the camera labels of a clip, from coefficients or from its landmarks.

    Returns:
        {"labels", "raw_labels", "residual"}.
    """
    landmarks = item.work.landmarks(item.name).astype(np.float64)
    if options.deep3d is None:
        cameras = estimate_cameras(landmarks, options.resolution, options.sigma)
    else:
        path = _coefficients(item, options)
        if path is None:
            raise TryAgain('no coefficients of the clip in the folder of --deep3d')
        angle, translation = load_coefficients(path)
        if len(angle) != len(landmarks):
            raise TryAgain(f'{len(landmarks)} frames but {len(angle)} coefficients')
        cameras = coefficient_cameras(angle, translation, options.sigma)
    if not np.isfinite(cameras.labels).all():
        raise Skip('no finite camera can be estimated')
    tables = {'labels': cameras.labels.tolist(), 'raw_labels': cameras.raw_labels.tolist()}
    return {**tables, 'residual': cameras.residual}
