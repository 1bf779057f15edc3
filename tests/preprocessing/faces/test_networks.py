"""The two face networks against outputs of MediaPipe's own graphs."""

import numpy as np
import pytest
import torch

from preprocessing.faces.networks import BlazeFace, MeshNetwork
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
