"""Runs of a few steps, in this process and in others, and how to compare them."""

import contextlib
import dataclasses
import functools
import io
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import train as train_script
from interop.warm_start import start_from
from support.paths import ROOT
from training.batching import real_batch
from training.training_loop import Callbacks, Trainer
from viz.sheets import TrainingSheets

LIMIT_SEC = 300  # a process that takes longer hangs

CPU = torch.device('cpu')


def new_trainer(config, folder, **callbacks):
    """Makes a trainer that starts from the weights of config.resume, if set, and draws, as train.py does."""
    start = functools.partial(start_from, config.resume) if config.resume else None
    draw = TrainingSheets(run_dir=folder, dataset=config.dataset.build(), heads=config.output.sheet_seeds)
    return Trainer(config, folder, CPU, Callbacks(start=start, draw=draw, **callbacks))


def train(config, folder, until=math.inf, **callbacks):
    """Trains in a folder, to the end or until that many clips; returns the trainer."""
    folder.mkdir(exist_ok=True)
    trainer = new_trainer(config, folder, **callbacks)
    progress = trainer.progress  # keeps should_stop from holding the trainer: a cycle ends its workers late
    trainer.callbacks = dataclasses.replace(trainer.callbacks, should_stop=lambda: progress.cur_nimg >= until)
    done = trainer.train()
    assert done == (trainer.progress.cur_nimg >= config.total_nimg)
    return trainer


def flat(tree, name=''):
    """Yields (name, leaf) of nested dictionaries and lists."""
    if isinstance(tree, (dict, list, tuple)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from flat(value, f'{name}/{key}')
    else:
        yield name, tree


def everything(trainer):
    """Returns all that a run consists of, by name: networks, EMA, optimizers, progress."""
    networks = {n: m.state_dict() for n, m in trainer.modules().items()}
    optimizers = {p.name: p.optimizer.state_dict() for p in trainer.phases}
    progress = dataclasses.asdict(trainer.progress) | {'seconds': None}
    return dict(flat({'networks': networks, 'optimizers': optimizers, 'progress': progress}))


def assert_same(first, second, least=500):
    """Compares two results of `everything`, bit for bit."""
    assert first.keys() == second.keys() and len(first) > least
    different = [
        n
        for n, a in first.items()
        if not (torch.equal(a, second[n]) if isinstance(a, Tensor) else a == second[n])
    ]
    assert different == []


def batch_of(trainer):
    """Returns pairs of the first clips as a real batch."""
    items = [trainer.dataset.draw(i % len(trainer.dataset), 0) for i in range(trainer.config.batch)]
    pair = {key: torch.stack([item[key] for item in items]) for key in ('frames', 't', 'c')}
    return real_batch(pair, trainer.device)


def config_of(*args, data='d.zip'):
    """Returns the config that train.py makes of a command line."""
    context = train_script.main.make_context('train.py', ['--outdir', 'o', '--data', data, *args])
    return train_script.build_config(train_script.Options(**context.params))


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def cli(*args):
    """Runs train.py in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            train_script.main.main([str(a) for a in args], prog_name='train.py')
        except SystemExit as end:
            return Result(end.code or 0, out.getvalue(), err.getvalue())
    raise AssertionError('click does not return')


@contextlib.contextmanager
def start(*args, launcher=(), **options):
    """Runs train.py in a process of its own, which ends with the block; its output comes in one pipe."""
    command = [str(c) for c in (sys.executable, *launcher, ROOT / 'train.py', *args)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in [*children(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def children(pid):
    """Returns the process numbers of the children of a process (Linux)."""
    found = Path(f'/proc/{pid}/task/{pid}/children')
    return [int(p) for p in found.read_text().split()] if found.exists() else []


def wait_for(condition, process):
    """Waits until condition() is true while the process lives, and returns its value."""
    deadline = time.monotonic() + LIMIT_SEC
    while not (value := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f'nothing happened in {LIMIT_SEC} s'
        time.sleep(0.02)
    return value
