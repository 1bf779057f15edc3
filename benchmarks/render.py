"""Time and memory of the fused tri-plane renderer against the plain one, forward and backward, in one run.

`python -m benchmarks.render --json FILE`. Memory: growth of the peak of the process (CPU, each in a fresh
one) or of the allocator (CUDA). Runs of both take turns, and the fastest of each counts; with one thread on a
CPU it is the time of the processor, so that other load on the machine disturbs the ratio little.
"""

import dataclasses
import multiprocessing
import time

import click
import torch
from torch import Tensor

from benchmarks import common
from training.camera import orbit_label, unpack_label
from training.networks.decoder import MARGIN, Decoder
from training.volumetric_rendering.fused import Spec, fused_field
from training.volumetric_rendering.ray_sampler import camera_rays
from training.volumetric_rendering.renderer import RendererConfig, render_rays
from training.volumetric_rendering.triplane import sample_planes


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is rendered."""

    frames: int
    rays: int  # along a side
    samples: int  # coarse, and as many fine ones
    channels: int
    planes: int  # pixels along a side
    device: str
    backward: bool


class Scene:
    """Planes, decoder and rays of random content."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        shape = (sizes.frames, 3, sizes.channels, sizes.planes, sizes.planes)
        self.planes = torch.randn(shape, device=sizes.device)
        self.decoder = Decoder(sizes.channels, sizes.channels).to(sizes.device)
        label = torch.stack([orbit_label(0.1 * i, 0.1) for i in range(sizes.frames)])
        self.rays = [x.to(sizes.device) for x in camera_rays(*unpack_label(label), sizes.rays)]
        s = sizes.samples
        self.config = RendererConfig(resolution=sizes.rays, depth_samples=s, importance_samples=s)

    def render(self, fused: bool) -> None:
        """Renders, and takes gradients of planes and decoder if asked for."""
        with torch.set_grad_enabled(self.sizes.backward):
            planes = self.planes.detach().requires_grad_(self.sizes.backward)
            spec = Spec('xy_xz_yz', 1.0, MARGIN)

            def field(points: Tensor) -> tuple[Tensor, Tensor]:
                return self.decoder(sample_planes(planes, points, spec.axes, spec.box_warp))

            integrator = None
            if fused:
                samples = self.config.depth_samples + self.config.importance_samples
                integrator = fused_field(planes, self.decoder.weights(), spec, samples)
                if integrator is None:
                    raise click.ClickException('no kernels: see python -m benchmarks.doctor')
            out = render_rays(field, *self.rays, self.config, None, integrator)
            if self.sizes.backward:
                loss = out.features.square().mean() + out.depth.mean() + out.opacity.mean()
                torch.autograd.grad(loss, [planes, *self.decoder.parameters()])
        common.synchronize(self.sizes.device)


def peak_memory(sizes: Sizes, fused: bool, threads: int) -> int:
    """Returns by how many bytes the peak of memory grows while a frame is rendered."""
    torch.set_num_threads(threads)
    Scene(dataclasses.replace(sizes, rays=2, planes=8)).render(fused)  # libraries, threads
    scene = Scene(sizes)
    before = common.reset_peak(sizes.device)
    scene.render(fused)
    return common.peak(sizes.device) - before


def fastest(sizes: Sizes, repeats: int) -> dict[bool, float]:
    """Returns seconds of the plain (False) and the fused (True) renderer, which take turns."""
    scene = Scene(sizes)
    own_time = sizes.device == 'cpu' and torch.get_num_threads() == 1
    clock = time.process_time if own_time else time.perf_counter
    found = {False: [], True: []}
    for _ in range(repeats + 1):  # the first one warms up
        for fused, times in found.items():
            start = clock()
            scene.render(fused)
            times.append(clock() - start)
    return {fused: min(times[1:]) for fused, times in found.items()}


def measure(sizes: Sizes, repeats: int, threads: int) -> dict[str, float]:
    """Returns seconds and bytes of both renderers and how many times the fused one is better."""
    found = {}
    for fused, seconds in fastest(sizes, repeats).items():
        name = 'fused' if fused else 'plain'
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            found[f'{name}_bytes'] = pool.apply(peak_memory, (sizes, fused, threads))
        found[f'{name}_seconds'] = seconds
    found['time_ratio'] = found['plain_seconds'] / found['fused_seconds']
    return found | {'memory_ratio': found['plain_bytes'] / found['fused_bytes']}


@click.command(context_settings={'show_default': True})
@click.option('--device', type=click.Choice(['cpu', 'cuda']), default='cpu')
@click.option('--frames', type=click.IntRange(1), default=1)
@click.option('--rays', type=click.IntRange(2), default=64, help='along a side of the image')
@click.option('--samples', type=click.IntRange(4), default=48, help='coarse per ray, and as many fine ones')
@click.option('--channels', type=click.IntRange(1), default=32, help='of planes and of the image')
@click.option('--planes', type=click.IntRange(2), default=256, help='pixels along a side of a plane')
@click.option('--repeats', type=click.IntRange(1), default=3)
@click.option('--threads', type=click.IntRange(1), default=1)
@click.option('--json', 'file', type=click.Path(dir_okay=False), help='where to write the figures')
def main(device: str, repeats: int, threads: int, file: str | None, **options: int) -> None:
    """Compares the fused renderer with the plain one."""
    torch.set_num_threads(threads)
    report = common.machine(device) | options
    for name, backward in (('forward', False), ('forward and backward', True)):
        found = measure(Sizes(**options, device=device, backward=backward), repeats, threads)
        report[name] = found
        click.echo(
            f'{name}: {found["time_ratio"]:.2f}x faster ({found["plain_seconds"]:.3f} s -> '
            f'{found["fused_seconds"]:.3f} s), {found["memory_ratio"]:.2f}x less memory '
            f'({found["plain_bytes"] / 2**20:.0f} MiB -> {found["fused_bytes"] / 2**20:.0f} MiB)'
        )
    common.write_report(file, report)


if __name__ == '__main__':
    main()
