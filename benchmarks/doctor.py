"""Reports what is installed, which implementation each operator uses and why, and how exact and fast it is.

    python -m benchmarks.doctor

Operators are called as the networks call them: with impl='auto', in the types and layouts that features have
on this machine. They must agree with the reference in values, first and second derivatives.
"""

import math
import os
import platform
import sys
import warnings
from importlib import metadata

import click
import torch
from torch import Tensor

from benchmarks.ops import Case, Sizes, cases, measure
from torch_utils.misc import seeded_generator, set_float32_precision
from torch_utils.ops import build, kernels, triplane_render
from training.networks.layers import cast
from training.volumetric_rendering.fused import DecoderWeights, Rays, Spec, integrate

_PACKAGES = ('torch', 'torchvision', 'numpy', 'ninja')
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}  # relative to the largest value
_LOSS = 2**-6  # factor that keeps second derivatives inside the range of float16
_REPEATS = 10  # of a time measurement
_SAMPLES, _CHANNELS = 24, 32  # of rays and of planes
# what networks call; the others are parts of these
_FEATURE_OPS = ('bias_act', 'conv2d_resample, down', 'modulated_conv2d', 'modulated_conv2d, up')
_FLOAT32_OPS = ('upfirdn2d, doubling', 'triplane_render')  # of images and planes, which stay float32


def examples(n: int, size: int, device: str, precision: str) -> list[Case]:
    """Returns the operators that networks call on features of a precision, on images of size x size."""
    x = cast(torch.zeros((1, 2, 2, 2), device=device), precision, torch.zeros(1))
    last = x.is_contiguous(memory_format=torch.channels_last)
    sizes = Sizes(n=n, channels=64, size=size, dtype=x.dtype, last=last)
    names = _FEATURE_OPS + (_FLOAT32_OPS if x.dtype == torch.float32 else ())
    return [case for case in (*cases(sizes, device), renderer(sizes, device)) if case.name in names]


def renderer(sizes: Sizes, device: str) -> Case:
    """Returns the rendering of planes of size x size along eight times as many rays."""
    g = seeded_generator('cpu', 0, 1)
    c, rays = _CHANNELS, 8 * sizes.size
    layout = torch.channels_last if sizes.last else torch.contiguous_format
    planes = torch.randn((1, 3 * c, sizes.size, sizes.size), generator=g).to(memory_format=layout)
    shapes = ((64, c), (64,), (1 + c, 64), (1 + c,))
    decoder = [torch.randn(shape, generator=g) / 8 for shape in shapes]
    directions = torch.nn.functional.normalize(
        torch.randn((1, rays, 3), generator=g) * 0.1 - torch.eye(3)[2], dim=2
    )
    depths = 2.2 + (torch.arange(_SAMPLES) + torch.rand((1, rays, _SAMPLES), generator=g)) / _SAMPLES
    where = Rays(torch.tensor([0.0, 0.0, 2.7]).expand(1, rays, 3), directions, depths)
    where = Rays(*(x.to(device, sizes.dtype) for x in where))

    def run(impl: str, planes: Tensor, *decoder: Tensor) -> Tensor:
        spec = Spec('xy_xz_yz', 1.0, 0.001)
        planes = planes.unflatten(1, (3, c))
        return torch.cat(integrate(planes, where, DecoderWeights(*decoder), spec, impl), dim=2)

    inputs = [x.to(device, sizes.dtype).requires_grad_() for x in (planes, *decoder)]
    return Case('triplane_render', run, inputs)


def errors(case: Case, least: torch.dtype = torch.float32) -> list[float]:
    """Returns how far value, first and second derivatives are from the reference, relative to the largest.

    least: the reference computes in this type, or in that of the inputs where it is wider.
    """
    wide = [x.detach().to(torch.promote_types(x.dtype, least)).requires_grad_() for x in case.inputs]
    found = zip(_derivatives(case, 'auto', case.inputs), _derivatives(case, 'ref', wide), strict=True)
    return [max(map(_difference, ours, reference)) for ours, reference in found]


def _derivatives(case: Case, impl: str, inputs: list[Tensor]) -> list[list[Tensor]]:
    y = case.run(impl, *inputs)
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    weights = torch.randn(y.shape, generator=seeded_generator('cpu', 0, 2)).to(wide)
    loss = (wide.square() * weights).sum() * _LOSS
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    squared = sum(g.to(wide.dtype).square().sum() for g in first)
    return [[y], list(first), list(torch.autograd.grad(squared, inputs, materialize_grads=True))]


