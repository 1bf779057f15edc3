"""Time of every operator with our kernels against plain PyTorch, forward and backward, in one run.

`python -m benchmarks.ops`. Both take turns and the fastest run of each counts. Bandwidth: bytes that an
operator has to read and write at least, forward, in the time it took; compare it with that of a copy.
"""

import dataclasses
from collections.abc import Callable

import click
import torch
from torch import Tensor

from benchmarks import common
from torch_utils.misc import prepare_process, seeded_generator
from torch_utils.ops.bias_act import Modulation, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import Epilogue, modulated_conv2d
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d

_TYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Features that operators work on."""

    n: int
    channels: int
    size: int  # pixels of a side
    dtype: torch.dtype
    last: bool  # channels last in memory


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator at work: run(impl, *inputs) -> result; gradients of all inputs are taken."""

    name: str
    run: Callable[..., Tensor]
    inputs: list[Tensor]


def cases(sizes: Sizes, device: str) -> list[Case]:
    """Returns the operators as the networks use them at one resolution."""
    n, c, size, dtype = sizes.n, sizes.channels, sizes.size, sizes.dtype
    g = seeded_generator(device, 0)

    def draw(*shape: int) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        return torch.randn(shape, generator=g, device=device, dtype=wide).requires_grad_()

    layout = torch.channels_last if sizes.last else torch.contiguous_format
    x = draw(n, c, size, size).detach().to(dtype, memory_format=layout).requires_grad_()
    weight, styles, strength = draw(c, c, 3, 3), draw(n, c), draw()
    scale = (draw(n, c).detach().abs() + 0.5).requires_grad_()
    # no sum near the kink of lrelu, where rounding before it decides about the derivative behind it
    bias = (draw(c).detach() + 8 * draw(c).detach().sign()).requires_grad_()
    noise, f = draw(n, 1, size, size).detach(), make_filter().to(device)

    def modulated(impl: str, x: Tensor, bias: Tensor, scale: Tensor, strength: Tensor) -> Tensor:
        return bias_act(x, bias, 'lrelu', 1.0, 256.0, Modulation(scale, noise, strength), impl)

    def layer(impl: str, x: Tensor, w: Tensor, styles: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
        epilogue = Epilogue(bias, 'lrelu', 256.0, noise, strength)
        return modulated_conv2d(x, w, styles, epilogue=epilogue, impl=impl)

    def doubling_layer(impl: str, x: Tensor, w: Tensor, styles: Tensor, bias: Tensor) -> Tensor:
        return modulated_conv2d(x, w, styles, f, epilogue=Epilogue(bias, 'lrelu'), impl=impl)

    def filtered(up: int, down: int, pad: int, gain: float) -> Callable[[str, Tensor], Tensor]:
        padding = (pad, 1, pad, 1)
        return lambda impl, x: upfirdn2d(x, f, up, down, padding, gain, impl)

    def halving(impl: str, x: Tensor, w: Tensor) -> Tensor:
        return conv2d_resample(x, w.to(x.dtype), f, down=2, impl=impl)

    return [
        Case('bias_act', lambda impl, x, b: bias_act(x, b, 'lrelu', clamp=256.0, impl=impl), [x, bias]),
        Case('bias_act, modulated', modulated, [x, bias, scale, strength]),
        Case('upfirdn2d, same size', filtered(1, 1, 2, 1.0), [x]),
        Case('upfirdn2d, doubling', filtered(2, 1, 2, 4.0), [x]),
        Case('upfirdn2d, halving', filtered(1, 2, 1, 1.0), [x]),
        Case('conv2d_resample, down', halving, [x, weight]),
        Case('modulated_conv2d', layer, [x, weight, styles, bias, strength]),
        Case('modulated_conv2d, up', doubling_layer, [x, weight, styles, bias]),
    ]


def measure(case: Case, device: str, repeats: int) -> dict[str, float]:
    """Returns the seconds of both implementations, forward alone and with the backward, and bytes touched."""
    x = case.inputs
    y = case.run('ref', *x)
    dy = torch.randn_like(y)
    found = {}
    for turn in range(repeats + 2):  # two to warm up
        for name, impl in (('plain', 'ref'), ('ours', 'auto')):
            with torch.no_grad():
                forward = common.timed(device, lambda impl=impl: case.run(impl, *x))
            both = common.timed(device, lambda impl=impl: torch.autograd.grad(case.run(impl, *x), x, dy))
            for key, seconds in ((f'{name}_forward', forward), (f'{name}_both', both)):
                found[key] = min(found[key], seconds) if turn > 2 else seconds
    return found | {
        'ratio': found['plain_both'] / found['ours_both'],
        'gb_per_s': (x[0].nbytes + y.nbytes) / found['ours_forward'] / 1e9,
    }


def copy_bandwidth(case: Case, device: str, repeats: int) -> float:
    """Returns the bytes per second, in 1e9, of copying the first input."""
    x = case.inputs[0].detach()
    to = torch.empty_like(x)
    seconds = [common.timed(device, lambda: to.copy_(x)) for _ in range(repeats + 2)]
    return 2 * x.nbytes / min(seconds) / 1e9


@click.command(context_settings={'show_default': True})
@click.option('--device', type=click.Choice(['cpu', 'cuda']), default='cpu')
@click.option('--n', type=click.IntRange(1), default=2, help='images')
@click.option('--channels', type=click.IntRange(1), default=64)
@click.option('--size', type=click.IntRange(4), default=256, help='pixels of a side')
@click.option('--precision', type=click.Choice(list(_TYPES)), default='fp32')
@click.option('--channels-last/--contiguous', 'last', default=True)
@click.option('--repeats', type=click.IntRange(1), default=5)
@click.option('--json', 'file', type=click.Path(dir_okay=False), help='where to write the figures')
def main(device: str, precision: str, repeats: int, file: str | None, **sizes: int) -> None:
    """Compares the operators with plain PyTorch."""
    prepare_process()
    todo = cases(Sizes(**sizes, dtype=_TYPES[precision]), device)
    copy = copy_bandwidth(todo[0], device, repeats)
    report = common.machine(device) | sizes | {'precision': precision, 'copy_gb_per_s': copy, 'ops': {}}
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
