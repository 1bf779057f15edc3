"""Foreign checkpoints as snapshots of ours: the released PV3D's `.ckpt` and `.pth`, EG3D's `.pkl`.

Names go through the tables of `interop.names`, configs are read off shapes, and what does not fit is listed:
nothing is dropped silently. No code of a file is ever executed.
"""

import dataclasses
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.config import override, to_dict
from dnnlib.util import CheckpointError, ConfigError
from interop.configs import CONFIGS
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
from torch_utils.checkpoint import FORMATS, Snapshot, read_snapshot
from torch_utils.ops.upfirdn2d import make_filter
from training.networks.pv3d import Generator
from training.networks.registry import NETWORKS

PV3D, EG3D = 'released PV3D', 'EG3D'
OUR_CONFIGS = 'pv3d_configs'  # where our own exports keep theirs, in `config`
EG3D_NIMG = 1_000_000  # EG3D's pickles do not contain it: schedules count as over, as in EG3D's resume
COUNTERS = ('best_iteration', 'current_iteration', 'current_epoch', 'num_updates', 'best_update')
_PARALLEL = 'module.'  # before every name when a parallel wrapper was saved instead of the model
_EMBED = 'backbone.mapping.embed.weight'
_EG3D_NEEDED = (_EMBED, 'backbone.mapping.w_avg', 'decoder.net.2.bias')
_ZIP, _PICKLE = b'PK', b'\x80'  # first bytes of files
_PEEK = 2**16  # bytes of a pickle that contain our header and meta data
_MAX_COUNT = 2**53  # iterations, samples
_MAX_NAMED = 20  # tensors of a kind named in a message
_MAX_OPTIONS = 100  # in a config that a file brings
_PLAIN = (bool, int, float, str, type(None))  # types of their values
_PLANES = {'released': ' (x-y, x-z and z-x, no y-z plane)'}

Overrides = list[tuple[str, str]]  # (path in the generator's config, value as text)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A converted checkpoint."""

    kind: str  # PV3D or EG3D
    snapshot: Snapshot
    facts: list[str]  # lines for people: what was found, and the switches that it runs with


def is_foreign(path: str | Path) -> bool:
    """Returns whether a file is a pickle, or a torch.save zip that is not one of ours."""
    head = _pickle_head(path)[:256]
    return bool(head) and not any(ours.encode() in head for ours in FORMATS)  # our header comes first


def _pickle_head(path: str | Path) -> bytes:
    """Returns the first bytes of a pickle, alone or in a torch.save zip; none of other or corrupted files."""
    try:
        with open(path, 'rb') as file:
            head = file.read(_PEEK)
        if not head.startswith(_ZIP):
            return head if head.startswith(_PICKLE) else b''
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith('/data.pkl')]
            with archive.open(name) as file:
                return file.read(_PEEK)
    except Exception:  # zipfile raises nearly anything on corrupted bytes; whoever opens the file reports it
        return b''


def open_snapshot(path: str | Path) -> Snapshot:
    """Reads a snapshot of ours, or a foreign checkpoint as one.

    Raises:
        CheckpointError: if it is neither, corrupted, or does not fit.
    """
    return open_foreign(path).snapshot if is_foreign(path) else read_snapshot(path)


def trained_with(path: str | Path) -> Overrides:
    """Returns options that a run takes from the foreign checkpoint, converted or not, that it starts from."""
    head, kind = _pickle_head(path), None
    if is_foreign(path):
        kind = EG3D if PERSISTENT_NAME.encode() in head else PV3D
    elif b'source_format' in head:
        kind = read_snapshot(path).meta.get('source_format')
    options = [('generator.plane_axes', 'released')] if kind else []
    # EG3D has no motion layers: those of the run fade in through a trained weight that starts at 0
    return options + ([('generator.motion.learned_weight', 'true')] if kind == EG3D else [])


def open_foreign(path: str | Path, overrides: Overrides | None = None) -> Foreign:
    """Converts a foreign checkpoint in memory.

    Args:
        path: *.ckpt, *.pth or *.pkl; the content decides, not the name.
        overrides: fields of the generator's config that shapes do not show, for example
        ('renderer.resolution', '128').

    Raises:
        CheckpointError: if it is of an unknown format, corrupted, hostile, or its tensors do not fit.
    """
    path = Path(path)
    content = read_foreign(path)
    content = content if isinstance(content, dict) else {}
    convert = _from_eg3d if set(EG3D_KEYS) <= set(content) else _from_pv3d
    try:
        return convert(path, content, overrides or [])
    except ConfigError as err:  # of the config that follows from the shapes
        raise CheckpointError(f'{path}: {err}') from err


