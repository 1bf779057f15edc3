"""Files of weights: what fits is loaded, what does not is refused in one sentence, nothing is executed."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from dnnlib.util import UserError
from metrics.detectors.weight_files import load_state, read_file, split_hash


def small():
    """A network that a small file of tensors fits."""
    return nn.ModuleDict({'conv': nn.Conv2d(3, 3, 1), 'bn': nn.BatchNorm2d(3)})


def saved(content, path, **options):
    torch.save(content, path, **options)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'a.pt'


def test_stated_hashes():
    assert split_hash('/x.pt@sha256:' + 'A' * 64) == (Path('/x.pt'), 'a' * 64)
    assert split_hash(Path('~/a=b@c.pt')) == (Path.home() / 'a=b@c.pt', '')
    for digits in ('', 'a' * 8, 'a' * 65):
        with pytest.raises(UserError, match='64 hexadecimal digits'):
            split_hash(f'x.pt@sha256:{digits}')


def test_read_file(path):
    path.write_bytes(b'data')
    assert read_file(path) == (b'data', hashlib.sha256(b'data').hexdigest())
    for bad in (path.with_name('none.pt'), path.parent):
        with pytest.raises(UserError, match=f'cannot read {bad}'):
            read_file(bad)


@pytest.mark.parametrize('counters', [True, False])
@pytest.mark.parametrize('zipped', [True, False])
def test_what_fits_is_loaded(path, counters, zipped):
    """Both formats of PyTorch; counters of batch normalisation, which older files lack, may be missing."""
    state = {k: v for k, v in small().state_dict().items() if counters or 'num_batches' not in k}
    network = small()
    load_state(network, saved(state, path, _use_new_zipfile_serialization=zipped), path)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items() if 'num_batches' not in k)


BAD = {
    'conv.weight bn.running_mean': lambda s: [s.pop('conv.weight'), s.pop('bn.running_mean')],
    'extra': lambda s: s.update(extra=torch.ones(1)),
    'conv.bias': lambda s: s.update({'conv.bias': torch.ones(4)}),
    'bn.bias': lambda s: s.update({'bn.bias': 'text'}),
    'ModuleDict': lambda s: [s.clear(), s.update({1: torch.ones(1)})],
}


@pytest.mark.parametrize('name', BAD)
def test_other_tensors(name, path):
    state = small().state_dict()
    BAD[name](state)
    with pytest.raises(UserError, match=f'a.pt: .*{name}') as err:
        load_state(small(), saved(state, path), path)
    assert '\n' not in str(err.value)


def test_corrupted_files(path):
    whole = saved(small().state_dict(), path)
    for data in (b'', b'text', whole[: len(whole) // 2], whole[:-1], b'<html>404</html>' * 100):
        with pytest.raises(UserError, match='a.pt: refused') as err:
            load_state(small(), data, path)
        assert '\n' not in str(err.value) and 'weights_only' not in str(err.value)
    with pytest.raises(UserError, match='a.pt: '):
        load_state(small(), saved([torch.ones(1)], path), path)


def test_out_of_memory_is_not_blamed_on_the_file(path, monkeypatch):
    def full(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, 'load', full)
    with pytest.raises(RuntimeError, match='allocate memory'):
        load_state(small(), b'', path)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize('zipped', [True, False])
def test_hostile_pickle(path, tmp_path, zipped):
    marker = tmp_path / 'executed'
    state = {**small().state_dict(), 'x': Hostile(str(marker))}
    data = saved(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match='a.pt: refused'):
        load_state(small(), data, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it was dangerous
