"""Command lines of studies: help texts, and that the examples in help and docs are understood."""

import re
import shlex

import click
import pytest

from studies import (
    ab,
    alignment,
    curves,
    joint,
    longer,
    nearest,
    protocols,
    report,
    run,
    style_mixing,
    table,
    table1,
)
from support.paths import ROOT

MODULES = (ab, alignment, curves, joint, longer, nearest, protocols, report, run, style_mixing, table, table1)
COMMANDS = {module.__name__.removeprefix('studies.'): module.main for module in MODULES}


@pytest.mark.parametrize('name', COMMANDS)
def test_options_have_texts(name):
    options = [param for param in COMMANDS[name].params if isinstance(param, click.Option)]
    assert all(len(option.help) > 5 for option in options)


def test_examples_are_understood():
    texts = [f'{command.epilog}\n' for command in COMMANDS.values()]
    texts.append((ROOT / 'docs' / 'studies.md').read_text().replace('\\\n', ' '))
    found = []
    for text in texts:
        joined = re.sub(r'\n +--', ' --', text)
        for name, args in re.findall(r'python -m studies\.(\w+) (.*--.*)', joined):
            COMMANDS[name].make_context(name, shlex.split(args))
            found.append(name)
    assert set(found) == set(COMMANDS) and min(map(found.count, COMMANDS)) > 1  # in help and docs
    with pytest.raises(click.ClickException):
        COMMANDS['ab'].make_context('ab', ['--base', 'study'])