def _difference(ours: Tensor, reference: Tensor) -> float:
    """Returns the largest difference, relative to the largest value; infinite for nan."""
    error = ((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-30)).item()
    return math.inf if math.isnan(error) else error


def implementation(case: Case) -> str:
    """Names what impl='auto' means for a case."""
    x = case.inputs[0]
    used = kernels.has_kernels(x, 'auto')
    if case.name == 'triplane_render':
        used = triplane_render.usable(x.unflatten(1, (3, -1)), _SAMPLES, _CHANNELS)
    return 'kernel' if used else 'reference'


def machine() -> list[str]:
    """Returns lines about what is installed."""
    found = {d.name: d.version for d in metadata.distributions()}
    lines = [f'python      {platform.python_version()} on {platform.platform()}']
    lines += [f'{p:<11s} {found.get(p, "not installed")}' for p in _PACKAGES]
    spins = os.environ.get('GOMP_SPINCOUNT', 'as libgomp decides')
    lines.append(f'threads     {torch.get_num_threads()} of {os.cpu_count()} cores, GOMP_SPINCOUNT {spins}')
    lines.append(f'cuda        {torch.version.cuda or "torch is built without it"}')
    gpus = range(torch.cuda.device_count())
    lines += [f'gpu {i}       {torch.cuda.get_device_name(i)}' for i in gpus] or ['gpu         none']
    for target in ('cpu', 'cuda'):
        try:
            chain = build.toolchain(target)
            lines.append(f'{target:<4s} built by {chain.command[0]}: {chain.version[:70]}')
        except build.BuildError as err:
            lines.append(f'{target:<4s} cannot be built: {err.reason}')
    return [*lines, f'cache       {build.cache_folder()}']


def examine(device: str) -> bool:
    """Prints a table of all operators on a device; False if something is wrong."""
    if os.environ.get(kernels.ENVIRONMENT) == 'ref':
        print(f'{device}: reference, because {kernels.ENVIRONMENT}=ref is set')
        return True
    try:
        kernels.load(device)
    except build.BuildError as err:
        print(f'{device}: reference\n{err}')
        return False
    print(f'{device}: largest difference from the float32 reference; time of forward and backward')
    print(f'{"":50s}{"value":>12s}{"1st deriv.":>12s}{"2nd deriv.":>12s}')
    good, large = True, 64 if device == 'cpu' else 256
    for precision in ('fp32',) if device == 'cpu' else ('fp32', 'fp16', 'bf16'):
        pairs = zip(*(examples(2, size, device, precision) for size in (16, large)), strict=True)
        good &= all([_examine_case(*pair, device) for pair in pairs])  # prints all
    return good


def _examine_case(small: Case, large: Case, device: str) -> bool:
    """Prints how exact an operator is on a small example and how fast on a large one; False if wrong."""
    x, found, speed = small.inputs[0], errors(small), measure(large, device, _REPEATS)
    good = max(found) < _TOLERANCE[x.dtype]
    layout = 'contiguous' if x.is_contiguous() else 'channels last'
    what = f'{str(x.dtype).removeprefix("torch.")}, {layout}'
    times = f'{speed["ours_both"] * 1e3:.2f} ms, {speed["ratio"]:.1f} x as fast as the reference'
    print(
        f'  {small.name:22s}{what:26s}{"".join(f"{e:12.1e}" for e in found)}   '
        f'{implementation(large)}, {times}{"" if good else "   WRONG"}'
    )
    return good


@click.command(context_settings={'help_option_names': ['-h', '--help']})
def main() -> None:
    """Reports what is installed, and how exact and fast the kernels are on this machine; takes a minute.

    The exit code is 0 when all kernels that this machine should have build and agree with the reference.
    """
    sys.exit(report())


def report() -> int:
    """Prints the page; returns the exit code."""
    set_float32_precision()
    print('\n'.join(machine()) + '\n')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the page explains
        healthy = all([examine(d) for d in ('cpu', *(['cuda'] if torch.cuda.is_available() else []))])
    print('\nhealthy' if healthy else '\nnot healthy: training works, but slower or not exactly; see above')
    return 0 if healthy else 1


if __name__ == '__main__':
    main()
