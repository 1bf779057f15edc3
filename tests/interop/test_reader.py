"""The reader of foreign files: it reads what pickle and torch read, executes nothing, survives any bytes."""

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
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from dnnlib.util import CheckpointError
from interop.reader import Placeholder, read_foreign
from support.foreign_files import EasyDict, ListConfig, Persistent, foreign_class, list_config, pretended


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""

    def read(data):
        (tmp_path / 'x.pkl').write_bytes(data)
        return read_foreign(tmp_path / 'x.pkl')

    return read


def plain_values():
    """Returns values of every kind that checkpoints have."""
    base = torch.arange(24.0)
    return {
        **{'t': base.view(2, 3, 4), 'slice': base[3:9:2], 'transposed': base.view(4, 6).t()},
        **{'parameter': nn.Parameter(torch.ones(3)), 'scalar': torch.tensor(2.5), 'empty': torch.empty(0, 3)},
        **{f'{d}': torch.ones(2, dtype=getattr(torch, d)) for d in ('float16', 'bfloat16', 'int64', 'bool')},
        **{'size': torch.Size([2, 3]), 'ordered': OrderedDict(b=1, a=2), 'set': {1, 'a'}, 'bytes': b'ab\xff'},
        **{'big': 2**64 - 1, 'neg': -5, 'none': None, 'inf': math.inf, 'bools': [True, False]},
        'nested': ((), (1,), (1, 2, 3, 4), {1: 'ä', ('a', 'b'): 2}),
        'state': nn.Linear(2, 3).state_dict(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    return a == b and isinstance(a, type(b))


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(read, protocol):
    values = plain_values()
    if protocol < 2:
        del values['size']  # a subclass of tuple, rebuilt by another function there
    assert same(values, read(pickle.dumps(values, protocol=protocol)))
    numbers = [np.float32(3), np.int64(-2), np.bool_(True)]
    assert read(pickle.dumps(numbers, protocol=protocol)) == [3.0, -2, True]


@pytest.mark.parametrize('new', [True, False])
def test_files_of_torch(tmp_path, new):
    values = plain_values()
    torch.save(values, tmp_path / 'a.pt', _use_new_zipfile_serialization=new)
    found = read_foreign(tmp_path / 'a.pt')
    assert same(values, found)
    assert found['t'].data_ptr() == found['transposed'].data_ptr()  # storages stay shared


def test_foreign_classes_are_inert(read):
    Odd = foreign_class('omegaconf.listconfig', 'Odd', ListConfig)
    Odd.__setstate__ = None  # is not called
    odd = Odd()
    odd.__dict__['_x'] = 1
    with pretended(Odd):
        data = pickle.dumps({'betas': list_config([0, 0.9]), 'easy': EasyDict(a=1), 'odd': odd})
    found = read(data)
    assert isinstance(found['betas'], Placeholder) and found['betas'].name.endswith('ListConfig')
    first = found['betas'].state['_content'][0]
    assert found['betas'].state['_metadata'].state['resolver_cache'] == {}
    assert first.state['_val'] == 0 and first.state['_parent'] is found['betas']
    assert found['easy'] == {'a': 1} and found['odd'].state == {'_x': 1}
    assert read(pickle.dumps(np.ones(2))).name.endswith('_reconstruct')


class Calls:
    """Pickles as a call of a function, with a state, elements and items for what it returns."""

    def __init__(self, function, *args):
        self.call = function, args, {'state': 1}, iter([1, 2]), iter([('a', 1)])

    def __reduce__(self):
        return self.call


HOSTILE = [(os.system, 'touch ran'), (exec, 'open("ran", "w")'), (eval, 'open("ran", "w")')]
HOSTILE += [(__import__, 'this'), (importlib.import_module, 'this'), (subprocess.Popen, ['touch', 'ran'])]
HOSTILE += [(getattr, 'a', 'b'), (torch.load, 'x'), (pickle.loads, pickle.dumps(Calls(*HOSTILE[0])))]


@pytest.mark.parametrize('protocol', [0, 2, 4, 'zip', 'legacy'])
def test_calls_become_placeholders(tmp_path, read, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    for function, *args in HOSTILE:
        if isinstance(protocol, int):
            found = read(pickle.dumps({'a': Calls(function, *args)}, protocol=protocol))['a']
        else:
            new = protocol == 'zip'
            torch.save({'a': Calls(function, *args)}, 'a.ckpt', _use_new_zipfile_serialization=new)
            found = read_foreign('a.ckpt')['a']
        assert type(found) is Placeholder and found.args == tuple(args) and found.state == {'state': 1}
        assert found.name.endswith(function.__name__)
    assert not (tmp_path / 'ran').exists()


def binary(text):
    data = text.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def name(module, function):
    return f'c{module}\n{function}\n'.encode()


def value(x):
    """Pickles a value without the header and the end."""
    return pickle.dumps(x, 2)[2:-1]


TENSOR = name('torch._utils', '_rebuild_tensor_v2')


def tensor_of(size, stride, offset=0):
    """Pickles a tensor over a storage of 4 bytes with any shape."""
    values = map(value, (torch.zeros(1).untyped_storage(), offset, size, stride))
    return b'\x80\x02' + TENSOR + b'(' + b''.join(values) + b'\x89NtR.'


def old_file(replaced, by):
    """Writes the layout before zips, changed at one place."""
    stream = io.BytesIO()
    torch.save(torch.ones(2), stream, _use_new_zipfile_serialization=False)
    assert stream.getvalue().count(replaced) == 1
    return stream.getvalue().replace(replaced, by)


ORDERED, DEFAULT = name('collections', 'OrderedDict'), name('collections', 'defaultdict')
HUGE = struct.pack('<Q', 2**62)
DEEP = b')' + b'\x85' * 100_000
LAUGHS = b')' + b'q\x00h\x00h\x00\x86' * 60  # (x, x) of (x, x) of ...: 2**60 elements in 60 tuples
COPY = b'0' + name('_codecs', 'encode') + b'(h\x00' + binary('latin1') + b'tR'
INNER = b'B' + struct.pack('<I', 160_002) + b'N0' * 80_000 + b'N.q\x00\x85R'
SAME = name('torch.storage', '_load_from_bytes') + b'h\x00\x85R.'
COLLIDING = [b'\x8a\x10' + (k * (2**61 - 1)).to_bytes(16, 'little') + b'N' for k in range(1, 20_000)]
BOMBS = {
    'deep key': (b'}' + DEEP + b'Ns.', 'a tuple as the key'),
    'laughing key': (b'}' + LAUGHS + b'Ns.', 'a tuple as the key'),
    'laughing element': (b'\x8f(' + LAUGHS + b'\x90.', 'a tuple as the key'),
    'laughing frozenset': (b'(' + LAUGHS + b'\x91.', 'a tuple as the key'),
    'laughing set': (name('builtins', 'set') + b'](' + LAUGHS + b'e\x85R.', 'a tuple as the key'),
    'laughing name': (b'\x8c\x01a' + LAUGHS + b'\x93.', 'STACK_GLOBAL'),
    'laughing call': (LAUGHS + b')R.', 'not a function'),
    'laughing reference': (LAUGHS + b'Q.', 'plain data'),
    'laughing tensor': (LAUGHS + b'q\x01' + TENSOR + b'(h\x01h\x01h\x01h\x01tR.', 'storage cannot hold'),
    'instructions': (b'N0' * 160_000 + b'N.', 'more than 300000 instructions'),
    'instructions inside': (name('torch.storage', '_load_from_bytes') + INNER + SAME, 'more than 300000'),
    'colliding keys': (b'}(' + b''.join(COLLIDING) + b'u.', 'too long a number'),
    'digits': (b'L' + b'9' * 10**6 + b'L\n.', 'plain data'),
    'memo': (b'Np' + str(2**70).encode() + b'\n.', 'too long a number'),
    'part of a storage': (old_file(b'K\x02Ntq', b'K\x02' + binary('0') + b'\x85tq'), 'unknown kind'),
    'missing storage': (old_file(b'q\x01a.', b'q\x010.'), 'data of a storage are missing'),
    'long bytes': (b'\x8e' + HUGE + b'abc.', 'plain data'),
    'long array': (b'\x96' + struct.pack('<Q', 2**40) + b'abc.', 'plain data'),
    'copies': (binary('x' * 2**20) + b'q\x00' + COPY * 50 + b'.', 'more data than'),
    'tensor': (tensor_of((10**12,), (0,)), 'storage cannot hold'),
    'tensor beyond': (tensor_of((1,), (1,), 2**39), 'storage cannot hold'),
    'tensor overflow': (tensor_of((2,), (2**63 - 1,), 1), 'storage cannot hold'),
    'tensor shape': (tensor_of((0, 2**63), (1, 1)), 'plain data'),
    'tensor negative': (tensor_of((-1,), (1,)), 'storage cannot hold'),
    'tensor of tensors': (tensor_of((torch.ones(2),), (torch.ones(2),)), 'storage cannot hold'),
    'tensor as a set': (tensor_of((1,), (1,))[:-1] + b'(K\x01\x90.', 'plain data'),
    'tensor as a dictionary': (tensor_of((1,), (1,))[:-1] + b'K\x00K\x01s.', 'plain data'),
    'number as pairs': (ORDERED + value((5,)) + b'R.', 'other things than pairs'),
    'text as a pair': (DEFAULT + value((None, ['ab'])) + b'R.', 'other things than pairs'),
    'laughing pair': (LAUGHS + b'N\x86\x85\x85q\x01' + ORDERED + b'h\x01R.', 'a tuple as the key'),
    'copied pairs': (
        b'](' + b'NN\x86' * 2**14 + b'e\x85q\x00' + (ORDERED + b'h\x00R') * 9 + b'.',
        'more data',
    ),
    'extension': (b'\x82\x01.', 'an instruction'),
    'instance': (b'(ios\nsystem\n.', 'an instruction'),
    'reference': (b'K\x01Q.', 'plain data'),
    'no pickle': (b'hello', 'plain data'),
}


@pytest.mark.parametrize('kind', BOMBS)
def test_bombs_are_refused_quickly(read, kind):
    data, message = BOMBS[kind]
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=message) as info:
        read(data)
    assert '\n' not in str(info.value) and 'x.pkl: refused, ' in str(info.value)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (pickle.dumps([1, frozenset({'x'}), 2], 4), [1, frozenset({'x'}), 2]),
        (ORDERED + value(([['b', 1], ('a', 2)],)) + b'R.', {'b': 1, 'a': 2}),  # as Python 2 wrote it
        (DEFAULT + value((list, [('a', 1)])) + b'R.', {'a': 1}),
    ],
)
def test_sets_and_pairs_are_kept(read, data, expected):
    assert read(data) == expected


