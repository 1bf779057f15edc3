import dataclasses
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dnnlib.config import BaseConfig, Configurable, Kinds
from dnnlib.util import CheckpointError, UserError
from torch_utils import checkpoint
from torch_utils.checkpoint import (
    build_network,
    load_training_state,
    read_snapshot,
    save_snapshot,
    save_training_state,
)


class Net(nn.Module, Configurable):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        width: int = 8
        scales: tuple[float, ...] = (1.0, 0.5)

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.body = nn.Linear(4, config.width)
        self.norm = nn.BatchNorm1d(config.width)

    def forward(self, x):
        return self.norm(self.body(x))


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def save_one(path, **meta):
    torch.manual_seed(1)
    net = Net(Net.Config(width=6))
    save_snapshot(path, {'G': net, 'G_ema': net}, {'kimg': 1, **meta})
    return net


def refused(path, message, read=read_snapshot):
    with pytest.raises(CheckpointError, match=message) as err:
        read(path)
    assert str(path) in str(err.value) and '\n' not in str(err.value)


def kinds(cls):
    return Kinds({'net': cls}, 'net')


def test_round_trip(tmp_path):
    path = tmp_path / 'a.pkl'
    meta = {'seed': np.int64(3), 'loss': np.float32(0.5), 'data': Path('x/y.zip'), 'sizes': (1, 2)}
    net = save_one(path, **meta, flag=np.True_)
    content = torch.load(path, weights_only=True)
    assert (content['format'], content['version']) == ('pv3d-snapshot', 1)
    assert content['networks']['G']['config'] == {'width': 6, 'scales': [1.0, 0.5]}
    snapshot = read_snapshot(path)
    assert snapshot.path == path and list(snapshot.networks) == ['G', 'G_ema']
    plain = {'seed': 3, 'loss': 0.5, 'data': 'x/y.zip', 'sizes': [1, 2], 'flag': True}
    assert snapshot.meta == {'kimg': 1, **plain}
    back = build_network(snapshot, 'G_ema', kinds(Net))
    assert back.config == net.config and not back.training
    assert not any(p.requires_grad for p in back.parameters())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back(x), net.eval()(x))
    assert os.listdir(tmp_path) == ['a.pkl']


def test_half_precision_halves_the_file_and_keeps_the_type_of_the_module(tmp_path):
    net = Net(Net.Config(width=4096))
    save_snapshot(tmp_path / 'full.pkl', {'G': net}, {})
    save_snapshot(tmp_path / 'half.pkl', {'G': net}, {}, dtype=torch.float16)
    full, half = ((tmp_path / f'{n}.pkl').stat().st_size for n in ('full', 'half'))
    assert 0.5 < half / full < 0.55
    snapshot = read_snapshot(tmp_path / 'half.pkl')
    assert snapshot.networks['G']['state']['body.weight'].dtype == torch.float16
    assert snapshot.networks['G']['state']['norm.num_batches_tracked'].dtype == torch.int64
    back = build_network(snapshot, 'G', kinds(Net))
    assert back.body.weight.dtype == torch.float32
    torch.testing.assert_close(back.body.weight, net.body.weight.data, rtol=1e-3, atol=1e-6)
    net.norm.running_var.fill_(1e5)
    with pytest.raises(ValueError, match=r'G\.norm\.running_var has values that torch\.float16 cannot hold'):
        save_snapshot(tmp_path / 'a.pkl', {'G': net}, {}, dtype=torch.float16)


def test_a_slice_is_stored_without_its_whole_storage(tmp_path):
    tensors = {'x': torch.zeros(10**6)[:10], 'y': torch.arange(6).view(2, 3).t()}
    save_training_state(tmp_path / 'a.pt', tensors)
    assert (tmp_path / 'a.pt').stat().st_size < 10_000
    assert load_training_state(tmp_path / 'a.pt')['y'].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_build_network_explains(tmp_path):
    save_one(tmp_path / 'a.pkl')
    snapshot = read_snapshot(tmp_path / 'a.pkl')
    with pytest.raises(CheckpointError, match="no network 'D' in this snapshot; it has G, G_ema"):
        build_network(snapshot, 'D', kinds(Net))
    state = snapshot.networks['G']['state']
    state |= {'body.weight': state['body.weight'].t(), 'extra': state.pop('norm.weight')}
    with pytest.raises(CheckpointError) as err:
        build_network(snapshot, 'G', kinds(Net))
    shapes = f'{[*state["body.weight"].shape]} instead of {[*state["body.weight"].t().shape]}'
    assert str(err.value) == (
        f'{tmp_path}/a.pkl: G does not fit: {len(state) - 2} of its {len(state)} tensors could be copied '
        f'from the file; with another shape in it: body.weight {shapes}; missing in it: norm.weight; '
        'in the file alone: extra'
    )
    state |= {'body.weight': state['body.weight'].t().to_sparse(), 'norm.weight': state.pop('extra')}
    with pytest.raises(CheckpointError, match='G cannot be copied: .*body.weight'):
        build_network(snapshot, 'G', kinds(Net))
    snapshot.networks['G']['config']['depth'] = 3
    with pytest.raises(CheckpointError, match='unknown option depth'):
        build_network(snapshot, 'G', kinds(Net))


