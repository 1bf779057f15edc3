"""Says what is installed, which implementation each operator uses and why, and how right and fast it is.

    python -m torch_utils.doctor

The exit code is 0 when all kernels that this machine should have build, agree with the reference in values,
first and second derivatives, and 1 otherwise.
"""

import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import torch
from torch import Tensor

from torch_utils import custom_ops
from torch_utils.misc import seeded_generator, set_float32_precision
from torch_utils.ops.bias_act import Modulation, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import Epilogue, modulated_conv2d
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d, upsample2d

_TOLERANCE = 1e-4  # of float32, relative to the largest value
_SECONDS = 0.3  # that a measurement takes
_WARM_UP = 3  # passes that do not count: the first of a process takes far longer
_PACKAGES = ('torch', 'torchvision', 'numpy', 'ninja')


class Case(NamedTuple):
    """An operator with example inputs, each of which gets a gradient."""

    name: str
    run: Callable[..., Tensor]  # (impl, *inputs) -> output
    shapes: tuple[tuple[int, ...], ...]


def cases(size: int, device: str) -> list[Case]:
    """Returns an example of each operator on pictures of size x size."""
    f = make_filter().to(device)
    noise = torch.randn((1, 1, size, size), generator=seeded_generator('cpu', 0, 1)).to(device)

    def layer(impl: str, x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
        epilogue = Epilogue(bias, 'lrelu', 256.0, noise.to(strength.dtype), strength[0])
        return modulated_conv2d(x, weight, styles, epilogue=epilogue, impl=impl)

    def modulated(impl: str, x: Tensor, scale: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
        modulation = Modulation(scale, noise.to(strength.dtype), strength[0])
        return bias_act(x, bias, 'lrelu', clamp=256.0, modulation=modulation, impl=impl)

    def filtered(impl: str, x: Tensor) -> Tensor:
        return upfirdn2d(x, f, padding=(2, 1, 2, 1), impl=impl)

    def halved(impl: str, x: Tensor, weight: Tensor) -> Tensor:
        return conv2d_resample(x, weight, f, down=2, impl=impl)

    picture, w, c = (2, 64, size, size), (64, 64, 3, 3), (64,)
    return [
        Case('bias_act', lambda impl, x, b: bias_act(x, b, 'lrelu', impl=impl), (picture, c)),
        Case('bias_act with noise', modulated, (picture, (2, 64), c, (1,))),
        Case('upfirdn2d, filter', filtered, (picture,)),
        Case('upfirdn2d, doubling', lambda impl, x: upsample2d(x, f, impl=impl), (picture,)),
        Case('conv2d_resample, halving', halved, (picture, w)),
        Case('modulated_conv2d', layer, (picture, w, (2, 64), c, (1,))),
    ]


def errors(case: Case, device: str, dtype: torch.dtype = torch.float64) -> list[float]:
    """Returns how far value, first and second derivatives are from the reference, relative to the largest."""
    found = [_derivatives(case, impl, device, dtype) for impl in ('auto', 'ref')]
    return [
        max(map(_difference, ours, reference), key=_nan_first) for ours, reference in zip(*found, strict=True)
    ]


def _difference(ours: Tensor | None, reference: Tensor | None) -> float:
    """Returns the largest difference, relative to the largest value; infinite if only one of both exists."""
    if ours is None or reference is None:
        return 0.0 if ours is reference else math.inf
    return ((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-30)).item()


def _nan_first(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _derivatives(case: Case, impl: str, device: str, dtype: torch.dtype) -> list[list[Tensor | None]]:
    inputs = _inputs(case, device, dtype)
    y = case.run(impl, *inputs)
    weights = torch.randn(y.shape, generator=seeded_generator('cpu', 0, 2)).to(y)
    first = torch.autograd.grad((y.square() * weights).sum(), inputs, create_graph=True)
    squared = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(squared, inputs, allow_unused=True)
    return [[y], list(first), list(second)]


def _inputs(case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    drawn = [torch.randn(s, generator=seeded_generator('cpu', 0, 3, i)) for i, s in enumerate(case.shapes)]
    return [x.to(device, dtype).requires_grad_() for x in drawn]


def seconds(case: Case, impl: str, device: str) -> float:
    """Returns the time of a forward and a backward pass, the best of several."""
    inputs = _inputs(case, device, torch.float32)
    gradient = torch.ones_like(case.run(impl, *inputs))
    times: list[float] = []
    while len(times) <= _WARM_UP or sum(times[_WARM_UP:]) < _SECONDS:
        start = time.perf_counter()
        torch.autograd.grad(case.run(impl, *inputs), inputs, gradient)
        if device != 'cpu':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[_WARM_UP:])


def machine() -> list[str]:
    """Returns lines that say what is installed."""
    lines = [f'python      {platform.python_version()} on {platform.platform()}']
    for package in _PACKAGES:
        try:
            lines.append(f'{package:<11s} {metadata.version(package)}')
        except metadata.PackageNotFoundError:
            lines.append(f'{package:<11s} not installed')
    lines.append(f'threads     {torch.get_num_threads()} of {os.cpu_count()} cores')
    lines.append(f'cuda        {torch.version.cuda or "torch is built without it"}')
    gpus = range(torch.cuda.device_count())
    lines += [f'gpu {i}       {torch.cuda.get_device_name(i)}' for i in gpus] or ['gpu         none']
    for target in ('cpu', 'cuda'):
        try:
            chain = custom_ops.toolchain(target)
            lines.append(f'{target:<4s} built by {chain.command[0]}: {chain.version[:70]}')
        except (custom_ops.BuildError, OSError) as err:
            lines.append(f'{target:<4s} built by nothing: {str(err).splitlines()[0].rpartition(": ")[2]}')
    return [*lines, f'cache       {custom_ops.cache_folder()}']


def examine(device: str) -> bool:
    """Prints a table of all operators on a device; False if something is wrong."""
    environment = os.environ.get(custom_ops.ENVIRONMENT, 'auto')
    if environment == 'ref':
        print(f'{device}: stock operators, because {custom_ops.ENVIRONMENT}=ref is set')
        return True
    try:
        custom_ops.load(device)
    except custom_ops.BuildError as err:
        print(f'{device}: stock operators\n{err}')
        return False
    print(f'{device}: kernels; largest relative difference from the reference, in float32')
    print(f'  {"":26s}{"value":>9s}{"1st":>9s}{"2nd":>9s}   speed, forward and backward')
    healthy = True
    for small, large in zip(cases(16, device), cases(64 if device == 'cpu' else 256, device), strict=True):
        found = errors(small, device, torch.float32)
        good = all(e < _TOLERANCE for e in found)  # nan is not
        ours, reference = (seconds(large, impl, device) for impl in ('auto', 'ref'))
        numbers = ''.join(f'{e:9.1e}' for e in found)
        speed = f'{reference / ours:.1f} x the reference'
        print(f'  {small.name:26s}{numbers}   {speed}{"" if good else "   WRONG"}')
        healthy &= good
    return healthy


def main() -> int:
    """Prints the page; returns the exit code."""
    set_float32_precision()
    print('\n'.join(machine()) + '\n')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the page says it all
        healthy = [examine(device) for device in ('cpu', *(['cuda'] if torch.cuda.is_available() else []))]
    print(
        '\nhealthy' if all(healthy) else '\nnot healthy: training works, but slower or not exactly; see above'
    )
    return 0 if all(healthy) else 1


if __name__ == '__main__':
    sys.exit(main())
