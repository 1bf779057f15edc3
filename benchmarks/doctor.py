"""Says what is installed, which implementation each operator uses and why, and how right and fast it is.

    python -m benchmarks.doctor

The exit code is 0 when all kernels that this machine should have build, and agree with the reference in
values, first and second derivatives, in all layouts and types that they know, and 1 otherwise.
"""

import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from torch_utils.misc import seeded_generator, set_float32_precision
from torch_utils.ops import build, kernels, triplane_render
from torch_utils.ops.bias_act import Modulation, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import Epilogue, modulated_conv2d
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d, upsample2d

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}  # relative to the largest value
_LOSS = 2**-6  # factor that keeps second derivatives inside the range of float16
_HALF = (torch.float16, torch.bfloat16)
_SECONDS = 0.6  # that a measurement takes
_ROUNDS = 8  # that it has at least
_WARM_UP = 3  # rounds that do not count: the first of a process takes far longer
_PACKAGES = ('torch', 'torchvision', 'numpy', 'ninja')


class Case(NamedTuple):
    """An operator with example inputs, each of which gets a gradient."""

    name: str
    run: Callable[..., Tensor]  # (impl, *inputs) -> output
    shapes: tuple[tuple[int, ...], ...]
    derivatives: int = 2  # order up to which the kernels have them
    half: bool = True  # whether kernels know half precision


class Variant(NamedTuple):
    """Type and layout of the first input of a case."""

    name: str
    dtype: torch.dtype
    layout: torch.memory_format


def variants(case: Case, device: str) -> list[Variant]:
    """Returns the types and layouts that the kernels of a case know, besides float64."""
    dtypes = [torch.float32, *(_HALF if device == 'cuda' and case.half else ())]
    layouts = {'': torch.contiguous_format, ', channels last': torch.channels_last}
    return [
        Variant(f'{dtype}'.removeprefix('torch.') + name, dtype, layout)
        for dtype in dtypes
        for name, layout in layouts.items()
    ]


