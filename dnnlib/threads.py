"""How long the threads of OpenMP spin before they sleep, chosen once, before torch is loaded.

torch on a CPU is thousands of short parallel regions per iteration. A thread that sleeps between them wakes
too late; one that spins while another program needs its core keeps that program, and then its own team, from
running. libgomp decides neither by the load: it always spins for some milliseconds. docs/performance.md has
the measurements. The count changes the time, not the result.
"""

import os
import time
from collections.abc import MutableMapping
from pathlib import Path

from dnnlib.util import usable_cores

IDLE_SPINS = 1000  # some 50 microseconds: most gaps between parallel regions, and cheap if others come
BUSY_SPINS = 0  # sleep at once
_USERS = ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')  # a user who sets one of these has decided
_LOAD = Path('/proc/loadavg')  # its fourth field is RUNNING/ALL, threads of the whole machine
_LOOKS, _PAUSE_SEC = 6, 0.01


def choose_spins(env: MutableMapping[str, str] = os.environ) -> None:
    """Sets GOMP_SPINCOUNT by what else runs now; leaves a setting of the user, and one thread, alone."""
    alone = env.get('OMP_NUM_THREADS') == '1' or usable_cores() == 1
    if not alone and not any(name in env for name in _USERS) and _LOAD.exists():
        busy = os.cpu_count() - others_running() < usable_cores()
        env['GOMP_SPINCOUNT'] = str(BUSY_SPINS if busy else IDLE_SPINS)


def others_running() -> int:
    """Returns how many threads of other programs run or wait for a core, the mean of 60 ms."""
    looks = []
    for _ in range(_LOOKS):
        time.sleep(_PAUSE_SEC)
        looks.append(int(_LOAD.read_text().split()[3].partition('/')[0]))
    return round(sum(looks) / len(looks)) - 1  # without this one, which is reading
