"""Inception-v3 of the FID: against torchvision's, from which its pools differ; the resize against a loop."""

import itertools

import numpy as np
import pytest
import torch
from torchvision.models import inception_v3

from metrics.detectors import inception

BYTES_OF_FILE = 95628359  # pt_inception-2015-12-05-6726825d.pth


@pytest.fixture(scope='module')
def network():
    generator = torch.Generator().manual_seed(0)
    network = inception.FIDInception()
    for name, tensor in network.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.uniform_(0, 1, generator=generator)
    return network.eval().requires_grad_(False)


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def torchvision_features(network, images):
    other = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).eval()
    other.load_state_dict(network.state_dict())  # strict: the names are torchvision's
    other.fc = torch.nn.Identity()
    with torch.no_grad():
        return other((images.float() - 128) / 128)


def count_padding(x):
    return torch.nn.functional.avg_pool2d(x, 3, 1, 1)


def test_against_torchvision_with_its_pools(network, monkeypatch):
    images = random_images(2, 3, 299, 299)
    expected = torchvision_features(network, images)
    ours = network(images)
    assert ours.shape == (2, 2048) and ours.dtype == torch.float32
    assert (ours - expected).abs().max() > 1e-2 * expected.abs().max()  # the pools matter
    monkeypatch.setattr(inception, '_average', count_padding)
    monkeypatch.setattr(inception._LastBlock, 'pool', inception._BlockE.pool)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_which_block_takes_which_pool(network):
    """Averages of ones stay ones when they count no padding; a ramp shows the last block's maximum."""
    ramp = torch.arange(25.0).view(1, 1, 5, 5)
    for name in (
        'Mixed_5b',
        'Mixed_5c',
        'Mixed_5d',
        'Mixed_6b',
        'Mixed_6c',
        'Mixed_6d',
        'Mixed_6e',
        'Mixed_7b',
    ):
        block = getattr(network, name)
        seen = []
        hook = block.branch_pool.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        block(torch.ones(1, block.branch_pool.conv.in_channels, 5, 5))
        hook.remove()
        assert torch.equal(seen[0], torch.ones_like(seen[0])), name
    assert network.Mixed_7c.pool(ramp)[0, 0, 1, 1] == 12 and network.Mixed_7b.pool(ramp)[0, 0, 1, 1] == 6


def loop_resize(image, size):
    """TensorFlow 1's rule, pixel by pixel: [h, w] -> [size, size]."""
    h, w = image.shape
    result = np.zeros((size, size))
    for i, j in itertools.product(range(size), range(size)):
        y, x = i * h / size, j * w / size
        y0, x0 = int(np.floor(y)), int(np.floor(x))
        y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        top = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * (x - x0)
        bottom = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * (x - x0)
        result[i, j] = top + (bottom - top) * (y - y0)
    return result


@pytest.mark.parametrize('source', [(5, 7), (64, 64), (512, 300), (1, 1), (2, 299)])
def test_resize_against_a_loop(source):
    image = random_images(1, 1, *source).float()
    result = inception.resize_tf1(image, 299)
    assert result.shape == (1, 1, 299, 299)
    np.testing.assert_allclose(
        result[0, 0].numpy(), loop_resize(image[0, 0].double().numpy(), 299), atol=1e-2
    )


def test_what_the_first_layer_sees(network):
    """Black is -1, 128 is 0; images of other sizes come as 299x299."""
    seen = []
    hook = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    levels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 40, 60)
    network(levels)
    hook.remove()
    assert seen[0].shape == (3, 3, 299, 299)
    assert [seen[0][i].unique().tolist() for i in range(3)] == [[-1.0], [0.0], [127 / 128]]


def test_tensors_fill_the_public_file(network):
    """The bytes of all tensors, with the counters, fill the public file but for names and padding."""
    state = network.state_dict()
    assert state['fc.weight'].shape == (1008, 2048) and not any(n.startswith('AuxLogits') for n in state)
    size = sum(t.numel() * t.element_size() for t in state.values())
    assert 0 < BYTES_OF_FILE - size < 400 * len(state)
