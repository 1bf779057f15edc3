"""Network snapshots (`network-snapshot-NNNNNN.pkl`) and training states (`training-state-NNNNNN.pt`).

Both are torch.save zips of plain dictionaries and tensors, written atomically and opened with
`weights_only=True`, so that nothing in a file is ever executed. A network is stored as its config and its
state; it is rebuilt from the class that the caller names. The zip's checksums tell a damaged file; the newest
valid pair of a run folder is found by name.
"""

import dataclasses
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.config import Kinds, to_dict
from dnnlib.util import CheckpointError, UserError, atomic_write, explain_os_error, remove_temp_files

SNAPSHOT = 'pv3d-snapshot'
TRAINING_STATE = 'pv3d-training-state'
VERSIONS = {SNAPSHOT: 1, TRAINING_STATE: 1}  # what is written; older files are upgraded when they are read

# format -> {version: pure function from the dictionary of that version to the one of version + 1}
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
UPGRADES: Mapping[str, Mapping[int, Upgrade]] = {SNAPSHOT: {}, TRAINING_STATE: {}}

_NOUNS = {SNAPSHOT: 'PV3D snapshot', TRAINING_STATE: 'PV3D training state'}
_SNAPSHOT_NAME = re.compile(r'^network-snapshot-(\d+)\.pkl$')
_STATE_NAME = re.compile(r'^training-state-(\d+)\.pt$')
_MAX_NAMED = 4  # tensors named in an error message
# what zipfile raises on damaged bytes: of names in them, of places outside the file, ...
_SPOILT_ZIP = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A checked network snapshot in memory: build its networks with `build_network`."""

    path: Path
    meta: dict[str, Any]
    networks: dict[str, dict[str, Any]]  # name -> {'config': dict, 'state': {name: tensor}}


def snapshot_path(run_dir: str | Path, nimg: int) -> Path:
    """Returns the path of the snapshot after `nimg` training samples; the full count keeps names apart."""
    return Path(run_dir, f'network-snapshot-{nimg:09d}.pkl')


def training_state_path(run_dir: str | Path, nimg: int) -> Path:
    """Returns the path of the training state that belongs to `snapshot_path(run_dir, nimg)`."""
    return Path(run_dir, f'training-state-{nimg:09d}.pt')


def save_snapshot(
    path: str | Path,
    networks: Mapping[str, nn.Module],
    meta: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes networks so that they can be rebuilt from the file and their classes alone.

    Args:
        path: by convention *.pkl. networks: name -> module; each has its `config` (see dnnlib.config). meta:
        facts about the run; plain values, numpy values and paths. dtype: stores floating-point tensors in
        this type, e.g. torch.float16; loading returns to the module's own.

    Raises:
        UserError: if the file cannot be written.
        ValueError: if a value does not fit into `dtype`.
    """
    entries = {}
    for name, module in networks.items():
        state = {key: _stored(value, dtype, f'{name}.{key}') for key, value in module.state_dict().items()}
        entries[name] = {'config': to_dict(module.config), 'state': state}
    _save(path, SNAPSHOT, {'meta': dict(meta), 'networks': entries})


def read_snapshot(path: str | Path) -> Snapshot:
    """Reads and checks a network snapshot; tensors come on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, of another format, too new, or holds more than plain
        data.
    """
    content = _load(path, SNAPSHOT)
    meta, networks = content.get('meta'), content.get('networks')
    if (
        not isinstance(meta, dict)
        or not isinstance(networks, dict)
        or not all(map(_is_network, networks.values()))
    ):
        raise CheckpointError(
            f'{path}: the snapshot lacks its meta data or networks; write it again with save_snapshot'
        )
    return Snapshot(Path(path), meta, networks)


def _is_network(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get('config'), dict):
        return False
    state = entry.get('state')
    return isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )


def build_network(
    snapshot: Snapshot, name: str, kinds: Kinds, device: torch.device | str = 'cpu'
) -> nn.Module:
    """Rebuilds one network of a snapshot for inference: eval mode, no gradients.

    Args:
        snapshot: from `read_snapshot`.
        name: for example 'G_ema'.
        kinds: the classes that this network may be of.
        device: where it shall live.

    Raises:
        CheckpointError: if the snapshot has no such network, or its config or tensors do not fit the class.
    """
    entry = _entry(snapshot, name)
    try:
        module = kinds.read(entry['config']).build()
    except (UserError, RuntimeError) as err:  # the config is refused, or asks for more memory than there is
        message = f'{snapshot.path}: {name} was saved with options that it cannot have here ({err})'
        raise CheckpointError(f'{message}; use the code that wrote it') from err
    problem = _state_mismatch(module, entry['state'])
    if problem:
        raise CheckpointError(f'{snapshot.path}: {name} does not fit {type(module).__qualname__}: {problem}')
    module.load_state_dict(entry['state'], strict=True)
    return module.eval().requires_grad_(False).to(device)


