"""Typed configuration: frozen trees of dataclasses that build their owners.

A class `X(Configurable)` holds a frozen dataclass `Config` and is built by `X(config)`, or by
`config.build()`. Configs go to plain dictionaries and back (`to_dict`, `from_dict`), and change only by
making a new one (`dataclasses.replace`, `override`). Unknown or wrongly typed fields are errors that name
what is allowed.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from dnnlib.util import ConfigError

T = TypeVar('T')

_UNIONS = (typing.Union, types.UnionType)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Parent of every Config; `build()` makes the object that the Config belongs to."""

    owner: ClassVar[type | None] = None  # set by Configurable when the owning class is defined
    kind: ClassVar[str | None] = None  # name among alternatives; stands in files as {'kind': ...}

    def build(self) -> Any:
        """Builds the owning object from this Config alone."""
        return self.owner(self)


class Configurable:
    """Mixin for classes that are built from their own nested `Config`.

    A subclass without its own Config would silently build its parent; that is an error at class definition.
    """

    Config: ClassVar[type[BaseConfig]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if 'Config' not in cls.__dict__:
            raise TypeError(f'{cls.__qualname__} needs its own Config; its parent would be built instead')
        cls.Config.owner = cls


@dataclasses.dataclass(frozen=True)
class Kinds:
    """Alternatives of a config field: `field: Annotated[BaseConfig, Kinds(CLASSES, default)]`.

    In files such a config is {'kind': name, ...}.
    """

    classes: Mapping[str, type[Configurable]]  # by the `kind` of their Configs
    default: str  # kind of files that name none

    def read(self, values: dict[str, Any], path: str = '') -> Any:
        """Builds the Config that nested dictionaries describe.

        Raises:
            ConfigError: for an unknown kind (lists the known ones), or as `from_dict`.
        """
        kind = values.get('kind', self.default)
        if not isinstance(kind, str) or kind not in self.classes:
            raise ConfigError(f'{path}kind={kind!r} must be one of {", ".join(self.classes)}')
        return from_dict(self.classes[kind].Config, values, path)


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a config tree into nested dictionaries, lists and plain scalars (JSON-able)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            kind = {} if getattr(value, 'kind', None) is None else {'kind': value.kind}
            return kind | {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(config)


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Turns nested dictionaries into one: {'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat


def from_dict(cls: type[T], values: dict[str, Any], path: str = '') -> T:
    """Builds a config of type `cls` from nested dictionaries; every field is checked against its annotation.

    Raises:
        ConfigError: for an unknown field (lists the known ones), a missing one, or a value of another type.
    """
    hints = _field_types(cls)
    if 'kind' not in hints and getattr(cls, 'kind', None) is not None:  # a tag, not a field
        values = dict(values)
        if (kind := values.pop('kind', cls.kind)) != cls.kind:
            raise ConfigError(f'{path}kind={kind!r} is not {cls.kind!r}, which is expected here')
    unknown = sorted(map(str, set(values) - set(hints)))
    if unknown:
        raise ConfigError(f'unknown option {path}{unknown[0]}; known here: {", ".join(sorted(hints))}')
    none = dataclasses.MISSING
    optional = {f.name for f in dataclasses.fields(cls) if (f.default, f.default_factory) != (none, none)}
    missing = [name for name in hints if name not in optional | set(values)]
    if missing:
        raise ConfigError(f'option {path}{missing[0]} has no default and must be given')
    return cls(**{name: _coerce(hints[name], value, path + name) for name, value in values.items()})


def override(config: T, changes: dict[str, str]) -> T:
    """Returns a copy of a config tree with fields set from text, all at once: their order does not matter.

    Args:
        config: root of the tree.
        changes: path, for example `generator.renderer.depth_samples` -> the value as typed by a user, read by
            the annotation of the field; `none` clears an optional field, lists are `[a,b]` or `a,b`.

    Raises:
        ConfigError: for an unknown path (lists what is known), a value of another type or one that does not
            go with the others.
    """
    tree: dict[str, Any] = {}
    for path, text in changes.items():
        *parents, name = path.split('.')
        branch = tree
        hint = _field_type(config, path)
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = _coerce(hint, _read(hint, text), path)
    return _replaced(config, tree)


def _field_type(config: Any, path: str) -> Any:
    root, names = config, path.split('.')
    for i, name in enumerate(names):
        hints = _field_types(type(config)) if dataclasses.is_dataclass(config) else {}
        if name not in hints:
            known = ', '.join(sorted(hints)) or f'none, it is a single value ({config!r})'
            wrong = '.'.join(names[: i + 1])
            raise ConfigError(f'unknown option {wrong}; known here: {known}{_similar(root, path)}')
        config = getattr(config, name)
    return hints[name]


def _replaced(node: Any, tree: dict[str, Any]) -> Any:
    new = {k: _replaced(getattr(node, k), v) if isinstance(v, dict) else v for k, v in tree.items()}
    return dataclasses.replace(node, **new)


def _similar(config: Any, path: str) -> str:
    """Names options of the same name elsewhere, three at most, or one with almost the same letters."""
    known = list(flatten(to_dict(config)))
    same = [p for p in known if p.rpartition('.')[2] == path.rpartition('.')[2]]
    similar = same[:3] or difflib.get_close_matches(path, known, n=1)
    return f'; did you mean {" or ".join(similar)}?' if similar else ''


def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _read(hint: Any, text: str) -> Any:
    """Turns text into the value that the annotation suggests, or leaves it as text for _coerce to refuse."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return text
    if origin in _UNIONS:
        if text.lower() in ('none', 'null') and type(None) in args:
            return None
        return _read(_present(args)[0], text)
    if origin is typing.Literal:
        return next((a for a in args if str(a).lower() == text.lower()), text)
    if origin is tuple:
        parts = [p.strip(' "\'') for p in text.strip('[]() ').split(',')]
        parts = [] if parts == [''] else parts
        items = _item_types(args, len(parts))
        return [_read(item, part) for item, part in zip(items, parts, strict=True)] if items else parts
    try:
        return float(text) if hint is float else json.loads(text.lower() if hint is bool else text)
    except ValueError:
        return text


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """Checks a plain value against an annotation; the result has exactly the annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kinds = next((a for a in args if isinstance(a, Kinds)), None)
        if kinds is None or not isinstance(value, (dict, BaseConfig)):
            return _coerce(args[0], value, path)
        return kinds.read(value, path + '.') if isinstance(value, dict) else value
    if origin in _UNIONS:
        return None if value is None and type(None) in args else _coerce(_present(args)[0], value, path)
    if origin is tuple and isinstance(value, (list, tuple)):
        items = _item_types(args, len(value))
        if items is not None:
            return tuple(_coerce(item, v, path) for item, v in zip(items, value, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, path + '.')
    return _coerce_single(hint, value, path)


def _coerce_single(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, hint):
        return value
    if hint is float and type(value) in (int, float) and not math.isnan(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if any(a == value and type(a) is type(value) for a in choices):
        return value
    name = str(hint) if typing.get_origin(hint) else hint.__qualname__
    name = f'one of {", ".join(map(str, choices))}' if choices else name
    raise ConfigError(f'{path}={value!r} must be {name}')


def _present(args: tuple[Any, ...]) -> list[Any]:
    """Returns the alternatives of a union but None; configs use unions for optional fields only."""
    return [a for a in args if a is not type(None)]


def _item_types(args: tuple[Any, ...], count: int) -> list[Any] | None:
    """Returns the annotations of `count` items of a tuple, or None if it cannot have so many."""
    if args[-1] is Ellipsis:
        return [args[0]] * count
    return list(args) if len(args) == count else None
