"""Command lines: the options of a script are one frozen dataclass; `command` makes the click command of it.

All about an option stands at its field. The name gives `--batch-gpu`, the annotation the type and the allowed
values, the comment (behind the field or above it) the help text, the docstring the rest of --help:

    # --- Training                                           a heading in --help
    batch: Annotated[int, Range(1)] | None = None  # clips per iteration [default: preset]
    data: Annotated[str, 'ZIP|DIR']  # training data: a string in Annotated is the metavar, '-n' a short name
    seeds: Annotated[tuple[int, ...], parse_numbers]  # a function in Annotated parses the text

Scripts import this module before any other that is not Python's own, and torch only to run: --help is quick.
"""

import ast
import collections
import contextlib
import dataclasses
import importlib.util
import inspect
import io
import math
import os
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

if missing := [p for p in ('click', 'numpy', 'torch', 'tqdm') if importlib.util.find_spec(p) is None]:
    raise SystemExit(
        f'Error: packages are missing ({", ".join(missing)}); '
        'run `make install`, then `source .venv/bin/activate`'
    )

import click
from click.core import ParameterSource

from dnnlib.downloads import fetch, is_address
from dnnlib.threads import choose_spins
from dnnlib.util import UserError, cache_folder, explain_os_error, is_out_of_memory, memory_advice

SETTINGS = {'help_option_names': ['-h', '--help'], 'max_content_width': 110}  # of every command
ARGUMENT = object()  # in Annotated: a positional argument
_REMOTE = 'PKL'  # metavar of options that also take URL@sha256:HEX
_LONG = 40  # characters of values that stand in the help text, not before it

_MAX_NUMBER = 2**32 - 1  # largest seed
_MAX_COUNT = 100_000  # seeds of one call

# Options of EG3D and StyleGAN that have another form here -> what to do.
_HABITS = {
    '--gpus': 'for 8 GPUs: torchrun --nproc_per_node=8 SCRIPT.py ...',
    '--trunc': 'truncation is --psi',
    '--trunc-cutoff': 'it is --psi-cutoff',
    '--cond': 'cameras are always used; leave it out',
    '--gen_pose_cond': 'what the mapping sees is a value of the preset, table 2c of docs/code.md',
    '--gpc_reg_prob': 'it is --set loss.swap_end=NUMBER',
    '--aug': 'augmentation is --set augment.target=0.6 beside --set dataset.heldout_clips=16',
    '--cbase': 'it is --set generator.channel_base=NUMBER, likewise d_image and d_video',
    '--cmax': 'it is --set generator.channel_max=NUMBER, likewise d_image and d_video',
    '--neural_rendering_resolution_initial': 'it is --set generator.renderer.resolution=NUMBER',
    '--neural_rendering_resolution_final': 'it is --set loss.resolution_final=NUMBER',
    '--density_reg': 'it is --set loss.density_weight=NUMBER',
    '--freezed': 'parts that are not trained are --set freeze=NAMES',
    '--num-keyframes': 'the length is --frames',
    '--w-frames': 'a loop through people is --interpolate, its length --frames',
    '--fov-deg': 'it is the third number of --camera YAW,PITCH,FOV',
    '--shape-res': 'it is --shape-resolution',
    '--shape_format': 'it is a value: --shapes ply, obj or glb',
    '--reload_modules': 'snapshots hold no code; leave it out',
    '--grid': 'it takes no value: the grid has a tile for each of --seeds',
    '--nrr': 'the resolution of the volume rendering is --neural-resolution',
    '--sampling_mult': 'the samples per ray are --render-samples',
    '--nobench': 'leave it out',
    '--fp32': 'use --precision fp32',
}


