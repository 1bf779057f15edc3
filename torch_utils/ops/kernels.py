"""Decides whether kernels or the plain PyTorch reference of an op work on a tensor, and calls kernels.

They are built on first use (build.py); a failed build warns once. `python -m benchmarks.doctor` reports what
is used and why.
"""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import build
from torch_utils.ops.build import BuildError, Target

ENVIRONMENT = 'PV3D_OPS'  # ref: impl='auto' means the reference
DEVICE_BODY = 'cuda-on-cpu'  # value of PV3D_OPS for tests: kernels run what a GPU would run, on the CPU
_LIBRARY = torch.library.Library('pv3d', 'FRAGMENT')
_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # enum Type of portable.h
_PLAIN = (int, float, type(None))  # types of arguments of a kernel that are no tensors
_HOST_TYPES = (torch.float32, torch.float64)


def constant(function: Callable[..., bool]) -> Callable[..., bool]:
    """Marks a function that torch.compile asks once and does not look into.

    This is torch.compiler.assume_constant_result without its import of torch._dynamo, which takes as long as
    that of torch and which most commands never need.
    """
    function._dynamo_marked_constant = True
    return function


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
    return _decide(_target(x), x.dtype, impl)


def _target(x: Tensor) -> str:
    return 'cuda' if x.is_cuda else x.device.type  # training/estimate.py counts tensors that only say so


def as_on_a_gpu(x: Tensor, impl: str) -> bool:
    """Returns whether an op, called with impl as in has_kernels, does what suits a GPU; tests do on a CPU."""
    return impl != 'ref' and _as_on_a_gpu(_target(x))


@constant
def _as_on_a_gpu(target: str) -> bool:
    environment = _environment()
    return environment == DEVICE_BODY or (target == 'cuda' and environment != 'ref')


def forget() -> None:
    """Forgets what was decided and loaded, for tests and benchmarks that change the environment.

    All of it is asked thousands of times in a training step, and is kept.
    """
    for cached in (_environment, _decided, _function, _loads, load):
        cached.cache_clear()


@functools.cache
def _environment() -> str:
    return os.environ.get(ENVIRONMENT, 'auto')


@constant  # torch.compile does not look into the build
def _decide(target: str, dtype: torch.dtype, impl: str) -> bool:
    return _decided(target, dtype, impl)


@functools.cache
def _decided(target: str, dtype: torch.dtype, impl: str) -> bool:
    environment = _environment()
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
    if target == 'cuda' and not torch.cuda.is_available():
        return True  # tensors that only seem to be there have shapes alone: training/estimate.py counts them
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


@functools.cache
def _function(name: str, target: Target) -> Callable[..., int]:
    return getattr(load(target), f'pv3d_{name}')


def register(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Makes torch.ops.pv3d.<name> of a function that calls kernels, opaque to torch.compile.

    Args:
        schema: such as `bias_act(Tensor x, float gain) -> Tensor`.
        kernel: does the work, on CPU and CUDA.
        fake: returns empty tensors of the right shape, type and layout.

    Returns:
        What to call it by: the function itself where nothing looks on, because torch's way to a function in
        Python takes as long as all that it does.
    """
    name = schema.partition('(')[0]
    _LIBRARY.define(schema)
    for device in ('CPU', 'CUDA'):
        _LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f'pv3d::{name}', fake)
    operator = getattr(torch.ops.pv3d, name).default

    def run(x: Tensor, *args: Any) -> Any:
        return operator(x, *args) if _watched(x) else kernel(x, *args)

    return run


def _watched(x: Tensor) -> bool:
    """Returns whether operators on x are traced, counted, profiled, or done by a tensor of another class."""
    return (
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd._profiler_enabled()
    )


def call(name: str, x: Tensor, *args: Tensor | float | int | None) -> None:
    """Runs the C function pv3d_<name> with tensors, null pointers (None) and numbers, on the device of x.

    x, any of the tensors, also gives the element type. A number of another type than the C declaration has
    raises ctypes.ArgumentError.
    """
    device = x.device
    function = _function(name, device.type)
    values = [a if type(a) in _PLAIN else a.data_ptr() for a in args]
    values += _TYPES[x.dtype], _environment() == DEVICE_BODY, torch.get_num_threads()
    if not x.is_cuda:
        code = function(*values, None)
    else:
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        if device.index == torch.cuda.current_device():
            code = function(*values, stream)
        else:
            with torch.cuda.device(device):
                code = function(*values, stream)
    if code:
        raise RuntimeError(f'kernel {name} cannot be started on {x.dtype}: CUDA error {code}')


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last for a 4D tensor that is so and not contiguous, otherwise contiguous."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
