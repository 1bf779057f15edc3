"""Time and memory of a training iteration by phases, with our kernels and with plain PyTorch, in one run.

`python -m benchmarks.step --cfg pv3d-voxceleb --batch 1`. An amortised iteration is Gmain + Greg / 4 +
Dmain + Dreg / 16, each with its optimizer step, and the moving average. Both ways take turns and the
fastest run counts.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import click
import torch
from PIL import Image
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from benchmarks import common
from heads.dataset import sample_camera_path
from torch_utils import misc
from torch_utils.ops import kernels
from training.batching import real_batch
from training.config import TrainConfig
from training.data.archive import dataset_json
from training.data.dataset import batches
from training.presets import PRESETS
from training.training_loop import Trainer
from training.volumetric_rendering.renderer import RendererConfig

_SHOWN = 8  # operators of a profile
_CONFIGS = ('golden-small', *PRESETS)


def build_config(cfg: str, data: str, batch: int, precision: str) -> TrainConfig:
    """Returns a preset, or the small configuration of the golden tensors, in the given precision."""
    config = PRESETS['pv3d-128' if cfg == 'golden-small' else cfg](data)
    parts = {name: getattr(config, name) for name in ('generator', 'd_image', 'd_video')}
    if cfg == 'golden-small':
        widths = {'channel_base': 4096, 'channel_max': 64}
        parts = {name: dataclasses.replace(part, **widths) for name, part in parts.items()}
        renderer = RendererConfig(resolution=16, depth_samples=12, importance_samples=12)
        parts['generator'] = dataclasses.replace(parts['generator'], plane_resolution=256, renderer=renderer)
    parts = {name: dataclasses.replace(part, precision=precision) for name, part in parts.items()}
    return dataclasses.replace(config, batch=batch, workers=0, **parts)


class Bench:
    """A trainer on random images, and its parts to time."""

    def __init__(self, cfg: str, batch: int, device: str, precision: str, folder: str) -> None:
        data = str(Path(folder, 'data'))
        config = build_config(cfg, data, batch, precision)
        write_noise(data, config.generator.resolution)
        misc.set_float32_precision(config.float32_precision)
        self.device = device
        self.trainer = Trainer(config, Path(folder, 'run'), torch.device(device))
        first = next(batches(self.trainer.dataset, seed=0, start=0, batch=batch))
        self.real = real_batch(first, self.trainer.device)

    def generate(self) -> None:
        """The generator's forward pass, two frames per clip, as videos are made."""
        G, t, c = self.trainer.G_ema, self.real.t.flatten(), self.real.c.flatten(0, 1)
        codes = G.draw_codes(len(t), torch.Generator(c.device).manual_seed(0))
        with torch.no_grad():
            G(*codes, t, c)

    def parts(self) -> dict[str, tuple[float, Callable[[], object]]]:
        """What is timed, by name: its frequency in an iteration, and how to run it."""
        trainer = self.trainer
        found = {'generator forward': (0.0, self.generate)}
        for phase in trainer.phases:
            found[phase.name] = 1 / phase.interval, lambda p=phase: trainer.run_phase(p, self.real)
        found['moving average'] = 1.0, lambda: misc.update_ema(trainer.G_ema, trainer.networks.G, 0.99)
        return found

    def measure(self, run: Callable[[], object], memory: bool) -> tuple[float, int]:
        """Returns the seconds that `run` takes and the peak of memory in bytes.

        The time of a call that measures memory does not count, because its pages have to be cleared again.
        """
        if memory:
            common.reset_peak(self.device)
        return common.timed(self.device, run), common.peak(self.device) if memory else 0


def write_noise(folder: str, resolution: int) -> None:
    """Writes a data set of two clips of random cameras and noise."""
    g = torch.Generator().manual_seed(0)
    labels = []
    for clip in range(2):
        Path(folder, f'{clip:06d}').mkdir(parents=True, exist_ok=True)  # a first try may have failed
        for i, c in enumerate(sample_camera_path(clip, 16)):
            name = f'{clip:06d}/{i:05d}.jpg'
            pixels = torch.randint(256, (resolution, resolution, 3), dtype=torch.uint8, generator=g)
            Image.fromarray(pixels.numpy()).save(Path(folder, name))
            labels.append([name, c.tolist()])
    Path(folder, 'dataset.json').write_bytes(dataset_json(resolution, 25.0, labels, {}))


