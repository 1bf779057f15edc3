"""Tables 1 to 3 of the paper as data: rows of options, what the paper measured, what it claims.

The paper's figures are those on VoxCeleb. Claims are orderings that the text states, or, in table 1, those
that hold on all three data sets.
"""

from collections.abc import Mapping
from typing import NamedTuple

from dnnlib.config import flatten, override, to_dict
from training.baselines import BASELINES
from training.config import TrainConfig
from training.networks.synthesis import block_resolutions

PV3D = 'pv3d'  # the row without changes, in every table
_LAYERS, _MOTION = 'generator.motion.num_layers', 'generator.motion.kind'
_CAMERA, _RAYS = 'generator.camera_condition', 'generator.renderer.resolution'


class Row(NamedTuple):
    """A row of a table."""

    name: str
    changes: Mapping[str, str]  # options by path; `*2` is twice the value of the base, `blocks` all blocks
    paper: Mapping[str, float]  # metric -> the paper's value
    baseline: str = ''  # name in training/baselines.py of what is built in place of PV3D
    after: str = ''  # name of the row from whose networks it starts


class Claim(NamedTuple):
    """An ordering that the paper claims: each of some rows is below each of others."""

    metric: str
    lower: tuple[str, ...]
    higher: tuple[str, ...]


class Table(NamedTuple):
    """A table of the paper."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]


def _values(fvd: float, cd: float, we: float) -> dict[str, float]:
    return {'fvd': fvd, 'cd': cd, 'we': we}


_OURS = Row(PV3D, {}, {'fvd': 29.1, 'id': 0.81, 'cd': 1.34, 'we': 9.76})

TABLES: dict[str, Table] = {
    '1': Table(
        'other methods',
        (
            Row('eg3d_static', {}, {}, baseline='eg3d-static'),  # what EG3D + MoCoGAN-HD has to beat
            Row('stylenerf_static', {}, {}, baseline='stylenerf-static'),
            Row(
                'stylenerf_mcg',
                {},
                {'fvd': 348.7, 'id': 0.70, 'cd': 1.08, 'we': 36.06},
                baseline='stylenerf-mcg',
                after='stylenerf_static',
            ),
            Row(
                'eg3d_mcg',
                {},
                {'fvd': 222.1, 'id': 0.80, 'cd': 1.57, 'we': 10.57},
                baseline='eg3d-mcg',
                after='eg3d_static',
            ),
            Row(
                '3dvidgen',
                {},
                {'fvd': 65.5, 'id': 0.75, 'cd': 3.40, 'we': 44.55},
                baseline='3dvidgen',
            ),
            Row(
                '3dvidgen_eg3d',
                {},
                {'fvd': 56.3, 'id': 0.71, 'cd': 3.65, 'we': 24.55},
                baseline='3dvidgen-eg3d',
            ),
            _OURS,
        ),
        (
            Claim('fvd', (PV3D,), ('3dvidgen', '3dvidgen_eg3d', 'eg3d_mcg', 'stylenerf_mcg')),
            Claim('fvd', ('3dvidgen', '3dvidgen_eg3d'), ('eg3d_mcg', 'stylenerf_mcg')),
            Claim('id', ('3dvidgen', '3dvidgen_eg3d', 'eg3d_mcg', 'stylenerf_mcg'), (PV3D,)),
            Claim('id', ('3dvidgen_eg3d',), ('3dvidgen',)),
            Claim('cd', (PV3D,), ('3dvidgen',)),
            Claim('cd', ('3dvidgen',), ('3dvidgen_eg3d',)),
            Claim('we', (PV3D,), ('eg3d_mcg',)),
            Claim('we', ('eg3d_mcg',), ('3dvidgen_eg3d',)),
            Claim('we', ('3dvidgen_eg3d',), ('3dvidgen', 'stylenerf_mcg')),
        ),
    ),
    '2a': Table(
        'motion layers',
        (
            Row('early', {_LAYERS: '2'}, _values(40.2, 2.32, 10.60)),
            _OURS,
            Row('late', {_LAYERS: 'blocks'}, _values(33.3, 6.24, 11.56)),
            Row('learned', {'generator.motion.learned_weight': 'true'}, _values(30.5, 1.81, 10.31)),
        ),
        (
            Claim('fvd', (PV3D,), ('early', 'late')),
            Claim('cd', (PV3D,), ('early', 'late', 'learned')),
            Claim('we', (PV3D,), ('early', 'late', 'learned')),
        ),
    ),
    '2b': Table(
        'motion generator',
        (
            Row('mlp', {_MOTION: 'mlp'}, _values(41.1, 1.33, 9.86)),
            Row('naive', {_MOTION: 'naive'}, _values(36.9, 1.05, 10.21)),
            Row('shared_code', {_MOTION: 'shared_code'}, _values(37.7, 1.07, 9.86)),
            _OURS,
        ),
        (Claim('fvd', (PV3D,), ('mlp', 'naive', 'shared_code')), Claim('cd', ('shared_code',), (PV3D,))),
    ),
    '2c': Table(
        'camera condition of the generator',
        (
            Row('all', {_CAMERA: 'all'}, _values(32.1, 2.49, 11.32)),
            Row('non', {_CAMERA: 'non'}, _values(55.3, 3.28, 23.71)),
            Row('map', {_CAMERA: 'map'}, _values(38.0, 1.47, 10.19)),
            _OURS,
        ),
        (
            Claim('fvd', (PV3D,), ('map', 'non')),
            Claim('cd', (PV3D,), ('all', 'non')),
            Claim('we', (PV3D,), ('all', 'non')),
        ),
    ),
    '2d': Table(
        'conditions of the video discriminator',
        (
            Row('no_camera', {'d_video.camera': 'false'}, _values(34.9, 4.38, 10.84)),
            Row('no_time', {'d_video.delta_t': 'false'}, _values(38.7, 1.54, 10.04)),
            _OURS,
        ),
        (
            Claim('fvd', (PV3D,), ('no_time',)),
            Claim('cd', (PV3D,), ('no_camera',)),
            Claim('we', (PV3D,), ('no_camera',)),
        ),
    ),
    '3a': Table(
        'discriminators',
        (
            Row('no_video', {'loss.video_weight': '0'}, _values(145.9, 3.89, 11.82)),
            Row('no_image', {'loss.image_weight': '0'}, _values(42.2, 3.44, 14.40)),
            _OURS,
        ),
        (
            Claim('fvd', (PV3D,), ('no_video', 'no_image')),
            Claim('cd', (PV3D,), ('no_image',)),
            Claim('we', (PV3D,), ('no_image',)),
        ),
    ),
    '3b': Table(
        'resolution of volume rendering',
        (
            Row('half', {_RAYS: '*0.5'}, _values(42.4, 3.25, 12.98)),
            _OURS,
            Row('double', {_RAYS: '*2'}, _values(34.1, 0.92, 9.62)),
        ),
        (
            Claim('fvd', (PV3D,), ('half', 'double')),
            Claim('cd', ('double',), (PV3D,)),
            Claim('we', ('double',), (PV3D,)),
            Claim('we', (PV3D,), ('half',)),
        ),
    ),
    '3c': Table(
        'camera in the generator',
        (Row('blind', {_CAMERA: 'none'}, _values(44.3, 2.35, 13.01)), _OURS),
        (
            Claim('fvd', (PV3D,), ('blind',)),
            Claim('cd', (PV3D,), ('blind',)),
            Claim('we', (PV3D,), ('blind',)),
        ),
    ),
}


def rows_of(name: str) -> dict[str, Row]:
    """Returns the rows of a table, of all tables whose names begin so (`2`), or of `all`, by name."""
    chosen = [table for key, table in TABLES.items() if name == 'all' or key.startswith(name)]
    return {row.name: row for table in chosen for row in table.rows}


def config_of(base: TrainConfig, row: Row) -> TrainConfig:
    """Returns what a row trains."""
    config = BASELINES[row.baseline](base) if row.baseline else base
    return override(config, resolved(config, row.changes))


def resolved(base: TrainConfig, changes: Mapping[str, str]) -> dict[str, str]:
    """Returns changes with what depends on the base filled in: `*0.5` of an option, `blocks`."""
    values, found = flatten(to_dict(base)), {}
    for path, text in changes.items():
        if text.startswith('*'):
            text = str(round(float(text[1:]) * values[path]))
        elif text == 'blocks':
            text = str(len(block_resolutions(values['generator.plane_resolution'])))
        found[path] = text
    return found
