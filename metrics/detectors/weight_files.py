"""Opens files of weights that came from somewhere: checked by hash, and nothing in them is executed.

A file is read once; what is hashed is what is opened. TorchScript files carry code, so those are opened only
when their SHA-256 is the expected one; tensors are read with `weights_only=True`.
"""

import hashlib
import io
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dnnlib.util import UserError, explain_os_error, is_out_of_memory

_STATED = re.compile(r'(?P<path>.+)@sha256:(?P<digest>[0-9A-Fa-f]*)')
_MAX_NAMED = 3  # tensors that a message names


def split_hash(path: str | Path) -> tuple[Path, str]:
    """Splits FILE@sha256:HEX into the file and the hash that the user states, '' when there is none.

    Raises:
        UserError: if the hash has not 64 hexadecimal digits.
    """
    found = _STATED.fullmatch(str(path))
    if not found:
        return Path(path).expanduser(), ''
    if len(found['digest']) != 64:
        raise UserError(f'{path}: a stated SHA-256 has 64 hexadecimal digits; `sha256sum FILE` prints it')
    return Path(found['path']).expanduser(), found['digest'].lower()


def matches(digest: str, expected: str) -> bool:
    """Tells whether a SHA-256 is the expected one, of which at least the first 8 digits are known."""
    return len(expected) >= 8 and digest.startswith(expected.lower())


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


def load_state(network: nn.Module, data: bytes, path: Path) -> None:
    """Loads a file of plain tensors, all of them, into a network.

    Counters of batch normalisation (`num_batches_tracked`), which older files lack, may be absent: nothing
    uses them once a network is trained.

    Args:
        network: whose tensors are named as in the file.
        data: the content of the file.
        path: for messages.

    Raises:
        UserError: if it is no such file, or has other tensors than the network; some are named.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # on TorchScript archives, which weights_only refuses
            state = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    except Exception as err:  # the safe unpickler raises nearly anything on a bad file
        if is_out_of_memory(err):
            raise
        raise UserError(f'{path}: refused, not a whole file of plain tensors ({_reason(err)})') from err
    named = isinstance(state, dict) and all(isinstance(k, str) for k in state)
    if not named or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f'{path}: refused, not a dictionary of named tensors')
    own = {n: t for n, t in network.state_dict().items() if not n.endswith('.num_batches_tracked')}
    state = {n: t for n, t in state.items() if not n.endswith('.num_batches_tracked')}
    problem = _misfit(own, state)
    if problem:
        raise UserError(f'{path}: these are not the weights of {type(network).__name__}: {problem}')
    network.load_state_dict(state, strict=False)


def _misfit(own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """Says which tensors are missing, unexpected, of another shape or not finite; '' when all fit."""
    both = [n for n in own if n in state]
    found = {
        'missing': [n for n in own if n not in state],
        'unexpected': [n for n in state if n not in own],
        'of another shape': [
            f'{n} {list(state[n].shape)} instead of {list(own[n].shape)}'
            for n in both
            if state[n].shape != own[n].shape
        ],
        'not finite': [n for n in both if not state[n].isfinite().all()],
    }
    parts = []
    for what, names in found.items():
        more = f' and {len(names) - _MAX_NAMED} more' if len(names) > _MAX_NAMED else ''
        parts += [f'{what}: {", ".join(names[:_MAX_NAMED])}{more}'] if names else []
    return '; '.join(parts)


def _reason(err: Exception) -> str:
    """Says in a few words why torch.load refused; its own text advises to switch the protection off."""
    text = str(err)
    call = re.search(r'GLOBAL ([\w.]+)', text)
    if call:
        return f'it wants to call {call.group(1)}'
    if 'TorchScript' in text:
        return 'it is a TorchScript archive'
    lines = text.strip().splitlines()
    return lines[0] if lines and 'weights_only' not in lines[0] else type(err).__name__


def open_torchscript(data: bytes, path: Path) -> nn.Module:
    """Opens a TorchScript file, whose hash the caller has checked: it carries code.

    Raises:
        UserError: if it is no such file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that TorchScript is deprecated
            return torch.jit.load(io.BytesIO(data), map_location='cpu')
    except Exception as err:  # nearly anything, among it RuntimeError and ValueError
        if is_out_of_memory(err):
            raise
        first = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise UserError(f'{path}: not a whole TorchScript file ({first})') from err
