"""Decides whether kernels or the plain PyTorch reference of an op work on a tensor, and calls kernels.

They are built on first use (build.py); a failed build warns once. `python -m benchmarks.doctor` reports what
is used and why.
"""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from torch_utils.ops import build
from torch_utils.ops.build import BuildError, Target

ENVIRONMENT = 'PV3D_OPS'  # ref: impl='auto' means the reference
DEVICE_BODY = 'cuda-on-cpu'  # value of PV3D_OPS for tests: kernels run what a GPU would run, on the CPU
_LIBRARY = torch.library.Library('pv3d', 'FRAGMENT')
_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # enum Type of portable.h
_HOST_TYPES = (torch.float32, torch.float64)


def has_kernels(x: Tensor, impl: str) -> bool:
    """Returns whether kernels work on x, and not the reference.

    Args:
        x: the tensor that an op is called with.
        impl: `ref`: never kernels. `cuda`, `cpu`: kernels, or an error. `auto`: kernels when they build and
            know the type of x, and PV3D_OPS=ref is not set.

    Raises:
        ValueError: for an unknown impl, or one that does not fit the device or type of x.
        BuildError: if the kernels that impl demands cannot be built.
    """
    return _decide(x.device.type, x.dtype, impl)


def as_on_a_gpu(x: Tensor, impl: str) -> bool:
    """Returns whether an op, called with impl as in has_kernels, does what suits a GPU; tests do on a CPU."""
    return impl != 'ref' and _as_on_a_gpu(x.device.type)


@torch.compiler.assume_constant_result
def _as_on_a_gpu(target: str) -> bool:
    environment = os.environ.get(ENVIRONMENT)
    return environment == DEVICE_BODY or (target == 'cuda' and environment != 'ref')


@torch.compiler.assume_constant_result  # torch.compile asks once, and does not look into the build
def _decide(target: str, dtype: torch.dtype, impl: str) -> bool:
    environment = os.environ.get(ENVIRONMENT, 'auto')
    if environment not in ('auto', 'ref', DEVICE_BODY):
        raise ValueError(f'{ENVIRONMENT}={environment} must be auto or ref')
    if impl == 'ref' or (impl == 'auto' and environment == 'ref'):
        return False
    known = target in ('cuda', 'cpu') and dtype in (_TYPES if target == 'cuda' else _HOST_TYPES)
    if impl == 'auto':
        return known and _loads(target)
    if impl != target or not known:
        raise ValueError(f'impl={impl!r} does not work on {dtype} on {target}; use auto or ref')
    return bool(load(target))


@functools.cache
def _loads(target: Target) -> bool:
    try:
        return bool(load(target))
    except BuildError as err:
        warnings.warn(f'{err}', RuntimeWarning, stacklevel=2)  # once: the result is kept
        return False


@functools.cache
def load(target: Target) -> ctypes.CDLL:
    """Returns the library of all kernels for a target, built or from the cache; raises BuildError."""
    chain = build.toolchain(target)
    library = build.open_library(target, chain, build.cache_folder())
    if target == 'cuda' and library.pv3d_probe():
        raise BuildError(target, f'the driver does not run code of {chain.version[:200]}')
    return library


def register(schema: str, kernel: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Makes torch.ops.pv3d.<name> of a function that calls kernels, opaque to torch.compile.

    Args:
        schema: such as `bias_act(Tensor x, float gain) -> Tensor`.
        kernel: does the work, on CPU and CUDA.
        fake: returns empty tensors of the right shape, type and layout.
    """
    name = schema.partition('(')[0]
    _LIBRARY.define(schema)
    for device in ('CPU', 'CUDA'):
        _LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f'pv3d::{name}', fake)


def call(name: str, x: Tensor, *args: Tensor | float | int | None) -> None:
    """Runs the C function pv3d_<name> with tensors, null pointers (None) and numbers, on the device of x.

    x, any of the tensors, also gives the element type. A number of another type than the C declaration has
    raises ctypes.ArgumentError.
    """
    function = getattr(load(x.device.type), f'pv3d_{name}')
    device_body = os.environ.get(ENVIRONMENT) == DEVICE_BODY
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in args]
    values += _TYPES[x.dtype], device_body, torch.get_num_threads()
    if x.is_cuda:
        with torch.cuda.device(x.device):
            code = function(*values, torch.cuda.current_stream().cuda_stream)
    else:
        code = function(*values, None)
    if code:
        raise RuntimeError(f'kernel {name} cannot be started on {x.dtype}: CUDA error {code}')


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last for a 4D tensor that is so and not contiguous, otherwise contiguous."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
