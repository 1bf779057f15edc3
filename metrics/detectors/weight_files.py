"""Files of weights that came from somewhere: found, checked by hash, and nothing in them is executed.

A file comes, in this order, from a path that the user names, an installed package, the cache folder, and a
download.
"""

import hashlib
import http.client
import importlib.util
import io
import os
import re
from pathlib import Path

import torch
from torch import nn

from dnnlib.util import UserError, explain_os_error, is_out_of_memory

_STATED = re.compile(r'(?P<path>.+)@sha256:(?P<digest>[0-9A-Fa-f]*)')


def split_hash(path: str | Path) -> tuple[Path, str]:
    """Splits FILE@sha256:HEX into the file and the hash that the user states, '' without one.

    Raises:
        UserError: if the hash does not have 64 hexadecimal digits.
    """
    found = _STATED.fullmatch(str(path))
    if not found:
        return Path(path).expanduser(), ''
    if len(found['digest']) != 64:
        raise UserError(f'{path}: a stated SHA-256 has 64 hexadecimal digits; `sha256sum FILE` prints it')
    return Path(found['path']).expanduser(), found['digest'].lower()


def package_file(package: str, filename: str) -> Path | None:
    """Returns a file of an installed package; the package is found without running any of it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / 'models' / filename if spec and spec.origin else None


def download(url: str, path: Path, sha256: str) -> None:
    """Downloads a file, which appears only when its SHA-256 is the expected one.

    Raises:
        UserError: when it cannot be downloaded, or has another SHA-256.
    """
    try:
        os.makedirs(path.parent, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except (OSError, RuntimeError, http.client.HTTPException) as err:  # no network, full disk, wrong hash
        raise UserError(f'cannot download {url}: {err}') from err


def read_file(path: Path) -> tuple[bytes, str]:
    """Returns the content of a file and its SHA-256.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise UserError('cannot read ' + explain_os_error(err, path)) from err
    return data, hashlib.sha256(data).hexdigest()


def load_state(network: nn.Module, data: bytes, path: Path, ignored: str | None = None) -> None:
    """Loads a file of plain tensors, all of them, into a network whose tensors have the same names.

    Counters of batch normalisation (`num_batches_tracked`), which older files lack, may be missing: nothing
    uses them once a network is trained.

    Args:
        network: receives the tensors.
        data: the content of the file.
        path: for messages.
        ignored: how names of tensors begin that the network does not use.

    Raises:
        UserError: if it is not such a file, or has other tensors than the network; some are named.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    except Exception as err:  # the safe unpickler raises nearly anything on a bad file
        if is_out_of_memory(err):
            raise
        raise UserError(f'{path}: refused, it is corrupted or holds more than plain tensors') from err
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
        unexpected = [n for n in unexpected if ignored is None or not n.startswith(ignored)]
        odd = [n for n in (*missing, *unexpected) if not n.endswith('.num_batches_tracked')]
    except (RuntimeError, TypeError, AttributeError) as err:  # of another shape, not a dictionary of tensors
        odd = str(err).split()
    if odd:
        what = ' '.join(odd[:20])
        raise UserError(f'{path}: these are not the weights of {type(network).__name__}: {what}')
