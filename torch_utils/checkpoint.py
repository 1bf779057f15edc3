"""Network snapshots (`network-snapshot-NNNNNN.pkl`), training states (`training-state-NNNNNN.pt`), portraits.

All are torch.save zips of plain dictionaries and tensors, written atomically and opened with
`weights_only=True`, so that nothing in a file is ever executed. A network is stored as its config and its
state; it is rebuilt from the class that the caller names. The zip's checksums reveal a corrupted file; the
newest valid pair of a run folder is found by name.
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

VERSION = 1  # of all formats
_SNAPSHOT, _TRAINING_STATE = 'pv3d-snapshot', 'pv3d-training-state'
PORTRAIT, EDIT_STATE = 'pv3d-portrait', 'pv3d-edit-state'
FORMATS = {  # and their names
    _SNAPSHOT: 'PV3D snapshot',
    _TRAINING_STATE: 'PV3D training state',
    PORTRAIT: 'PV3D portrait',
    EDIT_STATE: 'state of a PV3D edit',
}
_SNAPSHOT_NAME = re.compile(r'^network-snapshot-(\d+)\.pkl$')
_STATE_NAME = re.compile(r'^training-state-(\d+)\.pt$')
# what zipfile raises on corrupted bytes: of names in them, of places outside the file, ...
_CORRUPTED = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)


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
        path: by convention *.pkl.
        networks: name -> module; each has its `config` (see dnnlib.config).
        meta: facts about the run; plain values, numpy values and paths.
        dtype: stores floating-point tensors in this type, e.g. torch.float16; loading converts back.

    Raises:
        UserError: if the file cannot be written.
        ValueError: if a value does not fit into `dtype`.
    """
    entries = {}
    for name, module in networks.items():
        state = {key: _stored(value, dtype, f'{name}.{key}') for key, value in module.state_dict().items()}
        entries[name] = {'config': to_dict(module.config), 'state': state}
    _save(path, _SNAPSHOT, {'meta': dict(meta), 'networks': entries})


def read_snapshot(path: str | Path) -> Snapshot:
    """Reads and checks a network snapshot; tensors come on the CPU.

    Raises:
        CheckpointError: if the file is missing, corrupted, of another format, too new, or not plain data.
    """
    content = _load(path, _SNAPSHOT)
    return Snapshot(Path(path), content['meta'], content['networks'])


def _is_snapshot(content: dict[str, Any]) -> bool:
    meta, networks = content.get('meta'), content.get('networks')
    return isinstance(meta, dict) and isinstance(networks, dict) and all(map(_is_network, networks.values()))


def _is_network(entry: Any) -> bool:
    parts = [entry.get(k) for k in ('config', 'state')] if isinstance(entry, dict) else [None]
    return all(isinstance(part, dict) for part in parts) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in parts[1].items()
    )


def build_network(
    snapshot: Snapshot, name: str, kinds: Kinds, device: torch.device | str = 'cpu'
) -> nn.Module:
    """Rebuilds one network of a snapshot for inference: eval mode, no gradients.

    Args:
        snapshot: from `read_snapshot`.
        name: for example 'G_ema'.
        kinds: the classes that this network may be of.
        device: of the result.

    Raises:
        CheckpointError: if the snapshot has no such network, or its config or tensors do not fit the class.
    """
    config = _entry(snapshot, name)['config']
    try:
        module = kinds.read(config).build()
    except (UserError, RuntimeError) as err:  # the config is refused, or asks for more memory than there is
        message = f'{snapshot.path}: {name} was saved with options that it cannot have here ({err})'
        raise CheckpointError(f'{message}; use the code that wrote it') from err
    load_weights(snapshot, name, module)
    return module.eval().requires_grad_(False).to(device)


def load_weights(snapshot: Snapshot, name: str, module: nn.Module) -> None:
    """Copies the weights of one network of a snapshot into a module, on any device.

    Raises:
        CheckpointError: if the snapshot has no such network, or its tensors do not fit.
    """
    state = _entry(snapshot, name)['state']
    if problem := _misfit(module.state_dict(), state):
        raise CheckpointError(f'{snapshot.path}: {name} does not fit: {problem}')
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as err:  # tensors of a kind that cannot be copied, such as sparse ones
        raise CheckpointError(
            f'{snapshot.path}: {name} cannot be copied: {str(err).splitlines()[-1][:200]}'
        ) from err


