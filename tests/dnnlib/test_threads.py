"""How long OpenMP threads spin is chosen by the load, unless the user has chosen."""

import subprocess
import sys

import pytest

from dnnlib import threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Returns a function that pretends how many cores there are and how many threads run."""

    def pretend(cores: int, usable: int, running: int) -> None:
        load = tmp_path / 'loadavg'
        load.write_text(f'0.50 0.40 0.30 {running}/512 4321\n')
        monkeypatch.setattr(threads, '_LOAD', load)
        monkeypatch.setattr(threads.os, 'cpu_count', lambda: cores)
        monkeypatch.setattr(threads, 'usable_cores', lambda: usable)

    return pretend


@pytest.mark.parametrize(
    ('cores', 'usable', 'running', 'spins'),
    [
        (2, 2, 1, threads.IDLE_SPINS),  # this process alone
        (2, 2, 2, threads.BUSY_SPINS),
        (8, 4, 5, threads.IDLE_SPINS),  # four others on the other four cores
        (8, 4, 6, threads.BUSY_SPINS),
    ],
)
def test_spins_only_where_the_cores_are_free(machine, cores, usable, running, spins):
    machine(cores, usable, running)
    env = {}
    threads.choose_spins(env)
    assert env == {'GOMP_SPINCOUNT': str(spins)}


@pytest.mark.parametrize(
    'env', [{'GOMP_SPINCOUNT': '7'}, {'OMP_WAIT_POLICY': 'active'}, {'OMP_NUM_THREADS': '1'}]
)
def test_a_setting_of_the_user_stays(machine, env):
    machine(2, 2, 2)
    before = dict(env)
    threads.choose_spins(env)
    assert env == before


def test_elsewhere_than_on_linux_nothing_is_set(machine, monkeypatch, tmp_path):
    machine(2, 2, 1)
    monkeypatch.setattr(threads, '_LOAD', tmp_path / 'missing')
    env = {}
    threads.choose_spins(env)
    assert not env


@pytest.mark.parametrize('room', ['dnnlib.cli', 'dnnlib.threads'])
def test_the_choice_comes_before_torch(room):
    code = f'import sys, {room}; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