def test_missing_files_and_folders(tmp_path):
    refused(tmp_path / 'no.pkl', 'cannot read .*no such file or folder')
    refused(tmp_path, 'it is a folder')
    with pytest.raises(UserError, match='cannot write .*no such file or folder'):
        save_one(tmp_path / 'no' / 'a.pkl')


def test_every_truncation_is_named(tmp_path):
    path = tmp_path / 'a.pkl'
    save_one(path)
    whole = path.read_bytes()
    for size in [*range(2, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path, 'cut short or corrupted')
    path.write_bytes(b'')
    refused(path, 'empty')


def test_every_flipped_byte_of_a_tensor_is_named(tmp_path):
    path = tmp_path / 'a.pkl'
    save_one(path)
    whole = path.read_bytes()
    weights = read_snapshot(path).networks['G']['state']['body.weight'].numpy().tobytes()
    start = whole.index(weights)
    for offset in (0, 1, len(weights) - 1):
        corrupted = bytearray(whole)
        corrupted[start + offset] ^= 1
        path.write_bytes(corrupted)
        refused(path, 'corrupted .wrong checksum of')


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / 'a.pkl'
    for data, found in ((b'\x89PNG....', 'not a zip'), (b'<!DOCTYPE html>', 'a web page')):
        path.write_bytes(data)
        refused(path, f'not a PV3D snapshot .{found}')
    for content, found in (({'format': 'other', 'version': 1}, "'other'"), (torch.zeros(3), 'None')):
        torch.save(content, path)
        refused(path, f'its format is {found}')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('dataset.json', '{}')
    refused(path, 'another zip .with dataset.json')
    save_training_state(path, {'a': 1})
    refused(path, "its format is 'pv3d-training-state'")
    state = tmp_path / 'training-state-000000036.pt'
    save_training_state(state, {'a': 1})
    refused(state, 'the snapshot is network-snapshot-000000036.pkl, beside it')
    save_one(path)
    refused(path, 'not a PV3D training state', load_training_state)


@pytest.mark.parametrize(
    'content',
    [
        {},
        {'meta': {}, 'networks': []},
        {'meta': {}, 'networks': {'G': {'config': {}}}},
        {'meta': {}, 'networks': {'G': {'config': [], 'state': {}}}},
        {'meta': {}, 'networks': {'G': {'config': {}, 'state': {'a': 5}}}},
    ],
)
def test_incomplete_snapshots_are_refused(tmp_path, content):
    torch.save({'format': 'pv3d-snapshot', 'version': 1, **content}, tmp_path / 'a.pkl')
    refused(tmp_path / 'a.pkl', 'parts of the PV3D snapshot are missing')


@pytest.mark.parametrize('read', [read_snapshot, load_training_state])
def test_a_hostile_pickle_does_not_run(tmp_path, read):
    """Neither bare nor in a proper zip."""
    path, marker = tmp_path / 'a.pkl', tmp_path / 'ran'
    path.write_bytes(pickle.dumps(Evil(marker)))
    refused(path, 'a Python pickle, which could run code', read)
    save_one(path, secret=1)
    content = torch.load(path, weights_only=True)
    content['meta']['secret'] = Evil(marker)
    torch.save(content, path)
    refused(path, r'wants to call \w+\.system', read)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is really hostile


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / 'a.pkl'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(10**7))
    refused(path, '10000000 bytes')


@pytest.mark.parametrize('version', [None, '1', 0, 3])
def test_an_unknown_version_is_refused(tmp_path, monkeypatch, version):
    monkeypatch.setattr(checkpoint, 'VERSION', version)
    save_one(tmp_path / 'a.pkl')
    monkeypatch.undo()
    refused(tmp_path / 'a.pkl', f'version {version!r}.*update the code')


def test_training_state_holds_plain_values(tmp_path):
    save_training_state(tmp_path / 'a.pt', {'nimg': np.int64(8), 'y': np.str_('z')})
    state = load_training_state(tmp_path / 'a.pt')
    assert state == {'nimg': 8, 'y': 'z'} and type(state['nimg']) is int and type(state['y']) is str
    with pytest.raises(TypeError, match=r"\['state'\]\['list'\]\[1\] is a object"):
        save_training_state(tmp_path / 'b.pt', {'list': [1, object()]})
    assert os.listdir(tmp_path) == ['a.pt']