def load_weights(snapshot: Snapshot, name: str, module: nn.Module) -> None:
    """Copies the weights of one network of a snapshot into a module, wherever that is.

    Raises:
        CheckpointError: if the snapshot has no such network, or its tensors do not fit.
    """
    state = _entry(snapshot, name)['state']
    problem = _state_mismatch(module, state)
    if problem:
        raise CheckpointError(f'{snapshot.path}: {name} does not fit this run: {problem}')
    module.load_state_dict(state, strict=True)


def _entry(snapshot: Snapshot, name: str) -> dict[str, Any]:
    if name not in snapshot.networks:
        known = ', '.join(snapshot.networks)
        raise CheckpointError(f'{snapshot.path}: no network {name!r} in this snapshot; it has {known}')
    return snapshot.networks[name]


def _state_mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Says which tensors are missing, unexpected or of another shape; '' when all fit."""
    own = module.state_dict()
    found = {
        'missing': [n for n in own if n not in state],
        'unexpected': [n for n in state if n not in own],
        'misshapen': [
            f'{n} {list(state[n].shape)} instead of {list(t.shape)}'
            for n, t in own.items()
            if n in state and state[n].shape != t.shape
        ],
    }
    parts = []
    for what, names in found.items():
        more = f' and {len(names) - _MAX_NAMED} more' if len(names) > _MAX_NAMED else ''
        parts += [f'{what}: {", ".join(names[:_MAX_NAMED])}{more}'] if names else []
    return '; '.join(parts)


def save_training_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes what is needed to go on training: nested dictionaries, lists, tensors, plain and numpy values.

    Raises:
        UserError: if the file cannot be written.
        TypeError: names a value of another type.
    """
    _save(path, TRAINING_STATE, {'state': dict(state)})


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Reads and checks what `save_training_state` wrote; tensors come on the CPU, tuples as lists.

    Raises:
        CheckpointError: as `read_snapshot`.
    """
    state = _load(path, TRAINING_STATE).get('state')
    if not isinstance(state, dict):
        raise CheckpointError(f'{path}: the training state is empty; use an older one')
    return state


def latest_checkpoint(run_dir: str | Path, warn: Callable[[str], None]) -> tuple[Path, Path, int] | None:
    """Finds the newest snapshot and training state that belong together and are both whole.

    Deletes leftover temporary files: nobody else may be writing into the folder. Call it on one process and
    tell the others.

    Args:
        run_dir: the run folder; it may be missing.
        warn: called with one sentence for each newer file that is passed over.

    Returns:
        (snapshot, training state, number in the names), or None if there is no usable pair.
    """
    if not Path(run_dir).is_dir():
        return None
    remove_temp_files(run_dir)
    snapshots, states = _numbered(run_dir, _SNAPSHOT_NAME), _numbered(run_dir, _STATE_NAME)
    for number in sorted({*snapshots, *states}, reverse=True):
        pair = snapshots.get(number), states.get(number)
        if pair[0] is None or pair[1] is None:
            alone, lacks = (pair[0], 'training state') if pair[0] else (pair[1], 'network snapshot')
            warn(f'{alone}: passed over, since its {lacks} is missing')
            continue
        try:
            read_snapshot(pair[0])
            load_training_state(pair[1])
        except CheckpointError as err:
            warn(f'passed over: {err}')
            continue
        return pair[0], pair[1], number
    return None


def prune_training_states(run_dir: str | Path, keep: int = 2) -> None:
    """Deletes all training states but the newest `keep`; snapshots stay."""
    if keep < 1:
        raise ValueError(f'keep={keep} must be at least 1')
    states = _numbered(run_dir, _STATE_NAME)
    for number in sorted(states)[:-keep]:
        states[number].unlink(missing_ok=True)


def _numbered(run_dir: str | Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """Finds files by name: number -> path."""
    matches = ((pattern.match(p.name), p) for p in Path(run_dir).iterdir())
    return {int(m.group(1)): path for m, path in matches if m}


def _stored(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """Returns a compact CPU tensor, of `dtype` if it is floating-point."""
    value = tensor.detach().cpu().contiguous()
    if dtype is not None and value.is_floating_point() and value.dtype != dtype:
        cast = value.to(dtype)
        if not torch.equal(cast.isfinite(), value.isfinite()):
            raise ValueError(f'{name} has values that {dtype} cannot hold; save it with dtype=None')
        return cast
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()  # torch.save writes the whole storage behind a slice


def _plain(value: Any, name: str) -> Any:
    """Turns a tree of values into what loads under weights_only; `name` is the path inside the tree."""
    if isinstance(value, Tensor):
        return _stored(value, None, name)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(k, name): _plain(v, f'{name}[{k!r}]') for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f'{name}[{i}]') for i, v in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise TypeError(
        f'{name} is a {type(value).__name__}, which a checkpoint cannot hold; turn it into plain values'
    )


def _save(path: str | Path, file_format: str, content: dict[str, Any]) -> None:
    header = {'format': file_format, 'version': VERSIONS[file_format]}
    write_torch(path, {**header, **_plain(content, file_format)})


def write_torch(path: str | Path, document: Any) -> None:
    """Writes a torch.save file atomically; raises UserError if it cannot be written."""
    try:
        with atomic_write(path) as file:
            torch.save(document, file)
    except RuntimeError as err:  # torch's zip writer hides the failure of the file below it
        cause = err.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError('cannot write ' + explain_os_error(cause, path)) from err


def _load(path: str | Path, file_format: str) -> dict[str, Any]:
    """Reads a file with all checks and brings it to the present version."""
    noun = _NOUNS[file_format]
    check_zip(Path(path), noun)
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as err:  # the safe unpickler raises nearly anything on a hostile file
        raise CheckpointError(
            f'{path}: refused, not the plain data of a {noun} ({_reason(err)}); use another file'
        ) from err
    found = content.get('format') if isinstance(content, dict) else None
    if found != file_format:
        advice = 'pass the matching file' if found in VERSIONS else 'use another file'
        raise CheckpointError(f'{path}: not a {noun} (its format is {found!r}); {advice}')
    return _upgrade(path, file_format, content)


def _reason(err: BaseException) -> str:
    """Says in a few words why torch.load refused; its own text advises to switch the protection off."""
    code = re.search(r'GLOBAL ([\w.]+)', str(err))
    if code:
        return f'it wants to call {code.group(1)}'
    lines = str(err).strip().splitlines()
    return lines[0] if lines and 'weights_only' not in lines[0] else type(err).__name__


def _upgrade(path: str | Path, file_format: str, content: dict[str, Any]) -> dict[str, Any]:
    current, version = VERSIONS[file_format], content.get('version')
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f'{path}: the version {version!r} is not a number; the file is damaged, use another'
        )
    if version > current:
        raise CheckpointError(
            f'{path}: written by a newer version of this code (file version {version}, '
            f'known up to {current}); update the code'
        )
    while version < current:
        content = UPGRADES[file_format][version](content)
        version += 1
    return content


def check_zip(path: Path, noun: str) -> None:
    """Checks, without unpickling anything, that the file is a whole zip as torch.save writes it."""
    try:
        _check_head(path, noun)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            declared = sum(e.file_size for e in entries)
            stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
            plausible = stored and declared <= path.stat().st_size
            broken = archive.testzip() if plausible else None  # reads everything and compares the checksums
    except OSError as err:
        raise CheckpointError('cannot read ' + explain_os_error(err, path)) from err
    except CheckpointError:
        raise
    except _SPOILT_ZIP as err:
        raise CheckpointError(
            f'{path}: cut short or damaged ({err}); use an older file or copy it again'
        ) from err
    if not plausible:
        raise CheckpointError(
            f'{path}: refused, it would unpack to {declared} bytes; a {noun} is not compressed'
        )
    if not any(e.filename.endswith('/data.pkl') for e in entries):
        held = ascii(entries[0].filename)[1:-1][:80] if entries else 'nothing'
        raise CheckpointError(f'{path}: not a {noun} but another zip (with {held}); use another file')
    if broken is not None:
        part = ascii(broken)[1:-1][:80]
        raise CheckpointError(
            f'{path}: damaged (wrong checksum of {part}); use an older file or copy it again'
        )


def _check_head(path: Path, noun: str) -> None:
    with open(path, 'rb') as file:
        head = file.read(2)
    if head == b'PK':
        return
    kinds = {b'': 'empty', b'\x80': 'a Python pickle, which could run code', b'<': 'perhaps a web page'}
    found = kinds.get(head[:1], 'not even a zip')
    raise CheckpointError(f'{path}: not a {noun} ({found}), so it was not opened; download or copy it again')
