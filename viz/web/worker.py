"""Threads that draw for one browser: the newest request only, small while things move, full when still."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Wanted = TypeVar('Wanted')

BUDGET_SEC = 1 / 15  # of a frame while things move
SETTLE_SEC = 0.15  # without a request: then nothing moves any more
_SMALLEST = 4  # the smallest resolution is the full one through this
_STEP = 4  # resolutions are multiples of it, so that few different ones occur


class Pace:
    """Chooses the resolution of the rays by the time that full frames took."""

    def __init__(self, budget_sec: float = BUDGET_SEC) -> None:
        self.budget_sec = budget_sec
        self._full_sec: float | None = None  # none was drawn yet

    def note(self, seconds: float) -> None:
        """Takes the time of a frame of full resolution into account; the last ones count most."""
        self._full_sec = seconds if self._full_sec is None else 0.7 * self._full_sec + 0.3 * seconds

    def affordable(self, full: int) -> int:
        """Returns the resolution, at most `full`, whose frame is ready within the budget."""
        smallest = -(-full // _SMALLEST)
        if self._full_sec is None:
            return smallest
        if self._full_sec <= self.budget_sec:
            return full
        side = int(full * (self.budget_sec / self._full_sec) ** 0.5) // _STEP * _STEP
        return min(max(side, smallest), full)


class Worker(Generic[Wanted]):
    """A thread with at most one request waiting: a newer one takes the place of an older one."""

    def __init__(
        self,
        draw: Callable[[Wanted, int, Callable[[], bool] | None], None],
        full: Callable[[Wanted], int],
        pace: Pace | None = None,
        settle_sec: float = SETTLE_SEC,
    ) -> None:
        """Starts the thread.

        Args:
            draw: draws a request with rays of this resolution and sends it; it reports its errors itself.
                What is drawn because nothing moves gets a function that tells whether it is no longer wanted.
            full: resolution of a request that does not move.
            pace: chooses the resolution of one that does.
            settle_sec: see SETTLE_SEC.
        """
        self._draw, self._full, self.pace = draw, full, pace or Pace()
        self._settle_sec = settle_sec
        self._changed = threading.Condition()
        self._wanted: Wanted | None = None
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, wanted: Wanted) -> None:
        """Asks for an image; returns at once."""
        with self._changed:
            self._wanted = wanted
            self._changed.notify_all()

    def wait(self, timeout_sec: float) -> bool:
        """Waits until no request is waiting or being drawn; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and self._wanted is None, timeout_sec)

    def close(self) -> None:
        """Ends the thread after what it is drawing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _stale(self) -> bool:
        return self._wanted is not None or self._closed

    def _run(self) -> None:
        coarse: Wanted | None = None  # what was drawn small, and waits to be drawn in full
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                patience = None if coarse is None else self._settle_sec
                self._changed.wait_for(lambda: self._closed or self._wanted is not None, patience)
                if self._closed:
                    return
                wanted, self._wanted, self._busy = self._wanted, None, True
            stale = self._stale if wanted is None else None
            wanted = coarse if wanted is None else wanted
            full = self._full(wanted)
            side = full if stale else self.pace.affordable(full)
            start = time.perf_counter()
            self._draw(wanted, side, stale)
            if side == full and not (stale and stale()):
                self.pace.note(time.perf_counter() - start)
            coarse = wanted if side < full else None


class Player:
    """A thread that moves time on while it plays: the next frame is asked for when the last one is there."""

    def __init__(self, advance: Callable[[float], None], worker: Worker, fps: float = 25.0) -> None:
        """Starts the thread, which waits.

        Args:
            advance: gets the seconds since the last call.
            worker: which draws.
            fps: at most so many frames per second.
        """
        self._advance, self._worker, self._frame_sec = advance, worker, 1 / fps
        self._playing, self._closed = threading.Event(), False
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def playing(self) -> bool:
        """Whether it plays."""
        return self._playing.is_set()

    def play(self, on: bool) -> None:
        """Plays, or stops where it is."""
        (self._playing.set if on else self._playing.clear)()

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self._playing.set()

    def _run(self) -> None:
        while self._playing.wait() and not self._closed:
            start = time.perf_counter()
            while self.playing and not self._closed:
                time.sleep(max(start + self._frame_sec - time.perf_counter(), 0))
                self._worker.wait(1.0)
                now = time.perf_counter()
                if self.playing:  # it was not stopped meanwhile
                    self._advance(now - start)
                start = now
