"""Foreign checkpoints as snapshots of ours: the released PV3D's `.ckpt` and `.pth`, EG3D's `.pkl`.

Names go through the table of `networks.released_names`, configs are read off shapes, and what does not fit is
listed: nothing is left out silently. No code of a file is ever run.
"""

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.config import from_dict, override, to_dict
from dnnlib.util import CheckpointError, ConfigError, UserError
from interop.configs import CONFIGS, generator_config
from interop.eg3d import EG3D_KEYS, PERSISTENT_NAME, eg3d_identity_raw, eg3d_options, module_state
from interop.names import (
    EG3D_EXTRAS,
    EG3D_NETWORKS,
    MODEL_EXTRAS,
    PREFIXES,
    SR_FILTER,
    convert_released,
    filter_names,
    to_released,
)
from interop.reader import read_foreign
from torch_utils.checkpoint import Snapshot, read_snapshot
from torch_utils.ops.upfirdn2d import make_filter
from training.networks.pv3d import Generator
from training.networks.registry import NETWORKS

PV3D, EG3D = 'released PV3D', 'EG3D'
OUR_CONFIGS = 'pv3d_configs'  # where our own exports keep theirs, in `config`
EG3D_NIMG = (
    1_000_000  # EG3D says nothing of its progress: all schedules are taken as over, as its resume does
)
_COUNTERS = (
    *('best_iteration', 'current_iteration', 'current_epoch', 'num_updates', 'num_samples', 'best_update'),
    'best_metric_value',
)
_PARALLEL = 'module.'  # before every name when a parallel wrapper was saved instead of the model
_EMBED = 'backbone.mapping.embed.weight'
_EG3D_NEEDED = (_EMBED, 'backbone.mapping.w_avg', 'decoder.net.2.bias')
_ZIP, _PICKLE = b'PK', b'\x80'  # first bytes of files
_PEEK = 2**16  # bytes of a pickle in which our header and meta data lie
_MAX_COUNT = 2**53  # iterations, samples
_MAX_NAMED = 20  # tensors of a kind named in a message
_PLANES = {'released': ' (x-y, x-z and z-x, no y-z plane)'}

Overrides = list[tuple[str, str]]  # (path in the generator's config, value as text)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A converted checkpoint."""

    kind: str  # PV3D or EG3D
    snapshot: Snapshot
    facts: list[str]  # lines for people: what was found, and the switches that it runs with
    optimizers: Any = None  # as the file has them
    parameters: dict[str, list[str]] = dataclasses.field(
        default_factory=dict
    )  # of each network, in its order


def is_foreign(path: str | Path) -> bool:
    """Tells whether a file is a pickle, or a torch.save zip that is not one of ours."""
    if not _head(path).startswith(_ZIP):
        return _head(path).startswith(_PICKLE)
    pickled = _pickle_head(path)
    return bool(pickled) and b'pv3d-' not in pickled[:256]  # our header comes first


def _head(path: str | Path) -> bytes:
    try:
        with open(path, 'rb') as file:
            return file.read(2)
    except OSError:
        return b''


def _pickle_head(path: str | Path) -> bytes:
    """Returns the beginning of a pickle, alone or in a torch.save zip; nothing if it is none, or damaged."""
    try:
        if _head(path).startswith(_PICKLE):
            with open(path, 'rb') as file:
                return file.read(_PEEK)
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.endswith('/data.pkl')]
            if len(pickles) != 1:
                return b''
            with archive.open(pickles[0]) as file:
                return file.read(_PEEK)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError):
        return b''


def open_snapshot(path: str | Path) -> Snapshot:
    """Reads a snapshot of ours, or a foreign checkpoint as one.

    Raises:
        CheckpointError: if it is neither, damaged, or does not fit.
    """
    return open_foreign(path).snapshot if is_foreign(path) else read_snapshot(path)


def trained_with(path: str | Path) -> Overrides:
    """Returns options that a run takes from the foreign checkpoint, converted or not, that it starts from."""
    kind = _kind(path)
    if kind is None:
        return []
    found = [('generator.plane_axes', 'released')]
    # EG3D has no motion layers: those of the run fade in through a trained weight that starts at 0
    return [*found, ('generator.motion.learned_weight', 'true')] if kind == EG3D else found


def _kind(path: str | Path) -> str | None:
    """Returns PV3D or EG3D; None for a snapshot that was trained here, and for what is none."""
    head = _head(path)
    if is_foreign(path):
        return EG3D if PERSISTENT_NAME.encode() in _pickle_head(path) else PV3D
    if not head.startswith(_ZIP):
        return None
    return read_snapshot(path).meta.get('source_format') if b'source_format' in _pickle_head(path) else None


