"""What the scripts have in common: how they end, and that they say when packages are missing.

Scripts import this module before any other that is not Python's own.
"""

import contextlib
import importlib.util
from collections.abc import Iterator

if missing := [p for p in ('click', 'numpy', 'torch', 'tqdm') if importlib.util.find_spec(p) is None]:
    raise SystemExit(
        f'Error: packages are missing ({", ".join(missing)}); '
        'run `make install`, then `source .venv/bin/activate`'
    )

import click

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
    except OSError as err:
        raise click.ClickException(explain_os_error(err)) from err
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        raise click.ClickException(f'there is too little memory; {memory_advice}') from err