@pytest.mark.parametrize('err', [MemoryError(), RuntimeError("can't allocate memory: 8 bytes")])
def test_full_memory_is_no_refusal(read, monkeypatch, err):
    monkeypatch.setattr('interop.reader._read_stream', Mock(side_effect=err))
    with pytest.raises(type(err)):
        read(b'N.')


def test_deep_and_circular_trees_are_read(read):
    """Whoever walks over a tree has to be careful; reading and forgetting it is safe."""
    start = time.perf_counter()
    placeholders = name('a', 'B') + b'q\x01', b'q\x000h\x01h\x00\x85R'
    for first, step in ((b')', b'\x85'), (b']', b'q\x00]h\x00a'), (b'}', b'q\x00}Nh\x00s'), placeholders):
        assert read(first + step * 40_000 + b'.')
    inner, *outer = read(b'](](' + b'N' * 40_000 + b'eq\x00' + b'h\x00' * 40_000 + b'e.')
    assert len(inner) == 40_000 and all(other is inner for other in outer)
    circle = read(b']q\x00h\x00a.')
    assert circle[0] is circle and time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ('changed', 'data', 'message'),
    [
        ('a/data/0', b'\0' * 10, 'it is truncated'),
        ('a/data/0', None, 'plain data .KeyError'),
        ('a/byteorder', b'big', 'big-endian'),
        ('a/data.pkl', None, 'another zip .with'),
        ('b/data.pkl', b'N.', 'it has 2 files'),
    ],
)
def test_zips_with_other_contents(tmp_path, changed, data, message):
    torch.save({'a': torch.ones(4)}, tmp_path / 'a.pt')
    with zipfile.ZipFile(tmp_path / 'a.pt') as archive, zipfile.ZipFile(tmp_path / 'b.pt', 'w') as other:
        for name in dict.fromkeys([*archive.namelist(), changed]):
            if name != changed or data is not None:
                other.writestr(name, data if name == changed else archive.read(name))
    with pytest.raises(CheckpointError, match=message):
        read_foreign(tmp_path / 'b.pt')


