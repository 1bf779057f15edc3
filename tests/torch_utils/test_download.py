"""Downloads: checked, cached, refused without leaving anything."""

import hashlib
import os

import pytest

from dnnlib.util import UserError
from torch_utils.misc import download, download_path


@pytest.mark.parametrize('digits', [64, 20, 8])
def test_download_checks_and_caches(tmp_path, digits):
    source, cache = tmp_path / 'some weights.bin', tmp_path / 'cache' / 'deep'
    source.write_bytes(b'data' * 1000)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:digits].upper()
    path = download(source.as_uri(), cache, digest)
    assert path.read_bytes() == source.read_bytes() and path.name.endswith('-some weights.bin')
    assert path == download_path(source.as_uri(), cache, digest)
    source.unlink()
    assert download(source.as_uri(), cache, digest) == path  # from the cache: the source is gone
    path.write_bytes(b'corrupted')
    with pytest.raises(UserError, match='cannot download .*check the address'):
        download(source.as_uri(), cache, digest)
    source.write_bytes(b'data' * 1000)
    assert download(source.as_uri(), cache, digest).read_bytes() == source.read_bytes()  # downloaded again


def test_a_download_that_fails_leaves_nothing(tmp_path):
    (tmp_path / 'a.bin').write_bytes(b'other')
    for url in ((tmp_path / name).as_uri() for name in ('a.bin', 'missing.bin')):
        with pytest.raises(UserError, match=f'cannot download {url}'):
            download(url, tmp_path / 'cache', '0' * 64)
        assert os.listdir(tmp_path / 'cache') == []
