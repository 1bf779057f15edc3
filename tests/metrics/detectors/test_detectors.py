"""Registry of detectors: where files are found, which are refused, and that no foreign code runs."""

import dataclasses
import hashlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dnnlib.util import UserError, file_sha256
from metrics.base import METRICS
from metrics.detectors import registry
from metrics.detectors.registry import DETECTORS, DetectorInfo, find_file, load_detector, parse_detector_files
from support.paths import ROOT


def small():
    """A network that a small file of tensors fits."""
    return nn.ModuleDict({'conv': nn.Conv2d(3, 3, 1), 'bn': nn.BatchNorm2d(3)})


# The second keeps the network whose tensors the file has.
NETWORKS = {'image': small, 'video': lambda: nn.ModuleDict({'image': small()})}


@pytest.fixture
def register(monkeypatch):
    """Adds a detector to the registry for one test."""

    def add(sha256='0' * 64, filename='a.pt', networks=NETWORKS, **options):
        facts = {'licence': '', 'source': 'https://example.com/here', 'filename': filename, **options}
        item = DetectorInfo(name='a', sha256=sha256, networks=networks, **facts)
        monkeypatch.setitem(registry.DETECTORS, 'a', item)
        return item

    return add


@pytest.fixture
def weights(tmp_path):
    """A file that fits, without counters, as older files are, and its hash."""
    state = {k: v for k, v in small().state_dict().items() if not k.endswith('num_batches_tracked')}
    path = tmp_path / 'given' / 'small.pt'
    path.parent.mkdir()
    torch.save(state, path)
    return path, file_sha256(path)


# What is registered.


def test_table():
    for name, item in DETECTORS.items():
        assert item.name == name and re.fullmatch('[0-9a-f]{64}', item.sha256)
        assert item.url.startswith('https://') or item.package
    for metric in METRICS.values():
        kind, standard = metric.detector or ('faces', 'yunet')
        assert kind in DETECTORS[standard].networks


def test_page_has_every_detector():
    text = (ROOT / 'docs' / 'detectors.md').read_text()
    rows = dict(re.findall(r'^\| `(\w+)` \|(.*)\|$', text, flags=re.M))
    assert set(rows) == set(DETECTORS)
    for name, item in DETECTORS.items():
        assert item.licence in rows[name] and f'`{item.filename}`' in rows[name], name
        assert item.sha256 in text and item.source in text, name


@pytest.mark.parametrize('name', [n for n, item in DETECTORS.items() if item.package])
def test_files_of_packages(name, tmp_path):
    """The file of an installed package is found without running any of it, and is the registered one."""
    item = DETECTORS[name]
    if importlib.util.find_spec(item.package) is None:
        pytest.skip(f'{item.requirement} is not installed')
    imported = item.package in sys.modules  # by another test
    path, stated = find_file(item, {}, tmp_path, offline=True)
    assert file_sha256(path) == item.sha256 and stated == ''
    assert (item.package in sys.modules) == imported


# Options.


def test_options():
    digest = 'A' * 64
    files = parse_detector_files(['i3d=~/a=b.pt', f'arcface=/x.pt@sha256:{digest}'])
    assert files == {'i3d': Path('~/a=b.pt'), 'arcface': Path(f'/x.pt@sha256:{digest}')}


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        (['i3d.pt'], "'i3d.pt'.*NAME=FILE"),
        (['i3f=a.pt'], "unknown detector 'i3f'; choose from i3d, "),
        (['i3d=a', 'i3d=b'], "'i3d=b'.* once"),
        (['i3d=a@sha256:1234'], '64 hexadecimal digits'),
    ],
)
def test_bad_options(texts, message):
    with pytest.raises(UserError, match=message):
        parse_detector_files(texts)


# Where files come from.


def test_order_of_places(tmp_path, monkeypatch, register):
    """Named by the user, package, cache, download."""
    served, cache = tmp_path / 'served.pt', tmp_path / 'cache'
    served.write_bytes(b'download')
    package = tmp_path / 'somewhere' / 'fakepackage'
    (package / 'models').mkdir(parents=True)
    (package / '__init__.py').write_text('raise RuntimeError("executed")')
    (package / 'models' / 'a.pt').write_bytes(b'package')
    monkeypatch.syspath_prepend(package.parent)
    plain = register(hashlib.sha256(b'download').hexdigest(), url=served.as_uri())
    packaged = dataclasses.replace(plain, requirement='fakepackage==1')

    def found(item, files=(), offline=False):
        return find_file(item, dict(files), cache, offline)[0].read_bytes()

    assert found(plain) == b'download'
    assert [p.name for p in cache.iterdir()] == ['a.pt']  # nothing temporary is left
    monkeypatch.setattr(registry, 'download', None)
    assert found(plain) == found(plain, offline=True) == b'download'  # the copy of the download
    assert found(packaged) == b'package'
    (tmp_path / 'mine.pt').write_bytes(b'mine')
    assert found(packaged, {'a': tmp_path / 'mine.pt', 'i3d': tmp_path}.items()) == b'mine'


