"""Registry of detectors: where files are found, which are refused, and that no foreign code runs."""

import dataclasses
import hashlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from dnnlib.util import UserError, file_sha256
from metrics.detectors import registry
from metrics.detectors.registry import DETECTORS, DetectorInfo, find_file, load_detector, parse_detector_files
from support.paths import ROOT
from torch_utils.misc import download_path


class Small(nn.Module):
    """A network that a small file of tensors fits."""

    def __init__(self, width='3'):
        super().__init__()
        self.conv = nn.Conv2d(3, int(width), 1)
        self.bn = nn.BatchNorm2d(int(width))

    def forward(self, images):
        return self.bn(self.conv(images.float())).mean(dim=(2, 3))


class Wrapper(nn.Module):
    """A network that keeps the one whose tensors the file has."""

    def __init__(self):
        super().__init__()
        self.network = Small()


class OfPath(nn.Module):
    """A network that reads its file itself."""

    def __init__(self, path):
        super().__init__()
        self.register_buffer('size', torch.tensor(Path(path).stat().st_size))


class Scripted(nn.Module):
    """Stands around what a TorchScript file holds."""

    def __init__(self, script):
        super().__init__()
        self.script = script


def info(name, **options):
    defaults = {
        'title': 'for tests',
        'licence': 'none',
        'source': 'https://example.com/here',
        'filename': f'{name}.pt',
        'networks': {'image': 'fakes:Small'},
        'preprocessing': 'none',
    }
    return DetectorInfo(name=name, **{**defaults, **options})


@pytest.fixture
def register(monkeypatch):
    """Adds detectors to the registry for one test; their classes are found below metrics.detectors."""
    module = types.ModuleType('metrics.detectors.fakes')
    module.Small, module.Wrapper, module.OfPath, module.Scripted = Small, Wrapper, OfPath, Scripted
    monkeypatch.setitem(sys.modules, 'metrics.detectors.fakes', module)

    def add(*infos):
        table = {**registry.DETECTORS, **{i.name: i for i in infos}}
        monkeypatch.setattr(registry, 'DETECTORS', types.MappingProxyType(table))
        return infos[0]

    return add


@pytest.fixture
def weights(tmp_path):
    """A file that fits, without counters, as older files are, and its hash."""
    state = {k: v for k, v in Small().state_dict().items() if not k.endswith('num_batches_tracked')}
    path = tmp_path / 'given' / 'small.pt'
    path.parent.mkdir()
    torch.save(state, path)
    return path, file_sha256(path)


def no_network(*args, **options):
    raise AssertionError('something was fetched')


# What is registered.


def test_table():
    for name, item in DETECTORS.items():
        assert item.name == name and item.kinds and set(item.kinds) <= {'video', 'image', 'identity', 'faces'}
        assert re.fullmatch('[0-9a-f]{8}|[0-9a-f]{64}', item.sha256)
        assert item.url.startswith('https://') or item.package
        assert item.file_type != 'torchscript' or len(item.sha256) == 64
    standard = {kind: n for n, item in DETECTORS.items() if item.standard for kind in item.kinds}
    assert standard == {'video': 'i3d', 'identity': 'arcface', 'image': 'inception'}
    assert DETECTORS['lite0'].kinds == ('image', 'video')
    with pytest.raises(TypeError):
        DETECTORS['new'] = DETECTORS['i3d']


def test_page_has_every_detector():
    text = (ROOT / 'docs' / 'detectors.md').read_text()
    rows = {row[0]: row for row in re.findall(r'^\| `(\w+)` \|(.*)\|$', text, flags=re.M)}
    assert set(rows) == set(DETECTORS)
    for name, item in DETECTORS.items():
        assert item.licence in rows[name][1] and f'`{item.filename}`' in rows[name][1], name
        assert item.preprocessing in rows[name][1], name
        assert f'{item.sha256}' in text and item.source in text, name


