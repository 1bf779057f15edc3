"""Trains PV3D. `python train.py --help` explains; `torchrun --nproc_per_node=8 train.py ...` uses 8 GPUs."""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dnnlib.cli import FiniteRange, one_sentence

import click
import torch

from dnnlib.config import override
from dnnlib.util import DataError, Logger, UserError
from interop.convert import trained_with
from interop.warm_start import start_from
from torch_utils import distributed as dist
from torch_utils.misc import keep_freed_memory, pick_device, set_float32_precision
from training.config import TrainConfig, network_configs, with_resolution
from training.presets import PRESETS
from training.run_folder import choose_run_dir, exclusive, run_name, write_options
from training.training_loop import Callbacks, Evaluate, Trainer
from viz.sheets import TrainingSheets

# Options that follow others.
_FOLLOWERS = {
    'dataset.span': 'generator.span',
    'dataset.resolution': 'generator.resolution',
    'd_image.resolution': 'generator.resolution',
    'd_video.resolution': 'generator.resolution',
}

_EXAMPLES = """
\b
Examples:
  # Eight GPUs, the paper's 512x512 configuration
  torchrun --nproc_per_node=8 train.py --outdir runs --cfg pv3d-voxceleb --data vox.zip
\b
  # One GPU, 128x128
  python train.py --outdir runs --cfg pv3d-128 --data heads128.zip
\b
  # See what a run would be, without starting it
  python train.py --outdir runs --cfg pv3d-voxceleb --data vox.zip --dry-run
\b
  # Start from the weights of another run; change any option by its path
  python train.py --outdir runs --cfg pv3d-128 --data mine.zip --resume a.pkl --set loss.density_weight=0.3

The same command given again continues its unfinished run exactly (Ctrl-C and SIGTERM write a checkpoint
first).
"""


_COUNT, _NUMBER = click.IntRange(min=0), FiniteRange(min=0)
_POSITIVE_COUNT, _POSITIVE_NUMBER = click.IntRange(min=1), FiniteRange(min=0, min_open=True)
_TRUE = ('true', '1')
preset_option = functools.partial(click.option, show_default='preset')


@click.command(
    epilog=_EXAMPLES,
    context_settings={
        'help_option_names': ['-h', '--help'],
        'max_content_width': 110,
        'show_default': True,
    },
)
@click.option(
    '--outdir', required=True, metavar='DIR', help='Folder of all runs; each gets a numbered folder in it.'
)
@click.option(
    '--cfg', required=True, type=click.Choice(list(PRESETS)), help='Preset: everything but the data.'
)
@click.option('--data', required=True, metavar='ZIP|DIR', help='Training data, made by dataset_tool.py.')
@preset_option('--batch', type=_POSITIVE_COUNT, metavar='INT', help='Clips per iteration over all processes.')
@click.option(
    '--batch-gpu',
    type=_POSITIVE_COUNT,
    metavar='INT',
    help='Clips at a time per process: less memory, same batch.',
)
@preset_option('--kimg', type=_NUMBER, metavar='NUM', help='Train for this many thousand clips.')
@preset_option('--gamma', type=_NUMBER, metavar='NUM', help='R1 weight; higher is more stable.')
@preset_option('--glr', type=_NUMBER, metavar='NUM', help="Generator's learning rate.")
@preset_option('--dlr', type=_NUMBER, metavar='NUM', help="Discriminators' learning rate.")
@click.option(
    '--resume',
    metavar='PKL',
    help='Start a new run from the weights of this snapshot, or of a checkpoint of the released PV3D or '
    'EG3D; schedules (blur, ...) go on.',
)
@preset_option(
    '--mirror',
    type=click.Choice([*_TRUE, 'false', '0'], case_sensitive=False),
    metavar='BOOL',
    help='Mirror pictures and cameras: true or false.',
)
@preset_option('--tick', type=_POSITIVE_NUMBER, metavar='KIMG', help='Thousand clips between progress lines.')
@preset_option(
    '--snap',
    type=_COUNT,
    metavar='TICKS',
    help='Ticks between checkpoints and sheets; 0 = a checkpoint at the end, no sheets.',
)
@click.option(
    '--metrics',
    metavar='LIST',
    help='Measured at every checkpoint, e.g. fvd2048_16f,id,cd,we; names as for calc_metrics.py.',
)
@click.option('--seed', type=_COUNT, default=0, metavar='INT', help='Seed of everything random.')
@preset_option(
    '--workers', type=_COUNT, metavar='INT', help='Data loading processes per rank, at most one per core.'
)
@preset_option('--precision', type=click.Choice(['fp32', 'fp16', 'bf16']), help='On CUDA.')
@click.option(
    '--device',
    default='auto',
    help='cpu, cuda, cuda:1, ...; auto = cuda when there is one. With torchrun each process has its own GPU.',
)
@click.option(
    '--set', 'overrides', multiple=True, metavar='PATH=VALUE', help='Any option; see --dry-run for paths.'
)
@click.option('--desc', metavar='TEXT', help='Added to the name of the run folder.')
@click.option('--fresh', is_flag=True, help='New run folder even if this run is unfinished.')
@click.option(
    '--max-minutes',
    type=_POSITIVE_NUMBER,
    metavar='NUM',
    help='Stop after this time from the start of the command; a checkpoint and sheets come after it.',
)
@click.option(
    '-n',
    '--dry-run',
    is_flag=True,
    help='Print options, networks and estimated cost, then exit; the data may be missing.',
)
def main(**options: object) -> None:
    """Train PV3D, a 3D-aware generator of portrait videos, on clips with camera labels."""
    with one_sentence('use a smaller --batch-gpu'):
        deadline = time.time() + 60 * (options['max_minutes'] or math.inf)
        device = pick_device(options['device'])
        dist.init(device.type, device.index)
        set_float32_precision()
        keep_freed_memory()
        run(options, device, deadline)
        dist.finish()  # not after an error: it would wait for processes that do not come


