"""Files named by an address and a hash, URL@sha256:HEX: fetched once, and used only if the hash is right."""

import hashlib
import http.client
import os
import re
from pathlib import Path

from dnnlib.util import UserError, atomic_write

_ADDRESS = re.compile(r'(?P<url>https?://.+)@sha256:(?P<digest>[0-9A-Fa-f]{64})')
_WAIT_SEC = 60  # for a server that does not answer


def is_address(text: str) -> bool:
    """Returns whether a text is an address, with a hash or without."""
    return text.startswith(('http://', 'https://'))


def fetch(address: str, folder: Path) -> Path:
    """Returns the file of an address, downloaded into `folder` once; it appears only with the stated hash.

    Args:
        address: URL@sha256:HEX with all 64 digits.
        folder: where files are kept, under their hash.

    Raises:
        UserError: without a hash, when it cannot be downloaded, or when its hash is another.
    """
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise UserError(
            f'{address}: an address needs a hash, as in URL@sha256:HEX (`sha256sum FILE` prints it)'
        )
    url, expected = found['url'], found['digest'].lower()
    path = folder / (expected + Path(url.partition('?')[0]).suffix)
    if path.is_file():
        return path
    import urllib.request  # takes long to import

    digest = hashlib.sha256()
    try:
        os.makedirs(folder, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_WAIT_SEC) as answer, atomic_write(path) as file:
            while chunk := answer.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != expected:
                raise UserError(f'{url}: refused, its SHA-256 is {digest.hexdigest()}, expected {expected}')
    except (OSError, ValueError, http.client.HTTPException) as err:  # no network, no such file, full disk
        raise UserError(f'cannot download {url}: {err}') from err
    return path
