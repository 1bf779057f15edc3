"""Runs of a few steps in this process, and how to compare them."""

import dataclasses

import torch
from torch import Tensor

from training.training_loop import Trainer

CPU = torch.device('cpu')


def stop_at(nimg):
    """Returns (should_stop, the list that has to hold the trainer): ends a run at `nimg` clips."""
    box = []
    return (lambda: bool(box) and box[0].progress.cur_nimg >= nimg), box


def train(config, folder, until=None):
    """Trains in a folder, to the end or until that many clips; returns the trainer."""
    should_stop, box = stop_at(until)
    folder.mkdir(exist_ok=True)
    trainer = Trainer(config, folder, CPU, should_stop if until is not None else lambda: False)
    box.append(trainer)
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
    networks = {n: m.state_dict() for n, m in trainer._modules().items()}
    optimizers = {p.name: p.optimizer.state_dict() for p in trainer.phases}
    progress = dataclasses.asdict(trainer.progress) | {'seconds': None}
    return dict(flat({'networks': networks, 'optimizers': optimizers, 'progress': progress}))


def assert_same(first, second):
    """Compares two results of `everything`, bit for bit."""
    assert first.keys() == second.keys() and len(first) > 500
    different = [
        n
        for n, a in first.items()
        if not (torch.equal(a, second[n]) if isinstance(a, Tensor) else a == second[n])
    ]
    assert different == []


def batch_of(trainer):
    """Returns pairs of the first clips as a batch."""
    items = [trainer.dataset.get_pair(i % len(trainer.dataset), 0) for i in range(trainer.config.batch)]
    return {key: torch.stack([item[key] for item in items]) for key in ('frames', 't', 'c')}
