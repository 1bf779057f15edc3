"""IR-SE50 against an implementation that only knows the tensors of the public file."""

import copy

import pytest
import torch
import torch.nn.functional as F

from metrics.detectors.arcface import ArcFace

BYTES_OF_FILE = 175367323  # model_ir_se50.pth


@pytest.fixture(scope='module')
def network(random_weights):
    return random_weights(ArcFace())


def by_names(state, x):
    """The network in functions; everything it knows comes from the names and shapes of the tensors."""

    def bn(x, name):
        parts = (state[f'{name}.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias'))
        mean, var, weight, bias = (p.view(-1, *[1] * (x.ndim - 2)) for p in parts)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(x, name):
        slope = state[f'{name}.weight'].view(-1, 1, 1)
        return torch.where(x > 0, x, x * slope)

    x = prelu(bn(F.conv2d(x, state['input_layer.0.weight'], padding=1), 'input_layer.1'), 'input_layer.2')
    widths = [64] * 3 + [128] * 4 + [256] * 14 + [512] * 3
    for i, width in enumerate(widths):
        stride = 2 if i in (0, 3, 7, 21) else 1
        res, cut = f'body.{i}.res_layer', f'body.{i}.shortcut_layer'
        if f'{cut}.0.weight' in state:
            shortcut = bn(F.conv2d(x, state[f'{cut}.0.weight'], stride=stride), f'{cut}.1')
        else:
            shortcut = x[:, :, ::stride, ::stride]
        y = prelu(F.conv2d(bn(x, f'{res}.0'), state[f'{res}.1.weight'], padding=1), f'{res}.2')
        y = bn(F.conv2d(y, state[f'{res}.3.weight'], padding=1, stride=stride), f'{res}.4')
        fc1, fc2 = (state[f'{res}.5.fc{k}.weight'][:, :, 0, 0] for k in (1, 2))
        assert fc1.shape == (width // 16, width)
        gate = ((y.mean(dim=(2, 3)) @ fc1.T).relu() @ fc2.T).sigmoid()
        x = y * gate[:, :, None, None] + shortcut
    x = bn(x, 'output_layer.0').flatten(1)
    x = bn(x @ state['output_layer.3.weight'].T + state['output_layer.3.bias'], 'output_layer.4')
    return x / x.norm(dim=1, keepdim=True)


def test_against_the_tensors_of_the_file(network):
    network = copy.deepcopy(network).double()
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1)).double() * 255
    expected = by_names(network.state_dict(), x / 127.5 - 1)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the images are told apart
    ours = network(x.requires_grad_())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    assert ours.requires_grad


def test_tensors_fill_the_public_file(network, assert_fills):
    state = network.state_dict()
    assert state['body.23.res_layer.5.fc2.weight'].shape == (512, 32, 1, 1)
    linear = {f'output_layer.3.{n}' for n in ('weight', 'bias')}
    assert {n for n in state if n.startswith('output_layer.3')} == linear
    assert [i for i in range(24) if f'body.{i}.shortcut_layer.0.weight' in state] == [3, 7, 21]
    assert_fills(state, BYTES_OF_FILE)