@pytest.mark.parametrize('name', [n for n, item in DETECTORS.items() if item.package])
def test_files_of_packages(name, tmp_path):
    """The file of an installed package is found without running any of it, and is the registered one."""
    item = DETECTORS[name]
    if importlib.util.find_spec(item.package) is None:
        pytest.skip(f'{item.requirement} is not installed')
    path, stated = find_file(item, {}, tmp_path, offline=True)
    assert file_sha256(path) == item.sha256 and stated == ''
    assert item.package not in sys.modules


def test_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path))
    assert registry.default_cache() == tmp_path / 'detectors'
    monkeypatch.delenv('PV3D_CACHE_DIR')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert registry.default_cache() == Path.home() / '.cache' / 'pv3d' / 'detectors'


# Options.


def test_options():
    digest = 'A' * 64
    files = parse_detector_files(['i3d=~/a=b.pt', f'i3d_torchscript=/x.pt@sha256:{digest}'])
    assert files == {'i3d': Path('~/a=b.pt'), 'i3d_torchscript': Path(f'/x.pt@sha256:{digest}')}


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        (['i3d.pt'], "'i3d.pt'.*NAME=FILE"),
        (['i3d='], 'NAME=FILE'),
        (['i3f=a.pt'], "no detector 'i3f'; there are i3d, "),
        (['i3d=a', 'i3d=b'], 'has a file already'),
        (['i3d=a@sha256:1234'], '64 hexadecimal digits'),
        (['i3d=a@sha256:'], '64 hexadecimal digits'),
    ],
)
def test_bad_options(texts, message):
    with pytest.raises(UserError, match=message):
        parse_detector_files(texts)


def test_unknown_detector_or_kind(tmp_path):
    with pytest.raises(UserError, match="no detector 'resnet'; there are i3d, i3d_videogpt"):
        load_detector('resnet', 'video', {}, tmp_path, 'cpu')
    with pytest.raises(UserError, match="'sface' serves as identity, not as video; use i3d, .*lite0.*r3d_18"):
        load_detector('sface', 'video', {}, tmp_path, 'cpu')


# Where files come from.


def test_order_of_places(tmp_path, monkeypatch, register):
    """Named by the user, package, cache, download."""
    served, cache = tmp_path / 'served.pt', tmp_path / 'cache'
    served.write_bytes(b'download')
    digest = hashlib.sha256(b'download').hexdigest()
    package = tmp_path / 'somewhere' / 'fakepackage'
    (package / 'models').mkdir(parents=True)
    (package / '__init__.py').write_text('raise RuntimeError("executed")')
    (package / 'models' / 'a.pt').write_bytes(b'package')
    monkeypatch.syspath_prepend(package.parent)
    plain = register(info('a', url=served.as_uri(), sha256=digest))
    packaged = dataclasses.replace(plain, package='fakepackage', requirement='fakepackage==1')

    def found(item, files=types.MappingProxyType({}), offline=False):
        return find_file(item, files, cache, offline)[0].read_bytes()

    assert found(plain) == b'download'
    served.unlink()
    assert found(plain) == found(plain, offline=True) == b'download'  # the copy of the download
    monkeypatch.setattr(registry, 'download', no_network)
    (cache / 'a.pt').write_bytes(b'cache')
    assert found(plain) == b'cache'
    assert found(packaged) == b'package'
    (tmp_path / 'mine.pt').write_bytes(b'mine')
    assert found(packaged, {'a': tmp_path / 'mine.pt', 'i3d': tmp_path}) == b'mine'


def test_one_file_for_two_detectors(tmp_path):
    path = tmp_path / 'x.pt'
    path.write_bytes(b'')
    assert find_file(DETECTORS['i3d_videogpt'], {'i3d': path}, tmp_path, offline=True)[0] == path
    other = tmp_path / 'y.pt'
    other.write_bytes(b'')
    both = {'i3d': path, 'i3d_videogpt': other}
    assert find_file(DETECTORS['i3d_videogpt'], both, tmp_path, offline=True)[0] == other


def test_a_named_file_that_is_missing_is_not_replaced(tmp_path, weights, register):
    register(info('a', sha256=weights[1]))
    (tmp_path / 'a.pt').write_bytes(weights[0].read_bytes())
    with pytest.raises(UserError, match=r"typo.pt, named for the detector 'a': no such file"):
        load_detector('a', 'image', {'a': tmp_path / 'typo.pt'}, tmp_path, 'cpu')


