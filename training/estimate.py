"""What a training run will need, before it runs: memory, arithmetic, and a guess of the time.

The real loss runs on fake tensors, which have a shape and a device but no data; a meter counts what every
operation would compute (by the formulas of torch's FLOP counter), move and keep; a machine without a GPU can
count what one would. Only the speed of the device is measured. Not counted: workspaces of convolution
libraries, the interpreter, data loading, images and snapshots, communication. The test compares the memory
with that of a step on a CPU; no GPU was compared.
"""

import contextlib
import dataclasses
import json
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from dnnlib.config import to_dict
from dnnlib.util import ConfigError, format_count, format_time
from torch_utils.misc import module_summary, parameter_count
from training.camera import LABEL_DIM
from training.cards import Card, describe_disk, disk_of
from training.config import TrainConfig, build_networks
from training.loss_contract import FakeBatch, Loss, Networks, Phase, RealBatch

_LATE_NIMG = 10**12  # after all schedules have ended
_ADAM_PASSES = 7  # parameters, gradients and two moments are read; all but the gradients are written
_EMA_PASSES = 3  # two are read, one is written
_MEASURE_SEC = 0.2  # for each number of a device
_CARD_BYTES = 79 * 2**30  # that a GPU of "80 GB" has [nvidia-smi of an A100 and an H100: 80.0 and 79.6 GiB]
_LIBRARY_BYTES = 3 * 2**30  # for CUDA, workspaces of cuDNN, and holes; a guess

# How much slower an average operation (gather, softplus, sum, ...) moves its bytes than the product that
# measure_device times. The first is fitted to configurations of 32x32 to 512x512 on CPU, the second a guess.
_MOVE_COST = {'cpu': 3.5, 'cuda': 1.5}
_CALL_COST = {'cpu': 14, 'cuda': 4.5}  # of Python and autograd around an operation, likewise


@dataclasses.dataclass(kw_only=True)
class Work:
    """What a piece of training computes and moves."""

    flops: Counter[torch.dtype] = dataclasses.field(default_factory=Counter)  # of convolutions and matmuls
    moved_bytes: float = 0.0  # read and written by all operations
    calls: float = 0.0  # operations that compute something


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """One iteration of one process; a phase that does not run every time counts with its frequency."""

    work: Work
    network_bytes: int  # parameters and buffers of all networks, EMA included
    optimizer_bytes: int  # two moments per parameter
    activation_bytes: int  # most that activations and gradients take at once

    @property
    def total_bytes(self) -> int:
        """All of its memory."""
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


def describe_run(config: TrainConfig, device: torch.device, world_size: int, card: Card | None = None) -> str:
    """Returns what `train.py --dry-run` prints: options, tables of the networks, memory, time and disk.

    Args:
        config: of the run.
        device: what is here; its speed is measured.
        world_size: number of processes.
        card: a GPU to plan for instead, which need not be here.
    """
    step = estimate_step(config, world_size, 'cuda' if card else device)
    batch_gpu, rounds = config.split_batch(world_size)
    speed = speed_of(card, config) if card else measure_device(device)
    sec_per_kimg = speed.seconds(step.work) * 1000 / config.batch
    total_kimg = config.total_nimg / 1000
    gib = {n: getattr(step, f'{n}_bytes') / 2**30 for n in ('network', 'optimizer', 'activation')}
    cpu = f'CPU, {torch.get_num_threads()} threads'
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu
    name = f'{card.name}, counted, not measured' if card else name
    with torch.device('meta'):
        disk = disk_of(config, build_networks(config))
    lines = [
        f'options: {json.dumps(to_dict(config), indent=2)}',
        *_network_tables(config),
        '',
        f'estimate for {world_size} x {name}, each {rounds} x {batch_gpu} clips a step:',
        f'  memory  about {step.total_bytes / 2**30:.2f} GiB: networks {gib["network"]:.2f}, optimizers '
        f'{gib["optimizer"]:.2f}, activations and gradients {gib["activation"]:.2f}',
        f'  work    {format_count(sum(step.work.flops.values()))}FLOP a step, '
        f'{step.work.moved_bytes / 2**30:.0f} GiB read and written',
        f'  GPU     {describe_fit(config, world_size, device, card)}',
        f'  time    about {sec_per_kimg:.0f} s/kimg; for {total_kimg:g} kimg '
        f'{format_time(sec_per_kimg * total_kimg)}',
        f'  disk    {describe_disk(disk)}',
        '  (per process; memory without libraries and data; the time may be wrong by a factor of 2)',
    ]
    return '\n'.join(lines)


