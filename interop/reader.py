"""Reads checkpoints of other programs without running their code: torch.save files and plain pickles.

The standard unpickler does the reading, but nothing of a file is ever looked up, imported or called: a class
or function that it names stays a `Name`. Calls of the names in `_BUILDERS` make tensors, numbers and
containers; every other call makes an inert `Placeholder`. Limits keep a small hostile file from taking long
or much memory. Source of the formats: the files that torch and numpy write.
"""

import dataclasses
import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import CheckpointError, is_out_of_memory
from torch_utils.checkpoint import check_zip

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the files that torch.save wrote before it wrote zips
_MAX_OPCODES = 300_000  # in all pickles of a file; the released PV3D and EG3D need about 60 thousand
_MAX_BITS = 64  # of an integer; many longer ones can have the same hash, which makes dictionaries slow
_MAX_NAME = 128  # characters of a module, class or function: the rest is cut off
_MAX_LENGTH = 16  # axes of a tensor; parts of a tuple that is a key
_REFUSED = b'\x82\x83\x84\x92\x97\x98io'  # extensions, calls by keyword, buffers, old instances
_NUMBER = re.compile(r'b1|[iu][1248]|f[248]')  # numpy's types of plain numbers
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

Load = Callable[[str, torch.dtype, int], Tensor]  # key, type and number of elements of a storage -> [numel]
_RefusedError = pickle.UnpicklingError  # its message names what is wrong with 'it', the file


class Name(str):
    """A class or function that a file names, as `module.name`; never looked up."""


@dataclasses.dataclass(eq=False, repr=False)
class Placeholder:
    """Stands for a foreign object: holds the arguments and the state that it was given, and does nothing."""

    name: Name
    args: tuple[Any, ...]
    state: Any = None

    def append(self, element: Any) -> None:
        """Drops an element of a foreign list."""


