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

    `report` never waits for the device; `collect` does, and reduces once over the processes. A name counts
    also when only some of them reported it.
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
        self._sums[name] = sums if previous is None else previous + sums.to(previous.device)

    def collect(self) -> dict[str, Moments]:
        """Returns the moments by name over all processes and forgets them. Every process must call it."""
        names = sorted(set().union(*dist.gather_objects(list(self._sums))))
        if not names:
            return {}
        table = torch.zeros(len(names), 3, dtype=torch.float64, device=dist.communication_device())
        for name, sums in self._sums.items():
            table[names.index(name)] = sums
        self._sums = {}
        result = {}
        for name, (num, total, squares) in zip(names, dist.all_reduce_sum(table).tolist(), strict=True):
            mean = total / num
            variance = max(squares / num - mean * mean, 0.0)  # rounding may make it negative; nan stays nan
            result[name] = Moments(mean, variance**0.5, int(num))
        return result
