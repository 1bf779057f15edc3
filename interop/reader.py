"""Opens checkpoints of other programs without running their code: torch.save files and plain pickles.

The restricted reader (`pickle_reader`) builds tensors, numpy values and containers. Objects of the few
packages that such files mention become inert placeholders; any other name is refused. Source of the formats:
the files that torch and numpy write.
"""

import io
import math
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import CheckpointError, explain_os_error
from interop.pickle_reader import Budget, Name, Placeholder, RefusedError, read_pickle
from torch_utils.checkpoint import check_zip

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of what torch.save wrote before it wrote zips
_MAX_AXES = 16  # of tensors and arrays
_MAX_NUMBER = 2**40  # in a shape
_ITEM_BYTES = 64  # a generous guess of what an entry of a container takes
_NUMPY_TYPE = re.compile(r'^[<=|]?([biufc]\d{1,2}|\?|[SU]\d{1,9})$')

_DTYPES = {
    'FloatStorage': torch.float32,
    'DoubleStorage': torch.float64,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'UntypedStorage': torch.uint8,
    'BoolStorage': torch.bool,
}
_STORAGES = {
    **{f'torch.{name}': dtype for name, dtype in _DTYPES.items()},
    'torch.storage.UntypedStorage': torch.uint8,
}

# packages whose objects become placeholders; torch.nn.modules: unnamed parts of EG3D's networks
_FOREIGN = ('omegaconf', 'dnnlib', 'torch_utils', 'training', 'torch.nn.modules')
# mentioned as values by configs; never called
_MENTIONED = {
    *('typing.Any', 'torch.float32', 'torch.float16', 'torch.bfloat16', 'torch.float64', 'torch.int64'),
    *(f'{m}.{n}' for m in ('builtins', '__builtin__') for n in ('int', 'float', 'str', 'bool', 'bytes')),
    *(f'{m}.{n}' for m in ('builtins', '__builtin__') for n in ('dict', 'list', 'tuple')),
    *('__builtin__.long', '__builtin__.unicode'),  # int and str, as torch.save names them
}


