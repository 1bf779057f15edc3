"""What only a GPU can show: kernels, half precision and training on CUDA against the CPU; real sizes."""

import dataclasses
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import doctor, ops
from support import tiny
from support.paths import ROOT
from torch_utils import misc
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import make_filter, upfirdn2d
from training import estimate
from training.camera import front_label
from training.config import build_networks
from training.loss_math import r1_penalty
from training.presets import PRESETS
from training.training_loop import Trainer
from viz import rollout

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


def r1_gradients(preset, precision, device='cuda'):
    """R1 of D_image on two frames of noise, and its gradient with respect to all weights, one vector."""
    config = dataclasses.replace(PRESETS[preset]('none.zip').d_image, precision=precision)
    D = tiny.build(config).to(device)
    shapes = [(2, 3, config.resolution, config.resolution), (2, 3, 64, 64)]
    frames = [torch.rand(shape, generator=tiny.seeded(0)).to(device) * 2 - 1 for shape in shapes]
    frames = [x.requires_grad_() for x in frames]
    penalty = r1_penalty(D(*frames, front_label().float().to(device).expand(2, -1)), frames).mean()
    grads = torch.autograd.grad(penalty, list(D.parameters()), allow_unused=True)
    return penalty.item(), torch.cat([g.float().flatten() for g in grads if g is not None])


@pytest.mark.parametrize('preset', ['pv3d-256', 'pv3d-voxceleb'])
def test_r1_at_real_sizes(preset):
    """Second derivatives of all convolutions: half precision agrees, and takes seconds, not minutes."""
    start = time.perf_counter()
    penalty, gradient = r1_gradients(preset, 'fp16')
    assert time.perf_counter() - start < 60  # with the search for algorithms
    exact, exact_gradient = r1_gradients(preset, 'fp32')
    assert abs(penalty / exact - 1) < 0.05
    assert torch.cosine_similarity(gradient, exact_gradient, dim=0) > 0.98


@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
def test_tensors_of_more_than_two_to_the_31_elements(layout):
    """The last image is that of a call of its own."""
    n = 2**31 // (64 * 512 * 512) + 2
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip('needs 24 GiB')
    x = torch.empty((n, 64, 512, 512), device='cuda', dtype=torch.float16, memory_format=layout).zero_()
    x[-1] = torch.randn(64, 512, 512, generator=tiny.seeded(0))
    last, bias, f = x[-1:].contiguous(memory_format=layout), torch.randn(64).cuda(), make_filter().cuda()
    for run in (lambda x: bias_act(x, bias, 'lrelu'), lambda x: upfirdn2d(x, f, padding=(2, 1, 2, 1))):
        torch.testing.assert_close(run(x)[-1:], run(last), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('name', NAMES)
def test_second_derivatives_in_half_precision_at_real_sizes(name):
    assert errors(name, 128, torch.float16, True) < doctor._TOLERANCE[torch.float16]


def test_kernels_run_on_the_stream_of_the_caller():
    """Inputs that come late on a stream of their own: nothing may run ahead of them."""
    sizes = ops.Sizes(2, 64, 32, torch.float32, True)
    for case in (*ops.cases(sizes, 'cuda'), doctor.renderer(sizes, 'cuda')):
        expected = case.run('auto', *case.inputs)
        late, stream = [torch.zeros_like(x) for x in case.inputs], torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**8)  # cycles
            for x, value in zip(late, case.inputs, strict=True):
                x.copy_(value.detach())
            found = case.run('auto', *late)
        stream.synchronize()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_peak_of_memory_is_as_counted():
    """Gmain of the 512x512 preset with two clips."""
    config, meter = PRESETS['pv3d-voxceleb']('none.zip'), estimate.Meter(estimate.Work())
    estimate.meter_phases(config, 2, 'cuda', {'Gmain': meter})
    with torch.device('cuda'):
        networks = build_networks(config)
        real, fake = estimate._batches(networks.G, 2, 2)
        c, t = front_label().expand(2, 2, 25), torch.rand(2, 2)
        real = real._replace(frames=torch.randn_like(real.frames), t=t, c=c)
        z_a, z_m = (torch.randn_like(z) for z in (fake.z_a, fake.z_m))
        fake = fake._replace(z_a=z_a, z_m=z_m, z_m_other=z_m, t=t, c=c, c_other=c, swap=torch.zeros(2))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        estimate._run_phase(config.loss.build(), 'Gmain', networks, real, fake)
    assert 0.75 < (torch.cuda.max_memory_allocated() - before) / meter.peak_bytes < 1.33


def test_fetched_frames_are_those_of_the_device():
    """Copies to pinned memory are waited for, though the next frame is already being computed."""
    frames = torch.randint(256, (8, 512, 512, 3), dtype=torch.uint8, device='cuda')
    expected = frames.cpu().numpy()
    fetched = rollout.fetch({'frames': frames})
    frames.zero_()
    assert (fetched()['frames'] == expected).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_two_processes_train_together(data, tmp_path):
    options = ['--outdir', tmp_path, '--data', data, '--cfg', 'tiny', '--batch', '4', '--kimg', '0.016']
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=2',
        'train.py',
    ]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'not finite' not in done.stdout and list(tmp_path.glob('*gpus2*/network-snapshot-*.pkl'))