def compare(bench: Bench, ways: list[str], repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {way: {part: seconds and bytes}}; the first turn of each warms up."""
    found = {way: {} for way in ways}
    for turn in range(repeats + 1):
        for way in ways:
            os.environ[kernels.ENVIRONMENT] = way
            kernels.forget()
            for name, (_, run) in bench.parts().items():
                seconds, bytes_ = bench.measure(run, memory=turn == 0)
                best = found[way].setdefault(name, {'seconds': seconds, 'peak_bytes': bytes_})
                if turn > 0:  # the first one warms up, and counts for memory alone
                    best['seconds'] = seconds if turn == 1 else min(best['seconds'], seconds)
    for parts in found.values():
        frequencies = {name: frequency for name, (frequency, _) in bench.parts().items()}
        parts['iteration'] = {
            'seconds': sum(frequencies[name] * part['seconds'] for name, part in parts.items()),
            'peak_bytes': max(part['peak_bytes'] for part in parts.values()),
        }
    return found


class Share(NamedTuple):
    """What one operator, or on CUDA one kernel, takes of a phase."""

    name: str
    count: int
    seconds: float


def profiled(device: str, run: Callable[[], object]) -> list[Share]:
    """Returns what a call spends its time in, the largest first; on CUDA kernels alone."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == 'cuda' else []
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        common.synchronize(device)
    return shares(profiler.key_averages(), device)


def shares(averages: Iterable[FunctionEventAvg], device: str) -> list[Share]:
    """Turns a profile into shares.

    On CUDA an operator carries the time of its kernels, and a range that somebody has marked that of
    everything in it: only the kernels themselves are counted.
    """
    if device == 'cuda':
        kernels_ = (e for e in averages if e.device_type == DeviceType.CUDA and not e.is_user_annotation)
        found = [Share(e.key, e.count, e.self_device_time_total / 1e6) for e in kernels_]
    else:
        found = [Share(e.key, e.count, e.self_cpu_time_total / 1e6) for e in averages]
    return sorted(found, key=lambda share: share.seconds, reverse=True)


def profile(bench: Bench) -> None:
    """Prints which operators a phase spends its time in."""
    os.environ[kernels.ENVIRONMENT] = 'auto'
    kernels.forget()
    for name, (frequency, run) in bench.parts().items():
        found = profiled(bench.device, run)
        total = sum(share.seconds for share in found)
        top = ', '.join(f'{share.name} {share.seconds / total:.0%}' for share in found[:_SHOWN])
        click.echo(f'{name} ({frequency:.3g} an iteration): {top}')


def _show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    for name in found['auto']:
        line = f'{name:18}'
        for way, parts in found.items():
            line += f'  {way} {parts[name]["seconds"]:8.3f} s {parts[name]["peak_bytes"] / 2**30:6.2f} GiB'
        if 'ref' in found:
            line += f'  {found["ref"][name]["seconds"] / found["auto"][name]["seconds"]:5.2f}x faster'
        click.echo(line)


@click.command(context_settings={'show_default': True})
@click.option('--cfg', type=click.Choice(_CONFIGS), default='pv3d-128')
@click.option('--batch', type=click.IntRange(1), default=1, help='clips')
@click.option('--device', type=click.Choice(['cpu', 'cuda']), default='cpu')
@click.option('--precision', type=click.Choice(['fp32', 'fp16', 'bf16']), default='fp32')
@click.option('--repeats', type=click.IntRange(1), default=1)
@click.option('--reference/--no-reference', default=True, help='plain PyTorch as well')
@click.option('--profile', 'profiling', is_flag=True, help='which operators the time goes into')
@click.option('--json', 'file', type=click.Path(dir_okay=False), help='where to write the figures')
def main(repeats: int, reference: bool, profiling: bool, file: str | None, **options: str | int) -> None:
    """Times a training iteration; OMP_NUM_THREADS=1 uses one thread, and so on."""
    misc.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(**options, folder=folder)
        found = compare(bench, ['auto', 'ref'] if reference else ['auto'], repeats)
        if profiling:
            profile(bench)
    _show(found)
    del options['device']
    common.write_report(file, common.machine(bench.device) | options | {'ways': found})


if __name__ == '__main__':
    main()