def cases(size: int, device: str) -> list[Case]:
    """Returns an example of each operator on pictures of size x size."""
    f = make_filter().to(device)
    noise = torch.randn((1, 1, size, size), generator=seeded_generator('cpu', 0, 1)).to(device)
    away = torch.tensor([8.0, -8.0], device=device).repeat(32)

    def layer(impl: str, x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
        # no sum near the kink of lrelu, where rounding before it decides about the derivative behind it
        bias = bias + away.to(bias.dtype)
        epilogue = Epilogue(bias, 'lrelu', 256.0, noise.to(strength.dtype), strength[0])
        return modulated_conv2d(x, weight, styles, epilogue=epilogue, impl=impl)

    def modulated(impl: str, x: Tensor, scale: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
        # the backward divides by the scale, so that one near zero would magnify what rounding does
        modulation = Modulation(0.5 + scale.square(), noise.to(strength.dtype), strength[0])
        return bias_act(x, bias, 'lrelu', clamp=256.0, modulation=modulation, impl=impl)

    def filtered(impl: str, x: Tensor) -> Tensor:
        return upfirdn2d(x, f, padding=(2, 1, 2, 1), impl=impl)

    def halved(impl: str, x: Tensor, weight: Tensor) -> Tensor:
        return conv2d_resample(x, weight.to(x.dtype), f, down=2, impl=impl)

    picture, w, c = (2, 64, size, size), (64, 64, 3, 3), (64,)
    return [
        Case('bias_act', lambda impl, x, b: bias_act(x, b, 'lrelu', impl=impl), (picture, c)),
        Case('bias_act with noise', modulated, (picture, (2, 64), c, (1,))),
        Case('upfirdn2d, filter', filtered, (picture,)),
        Case('upfirdn2d, doubling', lambda impl, x: upsample2d(x, f, impl=impl), (picture,)),
        Case('conv2d_resample, halving', halved, (picture, w)),
        Case('modulated_conv2d', layer, (picture, w, (2, 64), c, (1,))),
    ]


def renderer(size: int, device: str) -> Case:
    """Returns the tri-plane renderer as a case: planes of size x size, eight times as many rays.

    Its kernels have first derivatives; the second are those of stock operators, in training.
    """
    c, features, samples, rays = 32, 32, 24, 8 * size
    hidden = triplane_render.HIDDEN
    drawn = torch.randn((1, rays, 3), generator=seeded_generator('cpu', 0, 4)) * 0.1
    directions = torch.nn.functional.normalize(drawn - torch.eye(3)[2], dim=2)
    jitter = torch.rand((1, rays, samples), generator=seeded_generator('cpu', 0, 5))
    depths = 2.2 + (torch.arange(samples) + jitter) / samples
    origins = torch.tensor([0.0, 0.0, 2.7]).expand(1, rays, 3)
    lines = [x.to(device) for x in (origins, directions, depths)]

    def run(impl: str, planes: Tensor, params: Tensor) -> Tensor:
        planes, (o, d, t) = planes.unflatten(1, (3, c)), (x.to(planes.dtype) for x in lines)
        params = params / 8
        fused = impl != 'ref' and triplane_render.usable(planes, samples, features, impl)
        seen, weights = (_Render.apply if fused else _render_plain)(planes, params, o, d, t)
        return torch.cat([seen, weights], dim=2)

    params = hidden * (c + 1) + (1 + features) * (hidden + 1)
    return Case('tri-plane rendering', run, ((1, 3 * c, size, size), (params,)), derivatives=1, half=False)


_AXES = ((0, 1), (0, 2), (1, 2))  # coordinates that the three planes see
_SCALE, _MARGIN, _DENSITY_BIAS = 2.0, 0.001, -1.0


class _Render(torch.autograd.Function):
    """The renderer's kernels: features [N, R, F] and weights [N, R, S - 1] of rays."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, params: Tensor, *rays: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(planes, params, *rays)
        axes = sum(axis << (2 * i) for i, axis in enumerate(axis for pair in _AXES for axis in pair))
        ctx.numbers = (axes, _SCALE, _MARGIN, _DENSITY_BIAS)
        hidden = triplane_render.HIDDEN
        features = (len(params) - hidden * (planes.shape[2] + 1)) // (hidden + 1) - 1
        return torch.ops.pv3d.triplane_render(planes, params, *rays, features, *ctx.numbers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.ops.pv3d.triplane_render_grad(*ctx.saved_tensors, *grads, *ctx.numbers)
        return (*found, None, None, None)


def _render_plain(
    planes: Tensor, params: Tensor, origins: Tensor, directions: Tensor, depths: Tensor
) -> tuple[Tensor, Tensor]:
    """What the renderer's kernels compute, in stock operators."""
    hidden, c = triplane_render.HIDDEN, planes.shape[2]
    outputs = (len(params) - hidden * (c + 1)) // (hidden + 1)
    w1, b1, w2, b2 = params.split([hidden * c, hidden, outputs * hidden, outputs])
    points = (origins[:, :, None] + depths[..., None] * directions[:, :, None]) * _SCALE
    found = [
        torch.nn.functional.grid_sample(planes[:, p], points[..., pair], align_corners=False)
        for p, pair in enumerate(_AXES)
    ]
    x = (sum(found) / 3).movedim(1, 3)  # [N, R, S, C]
    x = torch.nn.functional.softplus(x @ w1.view(hidden, c).t() + b1) @ w2.view(outputs, hidden).t() + b2
    density, colors = x[..., 0], x[..., 1:].sigmoid() * (1 + 2 * _MARGIN) - _MARGIN
    density = torch.nn.functional.softplus((density[..., 1:] + density[..., :-1]) / 2 + _DENSITY_BIAS)
    alpha = 1 - torch.exp(-density * depths.diff(dim=2))
    passed = torch.cumprod(1 - alpha + 1e-10, dim=2)
    weights = alpha * torch.cat([torch.ones_like(passed[..., :1]), passed[..., :-1]], dim=2)
    return (weights[..., None] * (colors[:, :, 1:] + colors[:, :, :-1]) / 2).sum(dim=2), weights


def errors(
    case: Case,
    device: str,
    dtype: torch.dtype = torch.float64,
    layout: torch.memory_format = torch.contiguous_format,
) -> list[float]:
    """Returns how far value, first and second derivatives are from the reference, relative to the largest.

    In half precision the first input is so, the others are float32, and the reference is that of float32.
    """
    inputs = _inputs(case, device, dtype, layout)
    wider = [x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_() for x in inputs]
    found = [_derivatives(case, 'auto', inputs), _derivatives(case, 'ref', wider)]
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


def _derivatives(case: Case, impl: str, inputs: list[Tensor]) -> list[list[Tensor | None]]:
    y = case.run(impl, *inputs)
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    weights = torch.randn(y.shape, generator=seeded_generator('cpu', 0, 2)).to(wide)
    more = case.derivatives > 1
    first = torch.autograd.grad((wide.square() * weights).sum() * _LOSS, inputs, create_graph=more)
    if not more:
        return [[y], list(first)]
    squared = sum(g.to(wide.dtype).square().sum() for g in first)
    second = torch.autograd.grad(squared, inputs, allow_unused=True)
    return [[y], list(first), list(second)]


def _inputs(case: Case, device: str, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    drawn = [torch.randn(s, generator=seeded_generator('cpu', 0, 3, i)) for i, s in enumerate(case.shapes)]
    first, *small = (x.to(device, torch.promote_types(dtype, torch.float32)) for x in drawn)
    first = first.to(dtype).contiguous(memory_format=layout)
    return [x.requires_grad_() for x in (first, *small)]


def speedup(case: Case, device: str, variant: Variant) -> float:
    """Returns how many times faster than the reference a forward and a backward pass are.

    Both take turns and the fastest pass of each counts, so that other load on the machine disturbs little.
    """
    inputs = _inputs(case, device, variant.dtype, variant.layout)
    gradients = {impl: torch.ones_like(case.run(impl, *inputs)) for impl in ('auto', 'ref')}
    rounds: list[dict[str, float]] = []
    end = math.inf
    while len(rounds) < _WARM_UP + _ROUNDS or time.perf_counter() < end:
        if len(rounds) == _WARM_UP:
            end = time.perf_counter() + _SECONDS
        rounds.append({impl: _pass_seconds(case, impl, inputs, g) for impl, g in gradients.items()})
    ours, reference = (min(r[impl] for r in rounds[_WARM_UP:]) for impl in gradients)
    return reference / ours


def _pass_seconds(case: Case, impl: str, inputs: list[Tensor], gradient: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(case.run(impl, *inputs), inputs, gradient)
    if gradient.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
            chain = build.toolchain(target)
            lines.append(f'{target:<4s} built by {chain.command[0]}: {chain.version[:70]}')
        except build.BuildError as err:
            lines.append(f'{target:<4s} built by nothing: {err.reason}')
    return [*lines, f'cache       {build.cache_folder()}']


def examine(device: str) -> bool:
    """Prints a table of all operators on a device; False if something is wrong."""
    environment = os.environ.get(kernels.ENVIRONMENT, 'auto')
    if environment == 'ref':
        print(f'{device}: stock operators, because {kernels.ENVIRONMENT}=ref is set')
        return True
    try:
        kernels.load(device)
    except build.BuildError as err:
        print(f'{device}: stock operators\n{err}')
        return False
    print(f'{device}: kernels; largest relative difference from the reference (float32)')
    print(f'  {"":32s}{"value":>9s}{"1st deriv.":>12s}{"2nd deriv.":>12s}   speed, forward and backward')
    large = 64 if device == 'cpu' else 256
    checked = [*cases(16, device), renderer(16, device)], [*cases(large, device), renderer(large, device)]
    return all([_examine_case(*pair, device) for pair in zip(*checked, strict=True)])  # prints all


def _examine_case(small: Case, large: Case, device: str) -> bool:
    """Prints how right kernels are on a small example and how fast on a large one; False if wrong."""
    healthy = True
    print(f'  {small.name}')
    for variant in variants(small, device):
        found = errors(small, device, variant.dtype, variant.layout)
        good = all(e < _TOLERANCE[variant.dtype] for e in found)  # nan is not
        numbers = (
            f'{found[0]:9.1e}' + ''.join(f'{e:12.1e}' for e in found[1:]) + f'{"-":>12s}' * (3 - len(found))
        )
        speed = f'{speedup(large, device, variant):.1f} x the reference'
        print(f'    {variant.name:30s}{numbers}   {speed}{"" if good else "   WRONG"}')
        healthy &= good
    return healthy


@click.command(context_settings={'help_option_names': ['-h', '--help']})
def main() -> None:
    """Says what is installed, and how right and fast the kernels are on this machine; takes a minute.

    The exit code is 0 when all kernels that this machine should have build and agree with the reference.
    """
    sys.exit(report())


def report() -> int:
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
    main()
