"""What only a GPU can show: kernels, half precision and training on CUDA against the CPU."""

import dataclasses

import pytest
import torch

from benchmarks import doctor
from support import tiny
from torch_utils.ops import kernels
from torch_utils.ops.bias_act import bias_act
from training.presets import PRESETS
from training.training_loop import Trainer
from training.volumetric_rendering.fused import DecoderWeights, Rays, Spec, integrate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]
SPEC = Spec('xy_xz_yz', 1.0, 0.001)


@pytest.fixture(scope='module', autouse=True)
def exact():
    """No TF32: its 10 bits would hide mistakes."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def test_kernels_build():
    kernels.load('cuda')


@pytest.mark.parametrize('number', range(len(doctor.cases(8, 'cpu'))))
def test_operators_agree_with_the_reference(number):
    case = doctor.cases(17, 'cuda')[number]  # a size without alignment
    assert max(doctor.errors(case, 'cuda', torch.float64)) < 1e-10
    assert max(doctor.errors(case, 'cuda', torch.float32)) < 1e-4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('number', range(len(doctor.cases(8, 'cpu'))))
def test_half_precision(number, layout, dtype):
    """Values and gradients are those of float32, to the precision of the type."""
    case = doctor.cases(32, 'cuda')[number]
    inputs = [torch.randn(s, generator=tiny.seeded(i)).cuda() for i, s in enumerate(case.shapes)]
    inputs[0] = inputs[0].contiguous(memory_format=layout)
    found = []
    for kind, impl in ((dtype, 'auto'), (torch.float32, 'ref')):
        leaves = [inputs[0].to(kind).requires_grad_(), *(x.clone().requires_grad_() for x in inputs[1:])]
        if case.name.startswith('conv2d_resample'):
            leaves[1] = leaves[1].detach().to(kind).requires_grad_()
        y = case.run(impl, *leaves)
        assert y.dtype == kind
        found.append([y, *torch.autograd.grad(y.float().square().mean(), leaves)])
    limit = 0.02 if dtype == torch.float16 else 0.1
    for ours, reference in zip(*found, strict=True):
        assert (ours.float() - reference).abs().max() < limit * reference.abs().max()


@pytest.mark.parametrize('channels', [8, 32])
@pytest.mark.parametrize('samples', [2, 96, 200])
def test_rendering_agrees_with_the_cpu(channels, samples):
    random = tiny.seeded(0)
    planes = torch.randn(2, 3, channels, 32, 32, generator=random)
    shapes = ((64, channels), (64,), (1 + channels, 64), (1 + channels,))
    decoder = [torch.randn(s, generator=random) / s[-1] ** 0.5 for s in shapes]
    origins = torch.tensor([0.0, 0.0, 2.7]).expand(2, 50, 3)
    directions = torch.nn.functional.normalize(
        torch.randn(2, 50, 3, generator=random) * 0.15 - torch.eye(3)[2], dim=2
    )
    depths = (2.1 + 1.3 * torch.rand(2, 50, samples, generator=random)).sort(dim=2).values
    found = []
    for device, impl in (('cuda', 'cuda'), ('cpu', 'ref')):
        leaves = [x.to(device).requires_grad_() for x in (planes, *decoder)]
        rays = Rays(*(x.to(device) for x in (origins, directions, depths)))
        out = integrate(leaves[0], rays, DecoderWeights(*leaves[1:]), SPEC, impl)
        grads = torch.autograd.grad(sum(x.square().sum() for x in out), leaves)
        found.append([x.detach().cpu() for x in (*out, *grads)])
    for ours, reference in zip(*found, strict=True):
        assert (ours - reference).abs().max() < 1e-4 * reference.abs().max()


def test_networks_agree_with_the_cpu():
    found = []
    for device in ('cuda', 'cpu'):
        G, D_image, D_video = (
            network.to(device) for network in tiny.networks(tiny.generator(precision='fp32'))
        )
        z_a, z_m, t, c = (x.to(device) for x in tiny.codes(4))
        out = G(z_a, z_m, t, c.float())
        pair = D_video.pair_input(out.image.unflatten(0, (2, 2)), t.unflatten(0, (2, 2)))
        logits = [D_image(out.image, out.image_raw, c.float()), D_video(pair, c.float().unflatten(0, (2, 2)))]
        found.append([x.detach().cpu() for x in (*out, *logits)])
    for ours, reference in zip(*found, strict=True):
        assert (
            ours - reference
        ).abs().max() < 2e-2 * reference.abs().max()  # discriminators in half precision


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_clamped_elements_pass_no_gradient_in_half_precision(dtype):
    """The limit of a residual block, 256 / sqrt(2), is not a number of these types."""
    x = torch.tensor([[100.0, 300.0, 1000.0, -5000.0]], device='cuda', dtype=dtype, requires_grad=True)
    y = bias_act(x, act='lrelu', gain=0.5**0.5, clamp=256.0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad.float().cpu(), torch.tensor([[1.0, 0.0, 0.0, 0.0]]), rtol=0.01, atol=0)


@pytest.mark.parametrize('precision', ['fp32', 'fp16', 'bf16'])
def test_training_steps_and_resumes(data, tmp_path, precision):
    config = PRESETS['tiny'](str(data))
    parts = {
        n: dataclasses.replace(getattr(config, n), precision=precision)
        for n in ('generator', 'd_image', 'd_video')
    }
    config = dataclasses.replace(config, **parts)
    assert Trainer(config, tmp_path, torch.device('cuda')).train()
    longer = dataclasses.replace(config, total_nimg=config.total_nimg + 8)
    trainer = Trainer(longer, tmp_path, torch.device('cuda'))
    assert trainer.progress.cur_nimg == config.total_nimg
    assert trainer.train() and trainer.progress.nonfinite == 0
