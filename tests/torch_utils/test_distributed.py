"""One process, then two gloo processes that check themselves and send back what they saw."""

import contextlib
import io
import json
import os
import socket
import time

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from dnnlib.util import UserError
from torch_utils import distributed as dist
from torch_utils.training_stats import Collector

LIMIT_SEC = 60


def make_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def data():
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients_of(net, x):
    net(x).square().mean().backward()
    return [p.grad for p in net.parameters()]


def work(rank):
    """Runs on each of two processes; returns plain values and tensors for the test to judge."""
    seen = {'who': [dist.rank(), dist.world_size(), dist.is_leader()]}
    net = make_net()
    gradients_of(net, data()[rank::2])
    dist.all_reduce_gradients(list(net.parameters()))
    seen['gradients'] = [p.grad.tolist() for p in net.parameters()]

    here, there, nowhere = (nn.Parameter(torch.ones(2)) for _ in range(3))
    (here if rank == 0 else there).grad = torch.tensor([2.0, 4.0])
    finite = dist.all_reduce_gradients([here, there, nowhere])
    seen['partial'] = [here.grad.tolist(), there.grad.tolist(), nowhere.grad]
    here.grad = torch.tensor([1.0, float('nan')]) if rank else None  # found also where there was none
    seen['finite'] = [
        finite,
        dist.all_reduce_gradients([nowhere, here]),
        dist.all_reduce_gradients([nowhere]),
    ]

    other = nn.BatchNorm1d(2)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.fill_(rank + 5)
    dist.broadcast_module(other)
    seen['broadcast'] = {k: v.tolist() for k, v in other.state_dict().items()}

    mine = torch.tensor([1, rank])
    seen['sum'] = dist.all_reduce_sum(mine).tolist()
    seen['unchanged'] = mine.tolist()
    seen['any'] = [dist.any_rank(rank == 1), dist.any_rank(False), dist.any_rank(True)]
    seen['object'] = dist.broadcast_object({'path': f'from {rank}'})
    seen['gathered'] = dist.gather_objects(rank)

    collector = Collector()
    collector.report('both', torch.arange(3.0) + 3 * rank)
    collector.report(f'only {rank}', 10.0 * rank)
    seen['stats'] = {k: list(v) for k, v in collector.collect().items()}
    seen['stats again'] = collector.collect()
    dist.barrier()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        dist.print0(f'hello from {rank}')
    seen['printed'] = out.getvalue()
    return seen


def process(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    os.environ['MASTER_PORT'] = str(port)
    dist.init('cpu')
    text = json.dumps(work(rank))
    dist.finish()
    assert not torch.distributed.is_initialized()
    (folder / f'{rank}.json').write_text(text)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp('two')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = mp.spawn(process, (port, folder), nprocs=2, join=False)
    try:
        deadline = time.monotonic() + LIMIT_SEC
        while not context.join(timeout=1):  # raises the error of a process that failed
            assert time.monotonic() < deadline, 'the two processes hang'
    finally:
        for child in context.processes:
            child.kill()
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(2)]


def test_two_gradients_equal_one_process(two):
    expected = gradients_of(make_net(), data())
    for seen in two:
        for value, reference in zip(seen['gradients'], expected, strict=True):
            torch.testing.assert_close(torch.tensor(value).double(), reference, rtol=1e-5, atol=1e-7)
    assert two[0]['gradients'] == two[1]['gradients']
    assert [seen['partial'] for seen in two] == [[[1.0, 2.0], [1.0, 2.0], None]] * 2
    assert [seen['finite'] for seen in two] == [[[True] * 3, [True, False], [True]]] * 2


def test_two_broadcast_parameters_and_buffers(two):
    assert two[0]['broadcast'] == two[1]['broadcast']
    assert all(v in (5, [5, 5]) for v in two[1]['broadcast'].values()) and len(two[1]['broadcast']) == 5


def test_two_exchange_and_print_once(two):
    assert [s['who'] for s in two] == [[0, 2, True], [1, 2, False]]
    assert [s['printed'] for s in two] == ['hello from 0\n', '']
    for rank, seen in enumerate(two):
        assert seen['sum'] == [2, 1] and seen['unchanged'] == [1, rank]
        assert seen['any'] == [True, False, True]
        assert seen['object'] == {'path': 'from 0'} and seen['gathered'] == [0, 1]


def test_two_statistics_are_of_all_numbers(two):
    for seen in two:
        assert seen['stats']['both'] == [2.5, pytest.approx((35 / 12) ** 0.5), 6]  # of 0 .. 5
        assert seen['stats']['only 0'] == [0, 0, 1] and seen['stats']['only 1'] == [10, 0, 1]
        assert seen['stats again'] == {}


def test_one_process_needs_no_group(monkeypatch, capsys):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    dist.init('cpu')
    assert not torch.distributed.is_initialized()
    assert (dist.rank(), dist.world_size(), dist.is_leader()) == (0, 1, True)
    param, idle = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    assert dist.all_reduce_gradients([param, idle]) == [True, True]
    assert param.grad.tolist() == [1, 1] and idle.grad is None
    assert dist.any_rank(True) and not dist.any_rank(False)
    assert dist.broadcast_object('x') == 'x' and dist.gather_objects('x') == ['x']
    assert dist.all_reduce_sum(torch.tensor([3])).tolist() == [3]
    dist.broadcast_module(nn.Linear(1, 1))
    dist.barrier()
    dist.print0('a', 1)
    dist.finish()
    assert capsys.readouterr().out == 'a 1\n'


def test_init_refuses(monkeypatch):
    with pytest.raises(UserError, match="'tpu'"):
        dist.init('tpu')
    monkeypatch.setenv('LOCAL_RANK', '99')
    with pytest.raises(UserError, match='--nproc_per_node'):
        dist.init('cuda')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(UserError, match='--device cuda:1'):
        dist.init('cuda', 1)


@pytest.mark.parametrize(('index', 'expected'), [(None, 0), (1, 1)])
def test_one_process_may_choose_its_gpu(monkeypatch, index, expected):
    chosen = []
    for name in ('WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    dist.init('cuda', index)
    assert chosen == [expected]