def speed_of(card: Card, config: TrainConfig) -> DeviceSpeed:
    """Returns how fast a GPU that is not here should be."""
    flops = card.flops(config.float32_precision)
    return DeviceSpeed(kind='cuda', flops=flops, moved_bytes=card.reached_bytes, call_sec=card.call_sec)


def describe_fit(config: TrainConfig, world_size: int, device: torch.device, card: Card | None = None) -> str:
    """Returns whether a step fits a GPU, and if not, which would: that named, that here, or one of 80 GB."""
    name, room = 'a GPU of 80 GB', _CARD_BYTES
    if card is not None:
        name, room = card.name, round(card.room_gib * 2**30)
    elif device.type == 'cuda':
        name, room = 'this GPU', torch.cuda.get_device_properties(device).total_memory
    needs = {}
    for n in _sizes(config, world_size):
        smaller = dataclasses.replace(config, batch_gpu=n)
        needs[n] = estimate_step(smaller, world_size, 'cuda').total_bytes + _LIBRARY_BYTES
        if needs[n] <= room:
            break
    (own, need), (n, least) = next(iter(needs.items())), needs.popitem()
    gib = [f'{size / 2**30:.1f}' for size in (need, room, least, _LIBRARY_BYTES)]
    text = f'{own} clips at a time take {gib[0]} of {gib[1]} GiB on {name}, {gib[3]} for libraries'
    if need <= room:
        return f'fits: {text}'
    smaller = f'use --batch-gpu {n}, which takes {gib[2]}' if least <= room else 'nor does one clip'
    return f'does not fit: {text}; {smaller}'


def _sizes(config: TrainConfig, world_size: int) -> Iterator[int]:
    """Yields how many clips a process may take at a time, from what the run takes down to one."""
    own, _ = config.split_batch(world_size)
    for n in range(own, 0, -1):
        with contextlib.suppress(ConfigError):  # the batch cannot be split like this
            yield dataclasses.replace(config, batch_gpu=n).split_batch(world_size)[0]


def estimate_step(
    config: TrainConfig, world_size: int = 1, device: torch.device | str = 'cpu'
) -> StepEstimate:
    """Runs every phase of an iteration on fake tensors; takes seconds and next to no memory at any size.

    Args:
        config: of the run; schedules are taken as they are after their fades.
        world_size: processes that share the batch.
        device: decides about half precision and kernels; `cuda` need not exist.
    """
    batch_gpu, rounds = config.split_batch(world_size)
    intervals = {'Gmain': 1, 'Greg': config.g_reg_interval, 'Dmain': 1, 'Dreg': config.d_reg_interval}
    work, peaks = Work(), []
    meters = {phase: Meter(work, rounds / interval) for phase, interval in intervals.items()}
    networks = meter_phases(config, batch_gpu, device, meters)
    g, d = parameter_count(networks.G), sum(parameter_count(n) for n in networks[1:] if n is not None)
    buffers = [sum(b.numel() for b in n.buffers()) for n in networks if n is not None]
    loss = config.loss.build()
    for phase, meter in ((p, m) for p, m in meters.items() if loss.has(p)):
        trained, idle = (g, d) if phase[0] == 'G' else (d, g)
        work.moved_bytes += 4 * _ADAM_PASSES * trained / intervals[phase]
        peaks.append(meter.peak_bytes + 4 * idle)  # the others keep their gradients until their turn
    work.moved_bytes += 4 * _EMA_PASSES * g
    return StepEstimate(
        work=work,
        network_bytes=4 * (2 * g + d + sum(buffers) + buffers[0]),
        optimizer_bytes=8 * (g + d),
        activation_bytes=max(peaks),
    )