def run(options: dict, device: torch.device, deadline: float) -> None:
    """Builds the config, then shows or trains it."""
    config = build_config(options)
    config.split_batch(dist.world_size())
    check_networks(config)
    config = with_facts_of_data(config, options['dry_run'])
    check_names(config.output.metrics)
    if options['dry_run']:
        from training.estimate import describe_run  # noqa: PLC0415

        dist.print0(describe_run(config, device, dist.world_size()))
        return
    name = run_name(config, dist.world_size(), options['desc'])
    restarted = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0'  # by torchrun --max-restarts
    fresh = options['fresh'] and not restarted
    chosen = choose_run_dir(Path(options['outdir']), config, name, fresh) if dist.is_leader() else None
    run_dir, is_new = dist.broadcast_object(chosen)
    should_stop = stop_on_signals()
    with contextlib.ExitStack() as leader:
        if dist.is_leader():
            leader.enter_context(exclusive(run_dir))
            write_options(run_dir, config)
            leader.enter_context(Logger(run_dir / 'log.txt'))
        logging.basicConfig(stream=sys.stdout, format='warning: %(message)s')
        dist.print0(f'run folder: {run_dir}')
        try:
            callbacks = make_callbacks(config, run_dir, device, should_stop)
            trainer = Trainer(config, run_dir, device, callbacks, deadline)
        except (UserError, OSError):
            if is_new and dist.is_leader():
                shutil.rmtree(run_dir)  # there is nothing to continue in it
            raise
        if trainer.finished:
            trainer.measure()
            dist.print0(
                f'this run was finished before, at {trainer.progress.cur_nimg / 1000:g} kimg; nothing to do; '
                '--fresh starts another, a larger --kimg trains on'
            )
            return
        done = trainer.train()
        dist.print0('done' if done else 'stopped; the same command continues this run')


