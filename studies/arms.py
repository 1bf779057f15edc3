"""The runs of a comparison: a base and its changes, each from several seeds, at equal cost or on equal data.

Each run has a folder of its own, named by its options, with the files of a training run, `cost.json` (what
training has cost up to the newest checkpoint) and, when it is done, what its judge has measured.
"""

import abc
import dataclasses
import functools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dnnlib.config import to_dict
from dnnlib.progress import progress
from dnnlib.util import UserError, atomic_write, explain_os_error
from interop.warm_start import start_from
from metrics.records.digests import json_digest
from torch_utils.checkpoint import snapshot_path
from torch_utils.misc import prepare_process
from training.config import OutputConfig, TrainConfig, build_networks, with_focal, with_followers
from training.data.archive import parallel
from training.presets import PRESETS
from training.run_folder import exclusive, read_options, write_options
from training.training_loop import Callbacks, Trainer

COST = 'cost.json'
NEWEST = 'newest.pkl'  # a link to the snapshot that was measured
_CHECKPOINTS = 4  # ticks between them
_ENDLESS = 10**9  # clips; time ends a run


class Arm(NamedTuple):
    """One run."""

    name: str  # changes, as they were given; base without
    seed: int
    config: TrainConfig
    folder: Path


class Cost(NamedTuple):
    """What training has cost."""

    seconds: float = 0.0  # of the processor, or of the clock on a GPU
    clips: int = 0


class Budget(NamedTuple):
    """What a run may cost; the first limit that is reached ends it."""

    seconds: float = math.inf
    clips: float = math.inf

    def is_used(self, cost: Cost) -> bool:
        """Returns whether a run has cost as much."""
        return cost.seconds >= self.seconds or cost.clips >= self.clips


