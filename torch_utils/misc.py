"""Small tools for modules and tensors: seeded generators, EMA, summaries, memory."""

import ctypes
import resource
import sys
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from dnnlib.util import UserError

Float32Precision = Literal['exact', 'tf32']
_SUMMARY_DEPTH = 3  # modules below this level are counted with their parents


def seeded_generator(device: torch.device | str, *keys: int) -> torch.Generator:
    """Returns a random generator whose stream depends on all keys and their order.

    Give every purpose its own key, for example (seed, purpose, rank, cur_nimg): streams of different keys are
    independent.

    Args:
        device: where the numbers are drawn; CPU and CUDA draw different numbers from one seed.
        keys: non-negative integers below 2**64.
    """
    # Two words per key, the count first: SeedSequence takes (1,) and (1, 0), or (2**32,) and (0, 1), for one.
    words = [len(keys)] + [int(part) for k in keys for part in (k & 0xFFFFFFFF, k >> 32)]
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1  # torch seeds are signed
    return torch.Generator(device).manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """Returns the device of that name (cpu, cuda, cuda:1, ...); `auto` is a GPU where there is one.

    Raises:
        UserError: if it cannot be used here.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if name == 'cuda' and torch.cuda.is_available():
        return torch.device(name)  # that of this process: a tensor would go to the first one in all processes
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as err:
        raise UserError(f'--device {name} cannot be used here{_lack(name)}; use auto or cpu') from err
    return device


def _lack(name: str) -> str:
    """Returns why there is no GPU to be used."""
    if not name.startswith('cuda') or torch.cuda.is_available():
        return ''
    if torch.version.cuda is None:
        return ', this torch was built for CPUs alone (`make install` installs one for GPUs)'
    return ', torch finds no GPU (does `nvidia-smi` list one, and is its driver new enough?)'


def set_float32_precision(precision: Float32Precision = 'exact') -> None:
    """Sets how CUDA multiplies float32 numbers, and lets cuDNN pick the fastest algorithm.

    `tf32` rounds what convolutions multiply to 10 bits of mantissa, which tensor cores take; their sums stay
    float32. Matrix products (rays, decoder, codes) are exact in any case. Nothing else may set these
    switches of torch; its newer ones, `fp32_precision`, do not go with `torch.backends.cudnn.flags`.
    """
    torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = True


def prepare_process() -> None:
    """Sets up torch for a command that computes: exact float32, and memory that is kept.

    A process that another one has spawned needs its own.
    """
    set_float32_precision()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next tensor; does nothing without glibc.

    By default it gives large tensors fresh pages and hands them back at once. Clearing pages over and over
    is up to half of a training step on a CPU. The process then holds on to the most that it ever used.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # missing on macOS and in musl
    if mallopt is not None:
        # names of malloc.h: M_MMAP_MAX = no block of its own mapping; M_TRIM_THRESHOLD = never; M_TOP_PAD
        mallopt(-4, 0), mallopt(-1, -1), mallopt(-2, 128 * 2**20)


def parameter_count(module: nn.Module) -> int:
    """Returns the number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, beta: float) -> None:
    """Moves the parameters of `ema` to beta * ema + (1 - beta) * module in place and copies the buffers.

    Args:
        ema: exponential moving average of `module`, same structure.
        module: the network in training.
        beta: decay in [0, 1]; 0 copies.
    """
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - beta)
    if buffers := list(ema.buffers()):
        torch._foreach_copy_(buffers, list(module.buffers()))


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Returns for each tensor whether all of it is finite [len(tensors)], on their device, without waiting.

    One whose absolute values add up to more than its type can hold counts as not finite.
    """
    if not tensors:
        return torch.ones(0, dtype=torch.bool)
    return torch.stack(torch._foreach_norm(tensors, 1)).isfinite()  # one pass; nan and infinity stay


def peak_memory_gib(device: torch.device | str) -> float:
    """Returns the most memory used so far in GiB: allocated on a CUDA device, or the process's own on CPU."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == 'darwin' else peak / 2**20  # macOS counts bytes, Linux KiB


@torch.no_grad()
def module_summary(module: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Runs `module(*inputs)` once and returns a table of submodules: parameters, buffers, output shapes.

    A row counts what is its own and what lies deeper than the table goes; the rows add up to the last line.
    Tensors and modules may be on the `meta` device.
    """
    shapes: dict[nn.Module, str] = {}

    def note(child: nn.Module, _: Any, output: Any) -> None:
        tensors = (x for x in tree_leaves(output) if isinstance(x, Tensor))
        shapes[child] = ' '.join(str(list(x.shape)) for x in tensors)

    with register_module_forward_hook(note):
        module(*inputs)
    listed = [(n, m) for n, m in module.named_modules() if not n or n.count('.') < _SUMMARY_DEPTH]
    counts = {name: [0, 0] for name, _ in listed}
    for column, tensors in enumerate([module.named_parameters(), module.named_buffers()]):
        for name, tensor in tensors:
            owner = '.'.join(name.split('.')[:-1][:_SUMMARY_DEPTH])
            counts[owner][column] += tensor.numel()
    rows = [('module', 'parameters', 'buffers', 'output shape')]
    rows += [(n or '(top)', *counts[n], shapes.get(m, '-')) for n, m in listed if not n or any(counts[n])]
    rows += [('total', *map(sum, zip(*counts.values(), strict=True)), '')]
    widths = [max(len(str(row[i])) for row in rows) for i in range(3)]
    lines = [f'{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}'.rstrip() for a, b, c, d in rows]
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])