def _misfit(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> str:
    """Says in words which tensors of a network are not in a file, or otherwise; '' = all are there."""
    shared = [n for n in own if n in stored]
    other = [n for n in shared if own[n].shape != stored[n].shape]
    found = {
        'with another shape in it': [f'{n} {[*stored[n].shape]} instead of {[*own[n].shape]}' for n in other],
        'missing in it': [n for n in own if n not in stored],
        'in the file alone': [n for n in stored if n not in own],
    }
    parts = [f'{what}: {_first(names)}' for what, names in found.items() if names]
    fits = f'{len(shared) - len(other)} of its {len(own)} tensors could be copied from the file'
    return '; '.join([fits, *parts]) if parts else ''


def _first(names: list[str]) -> str:
    return ascii(names[0])[1:-1][:100] + (f' and {len(names) - 1} more' if len(names) > 1 else '')


def _entry(snapshot: Snapshot, name: str) -> dict[str, Any]:
    if name not in snapshot.networks:
        known = ', '.join(snapshot.networks)
        raise CheckpointError(f'{snapshot.path}: no network {name!r} in this snapshot; it has {known}')
    return snapshot.networks[name]


def save_training_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes what is needed to resume training: nested dicts, lists, tensors, plain values, numpy scalars.

    Raises:
        UserError: if the file cannot be written.
        TypeError: names a value of another type.
    """
    save_state(path, _TRAINING_STATE, state)


def save_state(path: str | Path, file_format: str, state: Mapping[str, Any]) -> None:
    """Writes a document of one of FORMATS but a snapshot; see `save_training_state`."""
    _save(path, file_format, {'state': dict(state)})


def load_state(path: str | Path, file_format: str) -> dict[str, Any]:
    """Reads and checks what `save_state` wrote; see `load_training_state`."""
    return _load(path, file_format)['state']


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Reads and checks what `save_training_state` wrote; tensors come on the CPU, tuples as lists.

    Raises:
        CheckpointError: as `read_snapshot`.
    """
    return load_state(path, _TRAINING_STATE)


def latest_checkpoint(run_dir: str | Path, warn: Callable[[str], None]) -> tuple[Path, Path, int] | None:
    """Finds the newest snapshot and training state that belong together and are both intact.

    Deletes leftover temporary files: nobody else may be writing into the folder. Call it in one process.

    Args:
        run_dir: the run folder; it may be missing.
        warn: called with one sentence for each newer file that is skipped.

    Returns:
        (snapshot, training state, number in the names), or None if the folder has no snapshot.

    Raises:
        CheckpointError: if it has snapshots, but no usable pair: starting again would overwrite them.
    """
    if not Path(run_dir).is_dir():
        return None
    remove_temp_files(run_dir)
    snapshots, states = _numbered(run_dir, _SNAPSHOT_NAME), _numbered(run_dir, _STATE_NAME)
    for number in sorted({*snapshots, *states}, reverse=True):
        snapshot, state = snapshots.get(number), states.get(number)
        if snapshot is None or state is None:
            lacks = 'training state' if snapshot else 'network snapshot'
            warn(f'{snapshot or state}: skipped, because its {lacks} is missing')
        elif _can_read(snapshot, read_snapshot, warn) and _can_read(state, load_training_state, warn):
            return snapshot, state, number
    if not snapshots:
        return None  # a state is written before its snapshot: the first save was interrupted
    newest_first = (snapshots[number] for number in sorted(snapshots, reverse=True))
    weights = next((path for path in newest_first if _can_read(path, read_snapshot, lambda _: None)), None)
    source = f'from weights with --resume {weights}, or ' if weights else ''
    raise CheckpointError(
        f'{run_dir}: no snapshot has a training state that can be read, so this run cannot be continued; '
        f'start a new run {source}from nothing with --fresh'
    )


def _can_read(path: Path, read: Callable[[Path], Any], warn: Callable[[str], None]) -> bool:
    try:
        read(path)
    except CheckpointError as err:
        warn(f'skipped: {err}')
        return False
    return True


def prune_training_states(run_dir: str | Path, keep: int) -> None:
    """Deletes all training states but the newest `keep` (at least 1) that have a snapshot; snapshots stay."""
    states = _numbered(run_dir, _STATE_NAME)
    paired = sorted(states.keys() & _numbered(run_dir, _SNAPSHOT_NAME).keys())
    for number in states.keys() - set(paired[-keep:]):
        states[number].unlink(missing_ok=True)


def _numbered(run_dir: str | Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """Finds files by name: number -> path."""
    matches = ((pattern.match(p.name), p) for p in Path(run_dir).iterdir())
    return {int(m.group(1)): path for m, path in matches if m}


def _stored(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """Returns a compact CPU tensor, of `dtype` if it is floating-point."""
    value = tensor.detach().cpu().contiguous()
    if dtype is not None and value.is_floating_point():
        cast = value.to(dtype)
        if not torch.equal(cast.isfinite(), value.isfinite()):
            raise ValueError(f'{name} has values that {dtype} cannot hold; save it with dtype=None')
        value = cast
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()  # torch.save writes the whole storage behind a slice


def _plain(value: Any, name: str) -> Any:
    """Turns a tree of values into what loads under weights_only; `name` is the path inside the tree."""
    if isinstance(value, Tensor):
        return _stored(value, None, name)
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
    raise TypeError(f'{name} is a {type(value).__name__}, which a checkpoint cannot hold')


def _save(path: str | Path, file_format: str, content: dict[str, Any]) -> None:
    write_torch(path, {'format': file_format, 'version': VERSION, **_plain(content, file_format)})


def write_torch(path: str | Path, document: Any) -> None:
    """Writes a torch.save file atomically; raises UserError if it cannot be written."""
    try:
        with atomic_write(path) as file:
            torch.save(document, file)
    except RuntimeError as err:  # torch's zip writer hides the failure of the file below it
        if not isinstance(err.__context__, OSError):
            raise
        raise UserError('cannot write ' + explain_os_error(err.__context__, path)) from err


def _load(path: str | Path, file_format: str) -> dict[str, Any]:
    noun = FORMATS[file_format]
    check_zip(Path(path), noun)
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as err:  # the safe unpickler raises nearly anything on a hostile file
        call = re.search(r'GLOBAL ([\w.]+)', str(err))  # its own text advises to switch the protection off
        reason = f'it wants to call {call[1]}' if call else type(err).__name__
        raise CheckpointError(f'{path}: refused, not the plain data of a {noun} ({reason})') from err
    content = content if isinstance(content, dict) else {}
    found, version = content.get('format'), content.get('version')
    if found != file_format:
        use = 'use another file'
        if found == _TRAINING_STATE and (number := _STATE_NAME.match(Path(path).name)):
            use = f'the snapshot is {snapshot_path(Path(path).parent, int(number[1])).name}, beside it'
        raise CheckpointError(f'{path}: not a {noun} (its format is {found!r}); {use}')
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise CheckpointError(f'{path}: file version {version!r} is not known to this code; update the code')
    if not (_is_snapshot(content) if file_format == _SNAPSHOT else isinstance(content.get('state'), dict)):
        raise CheckpointError(f'{path}: parts of the {noun} are missing; use another file')
    return content


def check_zip(path: Path, noun: str) -> None:
    """Checks, without unpickling anything, that the file is an intact zip as torch.save writes it."""
    try:
        with open(path, 'rb') as file:
            head = file.read(2)
        if head != b'PK':
            kinds = {b'': 'empty', b'\x80': 'a Python pickle, which could run code', b'<': 'a web page?'}
            found = kinds.get(head[:1], 'not a zip')
            raise CheckpointError(f'{path}: not a {noun} ({found}), not opened; download or copy it again')
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            size = sum(e.file_size for e in entries)
            is_plain = size <= path.stat().st_size and all(
                e.compress_type == zipfile.ZIP_STORED for e in entries
            )
            corrupted = archive.testzip() if is_plain else None  # reads all and compares the checksums
        if corrupted is not None:
            raise zipfile.BadZipFile(f'wrong checksum of {ascii(corrupted)[1:-1][:80]}')
    except OSError as err:
        raise CheckpointError('cannot read ' + explain_os_error(err, path)) from err
    except _CORRUPTED as err:
        raise CheckpointError(f'{path}: cut short or corrupted ({err}); use another file') from err
    if not is_plain or not any(e.filename.endswith('/data.pkl') for e in entries):
        held = ascii(entries[0].filename)[1:-1][:80] if entries else 'nothing'
        raise CheckpointError(f'{path}: not a {noun} but another zip (with {held}, {size} bytes unpacked)')