@pytest.mark.parametrize(
    ('name', 'parts'),
    [
        (
            'i3d',
            ['i3d_pretrained_400.pt', 'drive.google.com', 'fvd2048_16f_lite0', '--detector-file i3d=FILE'],
        ),
        ('r2plus1d_18', ['r2plus1d_18-91a641e6.pth', 'download.pytorch.org', 'fvd2048_16f_lite0']),
        ('arcface', ['model_ir_se50.pth', 'dropbox.com', 'id_sface']),
        ('inception', ['pt_inception-2015-12-05-6726825d.pth', 'github.com/mseitzer', 'fid2048_lite0']),
    ],
)
def test_missing_file(name, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, 'download', no_network)
    with pytest.raises(UserError) as err:
        load_detector(name, DETECTORS[name].kinds[0], {}, tmp_path / 'cache', 'cpu', offline=True)
    assert all(part in str(err.value) for part in [*parts, str(tmp_path / 'cache')])
    assert '\n' not in str(err.value) and not (tmp_path / 'cache').exists()


def test_missing_package(tmp_path, register):
    item = register(info('a', package='no_such_package', requirement='no-such-package==1'))
    with pytest.raises(UserError, match='run `pip install no-such-package==1`, or name it with'):
        find_file(item, {}, tmp_path, offline=False)


def test_failing_download_says_what_to_do_by_hand(tmp_path, register):
    gone = (tmp_path / 'gone.pt').as_uri()
    item = register(info('a', url=gone, sha256='0' * 64))
    with pytest.raises(UserError, match=f'fetch a.pt from https://example.com/here .*cannot download {gone}'):
        find_file(item, {}, tmp_path, offline=False)


@pytest.mark.parametrize('sha256', ['', '0' * 64])
def test_without_hash_or_address_nothing_is_downloaded(tmp_path, monkeypatch, register, sha256):
    monkeypatch.setattr(registry, 'download', no_network)
    item = register(info('a', url='' if sha256 else 'https://example.com/a.pt', sha256=sha256))
    with pytest.raises(UserError, match='has no file: fetch a.pt'):
        find_file(item, {}, tmp_path, offline=False)


# Hashes.


def test_registered_file_is_opened(tmp_path, weights, register):
    path, digest = weights
    for sha256 in (digest, digest[:8].upper(), ''):
        register(info('a', sha256=sha256))
        detector = load_detector('a', 'image', {'a': str(path)}, tmp_path, 'cpu')
        assert detector.sha256 == digest and detector.registered == bool(sha256)
        assert detector.info.name == 'a' and detector.kind == 'image'
        assert not detector.network.training and not any(
            p.requires_grad for p in detector.network.parameters()
        )
        for name, tensor in torch.load(path, weights_only=True).items():
            assert torch.equal(detector.network.state_dict()[name], tensor)


def test_downloaded_file_is_opened(tmp_path, weights, register):
    path, digest = weights
    register(info('a', url=path.as_uri(), sha256=digest[:8]))
    assert load_detector('a', 'image', {}, tmp_path / 'cache', 'cpu').sha256 == digest
    assert download_path(path.as_uri(), tmp_path / 'cache', digest[:8]).is_file()


def test_another_hash_is_refused_unless_the_user_states_it(tmp_path, weights, register):
    path, digest = weights
    register(info('a', sha256='0' * 64))
    with pytest.raises(UserError) as err:
        load_detector('a', 'image', {'a': path}, tmp_path, 'cpu')
    trust = f'--detector-file a={path}@sha256:{digest}'
    assert digest in str(err.value) and '0' * 64 in str(err.value) and str(err.value).endswith(trust)
    files = parse_detector_files([trust.removeprefix('--detector-file ')])
    detector = load_detector('a', 'image', files, tmp_path, 'cpu')
    assert detector.sha256 == digest and not detector.registered
    with pytest.raises(UserError, match=f'is {digest}, you state {"1" * 64}'):
        load_detector('a', 'image', {'a': f'{path}@sha256:{"1" * 64}'}, tmp_path, 'cpu')


