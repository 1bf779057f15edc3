"""Tables of figures, as text and as files."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.util import atomic_write
from studies.measure import Result, Row
from studies.sheet import heads, motion_maps, sheet
from viz.images import save_png

TABLE = 'table.json'


def write_result(folder: Path, result: Result, facts: Mapping[str, Any]) -> None:
    """Writes table.json with these facts, table-sheet.png, table-motion.png and table-worst.png."""
    folder.mkdir(parents=True, exist_ok=True)
    save_png(folder / 'table-sheet.png', sheet(result))
    save_png(folder / 'table-motion.png', motion_maps(result))
    save_png(folder / 'table-worst.png', heads(result.worst))
    with atomic_write(folder / TABLE, 'w') as file:
        json.dump({**facts, 'rows': as_json(result.rows)}, file, indent=1)


def format_rows(rows: Sequence[Row]) -> str:
    """Returns a markdown table."""
    cells = [('figure', 'goal', 'network', 'se', 'data', 'of')]
    for row in rows:
        network, error = (format_value(x, row.percent) for x in row.network)
        data = '-' if row.data is None else format_value(row.data.value, row.percent)
        cells.append((row.name, row.goal or '-', network, error, data, row.sample))
    return format_cells(cells)


def format_cells(cells: Sequence[Sequence[str]]) -> str:
    """Returns a markdown table whose first row is its head, with columns in line."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, ' | '.join('-' * w for w in widths))
    return '\n'.join(f'| {line} |' for line in lines)


def format_value(value: float, percent: bool) -> str:
    """Returns three digits, or percent."""
    if math.isnan(value):
        return '-'
    return f'{100 * value:.1f} %' if percent else f'{value:.3g}'


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Returns the rows as plain data; what is unknown is null."""
    return [
        {'name': r.name, 'goal': r.goal, 'percent': r.percent, 'of': r.sample}
        | {'value': known(r.network.value), 'error': known(r.network.error)}
        | {'data': known(r.data and r.data.value), 'data_error': known(r.data and r.data.error)}
        for r in rows
    ]


def known(value: float | None) -> float | None:
    """Returns a number, or None for what is unknown."""
    return None if value is None or math.isnan(value) else float(value)
