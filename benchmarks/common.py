"""What the benchmarks share: the name of the machine, peaks of memory, reports."""

import contextlib
import ctypes
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch


def machine(device: str) -> dict[str, str | int]:
    """Returns what a figure depends on: the device's name, torch's version, threads."""
    return {'device': _name(device), 'torch': torch.__version__, 'threads': torch.get_num_threads()}


def _name(device: str) -> str:
    if device == 'cuda':
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def reset_peak(device: str) -> int:
    """Discards the peak of memory so far and returns the bytes in use now."""
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # memory that is kept is not in use
    Path('/proc/self/clear_refs').write_text('5')
    return _status('VmRSS')


def peak(device: str) -> int:
    """Returns the most bytes in use since reset_peak: of the allocator (CUDA) or of the process (CPU)."""
    return torch.cuda.max_memory_allocated() if device == 'cuda' else _status('VmHWM')


def _status(name: str) -> int:
    path = Path('/proc/self/status')
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise click.ClickException(f'/proc/self/status has no {name}: memory is measured only on Linux')


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device == 'cuda':
        torch.cuda.synchronize()


def timed(device: str, run: Callable[[], object]) -> float:
    """Returns the seconds that `run` takes."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def write_report(file: str | None, report: dict) -> None:
    """Writes a report as JSON, if a file is given."""
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(report, indent=1) + '\n')
