"""The restricted reader: it reads what pickle and torch read, executes nothing, and survives any bytes."""

import importlib
import io
import math
import os
import pickle
import random
import struct
import subprocess
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from dnnlib.util import CheckpointError
from interop.pickle_reader import MAX_DEPTH, MAX_OPCODES, Placeholder, RefusedError
from interop.reader import read_bytes, read_foreign
from support.foreign_files import (
    AnyNode,
    ContainerMetadata,
    EasyDict,
    ListConfig,
    Persistent,
    _called,
    list_config,
    pretended,
)


def plain_values():
    """Returns values of every kind that checkpoints hold."""
    base = torch.arange(24.0)
    return {
        **{'t': base.view(2, 3, 4), 'slice': base[3:9:2], 'transposed': base.view(4, 6).t()},
        **{'parameter': nn.Parameter(torch.ones(3)), 'scalar': torch.tensor(2.5), 'empty': torch.empty(0, 3)},
        **{f'{d}': torch.ones(2, dtype=getattr(torch, d)) for d in ('float16', 'bfloat16', 'int64', 'bool')},
        **{'f64': np.arange(6.0).reshape(2, 3), 'fortran': np.asfortranarray(np.ones((2, 3), np.int32))},
        **{'number': np.float32(3), 'texts': np.array(['ab', 'c']), 'size': torch.Size([2, 3])},
        **{'ordered': OrderedDict(b=1, a=2), 'set': {1, 'a'}, 'bytes': b'ab\xff', 'big': 2**70, 'neg': -5},
        **{
            'none': None,
            'inf': math.inf,
            'bools': [True, False],
            'nested': ((), (1,), (1, 2, 3, 4), {1: 'ä', ('a', 'b'): 2}),
        },
        'state': nn.Linear(2, 3).state_dict(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    return a == b and type(a) in (type(b), torch.Size)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol):
    values = plain_values()
    if protocol < 2:
        del values['size']  # a subclass of tuple, rebuilt by another function there
    assert same(values, read_bytes(pickle.dumps(values, protocol=protocol)))


@pytest.mark.parametrize('new', [True, False])
def test_files_of_torch(tmp_path, new):
    values = {k: v for k, v in plain_values().items() if k not in ('f64', 'fortran', 'texts', 'number')}
    torch.save(values, tmp_path / 'a.pt', _use_new_zipfile_serialization=new)
    found = read_foreign(tmp_path / 'a.pt')
    assert same(values, found)
    assert found['t'].data_ptr() == found['transposed'].data_ptr()  # storages stay shared


def test_foreign_classes_are_inert():
    class Odd(ListConfig):
        def __setstate__(self, state):
            raise AssertionError

    Odd.__module__, Odd.__qualname__, Odd.__name__ = 'omegaconf.listconfig', 'Odd', 'Odd'
    odd = Odd()
    odd.__dict__['_x'] = 1
    with pretended(a=ListConfig, b=AnyNode, c=EasyDict, d=Odd, e=ContainerMetadata):
        data = pickle.dumps({'betas': list_config([0, 0.9]), 'easy': EasyDict(a=1), 'odd': odd})
    found = read_bytes(data)
    assert isinstance(found['betas'], Placeholder) and str(found['betas'].cls).endswith('ListConfig')
    first = found['betas'].state['_content'][0]
    assert found['betas'].state['_metadata'].state['resolver_cache'] == {}
    assert first.state['_val'] == 0 and first.state['_parent'] is found['betas']
    assert found['easy'] == {'a': 1} and found['odd'].state == {'_x': 1}


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    command = f'touch {tmp_path / "ran"}'
    yield Calls(os.system, command), 'system'
    yield Calls(os.popen, command), 'popen'
    yield Calls(exec, f'open({str(tmp_path / "ran")!r}, "w")'), 'builtins.exec'
    yield Calls(eval, '1'), 'builtins.eval'
    yield Calls(getattr, 'a', 'b'), 'builtins.getattr'
    yield Calls(__import__, 'this'), 'builtins.__import__'
    yield Calls(importlib.import_module, 'this'), 'importlib.import_module'
    yield Calls(subprocess.Popen, ['touch', str(tmp_path / 'ran')]), 'subprocess.Popen'
    yield Calls(torch.load, 'x'), 'torch.serialization.load'
    yield Calls(torch.hub.load, 'x', 'y'), 'torch.hub.load'
    yield Calls(float, '1' * 9), 'builtins.float'
    yield Calls(list, ('a',)), 'builtins.list'
    yield Calls(pickle.loads, b'x'), 'loads'


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_calls_are_refused(tmp_path, protocol):
    for value, name in hostile(tmp_path):
        for content in (value, {'state': [1, value]}):
            data = pickle.dumps(content, protocol=protocol)
            function = name.split('.')[-1]  # modules have other names in old protocols
            with pytest.raises(
                RefusedError, match=rf'(?:asks for|calls) \S+\.{function}, which is not plain data'
            ):
                read_bytes(data)
    assert not (tmp_path / 'ran').exists()


def test_hostile_files_are_refused_with_a_sentence(tmp_path):
    for i, (value, name) in enumerate(hostile(tmp_path)):
        path = tmp_path / f'{i}.pkl'
        path.write_bytes(pickle.dumps(value))
        torch.save({'model': value}, tmp_path / f'{i}.ckpt')
        for file in (path, path.with_suffix('.ckpt')):
            with pytest.raises(CheckpointError) as info:
                read_foreign(file)
            text = str(info.value)
            assert (
                text.startswith(f'{file}: refused, it ') and name.split('.')[-1] in text and '\n' not in text
            )
            assert text.endswith('nothing in it was executed')
    assert not (tmp_path / 'ran').exists()


def test_source_code_is_a_text(tmp_path):
    source = f'open({str(tmp_path / "ran")!r}, "w")'
    with pretended(a=EasyDict, b=_called):
        data = pickle.dumps({'G': Persistent('Net', {'_parameters': {}}, source)})
    found = read_bytes(data)['G']
    assert isinstance(found, Placeholder) and found.args[0]['module_src'] == source
    assert not (tmp_path / 'ran').exists()


def binary(text):
    data = text.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def name(module, function):
    return f'c{module}\n{function}\n'.encode()


def storage(numel):
    return pickle.dumps(torch.zeros(numel).untyped_storage(), 2)[2:-1]


def tensor_of(size, stride, offset=0):
    """Pickles a tensor over a storage of 4 bytes with a shape of one's own."""
    numbers = [pickle.dumps(x, 2)[2:-1] for x in (offset, size, stride)]
    return (
        b'\x80\x02'
        + name('torch._utils', '_rebuild_tensor_v2')
        + b'('
        + storage(1)
        + b''.join(numbers)
        + b'\x89NtR.'
    )


def storage_part():
    """Writes the layout before zips, with a storage that is a part of another one."""
    stream = io.BytesIO()
    torch.save(torch.ones(2), stream, _use_new_zipfile_serialization=False)
    data, old = stream.getvalue(), b'K\x02Ntq'  # two numbers, None
    assert data.count(old) == 1
    return data.replace(old, b'K\x02' + binary('0') + b'K\x00K\x02\x87tq')


def array_of(shape, kind='f8', data=b'x' * 8):
    state = pickle.dumps((1, shape), 2)[2:-1]
    dtype = name('numpy', 'dtype') + b'(' + binary(kind) + b'tR'
    start = b'\x80\x03' + name('numpy._core.multiarray', '_reconstruct') + b'(tR'
    shape_bytes = pickle.dumps(shape, 2)[2:-1]
    return (
        start + b'(K\x01' + shape_bytes + dtype + b'\x89C' + bytes([len(data)]) + data + b'tb.'
        if state
        else b''
    )


def numbers_as_keys(count):
    """Pickles a dictionary of numbers that all have the same hash."""
    numbers = [(k * (2**61 - 1)).to_bytes(16, 'little') for k in range(1, count)]
    return b'}(' + b''.join(b'\x8a\x10' + n + b'N' for n in numbers) + b'u.'


HUGE = struct.pack('<Q', 2**62)
BOMBS = {
    'deep list': (b']' * 100_000 + b'a' * 99_999 + b'.', f'more than {MAX_DEPTH} levels deep'),
    'deep tuple': (b')' + b'\x85' * 100_000 + b'.', f'more than {MAX_DEPTH} levels deep'),
    'key of numbers': (b'}K\x01\x85Ns.', 'a tuple as the key'),
    'deep key': (b'})' + b'\x85' * 100_000 + b'Ns.', 'a tuple as the key'),
    'deep in a placeholder': (
        name('omegaconf.x', 'A')
        + b')\x81'
        + b')'
        + b'\x85' * 100_000
        + b'b'
        + b')'
        + b'\x85' * 300
        + b'\x86.',
        'levels deep',
    ),
    'circle': (b']q\x00h\x00a.', 'contains itself'),
    'laughs': (b']' + b'q\x00]h\x00ah\x00a' * 300 + b'.', 'damaged|levels deep'),
    'instructions': (b'0'.join([b'N'] * (MAX_OPCODES // 2 + 2)) + b'.', 'more than .* instructions'),
    'colliding keys': (numbers_as_keys(20_000), 'a int as the key'),
    'long name': (binary('omegaconf.' + 'x' * 2**20) + b'q\x00h\x00\x93.', 'a name of more than'),
    'memo': (b'Np' + str(2**61).encode() + b'\n.', 'an impossible number'),
    'part of a storage': (storage_part(), 'a part of a storage'),
    'long text': (b'\x8d' + HUGE + b'abc.', 'damaged'),
    'long bytes': (b'\x8e' + HUGE + b'abc.', 'damaged'),
    'frame': (b'\x80\x04\x95' + HUGE + b'N.', ''),
    'long number': (b'\x8b' + struct.pack('<i', 2**20) + b'\x01' * 2**20 + b'.', 'a number of .* bits'),
    'copies': (
        binary('x' * 2**20)
        + b'q\x00'
        + (b'0' + name('_codecs', 'encode') + b'(h\x00' + binary('latin1') + b'tR') * 50
        + b'.',
        'more data than',
    ),
    'tensor': (tensor_of((10**12,), (0,)), 'without the numbers'),
    'tensor beyond': (tensor_of((1,), (1,), 2**39), 'without the numbers'),
    'tensor shape': (tensor_of((0, 2**63), (1, 1)), 'impossible shape'),
    'tensor negative': (tensor_of((-1,), (1,)), 'impossible shape'),
    'array': (array_of((10**12,)), 'without the numbers'),
    'array of objects': (array_of((1,), 'O'), "type 'O'"),
    'array negative': (array_of((-1, -1)), 'no numpy array'),
    'extension': (b'\x82\x01.', 'instruction EXT1'),
    'instance': (b'(ios\nsystem\n.', 'instruction INST'),
    'buffer': (b'\x97.', 'instruction NEXT_BUFFER'),
    'reference': (b'K\x01Q.', 'refers to data that are not in it'),
    'text called': (b'U\x01a)R.', 'calls a str'),
    'pickle in pickle': (
        name('torch.storage', '_load_from_bytes')
        + b'(C'
        + (lambda inner: bytes([len(inner)]) + inner)(name('torch.storage', '_load_from_bytes') + b'.')
        + b'tR.',
        'asks for torch.storage._load_from_bytes',
    ),
    'nothing': (b'.', 'damaged'),
    'no end': (b'N', 'damaged'),
    'no pickle': (b'hello', 'damaged'),
    'empty': (b'', 'damaged'),
}


def test_many_references_to_a_long_list_are_read_quickly():
    start = time.perf_counter()
    inner, *outer = read_bytes(b'](](' + b'N' * 40_000 + b'eq\x00' + b'h\x00' * 40_000 + b'e.')
    assert len(inner) == 40_000 and all(other is inner for other in outer)
    assert time.perf_counter() - start < 10  # minutes when the list is looked through for each


@pytest.mark.parametrize('kind', BOMBS)
def test_bombs_are_refused_quickly(kind):
    data, message = BOMBS[kind]
    start = time.perf_counter()
    if kind == 'frame':  # a frame of any length changes nothing
        assert read_bytes(data) is None
    else:
        with pytest.raises(RefusedError, match=message):
            read_bytes(data)
    assert time.perf_counter() - start < 20


def test_zip_bombs_are_refused(tmp_path):
    torch.save({'a': torch.ones(4)}, tmp_path / 'a.pt')
    with zipfile.ZipFile(tmp_path / 'a.pt') as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    key = next(n for n in files if n.endswith('data/0'))

    def write(compression=zipfile.ZIP_STORED, **changes):
        with zipfile.ZipFile(tmp_path / 'b.pt', 'w', compression) as archive:
            for n, data in {**files, **changes}.items():
                if data is not None:
                    archive.writestr(n, data)

    cases = [
        ({key: b'\0' * 10}, 'cut short, or declares other sizes'),
        ({key: None}, 'lacks the data of a tensor'),
        ({'a/data.pkl': None, 'x': b'1'}, 'another zip .with'),
        ({'a/byteorder': b'big'}, 'big-endian'),
    ]
    for changes, message in cases:
        write(**changes)
        with pytest.raises(CheckpointError, match=message):
            read_foreign(tmp_path / 'b.pt')
    spoilt = (tmp_path / 'b.pt').read_bytes().replace(b'a/data.pkl', b'a/d\xbfta.pkl')
    flags = spoilt.rindex(b'PK\x01\x02') + 8  # the name of the last entry claims to be UTF-8
    (tmp_path / 'c.pt').write_bytes(spoilt[:flags] + b'\x00\x08' + spoilt[flags + 2 :].replace(b'/', b'\xbf'))
    with pytest.raises(CheckpointError, match='cut short or damaged'):
        read_foreign(tmp_path / 'c.pt')
    write(zipfile.ZIP_DEFLATED, **{key: b'\0' * 10**7})
    with pytest.raises(CheckpointError, match='would unpack to'):
        read_foreign(tmp_path / 'b.pt')


def samples():
    """Returns small files of each layout, to be spoilt."""
    with pretended(a=EasyDict, b=_called, c=ListConfig, d=AnyNode, e=ContainerMetadata):
        state = {'_parameters': OrderedDict(w=nn.Parameter(torch.ones(2))), '_buffers': {}, '_modules': {}}
        values = {'G': Persistent('N', state, 'x = 1'), 'n': np.ones(2), 'b': list_config([1.0]), 's': {1, 2}}
        yield from (pickle.dumps(values, protocol=p) for p in (0, 2, 4))
    for new in (True, False):
        stream = io.BytesIO()
        torch.save({'a': torch.ones(2), 'b': [1, (2, 'c')]}, stream, _use_new_zipfile_serialization=new)
        if new:
            with zipfile.ZipFile(stream) as archive:
                yield archive.read(next(n for n in archive.namelist() if n.endswith('data.pkl')))
        else:
            yield stream.getvalue()


def spoil(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        i = rng.randrange(len(data))
        action = rng.randrange(5)
        if action == 0:
            data[i] = rng.randrange(256)
        elif action == 1:
            data[i] ^= 1 << rng.randrange(8)
        elif action == 2:
            del data[i : i + rng.randrange(1, 9)]
        elif action == 3:
            j = rng.randrange(len(data))
            data[i:i] = data[j : j + rng.randrange(1, 20)]
        else:
            data[i:i] = rng.choice(
                (b'R', b'b', b'\x81', b'0', b'(', b't', b'a', b's', b'u', b'Q', b'2', b'.')
            )
        data = data or bytearray(b'.')
    return bytes(data)


def fuzz(rounds, seed):
    """Reads spoilt files; anything but a value or a refusal is an error."""
    rng, originals, read = random.Random(seed), list(samples()), 0
    for i in range(rounds):
        data = spoil(originals[i % len(originals)], rng)
        try:
            read_bytes(data)
            read += 1
        except RefusedError as err:
            assert str(err) and '\n' not in str(err), data
    return read


def test_fuzz():
    assert 100 < fuzz(4000, 0) < 3900  # both ends of the reader are reached