def _from_pv3d(path: Path, content: dict[Any, Any], overrides: Overrides) -> Foreign:
    model = content.get('model', content)
    ours = content.get('config')
    ours = ours.get(OUR_CONFIGS) if isinstance(ours, dict) else None
    if isinstance(model, dict) and all(_begins(name, _PARALLEL) for name in model):
        model = {name.removeprefix(_PARALLEL): value for name, value in model.items()}
    if not isinstance(model, dict) or not any(_begins(n, 'generator_ema.') for n in model):
        known = f"'model' with {', '.join(PREFIXES)}, or 'G', 'D' and 'G_ema' of EG3D"
        raise CheckpointError(f'{path}: unknown format: {known} expected, found {_some(content)}')
    states: dict[str, dict[str, Tensor]] = {name: {} for name in NETWORKS}
    strange = []
    for name, value in model.items():
        prefix = next((p for p in PREFIXES if _begins(name, p)), None)
        if prefix is not None and isinstance(value, Tensor):
            states[PREFIXES[prefix]][name.removeprefix(prefix)] = value
        elif name not in MODEL_EXTRAS:
            strange.append(name)
    if strange:
        raise CheckpointError(f'{path}: unexpected in the model: {_some(strange)}')
    networks = {n: _network(path, n, state, ours, overrides) for n, state in states.items() if state}
    known = (*COUNTERS, 'num_samples', 'best_metric_value')
    counters = {k: value for k in known if (value := _count(content.get(k))) is not None}
    nimg = counters.get('num_samples', 0)
    nimg = nimg if type(nimg) is int and nimg >= 0 else 0
    extras = {k: model[k] for k in MODEL_EXTRAS if isinstance(model.get(k), Tensor) and not model[k].ndim}
    meta = {
        **{'cfg': 'pv3d-released', 'cur_nimg': nimg, 'kimg': nimg / 1000, 'schedule_nimg': nimg},
        **{'source': path.name, 'source_format': PV3D, 'counters': counters, 'extras': extras},
    }
    snapshot = Snapshot(path, meta, networks)
    found = ', '.join(f'{k} {v:g}' for k, v in counters.items()) or 'no counters: a bare model'
    return Foreign(PV3D, snapshot, [found, *describe(snapshot)])


def _from_eg3d(path: Path, content: dict[Any, Any], overrides: Overrides) -> Foreign:
    networks, notes = {}, []
    for theirs, ours in EG3D_NETWORKS.items():
        state, attributes = module_state(path, theirs, content[theirs])
        state = {name: value for name, value in state.items() if name not in EG3D_EXTRAS}
        options: Overrides = []
        if ours != 'D_image':
            options, scale = eg3d_options(path, attributes)
            notes = ['rendering as in the pickle: ' + ', '.join(f'{k}={v}' for k, v in options)]
            missing = [n for n in _EG3D_NEEDED if n not in state or not state[n].numel()]
            if missing:
                raise CheckpointError(f'{path}: {theirs} is not a generator, missing: {_some(missing)}')
            if scale != 1:
                state[_EMBED] = state[_EMBED] * scale
                notes.append(f'c_scale={scale:g} is multiplied into the weights of the camera')
            state |= eg3d_identity_raw(state)
        networks[ours] = _network(path, ours, state, None, options + overrides)
    meta = {
        **{'cfg': 'eg3d', 'cur_nimg': 0, 'kimg': 0.0, 'schedule_nimg': EG3D_NIMG},
        **{'source': path.name, 'source_format': EG3D},
    }
    snapshot = Snapshot(path, meta, networks)
    notes.append('no motion layers; image_raw as in EG3D: the first three features')
    return Foreign(EG3D, snapshot, [*notes, *describe(snapshot)])


def _begins(name: Any, prefix: str) -> bool:
    return isinstance(name, str) and name.startswith(prefix)


def _count(value: Any) -> float | None:
    """Returns a number of iterations, samples or the like; None for anything else, also for nan."""
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return value if type(value) in (int, float) and abs(value) < _MAX_COUNT else None


def _some(names: Any) -> str:
    listed = [ascii(str(n))[1:-1][:80] for n in list(names)[:_MAX_NAMED]]
    more = len(names) - len(listed)
    return (', '.join(listed) or 'nothing') + (f' and {more} more' if more > 0 else '')


