import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from support.paths import ROOT
from training import estimate
from training.estimate import Work, describe_run, estimate_step, measure_device
from training.presets import PRESETS

# Runs each phase really and prints by how many bytes the process grew.
REAL_STEP = """
import dataclasses, pathlib, re
import torch
from training import estimate
from training.camera import front_label
from training.config import build_networks
from training.presets import PRESETS

torch.set_num_threads(1)
config = dataclasses.replace(PRESETS['demo']('none.zip'), batch=4)
networks = build_networks(config)
real, fake = estimate._batches(networks.G, config.batch, 2)
c = front_label().expand(config.batch, 2, 25)
real = real._replace(frames=torch.randn_like(real.frames), t=torch.rand_like(real.t), c=c)
fake = fake._replace(z_a=torch.randn_like(fake.z_a), z_m=torch.randn_like(fake.z_m), t=real.t, c=c, c_other=c)
def peak():  # KiB; getrusage would begin with that of the parent
    return int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])


before = peak()
for phase in ('Gmain', 'Greg', 'Dmain', 'Dreg'):
    estimate._run_phase(config.loss.build(), phase, networks, real, fake)
print((peak() - before) * 1024)
"""


def measure(function, *shapes, **options):
    """Returns the meter of function(*tensors) and what it counted."""
    work = Work()
    with estimate.FakeTensorMode():
        tensors = [torch.empty(shape, **options) for shape in shapes]
        with estimate.Meter(work) as meter:
            function(*tensors)
    return meter, work


def test_meter_counts_arithmetic_and_bytes():
    """A convolution and a matrix product against their closed forms."""
    _, work = measure(lambda x, w: nn.functional.conv2d(x, w, padding=1), (2, 3, 16, 16), (5, 3, 3, 3))
    assert work.flops == {torch.float32: 2 * 2 * 5 * 16 * 16 * 3 * 9}
    assert work.moved_bytes == 4 * (2 * 3 * 16 * 16 + 5 * 3 * 9 + 2 * 5 * 16 * 16)
    assert work.calls == 1
    _, work = measure(lambda a: a @ a.t(), (7, 11), dtype=torch.float16)  # a view takes no work
    assert work.flops == {torch.float16: 2 * 7 * 11 * 7} and work.calls == 1


def test_meter_counts_our_kernels():
    """They are opaque to PyTorch's table; the decoder multiplies each parameter once a sample."""
    params, shapes = 7 * 64 + 64 + 4 * 64 + 4, ((2, 5, 3), (2, 5, 3), (2, 5, 6))

    def render(*inputs):
        features, weights = torch.ops.pv3d.triplane_render(*inputs, 3, 0, 1.0, 0.0, 0.0)
        torch.ops.pv3d.triplane_render_grad(*inputs, features, weights, 0, 1.0, 0.0, 0.0)

    _, work = measure(render, (2, 3, 7, 8, 8), (params,), *shapes)
    assert work.flops == {torch.float32: (1 + 3) * 2 * params * 2 * 5 * 6}
    assert work.calls == 2 and work.moved_bytes > 4 * 2 * 3 * 7 * 8 * 8


def test_meter_finds_the_peak():
    """Freed tensors do not count; tensors that backward needs do, until it has used them."""

    def freed(x):
        for _ in range(5):
            x = x * 2  # the old one is freed when the new one is made

    assert measure(freed, 1000)[0].peak_bytes == 2 * 4000

    def kept(x):
        for _ in range(5):
            x = x.exp()  # keeps its result
        x.sum()

    assert measure(kept, 1000, requires_grad=True)[0].peak_bytes == 5 * 4000 + 4


def test_scales_with_the_batch():
    """Micro-batches cost time, not memory."""
    config = dataclasses.replace(PRESETS['tiny']('none.zip'), batch=8, batch_gpu=4)
    once = estimate_step(config)
    whole = estimate_step(dataclasses.replace(config, batch_gpu=8))
    assert whole.activation_bytes > 1.5 * once.activation_bytes
    assert whole.work.calls < 0.6 * once.work.calls
    assert sum(whole.work.flops.values()) == pytest.approx(sum(once.work.flops.values()), rel=0.05)


def test_large_preset_takes_no_memory():
    """The 512x512 preset, whose step takes 10 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = describe_run(PRESETS['pv3d-voxceleb']('none.zip'), torch.device('cpu'), 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    for parameters in ('44320383', '31359744', '31372608'):  # of the released networks
        assert parameters in text
    assert 'for 8 x CPU' in text and '1 x 2 clips' in text
    assert 'fits: 2 clips at a time take ' in text and ' of 79.0 GiB on a GPU of 80 GB' in text


def test_counts_for_a_gpu_without_one():
    """Half precision halves what discriminators keep; nothing of the pretence stays behind."""
    config = PRESETS['tiny']('none.zip')
    on_cpu, on_gpu = (estimate_step(config, 1, device) for device in ('cpu', 'cuda'))
    assert set(on_cpu.work.flops) == {torch.float32}
    assert set(on_gpu.work.flops) == {torch.float32, torch.float16}
    assert sum(on_gpu.work.flops.values()) == pytest.approx(sum(on_cpu.work.flops.values()), rel=0.01)
    assert on_gpu.activation_bytes < 0.95 * on_cpu.activation_bytes
    with FakeTensorMode():
        assert torch.empty(1).is_cuda is False


def test_advice_is_the_largest_batch_that_fits(monkeypatch):
    config, device = dataclasses.replace(PRESETS['tiny']('none.zip'), batch=12), torch.device('cpu')
    assert list(estimate._sizes(config, 1)) == [12, 4, 2, 1]  # groups of four, which divide the batch
    four = estimate_step(dataclasses.replace(config, batch_gpu=4), 1, 'cuda').total_bytes
    monkeypatch.setattr(estimate, '_CARD_BYTES', four + estimate._LIBRARY_BYTES)
    text = estimate.describe_fit(config, 1, device)
    assert text.startswith('does not fit: 12 clips at a time') and 'use --batch-gpu 4, which' in text
    monkeypatch.setattr(estimate, '_CARD_BYTES', estimate._LIBRARY_BYTES)
    assert estimate.describe_fit(config, 1, device).endswith('nor does one clip')


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the memory from /proc')
def test_agrees_with_a_real_step():
    """The memory of the demo preset, within a factor 2."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}  # no memory held ahead
    command, options = [sys.executable, '-c', REAL_STEP], {'cwd': ROOT, 'text': True, 'check': True}
    done = subprocess.run(command, env=environment, capture_output=True, **options)
    step = estimate_step(dataclasses.replace(PRESETS['demo']('none.zip'), batch=4))
    assert 0.5 < step.activation_bytes / int(done.stdout) < 2


def test_device_speed_is_plausible():
    speed = measure_device()
    assert 1e8 < speed.flops[torch.float32] < 1e14
    assert 1e8 < speed.moved_bytes < 1e13
    assert 1e-8 < speed.call_sec < 1e-3
