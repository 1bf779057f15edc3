"""I3D: padding, blocks and preprocessing by hand, the whole against what its file must look like."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics.detectors import i3d

BYTES_OF_FILE = 50939526  # i3d_pretrained_400.pt


@pytest.fixture(scope='module')
def network(random_weights):
    return random_weights(i3d.I3D())


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_frames(*shape, seed=1):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_padding_is_that_of_tensorflow():
    """As many outputs as strides fit, rounded up; what is missing is padded, the odd cell at the end."""
    for n, k, s in itertools.product(range(1, 20), range(1, 8), range(1, 4)):
        outputs = -(-n // s)
        total = max((outputs - 1) * s + k - n, 0)
        before, after = i3d.same_padding([n], [k], [s])
        assert before + after == total and after - before in (0, 1), (n, k, s)
    assert i3d.same_padding([4, 5, 6], [1, 3, 7], [1, 2, 2]) == [2, 3, 1, 1, 0, 0]  # last axis first


def test_convolution_by_hand(random_weights):
    unit = random_weights(i3d.UnitConv(2, 3, 7, 2)).double()
    x, bn = random(1, 2, 3, 6, 5).double(), unit.bn
    sums = F.conv3d(F.pad(x, (3, 3, 2, 3, 3, 3)), unit.conv3d.weight, stride=2)
    mean, var, weight, bias = (
        t.view(-1, 1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    expected = ((sums - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)
    torch.testing.assert_close(unit(x), expected, rtol=1e-10, atol=1e-10)


def test_block_concatenates_its_branches(random_weights):
    block = random_weights(i3d.Mixed(5, (2, 3, 4, 2, 3, 6)))
    x = random(2, 5, 3, 4, 5).relu()
    pooled = F.max_pool3d(F.pad(x, (1,) * 6), 3, 1)
    branches = [block.b0(x), block.b1b(block.b1a(x)), block.b2b(block.b2a(x)), block.b3b(pooled)]
    torch.testing.assert_close(block(x), torch.cat(branches, dim=1))


def test_tensors_are_those_of_the_public_file(network, assert_fills):
    """Names as in pytorch-i3d."""
    state = network.state_dict()
    shapes = {
        'Conv3d_1a_7x7.conv3d.weight': (64, 3, 7, 7, 7),
        'Mixed_3b.b1b.conv3d.weight': (128, 96, 3, 3, 3),
        'Mixed_4e.b3b.bn.running_var': (64,),
        'Mixed_5c.b0.conv3d.weight': (384, 832, 1, 1, 1),
        'logits.conv3d.weight': (400, 1024, 1, 1, 1),
        'logits.conv3d.bias': (400,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert not any('b3a' in name or 'MaxPool' in name for name in state)
    assert_fills(state, BYTES_OF_FILE)


def test_whole_network_against_its_blocks(network):
    """16 frames leave two temporal cells, 17 three: the logits of neighbouring pairs are averaged."""
    x = random(1, 3, 17, 224, 224)
    layers = dict(network.named_children())
    y = x
    for name in ('Conv3d_1a_7x7', 'MaxPool3d_2a_3x3', 'Conv3d_2b_1x1', 'Conv3d_2c_3x3'):
        y = layers[name](y)
    assert y.shape == (1, 192, 9, 56, 56)
    y = F.max_pool3d(F.pad(y, (0, 1, 0, 1)), (1, 3, 3), (1, 2, 2))
    y = layers['Mixed_3c'](layers['Mixed_3b'](y))
    y = F.max_pool3d(F.pad(y, (0, 1, 0, 1, 1, 1)), 3, 2)
    for name in 'bcdef':
        y = layers[f'Mixed_4{name}'](y)
    y = layers['Mixed_5c'](layers['Mixed_5b'](F.max_pool3d(F.pad(y, (0, 0, 0, 0, 0, 1)), 2, 2)))
    assert y.shape == (1, 1024, 3, 7, 7)
    means = torch.stack([y[:, :, :2].mean(dim=(2, 3, 4)), y[:, :, 1:].mean(dim=(2, 3, 4))])
    weight, bias = network.logits.conv3d.weight[:, :, 0, 0, 0], network.logits.conv3d.bias
    expected = (means @ weight.T + bias).mean(dim=0)
    torch.testing.assert_close(network.classify(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(300, 260), (50, 70), (224, 224)])
def test_whole_frames_are_resized(size, interpolate):
    """Between the nearest pixel centres, without antialiasing; black is -1, white 1."""
    frames = random_frames(2, 9, 3, *size)
    x = i3d.resize_whole(frames)
    assert x.shape == (2, 3, 9, 224, 224)
    places = ((np.arange(224) + 0.5) * n / 224 - 0.5 for n in size)
    expected = interpolate(frames[1, 7, 2].double().numpy(), *places) / 255 * 2 - 1
    np.testing.assert_allclose(x[1, 2, 7].numpy(), expected, atol=2e-4)


def test_least_frames(network):
    assert network(random_frames(1, network.least_frames, 3, 16, 16)).shape == (1, 400)
    with pytest.raises(RuntimeError):
        network(random_frames(1, network.least_frames - 1, 3, 16, 16))
