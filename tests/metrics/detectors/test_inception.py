"""Inception-v3 of the FID: against torchvision's, from which its pools differ; the resize by hand."""

import numpy as np
import pytest
import torch
from torchvision.models import inception_v3

from metrics.detectors import inception

BYTES_OF_FILE = 95628359  # pt_inception-2015-12-05-6726825d.pth


@pytest.fixture(scope='module')
def network(random_weights):
    return random_weights(inception.FIDInception())


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_against_torchvision_with_its_pools(network, monkeypatch):
    other = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).eval()
    other.load_state_dict(network.state_dict())  # strict: the names are torchvision's
    other.fc = torch.nn.Identity()
    images = random_images(2, 3, 299, 299)
    with torch.no_grad():
        expected = other((images.float() - 128) / 128)
    ours = network(images)
    assert ours.shape == (2, 2048) and ours.dtype == torch.float32
    assert (ours - expected).abs().max() > 1e-2 * expected.abs().max()  # the pools matter
    monkeypatch.setattr(inception, '_average', lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1))
    monkeypatch.setattr(inception._LastBlock, 'pool', inception._BlockE.pool)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['5b', '5c', '5d', '6b', '6c', '6d', '6e', '7b'])
def test_averages_count_no_padding(network, name):
    """Averages of ones stay ones."""
    block, seen = getattr(network, f'Mixed_{name}'), []
    hook = block.branch_pool.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(torch.ones(1, block.branch_pool.conv.in_channels, 5, 5))
    hook.remove()
    assert torch.equal(seen[0], torch.ones_like(seen[0]))


def test_last_block_takes_the_maximum(network):
    ramp = torch.arange(25.0).view(1, 1, 5, 5)
    assert network.Mixed_7c.pool(ramp)[0, 0, 1, 1] == 12 and network.Mixed_7b.pool(ramp)[0, 0, 1, 1] == 6


@pytest.mark.parametrize('source', [(5, 7), (64, 64), (512, 300), (1, 1), (2, 299)])
def test_resize_is_that_of_tensorflow(source, interpolate):
    image = random_images(1, 1, *source).float()
    result = inception.resize_tf1(image, 299)
    assert result.shape == (1, 1, 299, 299)
    expected = interpolate(image[0, 0].double().numpy(), *(np.arange(299) * n / 299 for n in source))
    np.testing.assert_allclose(result[0, 0].numpy(), expected, atol=1e-2)


def test_what_the_first_layer_sees(network):
    """Black is -1, 128 is 0; images of other sizes come as 299x299."""
    seen = []
    hook = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    levels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 40, 60)
    network(levels)
    hook.remove()
    assert seen[0].shape == (3, 3, 299, 299)
    assert [seen[0][i].unique().tolist() for i in range(3)] == [[-1.0], [0.0], [127 / 128]]


def test_tensors_fill_the_public_file(network, assert_fills):
    state = network.state_dict()
    assert state['fc.weight'].shape == (1008, 2048) and not any(n.startswith('AuxLogits') for n in state)
    assert_fills(state, BYTES_OF_FILE, counters=True)
