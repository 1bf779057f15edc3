"""Kills commands at random moments, gives them again, and compares the results with undisturbed ones."""

import dataclasses
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import reliability_runs as runs

_WHOLE_EVERY = 10  # lives; each such process imports everything
_MOST = 5  # kills of one run, since not all commands get further with each life
_DELAY_SEC = 0.1


@dataclasses.dataclass
class Tally:
    """What became of the kills."""

    kills: int = 0
    in_imports: int = 0
    finished: int = 0
    different: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)


def kill_command(case: runs.Case, outdir: Path, times: int, seed: int, until: float) -> dict[str, Any]:
    """Kills a command so many times, at most _MOST times in one run; every run then ends undisturbed.

    Args:
        case: the command.
        outdir: for its folders.
        times: kills.
        seed: of the moments, which are uniform over the processor time of an undisturbed run; in new
            interpreters over that of the imports, too.
        until: no further run begins, and no life is killed, after this time (time.time()).
    """
    rng, tally = random.Random(f'{seed}/{case.name}'), Tally()
    folder = outdir / case.name
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.process_time()
    length = runs.run_well(case.words, folder / 'whole')
    expected = case.digests(folder / 'whole')
    imports_sec = max(begin, 2.0)  # of this process, which has imported as much
    while tally.kills < times and time.time() < until:
        place = folder / f'{tally.finished + len(tally.failed):04d}'
        place.mkdir()
        _one_run(case, place, min(_MOST, times - tally.kills), rng, (length, imports_sec), tally, until)
        if not tally.failed:
            _compare(expected, case.digests(place), place, tally)
        if tally.failed or tally.different:
            break  # the folder shows what happened
        shutil.rmtree(place)
    shutil.rmtree(folder / 'whole')
    return {'processor_sec': round(length, 2), 'results': len(expected), **dataclasses.asdict(tally)}


def _one_run(
    case: runs.Case,
    place: Path,
    most: int,
    rng: random.Random,
    secs: tuple[float, float],
    tally: Tally,
    until: float,
) -> None:
    length, imports_sec = secs
    for life_number in range(most + 1):
        whole = rng.random() < 1 / _WHOLE_EVERY
        moment = rng.uniform(0, length + imports_sec * whole)
        life = runs.Life(case.words, place, whole)
        ends = life_number == most or time.time() > until
        code, used = life.wait(None if ends else moment, rng.uniform(0, _DELAY_SEC))
        if code is not None:
            break
        tally.kills += 1
        tally.in_imports += whole and used < imports_sec
    life.clean_up()
    if code == 0:
        tally.finished += 1
    else:
        tally.failed.append(f'{place.name}: exit code {code}: {life.log.read_text()[-600:]}')


def _compare(expected: Mapping[str, str], found: Mapping[str, str], place: Path, tally: Tally) -> None:
    names = {n for n in {*expected, *found} if expected.get(n) != found.get(n)}
    if names:
        shown = {n: [expected.get(n), found.get(n)] for n in sorted(names)[:10]}
        tally.different.append({'run': place.name, 'files': shown})
