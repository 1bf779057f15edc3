"""Small tools for modules and tensors: seeded generators, EMA, summaries, memory."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.util import UserError

_SUMMARY_DEPTH = 3  # modules below this level are counted with their parents


def seeded_generator(device: torch.device | str, *keys: int) -> torch.Generator:
    """Returns a random generator whose stream depends on all keys and their order.

    Give every purpose its own key, for example (seed, purpose, rank, cur_nimg): streams of different keys are
    independent.

    Args:
        device: where the numbers are drawn; CPU and CUDA draw different numbers from one seed.
        keys: non-negative integers below 2**64.
    """
    if not keys or any(not 0 <= k < 2**64 for k in keys):
        raise ValueError(f'random keys {keys} must be one or more integers in [0, 2**64)')
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
        raise UserError(f'--device {name} cannot be used here; use auto or cpu') from err
    return device


def set_float32_precision() -> None:
    """Keeps float32 exact on CUDA (no TF32) and lets cuDNN pick the fastest algorithm.

    The rendering and the regularisers need it: TF32 keeps 10 bits of mantissa. [EG3D]
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next tensor; returns False where there is no glibc.

    By default it gives large tensors fresh pages and hands them back at once. Clearing pages over and over
    is up to half of a training step on a CPU. The process then holds on to the most that it ever used.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # names of malloc.h: M_MMAP_MAX = no block of its own mapping; M_TRIM_THRESHOLD = never; M_TOP_PAD
    return all([mallopt(-4, 0), mallopt(-1, -1), mallopt(-2, 128 * 2**20)])


def named_params_and_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Returns all parameters, then all buffers, with their dotted names."""
    return [*module.named_parameters(), *module.named_buffers()]


def parameter_count(module: nn.Module) -> int:
    """Returns the number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def copy_params(source: nn.Module, target: nn.Module) -> None:
    """Copies parameters and buffers by name; both modules must have the same names and shapes.

    Raises:
        ValueError: names the tensors that differ.
    """
    ours, theirs = dict(named_params_and_buffers(target)), dict(named_params_and_buffers(source))
    wrong = sorted(set(ours) ^ set(theirs)) or [n for n in ours if ours[n].shape != theirs[n].shape]
    if wrong:
        raise ValueError(
            f'modules differ in {len(wrong)} tensors, the first is {wrong[0]}; build both from one config'
        )
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, beta: float) -> None:
    """Moves the parameters of `ema` to beta * ema + (1 - beta) * module in place and copies the buffers.

    Args:
        ema: exponential moving average of `module`, same structure.
        module: the network in training.
        beta: decay in [0, 1]; 0 copies.
    """
    averages, params = list(ema.parameters()), list(module.parameters())
    if len(averages) != len(params):
        raise ValueError(f'the average has {len(averages)} parameters and the network {len(params)}')
    torch._foreach_lerp_(averages, params, 1 - beta)
    for ours, theirs in zip(ema.buffers(), module.buffers(), strict=True):
        ours.copy_(theirs)


def nonfinite_names(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Returns the names of the tensors that hold a nan or an infinity; waits for the device once.

    Args:
        named: (name, tensor) pairs, all on one device. One whose absolute values add up to more than its type
            can hold counts as not finite.
    """
    pairs = list(named)
    if not pairs:
        return []
    sums = torch._foreach_norm([t.detach() for _, t in pairs], 1)  # one pass; nan and infinity stay
    flags = torch.stack(sums).isfinite().tolist()
    return [name for (name, _), finite in zip(pairs, flags, strict=True) if not finite]


def peak_memory_gib(device: torch.device | str) -> float:
    """Returns the most memory used so far in GiB: allocated on a CUDA device, or the process's own on CPU."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == 'darwin' else peak / 2**20  # macOS counts bytes, Linux KiB


def _output_shape(output: Any) -> str:
    """Describes the tensors of a (nested) output: [2, 3] [2, 5]."""
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return ' '.join(s for s in map(_output_shape, output) if s)
    return ''


@torch.no_grad()
def module_summary(module: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Runs `module(*inputs)` once and returns a table of submodules: parameters, buffers, output shapes.

    A row counts what is its own and what lies deeper than the table goes; the rows add up to the last line.
    Tensors and modules may be on the `meta` device. Draws nothing by itself and leaves the module as it was.
    """
    listed = [(n, m) for n, m in module.named_modules() if not n or n.count('.') < _SUMMARY_DEPTH]
    shapes: dict[str, str] = {}
    with contextlib.ExitStack() as hooks:
        for name, child in listed:
            handle = child.register_forward_hook(
                lambda _m, _i, out, n=name: shapes.update({n: _output_shape(out)})
            )
            hooks.callback(handle.remove)
        module(*inputs)
    counts = {name: [0, 0] for name, _ in listed}
    for column, tensors in enumerate([module.named_parameters(), module.named_buffers()]):
        for name, tensor in tensors:
            owner = '.'.join(name.split('.')[:-1][:_SUMMARY_DEPTH])
            counts[owner][column] += tensor.numel()
    rows = [['module', 'parameters', 'buffers', 'output shape']]
    rows += [
        [n or '(top)', *map(str, counts[n]), shapes.get(n, '-')] for n, _ in listed if not n or any(counts[n])
    ]
    rows += [['total', *(str(sum(c[i] for c in counts.values())) for i in (0, 1)), '']]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f'{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}'.rstrip() for a, b, c, d in rows]
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])
