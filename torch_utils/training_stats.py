"""Moments of training figures, summed on the device and reduced over all processes once a tick."""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_utils import distributed as dist


class Moments(NamedTuple):
    """Statistics of everything that was reported under one name since the last collection."""

    mean: float
    std: float  # of the population, not of the mean
    num: int  # count of numbers


class Collector:
    """Gathers scalars by name between ticks.

    `report` never waits for the device. `collect` does once, after one reduction over the processes; a name
    counts also when only some of them reported it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> [count, sum, sum of squares], float64

    def report(self, name: str, value: Tensor | float) -> None:
        """Adds all elements of `value` to the statistics of `name`; an empty tensor adds nothing."""
        x = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        x = x.double().flatten()
        if x.numel() == 0:
            return
        count = torch.full((), x.numel(), dtype=torch.float64, device=x.device)
        sums = torch.stack([count, x.sum(), x.square().sum()])
        previous = self._sums.get(name)
        self._sums[name] = (
            sums if previous is None else previous + sums.to(previous.device, non_blocking=True)
        )

    def collect(self) -> dict[str, Moments]:
        """Returns the moments by name over all processes and forgets them. Every process must call it."""
        names = sorted(set().union(*dist.gather_objects(list(self._sums))))
        if not names:
            return {}
        table = torch.zeros(len(names), 3, dtype=torch.float64, device=dist.communication_device())
        for device in sorted({s.device for s in self._sums.values()}, key=str):  # one transfer per device
            rows = [i for i, n in enumerate(names) if n in self._sums and self._sums[n].device == device]
            table[rows] = torch.stack([self._sums[names[i]] for i in rows]).to(table.device)
        self._sums = {}
        result = {}
        for name, (num, total, squares) in zip(names, dist.all_reduce_sum(table).tolist(), strict=True):
            mean = total / num
            result[name] = Moments(mean, _root(squares / num - mean * mean), int(num))
        return result


def _root(variance: float) -> float:
    """Square root that takes a small negative (rounding) for zero and keeps nan."""
    return 0.0 if variance < 0 else variance**0.5