def read_foreign(path: str | Path) -> Any:
    """Reads a checkpoint of another program; nothing in it is executed.

    Returns:
        the tree in the file: containers, numbers, texts, numpy values and CPU tensors, and a `Placeholder`
        for every object of a foreign class.

    Raises:
        CheckpointError: if the file is missing, damaged, or asks for more than plain data.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            is_zip = file.read(2) == b'PK'
        if is_zip:
            check_zip(path, 'checkpoint')
            return _read_zip(path)
        return read_bytes(path.read_bytes())
    except OSError as err:
        raise CheckpointError('cannot read ' + explain_os_error(err, path)) from err
    except RefusedError as err:
        raise CheckpointError(f'{path}: refused, {err}; nothing in it was executed') from err


def read_bytes(data: bytes) -> Any:
    """Reads a plain pickle, or what torch.save wrote before it wrote zips.

    Raises:
        RefusedError: if the data are damaged, or ask for more than plain data.
    """
    return _read_stream(data, Budget(len(data)), nested=False)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        roots = [name.removesuffix('data.pkl') for name in names if re.fullmatch(r'[^/]+/data\.pkl', name)]
        if len(roots) != 1:
            raise RefusedError('it is a zip, but not one that torch.save wrote (no data.pkl)')
        root = roots[0]
        if f'{root}byteorder' in names and archive.read(f'{root}byteorder').strip() != b'little':
            raise RefusedError('it was written on a big-endian machine, which is not supported')
        budget = Budget(path.stat().st_size)

        def load(key: str) -> bytes:
            if f'{root}data/{key}' not in names:
                raise RefusedError('it lacks the data of a tensor')
            return archive.read(f'{root}data/{key}')

        vocabulary = _Plain(budget, nested=True)
        vocabulary.storages = _Storages(load, budget)
        return read_pickle(io.BytesIO(archive.read(f'{root}data.pkl')), vocabulary, budget)


def _read_stream(data: bytes, budget: Budget, nested: bool) -> Any:
    """Reads bytes that are no zip; `nested`: they come out of another pickle and may hold no third."""
    stream = io.BytesIO(data)
    first = read_pickle(stream, _Plain(budget, nested), budget)
    if type(first) is not int or first != _MAGIC:
        return first
    read_pickle(stream, _Plain(budget, nested), budget)  # version of the protocol
    system = read_pickle(stream, _Plain(budget, nested), budget)
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise RefusedError('it was written on a big-endian machine, which is not supported')
    vocabulary = _Plain(budget, nested)
    vocabulary.storages = _Storages(None, budget)
    value = read_pickle(stream, vocabulary, budget)
    keys = read_pickle(stream, _Plain(budget, nested), budget)
    vocabulary.storages.fill(keys, stream)
    return value


class _Storages:
    """The flat tensors [numel] behind the tensors of one torch.save file, by their keys.

    Args of the constructor: how to load the bytes of a key; None when they follow after the pickle.
    """

    def __init__(self, load: Any, budget: Budget) -> None:
        self.load, self.budget = load, budget
        self.found: dict[str, Tensor] = {}

    def fetch(self, reference: Any) -> Tensor:
        """Returns the storage that a persistent reference ('storage', type, key, location, numel) means."""
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != 'storage':
            raise RefusedError('it is damaged (a reference to no storage)')
        _, kind, key, _, numel, *view = reference
        dtype = _STORAGES.get(str(kind)) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise RefusedError('it has a storage of an unknown type')
        if any(part is not None for part in view):
            raise RefusedError('it has a part of a storage, as only very old versions of torch wrote')
        if key not in self.found:
            self.budget.spend(numel * dtype.itemsize)
            self.found[key] = (
                torch.empty(numel, dtype=dtype) if self.load is None else _flat(self.load(key), dtype, numel)
            )
        storage = self.found[key]
        if storage.dtype != dtype or len(storage) != numel:
            raise RefusedError('it is damaged (two references to one storage differ)')
        return storage

    def fill(self, keys: Any, stream: io.BytesIO) -> None:
        """Reads the bytes that follow a pickle: for each key the number of elements, and these."""
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in self.found for key in keys):
            raise RefusedError('it is damaged (its storages are not those that it lists)')
        if len(keys) != len(self.found):
            raise RefusedError('it is damaged (the data of a storage are missing)')
        for key in keys:
            storage = self.found[key]
            count = int.from_bytes(stream.read(8), 'little')
            if count != len(storage):
                raise RefusedError('it is damaged (a storage of another size)')
            storage.copy_(_flat(stream.read(count * storage.dtype.itemsize), storage.dtype, count))


def _flat(data: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    if len(data) != numel * dtype.itemsize:
        raise RefusedError('it is cut short, or declares other sizes than it has')
    if sys.byteorder != 'little':
        raise RefusedError('it cannot be read on a big-endian machine')
    return torch.frombuffer(bytearray(data), dtype=dtype) if numel else torch.empty(0, dtype=dtype)


class _Plain:
    """The vocabulary of checkpoints: what names, calls and references in their pickles may mean."""

    def __init__(self, budget: Budget, nested: bool) -> None:
        self.budget = budget
        self.storages: _Storages | None = None
        self.calls = {
            'torch._utils._rebuild_tensor_v2': self._tensor,
            'torch._utils._rebuild_parameter': lambda data, *_: _checked(data, Tensor),
            'torch._utils._rebuild_parameter_with_state': lambda data, *_: _checked(data, Tensor),
            'torch.Size': self._tuple,
            'torch.device': lambda *args: ':'.join(map(str, self._tuple(args))),
            'torch.serialization._get_layout': lambda name: _checked(name, str),
            'collections.OrderedDict': self._ordered,
            'collections.defaultdict': lambda *_: {},  # of omegaconf; what makes its defaults is of no use
            'dnnlib.util.EasyDict': lambda *args: dict(self._ordered(*args)),
            '_codecs.encode': self._encode,
            'numpy.dtype': _numpy_type,
            'numpy.ndarray': lambda *_: None,
        }
        for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            self.calls[f'{core}.scalar'] = _numpy_scalar
            self.calls[f'{core}._reconstruct'] = lambda *_: np.empty(0, np.uint8)
        for core in ('numpy.core.numeric', 'numpy._core.numeric'):
            self.calls[f'{core}._frombuffer'] = self._array
        for builtins in ('builtins', '__builtin__'):
            self.calls[f'{builtins}.set'] = lambda *args: set(self._tuple(*args))
        if not nested:
            self.calls['torch.storage._load_from_bytes'] = self._load_from_bytes

    def find(self, name: Name) -> Name:
        """Lets known names pass, as names."""
        text = str(name)
        known = text in self.calls or text in _MENTIONED or text in _STORAGES
        if not known and not any(text.startswith(f'{package}.') for package in _FOREIGN):
            raise RefusedError(f'it asks for {text}, which is not plain data')
        return name

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Builds what a known function builds; a placeholder for a foreign class."""
        if not isinstance(function, Name):
            raise RefusedError(f'it calls a {type(function).__name__}')
        text = str(function)
        if text in self.calls:
            return self.calls[text](*args)
        if text in _MENTIONED or text in _STORAGES:
            raise RefusedError(f'it calls {text}, which is not plain data')
        return Placeholder(function, args)

    def restore(self, thing: Any, state: Any) -> None:
        """Puts a state into a placeholder or a numpy array; attributes of plain containers are left out."""
        if isinstance(thing, Placeholder):
            thing.state = state
        elif isinstance(thing, np.ndarray):
            self._fill_array(thing, state)
        elif isinstance(thing, np.dtype):
            if not isinstance(state, tuple) or state[1:2] not in [('<',), ('|',), ('=',)]:
                raise RefusedError('it has numbers in an unknown byte order')
        elif not isinstance(thing, (OrderedDict, dict)):
            raise RefusedError(f'it is damaged (a state for a {type(thing).__name__})')

    def fetch(self, reference: Any) -> Any:
        """Returns the storage that a reference means."""
        if self.storages is None:
            raise RefusedError('it refers to data that are not in it')
        return self.storages.fetch(reference)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        """Makes a tensor of a storage, which is a flat tensor here."""
        numbers = (offset, *_checked(size, tuple), *_checked(stride, tuple))
        whole = all(type(n) is int and 0 <= n <= _MAX_NUMBER for n in numbers)
        if not isinstance(storage, Tensor) or storage.ndim != 1 or not whole or len(size) != len(stride):
            raise RefusedError('it is damaged (a tensor with an impossible shape)')
        numel, last = math.prod(size), offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if len(size) > _MAX_AXES or numel > len(storage) or (numel and last >= len(storage)):
            raise RefusedError(
                f'it has a tensor of shape {list(size)[:_MAX_AXES]} without the numbers for it'
            )
        self.budget.spend(numel * storage.dtype.itemsize)
        return storage.as_strided(size, stride, offset) if numel else storage.new_empty(size)

    def _load_from_bytes(self, data: Any) -> Any:
        """A storage inside a plain pickle: a torch.save file of its own, as bytes."""
        self.budget.spend(len(_checked(data, bytes)))
        return _checked(_read_stream(data, self.budget, nested=True), Tensor)

    def _tuple(self, values: Any = ()) -> tuple[Any, ...]:
        if not isinstance(values, (tuple, list)) or not all(isinstance(v, (int, float, str)) for v in values):
            raise RefusedError('it is damaged (a set or size of what is no number or text)')
        self.budget.spend(_ITEM_BYTES * len(values))
        return tuple(values)

    def _ordered(self, items: Any = ()) -> OrderedDict[Any, Any]:
        pairs = list(items.items()) if isinstance(items, dict) else items
        self.budget.spend(_ITEM_BYTES * len(_checked(pairs, (tuple, list))))
        if not all(
            isinstance(p, (tuple, list)) and len(p) == 2 and isinstance(p[0], (str, int)) for p in pairs
        ):
            raise RefusedError('it is damaged (a dictionary of what are no pairs)')
        return OrderedDict((k, v) for k, v in pairs)

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """Bytes, as protocol 2 writes them."""
        if encoding != 'latin1':
            raise RefusedError('it has bytes in an unknown encoding')
        self.budget.spend(len(_checked(text, str)))
        return text.encode('latin1')

    def _array(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """A numpy array as protocol 5 writes it."""
        array = np.empty(0, np.uint8)
        self._fill_array(array, (1, shape, dtype, order == 'F', bytes(_checked(data, (bytes, bytearray)))))
        return array

    def _fill_array(self, array: np.ndarray, state: Any) -> None:
        """Gives an empty array its shape and numbers, from (version, shape, type, is_fortran, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5 or array.size:
            raise RefusedError('it is damaged (a state of no numpy array)')
        _, shape, dtype, fortran, data = state
        whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if (
            not whole
            or len(shape) > _MAX_AXES
            or not isinstance(dtype, np.dtype)
            or not isinstance(data, bytes)
        ):
            raise RefusedError('it is damaged (a state of no numpy array)')
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise RefusedError(f'it has a numpy array of shape {list(shape)} without the numbers for it')
        self.budget.spend(len(data))
        array.__setstate__((1, shape, dtype, bool(fortran), data))


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise RefusedError(f'it is damaged (a {type(value).__name__} in a wrong place)')
    return value


def _numpy_type(text: Any, *_: Any) -> np.dtype:
    if not isinstance(text, str) or not _NUMPY_TYPE.match(text):
        raise RefusedError(f'it has numpy values of the type {ascii(text)[:40]}')
    return np.dtype(text)


def _numpy_scalar(dtype: Any, data: Any) -> np.generic:
    return np.frombuffer(_checked(data, bytes), _checked(dtype, np.dtype), count=1)[0]