def open_foreign(path: str | Path, overrides: Overrides | None = None) -> Foreign:
    """Converts a foreign checkpoint in memory.

    Args:
        path: *.ckpt, *.pth or *.pkl; the content decides, not the name.
        overrides: fields of the generator's config that shapes do not tell, for example
        ('renderer.resolution', '128').

    Raises:
        CheckpointError: if it is of no known format, unsafe, damaged, or its tensors do not fit.
    """
    path = Path(path)
    content = read_foreign(path)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: it holds a {type(content).__name__}, no networks; see docs/legacy.md')
    try:
        if set(EG3D_KEYS) <= set(content):
            return _from_eg3d(path, content, overrides or [])
        return _from_pv3d(path, content, overrides or [])
    except ConfigError as err:  # of the config that follows from the shapes
        raise CheckpointError(f'{path}: {err}') from err
    except ValueError as err:  # of shapes
        raise CheckpointError(f'{path}: {err}') from err


def _from_pv3d(path: Path, content: dict[Any, Any], overrides: Overrides) -> Foreign:
    model = content.get('model', content)
    stored = content.get('config') if model is not content else None
    stored = stored.get(OUR_CONFIGS) if isinstance(stored, dict) else None
    if isinstance(model, dict) and model and all(_begins(name, _PARALLEL) for name in model):
        model = {name.removeprefix(_PARALLEL): value for name, value in model.items()}
    if not isinstance(model, dict) or not any(_begins(n, 'generator_ema.') for n in model):
        known = f"'model' with {', '.join(PREFIXES)}, or 'G', 'D' and 'G_ema' of EG3D"
        raise CheckpointError(f'{path}: no known format: {known} expected, found {_some(content)}')
    states: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, value in model.items():
        prefix = next((p for p in PREFIXES if _begins(name, p)), None)
        if prefix is not None and isinstance(value, Tensor):
            states.setdefault(PREFIXES[prefix], {})[name.removeprefix(prefix)] = value
        elif name not in MODEL_EXTRAS:
            strange.append(str(name))
    if strange:
        raise CheckpointError(f'{path}: unexpected in the model: {_some(strange)}')
    networks = {
        name: _network(path, name, state, stored, overrides) for name, state in _in_order(states).items()
    }
    numbers = {k: _scalar(content.get(k)) for k in _COUNTERS}
    counters = {k: value for k, value in numbers.items() if _is_count(value)}
    nimg = counters.get('num_samples', 0)
    nimg = nimg if type(nimg) is int and nimg >= 0 else 0
    extras = {k: model[k] for k in MODEL_EXTRAS if isinstance(model.get(k), Tensor) and not model[k].ndim}
    meta = {
        **{'cfg': 'pv3d-released', 'cur_nimg': nimg, 'kimg': nimg / 1000, 'schedule_nimg': nimg},
        **{'source': path.name, 'source_format': PV3D, 'counters': counters, 'extras': extras},
    }
    snapshot = Snapshot(path, meta, networks)
    facts = [', '.join(f'{k} {v:g}' for k, v in counters.items()) or 'no counters: a bare model']
    return Foreign(
        PV3D,
        snapshot,
        [*facts, *describe(snapshot)],
        content.get('optimizer'),
        {name: parameter_names(name, state) for name, state in states.items()},
    )


def _from_eg3d(path: Path, content: dict[Any, Any], overrides: Overrides) -> Foreign:
    networks, notes = {}, []
    for theirs, ours in EG3D_NETWORKS.items():
        state, attributes = module_state(path, theirs, content[theirs])
        state = {name: value for name, value in state.items() if name not in EG3D_EXTRAS}
        changes = list(overrides)
        if ours != 'D_image':
            options, scale = eg3d_options(path, attributes)
            changes = options + changes
            notes = ['rendering as the pickle says: ' + ', '.join(f'{k}={v}' for k, v in options)]
            lacking = [n for n in _EG3D_NEEDED if n not in state or not state[n].ndim]
            if lacking:
                raise CheckpointError(f'{path}: {theirs} is no generator of EG3D, missing: {_some(lacking)}')
            if scale != 1:
                state[_EMBED] = state[_EMBED] * scale
                notes.append(f'c_scale={scale:g} is multiplied into the weights of the camera')
            state |= eg3d_identity_raw(state)
        networks[ours] = _network(path, ours, state, None, changes)
    meta = {
        **{'cfg': 'eg3d', 'cur_nimg': 0, 'kimg': 0.0, 'schedule_nimg': EG3D_NIMG},
        **{'source': path.name, 'source_format': EG3D},
    }
    snapshot = Snapshot(path, meta, networks)
    notes.append('to_image_raw, which EG3D has not, passes the first three features on: image_raw as in EG3D')
    return Foreign(EG3D, snapshot, [*notes, *describe(snapshot)])


def _begins(name: Any, prefix: str) -> bool:
    return isinstance(name, str) and name.startswith(prefix)


def _scalar(value: Any) -> Any:
    single = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1)
    return value.item() if single else value


