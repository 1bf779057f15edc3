"""What the scripts have in common: how they end, what they refuse, what they say when packages are missing.

Scripts import this module before any other that is not Python's own.
"""

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from typing import Any

if missing := [p for p in ('click', 'numpy', 'torch', 'tqdm') if importlib.util.find_spec(p) is None]:
    raise SystemExit(
        f'Error: packages are missing ({", ".join(missing)}); '
        'run `make install`, then `source .venv/bin/activate`'
    )

import click
from click.core import ParameterSource

from dnnlib.util import UserError, explain_os_error, is_out_of_memory


@contextlib.contextmanager
def one_sentence(memory_advice: str) -> Iterator[None]:
    """Lets a script end with one sentence, `Error: ...`, and exit code 1 where its user can do something.

    That is: mistakes of the user, files that cannot be read or written, and too little memory. Everything
    else is a bug and keeps its traceback.

    Args:
        memory_advice: what to do when memory runs out, for example 'use a smaller --batch-gpu'.
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
        raise click.ClickException(f'there is too little memory; {memory_advice}') from err


def refuse_without_effect(ctx: click.Context, belongs_to: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    """Refuses options on the command line that do nothing beside the others.

    Args:
        ctx: of the command.
        belongs_to: parameter -> the parameter that uses it, and with which values.

    Raises:
        UserError: names the option and what it needs.
    """
    for name, (other, values) in belongs_to.items():
        explicit = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if explicit and ctx.params[other] not in values:
            given, wanted = (f'--{key.replace("_", "-")}' for key in (name, other))
            now = f'not for {ctx.params[other]}' if ctx.params[other] else 'which is not given'
            raise UserError(
                f'{given} is for {wanted} {" or ".join(values)}, {now}; give that or leave {given} out'
            )


class FiniteRange(click.FloatRange):
    """A range of finite numbers; click takes nan, which no comparison refuses, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parses and checks a value."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f'{value!r} is not a finite number', param, ctx)
        return number
