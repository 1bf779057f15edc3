"""What a call of an operator costs beside its work: CPU microseconds on tensors without elements.

`python -m benchmarks.overhead`. Forward is without a graph, as in rendering. The ratios are to all its parts
for an operator made of several, else to an addition, whose backward costs what any of them costs in torch.
"""

import time
from collections.abc import Callable

import click
import torch

from benchmarks.ops import Case, Sizes, cases
from torch_utils.ops.modulated_conv2d import demodulation

_PARTS = {
    'conv2d_resample, down': ('upfirdn2d, same size', 'convolution'),
    'modulated_conv2d': ('product', 'demodulation', 'convolution', 'bias_act, modulated'),
    'modulated_conv2d, up': (
        'product',
        'demodulation',
        'convolution',
        'upfirdn2d, same size',
        'bias_act, modulated',
    ),
}


def parts(sizes: Sizes) -> list[Case]:
    """Returns what the others are compared with, and made of."""
    like = {'dtype': sizes.dtype, 'requires_grad': True}
    x = torch.zeros(sizes.n, sizes.channels, sizes.size, sizes.size, **like)
    weight, factor = torch.zeros(sizes.channels, sizes.channels, 3, 3, **like), torch.ones(1, 1, 1, 1, **like)
    styles = torch.zeros(sizes.n, sizes.channels, **like)
    return [
        Case('addition', lambda _, x, y: x + y, [x, factor]),
        Case('product', lambda _, x, y: x * y, [x, factor]),
        Case('demodulation', lambda _, w, styles: demodulation(w, styles), [weight, styles]),
        Case('convolution', lambda _, x, w: torch.conv2d(x, w, padding=1), [x, weight]),
    ]


def microseconds(run: Callable[[], object], calls: int) -> float:
    """Returns the processor time of one call, the least of several series."""
    least = float('inf')
    for _ in range(8):
        start = time.process_time()
        for _ in range(calls):
            run()
        least = min(least, time.process_time() - start)
    return least / calls * 1e6


def measure(case: Case, calls: int) -> tuple[float, float]:
    """Returns the microseconds of the forward pass without a graph, and of both passes."""
    x = case.inputs
    dy = torch.zeros_like(case.run('auto', *x))
    with torch.no_grad():
        forward = microseconds(lambda: case.run('auto', *x), calls)
    return forward, microseconds(lambda: torch.autograd.grad(case.run('auto', *x), x, dy), calls)


@click.command(context_settings={'show_default': True})
@click.option('--calls', type=click.IntRange(1), default=500, help='of a series, the fastest of which counts')
def main(calls: int) -> None:
    """Measures what calls cost on a CPU."""
    torch.set_num_threads(1)
    sizes = Sizes(n=0, channels=8, size=4, dtype=torch.float32, last=True)
    found = {case.name: measure(case, calls) for case in [*parts(sizes), *cases(sizes, 'cpu')]}
    for name, (forward, both) in found.items():
        others = [found[part] for part in _PARTS.get(name, ('addition',))]
        ratios = (forward / sum(p[0] for p in others), both / sum(p[1] for p in others))
        click.echo(f'{name:22} {forward:7.1f} {both:7.1f} us   {ratios[0]:5.2f}x {ratios[1]:5.2f}x')


if __name__ == '__main__':
    main()