class Judge(abc.ABC):
    """Measures what an arm has learned; copies of it go to other processes."""

    file: str  # of its results, in the folder of the arm
    device: torch.device

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Returns how it measures; results of other facts are not its results."""

    @abc.abstractmethod
    def measure(self, arm: Arm, snapshot: Path, facts: Mapping[str, Any]) -> None:
        """Measures a snapshot and writes the file, an object in JSON that holds the facts."""


class Task(NamedTuple):
    """What is done with an arm."""

    arm: Arm
    budget: Budget
    judge: Judge
    before: 'Task | None' = None  # done before, since the arm starts from its newest snapshot


def split_changes(text: str) -> dict[str, str]:
    """Splits PATH=VALUE+PATH=VALUE, or with commas between them, into {path: value}."""
    parts = [part.partition('=') for part in re.split(r'[+,](?=\s*[a-z_][\w.]*\s*=)', text)]
    if not all(path and equals for path, equals, _ in parts):
        raise UserError(f'--change {text} must be PATH=VALUE, several of them joined by +')
    return {path.strip(): value.strip() for path, _, value in parts}


def base_config(base: str, data: str, resume: str | None = None) -> TrainConfig:
    """Returns the config of a preset, or of a file training_options.json, on other data."""
    if base in PRESETS:
        config = PRESETS[base](data)
    else:
        try:
            config = read_options(base)
        except (OSError, ValueError, TypeError) as err:
            names = ', '.join(PRESETS)
            raise UserError(
                f'--base {base} must be a training_options.json or one of {names}: {err}'
            ) from err
        config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, path=data))
    output = OutputConfig(
        tick_nimg=config.output.tick_nimg,
        snapshot_ticks=_CHECKPOINTS,
        probe_ticks=_CHECKPOINTS,  # they cost as much as some steps
        image_ticks=0,
        keep_states=1,
    )
    return dataclasses.replace(config, output=output, total_nimg=_ENDLESS, workers=0, resume=resume)


def make_arm(name: str, seed: int, config: TrainConfig, outdir: Path) -> Arm:
    """Makes the folder of a run on its data.

    Raises:
        ConfigError: if an option is not allowed.
        DataError: if the data cannot be used.
    """
    config = with_followers(config)
    config = dataclasses.replace(with_focal(config, config.dataset.build().focal()), seed=seed)
    with torch.device('meta'):  # what networks refuse is reported before anything is trained
        build_networks(config)
    slug = re.sub(r'[^\w.=+-]+', '_', name)[:60]
    folder = outdir / f'{slug}-seed{seed}-{json_digest(to_dict(config))[:8]}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, folder)) from err
    write_options(folder, config)
    return Arm(name, seed, config, folder)


def run_all(tasks: Sequence[Task], at_once: int) -> Iterator[tuple[Arm, str]]:
    """Does all tasks, so many at a time; yields each arm when it is done, and '' or why it failed.

    Shows how many are done, and the time left.
    """
    where = 'process.txt in the folder of each says how far it is'
    with progress(len(tasks), 'training and measuring', 'run', where) as count:
        for task, failure in zip(tasks, parallel(run_arm, tasks, at_once), strict=True):
            count(1)
            yield task.arm, failure


def run_arm(task: Task) -> str:
    """Trains an arm until its budget is used, then measures it, unless that was done; '' or why it failed.

    What it prints goes to process.txt in its folder. Given again, it continues.
    """
    if task.before is not None and (failure := run_arm(task.before)):
        return failure
    prepare_process()
    torch.set_num_threads(1)  # equal cost needs equal conditions
    folder = task.arm.folder
    with open(folder / 'process.txt', 'a') as log, redirect_stdout(log), redirect_stderr(log):
        try:
            with exclusive(folder):
                cost = train_arm(task)
                snapshot = snapshot_path(folder, cost.clips)
                (folder / NEWEST).unlink(missing_ok=True)
                (folder / NEWEST).symlink_to(snapshot.name)
                wanted = {'clips': cost.clips, **task.judge.facts()}
                if not wanted.items() <= read_results(folder, task.judge.file).items():
                    facts = {**cost._asdict(), **task.judge.facts()}
                    task.judge.measure(task.arm, snapshot, facts)
        except UserError as err:  # such as a run that diverges; the others go on
            return f'{folder}: {err}'
    return ''


def train_arm(task: Task) -> Cost:
    """Trains from the newest checkpoint of the folder until the run has cost its budget."""
    folder, config, before = task.arm.folder, task.arm.config, read_cost(task.arm.folder)
    if task.budget.is_used(before):
        return before
    tick = time.process_time if task.judge.device.type == 'cpu' else time.perf_counter
    begin = tick()

    def cost(clips: int) -> Cost:
        return Cost(before.seconds + tick() - begin, clips)

    def note(_network: object, kimg: float) -> dict[str, float]:
        write_cost(folder, cost(round(1000 * kimg)))
        return {}

    callbacks = Callbacks(
        should_stop=lambda: task.budget.is_used(cost(trainer.progress.cur_nimg)),
        start=functools.partial(start_from, config.resume) if config.resume else None,
        evaluate=note,  # at every checkpoint
    )
    trainer = Trainer(config, folder, task.judge.device, callbacks)
    trainer.train()
    note(None, trainer.progress.cur_nimg / 1000)
    return read_cost(folder)


def read_results(folder: Path, name: str) -> dict[str, Any]:
    """Returns what was measured in a folder, {} if nothing."""
    path = folder / name
    return json.loads(path.read_bytes()) if path.exists() else {}


def read_cost(folder: Path) -> Cost:
    """Returns what the run in a folder has cost up to its newest checkpoint."""
    path = folder / COST
    return Cost(**json.loads(path.read_bytes())) if path.exists() else Cost()


def write_cost(folder: Path, cost: Cost) -> None:
    """Notes what the run in a folder has cost."""
    with atomic_write(folder / COST, 'w') as file:
        json.dump(cost._asdict(), file)