def parse_numbers(text: str) -> tuple[int, ...]:
    """Parses '0-3,8' into (0, 1, 2, 3, 8).

    Raises:
        ValueError: for anything else.
    """
    numbers: list[int] = []
    for part in text.split(','):
        first, dash, last = part.strip().partition('-')
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise ValueError(f'{text!r} is not a list of numbers; write for example 3 or 0-15 or 0,4,8-11')
        start, stop = int(first), int(last) if dash else int(first)
        if not start <= stop <= _MAX_NUMBER or len(numbers) + stop - start >= _MAX_COUNT:
            raise ValueError(f'{text!r} must count up: at most {_MAX_COUNT} numbers, up to {_MAX_NUMBER}')
        numbers.extend(range(start, stop + 1))
    return tuple(dict.fromkeys(numbers))


Numbers = Annotated[tuple[int, ...], parse_numbers, 'LIST']


@dataclasses.dataclass(frozen=True)
class Range:
    """In Annotated: the numbers that are allowed, limits included."""

    min: float = -math.inf
    max: float = math.inf
    above: float = -math.inf  # an excluded lower limit

    def __contains__(self, number: float) -> bool:
        return self.min <= number <= self.max and number > self.above

    def __str__(self) -> str:
        if math.isfinite(self.above):
            return f'more than {self.above:g}'
        return f'at least {self.min:g}' if math.isinf(self.max) else f'{self.min:g} to {self.max:.10g}'


class OnlyWith:
    """In Annotated: the option has an effect only beside another, with one of these values (none = any)."""

    def __init__(self, option: str, *values: str) -> None:
        self.option, self.values = option, values


class NotWith:
    """In Annotated: the option has no effect beside others that are given, or have one of these values."""

    def __init__(self, *options: str, values: tuple[Any, ...] = ()) -> None:
        self.options, self.values = options, values


class _Number(click.ParamType):
    """A finite number in a range; click's own take nan, which no comparison refuses."""

    def __init__(self, kind: type, allowed: Range) -> None:
        self.kind, self.allowed, self.name = kind, allowed, 'int' if kind is int else 'num'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = self.kind(value)
        except ValueError:
            self.fail(f'{value!r} is not a {"whole " if self.kind is int else ""}number', param, ctx)
        finite = self.kind is int or math.isfinite(number)
        if not finite or number not in self.allowed:
            self.fail(f'{value} must be {self.allowed if finite else "finite"}', param, ctx)
        return number


class _Text(click.ParamType):
    """Text or a path, in which `~/` is the home folder, also behind `NAME=`; `parse` makes more of it."""

    name = 'text'

    def __init__(self, parse: Callable[[str], Any], remote: bool = False) -> None:
        self.parse, self.remote = parse, remote  # remote: an address is downloaded

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # a default
            return value
        if is_address(value) and not self.remote:
            self.fail(f'{value} is an address; download it first and pass the file', param, ctx)
        head, tail = re.fullmatch(r'((?:\w+=)?)(.*)', value, flags=re.S).groups()
        try:
            if is_address(value):
                return self.parse(str(fetch(value, cache_folder() / 'snapshots')))
            return self.parse(head + os.path.expanduser(tail))
        except (UserError, ValueError) as err:
            self.fail(str(err), param, ctx)


