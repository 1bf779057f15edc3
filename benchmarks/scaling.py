"""How cost grows with samples, rays, frames and clips: figures and a plot that should show straight lines.

`python -m benchmarks.scaling --plot docs/scaling.png`.
"""

import dataclasses
import functools
import tempfile

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import common
from benchmarks.render import Scene, Sizes
from benchmarks.step import Bench
from torch_utils.misc import prepare_process

# one varies, the others stay; rays along a side, samples of each of the two passes
_RENDER = {
    'samples': ('samples per ray', lambda s: 2 * s.samples, [12, 24, 48, 96]),
    'rays': ('rays', lambda s: s.rays**2, [32, 45, 64, 78, 90]),
    'frames': ('frames', lambda s: s.frames, [1, 2, 3, 4]),
}
_BATCHES = [1, 2, 4, 8]


def rendering(base: Sizes, field: str, values: list[int], repeats: int) -> list[float]:
    """Returns seconds of rendering with gradients for each value of a field of Sizes."""
    found = []
    for value in tqdm(values, field, leave=False):
        scene = Scene(dataclasses.replace(base, **{field: value}))
        render = functools.partial(scene.render, True)
        render()
        found.append(min(common.timed(base.device, render) for _ in range(repeats)))
    return found


def iterations(device: str, repeats: int) -> list[float]:
    """Returns seconds of an iteration (Gmain and Dmain) of the small golden configuration for each batch."""
    found = []
    for batch in tqdm(_BATCHES, 'clips', leave=False):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench('golden-small', batch, device, 'fp32', folder)
            runs = [run for name, (_, run) in bench.parts().items() if name in ('Gmain', 'Dmain')]
            turns = [sum(common.timed(device, run) for run in runs) for _ in range(repeats + 1)]
            found.append(min(turns[1:]))
    return found


def draw(curves: dict[str, tuple[list[float], list[float]]], title: str, file: str) -> None:
    """Draws seconds against each quantity, with the line that fits best."""
    figure = Figure(figsize=(3.2 * len(curves), 3), layout='constrained')
    axes = figure.subplots(1, len(curves))
    for axis, (name, (x, y)) in zip(axes, curves.items(), strict=True):
        slope, offset = np.polyfit(x, y, 1)
        axis.plot([0, max(x)], [offset, offset + slope * max(x)], color='0.7')
        axis.plot(x, y, 'o')
        axis.set(xlabel=name, ylim=(0, None), xlim=(0, None))
    axes[0].set_ylabel('seconds, forward and backward')
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


@click.command()
@click.option('--device', type=click.Choice(['cpu', 'cuda']), default='cpu', show_default=True)
@click.option('--repeats', type=click.IntRange(1), default=3, show_default=True)
@click.option('--plot', type=click.Path(dir_okay=False), help='image to write')
@click.option('--json', 'file', type=click.Path(dir_okay=False), help='where to write the figures')
def main(device: str, repeats: int, plot: str | None, file: str | None) -> None:
    """Measures how cost grows."""
    prepare_process()
    base = Sizes(frames=1, rays=48, samples=24, channels=32, planes=256, device=device, backward=True)
    curves = {}
    for field, (name, count, values) in _RENDER.items():
        x = [count(dataclasses.replace(base, **{field: value})) for value in values]
        curves[name] = x, rendering(base, field, values, repeats)
    curves['clips per iteration'] = _BATCHES, iterations(device, repeats)
    for name, (x, y) in curves.items():
        click.echo(f'{name}: ' + ', '.join(f'{a} {b:.3f} s' for a, b in zip(x, y, strict=True)))
    machine = common.machine(device)
    if plot:
        draw(curves, f'{machine["device"]}, {torch.get_num_threads()} threads', plot)
    common.write_report(file, machine | {'curves': curves})


if __name__ == '__main__':
    main()
