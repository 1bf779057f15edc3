"""torch.compile sees the operators as opaque ones: networks are one graph, with their backward pass."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from support.tiny import D_CONFIG, G_CONFIG, build, seeded
from torch_utils.ops import kernels
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d
from training.camera import orbit_label
from training.networks.discriminators import ImageDiscriminator


@pytest.fixture(autouse=True)
def needs_kernels():
    if not kernels.has_kernels(torch.zeros(1), 'auto'):
        pytest.skip('no kernels here')
    yield
    torch.compiler.reset()


def agrees(network, inputs):
    """The compiled network is one graph and gives the values and gradients of the plain one."""
    compiled = torch.compile(network, backend='aot_eager', fullgraph=True)
    found = []
    for run in (compiled, network):
        y = run(*inputs)
        y = y if torch.is_tensor(y) else y.image
        grads = torch.autograd.grad(y.square().mean(), list(network.parameters()), allow_unused=True)
        found.append((y, *grads))
    for ours, plain in zip(*found, strict=True):
        if plain is not None:
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_generator_is_one_graph():
    G = build(G_CONFIG)
    z_a, z_m = (torch.randn(2, 16, generator=seeded(s)) for s in (0, 1))
    camera = orbit_label(torch.tensor([0.0, 0.2]), torch.zeros(2)).float()
    agrees(G, (z_a, z_m, torch.tensor([0.2, 0.6]), camera))


def test_discriminator_is_one_graph():
    D = build(ImageDiscriminator.Config(**D_CONFIG))
    image, raw = (torch.randn(2, 3, r, r, generator=seeded(r)) for r in (32, 8))
    agrees(D, (image, raw, torch.randn(2, 25, generator=seeded(2))))


def examples():
    x = torch.randn(2, 3, 5, 4, generator=seeded(0))
    scale, strength, bias = x[:, :, 0, 0].contiguous(), torch.tensor(0.5), torch.randn(3, generator=seeded(1))
    noise, numbers = torch.randn(1, 1, 5, 4, generator=seeded(2)), (0.2, 1.4, 2.0)
    last = x.contiguous(memory_format=torch.channels_last)
    return {
        'bias_act': (x, scale, noise, strength, bias, *numbers),
        'bias_act channels last': (last, scale, noise, strength, bias, *numbers),
        'bias_act_derivative': (x, x.cos(), *numbers),
        'bias_act_backward': (x, x.cos(), x.sin(), scale, noise, *numbers),
        'upfirdn2d': (x, make_filter(), 2, 1, [2, 1, 2, 1], False, 4.0),
        'upfirdn2d channels last': (last, make_filter(), 1, 2, [1, 1, 1, 1], True, 1.0),
    }


def test_operators_are_seen_by_who_looks_on():
    """Otherwise they call kernels at once, with the same result."""
    x = torch.randn(2, 3, 5, 4, generator=seeded(0))
    with torch.profiler.profile() as profiler:
        seen = upfirdn2d(bias_act(x, act='lrelu'), make_filter())
    assert {'pv3d::bias_act', 'pv3d::upfirdn2d'} <= {event.key for event in profiler.key_averages()}
    assert torch.equal(upfirdn2d(bias_act(x, act='lrelu'), make_filter()), seen)
    with FakeTensorMode():
        assert isinstance(bias_act(torch.empty(2, 3), act='lrelu'), FakeTensor)


@pytest.mark.parametrize('name', examples())
def test_operators_describe_themselves(name):
    """Schema, shapes and layouts for tracing are those of the kernels."""
    op = getattr(torch.ops.pv3d, name.partition(' ')[0]).default
    torch.library.opcheck(op, examples()[name], test_utils=('test_schema', 'test_faketensor'))
