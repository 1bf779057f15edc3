"""What a training run will need, before it runs: memory, arithmetic, and a guess of the time.

The real loss runs on fake tensors, which have a shape and a device but no data; a meter counts what every
operation would compute, move and keep. Only the speed of the device is measured, for about a second.
Not counted: workspaces of convolution libraries, the interpreter, data loading, pictures and snapshots,
communication. test_estimate.py compares memory and time with those of a step on a CPU; no GPU was compared.
"""

import dataclasses
import json
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dnnlib.config import to_dict
from dnnlib.util import format_count, format_time
from torch_utils.misc import module_summary, parameter_count
from training.camera import LABEL_DIM
from training.config import TrainConfig
from training.loss import FakeBatch, Networks, Phase, PV3DLoss, RealBatch

_LATE_NIMG = 10**12  # after all schedules have ended
_ADAM_PASSES = 7  # parameters, gradients and two moments are read; all but the gradients are written
_EMA_PASSES = 3  # two are read, one is written
_RENDER_PASSES = {'triplane_render': 1, 'triplane_render_grad': 3}  # through the decoder, in our kernels

# How much slower an average operation (gather, softplus, sum, ...) moves its bytes than the product that
# measure_device times. The first is fitted to configurations of 32x32 to 512x512 on CPU, the second a guess.
_MOVE_COST = {'cpu': 3.5, 'cuda': 1.5}
_CALL_COST = {'cpu': 14, 'cuda': 4.5}  # of Python and autograd around an operation, likewise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a piece of training computes and moves; pieces add up."""

    flops: dict[torch.dtype, float] = dataclasses.field(default_factory=dict)  # of convolutions and matmuls
    moved_bytes: float = 0.0  # read and written by all operations
    calls: float = 0.0  # operations that compute something

    def __add__(self, other: 'Work') -> 'Work':
        flops = {k: self.flops.get(k, 0) + other.flops.get(k, 0) for k in {**self.flops, **other.flops}}
        moved = self.moved_bytes + other.moved_bytes
        return Work(flops=flops, moved_bytes=moved, calls=self.calls + other.calls)

    def __mul__(self, factor: float) -> 'Work':
        flops = {k: v * factor for k, v in self.flops.items()}
        return Work(flops=flops, moved_bytes=self.moved_bytes * factor, calls=self.calls * factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """One iteration of one process; phases that do not run every time are counted with their share."""

    work: Work
    network_bytes: int  # parameters and buffers of all networks, EMA included
    optimizer_bytes: int  # two moments per parameter
    activation_bytes: int  # most that activations and gradients take at once

    @property
    def memory_bytes(self) -> int:
        """Most that tensors take at once."""
        return self.network_bytes + self.optimizer_bytes + self.activation_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSpeed:
    """How fast a device is at the three things that `Work` counts."""

    kind: str  # cpu or cuda
    flops: dict[torch.dtype, float]  # per second
    moved_bytes: float  # per second
    call_sec: float  # to start one operation

    def seconds(self, work: Work) -> float:
        """Returns the time that the device takes."""
        slowest = min(self.flops.values())
        busy = sum(n / self.flops.get(dtype, slowest) for dtype, n in work.flops.items())
        busy += work.moved_bytes * _MOVE_COST[self.kind] / self.moved_bytes
        calls = work.calls * _CALL_COST[self.kind] * self.call_sec
        return max(busy, calls) if self.kind == 'cuda' else busy + calls  # a GPU works while others start


def describe_run(config: TrainConfig, device: torch.device, world_size: int) -> str:
    """Returns what `train.py --dry-run` prints: options, tables of the networks, memory and time."""
    step = estimate_step(config, world_size, device)
    batch_gpu, rounds = config.split_batch(world_size)
    sec_per_kimg = measure_device(device).seconds(step.work) * 1000 / config.batch
    total_kimg = config.total_nimg / 1000
    gib = {n: getattr(step, f'{n}_bytes') / 2**30 for n in ('memory', 'network', 'optimizer', 'activation')}
    lines = [
        f'options: {json.dumps(to_dict(config), indent=2)}',
        *_network_tables(config),
        '',
        f'estimate for {world_size} x {_device_name(device)}, each {rounds} x {batch_gpu} clips a step:',
        f'  memory  about {gib["memory"]:.2f} GiB: networks {gib["network"]:.2f}, optimizers '
        f'{gib["optimizer"]:.2f}, activations and gradients {gib["activation"]:.2f}',
        f'  work    {format_count(sum(step.work.flops.values()))}FLOP a step, '
        f'{step.work.moved_bytes / 2**30:.0f} GiB read and written',
        f'  time    about {sec_per_kimg:.0f} s/kimg; for {total_kimg:g} kimg '
        f'{format_time(sec_per_kimg * total_kimg)}',
        '  (per process; memory without libraries and data; the time may be wrong by a factor of 2)',
    ]
    return '\n'.join(lines)


def estimate_step(
    config: TrainConfig, world_size: int = 1, device: torch.device | str = 'cpu'
) -> StepEstimate:
    """Runs every phase of an iteration on fake tensors; takes seconds and next to no memory at any size.

    Args:
        config: of the run; schedules are taken as they are after their fades.
        world_size: processes that share the batch.
        device: a CPU, or a CUDA device that is there (half precision is in force on CUDA alone).

    Raises:
        ValueError: if the batch does not divide.
    """
    batch_gpu, rounds = config.split_batch(world_size)
    intervals: dict[Phase, int] = {'Gmain': 1, 'Dmain': 1, 'Dreg': config.d_reg_interval}
    if config.loss.density_weight:
        intervals['Greg'] = config.g_reg_interval
    work, peaks = Work(), []
    with FakeTensorMode(), torch.device(device):
        networks = _build_networks(config)
        g, d = parameter_count(networks.G), sum(parameter_count(n) for n in networks[1:] if n is not None)
        buffers = [sum(b.numel() for b in n.buffers()) for n in networks if n is not None]
        real, fake = _batches(networks.G, batch_gpu)
        for phase, interval in intervals.items():
            trained, idle = (g, d) if phase[0] == 'G' else (d, g)
            with _Meter() as meter:
                _run_phase(config.loss.build(), phase, networks, real, fake)
            work += meter.work() * (rounds / interval)
            work += Work(moved_bytes=4.0 * _ADAM_PASSES * trained / interval)
            peaks.append(meter.peak_bytes + 4 * idle)  # the others keep their gradients until their turn
    return StepEstimate(
        work=work + Work(moved_bytes=4.0 * _EMA_PASSES * g),
        network_bytes=4 * (2 * g + d + sum(buffers) + buffers[0]),
        optimizer_bytes=8 * (g + d),
        activation_bytes=max(peaks),
    )


def measure_device(device: torch.device | str = 'cpu') -> DeviceSpeed:
    """Times a convolution with its backward, a product and tiny operations; takes about a second."""
    device = torch.device(device)
    cuda = device.type == 'cuda'
    channels, n, side = (128, 16, 128) if cuda else (128, 2, 64)
    flops = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if cuda else (torch.float32,):
        x = torch.ones(n, channels, side, side, device=device, dtype=dtype, requires_grad=True)
        weight = torch.ones(channels, channels, 3, 3, device=device, dtype=dtype, requires_grad=True)

        def convolve(x: Tensor = x, weight: Tensor = weight) -> None:
            torch.nn.functional.conv2d(x, weight, padding=1).backward(x.detach())

        work = 3 * 2 * 9 * channels * x.numel()  # forward, gradient of x, gradient of the weight
        flops[dtype] = work / _time(convolve, device)
    large = torch.ones(2**26 if cuda else 2**22, device=device)
    tiny = torch.ones(1, device=device)
    return DeviceSpeed(
        kind=device.type,
        flops=flops,
        moved_bytes=2 * 4 * large.numel() / _time(lambda: large * 2, device),
        call_sec=_time(lambda: [tiny * 2 for _ in range(1000)], device) / 1000,
    )


class _Meter(TorchDispatchMode):
    """Counts the work of operations, and the bytes of the tensors that they make while these are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._flops: Counter[torch.dtype] = Counter()
        self._moved_bytes = self._calls = self._alive_bytes = 0
        self._alive: dict[int, int] = {}  # id of a storage -> its bytes

    def work(self) -> Work:
        return Work(flops=dict(self._flops), moved_bytes=self._moved_bytes, calls=self._calls)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = list(_tensors(out))
        if func.namespace in ('aten', 'pv3d') and not func.is_view and made:
            self._calls += 1
            self._moved_bytes += sum(t.numel() * t.element_size() for t in (*made, *_tensors(args)))
            count = flop_registry.get(func.overloadpacket)
            if count is not None:
                self._flops[made[0].dtype] += count(*args, **kwargs, out_val=out)
            elif func._opname in _RENDER_PASSES:
                self._flops[made[0].dtype] += _RENDER_PASSES[func._opname] * _decoder_flops(*args[1:5])
        for tensor in made:
            self._keep(tensor.untyped_storage())
        return out

    def _keep(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._alive_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._alive_bytes -= self._alive.pop(key)


def _decoder_flops(params: Tensor, origins: Tensor, directions: Tensor, depths: Tensor) -> int:
    """Returns the arithmetic of the decoder, whose parameters lie in a vector, at all samples of rays."""
    return 2 * params.numel() * depths.numel()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _build_networks(config: TrainConfig) -> Networks:
    return Networks(
        config.generator.build(),
        config.d_image.build() if config.loss.image_weight > 0 else None,
        config.d_video.build() if config.loss.video_weight > 0 else None,
    )


def _batches(G: nn.Module, n: int) -> tuple[RealBatch, FakeBatch]:
    size = G.config.resolution
    t, c = torch.empty(n, 2), torch.empty(n, 2, LABEL_DIM)
    real = RealBatch(torch.empty(n, 2, 3, size, size), t, c)
    return real, FakeBatch(torch.empty(n, G.z_dim), torch.empty(n, G.motion_dim), t, c, c, torch.empty(n))


def _run_phase(loss: PV3DLoss, phase: Phase, networks: Networks, real: RealBatch, fake: FakeBatch) -> None:
    """Forward and backward of a phase, as in the training loop."""
    for network in networks:
        if network is not None:
            network.requires_grad_((network is networks.G) == (phase[0] == 'G')).zero_grad(set_to_none=True)
    for term in loss.terms(phase, networks, real, fake, _LATE_NIMG, None):
        term.loss.backward()
        del term  # its graph, before the next one is built


def _network_tables(config: TrainConfig) -> Iterator[str]:
    """Yields a heading and a table for each network, for one clip."""
    with torch.device('meta'):
        networks = _build_networks(config)
        real, fake = _batches(networks.G, 1)
        frame = real.frames[:, 0]
        c = real.c[:, 0]
        inputs = {
            'G': (fake.z_a, fake.z_m, fake.t[:, 0], c),
            'D_image': (frame, frame, c),
            'D_video': (networks.D_video and networks.D_video.pair_input(real.frames, real.t), real.c),
        }
        for name, network in networks._asdict().items():
            if network is not None:
                yield f'\n{name}\n{module_summary(network, inputs[name])}'


def _device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, {torch.get_num_threads()} threads'


def _time(function: Callable[[], Any], device: torch.device, budget_sec: float = 0.2) -> float:
    """Returns the median time of a call in seconds, after two calls for warming up."""

    def call() -> float:
        start = time.perf_counter()
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    call(), call()
    times = [call()]
    while sum(times) < budget_sec:
        times.append(call())
    return sorted(times)[len(times) // 2]
