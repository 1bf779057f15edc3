"""Reads flatbuffers without their schema compiled: fields are asked for by number.

The layout (all little endian) is stated in https://flatbuffers.dev/internals: an offset to the root table at
the beginning; a table begins with the distance back to its vtable, which says where each field lies; vectors
begin with their length; tables, vectors and strings are referred to by an offset from where it stands.
"""

import numpy as np


class Table:
    """A table of a flatbuffer.

    Args:
        data: the whole file.
        position: where the table begins.
    """

    def __init__(self, data: bytes, position: int):
        self._data = data
        self._position = position

    @classmethod
    def root(cls, data: bytes) -> 'Table':
        """Returns the table of the whole file."""
        return cls(data, _number(data, 0, '<u4'))

    def scalar(self, field: int, kind: str, default: int = 0) -> int:
        """Returns a number; `kind` is a numpy type such as '<i4'. A field not stored has its default."""
        place = self._place(field)
        return default if place is None else _number(self._data, place, kind)

    def vector(self, field: int, kind: str) -> np.ndarray:
        """Returns a vector of numbers, read-only; empty if it is not stored."""
        place = self._target(field)
        if place is None:
            return np.empty(0, kind)
        return _numbers(self._data, place + 4, kind, _number(self._data, place, '<u4'))

    def text(self, field: int) -> str:
        """Returns a string; '' if it is not stored."""
        return self.vector(field, 'u1').tobytes().decode()

    def table(self, field: int) -> 'Table | None':
        """Returns a table; None if it is not stored."""
        place = self._target(field)
        return None if place is None else Table(self._data, place)

    def tables(self, field: int) -> 'list[Table]':
        """Returns a vector of tables; empty if it is not stored."""
        place = self._target(field)
        if place is None:
            return []
        offsets = self.vector(field, '<u4').tolist()
        return [Table(self._data, place + 4 + 4 * i + offset) for i, offset in enumerate(offsets)]

    def _place(self, field: int) -> int | None:
        vtable = self._position - _number(self._data, self._position, '<i4')
        entry = 4 + 2 * field  # after the sizes of vtable and table
        offset = 0
        if entry < _number(self._data, vtable, '<u2'):
            offset = _number(self._data, vtable + entry, '<u2')
        return self._position + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + _number(self._data, place, '<u4')


def _numbers(data: bytes, place: int, kind: str, count: int) -> np.ndarray:
    if not 0 <= place <= len(data) - count * np.dtype(kind).itemsize:
        raise ValueError(f'it ends before byte {place}, where something should be')
    return np.frombuffer(data, kind, count, place)


def _number(data: bytes, place: int, kind: str) -> int:
    return int(_numbers(data, place, kind, 1)[0])
