"""The code that a GPU runs, on the CPU, against the reference in random cases, in half and single precision."""

import numpy as np
import pytest
import torch

from support.tiny import draw
from torch_utils.ops import kernels
from torch_utils.ops.upfirdn2d import upfirdn2d

DTYPES = (torch.float32, torch.float16)
pytestmark = pytest.mark.parametrize('dtype', DTYPES, ids=['float', 'half'])


@pytest.fixture(autouse=True)
def device_code(dtype, monkeypatch):
    """Kernels run what a GPU would run; those of half precision need a compiler that knows the type."""
    monkeypatch.setenv(kernels.ENVIRONMENT, kernels.DEVICE_BODY)
    monkeypatch.setattr(kernels, '_HOST_TYPES', DTYPES)
    try:
        upfirdn2d(torch.ones(1, 1, 1, 1, dtype=dtype), torch.ones(1, 1), impl='cpu')
    except (kernels.BuildError, RuntimeError) as err:
        pytest.skip(str(err))


def agree(ours, exact, dtype):
    """Sums are taken in float32, their results rounded once."""
    limit = 2 * torch.finfo(dtype).eps * max(1.0, exact.abs().max().item())
    assert ours.dtype == dtype and (ours - exact).abs().max() < limit


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
        y = upfirdn2d(leaf, f.to(kind if kind == torch.float64 else torch.float32), up, down, padding, 1.7, impl)
        dy = draw(*y.shape, seed=seed + 1).to(dtype, memory_format=torch.channels_last)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, dy.to(kind))))
    for ours, exact in zip(*found, strict=True):
        agree(ours, exact, dtype)
