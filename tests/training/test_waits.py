"""What a GPU would wait for in a training step, counted on a CPU; with CUDA, what torch itself counts."""

import dataclasses
import warnings
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support.small_runs import CPU, batch_of
from training.batching import PHASES, _moved, fake_batch
from training.data.dataset import batches
from training.training_loop import Trainer

# what brings numbers to Python, or makes results whose size depends on them
OPERATORS = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'unique_dim')
METHODS = ('tolist', 'cpu', 'numpy')  # of tensors, which are no operators on a CPU
HOST_MADE = 'lift_fresh'  # torch.tensor, and an index that is a list or tuple: copied from pageable memory


class Waits(TorchDispatchMode):
    """Counts, by name."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.found[name] += name in (*OPERATORS, HOST_MADE)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """Returns a function that runs another and counts what it waited for."""
    mode = Waits()
    for name in METHODS:
        method = getattr(Tensor, name)

        def noted(self, *args, method=method, name=name):
            mode.found[name] += 1
            return method(self, *args)

        monkeypatch.setattr(Tensor, name, noted)

    def count(function):
        mode.found.clear()
        with mode:
            function()
        return {name: times for name, times in mode.found.items() if times}

    return count


X = torch.arange(4.0).view(2, 2)
READS = {
    '_local_scalar_dense': lambda: X.sum().item(),
    'tolist': lambda: X.tolist(),
    'cpu': lambda: X.cpu(),
    'nonzero': lambda: torch.nonzero(X),
    HOST_MADE: lambda: X[:, (0, 1)],
}


@pytest.mark.parametrize('name', READS)
def test_waiting_is_seen(name, waits):
    assert waits(READS[name]) == {name: 1}
    assert waits(lambda: bool(X[0, 0] > 1)) and not waits(lambda: X[0] + X[:, 1:].sum())


def test_a_phase_waits_once(small, tmp_path, waits):
    """For the flags of its gradients, whatever the number of micro-batches; inputs are drawn on the CPU."""
    trainer = Trainer(dataclasses.replace(small, batch_gpu=1), tmp_path, CPU)
    assert [phase.name for phase in trainer.phases] == list(PHASES)
    for phase in trainer.phases:
        inputs = small, trainer.networks.G, trainer.dataset, phase.name, 0, slice(2), CPU
        drawing = waits(lambda inputs=inputs: fake_batch(*inputs))
        assert drawing.keys() <= {HOST_MADE}
        real = batch_of(trainer)
        assert waits(lambda phase=phase, real=real: trainer.run_phase(phase, real)) == drawing | {'tolist': 1}


def test_a_step_waits_once_a_phase(small, tmp_path, waits):
    trainer = Trainer(small, tmp_path, CPU)
    real = batch_of(trainer)
    trainer._data = ({'frames': 127.5 * (real.frames + 1), 't': real.t, 'c': real.c} for _ in range(3))
    found = waits(trainer.step)
    found.pop(HOST_MADE)
    assert found == {'tolist': len(PHASES)}


def test_inputs_are_moved_in_one_aligned_piece():
    tensors = [torch.arange(5.0), torch.rand(2, 3, 4), torch.rand(17)]
    moved = _moved(tensors, CPU)
    assert all(torch.equal(ours, given) for ours, given in zip(moved, tensors, strict=True))
    assert len({x.untyped_storage().data_ptr() for x in moved}) == 1
    assert all(x.data_ptr() % 64 == 0 and x.is_contiguous() for x in moved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_waits_once_a_phase(small, tmp_path):
    """As torch itself counts."""
    trainer = Trainer(small, tmp_path, torch.device('cuda'))
    trainer._data = batches(trainer.dataset, seed=0, start=0, batch=small.batch)
    trainer.step()  # libraries load, kernels are tried out
    trainer.progress.batch_idx = 0
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    waits = [str(w.message) for w in found if 'synchronizing' in str(w.message)]
    assert len(waits) <= len(PHASES), waits