def test_a_named_file_that_is_missing_is_not_replaced(tmp_path, weights, register):
    register(weights[1])
    (tmp_path / 'a.pt').write_bytes(weights[0].read_bytes())
    with pytest.raises(UserError, match='typo.pt'):
        load_detector('a', 'image', {'a': tmp_path / 'typo.pt'}, tmp_path, 'cpu')


@pytest.mark.parametrize(
    ('name', 'parts'),
    [
        ('i3d', ['drive.google.com', 'fvd2048_16f_lite0', '--detector-file i3d=FILE']),
        ('arcface', ['dropbox.com', 'id_sface']),
        ('inception', ['github.com/mseitzer', 'fid2048_lite0']),
    ],
)
def test_missing_file(name, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, 'download', None)
    kind = next(iter(DETECTORS[name].networks))
    with pytest.raises(UserError) as err:
        load_detector(name, kind, {}, tmp_path / 'cache', 'cpu', offline=True)
    expected = [DETECTORS[name].filename, str(tmp_path / 'cache'), *parts]
    assert all(part in str(err.value) for part in expected) and not (tmp_path / 'cache').exists()


def test_missing_package(tmp_path, register):
    item = register(requirement='no-such-package==1')
    with pytest.raises(UserError, match='run `pip install no-such-package==1`, or name it to'):
        find_file(item, {}, tmp_path, offline=False)


@pytest.mark.parametrize('content', [None, b'something else'])
def test_failing_download_says_what_to_do_by_hand(tmp_path, register, content):
    """An address that is gone, or a file of another hash, which is not kept."""
    served = tmp_path / 'served.pt'
    if content:
        served.write_bytes(content)
    item = register(url=served.as_uri())
    with pytest.raises(
        UserError, match=f'cannot download {served.as_uri()}.*fetch a.pt from https://example'
    ):
        find_file(item, {}, tmp_path / 'cache', offline=False)
    assert not list((tmp_path / 'cache').iterdir())


# Hashes.


@pytest.mark.parametrize('kind', ['image', 'video'])
def test_registered_file_is_opened(tmp_path, weights, register, kind):
    path, digest = weights
    register(digest)
    detector = load_detector('a', kind, {'a': str(path)}, tmp_path, 'cpu')
    assert detector.sha256 == digest and detector.registered and detector.kind == kind
    network = detector.network['image'] if kind == 'video' else detector.network
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    for name, tensor in torch.load(path, weights_only=True).items():
        assert torch.equal(network.state_dict()[name], tensor)
    with pytest.raises(UserError, match="'sface'.*as video; use i3d"):
        load_detector('sface', 'video', {}, tmp_path, 'cpu')


@pytest.mark.parametrize('filename', ['a.pt', 'a.onnx'])
def test_other_files_are_refused_wherever_they_lie(tmp_path, weights, register, filename):
    """A network from a file .onnx gets the path, but only of a file with the registered hash."""
    path, digest = weights
    register(digest, filename=filename, networks={'image': lambda path: nn.Linear(path.stat().st_size, 1)})
    if filename == 'a.onnx':
        network = load_detector('a', 'image', {'a': path}, tmp_path, 'cpu').network
        assert network.in_features == path.stat().st_size
    (tmp_path / filename).write_bytes(b'other')
    for files in ({}, {'a': tmp_path / filename}):
        with pytest.raises(UserError, match='refused, its SHA-256 is'):
            load_detector('a', 'image', files, tmp_path, 'cpu')


def test_another_hash_is_refused_unless_the_user_states_it(tmp_path, weights, register):
    path, digest = weights
    register()
    with pytest.raises(UserError) as err:
        load_detector('a', 'image', {'a': path}, tmp_path, 'cpu')
    trust = f'--detector-file a={path}@sha256:{digest}'
    assert digest in str(err.value) and '0' * 64 in str(err.value) and str(err.value).endswith(trust)
    files = parse_detector_files([trust.removeprefix('--detector-file ')])
    detector = load_detector('a', 'image', files, tmp_path, 'cpu')
    assert detector.sha256 == digest and not detector.registered
    with pytest.raises(UserError, match=f'is {digest}, expected {"1" * 64}'):
        load_detector('a', 'image', {'a': f'{path}@sha256:{"1" * 64}'}, tmp_path, 'cpu')


@pytest.mark.parametrize('name', ['i3d', 'inception'])
def test_registered_networks_open(name, tmp_path):
    """From files of their tensors."""
    ((kind, build),) = DETECTORS[name].networks.items()
    network, path = build(), tmp_path / 'w.pt'
    torch.save(network.state_dict(), path)
    detector = load_detector(name, kind, {name: f'{path}@sha256:{file_sha256(path)}'}, tmp_path, 'cpu')
    assert type(detector.network) is type(network)
    own, loaded = network.state_dict(), detector.network.state_dict()
    assert own.keys() == loaded.keys() and all(torch.equal(own[n], loaded[n]) for n in own)