def read_foreign(path: str | Path) -> Any:
    """Reads a checkpoint of another program; nothing in it is executed.

    Returns:
        the tree in the file: containers, numbers, texts and CPU tensors, and a `Placeholder` for every other
        object. Branches may be shared, deep, or contain themselves: never print or compare them unchecked.

    Raises:
        CheckpointError: if the file is corrupted, or asks for too much memory or time.
        OSError: if it cannot be opened.
        MemoryError, RuntimeError: if the memory ran out.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            is_zip = file.read(2) == b'PK'
        if is_zip:
            check_zip(path, 'checkpoint')
            return _read_zip(path)
        data = path.read_bytes()
        return _read_stream(io.BytesIO(data), _Budget(len(data)))
    except (OSError, CheckpointError):  # the latter of a corrupted zip
        raise
    except Exception as err:  # corrupted bytes make an unpickler raise nearly anything
        if is_out_of_memory(err):  # the file may be fine
            raise
        reason = ascii(''.join(str(err).splitlines()[:1])[:100])[1:-1]
        if not isinstance(err, _RefusedError):
            reason = f'it cannot be read as plain data ({type(err).__name__}: {reason})'
        raise CheckpointError(f'{path}: refused, {reason}; nothing in it was executed') from err


class _Budget:
    """What is left of the work and memory that a file may cost, shared by the pickles inside it."""

    def __init__(self, file_bytes: int) -> None:
        self.opcodes = _MAX_OPCODES
        self.bytes = 8 * file_bytes + 2**20  # tensors may share a storage

    def spend(self, count: int) -> None:
        """Counts `count` bytes of storages, tensors or copies."""
        self.bytes -= count
        if self.bytes < 0:
            raise _RefusedError('it declares more data than a file of its size can hold')

    def copied(self, items: Any, item_bytes: int = 1) -> Any:
        """Counts a copy of `items`, and returns these."""
        self.spend(item_bytes * len(items))
        return items


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        roots = [name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')]
        if len(roots) != 1:
            raise _RefusedError(f'it has {len(roots)} files */data.pkl, where a checkpoint has one')
        root = roots[0]
        _check_order(f'{root}byteorder' not in names or archive.read(f'{root}byteorder').strip() == b'little')

        def load(key: str, dtype: torch.dtype, numel: int) -> Tensor:
            return _flat(archive.read(f'{root}data/{key}'), dtype, numel)

        return _read_pickle(io.BytesIO(archive.read(f'{root}data.pkl')), _Budget(path.stat().st_size), load)


def _read_stream(stream: io.BytesIO, budget: _Budget) -> Any:
    """Reads a plain pickle, or the five pickles and the storages that torch.save wrote before zips."""
    first = _read_pickle(stream, budget)
    if type(first) is not int or first != _MAGIC:
        return first
    _read_pickle(stream, budget)  # version of the format
    _check_order(_read_pickle(stream, budget)['little_endian'] is True)
    storages: dict[str, Tensor] = {}

    def load(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        storages[key] = torch.empty(numel, dtype=dtype)
        return storages[key]

    value = _read_pickle(stream, budget, load)
    for key in _hashable(_read_pickle(stream, budget)):
        storage, numel = storages.pop(key), int.from_bytes(stream.read(8), 'little')
        storage.copy_(_flat(stream.read(storage.nbytes), storage.dtype, numel))
    if storages:
        raise _RefusedError('it is truncated (the data of a storage are missing)')
    return value


def _check_order(little_endian: bool) -> None:
    if not little_endian:
        raise _RefusedError('it was written on a big-endian machine, which is not supported')


def _flat(data: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    if len(data) != numel * dtype.itemsize:
        raise _RefusedError('it is truncated, or declares other sizes than it has')
    return torch.frombuffer(bytearray(data), dtype=dtype) if numel else torch.empty(0, dtype=dtype)


def _read_pickle(stream: io.BytesIO, budget: _Budget, load: Load | None = None) -> Any:
    """Looks through one pickle, then reads it, and leaves the stream behind its end."""
    start = stream.tell()
    for _, argument, _ in pickletools.genops(stream):  # also checks that the bytes of each argument exist
        budget.opcodes -= 1
        long = isinstance(argument, int) and argument.bit_length() > _MAX_BITS and argument != _MAGIC
        if budget.opcodes < 0 or long:
            raise _RefusedError(f'it has more than {_MAX_OPCODES} instructions, or too long a number')
    end = stream.tell()
    stream.seek(start)
    value = _Unpickler(stream, budget, load).load()
    stream.seek(end)
    return value


class _Unpickler(pickle._Unpickler):
    """The standard unpickler in Python; that in C has fixed instructions, and trusts numbers about memory.

    Replaced are the instructions that call, look up, hash, or change anything but a list.
    """

    def __init__(self, stream: io.BytesIO, budget: _Budget, load: Load | None) -> None:
        super().__init__(stream, encoding='latin1')
        self.budget, self.load_storage = budget, load
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Name:
        """Returns the name of a class or function, whatever that is."""
        return Name(f'{module[:_MAX_NAME]}.{name[:_MAX_NAME]}')

    def persistent_load(self, pid: Any) -> Tensor:
        """Returns the storage that a reference ('storage', type, key, location, numel) means, as [numel]."""
        _, kind, key, _, numel, *view = pid[:6]
        known = isinstance(kind, Name) and type(key) is str and type(numel) is int and not any(view)
        if not known or self.load_storage is None:
            raise _RefusedError('it refers to data of an unknown kind')
        dtype = _DTYPES[kind.rpartition('.')[2]]
        if key not in self.storages:
            self.budget.spend(numel * dtype.itemsize)
            self.storages[key] = self.load_storage(key, dtype, numel)
        return self.storages[key].view(dtype)

    def _call(self) -> None:
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise _RefusedError('it calls what is not a function')
        build = _BUILDERS.get(name)
        self.append(build(self.budget, *args) if build else Placeholder(name, args))

    def _set_state(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder):  # attributes of anything else are of no use
            self.stack[-1].state = state

    def _dict(self) -> None:
        self.metastack[-1].append({})  # below the mark
        self._update()

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _update(self, items: list[Any] | None = None) -> None:
        items, target = self.pop_mark() if items is None else items, self.stack[-1]
        if isinstance(target, set):
            target.update(_hashable(items))
        elif not isinstance(target, Placeholder):
            dict.update(target, zip(_hashable(items[::2]), items[1::2], strict=True))

    def _frozenset(self) -> None:
        items = self.pop_mark()  # first: it replaces the list that `self.append` belongs to
        self.append(frozenset(_hashable(items)))

    def _refuse(self) -> None:
        raise _RefusedError('it has an instruction that no such file needs')

    dispatch = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys(_REFUSED, _refuse),
        **dict.fromkeys(pickle.REDUCE + pickle.NEWOBJ, _call),
        **dict.fromkeys(pickle.SETITEMS + pickle.ADDITEMS, _update),
        pickle.SETITEM[0]: _set_item,
        pickle.DICT[0]: _dict,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BUILD[0]: _set_state,
    }


def _hashable(keys: Any) -> Any:
    """Lets plain keys pass; hashes of other tuples could overflow the stack, take long, or collide."""
    for key in keys:
        texts = isinstance(key, tuple) and len(key) <= _MAX_LENGTH and all(isinstance(k, str) for k in key)
        if not texts and not isinstance(key, (str, bytes, int, float, type(None), Placeholder)):
            raise _RefusedError(f'it uses a {type(key).__name__} as the key of a dictionary or set')
    return keys


def _tensor(budget: _Budget, storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """Makes a tensor of a storage, which is a flat tensor here."""
    fits = type(size) is type(stride) is tuple and len(size) == len(stride) <= _MAX_LENGTH
    if fits and all(type(n) is int and n >= 0 for n in (offset, *size, *stride)) and storage.ndim == 1:
        numel = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if numel == 0:
            return storage.new_empty(size)
        if max(numel, last + 1) <= len(storage):
            budget.spend(numel * storage.itemsize)
            return storage.as_strided(size, stride, offset)
    raise _RefusedError('it has a tensor of a shape that its storage cannot hold')


def _number(_: _Budget, dtype: Placeholder, data: bytes) -> Any:
    """Turns a scalar of numpy into a number; those that are not numbers stay as they are."""
    kind = dtype.args[0]
    if isinstance(kind, str) and _NUMBER.fullmatch(kind) and dtype.state[1] != '>':
        return np.frombuffer(data, f'<{kind}', count=1)[0].item()
    return Placeholder(Name('numpy.generic'), (dtype, data))


def _set(budget: _Budget, elements: Any = ()) -> set[Any]:
    return set(_hashable(budget.copied(elements, item_bytes=64)))


def _mapping(budget: _Budget, pairs: Any = ()) -> dict[Any, Any]:
    """Makes a dictionary of pairs, which Python 2 gives to an OrderedDict as an argument."""
    if not isinstance(pairs, (list, tuple)):
        raise _RefusedError('it makes a dictionary of other things than pairs')
    for pair in budget.copied(pairs, item_bytes=64):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise _RefusedError('it makes a dictionary of other things than pairs')
        _hashable(pair[:1])
    return dict(pairs)


# The names that mean something: what a call of each builds, given the budget and the arguments of the call.
_BUILDERS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': lambda _, tensor, *__: tensor,
    'torch._utils._rebuild_parameter_with_state': lambda _, tensor, *__: tensor,
    'torch.Size': lambda _, size: size,
    # a storage inside a plain pickle: a torch.save file of its own, as bytes
    'torch.storage._load_from_bytes': lambda budget, data: _read_stream(
        io.BytesIO(budget.copied(data)), budget
    ),
    'collections.OrderedDict': _mapping,
    'collections.defaultdict': lambda budget, _=None, *pairs: _mapping(budget, *pairs),  # _: its factory
    'dnnlib.util.EasyDict': _mapping,
    'builtins.set': _set,
    '__builtin__.set': _set,
    '_codecs.encode': lambda budget, text, _: budget.copied(text).encode('latin1'),  # bytes, in protocol 2
    'numpy.core.multiarray.scalar': _number,
    'numpy._core.multiarray.scalar': _number,
}
