"""Convolutions with gradients of our own, on the CPU, against torch's and against numerical derivatives."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from support.tiny import draw, train_mode
from torch_utils.ops import bias_act as bias_act_module
from torch_utils.ops import kernels
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.convolution import conv2d, conv_transpose2d, no_weight_gradients
from torch_utils.ops.upfirdn2d import make_filter
from training import estimate, loss_math
from training.config import build_networks
from training.networks.layers import Conv2d
from training.presets import PRESETS

# name -> height, width, filter, stride, padding, transposed
CASES = {
    'same size': (4, 5, 3, 1, 1, False),
    'halving odd': (7, 5, 3, 2, 0, False),
    'halving even': (6, 8, 3, 2, 0, False),
    'halving odd and even': (5, 6, 3, 2, 1, False),
    'a pixel': (5, 4, 1, 1, 0, False),
    'every other pixel': (5, 6, 1, 2, 0, False),
    'doubling': (3, 4, 3, 2, 0, True),
    'doubling pixels': (2, 3, 1, 2, 0, True),
    'transposed': (4, 3, 3, 1, 0, True),
}


@pytest.fixture(autouse=True)
def own(choose_kernels):
    """Takes what a GPU would take."""
    choose_kernels(kernels.DEVICE_BODY)


def convolution(case):
    """Returns the function of x and weight, and these two."""
    h, w, k, stride, padding, transposed = CASES[case]

    def run(x, weight, impl='auto'):
        if transposed:
            return conv_transpose2d(x, weight, stride, impl=impl)
        return conv2d(x, weight, stride, padding, impl=impl)

    weight = draw(*((2, 3) if transposed else (3, 2)), k, k, seed=1, grad=True)
    return run, (draw(2, 2, h, w, grad=True), weight)


@pytest.mark.parametrize('case', CASES)
def test_gradients_are_torchs(case):
    run, inputs = convolution(case)
    found = []
    for impl in ('auto', 'ref'):
        y = run(*inputs, impl)
        grads = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        found.append([y, *grads, *torch.autograd.grad(sum(g.pow(3).sum() for g in grads), inputs)])
    for ours, stock in zip(*found, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-10, atol=1e-10)
    assert type(run(*inputs).grad_fn) is not type(run(*inputs, 'ref').grad_fn)


@pytest.mark.parametrize('case', CASES)
def test_derivatives(case):
    run, inputs = convolution(case)
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(lambda *x: run(*x).pow(3), inputs, fast_mode=True)


@pytest.mark.parametrize('kept', [0, 1])
def test_one_constant_operand(kept):
    run, inputs = convolution('halving even')
    inputs = [x.detach().requires_grad_(i == kept) for i, x in enumerate(inputs)]
    assert gradcheck(run, inputs) and gradgradcheck(lambda *x: run(*x).square(), inputs)


def test_third_derivative():
    run, inputs = convolution('halving odd')
    found = []
    for impl in ('auto', 'ref'):
        value = run(*inputs, impl).pow(4).sum()
        for _ in range(3):
            value = sum(g.square().sum() for g in torch.autograd.grad(value, inputs, create_graph=True))
        found.append(value)
    torch.testing.assert_close(*found, rtol=1e-10, atol=0)


def test_torchs_own_without_gradients(monkeypatch):
    run, inputs = convolution('same size')
    monkeypatch.setattr(torch, 'convolution', None)
    with torch.no_grad():
        run(*inputs)
    with pytest.raises(TypeError):
        run(*inputs)


def layer(x, weight, bias):
    return bias_act(conv2d_resample(x, weight, make_filter(), down=2), bias, 'lrelu')


def test_no_weight_gradients():
    """Gradients of inputs stay and can be differentiated by weights, which have none in this pass."""
    x, weight, bias = draw(2, 2, 6, 6, grad=True), draw(3, 2, 3, 3, seed=1, grad=True), draw(3, grad=True)
    found = []
    for context in (no_weight_gradients, torch.enable_grad):
        y = layer(x, weight, bias)
        with context():
            (grad,) = torch.autograd.grad(y.square().sum(), [x], create_graph=True)
        found.append((grad, *torch.autograd.grad(grad.square().sum(), [x, weight, bias])))
    for ours, usual in zip(*found, strict=True):
        torch.testing.assert_close(ours, usual, rtol=0, atol=0)
    with no_weight_gradients():
        grads = torch.autograd.grad(layer(x, weight, bias).sum(), [weight, bias], allow_unused=True)
    assert grads == (None, None) and not no_weight_gradients.active


def test_no_sums_for_gradients_of_a_bias(monkeypatch):
    x, weight, bias = draw(2, 2, 6, 6, grad=True), draw(3, 2, 3, 3, seed=1), draw(3, grad=True)
    monkeypatch.setattr(bias_act_module, '_backward_op', None)
    with no_weight_gradients():
        torch.autograd.grad(layer(x, weight, bias).sum(), x)
    with pytest.raises(TypeError):
        torch.autograd.grad(layer(x, weight, bias).sum(), x)


def test_contexts_nest():
    with no_weight_gradients():
        with no_weight_gradients():
            pass
        assert no_weight_gradients.active
    assert not no_weight_gradients.active


class Filters(TorchDispatchMode):
    """Notes the sizes of all filters of convolutions, and how often weights had gradients."""

    def __init__(self):
        super().__init__()
        self.sizes, self.weight_gradients = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution:
            self.sizes.add(tuple(args[1].shape[2:]))
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.sizes.add(tuple(args[2].shape[2:]))
            self.weight_gradients += args[-1][1]
        return func(*args, **(kwargs or {}))


def filters_of(phase, preset):
    """Runs a phase of a preset with two clips without data, as on a GPU but for the types."""
    config = PRESETS[preset]('none.zip')
    with FakeTensorMode(), Filters() as found:
        networks = train_mode(build_networks(config), phase)
        estimate._run_phase(config.loss.build(), phase, networks, *estimate._batches(networks.G, 2, 2))
    return found


def test_no_filter_is_as_large_as_an_image(choose_kernels):
    sizes = filters_of('Dreg', 'pv3d-voxceleb').sizes
    assert sizes and max(max(size) for size in sizes) <= 6
    choose_kernels('auto')
    assert (
        max(max(size) for size in filters_of('Dreg', 'pv3d-voxceleb').sizes) >= 512
    )  # torch's own: it would be found


def test_r1_takes_gradients_of_weights_once(monkeypatch):
    """A weight has two parts of a gradient, through its use and through the gradient that R1 squares."""
    networks = build_networks(PRESETS['tiny']('none.zip'))
    layers = sum(isinstance(m, Conv2d) for n in networks[1:] for m in n.modules())
    assert filters_of('Dreg', 'tiny').weight_gradients == 2 * layers
    monkeypatch.setattr(loss_math, 'no_weight_gradients', contextlib.nullcontext)
    assert filters_of('Dreg', 'tiny').weight_gradients == 3 * layers


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='torch without oneDNN')
def test_pixels_on_one_thread_go_to_onednn(choose_kernels):
    """Which torch does with large batches alone; the result and both derivatives stay those of a product."""
    choose_kernels('auto')
    x, weight = draw(2, 3, 5, 4, grad=True), draw(6, 3, 1, 1, seed=1, grad=True)
    found = []
    for run in (conv2d, lambda x, w: torch.einsum('nchw,oc->nohw', x, w[:, :, 0, 0])):
        leaves = [t.detach().float().requires_grad_() for t in (x, weight)]
        with torch.profiler.profile() as profiler:
            y = run(*leaves)
        calls = {event.key for event in profiler.key_averages()}
        grads = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        found.append([y, *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)])
        assert ('aten::mkldnn_convolution' in calls) == (run is conv2d)
    for ours, product in zip(*found, strict=True):
        assert (ours - product).norm() < 1e-5 * product.norm()
