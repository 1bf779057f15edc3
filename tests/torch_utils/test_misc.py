import copy
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from dnnlib.util import UserError
from support.paths import ROOT
from torch_utils import misc


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        y = self.body(x)
        return self.head(y) * self.gain, {'y': y}


def draw(*keys):
    return torch.rand(4, generator=misc.seeded_generator('cpu', *keys)).tolist()


def test_seeded_generator_repeats():
    global_state = torch.get_rng_state()
    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert torch.equal(global_state, torch.get_rng_state())


def test_seeded_generator_tells_all_keys_apart():
    numbers = (0, 1, 2**32, 2**64 - 1)
    keys = [*((a,) for a in numbers), *((a, b) for a in numbers for b in numbers)]
    assert len({tuple(draw(*k)) for k in keys}) == len(keys)


def test_seeded_generator_of_neighbouring_keys_is_independent():
    generators = (misc.seeded_generator('cpu', 7, i) for i in range(64))
    draws = torch.stack([torch.randn(256, generator=g).double() for g in generators])
    correlation = torch.corrcoef(draws) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 6 / 256**0.5  # six standard deviations; equal streams would give 1


def test_update_ema_formula():
    net, ema = Net(), Net()
    before = copy.deepcopy(ema)
    net.body[2].running_mean.fill_(7)
    net.body[2].num_batches_tracked.fill_(5)
    misc.update_ema(ema, net, 0.9)
    for old, new, target in zip(before.parameters(), ema.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * target)
        assert new.requires_grad
    assert ema.body[2].running_mean.tolist() == [7, 7, 7] and ema.body[2].num_batches_tracked == 5
    misc.update_ema(ema, net, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), net.parameters(), strict=True))


def test_all_finite():
    tensors = [torch.zeros(2, 3) for _ in range(4)]
    assert misc.all_finite(tensors).all() and len(misc.all_finite([])) == 0
    tensors[1][0, 1] = float('nan')
    tensors[3][1, 2] = -float('inf')
    assert misc.all_finite(tensors).tolist() == [True, False, True, False]


def test_module_summary_adds_up():
    net = Net()
    text = misc.module_summary(net, (torch.zeros(5, 2),))
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert rows['total'].split()[1:] == ['19', '7']
    assert rows['(top)'].split(maxsplit=3)[1:] == ['1', '0', '[5, 1] [5, 3]']
    assert rows['body.2'].split(maxsplit=3)[1:] == ['6', '7', '[5, 3]']
    assert 'body.1' not in rows  # holds nothing


def test_module_summary_of_a_deep_module():
    deep = nn.Sequential(nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 3)))))
    rows = [row.split(maxsplit=3) for row in misc.module_summary(deep, (torch.zeros(1, 2),)).splitlines()]
    assert ['0.0.0', '9', '0', '[1, 3]'] in rows and rows[-1][1] == '9'


def test_peak_memory_sees_an_allocation():
    before = misc.peak_memory_gib('cpu')
    block = torch.ones(2**30 // 4)  # 1 GiB
    assert 0.05 < before <= misc.peak_memory_gib('cpu') < 64
    assert misc.peak_memory_gib('cpu') >= 1.0
    del block


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='a setting of glibc')
def test_freed_memory_is_kept():
    """A large tensor soon finds its pages in place; every one would have to clear new ones otherwise."""
    code = (
        'import resource, torch; from torch_utils.misc import keep_freed_memory\n'
        'faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        'keep_freed_memory()\n'
        'counts = []\n'
        'for _ in range(6):\n'
        '    before = faults(); torch.ones(2**24); counts.append(faults() - before)\n'
        'print(min(counts[1:]))'
    )
    # of the 16,384 pages of 64 MiB; again, because the heap of a process may be unable to grow in place
    assert any(int(subprocess.check_output([sys.executable, '-c', code], cwd=ROOT)) < 1000 for _ in range(3))


def test_pick_device():
    assert misc.pick_device('cpu') == torch.device('cpu')
    assert misc.pick_device('auto').type == ('cuda' if torch.cuda.is_available() else 'cpu')
    for name in ('gpu', 'cuda:99', 'meta:x'):
        with pytest.raises(UserError, match=f'--device {name}'):
            misc.pick_device(name)


@pytest.fixture
def switches():
    """The switches of torch are afterwards as before."""
    names = (torch.backends.cudnn, 'allow_tf32'), (torch.backends.cuda.matmul, 'allow_tf32')
    names += ((torch.backends.cudnn, 'benchmark'),)
    before = [getattr(*name) for name in names]
    yield
    for name, value in zip(names, before, strict=True):
        setattr(*name, value)


@pytest.mark.parametrize(('precision', 'rounded'), [('tf32', True), ('exact', False)])
def test_float32_precision(precision, rounded, switches):
    """Of convolutions alone, as torch's own context for cuDNN sees it and leaves it."""
    misc.set_float32_precision(precision)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        assert not cudnn.allow_tf32
    assert cudnn.allow_tf32 == rounded and not matmul.allow_tf32
    assert (cudnn.conv.fp32_precision == 'tf32') == rounded and matmul.fp32_precision != 'tf32'
