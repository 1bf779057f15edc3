"""What never breaks, in figures: kills, damaged files, full disks, ranks, memory. See docs/reliability.md.

    python -m benchmarks.reliability --outdir reliability --times 20
    python -m benchmarks.reliability --outdir reliability --items kill-train --times 100

Every item that ends is one line of DIR/results.jsonl; the same command skips what is done. Linux only.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import reliability_damage as damage
from benchmarks import reliability_kills as kills
from benchmarks import reliability_limits as limits
from benchmarks import reliability_runs as runs
from benchmarks.gpu_day import Day

_LIMITS = ('full disk', 'read-only', 'no temporary space')
_FILES = 100  # damaged files in one process for each of --times; commands: 2.5
_ROUNDING = 1e-5  # relative, of gradients of two processes against one
_SAID = 46  # columns of a name in the table


def items(outdir: Path, times: int, seed: int, minutes: float, until: float) -> dict[str, Callable[[], Any]]:
    """Returns what can be measured, by name."""
    cases = runs.cases()
    found: dict[str, Callable[[], Any]] = {
        f'kill-{name}': functools.partial(kills.kill_command, case, outdir, times, seed, until)
        for name, case in cases.items()
    }
    opened = (outdir, times * _FILES, seed, until)
    found['damaged-files'] = functools.partial(damage.in_fork, damage.open_all, *opened)
    commands = (outdir, max(5, times * 5 // 2), seed, until)
    found['damaged-commands'] = functools.partial(damage.in_fork, damage.through_commands, *commands)
    for kind in _LIMITS:
        for name, case in cases.items():
            key = f'{kind.replace(" ", "-")}-{name}'
            found[key] = functools.partial(limits.limited, case, outdir, kind)
    found['ranks'] = functools.partial(limits.ranks, outdir)
    found['memory'] = functools.partial(limits.memory, outdir, minutes)
    return found


def verdict(result: dict[str, Any]) -> str:
    """Returns ok, skipped, or BROKEN, for what an item has found."""
    if 'skipped' in result:
        return 'skipped'
    broken = [result.get(name) for name in ('different', 'failed', 'defects', 'executed', 'left')]
    broken += [result.get('end', 'refused') not in ('refused', 'succeeded')]
    broken += [not result.get('killed_equals_undisturbed', True)]
    broken += [
        any(result.get('exit_codes', {}).values()),
        result.get('two_against_one', {}).get('gradients', 0) > 1e-5,
    ]
    return 'BROKEN' if any(broken) else 'ok'


def table(file: Path) -> list[str]:
    """Returns a line for the last result of each item."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    last = {row['item']: row for row in rows if 'result' in row}
    return [
        f'{name:{_SAID}} {verdict(row["result"]) if row["state"] == "ok" else "error":8}'
        f'{json.dumps(row["result"])}'
        for name, row in last.items()
    ]


@click.command(context_settings={'show_default': True})
@click.option('--outdir', type=click.Path(path_type=Path), required=True, help='of runs and results')
@click.option('--items', 'chosen', default='', help='beginnings of names, with commas')
@click.option('--times', type=click.IntRange(1), default=20, help='kills of each command')
@click.option('--seed', type=click.IntRange(0), default=0, help='of moments and damages')
@click.option('--minutes', type=click.FloatRange(min=0.01), default=120.0, help='of the training of `memory`')
@click.option('--at-most', type=click.FloatRange(min=0.1), default=1e6, help='minutes; then nothing begins')
def main(outdir: Path, chosen: str, times: int, seed: int, minutes: float, at_most: float) -> None:
    """Kills, damages and starves the commands of this project, and compares what comes out."""
    torch.set_num_threads(1)  # forks need a process without threads
    outdir = outdir.resolve()
    until = time.time() + 60 * at_most
    day = Day(outdir, until, again=True)
    known = items(outdir, times, seed, minutes, until)
    wanted = tuple(name.strip() for name in chosen.split(','))
    if not (found := [name for name in known if name.startswith(wanted)]):
        raise click.UsageError(f'--items {chosen} names none of {", ".join(known)}')
    runs.make_files(outdir)
    for name in found:
        day.run(f'{name} times={times} seed={seed}', 0, known[name])
    click.echo('\n'.join(table(day.file)))
    sys.exit(1 if any(row[_SAID:].split()[0] in ('BROKEN', 'error') for row in table(day.file)) else 0)


if __name__ == '__main__':
    main()
