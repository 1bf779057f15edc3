"""Configs: from and to dictionaries, changed by text, refused by name."""

import dataclasses
import json
import operator
from typing import Literal

import pytest

from dnnlib.config import BaseConfig, Configurable, flatten, from_dict, override, to_dict
from dnnlib.util import ConfigError, UserError


class Leaf(Configurable):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        samples: int = 48
        scale: float = 1.5
        impl: Literal['auto', 'ref', 'cuda'] = 'auto'
        order: Literal[1, 2] = 1

        def __post_init__(self):
            if self.samples < 1:
                raise ConfigError(f'samples={self.samples} must be at least 1')

    def __init__(self, config):
        self.config = config


class Root(Configurable):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        name: str
        leaf: Leaf.Config = Leaf.Config()
        other: Leaf.Config | None = None
        resolutions: tuple[int, ...] = (32, 64)
        betas: tuple[float, float] = (0.0, 0.99)
        words: tuple[str, ...] = ()
        limit: float | None = None
        note: str | None = None
        mirror: bool = False

    def __init__(self, config):
        self.config = config
        self.leaf = config.leaf.build()


BASE = Root.Config(name='x')


def test_builds_owner():
    root = BASE.build()
    assert type(root) is Root and type(root.leaf) is Leaf and root.config is BASE
    with pytest.raises(TypeError, match='Child needs its own Config'):
        type('Child', (Leaf,), {})


def test_round_trip_through_json():
    config = dataclasses.replace(
        BASE, leaf=Leaf.Config(samples=7, impl='ref'), other=Leaf.Config(order=2), words=('a', 'b'), limit=2.0
    )
    back = from_dict(Root.Config, json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert isinstance(back.betas, tuple) and isinstance(back.other, Leaf.Config)


TEXTS = {
    'name': {'123': '123', 'true': 'true', '[1,2]': '[1,2]', 'none': 'none'},  # text stays text
    'note': {'1e3': '1e3', 'None': None},
    'limit': {'3': 3.0, '1e-3': 0.001, '.5': 0.5, 'none': None},
    'mirror': {'true': True, 'False': False},
    'resolutions': {'[8,16,32]': (8, 16, 32), '8, 16': (8, 16), '[]': ()},
    'betas': {'[0,0.9]': (0.0, 0.9)},
    'words': {'[a,1]': ('a', '1'), '["a","b"]': ('a', 'b')},
    'leaf.samples': {'96': 96},
    'leaf.scale': {'2': 2.0},
    'leaf.impl': {'cuda': 'cuda'},
    'leaf.order': {'2': 2},
}


@pytest.mark.parametrize('path', TEXTS)
def test_override(path):
    before = flatten(to_dict(BASE))
    for text, expected in TEXTS[path].items():
        config = override(BASE, {path: text})
        value = operator.attrgetter(path)(config)
        assert value == expected and type(value) is type(expected)
        if isinstance(expected, tuple):
            assert [type(v) for v in value] == [type(v) for v in expected]
        after = flatten(to_dict(config))
        assert {name for name in after if after[name] != before[name]} <= {path}
    assert flatten(to_dict(BASE)) == before


@pytest.mark.parametrize(
    ('path', 'text', 'message'),
    [
        ('mirror', '1', 'mirror=1 must be bool'),
        ('limit', 'much', "limit='much' must be float"),
        ('limit', 'nan', 'must be float'),
        ('leaf.samples', '2.5', r'leaf.samples=2.5 must be int'),
        ('leaf.samples', 'true', 'must be int'),
        ('leaf.samples', '0', 'samples=0 must be at least 1'),
        ('leaf.impl', 'gpu', "leaf.impl='gpu' must be one of auto, ref, cuda"),
        ('leaf.order', '3', 'must be one of 1, 2'),
        ('resolutions', '[8,x]', "resolutions='x' must be int"),
        ('betas', '[0.5]', r'must be tuple\[float, float\]'),
        ('leaf', '5', 'leaf=5 must be Leaf.Config'),
        ('other.samples', '5', r'other\.samples; .* a single value \(None\)'),
        ('', '5', 'unknown option ;'),
        ('samples', '5', r'unknown option samples; known here: betas, .*; did you mean leaf\.samples\?$'),
        ('leef.scale', '5', r'unknown option leef; .*; did you mean leaf\.scale\?$'),
        ('leaf.zzz', '5', r'unknown option leaf\.zzz; known here: impl, order, samples, scale$'),
    ],
)
def test_override_refuses(path, text, message):
    with pytest.raises(UserError, match=message):
        override(BASE, {path: text})


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({}, 'option name has no default'),
        ({'name': 'x', 'leaf': [1]}, 'must be Leaf.Config'),
        ({'name': 'x', 'leaf': {'order': True}}, 'must be one of 1, 2'),
        ({'name': 'x', 'leaf': {'samples': '5'}}, 'leaf.samples='),
        ({'name': 'x', 3: 1}, 'unknown option 3'),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Root.Config, values)
