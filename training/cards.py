"""GPUs that a dry run can plan for without having one, and the disk that a run needs.

No GPU was measured. What one reaches is a fraction of its data sheet, the same for all (guesses): products on
tensor cores 45 %, in float32 60 %, memory 90 %.
"""

import dataclasses
import shutil
from pathlib import Path

import torch
from torch import nn

from dnnlib.util import UserError
from torch_utils.misc import Float32Precision, parameter_count
from training.config import TrainConfig
from training.loss_contract import Networks

_TENSOR_CORES, _FLOAT32, _MEMORY = 0.45, 0.6, 0.9  # fractions of the data sheet that are reached
_CALL_SEC = 4e-6  # that a CPU takes to start an operation on a GPU; a guess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """Peaks of a data sheet, without sparsity."""

    name: str
    room_gib: float  # of memory that programs get
    half: float  # FLOP/s, float16 or bfloat16 with float32 sums
    tf32: float
    float32: float
    moved_bytes: float  # per second

    def flops(self, precision: Float32Precision) -> dict[torch.dtype, float]:
        """Returns FLOP/s that are reached; `precision`: of convolutions in float32."""
        half = _TENSOR_CORES * self.half
        single = _FLOAT32 * self.float32
        single = max(single, _TENSOR_CORES * self.tf32) if precision == 'tf32' else single
        return {torch.float32: single, torch.float16: half, torch.bfloat16: half}

    @property
    def reached_bytes(self) -> float:
        """Bytes per second that operations move."""
        return _MEMORY * self.moved_bytes

    @property
    def call_sec(self) -> float:
        """Seconds to start an operation."""
        return _CALL_SEC


CARDS = {
    'h100': Card(
        name='H100 SXM, 80 GB', room_gib=79.0, half=989e12, tf32=495e12, float32=67e12, moved_bytes=3.35e12
    ),
    'a100': Card(
        name='A100 SXM, 80 GB', room_gib=79.0, half=312e12, tf32=156e12, float32=19.5e12, moved_bytes=2.04e12
    ),
    'rtx4090': Card(
        name='RTX 4090, 24 GB', room_gib=23.5, half=165e12, tf32=82.6e12, float32=82.6e12, moved_bytes=1.01e12
    ),
}


@dataclasses.dataclass(frozen=True)
class Disk:
    """What a run writes, without images and logs."""

    snapshot_bytes: int  # G, both D, G_ema
    state_bytes: int  # two moments of each parameter
    snapshots: int  # of the whole run; all stay
    states: int  # of which the newest stay, and one more while the next is written

    @property
    def total_bytes(self) -> int:
        """Most that lies on the disk at once."""
        return self.snapshots * self.snapshot_bytes + self.states * self.state_bytes


def disk_of(config: TrainConfig, networks: Networks) -> Disk:
    """Returns what a run of these networks, which may have no data, will write."""

    def size(network: nn.Module) -> int:
        return 4 * (parameter_count(network) + sum(b.numel() for b in network.buffers()))

    present = [network for network in networks if network is not None]
    every = config.output.snapshot_ticks * config.output.tick_nimg
    return Disk(
        size(networks.G) + sum(map(size, present)),
        8 * sum(map(parameter_count, present)),
        1 + (max(config.total_nimg - 1, 0) // every if every else 0),
        config.output.keep_states + 1,
    )


def check_disk(run_dir: Path, disk: Disk) -> str:
    """Returns a warning where the disk is too small for a whole run, '' where it is not.

    Raises:
        UserError: if not even two checkpoints fit.
    """
    free = shutil.disk_usage(run_dir).free
    least = 2 * (disk.snapshot_bytes + disk.state_bytes)
    if free < least:
        raise UserError(
            f'{run_dir}: {_size(free)} are free, but two checkpoints of this run take {_size(least)}; '
            'free some space or choose another --outdir'
        )
    written = sum(p.stat().st_size for p in run_dir.iterdir() if p.suffix in ('.pkl', '.pt'))
    if free + written >= disk.total_bytes:
        return ''
    return (
        f'{free / 2**30:.1f} GiB are free at {run_dir}, but the whole run will write {describe_disk(disk)}; '
        'free some space, or write fewer snapshots with a larger --snap'
    )


def _size(count: int) -> str:
    return f'{count / 2**30:.2f} GiB' if count >= 2**27 else f'{count / 2**20:.2f} MiB'


def describe_disk(disk: Disk) -> str:
    """Returns for people what a run writes."""
    parts = [f'{size / 2**30:.2f} GiB' for size in (disk.total_bytes, disk.snapshot_bytes, disk.state_bytes)]
    return (
        f'about {parts[0]}: {disk.snapshots} snapshots of {parts[1]}, up to {disk.states} training states of '
        f'{parts[2]}, besides images'
    )
