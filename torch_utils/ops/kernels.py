"""Finds the kernels of torch_utils/ops for a tensor, and runs them.

They are built on first use (build.py). A failed build warns once; the plain PyTorch reference of every
op then does its work. `python -m benchmarks.doctor` says what is in use and why.
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

IMPLS = ('auto', 'ref', 'cuda', 'cpu')
ENVIRONMENT = 'PV3D_OPS'  # ref: impl='auto' means the reference
DEVICE_BODY = 'cuda-on-cpu'  # value of PV3D_OPS for tests: kernels run what a GPU would run, on the CPU
_LIBRARY = torch.library.Library('pv3d', 'FRAGMENT')
_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # enum Type of portable.h
_HOST_TYPES = (torch.float32, torch.float64)


def has_kernels(x: Tensor, impl: str) -> bool:
    """Tells whether kernels work on x, and not the reference.

    Args:
        x: the tensor that an op is called with.
        impl: `ref`: never kernels. `cuda`, `cpu`: kernels, or an error. `auto`: kernels when they build and
            know the type of x, and PV3D_OPS=ref is not set.

    Raises:
        ValueError: for an unknown impl, or one that does not fit the device or type of x.
        BuildError: if the kernels that impl demands cannot be had.
    """
    return _decide(x.device.type, x.dtype, impl)


@torch.compiler.assume_constant_result  # torch.compile asks once, and does not look into the build
def _decide(target: str, dtype: torch.dtype, impl: str) -> bool:
    environment = os.environ.get(ENVIRONMENT, 'auto')
    if impl not in IMPLS:
        raise ValueError(f'impl={impl!r} must be one of {", ".join(IMPLS)}')
    if environment not in ('auto', 'ref', DEVICE_BODY):
        raise ValueError(f'{ENVIRONMENT}={environment} must be auto or ref')
    if impl == 'ref' or (impl == 'auto' and environment == 'ref'):
        return False
    known = target in ('cuda', 'cpu') and dtype in (_TYPES if target == 'cuda' else _HOST_TYPES)
    if impl != 'auto':
        if impl != target or not known:
            raise ValueError(f'impl={impl!r} does not work on {dtype} on {target}; use impl="auto"')
        load(target)
        return True
    return known and _loads(target)


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
    """Runs a kernel on the device of x, whose element type the kernel is told.

    Args:
        name: of the C function, without pv3d_.
        x: any of the tensors.
        args: its arguments: tensors, null pointers (None), numbers.

    Raises:
        RuntimeError: if the kernel cannot be started.
        ctypes.ArgumentError: if an argument is not of the type that its C declaration says.
    """
    function = _function(x.device.type, name)
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


@functools.cache
def _function(target: Target, name: str) -> Callable[..., int]:
    return getattr(load(target), f'pv3d_{name}')


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last for a 4D tensor that is so and not contiguous, otherwise contiguous."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@functools.cache
def _loads(target: Target) -> bool:
    """Tells whether kernels can be had; if not, warns, once."""
    try:
        load(target)
        return True
    except BuildError as err:
        warnings.warn(f'{err}', RuntimeWarning, stacklevel=2)
        return False


@functools.cache
def load(target: Target) -> ctypes.CDLL:
    """Returns the library of all kernels for `cuda` or `cpu`, building it when the cache has none.

    Raises:
        BuildError: if it cannot be built or loaded.
    """
    chain = build.toolchain(target)
    library = build.open_library(target, chain, build.cache_folder())
    if target == 'cuda' and library.pv3d_probe():
        raise BuildError(target, f'the driver does not run code of {chain.version[:200]}')
    return library
