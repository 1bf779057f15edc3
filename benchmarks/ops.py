"""Time of every operator with our kernels against plain PyTorch, forward and backward, in one run.

`python -m benchmarks.ops`. Both take turns and the fastest run of each counts. Bandwidth: bytes that an
operator has to read and write at least, forward, in the time it took; compare it with that of a copy.
"""

import dataclasses
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from benchmarks import common
from torch_utils.misc import keep_freed_memory, set_float32_precision
from torch_utils.ops.bias_act import Modulation, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import Epilogue, modulated_conv2d
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d

_TYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator at work: run(impl) -> result, from the tensors whose gradients are taken."""

    name: str
    run: Callable[[str], Tensor]
    inputs: list[Tensor]


def cases(n: int, channels: int, size: int, dtype: torch.dtype, device: str, last: bool) -> list[Case]:
    """Returns the operators as the networks use them at one resolution."""
    g = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device=device)

    layout = torch.channels_last if last else torch.contiguous_format
    x = draw(n, channels, size, size).to(dtype, memory_format=layout).requires_grad_()
    bias, scale = draw(channels).requires_grad_(), (draw(n, channels).abs() + 0.5).requires_grad_()
    noise, strength = draw(n, 1, size, size), draw().requires_grad_()
    weight, styles = draw(channels, channels, 3, 3).requires_grad_(), draw(n, channels).requires_grad_()
    f = make_filter().to(device)
    modulation = Modulation(scale, noise, strength)
    epilogue = Epilogue(bias, 'lrelu', 256.0, noise, strength)
    same, half = (2, 1, 2, 1), (1, 1, 1, 1)
    return [
        Case('bias_act', lambda impl: bias_act(x, bias, 'lrelu', clamp=256.0, impl=impl), [x, bias]),
        Case(
            'bias_act, modulated',
            lambda impl: bias_act(x, bias, 'lrelu', clamp=256.0, modulation=modulation, impl=impl),
            [x, bias, scale, strength],
        ),
        Case('upfirdn2d, same size', lambda impl: upfirdn2d(x, f, padding=same, impl=impl), [x]),
        Case('upfirdn2d, doubling', lambda impl: upfirdn2d(x, f, up=2, padding=same, gain=4, impl=impl), [x]),
        Case('upfirdn2d, halving', lambda impl: upfirdn2d(x, f, down=2, padding=half, impl=impl), [x]),
        Case(
            'conv2d_resample, down',
            lambda impl: conv2d_resample(x, weight.to(dtype), f, down=2, impl=impl),
            [x],
        ),
        Case(
            'modulated_conv2d',
            lambda impl: modulated_conv2d(x, weight, styles, epilogue=epilogue, impl=impl),
            [x, weight, styles, bias, strength],
        ),
        Case(
            'modulated_conv2d, up',
            lambda impl: modulated_conv2d(x, weight, styles, f, epilogue=Epilogue(bias, 'lrelu'), impl=impl),
            [x, weight, styles, bias],
        ),
    ]


def timed(device: str, run: Callable[[], object]) -> float:
    """Returns the seconds that `run` takes."""
    common.synchronize(device)
    start = time.perf_counter()
    run()
    common.synchronize(device)
    return time.perf_counter() - start


def measure(case: Case, device: str, repeats: int) -> dict[str, float]:
    """Returns the seconds of both implementations, forward alone and with the backward, and bytes touched."""
    y = case.run('ref')
    dy = torch.randn_like(y)
    found = {}
    for turn in range(repeats + 2):  # two to warm up
        for name, impl in (('plain', 'ref'), ('ours', 'auto')):
            with torch.no_grad():
                forward = timed(device, lambda impl=impl: case.run(impl))
            both = timed(device, lambda impl=impl: torch.autograd.grad(case.run(impl), case.inputs, dy))
            for key, seconds in ((f'{name}_forward', forward), (f'{name}_both', both)):
                found[key] = min(found[key], seconds) if turn > 2 else seconds
    touched = case.inputs[0].nbytes + y.nbytes
    return found | {
        'ratio': found['plain_both'] / found['ours_both'],
        'gb_per_s': touched / found['ours_forward'] / 1e9,
    }


def copy_bandwidth(case: Case, device: str, repeats: int) -> float:
    """Returns the bytes per second, in 1e9, of copying the first input."""
    x = case.inputs[0].detach()
    to = torch.empty_like(x)
    return 2 * x.nbytes / min(timed(device, lambda: to.copy_(x)) for _ in range(repeats + 2)) / 1e9


@click.command()
@click.option('--device', type=click.Choice(['cpu', 'cuda']), default='cpu', show_default=True)
@click.option('--n', type=click.IntRange(1), default=2, show_default=True, help='pictures')
@click.option('--channels', type=click.IntRange(1), default=64, show_default=True)
@click.option('--size', type=click.IntRange(4), default=256, show_default=True, help='pixels of a side')
@click.option('--precision', type=click.Choice(list(_TYPES)), default='fp32', show_default=True)
@click.option('--channels-last/--contiguous', default=True, show_default=True)
@click.option('--repeats', type=click.IntRange(1), default=5, show_default=True)
@click.option('--json', 'file', type=click.Path(dir_okay=False), help='where to write the figures')
def main(
    device: str,
    n: int,
    channels: int,
    size: int,
    precision: str,
    channels_last: bool,
    repeats: int,
    file: str | None,
) -> None:
    """Compares the operators with plain PyTorch."""
    set_float32_precision()
    keep_freed_memory()
    todo = cases(n, channels, size, _TYPES[precision], device, channels_last)
    copy = copy_bandwidth(todo[0], device, repeats)
    sizes = {
        'n': n,
        'channels': channels,
        'size': size,
        'precision': precision,
        'channels_last': channels_last,
    }
    report = common.machine(device) | sizes | {'copy_gb_per_s': copy, 'ops': {}}
    click.echo(f'a copy moves {copy:.1f} GB/s; milliseconds of forward, and of forward and backward:')
    for case in todo:
        found = report['ops'][case.name] = measure(case, device, repeats)
        click.echo(
            f'{case.name:22} plain {found["plain_forward"] * 1e3:8.2f} {found["plain_both"] * 1e3:8.2f}   '
            f'ours {found["ours_forward"] * 1e3:8.2f} {found["ours_both"] * 1e3:8.2f}   '
            f'{found["ratio"]:5.2f}x   {found["gb_per_s"]:6.1f} GB/s'
        )
    common.write_report(file, report)


if __name__ == '__main__':
    main()
