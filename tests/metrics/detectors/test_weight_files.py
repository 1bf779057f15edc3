"""Files of weights: what fits is loaded, what does not is refused in one sentence, nothing is executed."""

import hashlib
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from dnnlib.util import UserError
from metrics.detectors.weight_files import load_state, matches, open_torchscript, read_file, split_hash


class Small(nn.Module):
    """A network that a small file of tensors fits."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)


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


def test_first_digits_of_a_hash():
    digest = hashlib.sha256(b'').hexdigest()
    assert matches(digest, digest) and matches(digest, digest[:8].upper())
    assert not any(matches(digest, other) for other in ('', digest[:7], '0' * 64, digest[1:9]))


def test_read_file(path):
    path.write_bytes(b'data')
    assert read_file(path) == (b'data', hashlib.sha256(b'data').hexdigest())
    with pytest.raises(UserError, match='cannot read .*none.pt: no such file'):
        read_file(path.with_name('none.pt'))
    with pytest.raises(UserError, match='cannot read .*it is a folder'):
        read_file(path.parent)


@pytest.mark.parametrize('counters', [True, False])
@pytest.mark.parametrize('zipped', [True, False])
def test_what_fits_is_loaded(path, counters, zipped):
    """Both formats of PyTorch; counters of batch normalisation, which older files lack, may be absent."""
    state = {k: v for k, v in Small().state_dict().items() if counters or 'num_batches' not in k}
    network = Small()
    load_state(network, saved(state, path, _use_new_zipfile_serialization=zipped), path)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items() if 'num_batches' not in k)


def changed(change):
    state = Small().state_dict()
    change(state)
    return state


BAD = {
    'missing: conv.weight, bn.running_mean': changed(
        lambda s: [s.pop('conv.weight'), s.pop('bn.running_mean')]
    ),
    'unexpected: a, b, c and 1 more': changed(lambda s: s.update(dict.fromkeys('abcd', torch.ones(1)))),
    r'of another shape: conv.bias \[4\] instead of \[3\]': changed(
        lambda s: s.update({'conv.bias': torch.ones(4)})
    ),
    'not finite: bn.bias': changed(lambda s: s.update({'bn.bias': torch.full((3,), torch.nan)})),
    'not a dictionary of named tensors': {'state_dict': Small().state_dict()},
}


@pytest.mark.parametrize('message', BAD)
def test_other_tensors(message, path):
    network = Small()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match=f'a.pt: .*{message}') as err:
        load_state(network, saved(BAD[message], path), path)
    assert '\n' not in str(err.value)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())


def test_damaged_files(path):
    whole = saved(Small().state_dict(), path)
    for data in (b'', b'text', whole[: len(whole) // 2], whole[:-1], b'<html>404</html>' * 100):
        with pytest.raises(UserError, match='a.pt: refused, not a whole file of plain tensors') as err:
            load_state(Small(), data, path)
        assert '\n' not in str(err.value) and 'weights_only' not in str(err.value)


def test_too_little_memory_is_not_blamed_on_the_file(path, monkeypatch):
    def full(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, 'load', full)
    with pytest.raises(RuntimeError, match='allocate memory'):
        load_state(Small(), b'', path)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize('zipped', [True, False])
def test_hostile_pickle(path, tmp_path, zipped):
    marker = tmp_path / 'executed'
    state = {**Small().state_dict(), 'x': Hostile(str(marker))}
    data = saved(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r'refused, .*it wants to call (posix|nt).mkdir'):
        load_state(Small(), data, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it was dangerous


class Doubles(nn.Module):
    """Something to script."""

    def forward(self, x):
        return 2 * x


@pytest.mark.filterwarnings('error')  # nothing is said about archives or deprecation
def test_files_in_place_of_each_other(path, tmp_path, monkeypatch):
    tensors, script = saved(Small().state_dict(), path), tmp_path / 's.pt'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(Doubles()).save(str(script))
    assert open_torchscript(script.read_bytes(), script)(torch.ones(1)) == 2
    with pytest.raises(UserError, match='a.pt: not a whole TorchScript file') as err:
        open_torchscript(tensors, path)
    assert '\n' not in str(err.value)
    monkeypatch.setattr(torch.jit, 'load', lambda *args, **options: pytest.fail('opened'))
    with pytest.raises(UserError, match='s.pt: refused, .*it is a TorchScript archive'):
        load_state(Small(), script.read_bytes(), script)
