"""Trains PV3D. `python train.py --help` explains; `torchrun --nproc_per_node=8 train.py ...` uses 8 GPUs."""

from __future__ import annotations

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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dnnlib.cli import OnlyWith, Range, command

from dnnlib.config import override
from dnnlib.util import DataError, Logger, UserError

if TYPE_CHECKING:  # functions import what they need: --help and errors in options need no torch
    import torch

    from training.cards import Disk
    from training.config import TrainConfig
    from training.training_loop import Callbacks

Paper = Literal['pv3d-voxceleb', 'pv3d-celebvhq', 'pv3d-talkinghead', 'pv3d-released']
MoCoGAN = Literal['eg3d-static', 'eg3d-mcg', 'stylenerf-static', 'stylenerf-mcg']
Baseline = Literal['3dvidgen', '3dvidgen-eg3d', MoCoGAN]
# as training.presets.PRESETS
Preset = Literal[Paper, 'pv3d-256', 'pv3d-128', 'demo', 'study', 'tiny', Baseline]
Gpu = Literal['h100', 'a100', 'rtx4090']  # as training.cards.CARDS
Count = Annotated[int, Range(0)] | None
Number = Annotated[float, Range(0)] | None

# Options of a preset that follow others.
_FOLLOWERS = {
    'dataset.span': 'generator.span',
    'generator.focal': 'the cameras of the data',
    'dataset.resolution': 'generator.resolution',
    'd_image.resolution': 'generator.resolution',
    'd_video.resolution': 'generator.resolution',
}
# Command line option -> what it sets.
_PATHS = {
    'seed': ('seed',),
    'images': ('images.path',),
    'resume': ('resume',),
    'batch': ('batch',),
    'batch_gpu': ('batch_gpu',),
    'kimg': ('total_nimg',),
    'gamma': ('loss.r1_gamma',),
    'glr': ('g_opt.lr',),
    'dlr': ('d_opt.lr',),
    'mirror': ('dataset.mirror',),
    'tick': ('output.tick_nimg',),
    'snap': ('output.snapshot_ticks', 'output.image_ticks'),
    'metrics': ('output.metrics',),
    'wandb': ('output.wandb',),
    'workers': ('workers',),
    'precision': ('generator.precision', 'd_image.precision', 'd_video.precision'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train PV3D, a 3D-aware generator of portrait videos, on clips with camera labels.

    The same command given again continues its unfinished run exactly (Ctrl-C and SIGTERM write a checkpoint
    first).

    Examples:
      # Eight GPUs, the paper's 512x512 configuration
      torchrun --nproc_per_node=8 train.py --outdir runs --cfg pv3d-voxceleb --data vox.zip

      # One GPU, 128x128
      python train.py --outdir runs --cfg pv3d-128 --data heads128.zip

      # Show what a run would be, without starting it
      python train.py --outdir runs --cfg pv3d-voxceleb --data vox.zip --dry-run

      # Images of people who are in no video, too
      python train.py --outdir runs --cfg pv3d-128 --data heads128.zip --images photos128

      # Start from the weights of another run; change any option by its path
      python train.py --outdir runs --cfg pv3d-128 --data mine.zip --resume a.pkl --set loss.blur_sigma=0
    """

    # --- Run
    outdir: Annotated[Path, 'DIR']  # folder of all runs; each gets a numbered folder in it
    cfg: Preset  # preset of everything but the data
    data: Annotated[str, 'ZIP|DIR']  # training data, made by dataset_tool.py
    # single images with cameras, which the image discriminator alone sees beside the clips: a data set, or a
    # folder of `dataset_tool.py from-images`; --set images.per_clip=2: two for each clip
    images: Annotated[str, 'ZIP|DIR'] | None = None
    # start a new run from the weights of this snapshot, or of a checkpoint of the released PV3D or EG3D;
    # schedules (blur, ...) continue
    resume: Annotated[str, 'PKL'] | None = None
    fresh: bool = False  # make a new run folder even if this run is unfinished
    desc: Annotated[str, 'TEXT'] | None = None  # added to the name of the run folder
    seed: Count = None  # seed of everything random [default: preset]
    # stop after this time from the start of the command; a checkpoint and sheets come after it
    max_minutes: Annotated[float, Range(above=0)] | None = None
    # print options, networks and estimated cost, then exit; the data may be missing
    dry_run: Annotated[bool, '-n'] = False
    gpu: Annotated[Gpu, OnlyWith('dry_run')] | None = None  # estimate for this GPU, which need not be here

    # --- Training
    batch: Annotated[int, Range(1)] | None = None  # clips per iteration over all processes [default: preset]
    batch_gpu: Annotated[int, Range(1)] | None = None  # clips at a time per process: less memory, same batch
    kimg: Number = None  # train for this many thousand clips [default: preset]
    gamma: Number = None  # R1 weight; higher is more stable [default: preset]
    glr: Number = None  # learning rate of the generator [default: preset]
    dlr: Number = None  # learning rate of the discriminators [default: preset]
    # mirror images and cameras, true or false [default: preset]
    mirror: Annotated[bool, 'BOOL'] | None = None
    set: Annotated[tuple[str, ...], 'PATH=VALUE'] = ()  # any option of the preset; --dry-run lists the paths

    # --- Output
    # thousand clips between progress lines [default: preset]
    tick: Annotated[float, Range(above=0), 'KIMG'] | None = None
    # ticks between checkpoints and sheets; 0 = a checkpoint at the end, no sheets [default: preset]
    snap: Annotated[int, Range(0), 'TICKS'] | None = None
    # measured at every checkpoint, e.g. fvd2048_16f,id,cd,we; names as for calc_metrics.py
    metrics: Annotated[str, 'LIST'] | None = None

    # also show the run at Weights & Biases, in this project; needs `pip install wandb`
    wandb: Annotated[str, 'PROJECT'] | None = None

    # --- Speed
    workers: Count = None  # data loading processes per rank, at most one per core [default: preset]
    precision: Literal['fp32', 'fp16', 'bf16'] | None = None  # on CUDA [default: preset]
    # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available; torchrun gives each process a GPU
    device: str = 'auto'


def run(options: Options) -> None:
    """Builds the config, then shows or trains it."""
    deadline = time.time() + 60 * (options.max_minutes or math.inf)
    import torch

    from torch_utils import distributed as dist
    from torch_utils.misc import keep_freed_memory, pick_device, set_float32_precision
    from training.cards import disk_of
    from training.config import build_networks

    device = pick_device(options.device)
    dist.init(device.type, device.index)
    config = build_config(options)
    set_float32_precision(config.float32_precision)
    keep_freed_memory()
    config.split_batch(dist.world_size())
    with torch.device('meta'):  # no memory; what networks refuse is reported before a run folder is made
        disk = disk_of(config, build_networks(config))
    config = with_facts_of_data(config, options.dry_run)
    if config.output.metrics:
        from metrics.metric_names import parse_metrics

        parse_metrics(','.join(config.output.metrics))
    if options.dry_run:
        show(config, device, options.gpu)
    else:
        train(config, options, device, deadline, disk)
    dist.finish()  # not after an error: it would wait for processes that do not come


def show(config: TrainConfig, device: torch.device, gpu: Gpu | None) -> None:
    """Prints what a run would be, and what it would take from the weights that it starts from."""
    from interop.warm_start import start_from
    from torch_utils import distributed as dist
    from training.cards import CARDS
    from training.config import build_networks
    from training.estimate import describe_run
    from training.networks.registry import NETWORKS

    dist.print0(describe_run(config, device, dist.world_size(), CARDS[gpu] if gpu else None))
    if config.resume is not None:
        networks = build_networks(config)
        named = zip(NETWORKS, (*networks, networks.G), strict=True)
        try:
            start_from(config.resume, {name: module for name, module in named if module is not None})
        except UserError as err:
            dist.print0(f'warning: a run would stop here: {err}')


def train(config: TrainConfig, options: Options, device: torch.device, deadline: float, disk: Disk) -> None:
    """Trains in a new run folder, or in that of the same run where it is unfinished."""
    from dnnlib.provenance import session_facts
    from torch_utils import distributed as dist
    from training.cards import check_disk
    from training.run_folder import choose_run_dir, exclusive, run_name, write_options
    from training.training_loop import Trainer

    name = run_name(config, dist.world_size(), options.desc)
    restarted = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0'  # by torchrun --max-restarts
    fresh = options.fresh and not restarted
    chosen = choose_run_dir(options.outdir, config, name, fresh) if dist.is_leader() else None
    run_dir, is_new = dist.broadcast_object(chosen)
    should_stop = stop_on_signals()
    with contextlib.ExitStack() as leader:
        if dist.is_leader():
            leader.enter_context(exclusive(run_dir))
            write_options(run_dir, config)
            leader.enter_context(Logger(run_dir / 'log.txt'))
        logging.basicConfig(stream=sys.stdout, format='warning: %(message)s')
        dist.print0(f'run folder: {run_dir}')
        dist.print0('session: ' + ', '.join(f'{name} {value}' for name, value in session_facts().items()))
        try:
            callbacks = make_callbacks(config, run_dir, device, should_stop)
            trainer = Trainer(config, run_dir, device, callbacks, deadline)
            if dist.is_leader() and not trainer.finished and (warning := check_disk(run_dir, disk)):
                print(f'warning: {warning}')
        except (UserError, OSError):
            if is_new and dist.is_leader():
                shutil.rmtree(run_dir)  # there is nothing to continue in it
            raise
        if trainer.finished:
            trainer.measure()
            reached = f'{trainer.progress.cur_nimg / 1000:g} kimg'
            dist.print0(f'this run was finished before, at {reached}; use --fresh or a larger --kimg')
            return
        done = trainer.train()
        dist.print0('done' if done else 'stopped; the same command continues this run')


def build_config(options: Options) -> TrainConfig:
    """Turns options into a TrainConfig: preset, then flags, then --set."""
    from interop.convert import trained_with
    from training.config import with_resolution
    from training.presets import PRESETS

    config = PRESETS[options.cfg](options.data)
    changes = dict(trained_with(options.resume)) if options.resume is not None else {}
    flags = {'dataset.path': 'data'}  # path -> the only option that sets it
    for name, paths in _PATHS.items():
        value = getattr(options, name)
        if value is not None:
            value = round(value * 1000) if name in ('kimg', 'tick') else value
            changes |= dict.fromkeys(paths, str(value))
            flags |= {paths[0]: name} if len(paths) == 1 else {}
    for text in options.set:
        path, equals, value = (part.strip() for part in text.partition('='))
        if not equals:
            raise UserError(f'--set {text} must be PATH=VALUE, for example --set loss.density_weight=0.3')
        if path in _FOLLOWERS:
            raise UserError(f'--set {path}: this option follows {_FOLLOWERS[path]}, which decides')
        if path in flags:
            raise UserError(f'--set {text}: given twice, also by --{flags[path]}; leave one out')
        flags[path] = 'set'
        changes[path] = value
    if 'generator.resolution' in changes:
        size = {'resolution': changes.pop('generator.resolution')}
        config = with_resolution(config, override(config.generator, size).resolution)
    return override(config, changes)


def with_facts_of_data(config: TrainConfig, dry_run: bool = False) -> TrainConfig:
    """Opens the data once, checks the size of its images and lets the options that follow others do so.

    A dry run can do without the data.
    """
    from torch_utils import distributed as dist
    from training.config import describe_data, images_dataset, with_focal, with_followers

    config = with_followers(config)
    try:
        data = config.dataset.build()
        images = images_dataset(config)
        if dry_run:  # a run prints it into its log
            dist.print0(describe_data(data, images))
        return with_focal(config, data.focal())
    except DataError as err:
        if not dry_run:
            raise
        dist.print0(f'warning: a run would stop here: {err}')
    return config


def make_callbacks(
    config: TrainConfig, run_dir: Path, device: torch.device, should_stop: Callable[[], bool]
) -> Callbacks:
    """Returns what the loop asks of other rooms."""
    from interop.warm_start import start_from
    from training.training_loop import Callbacks
    from viz.sheets import TrainingSheets

    evaluate = None
    if config.output.metrics:
        from metrics.training_callback import make_evaluate

        whole = dataclasses.replace(config.dataset, max_clips=None, heldout_clips=0)  # as calc_metrics.py
        evaluate = make_evaluate(config.output.metrics, whole.build(), run_dir, device)
    return Callbacks(
        should_stop=should_stop,
        start=functools.partial(start_from, config.resume) if config.resume is not None else None,
        evaluate=evaluate,
        draw=TrainingSheets(run_dir=run_dir, dataset=config.dataset.build(), heads=config.output.sheet_seeds),
    )


def stop_on_signals() -> Callable[[], bool]:
    """Returns a function that turns True after SIGINT or SIGTERM; a second SIGINT kills at once."""
    from torch_utils import distributed as dist

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


main = command(Options, run, 'use a smaller --batch-gpu')

if __name__ == '__main__':
    main()
