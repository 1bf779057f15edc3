"""What only a GPU can show: kernels, half precision and training on CUDA against the CPU."""

import dataclasses

import pytest
import torch

from benchmarks import doctor, ops
from support import tiny
from torch_utils import misc
from torch_utils.ops.bias_act import bias_act
from training.presets import PRESETS
from training.training_loop import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]


@pytest.fixture(scope='module', autouse=True)
def exact():
    """No TF32: its 10 bits would hide errors."""
    misc.set_float32_precision('exact')


NAMES = [c.name for c in ops.cases(ops.Sizes(1, 2, 4, torch.float32, False), 'cpu')]


def errors(name, *sizes):
    (case,) = [c for c in ops.cases(ops.Sizes(2, 64, *sizes), 'cuda') if c.name == name]
    return max(doctor.errors(case))


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_operators_agree_with_the_reference(name, last):
    """Sizes without alignment; half precision to the precision of the type."""
    assert errors(name, 18, torch.float64, last) < 1e-10
    assert errors(name, 18, torch.float32, last) < 1e-4
    for dtype in (torch.float16, torch.bfloat16):
        assert errors(name, 32, dtype, last) < doctor._TOLERANCE[dtype]


def test_page_is_healthy():
    assert doctor.report() == 0


@pytest.mark.parametrize('channels', [8, 32])
@pytest.mark.parametrize('samples', [2, 96, 200])
def test_rendering_agrees_with_the_reference(channels, samples, monkeypatch):
    monkeypatch.setattr(doctor, '_CHANNELS', channels)
    monkeypatch.setattr(doctor, '_SAMPLES', samples)
    case = doctor.renderer(ops.Sizes(1, channels, 32, torch.float32, False), 'cuda')
    assert doctor.implementation(case) == 'kernel' and max(doctor.errors(case)) < 1e-4


def test_networks_agree_with_the_cpu():
    found = []
    for device in ('cuda', 'cpu'):
        nets = tiny.networks(tiny.generator(precision='fp32'))
        G, D_image, D_video = (network.to(device) for network in nets)
        z_a, z_m, t, c = (x.to(device) for x in tiny.codes(4))
        out = G(z_a, z_m, t, c.float())
        pair = D_video.pair_input(out.image.unflatten(0, (2, 2)), t.unflatten(0, (2, 2)))
        logits = [D_image(out.image, out.image_raw, c.float()), D_video(pair, c.float().unflatten(0, (2, 2)))]
        found.append([x.detach().cpu() for x in (*out, *logits)])
    for ours, reference in zip(*found, strict=True):  # discriminators in half precision
        assert (ours - reference).abs().max() < 2e-2 * reference.abs().max()


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
    names = ('generator', 'd_image', 'd_video')
    parts = {n: dataclasses.replace(getattr(config, n), precision=precision) for n in names}
    config = dataclasses.replace(config, **parts)
    assert Trainer(config, tmp_path, torch.device('cuda')).train()
    longer = dataclasses.replace(config, total_nimg=config.total_nimg + 8)
    trainer = Trainer(longer, tmp_path, torch.device('cuda'))
    assert trainer.progress.cur_nimg == config.total_nimg
    assert trainer.train() and trainer.progress.nonfinite == 0
