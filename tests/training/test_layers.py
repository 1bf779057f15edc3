"""Layers: equalised learning rate, variances that stay, noise, clamps."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from support.tiny import differs, same, seeded
from torch_utils.ops import bias_act as bias_act_module
from torch_utils.ops import kernels
from torch_utils.ops import upfirdn2d as upfirdn2d_module
from torch_utils.ops.modulated_conv2d import modulated_conv2d
from training.networks.layers import (
    Conv2d,
    FullyConnected,
    SynthesisLayer,
    ToRGB,
    cast,
    normalize_2nd_moment,
)


def test_normalize_2nd_moment():
    x = 3 * torch.randn((4, 32), generator=seeded(0))
    same(normalize_2nd_moment(x).square().mean(dim=1), torch.ones(4), 1e-5)
    assert normalize_2nd_moment(torch.zeros(1, 8)).isfinite().all()


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('precision', ['fp32', 'fp16', 'bf16'])
def test_channels_come_last(precision, device):
    """In every type, on tensors without data; half precision on CUDA alone."""
    half = {'fp16': torch.float16, 'bf16': torch.bfloat16}
    with FakeTensorMode():
        x = cast(torch.empty(2, 3, 4, 5, device=device), precision, torch.empty(1, device=device))
    assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    assert x.dtype == (half.get(precision, torch.float32) if device == 'cuda' else torch.float32)


@pytest.mark.parametrize('lr_mul', [1.0, 0.01])
@pytest.mark.parametrize('act', ['linear', 'lrelu'])
def test_fully_connected(act, lr_mul):
    """Equalised learning rate: stored weights are N(0, 1) / lr_mul, what acts has variance 1 / inputs."""
    torch.manual_seed(0)
    layer = FullyConnected(256, 512, act=act, lr_mul=lr_mul, bias_init=0.5)
    assert layer.weight.std().item() == pytest.approx(1 / lr_mul, rel=0.02)
    x = torch.randn((64, 256), generator=seeded(1))
    y = x @ layer.weight.t() * lr_mul / 16 + 0.5
    expected = y if act == 'linear' else torch.where(y > 0, y, 0.2 * y) * 2**0.5
    same(layer(x), expected, 1e-4)
    assert (layer(x) - 0.5 if act == 'linear' else layer(x)).std().item() == pytest.approx(1, abs=0.2)


def test_convolutions_keep_the_variance():
    torch.manual_seed(0)
    x = torch.randn((4, 32, 16, 16), generator=seeded(1))
    assert Conv2d(32, 64, 3)(x)[:, :, 1:-1, 1:-1].square().mean().item() == pytest.approx(1, abs=0.15)
    w = torch.randn((4, 8), generator=seeded(2))
    y = SynthesisLayer(32, 64, 8, 16)(x, w, 'none')[:, :, 1:-1, 1:-1]
    assert y.square().mean().item() == pytest.approx(1, abs=0.15)


def test_conv2d_clamps_before_its_gain():
    torch.manual_seed(0)
    x = 100 * torch.randn((2, 4, 8, 8), generator=seeded(0))
    y = Conv2d(4, 4, 3, down=2)(x, gain=0.5, clamp=20.0)
    assert y.shape == (2, 4, 4, 4) and y.abs().max() == 10


def test_a_linear_convolution_has_its_gain_in_the_weight():
    """No pass over the features for it; the skip of discriminators."""
    torch.manual_seed(0)
    skip, x = (
        Conv2d(4, 6, 1, act='linear', down=2, bias=False),
        torch.randn((2, 4, 8, 8), generator=seeded(0)),
    )
    same(skip(x, gain=0.3), 0.3 * skip(x), 1e-6)
    assert 'BiasAct' not in type(skip(x, gain=0.3).grad_fn).__name__
    biased = Conv2d(4, 6, 1, act='linear')
    biased.bias.data.fill_(2.0)
    same(biased(x, gain=0.3), 0.3 * biased(x), 1e-6)


def test_noise_modes():
    torch.manual_seed(0)
    layer = SynthesisLayer(4, 4, 8, 8)
    layer.noise_strength.data.fill_(0.5)
    x = torch.randn((1, 4, 8, 8), generator=seeded(0)).expand(2, -1, -1, -1)  # two equal samples
    w = torch.randn((1, 8), generator=seeded(1)).expand(2, -1)
    silent, fixed = layer(x, w, 'none'), layer(x, w, 'const')
    drawn = layer(x, w, 'random', seeded(3))
    same(silent[0], silent[1], 1e-6)
    same(fixed[0], fixed[1], 1e-6)
    differs(drawn[0], drawn[1])
    differs(silent, fixed)
    differs(fixed, drawn)
    assert torch.equal(drawn, layer(x, w, 'random', seeded(3)))
    with pytest.raises(ValueError, match='generator'):
        layer(x, w, 'random')


def test_synthesis_layer_is_its_formula():
    torch.manual_seed(0)
    layer = SynthesisLayer(4, 6, 8, 8, clamp=1.5)
    layer.bias.data.normal_()
    layer.noise_strength.data.fill_(0.5)
    x, w = torch.randn((2, 4, 8, 8), generator=seeded(0)), torch.randn((2, 8), generator=seeded(1))
    y = modulated_conv2d(x, layer.weight, layer.affine(w))
    y = y + 0.5 * layer.noise_const + layer.bias[:, None, None]
    y = torch.where(y > 0, y, 0.2 * y) * 2**0.5
    assert y.abs().max() > 1.5
    same(layer(x, w, 'const'), y.clamp(-1.5, 1.5), 1e-5)


def test_raw_image_is_clamped():
    assert ToRGB(4, 3, 8, clamp=256.0)(1e9 * torch.ones(1, 4, 2, 2), torch.ones(1, 8)).abs().max() == 256


@pytest.mark.parametrize('noise_mode', ['random', 'const', 'none'])
@pytest.mark.parametrize('up', [1, 2])
def test_synthesis_layer_uses_the_kernels(noise_mode, up, monkeypatch):
    if not kernels.has_kernels(torch.zeros(1), 'auto'):
        pytest.skip('no kernels here')
    for module in (bias_act_module, upfirdn2d_module):
        monkeypatch.setattr(module, '_reference', None)  # calling it would raise
    layer = SynthesisLayer(4, 6, 8, 8, up=up)
    x, w = torch.randn(2, 4, 8 // up, 8 // up), torch.randn(2, 8)
    assert layer(x, w, noise_mode, seeded(0)).shape == (2, 6, 8, 8)


@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (0, 3)])
def test_an_empty_batch_has_second_derivatives(shape):
    x, scale = torch.zeros(shape, requires_grad=True), torch.ones(0, 3, requires_grad=True)
    modulation = bias_act_module.Modulation(scale)
    y = bias_act_module.bias_act(x, act='lrelu', modulation=modulation)
    grads = torch.autograd.grad(y.sum(), [x, scale], create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in grads), [x, scale], allow_unused=True)
    assert all(g is None or g.numel() == 0 for g in again)
