"""Commands made of dataclasses: names, types, help texts, errors, how they end."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from dnnlib.cli import ARGUMENT, NotWith, OnlyWith, Range

import click
import pytest
from click.testing import CliRunner

from dnnlib import cli
from dnnlib.util import UserError


@dataclasses.dataclass(frozen=True)
class Parent:
    """A parent whose fields are options too."""

    size: int = 7  # pixels [Paper 1]
    hidden: str = 'x'  # not an option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Parent):
    """Does something
    for a test.

    Table:
      a  b

    Examples:
      python x.py
    """

    path: Annotated[str, ARGUMENT, 'FILE']
    # --- First
    size: Annotated[int, Range(2, 9)]
    rate: Annotated[float, Range(above=0), '-r'] = 0.5  # learning rate
    # kind of thing,
    # front is usual
    kind: Literal['front', 'back'] = 'front'
    home: Annotated[Path, 'DIR'] | None = None  # where to [default: here]

    # --- Second
    both: tuple[str, ...] = ()  # may be repeated
    pair: tuple[Literal['a', 'b'], str] | None = None  # two words
    numbers: Annotated[tuple[int, ...], lambda text: tuple(map(int, text.split('+')))] = (1, 2)  # a sum
    fast: Annotated[bool, OnlyWith('kind', 'back')] = False  # without this it is slow
    grid: bool = True  # draw it
    mirror: bool | None = None  # either way
    extra: Annotated[str, OnlyWith('home')] | None = None  # beside home
    other: Annotated[bool, NotWith('extra', 'grid')] = False  # not beside extra and grid
    back: Annotated[int, NotWith('kind', values=('front',))] | None = None  # not for the default kind


def call(*args, run=lambda options: None):
    """Runs the command; returns the options, or the result where it failed."""
    found = []
    command = cli.command(Options, lambda o: (found.append(o), run(o)), 'use less', skip=('hidden',))
    result = CliRunner().invoke(command, list(args))
    return result if result.exit_code else found[0]


def test_values_have_the_types_of_the_fields(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert call('a.pkl') == Options(path='a.pkl')
    text = '~/f --size 3 -r 2 --kind back --home ~/x --both a=~/y --both b --pair b ~/z --numbers 3+4 --fast'
    assert call(*text.split(), '--no-grid', '--mirror', '1', '--extra', 'q~') == Options(
        path='/home/me/f',
        size=3,
        rate=2.0,
        kind='back',
        home=Path('/home/me/x'),
        both=('a=/home/me/y', 'b'),
        pair=('b', '/home/me/z'),
        numbers=(3, 4),
        fast=True,
        grid=False,
        mirror=True,
        extra='q~',
    )


def test_help_comes_from_comments_and_docstring():
    command = cli.command(Options, print, '', skip=('hidden',))
    text = command.get_help(click.Context(command, terminal_width=100, help_option_names=['-h', '--help']))
    before, _, after = text.partition('First:\n')
    assert 'Does something for a test.' in before and 'hidden' not in text
    for line in (
        '--size INT           Pixels [Paper 1]  [default: 7; 2 to 9]',
        '-r, --rate NUM       Learning rate.  [default: 0.5; more than 0]',
        '--kind [front|back]  Kind of thing, front is usual.  [default: front]',
        '--home DIR           Where to.  [default: here]',
        'Second:\n',
        '--grid / --no-grid       Draw it.  [default: on]',
        'Help:\n',
        '  Table:\n    a  b\n\n  Examples:\n    python x.py',
    ):
        assert line in after, after


@pytest.mark.parametrize(
    ('args', 'code', 'reason'),
    [
        ('', 2, 'FILE'),
        ('a --size 1', 2, "'--size': 1 must be 2 to 9"),
        ('a --size x', 2, "'x' is not a whole number"),
        ('a --rate nan', 2, 'nan must be finite'),
        ('a --rate 0', 2, '0 must be more than 0'),
        ('a --mirror maybe', 2, "'maybe' is not a valid boolean"),
        ('a --kind left', 2, "'left' is not one of 'front', 'back'"),
        ('a --numbers 1+x', 2, "'--numbers'"),
        ('a --size 3 --size 4', 2, '--size is given twice'),
        ('a --home https://x.org/y', 2, 'download it first'),
        ('a --gpus=8', 2, 'torchrun --nproc_per_node=8'),
        ('a --fast', 1, '--fast is for --kind back, not for front'),
        ('a --extra x', 1, '--extra is for --home, which is not given'),
        ('a --other --home h --extra x', 1, '--other has no effect beside --extra; leave one of them out'),
        ('a --other --grid', 1, '--other has no effect beside --grid'),
        ('a --back 3', 1, '--back has no effect beside --kind front; give another --kind or leave --back'),
    ],
)
def test_errors_in_options(args, code, reason):
    result = call(*args.split())
    assert result.exit_code == code and reason in result.output.splitlines()[-1]


def test_options_beside_others_with_which_they_have_an_effect():
    """A default does not count, nor does --no-grid."""
    assert call('a', '--other').other and call('a', '--other', '--no-grid').other
    assert call('a', '--back', '3', '--kind', 'back').back == 3


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (UserError('give less'), 'give less'),
        (FileNotFoundError(2, 'x', 'y.zip'), 'y.zip: no such file'),
        (MemoryError(), 'out of memory; use less'),
        (RuntimeError('CUDA out of memory.'), 'out of memory; use less'),
        (RuntimeError('cuDNN error: CUDNN_STATUS_NOT_INITIALIZED'), 'out of memory (CUDNN_STATUS_NOT_INIT'),
        (RuntimeError('a bug'), None),
        (ValueError('a bug'), None),
    ],
)
def test_an_error_of_the_user_is_one_sentence_and_a_bug_is_not(error, text):
    def fail(options):
        raise error

    result = call('a', run=fail)
    assert result.exit_code == 1
    if text is None:
        assert result.exception is error
    else:
        assert result.output.startswith(f'Error: {text}') and result.output.count('\n') == 1


@pytest.mark.parametrize(
    ('text', 'numbers'),
    [('3', (3,)), ('0-3', (0, 1, 2, 3)), ('5,1-2', (5, 1, 2)), (' 4 , 4,7-7', (4, 7)), ('0,1,2', (0, 1, 2))],
)
def test_numbers(text, numbers):
    assert cli.parse_numbers(text) == numbers


@pytest.mark.parametrize(
    'text', ['', '-', '-1', '1-', '3-1', 'a', '1,,2', '1.5', '1-2-3', '²', '9' * 30, f'0-{10**9}']
)
def test_bad_numbers(text):
    with pytest.raises(ValueError, match='not a list|must count up'):
        cli.parse_numbers(text)
