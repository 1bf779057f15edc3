"""Turns: one at a time, in the order of asking; slow drawings stop or let others in between."""

import threading

import pytest
import torch

from support import tiny
from viz.web.painter import Painter
from viz.web.people import Model
from viz.web.state import State
from viz.web.turns import Superseded, Turns


def test_one_at_a_time_in_order():
    turns, order, threads = Turns(), [], []

    def take(name):
        with turns.taken():
            order.append(name)
            assert len(turns._queue) == 6 - len(order)

    with turns.taken():
        for name in range(5):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            while len(turns._queue) < 2 + name:
                pass
        assert not order
    for thread in threads:
        thread.join(5)
    assert order == list(range(5))


def test_a_stale_drawing_stops_and_gives_the_turn_back():
    turns, done = Turns(), []
    with pytest.raises(Superseded), turns.taken(lambda: len(done) == 3):
        for i in range(9):
            torch.zeros(1)
            done.append(i)
    assert len(done) == 3
    with turns.taken():
        torch.zeros(1)  # no longer watched


@pytest.mark.parametrize('slow', [lambda: False, None])
def test_others_come_in_between_slow_parts(slow):
    turns, order = Turns(), []

    def quick():
        with turns.taken():
            order.append('quick')

    thread = threading.Thread(target=quick)
    with turns.taken(slow):
        thread.start()
        while len(turns._queue) < 2:
            pass
        torch.zeros(1)
        order.append('slow')
    thread.join(5)
    assert order == (['quick', 'slow'] if slow else ['slow', 'quick'])


def test_what_was_interrupted_changes_no_image():
    """One browser's slow image stops for its newer request, and another's goes on after a third one's."""
    G = tiny.generator(span=4).eval().requires_grad_(False)
    expected = [Painter(Model(G=G, path='a.pkl')).paint(State(seed=i)) for i in range(3)]
    painter, calls = Painter(Model(G=G, path='a.pkl')), []

    def others_wait():
        calls.append(1)
        if len(calls) == 40:  # in the middle
            thread.start()
            while len(painter.turns._queue) < 2:
                pass
        return False

    between = []
    thread = threading.Thread(target=lambda: between.append((painter.paint(State(seed=1)), len(calls))))
    slow = painter.paint(State(seed=0), stale=others_wait)
    thread.join(5)
    assert between[0][1] < len(calls) and (slow == expected[0]).all() and (between[0][0] == expected[1]).all()
    with pytest.raises(Superseded):
        painter.paint(State(seed=2), stale=lambda: len(calls.append(1) or calls) % 30 == 0)
    assert (painter.paint(State(seed=2)) == expected[2]).all()
