"""Operators against naive loops and explicit definitions, in value and in first and second derivatives."""

import numpy as np
import pytest
import torch
from scipy import signal
from torch.autograd import gradcheck, gradgradcheck

from support.tiny import draw
from torch_utils.ops import bias_act as bias_act_module
from torch_utils.ops import kernels
from torch_utils.ops.bias_act import Modulation, bias_act, scale_channels
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d, upsample2d

pytestmark = pytest.mark.usefixtures('implementation')
FIR = make_filter()


# name -> height, width, filter shape, up, down, padding (left, right, top, bottom)
UPFIRDN = {
    'plain': (5, 6, (4, 4), 1, 1, (2, 1, 2, 1)),
    'up2': (4, 3, (4, 4), 2, 1, (2, 1, 2, 1)),
    'down2': (8, 6, (4, 4), 1, 2, (1, 1, 1, 1)),
    'down2 of an odd size': (7, 9, (4, 4), 1, 2, (1, 1, 1, 1)),
    'down2 with a remainder': (7, 8, (4, 4), 1, 2, (2, 0, 1, 0)),
    'down3': (11, 8, (3, 3), 1, 3, (1, 1, 1, 1)),
    'up3 down2': (4, 5, (4, 4), 3, 2, (2, 2, 1, 3)),
    'up2 down3 with cropping': (6, 7, (3, 2), 2, 3, (-1, 2, 1, -2)),
    'cropping': (8, 9, (3, 3), 1, 1, (-1, -2, -2, -1)),
    'up2 with cropping': (6, 5, (4, 4), 2, 1, (-1, -1, -3, -2)),
    'down2 with cropping': (12, 11, (4, 4), 1, 2, (-2, -1, -1, -2)),
    'padding beyond the filter': (3, 4, (2, 2), 1, 1, (3, 4, 2, 5)),
    'asymmetric filter': (5, 5, (1, 5), 2, 1, (4, 4, 0, 0)),
    'single tap': (5, 4, (1, 1), 1, 2, (0, 0, 0, 0)),
    'one pixel': (1, 1, (4, 4), 2, 1, (2, 1, 2, 1)),
}


