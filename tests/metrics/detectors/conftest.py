"""Fixtures of networks whose public files are not part of the repository."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope='session')
def random_weights():
    """Returns a function that gives a network weights which keep the scale, and statistics that matter."""

    def fill(network):
        generator = torch.Generator().manual_seed(0)
        for name, tensor in network.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif tensor.is_floating_point():
                low, high = (0.7, 1.6) if name.endswith('weight') else (-0.2, 0.2)
                tensor.uniform_(low, high, generator=generator)
        return network.eval().requires_grad_(False)

    return fill


@pytest.fixture(scope='session')
def assert_fills():
    """Returns a check that the bytes of all tensors fill a file but for names and padding."""

    def check(state, size, counters=False):
        kept = [t for n, t in state.items() if counters or not n.endswith('num_batches_tracked')]
        assert 0 < size - sum(t.numel() * t.element_size() for t in kept) < 400 * len(kept)

    return check


@pytest.fixture(scope='session')
def interpolate():
    """Returns bilinear interpolation of an image [h, w] at rows [H] and columns [W], clamped."""

    def run(image, rows, columns):
        h, w = image.shape
        down, across = (
            np.maximum(1 - np.abs(np.clip(p, 0, n - 1)[:, None] - np.arange(n)), 0)
            for p, n in ((rows, h), (columns, w))
        )
        return down @ image @ across.T

    return run
