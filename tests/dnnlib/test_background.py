"""Calls run in order beside the caller, bounded in number; errors reach it."""

import threading

import pytest

from dnnlib.background import in_background


def test_calls_run_in_order_in_a_thread_and_end_with_the_block():
    done = []
    with in_background(lambda i: done.append((i, threading.current_thread())), ahead=2) as call:
        for i in range(20):
            call(i)
    assert [i for i, _ in done] == list(range(20))
    assert {thread for _, thread in done}.isdisjoint({threading.main_thread()})


def test_caller_waits_only_when_too_many_calls_are_open():
    gate, begun = threading.Event(), []
    with in_background(lambda i: (begun.append(i), gate.wait(10)), ahead=2) as call:
        call(0)
        call(1)  # the first one waits at the gate, the caller does not
        opener = threading.Timer(0.05, gate.set)
        opener.start()
        call(2)
        assert gate.is_set()
    assert begun == [0, 1, 2]


def test_an_error_reaches_the_caller_and_ends_the_work():
    done = []

    def fail_at_three(i):
        if i == 3:
            raise ValueError('three')
        done.append(i)

    with pytest.raises(ValueError, match='three'), in_background(fail_at_three, ahead=1) as call:
        for i in range(10):
            call(i)
    assert done == [0, 1, 2]
    with pytest.raises(ValueError, match='three'), in_background(fail_at_three, ahead=1) as call:
        call(3)  # nothing is called after it
    with pytest.raises(KeyError), in_background(fail_at_three, ahead=9) as call:
        call(3)
        raise KeyError  # of the block itself, which comes first
