"""Files of addresses: fetched once, refused with another hash, and accepted as --network."""

import functools
import hashlib
import http.server
import threading
from pathlib import Path
from typing import Annotated

from dnnlib.cli import _REMOTE, _Text, _type

import click
import pytest

from dnnlib.downloads import fetch
from dnnlib.util import UserError

CONTENT = b'weights'


@pytest.fixture
def address(tmp_path):
    (tmp_path / 'served').mkdir()
    (tmp_path / 'served' / 'a.pkl').write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / 'served')
    server = http.server.HTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}/a.pkl'
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once_and_only_with_its_hash(address, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(f'{address}@sha256:{digest.upper()}', tmp_path / 'kept')
    assert path.read_bytes() == CONTENT and path.name == f'{digest}.pkl'
    (tmp_path / 'served' / 'a.pkl').unlink()
    assert fetch(f'{address}@sha256:{digest}', tmp_path / 'kept') == path
    for bad, reason in ((f'{address}@sha256:{"0" * 64}', 'cannot download'), (address, 'needs a hash')):
        with pytest.raises(UserError, match=reason):
            fetch(bad, tmp_path / 'kept')


def test_another_hash_leaves_nothing(address, tmp_path):
    with pytest.raises(UserError, match='refused, its SHA-256 is'):
        fetch(f'{address}@sha256:{"0" * 64}', tmp_path / 'kept')
    assert not list((tmp_path / 'kept').iterdir())


def test_options_of_snapshots_take_addresses(address, tmp_path, monkeypatch):
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path))
    snapshot, other = _type(str, [_REMOTE]), _type(str, ['ZIP'])
    assert Annotated[str, _REMOTE] and isinstance(snapshot, _Text)
    found = snapshot.convert(f'{address}@sha256:{hashlib.sha256(CONTENT).hexdigest()}', None, None)
    assert Path(found).read_bytes() == CONTENT
    for kind, reason in ((snapshot, 'needs a hash'), (other, 'download it first')):
        with pytest.raises(click.BadParameter, match=reason):
            kind.convert(address, None, None)
