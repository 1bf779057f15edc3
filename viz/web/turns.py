"""Who uses the network when: one drawing at a time, but a slow one is stopped or lets others in between."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.overrides import TorchFunctionMode


class Superseded(Exception):
    """Nobody wants any more what is being drawn."""


class Turns:
    """A lock round the network that is given in the order of asking."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: collections.deque[object] = collections.deque()  # the first one has the turn

    @contextlib.contextmanager
    def taken(self, stale: Callable[[], bool] | None = None) -> Iterator[None]:
        """Has the network alone.

        Args:
            stale: whether nobody wants the result any more. With it, every operation of torch is followed by
                those who wait, and what follows a stale one is left out. None = it is done in one piece.

        Raises:
            Superseded: out of the block, if it became stale.
        """
        self._take()
        try:
            with Between(lambda: self._between(stale)) if stale else contextlib.nullcontext():
                yield
        finally:
            self._leave()

    def _between(self, stale: Callable[[], bool]) -> None:
        if stale():
            raise Superseded
        if len(self._queue) > 1:
            self._leave()
            self._take()

    def _take(self) -> None:
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket)

    def _leave(self) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()


class Between(TorchFunctionMode):
    """Acts before every operation of torch in this thread, which stays as it is."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Does what the operation does."""
        self._act()
        return func(*args, **(kwargs or {}))
