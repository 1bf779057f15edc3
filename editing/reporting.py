"""What is written about a portrait: report.json for programs, report.html for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.util import atomic_write
from editing.render import PANELS
from preprocessing.from_videos.report_images import data_uri

NOTICE = (
    'Synthetic images of a person. Do not use them to deceive or harm, nor of anybody without consent; say '
    'what they are where you show them.'
)


def write_report(
    folder: Path,
    name: str,
    facts: Mapping[str, Mapping[str, Any]],
    warnings: Sequence[str],
    sheet: np.ndarray,
    videos: Sequence[str],
) -> list[Path]:
    """Writes NAME-report.json and NAME-report.html; returns their paths.

    Args:
        folder: that exists.
        name: of the portrait.
        facts: heading -> name -> plain value.
        warnings: sentences.
        sheet: image of the comparison.
        videos: names of files in the folder that the page shows.
    """
    import jinja2

    paths = [folder / f'{name}-report.{kind}' for kind in ('json', 'html')]
    with atomic_write(paths[0], 'w') as file:
        json.dump({**facts, 'warnings': list(warnings), 'notice': NOTICE}, file, indent=2)
    template = Path(__file__).with_name('report.html.j2').read_text(encoding='utf-8')
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    tables = [(heading, [(key, _shown(v)) for key, v in rows.items()]) for heading, rows in facts.items()]
    with atomic_write(paths[1], 'w') as file:
        text = page.render(
            title=f'Portrait {name}',
            notice=NOTICE,
            warnings=warnings,
            sheet=data_uri(Image.fromarray(sheet)),
            panels=PANELS,
            videos=videos,
            tables=tables,
        )
        file.write(text)
    return paths


def _shown(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
