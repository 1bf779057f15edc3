"""One process or many: the torchrun environment behind a few functions.

With one process every function is cheap and needs no initialisation. The state is torch.distributed's own;
nothing is kept here. `python train.py` is one process, `torchrun --nproc_per_node=8 train.py` is eight.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dnnlib.util import UserError
from torch_utils.misc import all_finite

T = TypeVar('T')

# Long, because only the leader writes images and measures metrics; torchrun notices a dead rank by itself.
_TIMEOUT = timedelta(hours=1)


def init(device_type: str, device_index: int | None = None) -> None:
    """Joins the process group that torchrun describes in the environment; does nothing for one process.

    Args:
        device_type: 'cuda' (NCCL, one GPU per process, made the current device), or 'cpu' (gloo).
        device_index: the GPU of the only process; None = that of the number of this process.

    Raises:
        UserError: if this machine has fewer GPUs than processes, or one was chosen for several processes.
    """
    if device_type not in ('cuda', 'cpu'):
        raise UserError(f"device {device_type!r} must be 'cuda' or 'cpu'")
    processes = int(os.environ.get('WORLD_SIZE', '1'))
    if device_index is not None and processes > 1:
        text = f'--device {device_type}:{device_index} is for one process'
        raise UserError(f'{text}; use --device {device_type}')
    if device_index is None:
        device_index = int(os.environ.get('LOCAL_RANK', '0'))
    if device_type == 'cuda':
        if device_index >= torch.cuda.device_count():
            raise UserError(f'no GPU {device_index} here; start torchrun with a smaller --nproc_per_node')
        torch.cuda.set_device(device_index)
    if processes > 1 and not dist.is_initialized():
        device = torch.device('cuda', device_index) if device_type == 'cuda' else None
        backend = 'nccl' if device_type == 'cuda' else 'gloo'
        store, index, count = next(dist.rendezvous('env://', timeout=_TIMEOUT))
        store = dist.PrefixStore(_attempt(), store)
        dist.init_process_group(
            backend, store=store, rank=index, world_size=count, timeout=_TIMEOUT, device_id=device
        )


def _attempt() -> str:
    """Names the attempt of `torchrun --max-restarts`, whose store still holds addresses of dead processes.

    On several machines the counts of their torchruns may differ: there, start it with
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 instead. Source: pytorch issue 135712.
    """
    one_machine = os.environ.get('LOCAL_WORLD_SIZE') == os.environ['WORLD_SIZE']
    return f'attempt {os.environ.get("TORCHELASTIC_RESTART_COUNT", 0) if one_machine else 0}'


def finish() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Returns the number of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """Returns whether this process writes files and prints."""
    return rank() == 0


def print0(*args: Any) -> None:
    """Prints on the leader, at once."""
    if is_leader():
        print(*args, flush=True)


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        device = communication_device()
        dist.barrier(device_ids=[device.index] if device.type == 'cuda' else None)


def communication_device() -> torch.device:
    """Returns the device on which tensors can be reduced: this process's GPU with NCCL, otherwise the CPU."""
    nccl = dist.is_initialized() and dist.get_backend() == 'nccl'
    return torch.device('cuda', torch.cuda.current_device()) if nccl else torch.device('cpu')


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Returns the sum of `tensor` over all processes, on its own device; the argument is unchanged."""
    if not dist.is_initialized():
        return tensor.clone()
    total = tensor.to(communication_device(), copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(tensor.device)


def any_rank(flag: bool) -> bool:
    """Returns to every process whether `flag` is True on any; used to stop all when one got a signal."""
    if not dist.is_initialized():
        return flag
    return all_reduce_sum(torch.full((), float(flag), device=communication_device())).item() > 0


def broadcast_object(value: T) -> T:
    """Returns rank 0's value (any plain object) on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=communication_device())
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Returns every process's value (any plain object), in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast_module(module: nn.Module) -> None:
    """Copies parameters and buffers of rank 0 into the same module of every other process."""
    if not dist.is_initialized():
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        value = tensor.to(communication_device(), copy=True).contiguous()
        dist.broadcast(value, src=0)
        tensor.copy_(value)


@torch.no_grad()
def all_reduce_gradients(params: Sequence[nn.Parameter]) -> list[bool]:
    """Replaces the gradients by their mean over all processes, in one reduction of one flat float32 buffer.

    A gradient that is None here and not elsewhere counts as zero and is made; one that is None everywhere
    stays None, as with one process, because optimizers skip such parameters. All processes must pass the same
    list.

    Returns:
        for each parameter whether its gradient is finite, or None everywhere. This waits for the device,
        once.
    """
    here = [i for i, p in enumerate(params) if p.grad is not None]
    grads = [params[i].grad for i in here]
    if not dist.is_initialized():
        finite = dict(zip(here, all_finite(grads).tolist(), strict=True))
        return [finite.get(i, True) for i in range(len(params))]
    sizes = [p.numel() for p in params]
    flat = torch.zeros(sum(sizes) + len(params), device=communication_device())
    *pieces, found = flat.split([*sizes, len(params)])  # found: in how many processes there is a gradient
    pieces = [piece.view_as(param) for piece, param in zip(pieces, params, strict=True)]
    if here:
        torch._foreach_copy_([pieces[i] for i in here], grads)
        torch._foreach_add_([found[i] for i in here], 1)
    dist.all_reduce(flat)
    flat /= world_size()
    if here:
        torch._foreach_copy_(grads, [pieces[i] for i in here])
    finite, exists = torch.stack([all_finite(pieces), found > 0]).tolist()
    for i, param in enumerate(params):
        if param.grad is None and exists[i]:
            param.grad = torch.zeros_like(param).copy_(pieces[i])
    return finite
