"""Runs the stages of a search: progress, Ctrl-C, resuming, and the portrait that comes of it."""

import contextlib
import copy
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dnnlib.util import CheckpointError
from editing.fit import Fit, Stage, StageRun
from editing.objective import Objective, Targets
from torch_utils.checkpoint import EDIT_STATE, load_state, save_state

_SAVE_STEPS = 50  # between two states on the disk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """Where a search keeps its state, and how it is watched."""

    path: Path | None = None  # of the state; none = nowhere
    key: str = ''  # of all that the search depends on: a state with another is not continued
    report: Callable[[str], object] = lambda line: None  # gets a line per stage
    should_stop: Callable[[], bool] = lambda: False
    # gets stage, steps done, steps of the stage, PSNR in dB after each step
    watch: Callable[[str, int, int, float], object] = lambda stage, step, steps, quality: None

    def read(self) -> dict[str, Any] | None:
        """Returns the state of this search, if there is one."""
        if self.path is None or not self.path.exists():
            return None
        try:
            state = load_state(self.path, EDIT_STATE)
        except CheckpointError as err:
            self.report(f'starting again: {err}')
            return None
        return state if state.get('key') == self.key else None

    def write(self, state: dict[str, Any]) -> None:
        """Keeps a state."""
        if self.path is not None:
            save_state(self.path, EDIT_STATE, {**state, 'key': self.key})

    def remove(self) -> None:
        """Removes the state of a finished search."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ended with."""

    notes: dict[str, list[tuple[int, float, float]]]  # stage -> (step, loss, PSNR in dB)
    stopped: bool  # whether it was interrupted


def search(
    fit: Fit, stages: Sequence[Stage], objective: Objective, targets: Targets, seed: int, session: Session
) -> Found:
    """Runs the stages one after the other; `fit` is then what they found.

    A stage that changes the network works on a copy: the network that `fit` came with stays as it is.
    """
    original, saved = fit.G, session.read()
    state = saved or {'stage': 0, 'notes': {}, 'before': {}, 'run': None}
    values = dict(fit.named_parameters())
    for name, value in state['before'].items():
        values[name].data.copy_(value)
    notes, stopped = {k: [tuple(n) for n in v] for k, v in state['notes'].items()}, False
    for index in range(state['stage'], len(stages)):
        stage = stages[index]
        before = {name: getattr(fit, name).detach().clone() for name in ('w', 'layers', 'u', 'offsets')}
        if stage.network:
            fit.G = copy.deepcopy(original)
        run = StageRun(fit, stage, objective, targets, original, seed)
        if state['run'] is not None and index == state['stage']:
            run.load(state['run'])

        def write(run: StageRun = run, index: int = index, before: dict[str, Tensor] = before) -> None:
            session.write({'stage': index, 'notes': notes, 'before': before, 'run': run.state()})

        stopped = run_stage(run, session, write)
        run.finish()
        notes[stage.name] = run.notes
        if stopped:
            break
        session.report(f'{stage.name}: {run.step} steps, {run.notes[-1][2]:.2f} dB')
    fit.requires_grad_(False)
    if not stopped:
        session.remove()
    return Found(notes, stopped)


def run_stage(run: StageRun, session: Session, write: Callable[[], None]) -> bool:
    """Makes the steps that a stage still has to do; returns whether it was stopped before the last."""
    total = run.stage.steps
    with tqdm(total=total, initial=run.step, desc=run.stage.name, unit='step', disable=None) as bar:
        while run.step < total:
            quality = run.advance()
            bar.update()
            bar.set_postfix_str(f'{quality:.2f} dB')
            session.watch(run.stage.name, run.step, total, quality)
            stop = session.should_stop() and run.step < total
            if stop or (run.step % _SAVE_STEPS == 0 and run.step < total):
                write()
            if stop:
                return True
    return False


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yields a function that turns True after Ctrl-C; a second one ends the program at once."""
    received = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        os.write(sys.__stderr__.fileno(), b'stopping after this step; the best so far is kept\n')

    old = signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, old)


def tuned_tensors(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a network that differ from those of another."""
    old = before.state_dict()
    return {
        name: value.detach().cpu().clone()
        for name, value in after.state_dict().items()
        if not torch.equal(value, old[name])
    }
