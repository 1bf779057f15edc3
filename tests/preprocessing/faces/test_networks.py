"""The two face networks against outputs of MediaPipe's own graphs."""

import numpy as np
import pytest
import torch

from preprocessing.faces.networks import BlazeBlock, BlazeFace, MeshNetwork
from support.paths import GOLDEN


def waves(size, low):
    """A smooth colourful image, float32 [1, 3, size, size] in low..1."""
    y, x = np.mgrid[:size, :size] / size
    channels = [np.sin(9 * x + k) * np.cos(7 * y - 2 * k) + 0.5 * np.sin(40 * x * y) for k in range(3)]
    image = np.stack(channels) / 3 + 0.5
    return torch.from_numpy((low + (1 - low) * image).astype(np.float32)[None])


@pytest.mark.parametrize(
    ('network', 'image', 'keys'),
    [
        (MeshNetwork, waves(192, 0), ('conv2d_21', 'conv2d_31')),
        (BlazeFace, waves(128, -1), ('regressors', 'classificators')),
    ],
)
def test_outputs_are_those_that_litert_gave(network, image, keys):
    """The golden file holds what ai-edge-litert 2.3.0 makes of `waves`; every eighth anchor of BlazeFace."""
    every = 8 if network is BlazeFace else 1
    with np.load(GOLDEN / 'face_networks.npz') as golden, torch.inference_mode():
        for key, atol, ours in zip(keys, (1e-3, 1e-4), network()(image), strict=True):  # pixels, logits
            assert np.abs(golden[key]).max() > 1
            ours = np.atleast_1d(ours[0].numpy())[::every]
            np.testing.assert_allclose(ours.ravel(), golden[key].ravel(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize(('out_channels', 'stride'), [(4, 1), (6, 1), (6, 2)])
def test_a_block_against_loops(out_channels, stride):
    """Padding is one pixel all around or, with a stride, only at the right and bottom."""
    torch.manual_seed(0)
    block = BlazeBlock(4, out_channels, stride, torch.nn.ReLU())
    x = torch.randn(1, 4, 6, 8)
    with torch.no_grad():
        y = block(x)
        padded = torch.zeros(1, 4, 8, 10)
        at = 2 - stride
        padded[..., at : at + 6, at : at + 8] = x
        assert y.shape == (1, out_channels, 6 // stride, 8 // stride)
        for i, j in np.ndindex(*y.shape[2:]):
            a, b = i * stride, j * stride
            window = padded[0, :, a : a + 3, b : b + 3]
            hidden = (window * block.depthwise.weight[:, 0]).sum(dim=(1, 2)) + block.depthwise.bias
            expected = block.pointwise.weight[..., 0, 0] @ hidden + block.pointwise.bias
            expected[:4] += x[0, :, a : a + stride, b : b + stride].amax(dim=(1, 2))
            torch.testing.assert_close(y[0, :, i, j], expected.relu())


def test_anchors():
    anchors = BlazeFace().anchors.numpy()
    assert anchors.shape == (896, 2)
    np.testing.assert_allclose(anchors[:3], [[1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32]])
    np.testing.assert_allclose(
        anchors[[511, 512, 517, 518, 895]] * 16, [[15.5] * 2, [1, 1], [1, 1], [3, 1], [15] * 2]
    )
