"""A thread that works beside its caller."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


@contextlib.contextmanager
def in_background(function: Callable[..., object], ahead: int) -> Iterator[Callable[..., None]]:
    """Yields a function that has `function` called in a thread, one call after another, and does not wait.

    It waits only while `ahead` calls have not ended, which bounds what they hold. The block ends when
    all have; an error of one is raised by a later call or at the end, and the others are left out.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1) as thread:

        def call(*args: Any) -> None:
            while len(waiting) >= ahead:
                waiting.popleft().result()
            waiting.append(thread.submit(function, *args))

        try:
            yield call
            while waiting:
                waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)