def _is_count(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MAX_COUNT  # neither nan nor infinity


def _in_order(states: dict[str, Any]) -> dict[str, Any]:
    return {name: states[name] for name in NETWORKS if name in states}


def _some(names: Any) -> str:
    listed = [ascii(str(n))[1:-1][:80] for n in list(names)[:_MAX_NAMED]]
    more = len(names) - len(listed)
    return (', '.join(listed) or 'nothing') + (f' and {more} more' if more > 0 else '')


def parameter_names(network: str, state: Mapping[str, Tensor]) -> list[str]:
    """Returns our names of the parameters in a released state, in its order, which is the optimizer's."""
    table = 'G' if network == 'G_ema' else network
    renamed = convert_released(table, dict(state))
    return [n for n in renamed if not n.endswith(('noise_const', 'w_avg'))]


def _network(
    path: Path, name: str, state: dict[str, Tensor], stored: Any, overrides: Overrides
) -> dict[str, Any]:
    """Renames the state of a network, reads off its config and compares the two."""
    table = 'G' if name == 'G_ema' else name
    renamed = convert_released(table, state)
    shapes = {n: tuple(t.shape) for n, t in renamed.items()}
    if isinstance(stored, dict) and isinstance(stored.get(name), dict):
        config = NETWORKS[name].read(stored[name])
        if getattr(config, 'mapping_layers', 0) > len(state):  # building that many could take for ever
            raise CheckpointError(f'{path}: the config of {name} has more layers than the file has tensors')
    elif table == 'G':
        given = dict(overrides).get('sr_resolution', '')
        config = generator_config(shapes, int(given) if given.isdecimal() else None)
    else:
        config = CONFIGS[name](shapes)
    for option, value in overrides if table == 'G' else []:
        config = override(config, option, value)
    problem = mismatch(table, config, state)
    if problem:
        raise CheckpointError(f'{path}: {name} does not fit: {problem}')
    return {'config': to_dict(config), 'state': renamed}


def mismatch(table: str, config: Any, state: Mapping[str, Tensor]) -> str:
    """Lists what is missing, unexpected, misshapen or of another kind in a released state; '' = all fits."""
    try:
        with torch.device('meta'):
            own = config.build().state_dict()
    except (
        ConfigError,
        ValueError,
        RuntimeError,
        ArithmeticError,
        TypeError,
    ) as err:  # also sizes beyond all numbers
        return f'its shapes ask for a network that cannot be built ({err})'
    expected = {to_released(table, name): tuple(tensor.shape) for name, tensor in own.items()}
    filters = filter_names(table, expected, config.resolution)
    given = {n: tuple(t.shape) for n, t in state.items()}
    ours = make_filter()
    found = {
        'missing': [n for n in [*expected, *sorted(filters - {SR_FILTER})] if n not in given],
        'unexpected': [n for n in given if n not in expected and n not in filters and n != SR_FILTER],
        'misshapen': [
            f'{n} {list(given[n])} instead of {list(shape)}'
            for n, shape in expected.items()
            if n in given and given[n] != shape
        ],
        'no low-pass filter [1, 3, 3, 1]': [
            n
            for n in sorted({*filters, SR_FILTER} & set(given))
            if given[n] != ours.shape or not torch.allclose(state[n].float(), ours, atol=1e-6)
        ],
        'not floating-point': [n for n in given if not state[n].is_floating_point()],
    }
    return '; '.join(f'{what}: {_some(names)}' for what, names in found.items() if names)


def describe(snapshot: Snapshot) -> list[str]:
    """Says what the networks are and which switches they run with."""
    lines = []
    for name, entry in snapshot.networks.items():
        count = sum(
            math.prod(t.shape) for n, t in entry['state'].items() if not n.endswith(('const', 'w_avg'))
        )
        lines.append(f'{name}: {len(entry["state"])} tensors, {count:,} parameters and constants')
    if 'G_ema' not in snapshot.networks:
        return lines
    config = from_dict(Generator.Config, snapshot.networks['G_ema']['config'])
    renderer = config.renderer
    lines.append(
        f'switches: plane_axes={config.plane_axes}{_PLANES.get(config.plane_axes, "")}, motion.num_layers='
        f'{config.motion.num_layers}, camera_condition={config.camera_condition}, span={config.span}'
    )
    lines.append(
        f'rendering: {renderer.resolution}x{renderer.resolution} rays of {renderer.depth_samples} + '
        f'{renderer.importance_samples} samples from {renderer.ray_start:g} to {renderer.ray_end:g}, '
        f'super-resolution {config.sr_resolution} -> {config.resolution}'
    )
    return lines


def build_networks(snapshot: Snapshot) -> dict[str, nn.Module]:
    """Builds all networks of a converted snapshot.

    Raises:
        UserError: if a value is not finite.
    """
    modules = {}
    for name, entry in snapshot.networks.items():
        module = NETWORKS[name].read(entry['config']).build()
        module.load_state_dict(entry['state'], strict=True)
        bad = [n for n, t in module.state_dict().items() if not t.isfinite().all()]
        if bad:
            raise UserError(f'{snapshot.path}: {name} has values that are not finite: {_some(bad)}')
        modules[name] = module
    return modules