class _Command(click.Command):
    """A command whose help has headings and which explains options of EG3D."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            order = self.make_parser(ctx).parse_args(args=list(args))[2]
            for param, count in collections.Counter(order).items():
                if count > 1 and isinstance(param, click.Option) and not param.multiple:
                    raise click.UsageError(f'{param.opts[0]} is given twice', ctx)
            return super().parse_args(ctx, list(args))
        except click.UsageError as err:
            hints = [f' ({n}: {_HABITS[n]})' for arg in args if (n := arg.partition('=')[0]) in _HABITS]
            raise click.UsageError(err.format_message() + ''.join(hints[:1]), ctx) from err

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                sections.setdefault(getattr(param, 'section', 'Help'), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def command(
    options: type, run: Callable[[Any], None], advice: str, skip: Container[str] = (), name: str | None = None
) -> click.Command:
    """Makes a command that reads its options into a dataclass and calls `run` with it.

    Args:
        options: the dataclass; the first paragraphs of its docstring come before the options in --help, its
            indented blocks (examples, tables) after them.
        run: the script.
        advice: what to do when memory runs out, for example 'use a smaller --batch-gpu'.
        skip: fields that have a default and are no options.
        name: of a command in a group.
    """
    comments = _comments(options)
    hints = typing.get_type_hints(options, include_extras=True)
    params, partners = [], []
    for field in dataclasses.fields(options):
        if field.name not in skip:
            kind, marks = _unwrap(hints[field.name])
            partners += [(field.name, mark) for mark in marks if isinstance(mark, (OnlyWith, NotWith))]
            params.append(_parameter(field, kind, marks, *comments.get(field.name, ('Options', ''))))

    def call(**values: Any) -> None:
        with one_sentence(advice):
            _refuse_without_effect(click.get_current_context(), partners)
            choose_spins()
            run(options(**values))

    text, epilog = _help(options.__doc__)
    return _Command(name, callback=call, params=params, help=text, epilog=epilog, context_settings=SETTINGS)


@contextlib.contextmanager
def one_sentence(advice: str) -> Iterator[None]:
    """Lets a script end with one sentence, `Error: ...`, and exit code 1 where its user can do something.

    These are errors of the user, files that cannot be read or written, and out of memory, which ends with
    `advice`. Everything else is a bug and keeps its traceback.
    """
    try:
        yield
    except UserError as err:
        raise click.ClickException(str(err)) from err
    except BrokenPipeError:
        raise  # click ends quietly when the reader of its output has gone
    except OSError as err:
        raise click.ClickException(explain_os_error(err)) from err
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        raise click.ClickException(memory_advice(err, advice)) from err


def _refuse_without_effect(ctx: click.Context, partners: list[tuple[str, OnlyWith | NotWith]]) -> None:
    for name, partner in partners:
        if ctx.params[name] is False or not _given(ctx, name):
            continue
        if isinstance(partner, NotWith):
            _refuse_together(ctx, name, partner)
            continue
        other = ctx.params[partner.option]
        if not (other in partner.values if partner.values else bool(other)):
            given, wanted = _flag(name), f'{_flag(partner.option)} {" or ".join(partner.values)}'.strip()
            now = f'not for {other}' if other else 'which is not given'
            raise UserError(f'{given} is for {wanted}, {now}; give that or leave {given} out')


def _refuse_together(ctx: click.Context, name: str, partner: NotWith) -> None:
    for key in partner.options:
        other = ctx.params[key]
        if other in partner.values if partner.values else _given(ctx, key) and other is not False:
            value, advice = f' {other}', f'give another {_flag(key)} or leave {_flag(name)} out'
            value, advice = (value, advice) if partner.values else ('', 'leave one of them out')
            raise UserError(f'{_flag(name)} has no effect beside {_flag(key)}{value}; {advice}')


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _flag(name: str) -> str:
    return f'--{name.replace("_", "-")}'


def _unwrap(hint: Any) -> tuple[Any, list[Any]]:
    """Takes None and Annotated off an annotation; returns the type and the marks."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, marks = _unwrap(args[0])
        return kind, [*marks, *args[1:]]
    if origin in (typing.Union, types.UnionType):
        return _unwrap(next(arg for arg in args if arg is not types.NoneType))
    return hint, []


