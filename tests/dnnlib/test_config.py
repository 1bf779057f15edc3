import dataclasses
import json
from typing import Literal

import pytest

from dnnlib.config import BaseConfig, Configurable, from_dict, override, to_dict
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


def test_class_without_config_is_an_error():
    with pytest.raises(TypeError, match='Child must define its own Config'):

        class Child(Leaf):
            pass


def test_config_without_owner_cannot_be_built():
    with pytest.raises(TypeError, match='belongs to no class'):
        BaseConfig().build()


def test_round_trip_through_json():
    config = dataclasses.replace(
        BASE, leaf=Leaf.Config(samples=7, impl='ref'), other=Leaf.Config(order=2), words=('a', 'b'), limit=2.0
    )
    back = from_dict(Root.Config, json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert isinstance(back.betas, tuple) and isinstance(back.other, Leaf.Config)


@pytest.mark.parametrize(
    ('path', 'text', 'expected'),
    [
        ('name', '123', '123'),  # text stays text
        ('name', 'true', 'true'),
        ('name', '[1,2]', '[1,2]'),
        ('name', 'none', 'none'),
        ('note', '1e3', '1e3'),
        ('note', 'None', None),
        ('limit', '3', 3.0),
        ('limit', '1e-3', 0.001),
        ('limit', '.5', 0.5),
        ('limit', 'none', None),
        ('mirror', 'true', True),
        ('mirror', 'False', False),
        ('resolutions', '[8,16,32]', (8, 16, 32)),
        ('resolutions', '8, 16', (8, 16)),
        ('resolutions', '[]', ()),
        ('betas', '[0,0.9]', (0.0, 0.9)),
        ('words', '[a,1]', ('a', '1')),
        ('words', '["a","b"]', ('a', 'b')),
        ('leaf.samples', '96', 96),
        ('leaf.scale', '2', 2.0),
        ('leaf.impl', 'cuda', 'cuda'),
        ('leaf.order', '2', 2),
    ],
)
def test_override(path, text, expected):
    config = override(BASE, path, text)
    value = config
    for name in path.split('.'):
        value = getattr(value, name)
    assert value == expected and type(value) is type(expected)
    if isinstance(expected, tuple):
        assert [type(v) for v in value] == [type(v) for v in expected]
    plain, base = to_dict(config), to_dict(BASE)
    head = path.split('.')[0]
    assert {k: v for k, v in plain.items() if k != head} == {k: v for k, v in base.items() if k != head}
    fresh = Root.Config(name='x')
    assert to_dict(BASE) == to_dict(fresh)  # the original is untouched


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
        ('other.samples', '5', r'other is a single value \(None\)'),
        ('name.first', '5', 'single value'),
        ('', '5', 'unknown option'),
    ],
)
def test_override_refuses(path, text, message):
    with pytest.raises(UserError, match=message):
        override(BASE, path, text)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({}, 'option name has no default'),
        ({'name': 5}, 'name=5 must be str'),
        ({'name': 'x', 'leaf': [1]}, 'must be Leaf.Config'),
        ({'name': 'x', 'leaf': {'order': True}}, 'must be one of 1, 2'),
        ({'name': 'x', 'leaf': {'samples': '5'}}, 'leaf.samples='),
        ({'name': 'x', 'betas': [1, 2, 3]}, 'betas='),
        ({'name': 'x', 3: 1}, 'unknown option 3'),
        ({'name': 'x', 'leaf': {'depth': 1}}, r'unknown option leaf\.depth; known here: impl, order'),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Root.Config, values)


@pytest.mark.parametrize(
    ('path', 'hint'),
    [
        ('samples', 'leaf.samples'),
        ('leef.scale', 'leaf.scale'),
        ('leaf.scal', 'leaf.scale'),
        ('miror', 'mirror'),
        ('impl', 'leaf.impl or other.impl'),
        ('leaf.zzz', ''),
    ],
)
def test_unknown_option_lists_the_known_ones_and_names_similar_ones(path, hint):
    config = BASE if path != 'impl' else dataclasses.replace(BASE, other=Leaf.Config())
    with pytest.raises(ConfigError) as error:
        override(config, path, '1')
    known = 'impl, order, samples, scale' if path.startswith('leaf') else 'betas, leaf, limit, mirror'
    reported, _, similar = str(error.value).partition('; did you mean ')
    assert reported.startswith(f'unknown option {path.split(".")[0]}') and known in reported
    assert similar.rstrip('?') == hint
