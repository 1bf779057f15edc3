"""Options of all scripts: quick help, a text for each, the same choices as in the rooms."""

import dataclasses
import importlib
import os
import subprocess
import sys

import click
import pytest

import calc_metrics
import dataset_tool
import gen_videos
import train
from editing.recipes import PRESETS as RECIPES
from metrics.metric_main import CONTROLS
from preprocessing.dataset_files.pack import FORMATS
from preprocessing.from_videos import pipeline
from support.paths import ROOT
from training.presets import PRESETS
from viz import shapes, trajectories

COMMANDS = ['synth', 'pack', 'from-videos', 'from-images', 'check', 'show']
EDITS = ['project', 'reconstruct', 'animate', 'edit', 'transfer', 'views', 'score']
SCRIPTS = ['train', 'gen_videos', 'calc_metrics', 'legacy', 'viewer']
SCRIPTS += [f'dataset_tool {c}' for c in COMMANDS]
SCRIPTS += [f'edit_videos {c}' for c in EDITS]
WITHOUT_TORCH = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
finally:
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    print({'torch', 'numpy'} & sys.modules.keys(), cpu.ru_utime + cpu.ru_stime < 1)
"""


@pytest.mark.parametrize('option', ['--help', '--typo'])
@pytest.mark.parametrize('script', [*SCRIPTS, 'dataset_tool', 'edit_videos'])
def test_help_and_errors_do_not_load_torch(script, option):
    name, *command = script.split()
    args = [sys.executable, '-c', WITHOUT_TORCH, str(ROOT / f'{name}.py'), *command, option]
    done = subprocess.run(args, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.stdout.splitlines()[-1] == 'set() True', done.stdout + done.stderr
    assert done.returncode == (2 if option == '--typo' else 0)
    assert ('--typo' in done.stderr) == (option == '--typo')


def command(script):
    name, *subcommand = script.split()
    found = importlib.import_module(name).main
    return found.commands[subcommand[0]] if subcommand else found


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_teaches(script):
    """Every option has a text; every command has an example; nothing is cut off."""
    found = command(script)
    for param in found.params:
        assert isinstance(param, click.Argument) or len(param.help) > 5, param.name
    text = found.get_help(click.Context(found, info_name=script, terminal_width=110, max_content_width=110))
    assert f'.py {script.partition(" ")[2]}'.strip() in found.epilog and '\n  Example' in text
    assert max(map(len, text.splitlines())) <= 110


CHOICES = [
    (train, 'cfg', list(PRESETS)),
    (gen_videos, 'shapes', shapes.FORMATS),
    (gen_videos, 'shape_parts', shapes.PARTS),
    (gen_videos, 'time', trajectories.TIME_MODES),
    (calc_metrics, 'control', list(CONTROLS)),
    (dataset_tool, 'until', tuple(pipeline.stages())),
    (dataset_tool, 'only', tuple(pipeline.stages())),
    (dataset_tool, 'format', list(FORMATS)),
]


@pytest.mark.parametrize(('script', 'option', 'known'), CHOICES, ids=[option for _, option, _ in CHOICES])
def test_choices_are_those_of_the_rooms(script, option, known):
    """Options name them, because the rooms import torch."""
    found = command('dataset_tool from-videos') if script is dataset_tool else script.main
    (param,) = (p for p in found.params if p.name == option)
    assert list(param.type.choices) == list(known)


def test_presets_are_those_of_the_recipes():
    for name in ('project', 'reconstruct'):
        (preset,) = (p for p in command(f'edit_videos {name}').params if p.name == 'preset')
        assert list(preset.type.choices) == list(RECIPES)


def test_defaults_of_the_pipeline_stand_once():
    ours = {field.name: field.default for field in dataclasses.fields(dataset_tool.FromVideos)}
    theirs = {field.name: field.default for field in dataclasses.fields(pipeline.Options)}
    assert {name for name in theirs if ours[name] != theirs[name]} == {'workdir'}