def meter_phases(
    config: TrainConfig, clips: int, device: torch.device | str, meters: Mapping[Phase, 'Meter']
) -> Networks:
    """Runs phases on fake tensors, each under its meter.

    Args:
        config: of the run.
        clips: that go through at a time.
        device: as in estimate_step.
        meters: of the phases to run; those that the loss does not have are left out.

    Returns:
        the networks, without data.
    """
    loss = config.loss.build()
    with FakeTensorMode(), counting_for(torch.device(device)):
        networks = build_networks(config)
        real, fake = _batches(networks.G, clips, loss.num_frames(networks.G.config.span))
        if config.images.path is not None:
            singles = _batches(networks.G, clips * config.images.per_clip, 1)
            real, fake = (x._replace(singles=y) for x, y in zip((real, fake), singles, strict=True))
        for phase in filter(loss.has, meters):
            with meters[phase]:
                _run_phase(loss, phase, networks, real, fake)
    return networks


@contextlib.contextmanager
def counting_for(device: torch.device) -> Iterator[None]:
    """Makes fake tensors on a device; for a GPU that is missing on the CPU, but they say that they are on it.

    For use within FakeTensorMode. Without a GPU torch cannot run the backward pass of tensors there. Networks
    and operators ask `is_cuda`.
    """
    missing = device.type == 'cuda' and not torch.cuda.is_available()
    if missing:
        FakeTensor.is_cuda = property(lambda _: True)
    try:
        with torch.device('cpu' if missing else device):
            yield
    finally:
        if missing:
            del FakeTensor.is_cuda


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
        flops[dtype] = work / _median_sec(convolve, device)
    large = torch.ones(2**26 if cuda else 2**22, device=device)
    tiny = torch.ones(1, device=device)
    return DeviceSpeed(
        kind=device.type,
        flops=flops,
        moved_bytes=2 * 4 * large.numel() / _median_sec(lambda: large * 2, device),
        call_sec=_median_sec(lambda: [tiny * 2 for _ in range(1000)], device) / 1000,
    )


def _median_sec(function: Callable[[], Any], device: torch.device) -> float:
    times = []
    while len(times) < 3 or sum(times) < _MEASURE_SEC:
        start = time.perf_counter()
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])  # two warm up


for _name, _passes in {'triplane_render': 1, 'triplane_render_grad': 3}.items():  # through the decoder
    register_flop_formula(getattr(torch.ops.pv3d, _name), get_raw=True)(
        lambda planes, params, o, d, depths, *_, passes=_passes, **__: (
            2 * passes * params.numel() * depths.numel()
        )
    )


class Meter(TorchDispatchMode):
    """Adds up the work of operations, and the bytes of the tensors that they make while these are alive."""

    def __init__(self, work: Work, weight: float = 1.0) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._work, self._weight = work, weight
        self._alive: dict[int, int] = {}  # id of a storage -> its bytes
        self._alive_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in (args, out))
        if func.namespace in ('aten', 'pv3d') and not func.is_view and made:
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count else 0
            self.note(made[0].dtype, flops, sum(t.numel() * t.element_size() for t in made + read))
        for tensor in made:
            self._keep(tensor.untyped_storage())
        return out

    def note(self, dtype: torch.dtype, flops: int, moved_bytes: int) -> None:
        """Adds one operation, whose inputs and outputs count once each."""
        self._work.calls += self._weight
        self._work.moved_bytes += self._weight * moved_bytes
        if flops:
            self._work.flops[dtype] += self._weight * flops

    def _keep(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._alive_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._alive_bytes -= self._alive.pop(key)


def _batches(G: nn.Module, n: int, frames: int) -> tuple[RealBatch, FakeBatch]:
    size = G.config.resolution
    t, c = torch.empty(n, frames), torch.empty(n, frames, LABEL_DIM)
    real = RealBatch(torch.empty(n, frames, 3, size, size), t, c)
    z_a, z_m = torch.empty(n, G.z_dim), torch.empty(n, G.motion_dim)
    return real, FakeBatch(z_a, z_m, t, c, c, torch.empty(n), z_m)


def _run_phase(loss: Loss, phase: Phase, networks: Networks, real: RealBatch, fake: FakeBatch) -> None:
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
        for name, network in build_networks(config)._asdict().items():
            if network is not None:
                yield f'\n{name}\n{module_summary(network, network.example_inputs(1))}'
