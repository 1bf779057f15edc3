"""What benchmarks.gpu_day measures in its own process: operators, phases of a step, rendering.

Floors are those of an H100: the sum over operations of the larger of arithmetic / peak and bytes / bandwidth,
inputs and outputs once each.
"""

import contextlib
import dataclasses
import functools
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, doctor, ops, render, step
from torch_utils.misc import Float32Precision, seeded_generator, set_float32_precision
from torch_utils.ops import kernels
from training.camera import front_label
from training.config import TrainConfig
from training.estimate import Meter, Work, meter_phases
from training.presets import PRESETS
from viz import trajectories
from viz.clip_writer import Clip, ClipWriter

BANDWIDTH = 3.0e12  # bytes/s that an H100 reaches
PEAKS = {torch.float16: 798e12, torch.bfloat16: 798e12, torch.float32: 67e12}  # FLOP/s, without TF32
_TF32_PEAK = 400e12
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TOLERANCE = doctor._TOLERANCE | {torch.float64: 1e-10}
_TOP = 14  # kernels of a profile
# to run phases in: stock operators; cuDNN's guess of the fastest algorithm; what float32_precision can be
WAYS = ('reference', 'cudnn.benchmark off', 'float32 exact', 'float32 tf32')
_MEASURE_SEC = 0.3  # of an operator


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where and how long to measure; on a CPU all sizes are the smallest."""

    device: str
    out: Path
    end: float  # as of time.time()

    @property
    def smoke(self) -> bool:
        """Whether this is a trial on a CPU."""
        return self.device == 'cpu'

    def clear(self) -> None:
        """Gives memory back between items."""
        gc.collect()
        if not self.smoke:
            with contextlib.suppress(RuntimeError):  # after an error that the device does not survive
                torch.cuda.empty_cache()


@dataclasses.dataclass(frozen=True)
class Item:
    """One measurement: its result is what JSON can hold."""

    name: str
    needs_sec: float  # a generous guess
    run: Callable[[], Any]


class Floor(Meter):
    """Adds up the time that operations take at least, float32 exact and as TF32."""

    def __init__(self) -> None:
        super().__init__(Work())
        self.exact_sec = self.tf32_sec = 0.0

    def note(self, dtype: torch.dtype, flops: int, moved_bytes: int) -> None:
        """Adds one operation."""
        move, peak = moved_bytes / BANDWIDTH, PEAKS.get(dtype, PEAKS[torch.float32])
        self.exact_sec += max(move, flops / peak)
        self.tf32_sec += max(move, flops / max(peak, _TF32_PEAK))


def exactness_items(plan: Plan) -> Iterator[Item]:
    """Every operator against float64: value, first and second derivative, in four types and two layouts."""
    n, channels, size = (1, 8, 8) if plan.smoke else (2, 64, 32)
    for dtype in _TYPES:
        for last in (False, True):
            sizes = ops.Sizes(n, channels, size, dtype, last)
            names = _names()
            makers = [functools.partial(_case, plan, sizes, i) for i in range(len(names))]
            if dtype in (torch.float32, torch.float64):  # planes and rays are never in half precision
                makers.append(functools.partial(doctor.renderer, sizes, plan.device))
                names = [*names, 'triplane_render']
            layout = 'channels last' if last else 'contiguous'
            for name, make in zip(names, makers, strict=True):
                run = functools.partial(_checked, make, _TOLERANCE[dtype])
                yield Item(f'exact/{name}/{str(dtype)[6:]}/{layout}', 5, run)


def _case(plan: Plan, sizes: ops.Sizes, index: int) -> ops.Case:
    return ops.cases(sizes, plan.device)[index]


def _names() -> list[str]:
    return [case.name for case in ops.cases(ops.Sizes(1, 2, 4, torch.float32, False), 'cpu')]


def _checked(make: Callable[[], ops.Case], tolerance: float) -> list[float]:
    found = doctor.errors(make(), torch.float64)
    if not max(found) < tolerance:
        raise ArithmeticError(f'value, first, second derivative: {found}; allowed: {tolerance}')
    return found


def operator_items(plan: Plan) -> Iterator[Item]:
    """Operators at sizes of the 512 preset, channels last: milliseconds, and how far from the floor."""
    shapes = [(1, 8, 8)] if plan.smoke else [(16, 128, 512), (16, 256, 256), (16, 64, 512), (16, 512, 64)]
    for dtype in _TYPES[1:2] if plan.smoke else _TYPES[1:]:
        for n, channels, size in shapes:
            sizes = ops.Sizes(n, channels, size, dtype, last=True)
            for index, name in enumerate(_names()):
                run = functools.partial(time_operator, plan, sizes, index)
                yield Item(f'op/{name}/{n}x{channels}x{size}x{size}/{str(dtype)[6:]}', 15, run)
    for rays, frames in [(4, 1)] if plan.smoke else [(64, 4), (64, 32)]:
        run = functools.partial(_time_renderer, plan, rays, frames)
        yield Item(f'op/triplane_render/{frames}x{rays}x{rays}', 20, run)


def time_operator(plan: Plan, sizes: ops.Sizes, index: int) -> dict[str, float]:
    """Returns milliseconds of forward and of both passes, and the ratio of each to its floor."""
    case = _case(plan, sizes, index)
    with torch.no_grad(), Floor() as forward:
        y = case.run('auto', *case.inputs)
    dy = torch.randn_like(y)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(case.run('auto', *case.inputs), case.inputs, dy)

    with Floor() as floor:
        both()
    with torch.no_grad():
        seconds = median_sec(lambda: case.run('auto', *case.inputs), plan.device)
    found = {'forward_ms': seconds * 1e3, 'forward_over_floor': seconds / forward.exact_sec}
    seconds = median_sec(both, plan.device)
    return found | {'both_ms': seconds * 1e3, 'both_over_floor': seconds / floor.exact_sec}


def _time_renderer(plan: Plan, rays: int, frames: int) -> dict[str, float]:
    """Times the fused renderer with and without gradients."""
    samples, side = (4, 8) if plan.smoke else (48, 256)
    found = {}
    for name, backward in (('forward_ms', False), ('both_ms', True)):
        sizes = render.Sizes(frames, rays, samples, 32, side, plan.device, backward)
        scene = render.Scene(sizes)
        found[name] = 1e3 * median_sec(lambda s=scene: s.render(True), plan.device)
    return found


def median_sec(run: Callable[[], object], device: str) -> float:
    """Returns the median time of a call, by events on CUDA, after three calls to warm up."""
    for _ in range(3):
        run()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or (device == 'cuda' and time.perf_counter() - begin < _MEASURE_SEC):
        times.append(_event_sec(run) if device == 'cuda' else common.timed(device, run))
    return statistics.median(times)


def _event_sec(run: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def step_items(plan: Plan) -> Iterator[Item]:
    """Phases of a training step: first call, seconds, floors, peak of memory, kernels; then other ways.

    Dreg comes last: its convolutions are those that a library may know least of.
    """
    todo = [('pv3d-voxceleb', 2), ('pv3d-voxceleb', 8), ('pv3d-voxceleb', 16), ('pv3d-128', 16)]
    for cfg, clips in [('tiny', 4)] if plan.smoke else todo:
        with tempfile.TemporaryDirectory() as folder:
            precision = PRESETS[cfg]('').generator.precision
            # made by the first item that runs
            bench = functools.cache(functools.partial(step.Bench, cfg, clips, plan.device, precision, folder))
            for name in ('generator forward', 'Gmain', 'Greg', 'Dmain', 'Dreg'):
                run = functools.partial(time_phase, plan, bench, name, clips)
                yield Item(f'step/{cfg}/{clips}/{name}', 60, run)
            if (cfg, clips) in (todo[0], ('tiny', 4)):
                for way in WAYS:
                    run = functools.partial(other_way, bench, way)
                    yield Item(f'step/{cfg}/{clips}/{way}', 60, run)
            del bench, run  # gigabytes


def time_phase(plan: Plan, make: Callable[[], step.Bench], name: str, clips: int) -> dict[str, Any]:
    """Returns the times of a phase, its floors, its peak of memory and its largest kernels."""
    bench = make()
    run = bench.parts()[name][1]
    first, _ = bench.measure(run, memory=False)  # with cuDNN's search, itself a finding
    _, peak = bench.measure(run, memory=True)
    seconds = min(bench.measure(run, memory=False)[0] for _ in range(1 if first > 5 else 3))
    shares = step.profiled(plan.device, run)
    found = {
        'first_sec': first,
        'seconds': seconds,
        'peak_gib': peak / 2**30,
        'calls': sum(share.count for share in shares),
        'busy': sum(share.seconds for share in shares) / seconds,
        'top_ms': [(share.name[:80], share.count, round(1e3 * share.seconds, 2)) for share in shares[:_TOP]],
    }
    return found | phase_floor(bench.trainer.config, clips, name)


def phase_floor(config: TrainConfig, clips: int, phase: str) -> dict[str, float]:
    """Returns the floors of a phase as on a GPU, counted; nothing for what is no phase."""
    if phase == 'generator forward':
        return {}
    floor = Floor()
    meter_phases(config, clips, 'cuda', {phase: floor})
    gib = floor.peak_bytes / 2**30
    return {'floor_exact_sec': floor.exact_sec, 'floor_tf32_sec': floor.tf32_sec, 'counted_gib': gib}


def other_way(make: Callable[[], step.Bench], way: str) -> dict[str, float]:
    """Returns the seconds of phases in one of WAYS, which differs from the usual one in nothing else."""
    bench = make()
    os.environ[kernels.ENVIRONMENT] = 'ref' if way == 'reference' else 'auto'
    kernels.forget()
    if way.startswith('float32 '):
        set_float32_precision(way.removeprefix('float32 '))
    torch.backends.cudnn.benchmark = way != 'cudnn.benchmark off'
    try:
        runs = {name: bench.parts()[name][1] for name in ('Gmain', 'Dmain')}
        return {n: min(bench.measure(run, memory=False)[0] for _ in range(2)) for n, run in runs.items()}
    finally:
        os.environ[kernels.ENVIRONMENT] = 'auto'
        kernels.forget()
        set_float32_precision(bench.trainer.config.float32_precision)


def rendering_items(plan: Plan) -> Iterator[Item]:
    """Frames per second of one head: planes, rays with super-resolution, both; as a CUDA graph; to a file."""
    cfg = 'tiny' if plan.smoke else 'pv3d-voxceleb'
    for precision in ('exact', 'tf32'):
        yield Item(f'render/{cfg}/{precision}', 40, functools.partial(time_frames, plan, cfg, precision))
    yield Item(f'render/{cfg}/video', 40, functools.partial(_time_video, plan, cfg))
    if not plan.smoke:  # last: after a recording that fails a process may be of no more use
        yield Item(f'render/{cfg}/graph', 40, functools.partial(_time_graph, plan, cfg))


def _head(plan: Plan, cfg: str, precision: Float32Precision = 'exact') -> tuple[Any, ...]:
    """Returns a generator of random weights, codes, ws, time and camera of a frame; sets the precision."""
    set_float32_precision(precision)  # whatever the stage before has left
    G = PRESETS[cfg]('').generator.build().to(plan.device).eval().requires_grad_(False)
    codes = G.draw_codes(1, seeded_generator(plan.device, 0))
    t, c = torch.zeros(1, device=plan.device), front_label()[None].float().to(plan.device)
    return G, codes, G.condition(codes, c, t), t, c


@torch.no_grad()
def time_frames(plan: Plan, cfg: str, precision: Float32Precision) -> dict[str, float]:
    """Returns milliseconds of the parts of a frame."""
    G, codes, ws, t, c = _head(plan, cfg, precision)
    planes = G.scene(codes, ws, t)
    parts = {
        'planes_ms': lambda: G.scene(codes, ws, t),
        'rays_and_sr_ms': lambda: G.render(planes, ws, c),
        'frame_ms': lambda: G.render(G.scene(codes, ws, t), ws, c),
    }
    return {name: 1e3 * median_sec(run, plan.device) for name, run in parts.items()}


@torch.no_grad()
def _time_graph(plan: Plan, cfg: str) -> dict[str, float]:
    """Times a frame whose launches are recorded once and replayed."""
    G, codes, ws, t, c = _head(plan, cfg)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # libraries choose their algorithms before the recording
        for _ in range(3):
            G.render(G.scene(codes, ws, t), ws, c)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        G.render(G.scene(codes, ws, t), ws, c)
    return {'frame_ms': 1e3 * median_sec(graph.replay, plan.device)}


def _time_video(plan: Plan, cfg: str) -> dict[str, float]:
    """Writes a clip as gen_videos.py does, its moments in time going forth and back."""
    G, codes, _, _, c = _head(plan, cfg)
    frames = 4 if plan.smoke else 240
    times = trajectories.frame_times(frames, G.config.span)
    cameras = trajectories.orbit(frames)
    clip = Clip(name='orbit', codes=codes, cameras=cameras, map_cameras=cameras[:1], times=times)
    writer = ClipWriter(G=G, outdir=plan.out, report=lambda line: None)
    seconds = [common.timed(plan.device, lambda: writer.videos(clip)) for _ in range(2)]
    return {'first_frames_per_sec': frames / seconds[0], 'frames_per_sec': frames / seconds[1]}
