"""Everything that only a GPU can tell, in stages that continue where they stopped.

    python -m benchmarks.gpu_day --out gpu --minutes 9 --stage 1

Every item that ends is one line of DIR/results.jsonl, on the disk before the next one begins; errors are
results, too. The same command skips what is done, and what hung or died before. Items that do not fit into
the minutes left are named and left to the next command. Keep DIR and PV3D_CACHE_DIR between commands.
"""

import dataclasses
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import gpu_items, gpu_runs
from dnnlib.util import append_json_line
from torch_utils.misc import prepare_process

_HANG_SEC = 25  # after the time is up a hang is ended
_SHOWN = 300  # characters of a result on the screen
_STAGES = {  # number -> what it measures
    1: gpu_runs.machine_items,
    2: gpu_items.exactness_items,
    3: gpu_items.operator_items,
    4: gpu_items.step_items,
    5: gpu_items.rendering_items,
    6: gpu_runs.training_items,
}


@dataclasses.dataclass
class Day:
    """Items done so far, and the time that is left."""

    out: Path
    end: float  # as of time.time()
    again: bool = False  # also what hung or died before
    failed: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = self.out / 'results.jsonl'
        text = self.file.read_text() if self.file.exists() else ''
        rows = [json.loads(line) for line in text[: text.rfind('\n') + 1].splitlines()]
        self.last = {row['item']: row['state'] for row in rows}  # begun, ok, error or interrupted

    def run(self, name: str, needs_sec: float, function: Callable[[], Any]) -> None:
        """Runs an item unless it is done, hung before or does not fit; an error is a result."""
        state, left = self.last.get(name), self.end - time.time()
        if state == 'ok':
            return
        if (hung := state == 'begun' and not self.again) or left < needs_sec:
            reason = 'it hung or died before' if hung else f'{left:.0f} s left, it needs {needs_sec:.0f}'
            print(f'left   {name}: {reason}', flush=True)
            self.left += 1
            return
        self._write({'item': name, 'state': 'begun'})
        start = time.time()
        try:
            row = {'item': name, 'state': 'ok', 'result': function()}
        except KeyboardInterrupt:
            self._write({'item': name, 'state': 'interrupted'})
            raise
        except Exception as err:  # whatever it is, the next item may still work
            trace = traceback.format_exc()[-3000:]
            row = {'item': name, 'state': 'error', 'result': {'error': repr(err)[:2500], 'trace': trace}}
            self.failed += 1
        row['seconds'] = round(time.time() - start, 2)
        self._write(row)
        shown = json.dumps(row['result'], default=str)[:_SHOWN]
        print(f'{row["state"]:6} {name} {row["seconds"]:.1f} s {shown}', flush=True)

    def _write(self, row: dict[str, Any]) -> None:
        append_json_line(self.file, row)
        with open(self.file, 'rb') as file:
            os.fsync(file.fileno())
        self.last[row['item']] = row['state']


def summary(day: Day) -> str:
    """Returns the last line of the output."""
    done = sum(state == 'ok' for state in day.last.values())
    return f'{done} items done, {day.failed} failed now, {day.left} left'


@click.command(context_settings={'show_default': True})
@click.option('--out', type=click.Path(path_type=Path), required=True, help='folder of all results')
@click.option('--minutes', type=click.FloatRange(min=0.1), default=9.0, help='for this command')
@click.option('--stage', type=click.IntRange(0, len(_STAGES)), default=0, help='0 = all')
@click.option('--again', is_flag=True, help='also what hung or died before')
@click.option('--smoke', is_flag=True, help='the smallest sizes, on a CPU')
def main(out: Path, minutes: float, stage: int, again: bool, smoke: bool) -> None:
    """Measures this project on a GPU; stages are described in docs/performance.md."""
    faulthandler.dump_traceback_later(60 * minutes + _HANG_SEC, exit=True)  # a hang must not cost the call
    if not smoke and not torch.cuda.is_available():
        raise click.ClickException('there is no GPU here; use --smoke to try everything on a CPU')
    prepare_process()
    day = Day(out, time.time() + 60 * minutes, again)
    plan = gpu_items.Plan('cpu' if smoke else 'cuda', out, day.end)
    for number, items in _STAGES.items():
        if stage in (0, number):
            for item in items(plan):
                day.run(item.name, item.needs_sec, item.run)
                plan.clear()
    print(summary(day))
    faulthandler.cancel_dump_traceback_later()
    sys.exit(1 if day.failed else 0)


if __name__ == '__main__':
    main()