def _parameter(
    field: dataclasses.Field, kind: Any, marks: list[Any], section: str, comment: str
) -> click.Parameter:
    """Makes an option, or an argument, of a field; see the module."""
    texts = [mark for mark in marks if isinstance(mark, str)]
    metavar = next((text for text in texts if not text.startswith('-')), None)
    values = typing.get_args(kind)
    if metavar is None and typing.get_origin(kind) is Literal and len('|'.join(values)) > _LONG:
        metavar, comment = 'NAME', f'{comment}: {", ".join(values)}'
    repeated = values[-1:] == (Ellipsis,) and not any(map(callable, marks))
    kind = values[0] if repeated else kind
    default = field.default_factory if field.default is dataclasses.MISSING else field.default
    required = default is dataclasses.MISSING
    more = {'type': _type(kind, marks), 'required': required, 'metavar': metavar}
    if ARGUMENT in marks:
        return click.Argument([field.name], **more)
    is_flag = kind is bool and default is not None
    flag = _flag(field.name)
    flag = f'{flag}/--no-{flag[2:]}' if is_flag and default else flag
    more |= {'multiple': repeated, 'is_flag': is_flag} | ({} if required else {'default': default})
    names = [flag, *(text for text in texts if text.startswith('-')), field.name]
    option = click.Option(names, help=_option_help(comment, kind, default, marks), **more)
    option.section = section
    return option


def _type(kind: Any, marks: list[Any]) -> click.ParamType:
    parse = next((mark for mark in marks if callable(mark)), None)
    if parse is None and kind in (int, float):
        return _Number(kind, next((mark for mark in marks if isinstance(mark, Range)), Range()))
    if parse is None and typing.get_origin(kind) is tuple:
        return click.Tuple([_type(item, []) for item in typing.get_args(kind)])
    if typing.get_origin(kind) is Literal:
        return click.Choice(typing.get_args(kind))
    if kind is bool:
        return click.BOOL
    return _Text(parse or (Path if kind is Path else str), _REMOTE in marks)


def _option_help(comment: str, kind: Any, default: Any, marks: list[Any]) -> str:
    """Makes a sentence of a comment and adds the default and the range."""
    comment, _, stated = comment.partition(' [default: ')
    if comment.split(' ')[0].rstrip(':') not in typing.get_args(kind):  # the names of values stay as they are
        comment = comment[:1].upper() + comment[1:]
    comment += '' if comment.endswith(('.', ']')) else '.'
    known = isinstance(default, (str, int, float)) and default is not False
    shown = stated.rstrip(']') or ('on' if default is True else str(default) if known else '')
    extra = [f'default: {shown}'] if shown else []
    extra += [str(mark) for mark in marks if isinstance(mark, Range) and not stated]
    return f'{comment}  [{"; ".join(extra)}]' if extra else comment


def _help(doc: str) -> tuple[str, str]:
    """Splits a docstring into what comes before the options and, from the first indented block on, after."""
    blocks = inspect.cleandoc(doc).split('\n\n')
    laid_out = ['\n ' in block for block in blocks]
    blocks = [f'\b\n{block}' if as_is else block for block, as_is in zip(blocks, laid_out, strict=True)]
    first = laid_out.index(True) if any(laid_out) else len(blocks)
    return '\n\n'.join(blocks[:first]), '\n\n'.join(blocks[first:])


def _comments(options: type) -> dict[str, tuple[str, str]]:
    """Reads the source of a dataclass and its parents; returns field -> (heading, comment)."""
    found: dict[str, tuple[str, str]] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(options.__mro__)):
        source = textwrap.dedent(inspect.getsource(cls))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        lines = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
        alone = {i for i, text in enumerate(source.split('\n'), 1) if text.lstrip().startswith('#')}
        section = 'Options'
        for node in (n for n in ast.parse(source).body[0].body if isinstance(n, ast.AnnAssign)):
            start = node.lineno
            while start - 1 in alone:
                start -= 1
            comments = [lines[i] for i in range(start, node.end_lineno + 1) if i in lines]
            section = next((text[4:] for text in comments if text.startswith('--- ')), section)
            words = ' '.join(text for text in comments if not text.startswith('--- '))
            inherited = found.get(node.target.id, ('', ''))[1]
            found[node.target.id] = (section, words or inherited)
    return found
