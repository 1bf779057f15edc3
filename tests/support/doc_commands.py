"""Commands that pages show."""

import importlib
import re
import shlex
from collections.abc import Iterator

import click

SCRIPTS = ('train', 'gen_videos', 'edit_videos', 'calc_metrics', 'dataset_tool', 'legacy', 'viewer')
PLACES = {'CFG': 'tiny', 'B': '1', 'M': '1', 'N': '1', 'GRID': '4'}  # what pages write for a value


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (script or module, arguments) of every command line that runs one of ours."""
    text = re.sub(r'"?\$cfg"?', 'tiny', text.replace('\\\n', ' '))
    text = re.sub(r'\$\([^)]*\)|"?\$\{?\w+\}?"?', '1', text)  # what else the shell fills in
    scripts = rf'({"|".join(SCRIPTS)})\.py (-.*|[a-z]+ .*)'
    for line in text.splitlines():
        found = re.search(rf'(?:python\S*|torchrun\b.*) {scripts}', line)
        found = found or re.search(r'python -m ((?:studies|benchmarks)\.\w+) (.*--.*)', line)
        if found:
            words = shlex.split(re.sub(r'[|;&`].*', '', found[2]), comments=True)
            yield found[1], [PLACES.get(word, word) for word in words]


def parse(script: str, args: list[str]) -> click.Context:
    """Parses a command line as the script or module would; click raises for anything unknown or missing."""
    command, parent = importlib.import_module(script).main, None
    if isinstance(command, click.Group):
        parent = click.Context(command, **command.context_settings)  # for -h, which commands remember
        script, args = args[0], args[1:]
        if script not in command.commands:
            raise click.UsageError(f'no command {script}')
        command = command.commands[script]
    return command.make_context(script, args, parent)
