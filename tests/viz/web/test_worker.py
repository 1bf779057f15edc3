"""Requests: the newest wins, low while moving, full when still; playing asks when the last frame is there."""

import threading
import time

from viz.web.worker import Pace, Player, Worker

FULL = 32


def test_pace_keeps_the_budget():
    pace = Pace(budget_sec=0.1)
    assert pace.affordable(FULL) == FULL // 4  # nothing is known yet
    pace.note(0.05)
    assert pace.affordable(FULL) == FULL
    for _ in range(50):
        pace.note(0.4)  # four times too slow: half of the side
    assert pace.affordable(FULL) == FULL // 2
    for _ in range(50):
        pace.note(100.0)
    assert pace.affordable(FULL) == FULL // 4


class Drawn:
    """Draws slowly, and remembers what."""

    def __init__(self):
        self.calls, self.begun, self.free = [], threading.Event(), threading.Semaphore(0)

    def __call__(self, wanted, side, stale):
        self.begun.set()
        self.free.acquire()
        assert (stale is None) == (self.calls[-1:] != [(wanted, FULL // 4)])
        self.calls.append((wanted, side))


def test_the_newest_request_wins():
    draw, pace = Drawn(), Pace()
    pace.note(0.0)
    worker = Worker(draw, lambda wanted: FULL, pace)
    worker.ask(0)
    assert draw.begun.wait(5)
    for wanted in range(1, 100):  # while the first one is being drawn
        worker.ask(wanted)
    for _ in range(9):
        draw.free.release()
    assert worker.wait(5)
    assert draw.calls == [(0, FULL), (99, FULL)]
    worker.close()


def test_low_while_moving_then_full():
    draw, pace = Drawn(), Pace()
    for _ in range(99):
        draw.free.release()
    pace.note(1.0)
    worker = Worker(draw, lambda wanted: FULL, pace, settle_sec=0.05)
    worker.ask('a')
    deadline = time.monotonic() + 5
    while len(draw.calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert draw.calls == [('a', FULL // 4), ('a', FULL)]
    time.sleep(0.15)
    assert len(draw.calls) == 2  # nothing is drawn while nothing changes
    worker.close()


def test_what_is_drawn_in_full_learns_that_it_is_old():
    seen, begun, go = [], threading.Event(), threading.Event()

    def draw(wanted, side, stale):
        if stale and wanted == 'old':
            begun.set()
            assert not stale() and go.wait(5)
        seen.append((wanted, side, stale and stale()))

    worker = Worker(draw, lambda wanted: FULL, settle_sec=0.0)
    worker.ask('old')
    assert begun.wait(5)
    worker.ask('new')
    go.set()
    deadline = time.monotonic() + 5
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    small = FULL // 4  # an interrupted drawing says nothing of what a whole one takes
    assert seen == [('old', small, None), ('old', FULL, True), ('new', small, None), ('new', FULL, False)]
    worker.close()


def test_playing_waits_for_the_frame():
    draw = Drawn()
    worker = Worker(draw, lambda wanted: FULL)
    moved = []

    def advance(seconds):
        moved.append(seconds)
        worker.ask(len(moved))

    player = Player(advance, worker, fps=200.0)
    time.sleep(0.05)
    assert not moved
    player.play(True)
    assert draw.begun.wait(5)
    time.sleep(0.1)  # twenty frames long, but the first one is not there
    assert len(moved) == 1
    for _ in range(4):
        draw.free.release()
    deadline = time.monotonic() + 5
    while len(moved) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    player.play(False)
    assert len(moved) >= 4 and sum(moved) > 0.1
    for _ in range(9):
        draw.free.release()
    player.close()
    worker.close()
