"""MediaPipe's canonical face: 468 points, their triangles and weights; and 68 of them in the iBUG order."""

import functools

import numpy as np

from preprocessing.faces.files import read_data

# The points nearest to those of iBUG 300-W, in its order, from the picture's left to its right: jaw 0-16,
# brows 17-26, bridge and base of the nose 27-35, eyes 36-47, outer lips 48-59, inner lips 60-67. Where the
# mesh has none at the same place (jaw, inner lips) those that divide the line most evenly, as there.
SIXTY_EIGHT = (
    *(127, 234, 132, 58, 172, 136, 150, 176, 152, 400, 379, 365, 397, 288, 361, 454, 356),
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),
    *(168, 197, 5, 4, 98, 97, 2, 326, 327),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 81, 13, 311, 308, 402, 14, 178),
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf
_VERTEX = 5  # floats: x, y, z, u, v


def points() -> np.ndarray:
    """Returns the canonical face, float64 [468, 3]: cm, x right as seen, y up, z towards the viewer."""
    mesh = _fields(_metadata()[1][0])
    vertices = np.frombuffer(b''.join(mesh[3]), '<f4').reshape(-1, _VERTEX)
    return vertices[:, :3].astype(np.float64)


def triangles() -> np.ndarray:
    """Returns the triangles between the points, int64 [898, 3]."""
    mesh = _fields(_metadata()[1][0])
    return np.array(mesh[4]).reshape(-1, 3)


def procrustes_weights() -> np.ndarray:
    """Returns how much each point counts where the face is placed, float64 [468]; most are 0.

    MediaPipe chose rigid places: about the eyes, the nose, and others that expressions hardly move.
    """
    weights = np.zeros(len(points()))
    for entry in _metadata()[2]:
        fields = _fields(entry)
        weights[fields[1][0] if 1 in fields else 0] = np.frombuffer(fields[2][0], '<f4')[0]
    return weights


@functools.cache
def _metadata() -> dict[int, list]:
    """Reads GeometryPipelineMetadata: 1 = canonical mesh, 2 = weighted points."""
    return _fields(read_data('face_geometry.binarypb'))


def _fields(message: bytes) -> dict[int, list]:
    """Reads a protobuf message: number of the field -> its values; varints as int, all else as bytes."""
    fields: dict[int, list] = {}
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
        else:
            if kind == _BYTES:
                length, place = _varint(message, place)
            else:
                length = {_FIXED64: 8, _FIXED32: 4}[kind]
            value, place = message[place : place + length], place + length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Returns a number and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