def samples():
    """Returns small files of each layout, to be corrupted."""
    with pretended():
        state = {'_parameters': OrderedDict(w=nn.Parameter(torch.ones(2))), '_buffers': {}, '_modules': {}}
        values = {'G': Persistent('N', state, 'x = 1'), 'n': np.int8(1), 'b': list_config([1.0]), 's': {1, 2}}
        yield from (pickle.dumps(values, protocol=p) for p in (0, 2, 4))
    stream = io.BytesIO()
    torch.save({'a': torch.ones(2), 'b': [1, (2, 'c')]}, stream, _use_new_zipfile_serialization=False)
    yield stream.getvalue()


def corrupt(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, j, count = rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(20)
        byte, instruction = bytes([rng.randrange(256)]), bytes([rng.choice(b'Rb\x810(tasuQ2.')])
        data[i : i + rng.choice((0, 1, 8))] = rng.choice([byte, instruction, data[j : j + count], b''])
        data = data or bytearray(b'.')
    return bytes(data)


def test_fuzz(read):
    """Corrupted files give a value or a sentence, and nothing else."""
    rng, originals, found = random.Random(0), list(samples()), 0
    for i in range(2000):
        data = corrupt(originals[i % len(originals)], rng)
        try:
            read(data)
            found += 1
        except CheckpointError as err:
            assert str(err) and '\n' not in str(err), data
    assert 50 < found < 1950  # both ends of the reader are reached
