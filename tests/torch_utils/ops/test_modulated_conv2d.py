"""Modulated convolution against its fused-weight form, and in half precision."""

import pytest
import torch

from support.tiny import draw
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import Epilogue, modulated_conv2d
from torch_utils.ops.upfirdn2d import make_filter

pytestmark = pytest.mark.usefixtures('implementation')
FIR = make_filter()


def fused(x, weight, styles, f, demodulate):
    """Each sample is convolved with a weight of its own, one after the other."""
    w = weight * styles[:, None, :, None, None]  # [N, C_out, C_in, k, k]
    w = w / (w.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt() if demodulate else w
    pairs = zip(x, w, strict=True)
    return torch.cat([conv2d_resample(sample[None], w, f, up=1 if f is None else 2) for sample, w in pairs])


def derivatives(y, leaves):
    """Returns y, the gradients of a random combination of it, and those of one of the gradients."""
    first = torch.autograd.grad((y * draw(*y.shape, seed=7)).sum(), leaves, create_graph=True)
    total = sum((g * draw(*g.shape, seed=8 + i)).sum() for i, g in enumerate(first))
    return [y, *first, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize('demodulate', [True, False])
@pytest.mark.parametrize(('up', 'k'), [(1, 3), (1, 1), (2, 3)])
def test_agrees_with_the_definition(up, k, demodulate):
    """Value, first and second derivatives, with noise, bias, activation and clamp."""
    shapes = (3, 4, 6, 5), (5, 4, k, k), (3, 4), (5,), ()
    leaves = [draw(*shape, seed=i, grad=True) for i, shape in enumerate(shapes)]
    noise, f = draw(3, 1, 6 * up, 5 * up, seed=6), FIR if up == 2 else None
    x, weight, styles, bias, strength = leaves
    epilogue = Epilogue(bias, 'lrelu', 2.0, noise, strength)
    ours = modulated_conv2d(x, weight, styles, f, demodulate, epilogue)
    z = fused(x, weight, styles, f, demodulate) + noise * strength + bias[:, None, None]
    expected = (torch.nn.functional.leaky_relu(z, 0.2) * 2**0.5).clamp(-2, 2)
    assert (expected.abs() == 2).any() and (expected.abs() < 2).any()
    for a, b in zip(derivatives(ours, leaves), derivatives(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('k', [1, 3])
def test_a_bias_alone_is_that_of_the_convolution(k):
    """Value, first and second derivatives."""
    shapes = (3, 4, 6, 5), (5, 4, k, k), (3, 4), (5,)
    leaves = [draw(*shape, seed=i, grad=True) for i, shape in enumerate(shapes)]
    x, weight, styles, bias = leaves
    ours = modulated_conv2d(x, weight, styles, demodulate=False, epilogue=Epilogue(bias))
    assert 'BiasAct' not in type(ours.grad_fn).__name__
    expected = fused(x, weight, styles, None, demodulate=False) + bias[:, None, None]
    # a gradient that no derivative reaches is that of the bias
    found = (
        derivatives(y, leaves[:3])[:7] + list(torch.autograd.grad(y.sum(), bias)) for y in (ours, expected)
    )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_demodulation_gives_unit_variance():
    """Whatever weights and styles: inside the borders, noise of variance 1 comes out with variance 1."""
    x = draw(2, 8, 66, 66)
    styles = torch.tensor([[0.1], [50.0]], dtype=torch.float64) * (draw(2, 8, seed=2).abs() + 0.1)
    y = modulated_conv2d(x, 7 * draw(6, 8, 3, 3, seed=1), styles)[:, :, 1:-1, 1:-1]
    variance = y.var(dim=(2, 3))
    assert (variance - 1).abs().max() < 0.1  # 4096 pixels, overlapping windows
    plain = modulated_conv2d(x, draw(6, 8, 3, 3, seed=1), styles, demodulate=False)
    assert plain.var() > 100


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_survives_huge_weights(dtype):
    """Weights and styles beyond the range of fp16 (65504) are brought down first; demodulation undoes it."""
    x, weight, styles = draw(2, 8, 8, 8), draw(4, 8, 3, 3, seed=1), draw(2, 8, seed=2)
    for f, factor in ((None, 8), (FIR, 16)):
        y = modulated_conv2d(x.to(dtype), weight.float() * 1e6, styles.float() * 1e6, f)
        assert y.dtype == dtype
        exact = modulated_conv2d(x, weight, styles, f)
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=factor * torch.finfo(dtype).eps)


def test_half_precision_survives_wide_sums():
    """512 channels at the clamp of 256, all of one sign: their plain sum is 18 times the range of fp16."""
    x, weight = torch.full((1, 512, 3, 3), 256.0), torch.ones(2, 512, 3, 3)
    y = modulated_conv2d(x.half(), weight, torch.ones(1, 512))
    torch.testing.assert_close(y[0, :, 1, 1].float(), torch.full((2,), 256 * 4608**0.5), rtol=2e-3, atol=0)
