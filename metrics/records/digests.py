"""Checksums by content (of networks, data, files, JSON), and folders that state what they hold."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.config import to_dict
from dnnlib.util import UserError, atomic_write, file_sha256

_ROOT = Path(__file__).resolve().parents[2]
_CODE = (  # folders and files that records depend on
    'metrics',
    'torch_utils/ops',
    'training/networks',
    'training/volumetric_rendering',
    'training/camera.py',
    'training/data',
    'dnnlib/scene.py',
    'viz/rollout.py',
    'viz/images.py',
    'dnnlib/video.py',
)


def json_digest(value: Any) -> str:
    """Returns the SHA-256 of plain data; the order of keys makes no difference."""
    text = json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest() -> str:
    """Returns a SHA-256 of all that computes records: sources, and the version of torch.

    Whoever changes a line of rendering or of a metric must not get what older code has computed.
    """
    digest = hashlib.sha256(str(torch.__version__).encode())
    for name in _CODE:
        for path in sorted((_ROOT / name).rglob('*')) if '.' not in name else [_ROOT / name]:
            if path.suffix in ('.py', '.cu', '.h', '.cpp'):
                digest.update(path.relative_to(_ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def network_digest(module: nn.Module) -> str:
    """Returns the SHA-256 of a network's config and state: equal for a module and for its loaded snapshot.

    Device and training mode do not count; the types of the tensors do.
    """
    state = tensors_digest(sorted(module.state_dict().items()))
    return json_digest({'config': to_dict(module.config), 'state': state})


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Returns the SHA-256 of tensors: names, types, shapes, values."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(json_digest([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def dataset_digest(path: str | Path) -> str:
    """Returns a SHA-256 that stands for all files of a data set, a zip or a folder.

    Of a zip the names, sizes and checksums in its directory count: it is not read through, and an image that
    does not match its checksum is refused when it is read.
    """
    root = Path(path)
    if root.is_dir():
        return files_digest(root, (p for p in root.rglob('*') if p.is_file()))
    with zipfile.ZipFile(root) as archive:
        return json_digest(sorted([i.filename, i.file_size, i.CRC] for i in archive.infolist()))


def files_digest(root: Path, paths: Iterable[Path]) -> str:
    """Returns the SHA-256 of the names relative to `root`, the sizes and the contents of files."""
    return json_digest(
        [[p.relative_to(root).as_posix(), p.stat().st_size, file_sha256(p)] for p in sorted(paths)]
    )


def claim_folder(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Makes a folder for results and notes in the file `name` what they are results of.

    Raises:
        UserError: when the folder holds results of something else.
    """
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        with atomic_write(path, 'w') as file:
            json.dump(content, file, indent=2)
        return
    except ValueError:
        known = None
    if json_digest(known) != json_digest(content):
        raise UserError(
            f'{folder} holds results of other networks, data or options (see {name}); choose another'
        )