def test_a_file_in_the_cache_is_checked_as_well(tmp_path, weights, register):
    register(info('a', sha256='0' * 64))
    (tmp_path / 'a.pt').write_bytes(weights[0].read_bytes())
    with pytest.raises(UserError, match='refused, its SHA-256 is'):
        load_detector('a', 'image', {}, tmp_path, 'cpu')


def test_networks_that_read_the_file_themselves(tmp_path, weights, register):
    path, digest = weights
    register(
        info(
            'a', sha256=digest, file_type='path', networks={'image': 'fakes:OfPath', 'video': 'fakes:OfPath'}
        )
    )
    for kind in ('image', 'video'):
        detector = load_detector('a', kind, {'a': path}, tmp_path, 'cpu')
        assert detector.network.size == path.stat().st_size and detector.kind == kind
    path.write_bytes(b'other')
    with pytest.raises(UserError, match='refused'):
        load_detector('a', 'image', {'a': path}, tmp_path, 'cpu')


def test_wrapped_network(tmp_path, weights, register):
    register(info('a', networks={'image': 'fakes:Wrapper'}))
    detector = load_detector('a', 'image', {'a': weights[0]}, tmp_path, 'cpu')
    assert torch.equal(detector.network.network.conv.weight, torch.load(weights[0])['conv.weight'])


# TorchScript.


class Talks(nn.Module):
    """TorchScript whose code runs as soon as the file is opened."""

    def __init__(self):
        super().__init__()
        self.width = 3

    def forward(self, x):
        return x * self.width

    @torch.jit.export
    def __getstate__(self):
        return self.width, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]):
        print('code of the file runs')
        self.width = state[0]
        self.training = state[1]


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp('script') / 'talks.pt'
    torch.jit.script(Talks()).save(str(path))
    return path, file_sha256(path)


@pytest.mark.parametrize('sha256', ['', '0' * 64, 'first digits'])
def test_torchscript_of_another_hash_is_not_opened(tmp_path, script, register, capfd, monkeypatch, sha256):
    path, digest = script
    known = digest[:16] if sha256 == 'first digits' else sha256  # too few to vouch for code
    register(info('a', sha256=known, file_type='torchscript', networks={'image': 'fakes:Scripted'}))
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, 'load', no_network)
        with pytest.raises(UserError, match=f'talks.pt: .*say --detector-file a={path}@sha256:{digest}'):
            load_detector('a', 'image', {'a': path}, tmp_path, 'cpu')
        wrong = '1' * 64
        with pytest.raises(UserError, match=f'refused, its SHA-256 is {digest}, you state {wrong}'):
            load_detector('a', 'image', {'a': f'{path}@sha256:{wrong}'}, tmp_path, 'cpu')
    assert 'code of the file runs' not in capfd.readouterr().out
    detector = load_detector('a', 'image', {'a': f'{path}@sha256:{digest}'}, tmp_path, 'cpu')
    assert 'code of the file runs' in capfd.readouterr().out  # it was dangerous
    assert detector.network.script(torch.ones(1)) == 3


# Registered networks open from files of their tensors.


@pytest.mark.parametrize('name', ['i3d', 'inception', 'r3d_18'])
def test_registered_networks_open(name, tmp_path):
    item = DETECTORS[name]
    (kind,) = item.kinds
    module, _, attribute = item.networks[kind].partition(':')
    network = getattr(importlib.import_module(f'metrics.detectors.{module}'), attribute)(*item.arguments)
    path = tmp_path / 'w.pt'
    torch.save(getattr(network, 'network', network).state_dict(), path)
    digest = file_sha256(path)
    with pytest.raises(UserError, match=f'{digest}, the file of the detector .* has {item.sha256}'):
        load_detector(name, kind, {name: path}, tmp_path, 'cpu')
    detector = load_detector(name, kind, {name: f'{path}@sha256:{digest}'}, tmp_path, 'cpu')
    assert type(detector.network) is type(network)
    own, loaded = network.state_dict(), detector.network.state_dict()
    assert own.keys() == loaded.keys() and all(torch.equal(own[n], loaded[n]) for n in own)
