"""The files in data/: read whole, and checked."""

import hashlib
from pathlib import Path

from dnnlib.util import UserError, explain_os_error

_FOLDER = Path(__file__).parent / 'data'
_SHA256 = {
    'face_detection_short_range.tflite': '3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633',
    'face_geometry.binarypb': 'bdbcda96dfcb7da883da124aaa2c55dee49770d934f0fcc71747f8c21bdc75b4',
    'face_landmark.tflite': 'c603fa6149219a3e9487dc9abd7a0c24474c77263273d24868378cdf40aa26d1',
}


def read_data(name: str, folder: Path = _FOLDER) -> bytes:
    """Reads a file of data/.

    Raises:
        UserError: if it is missing or not what it should be.
    """
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(explain_os_error(error, path)) from error
    actual = hashlib.sha256(data).hexdigest()
    if actual != _SHA256[name]:
        raise UserError(
            f'{path} is damaged (SHA-256 {actual}, expected {_SHA256[name]}); check the project out again'
        )
    return data
