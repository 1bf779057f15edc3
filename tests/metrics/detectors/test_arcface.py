"""IR-SE50 against an implementation that only knows the tensors of the public file."""

import pytest
import torch
import torch.nn.functional as F

from metrics.detectors.arcface import ArcFace

BYTES_OF_FILE = 175367323  # model_ir_se50.pth


@pytest.fixture(scope='module')
def network():
    """Random weights that keep the scale of what passes, and statistics that matter."""
    generator = torch.Generator().manual_seed(0)
    network = ArcFace()
    for name, tensor in network.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.is_floating_point():
            positive = name.endswith('weight')
            tensor.uniform_(0.2 if positive else -0.2, 1 if positive else 0.2, generator=generator)
    return network.eval().requires_grad_(False)


def crops(count, seed=1):
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed)) * 255


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
    x = crops(2)
    expected = by_names(network.state_dict(), x / 127.5 - 1)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the images are told apart
    torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-5)


def test_tensors_fill_the_public_file(network):
    """The bytes of all tensors, but for counters, fill the public file but for names and padding."""
    state = {n: t for n, t in network.state_dict().items() if not n.endswith('num_batches_tracked')}
    assert state['body.23.res_layer.5.fc2.weight'].shape == (512, 32, 1, 1)
    assert {n for n in state if n.startswith('output_layer.3')} == {
        'output_layer.3.weight',
        'output_layer.3.bias',
    }
    assert [i for i in range(24) if f'body.{i}.shortcut_layer.0.weight' in state] == [3, 7, 21]
    size = sum(4 * t.numel() for t in state.values())
    assert 0 < BYTES_OF_FILE - size < 400 * len(state)


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch(network):
    x = crops(2)
    embeddings = network(x)
    assert embeddings.shape == (2, 512) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(network(x[1:]), embeddings[1:], rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_image(network):
    """The slope along a direction is what a small step along it changes."""
    x = crops(1).double().requires_grad_()
    double = ArcFace().double().eval().requires_grad_(False)
    double.load_state_dict(network.state_dict())
    target = F.normalize(torch.ones(512, dtype=torch.float64), dim=0)
    (double(x) @ target).sum().backward()
    direction = crops(1, seed=2).double() - 127.5
    step = 1e-4
    with torch.no_grad():
        ends = [(double(x + s * direction) @ target).item() for s in (step, -step)]
    assert (x.grad * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)