def upfirdn_loop(x, f, up, down, padding, gain):
    """Zero insertion, padding or cropping, true convolution and decimation, pixel by pixel."""
    n, c, h, w = x.shape
    left, right, top, bottom = padding
    fh, fw = f.shape
    tall, wide = h * up + top + bottom, w * up + left + right
    out = np.zeros((n, c, (tall - fh) // down + 1, (wide - fw) // down + 1))

    def pixel(y, x_):  # of the padded image
        y, x_ = y - top, x_ - left
        if 0 <= y < h * up and 0 <= x_ < w * up and y % up == 0 and x_ % up == 0:
            return x[:, :, y // up, x_ // up]
        return 0.0

    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            for a in range(fh):
                for b in range(fw):
                    out[:, :, i, j] += gain * f[fh - 1 - a, fw - 1 - b] * pixel(i * down + a, j * down + b)
    return out


@pytest.mark.parametrize('case', UPFIRDN)
def test_upfirdn2d_is_its_definition(case):
    h, w, taps, up, down, padding = UPFIRDN[case]
    x, f = draw(2, 3, h, w), draw(*taps, seed=1)
    y = upfirdn2d(x, f, up=up, down=down, padding=padding, gain=1.7)
    expected = upfirdn_loop(x.numpy(), f.numpy(), up, down, padding, 1.7)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('up, down', [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('taps', [(4, 4), (1, 1), (6, 3)])
def test_upfirdn2d_of_separable_filters(taps, layout, up, down):
    """These take a pass down and a pass across, in tiles; a filter of a higher rank takes several."""
    x = draw(2, 70, 37, 21).to(memory_format=layout)
    column, row = draw(taps[0], seed=1), draw(taps[1], seed=2)
    padding = (taps[1] - 1, 1, taps[0] - 2, 2)
    for f in (torch.outer(column, row), torch.outer(column, row) + 1e-6 * torch.eye(*taps)):
        y = upfirdn2d(x, f, up, down, padding, 1.7)
        expected = upfirdn2d(x, f, up, down, padding, 1.7, impl='ref')
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('case', UPFIRDN)
def test_upfirdn2d_derivatives(case):
    h, w, taps, up, down, padding = UPFIRDN[case]
    x, f = draw(1, 2, h, w, grad=True), draw(*taps, seed=1)

    def op(x):
        return upfirdn2d(x, f, up, down, padding, 1.3)

    assert gradcheck(op, x, fast_mode=True)
    assert gradgradcheck(op, x, fast_mode=True)
    assert gradgradcheck(lambda x: op(x).pow(3), x, fast_mode=True)


def test_upfirdn2d_of_an_expanded_tensor():
    x = draw(1, 3, 1, 5).expand(2, 3, 6, 5)
    torch.testing.assert_close(upsample2d(x, FIR), upsample2d(x.contiguous(), FIR), rtol=0, atol=1e-12)


def test_filter_and_upsampling_keep_the_mean():
    np.testing.assert_allclose(FIR.numpy(), np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    inner = upsample2d(ramp, FIR)[0, 0, 8, 2:-2]  # stays one, with pixel centres at (k + 0.5) / 2 - 0.5
    assert torch.allclose(inner, (torch.arange(2, 14) + 0.5) / 2 - 0.5)


LRELU = np.sqrt(2)
ACTS = {
    'linear': lambda x: x,
    'lrelu': lambda x: np.where(x > 0, x, 0.2 * x) * LRELU,
    'softplus': lambda x: np.logaddexp(0, x),
}


@pytest.mark.parametrize('shape', [(4, 6), (2, 6, 5), (2, 6, 3, 4)])
@pytest.mark.parametrize('act', ACTS)
def test_bias_act(act, shape):
    x, bias = draw(*shape) * 2, draw(6, seed=1)
    shaped = bias.numpy().reshape([1, 6] + [1] * (len(shape) - 2))
    expected = ACTS[act](x.numpy() + shaped) * 0.7
    np.testing.assert_allclose(bias_act(x, bias, act, gain=0.7).numpy(), expected, atol=1e-8)
    clipped = np.clip(expected, -0.35, 0.35)  # the clamp is scaled by the gain
    np.testing.assert_allclose(bias_act(x, bias, act, gain=0.7, clamp=0.5).numpy(), clipped, atol=1e-8)
    assert torch.equal(bias_act(x), x) and bias_act(x.bfloat16(), bias, act).dtype == torch.bfloat16


@pytest.mark.parametrize('shape', [(3, 6), (2, 6, 3, 4)])
@pytest.mark.parametrize('last', [True, False])
def test_scale_channels(shape, last):
    """A scale may be 0: its gradient does not divide by it."""
    x, scale = draw(*shape), draw(*shape[:2], seed=1)
    scale[0, 1] = 0
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = x.requires_grad_(), scale.requires_grad_()
    y = scale_channels(*leaves)
    shaped = scale.reshape(*scale.shape, *[1] * (x.ndim - 2))
    assert torch.equal(y, x * shaped) and kernels.memory_format(y) == kernels.memory_format(x)
    found = [torch.autograd.grad(z.pow(3).sum(), leaves) for z in (y, x * shaped)]
    for ours, stock in zip(*found, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)
    assert gradcheck(scale_channels, leaves, fast_mode=True)
    assert gradgradcheck(lambda *x: scale_channels(*x).pow(3), leaves, fast_mode=True)


def modulated_example(shape, noise_n, last):
    x, scale, bias = draw(*shape), draw(*shape[:2], seed=1) + 2, draw(shape[1], seed=2)
    noise = draw(noise_n, 1, *shape[2:], seed=3) if len(shape) == 4 else None
    strength = torch.tensor(0.7, dtype=torch.float64) if noise is not None else None
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, Modulation(scale, noise, strength), bias


IMAGES = (2, 3, 2, 5), (3, 5, 7, 3), (2, 8, 4, 6)


@pytest.mark.parametrize('shared_noise', [False, True])
@pytest.mark.parametrize(
    ('shape', 'last'), [((3, 4), False), *((shape, last) for shape in IMAGES for last in (False, True))]
)
def test_bias_act_modulates(shape, last, shared_noise):
    x, modulation, bias = modulated_example(shape, 1 if shared_noise else shape[0], last)
    y = bias_act(x, bias, 'lrelu', clamp=1.5, modulation=modulation)
    dims = (*shape[:2], *[1] * (len(shape) - 2))
    expected = x.numpy() * modulation.scale.numpy().reshape(dims) + bias.numpy().reshape((1, *dims[1:]))
    if modulation.noise is not None:
        expected = expected + 0.7 * modulation.noise.numpy()
    np.testing.assert_allclose(y.numpy(), np.clip(ACTS['lrelu'](expected), -1.5, 1.5), atol=1e-12)
    assert y.stride() == x.stride()


@pytest.mark.parametrize('input_kept', [False, True])
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('clamp', [None, 1.5])
def test_modulation_derivatives(last, clamp, input_kept, monkeypatch):
    """Values of the kink are avoided: no sample lies within the step of a finite difference of one.

    With the input kept, as half precision does, but in float64.
    """
    monkeypatch.setattr(bias_act_module, '_HALF', (torch.float64,) if input_kept else ())
    x, (scale, noise, strength), bias = modulated_example((2, 3, 2, 3), 2, last)
    inputs = [v.clone().requires_grad_() for v in (x, scale, strength, bias)]

    def op(x, scale, strength, bias):
        return bias_act(x, bias, 'lrelu', clamp=clamp, modulation=Modulation(scale, noise, strength))

    assert gradcheck(op, inputs)
    assert gradgradcheck(op, inputs)
    assert gradgradcheck(lambda *v: op(*v).pow(3), inputs)


@pytest.mark.parametrize('wanted', [('x',), ('scale',), ('bias',), ('x', 'strength'), ('x', 'bias')])
def test_constant_operands_count(wanted, monkeypatch):
    """What needs no gradient still takes part in those of the others."""
    x, (scale, noise, strength), bias = modulated_example((2, 3, 2, 3), 2, False)
    operands = {'x': x, 'scale': scale, 'strength': strength, 'bias': bias}
    operands = {n: v.clone().requires_grad_(n in wanted) for n, v in operands.items()}
    leaves = [operands[n] for n in wanted]

    def gradients(impl):
        modulation = Modulation(operands['scale'], noise, operands['strength'])
        y = bias_act(operands['x'], operands['bias'], 'lrelu', modulation=modulation, impl=impl)
        return torch.autograd.grad(y.pow(3).sum(), leaves)

    for ours, reference in zip(gradients('auto'), gradients('ref'), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_operands_of_other_shapes():
    """Shapes outside the contract never reach a kernel: they broadcast as in the reference, or raise."""
    x, bias, noise = draw(2, 3, 4, 5), draw(3, seed=1), draw(4, 5, seed=2)
    one = Modulation(draw(1, 3, seed=3), noise, torch.tensor([0.5], dtype=torch.float64))
    expected = bias_act(x, bias, 'lrelu', modulation=one, impl='ref')
    torch.testing.assert_close(bias_act(x, bias, 'lrelu', modulation=one), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        bias_act(draw(2, 8, 4, 5), bias)
    leaf = noise.reshape(1, 1, 4, 5).clone().requires_grad_()
    modulation = Modulation(None, leaf, torch.tensor(0.5, dtype=torch.float64))
    assert torch.autograd.grad(bias_act(x, bias, modulation=modulation).sum(), leaf)[0].abs().sum() > 0
    falling = bias_act(x, bias, 'lrelu', gain=-1.0)
    torch.testing.assert_close(falling, -bias_act(x, bias, 'lrelu'), rtol=1e-12, atol=0)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_sums_over_large_images(layout):
    """The gradients of the small operands are sums of parts when there are many pixels."""
    x, (scale, noise, strength), bias = modulated_example((1, 2, 70, 70), 1, False)
    inputs = [v.requires_grad_() for v in (scale, strength, bias)]
    modulation = Modulation(scale, noise, strength)
    y = bias_act(x.contiguous(memory_format=layout), bias, 'lrelu', modulation=modulation)
    grads = torch.autograd.grad(y.square().sum(), inputs)
    z = x * scale[:, :, None, None] + noise * strength + bias[:, None, None]
    d = torch.where(z > 0, 4 * z, 0.16 * z)  # derivative of the square of the result
    sums = ((d * x).sum(dim=(2, 3)), (d * noise).sum(), d.sum(dim=(0, 2, 3)))
    for grad, expected in zip(grads, sums, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-9)


@pytest.fixture
def half_kernels(monkeypatch):
    """Kernels for half precision on the CPU as a GPU runs them: in float32, with results rounded."""
    if not kernels.has_kernels(torch.zeros(1), 'auto'):
        return  # stock operators know these types
    kernel = kernels.call

    def call(name, x, *args):
        wide = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
        kernel(name, x.float(), *wide)
        for a, b in zip(args, wide, strict=True):
            if isinstance(a, torch.Tensor):
                a.copy_(b)

    monkeypatch.setattr(kernels, 'call', call)
    monkeypatch.setattr(kernels, '_decide', lambda *_: True)


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scale_gradient_in_half_precision(dtype, last, half_kernels):
    """It keeps its digits where the bias is thirty times what is scaled, and hides it in the result."""
    x, dy = (draw(2, 3, 16, 16, seed=seed).to(dtype) for seed in (0, 3))
    bias = 30 * draw(3, seed=2).sign()
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    scale = (0.5 + draw(2, 3, seed=1).abs()).float()
    found = []
    for kind, impl in ((dtype, 'auto'), (torch.float64, 'ref')):
        leaves = [v.to(kind).detach().requires_grad_() for v in (x, bias)]
        leaf = scale.to(torch.promote_types(kind, torch.float32)).requires_grad_()
        y = bias_act(leaves[0], leaves[1], 'lrelu', modulation=Modulation(leaf), impl=impl)
        found.append(torch.autograd.grad(y, [leaf, *leaves], dy.to(kind)))
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).abs().max() < torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize('act', ACTS)
@pytest.mark.parametrize('clamp', [None, 1.0])
def test_bias_act_derivatives(act, clamp):
    x, bias = draw(3, 4, 2, grad=True), draw(4, seed=1, grad=True)

    def op(x, b):
        return bias_act(x, b, act, gain=0.5, clamp=clamp)

    assert gradcheck(op, (x, bias))
    assert gradgradcheck(op, (x, bias))


def conv_by_definition(x, weight, f, up, down):
    """Zero insertion, kernel, low-pass filter, decimation with scipy's full convolutions, plane by plane."""
    (n, _, h, w), (c_out, c_in, k, _) = x.shape, weight.shape
    out = np.zeros((n, c_out, h * up // down, w * up // down))
    for i, o, c in np.ndindex(n, c_out, c_in):
        plane, kernel = x[i, c], weight[o, c]
        if up == 2:  # convolved with the centred kernel; the filter's centre is half a pixel before its tap 2
            big = np.zeros((2 * h, 2 * w))
            big[::2, ::2] = plane
            full = signal.convolve2d(signal.convolve2d(big, kernel), f) * 4
            start = k // 2 + 1
            out[i, o] += full[start : start + 2 * h, start : start + 2 * w]
        elif down == 2:  # filtered, correlated with the kernel, every other pixel
            full = signal.correlate2d(signal.convolve2d(plane, f), kernel)
            start = k // 2 + 2
            out[i, o] += full[start : start + h : 2, start : start + w : 2]
        else:
            out[i, o] += signal.correlate2d(plane, kernel, mode='same')
    return out


@pytest.mark.parametrize('size', [(4, 6), (8, 8)])
@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize(('up', 'down'), [(1, 1), (2, 1), (1, 2)])
def test_conv2d_resample_is_its_definition(up, down, k, size):
    x, weight = draw(2, 3, *size), draw(4, 3, k, k, seed=1)
    f = draw(4, 4, seed=2)  # not symmetric, so that a wrong flip shows
    y = conv2d_resample(x, weight, f, up=up, down=down)
    expected = conv_by_definition(x.numpy(), weight.numpy(), f.numpy(), up, down)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-11)


@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize(('up', 'down'), [(1, 1), (2, 1), (1, 2)])
def test_conv2d_resample_derivatives(up, down, k):
    x, weight = draw(2, 2, 4, 4, grad=True), draw(3, 2, k, k, seed=1, grad=True)

    def op(x, weight):
        return conv2d_resample(x, weight, FIR, up=up, down=down)

    assert gradcheck(op, (x, weight), fast_mode=True)
    assert gradgradcheck(op, (x, weight), fast_mode=True)
