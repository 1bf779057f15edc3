"""What a report shows beside its figures: courses of training, and heads of every row."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metrics.plotting import draw_panels
from studies.paper import TABLES
from viz.sheets import contact_sheet

Record = Mapping[str, Any]  # what studies/judges.py:MetricsJudge writes


def image_names(stem: str, setting: str) -> tuple[str, str]:
    """Returns the names of the files of a setting: courses of training, and heads."""
    slug = re.sub(r'[^\w.=+-]+', '_', setting)[:80]
    return f'{stem}-{slug}-course.png', f'{stem}-{slug}-heads.png'


def draw_courses(records: Sequence[Record]) -> np.ndarray | None:
    """Draws the first metric of all rows against clips seen, a panel for each table, a line for each seed.

    Returns:
        uint8 [H, W, 3]; None if nothing was measured on the way.
    """
    panels = []
    for name, table in TABLES.items():
        order = [row.name for row in table.rows]
        own = [r for r in records if r['row'] in order and len(r['course']['points']) > 1]
        if len({r['row'] for r in own}) > 1:
            panels.append(_panel(f'table {name}: {own[0]["course"]["metric"]}', order, own))
    return draw_panels(panels) if panels else None


def _panel(title: str, order: Sequence[str], records: Sequence[Record]) -> Callable[..., None]:
    def fill(axes: Any) -> None:
        labelled = set()
        for record in records:
            row = record['row']
            clips, values = zip(*((c / 1000, v) for c, v, _ in record['course']['points']), strict=True)
            label = None if row in labelled else row
            labelled.add(row)
            axes.plot(
                clips, [np.nan if v is None else v for v in values], f'C{order.index(row)}.-', label=label
            )
        axes.set_title(title)
        axes.set_xlabel('thousand clips')
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)

    return fill


def draw_heads(strips: Mapping[str, Path]) -> np.ndarray:
    """Puts the strips of rows, by their names, under each other: four heads over time each."""
    images = [np.asarray(Image.open(path).convert('RGB'))[None] for path in strips.values()]
    return contact_sheet(images, row_labels=list(strips))


def strips_of(records: Mapping[Path, Record]) -> dict[str, Path]:
    """Returns the newest strip of heads of each row, that of its first seed, in the order of the tables.

    records: by the folders of their runs.
    """
    found: dict[str, Path] = {}
    for folder, record in sorted(records.items(), key=lambda item: item[1]['seed']):
        path = folder / f'strip{record["clips"]:09d}.png'
        if path.exists():
            found.setdefault(record['row'], path)
    order = dict.fromkeys(row.name for table in TABLES.values() for row in table.rows)
    return {row: found[row] for row in order if row in found}
