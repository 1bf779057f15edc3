"""Typed configuration: frozen trees of dataclasses that build their owners.

A class `X(Configurable)` holds a frozen dataclass `Config` and is built by `X(config)`, or by `config.build()`. Configs go
to plain dictionaries and back (`to_dict`, `from_dict`), and change only by making a new one (`dataclasses.replace`,
`override`). Unknown or wrongly typed fields are errors that name what is allowed.
"""

import dataclasses
import json
import types
import typing
from typing import Any, ClassVar, TypeVar

from dnnlib.util import UserError

T = TypeVar('T')


class ConfigError(UserError):
    """A configuration value that is not allowed; the message says which, and what is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Parent of every Config; `build()` makes the object that the Config belongs to."""

    owner: ClassVar[type | None] = None  # set by Configurable when the owning class is defined

    def build(self) -> Any:
        """Builds the owning object from this Config alone."""
        if self.owner is None:
            raise TypeError(f'{type(self).__qualname__} belongs to no class and cannot be built')
        return self.owner(self)


class Configurable:
    """Mixin for classes that are built from their own nested `Config`.

    A subclass without its own Config would silently build its parent; that is an error at class definition.
    """

    Config: ClassVar[type[BaseConfig]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        config = cls.__dict__.get('Config')
        if config is None:
            raise TypeError(
                f'{cls.__qualname__} must define its own Config: its parent would be built instead'
            )
        config.owner = cls


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a config tree into nested dictionaries, lists and plain scalars (JSON-able)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(config)


def from_dict(cls: type[T], values: dict[str, Any], path: str = '') -> T:
    """Builds a config of type `cls` from nested dictionaries; every field is checked against its annotation.

    Raises:
        ConfigError: for an unknown field (lists the known ones) or a value of another type.
    """
    hints = _field_types(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f'unknown option {path}{unknown[0]}; known here: {", ".join(sorted(hints))}')
    return cls(**{name: _coerce(hints[name], value, path + name) for name, value in values.items()})


def override(config: T, path: str, text: str) -> T:
    """Returns a copy of a config tree with the field at the dotted `path` set from `text`, typed by its annotation.

    Args:
        config: root of the tree.
        path: for example `generator.renderer.depth_samples`.
        text: the value as typed by a user; `none` clears an optional field, lists are written `[a,b]`.

    Raises:
        ConfigError: for an unknown path or a value of another type.
    """
    head, _, rest = path.partition('.')
    return _override(config, head, rest, text, '')


def _override(config: Any, name: str, rest: str, text: str, prefix: str) -> Any:
    hints = _field_types(type(config))
    if name not in hints:
        raise ConfigError(f'unknown option {prefix}{name}; known here: {", ".join(sorted(hints))}')
    if rest:
        child = getattr(config, name)
        if not dataclasses.is_dataclass(child):
            raise ConfigError(f'{prefix}{name} is a single value ({child!r}) and has no option {rest}')
        head, _, tail = rest.partition('.')
        value = _override(child, head, tail, text, f'{prefix}{name}.')
    else:
        value = _coerce(hints[name], _parse(text), prefix + name)
    return dataclasses.replace(config, **{name: value})


def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _parse(text: str) -> Any:
    try:
        return json.loads({'true': 'true', 'false': 'false', 'none': 'null'}.get(text.lower(), text))
    except json.JSONDecodeError:
        return text


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """Checks a plain value against an annotation; the result has exactly the annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, path)
    if origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(f'{path}={value!r} must be one of {", ".join(map(str, args))}')
    if origin is tuple and isinstance(value, (list, tuple)):
        items = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(items) == len(value):
            return tuple(_coerce(a, v, path) for a, v in zip(items, value, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, path + '.')
    if dataclasses.is_dataclass(hint) and isinstance(value, hint):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f'{path}={value!r} must be {getattr(hint, "__name__", hint)}')
