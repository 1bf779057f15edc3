"""The code that a GPU runs, on the CPU, against the reference in random cases, in two precisions."""

import types

import numpy as np
import pytest
import torch

from support.tiny import draw
from torch_utils.ops import bias_act as bias_act_module
from torch_utils.ops import kernels
from torch_utils.ops.bias_act import Modulation, bias_act
from torch_utils.ops.upfirdn2d import upfirdn2d

DTYPES = (torch.float32, torch.float16)


@pytest.fixture(params=DTYPES, ids=['float', 'half'])
def dtype(request, monkeypatch):
    """Kernels run what a GPU would run; those of half precision need a compiler that knows the type."""
    monkeypatch.setenv(kernels.ENVIRONMENT, kernels.DEVICE_BODY)
    monkeypatch.setattr(kernels, '_HOST_TYPES', DTYPES)
    try:
        upfirdn2d(torch.ones(1, 1, 1, 1, dtype=request.param), torch.ones(1, 1), impl='cpu')
    except (kernels.BuildError, RuntimeError) as err:
        pytest.skip(str(err))
    return request.param


def agree(ours, exact):
    """Sums are taken in float32, and rounded once where the type is a shorter one."""
    rounding = {torch.float32: 64, torch.float16: 1}[ours.dtype] * torch.finfo(ours.dtype).eps
    assert (ours - exact).abs().max() < rounding * max(1.0, exact.abs().max().item())


def filter_case(rng):
    """Factors, filter, sizes and padding, or cropping, for which the result is not empty."""
    up, down = [(1, 1), (2, 1), (1, 2)][rng.integers(3)]
    fh, fw = rng.integers(1, 5, 2)
    h, w = rng.integers(1, 14, 2)
    while True:
        left, right, top, bottom = padding = rng.integers(-3, 6, 4).tolist()
        cropped = h * up + min(top, 0) + min(bottom, 0), w * up + min(left, 0) + min(right, 0)
        if min(cropped) > 0 and h * up + top + bottom >= fh and w * up + left + right >= fw:
            return up, down, draw(fh, fw, seed=1), (h, w), padding


@pytest.mark.parametrize('seed', range(24))
def test_filters_in_packs(dtype, seed):
    """Value and gradient, which is the same operator with the filter flipped and the factors exchanged."""
    rng = np.random.default_rng(seed)
    up, down, f, size, padding = filter_case(rng)
    channels = 16 // dtype.itemsize * rng.integers(1, 4)
    x = draw(2, channels, *size, seed=seed).to(dtype, memory_format=torch.channels_last)
    found = []
    for kind, impl in ((dtype, 'cpu'), (torch.float64, 'ref')):
        leaf = x.to(kind).requires_grad_()
        y = upfirdn2d(leaf, f.to(torch.promote_types(kind, torch.float32)), up, down, padding, 1.7, impl)
        dy = draw(*y.shape, seed=seed + 1).to(dtype, memory_format=torch.channels_last)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, dy.to(kind))))
    for ours, exact in zip(*found, strict=True):
        agree(ours, exact)


def epilogue_case(rng, dtype):
    """Features in either layout and a random choice of operands; every third size fits no packs."""
    pack = 16 // dtype.itemsize
    n, c, h, w = rng.integers(1, 4), pack * rng.integers(1, 5), rng.integers(1, 7), pack * rng.integers(1, 3)
    c, w = (c, w) if rng.integers(3) else (c + 1, w + 1)
    wanted = rng.integers(2, size=3).astype(bool)
    scale = draw(n, c, seed=1).abs() + 0.5 if wanted[0] else None
    bias = draw(c, seed=2) if wanted[1] else None
    noise = draw(rng.choice([1, n]), 1, h, w, seed=3) if wanted[2] else None
    strength = torch.tensor(0.7).double() if wanted[2] else None
    layout = (torch.contiguous_format, torch.channels_last)[rng.integers(2)]
    x = (2 * draw(n, c, h, w)).to(dtype, memory_format=layout)
    return x, [scale, noise, strength, bias]


@pytest.mark.parametrize('act', ['linear', 'lrelu'])
@pytest.mark.parametrize('seed', range(16))
def test_epilogues_in_packs(dtype, seed, act, monkeypatch):
    """Value and gradients, which are sums of several parts; rounding decides nothing about kink and clamp."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(bias_act_module, '_PART_LAST', 1 + seed)
    monkeypatch.setattr(bias_act_module, '_PART', 16 + seed)
    x, operands = epilogue_case(rng, dtype)
    clamp, dy, found = [None, 1.5][rng.integers(2)], None, []
    for kind, impl in ((torch.float64, 'ref'), (dtype, 'cpu')):
        wide = torch.promote_types(kind, torch.float32)
        leaf = x.to(kind).requires_grad_()
        scale, noise, strength, bias = (None if v is None else v.float().to(wide) for v in operands)
        leaves = [leaf, *(v.requires_grad_() for v in (scale, strength, bias) if v is not None)]
        y = bias_act(leaf, bias, act, 0.7, clamp, Modulation(scale, noise, strength), impl)
        if dy is None:
            clear = (y.abs() > 0.01) & ((y.abs() - 1.05).abs() > 0.01)
            dy = (draw(*y.shape, seed=seed + 1) * clear).to(dtype)
        found.append((y.detach(), *torch.autograd.grad(y, leaves, dy.to(kind))))
    for exact, ours in zip(*found, strict=True):
        agree(ours, exact)


def test_enough_threads_sum_up():
    """On a GPU: as many as it holds, but for each channel no more sums than pay."""

    def threads(n, c, size, last):
        y = types.SimpleNamespace(is_cuda=True, element_size=lambda: 2)
        part = bias_act_module._part(y, n, c, size**2, last)
        return n * (c // 8 if last else c) * -(-(size**2) // part), part

    for last in (0, 1):
        for shape in ((32, 64, 512), (32, 512, 64), (4, 128, 256)):
            count, part = threads(*shape, last)
            assert 2**17 <= count <= 2**20 and part >= (32 if last else 32 * 8)
        assert threads(2, 8, 4, last)[1] == 16
