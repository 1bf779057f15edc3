"""I3D: padding, blocks and preprocessing against loops, the whole against what its file must look like."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics.detectors import i3d

BYTES_OF_FILE = 50939526  # i3d_pretrained_400.pt


def randomize(module, seed=0):
    """Gives every tensor, the statistics of batch normalisation among them, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2, generator=generator)
        elif name.endswith('bn.weight'):
            tensor.uniform_(0.7, 1.6, generator=generator)
        elif tensor.is_floating_point():
            fan = max(tensor[0].numel(), 1) if tensor.ndim > 1 else 25
            tensor.normal_(0, fan**-0.5, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def network():
    return randomize(i3d.I3D())


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


def windows(x, kernel, stride):
    """Yields (output position, window with zeros outside) of [C, T, H, W], cell by cell."""
    sizes = x.shape[1:]
    outputs = [-(-n // s) for n, s in zip(sizes, stride, strict=True)]
    before = [
        max((o - 1) * s + k - n, 0) // 2 for o, s, k, n in zip(outputs, stride, kernel, sizes, strict=True)
    ]
    for place in itertools.product(*map(range, outputs)):
        window = torch.zeros(len(x), *kernel, dtype=x.dtype)
        for offset in itertools.product(*map(range, kernel)):
            cell = [p * s - b + o for p, s, b, o in zip(place, stride, before, offset, strict=True)]
            if all(0 <= c < n for c, n in zip(cell, sizes, strict=True)):
                window[(slice(None), *offset)] = x[(slice(None), *cell)]
        yield place, window


@pytest.mark.parametrize(('kernel', 'stride'), [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_convolution_against_a_loop(kernel, stride):
    unit = randomize(i3d.UnitConv(2, 3, kernel, stride)).double()
    x = random(1, 2, 3, 6, 5).double()
    result = unit(x)[0]
    bn, weight = unit.bn, unit.conv3d.weight
    count = 0
    for place, window in windows(x[0], (kernel,) * 3, (stride,) * 3):
        sums = (weight * window).sum(dim=(1, 2, 3, 4))
        normal = (sums - bn.running_mean) / (bn.running_var + 1e-5).sqrt() * bn.weight + bn.bias
        expected = normal.clamp(min=0)
        torch.testing.assert_close(result[(slice(None), *place)], expected, rtol=1e-10, atol=1e-10)
        count += 1
    assert count == result[0].numel()


@pytest.mark.parametrize(
    ('kernel', 'stride'), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2,) * 3, (2,) * 3)]
)
def test_max_pool_against_a_loop(kernel, stride):
    x = random(1, 2, 3, 5, 6).clamp(min=0)
    result = i3d.MaxPoolSame(kernel, stride)(x)[0]
    cells = dict(windows(x[0], kernel, stride))
    assert len(cells) == result[0].numel()
    for place, window in cells.items():
        assert torch.equal(result[(slice(None), *place)], window.amax(dim=(1, 2, 3)))


def test_block_concatenates_its_branches():
    block = randomize(i3d.Mixed(5, (2, 3, 4, 2, 3, 6)))
    x = random(2, 5, 3, 4, 5).relu()
    pooled = F.max_pool3d(F.pad(x, (1,) * 6), 3, 1)
    branches = [block.b0(x), block.b1b(block.b1a(x)), block.b2b(block.b2a(x)), block.b3b(pooled)]
    torch.testing.assert_close(block(x), torch.cat(branches, dim=1))


def test_tensors_are_those_of_the_public_file(network):
    """Names as in pytorch-i3d; the bytes fill the public file but for the names and the zip around them."""
    state = network.state_dict()
    assert state['Conv3d_1a_7x7.conv3d.weight'].shape == (64, 3, 7, 7, 7)
    assert state['Mixed_3b.b1b.conv3d.weight'].shape == (128, 96, 3, 3, 3)
    assert state['Mixed_4e.b3b.bn.running_var'].shape == (64,)
    assert state['Mixed_5c.b0.conv3d.weight'].shape == (384, 832, 1, 1, 1)
    assert state['logits.conv3d.weight'].shape == (400, 1024, 1, 1, 1) and state[
        'logits.conv3d.bias'
    ].shape == (400,)
    assert not any('b3a' in name or 'MaxPool' in name for name in state)
    counted = [t for name, t in state.items() if not name.endswith('num_batches_tracked')]
    size = sum(4 * t.numel() for t in counted)
    assert 0 < BYTES_OF_FILE - size < 400 * len(counted)


def test_logits_do_not_depend_on_the_batch(network):
    frames = random_frames(2, 9, 3, 40, 40)
    together = network(frames)
    assert together.shape == (2, 400) and together.dtype == torch.float32
    assert together.std(dim=0).mean() > 1e-4 * together.abs().mean()
    torch.testing.assert_close(together[1:2], network(frames[1:2]), rtol=1e-4, atol=1e-5)


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


def bilinear(image, height, width):
    """Samples [h, w] between its four nearest pixel centres, without antialiasing: [height, width]."""
    h, w = image.shape
    result = np.zeros((height, width))
    for i, j in itertools.product(range(height), range(width)):
        y = np.clip((i + 0.5) * h / height - 0.5, 0, h - 1)
        x = np.clip((j + 0.5) * w / width - 0.5, 0, w - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
        bottom = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
        result[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return result


@pytest.mark.parametrize('size', [(300, 260), (50, 70), (224, 224)])
def test_whole_frames_are_resized(size):
    frames = random_frames(2, 9, 3, *size)
    x = i3d.resize_whole(frames)
    assert x.shape == (2, 3, 9, 224, 224)
    expected = bilinear(frames[1, 7, 2].numpy().astype(float), 224, 224) / 255 * 2 - 1
    np.testing.assert_allclose(x[1, 2, 7].numpy(), expected, atol=2e-4)


def test_range():
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 3, 30, 30)
    x = i3d.resize_whole(black_and_white)
    torch.testing.assert_close(x[:, :, 0], torch.full((1, 3, 224, 224), -1.0))
    torch.testing.assert_close(x[:, :, 1], torch.full((1, 3, 224, 224), 1.0))


def test_least_frames(network):
    assert network(random_frames(1, network.least_frames, 3, 16, 16)).shape == (1, 400)
    with pytest.raises(RuntimeError):
        network(random_frames(1, network.least_frames - 1, 3, 16, 16))