def build_config(options: dict) -> TrainConfig:
    """Turns flags into a TrainConfig: preset, then flags, then --set."""
    config = PRESETS[options['cfg']](options['data'])
    config = dataclasses.replace(config, seed=options['seed'], resume=options['resume'])
    flags = (
        ('batch', 'batch'),
        ('batch_gpu', 'batch_gpu'),
        ('gamma', 'loss.r1_gamma'),
        ('glr', 'g_opt.lr'),
        ('dlr', 'd_opt.lr'),
        ('metrics', 'output.metrics'),
        ('snap', 'output.snapshot_ticks'),
        ('snap', 'output.image_ticks'),
        ('workers', 'workers'),
        ('precision', 'generator.precision'),
        ('precision', 'd_image.precision'),
        ('precision', 'd_video.precision'),
    )
    changes = trained_with(options['resume']) if options['resume'] is not None else []
    changes += [(path, options[flag]) for flag, path in flags if options[flag] is not None]
    if options['mirror'] is not None:
        changes.append(('dataset.mirror', options['mirror'] in _TRUE))
    if options['kimg'] is not None:
        changes.append(('total_nimg', to_clips(options['kimg'])))
    if options['tick'] is not None:
        changes.append(('output.tick_nimg', to_clips(options['tick'])))
    for text in options['overrides']:
        path, equals, value = text.partition('=')
        if not equals:
            raise UserError(f'--set {text} must be PATH=VALUE, for example --set loss.density_weight=0.3')
        changes.append((path.strip(), value.strip()))
    for path, value in changes:
        if path in _FOLLOWERS:
            raise UserError(f'--set {path}: this option follows {_FOLLOWERS[path]}; set that one')
        if path == 'generator.resolution':
            config = with_resolution(config, override(config.generator, 'resolution', value).resolution)
        else:
            config = override(config, path, str(value))
    return config


def to_clips(kimg: float) -> int:
    """Turns thousands of clips into clips."""
    return round(kimg * 1000)


def check_networks(config: TrainConfig) -> None:
    """Builds the networks without memory: what they refuse is told before a run folder is made."""
    with torch.device('meta'):
        for network in network_configs(config):
            if network is not None:
                network.build()


def with_facts_of_data(config: TrainConfig, dry_run: bool = False) -> TrainConfig:
    """Opens the data once, checks the size of its pictures and lets the options that follow others do so.

    A dry run can do without the data.
    """
    expected = config.generator.resolution
    dataset = dataclasses.replace(
        config.dataset,
        resolution=expected,
        span=config.generator.span,
        frames=config.loss.build().frames,
    )
    config = with_resolution(dataclasses.replace(config, dataset=dataset), expected)
    try:
        dist.print0(f'data: {dataset.build().describe()}')
    except DataError as err:
        if not dry_run:
            raise
        dist.print0(f'warning: a run would stop here: {err}')
    return config


def check_names(metrics: Sequence[str]) -> None:
    """Refuses names that are no metrics."""
    if metrics:
        from metrics.metric_names import parse_metrics  # noqa: PLC0415 - not needed otherwise

        parse_metrics(','.join(metrics))


def make_callbacks(
    config: TrainConfig, run_dir: Path, device: torch.device, should_stop: Callable[[], bool]
) -> Callbacks:
    """Returns what the loop asks of other rooms."""
    return Callbacks(
        should_stop=should_stop,
        start=functools.partial(start_from, config.resume) if config.resume is not None else None,
        evaluate=evaluation(config, run_dir, device),
        draw=TrainingSheets(run_dir=run_dir, dataset=config.dataset.build(), heads=config.output.sheet_seeds),
    )


def evaluation(config: TrainConfig, run_dir: Path, device: torch.device) -> Evaluate | None:
    """Returns what measures the metrics of a run at its checkpoints; None when there are none."""
    if not config.output.metrics:
        return None
    from metrics.training_callback import make_evaluate  # noqa: PLC0415 - not needed otherwise

    data = dataclasses.replace(config.dataset, max_clips=None).build()  # all of it, as calc_metrics.py
    return make_evaluate(config.output.metrics, data, run_dir, device)


def stop_on_signals() -> Callable[[], bool]:
    """Returns a function that turns True after SIGINT or SIGTERM; a second SIGINT kills at once."""
    received = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT:  # SIGTERM may come twice, from torchrun and from a scheduler
            signal.signal(number, signal.SIG_DFL)
        if dist.is_leader():  # print is not safe in a signal handler
            text = f'{signal.Signals(number).name}: finishing this step, then writing a checkpoint\n'
            os.write(sys.__stderr__.fileno(), text.encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return lambda: bool(received)


if __name__ == '__main__':
    main()