def _network(
    path: Path, name: str, state: dict[str, Tensor], ours: Any, overrides: Overrides
) -> dict[str, Any]:
    """Renames the state of a network, finds its config (in `ours`, or by shapes) and compares the two."""
    renamed = convert_released(name, state)
    shapes = {n: tuple(t.shape) for n, t in renamed.items()}
    overrides = overrides if name in ('G', 'G_ema') else []
    if isinstance(ours, dict) and name in ours:
        config = _stored_config(path, name, ours[name], len(state))
    else:
        given = dict(overrides).get('sr_resolution', '')
        config = CONFIGS[name](shapes, *([int(given)] if given.isdecimal() else []))
    config = override(config, dict(overrides))
    problem = mismatch(name, config, state)
    if problem:
        raise CheckpointError(f'{path}: {name} does not fit: {problem}')
    return {'config': to_dict(config), 'state': renamed}


def _stored_config(path: Path, name: str, stored: Any, tensors: int) -> Any:
    """Reads a config that one of our exports keeps; a file may bring anything under its name."""
    plain = (
        isinstance(stored, dict)
        and len(stored) < _MAX_OPTIONS
        and type(stored.get('kind', '')) is str
        and all(type(v) in _PLAIN for part in stored.values() for v in _inside(part))
    )
    config = NETWORKS[name].read(stored) if plain else None
    if config is None or getattr(config, 'mapping_layers', 0) > tensors:  # building so many takes too long
        raise CheckpointError(f'{path}: the config of {name} is not plain, or has more layers than tensors')
    return config


def _inside(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value
    return list(values) if isinstance(value, (dict, list, tuple)) else [value]


def mismatch(network: str, config: Any, state: Mapping[str, Tensor]) -> str:
    """Lists what is missing, unexpected, misshapen or of another kind in a released state; '' = all fits."""
    try:
        with torch.device('meta'):
            own = config.build().state_dict()
    except (ConfigError, ValueError, RuntimeError, ArithmeticError, TypeError) as err:  # also of huge sizes
        return f'its shapes ask for a network that cannot be built ({err})'
    expected = {to_released(network, name): tuple(tensor.shape) for name, tensor in own.items()}
    filters, ours = filter_names(network, expected, config.resolution), make_filter()
    found = {
        'missing': [n for n in [*expected, *sorted(filters - {SR_FILTER})] if n not in state],
        'unexpected': [n for n in state if n not in expected and n not in filters and n != SR_FILTER],
        'misshapen': [
            f'{n} {list(state[n].shape)} instead of {list(shape)}'
            for n, shape in expected.items()
            if n in state and state[n].shape != shape
        ],
        'no low-pass filter [1, 3, 3, 1]': [
            n
            for n in sorted({*filters, SR_FILTER} & set(state))
            if state[n].shape != ours.shape or not torch.allclose(state[n].float(), ours, atol=1e-6)
        ],
        'not floating-point': [n for n in state if not state[n].is_floating_point()],
    }
    return '; '.join(f'{what}: {_some(names)}' for what, names in found.items() if names)


def describe(snapshot: Snapshot) -> list[str]:
    """Describes the networks and the switches that they run with, in lines for people."""
    lines = []
    for name, entry in snapshot.networks.items():
        sizes = [math.prod(t.shape) for n, t in entry['state'].items() if not n.endswith(('const', 'w_avg'))]
        lines.append(f'{name}: {len(entry["state"])} tensors, {sum(sizes):,} parameters and constants')
    config = NETWORKS['G_ema'].read(snapshot.networks.get('G_ema', {'config': {}})['config'])
    if 'G_ema' not in snapshot.networks or not isinstance(config, Generator.Config):
        return lines
    renderer = config.renderer
    return [
        *lines,
        f'switches: plane_axes={config.plane_axes}{_PLANES.get(config.plane_axes, "")}, motion.num_layers='
        f'{config.motion.num_layers}, camera_condition={config.camera_condition}, span={config.span}',
        f'rendering: {renderer.resolution}x{renderer.resolution} rays of {renderer.depth_samples} + '
        f'{renderer.importance_samples} samples from {renderer.ray_start:g} to {renderer.ray_end:g}, '
        f'super-resolution {config.sr_resolution} -> {config.resolution}',
    ]


def build_networks(snapshot: Snapshot) -> dict[str, nn.Module]:
    """Builds all networks of a converted snapshot.

    Raises:
        CheckpointError: if a value is not finite.
    """
    modules = {}
    for name, entry in snapshot.networks.items():
        module = modules[name] = NETWORKS[name].read(entry['config']).build()
        module.load_state_dict(entry['state'], strict=True)
        infinite = [n for n, t in module.state_dict().items() if not t.isfinite().all()]
        if infinite:
            raise CheckpointError(f'{snapshot.path}: {name} has non-finite values: {_some(infinite)}')
    return modules
