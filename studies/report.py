"""Writes the paper's tables as they came out here; `python -m studies.report --help` explains."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from dnnlib.cli import command

import click

from dnnlib.util import UserError, atomic_write

_HEAD = """# The paper's tables, trained again

Written by `python -m studies.report` from the results in `{results}`. Every run was made by
`python -m studies.run`, whose rows are `studies/paper.py`. Figures are means over seeds ± standard
error, with the paper's (VoxCeleb at 512x512, which other data and sizes need not reach) in brackets.
Minutes are what training has cost, of a core, or of the clock on a GPU, with that of the row whose
networks a row starts from. A claimed ordering holds, or does not, when its probability is above 95 %, or
below 5 %, by Student's t of the difference over its standard error: of the differences seed by seed, since
runs of one seed see the same data in the same order. Of one seed the error is only that of the metric.
"""
_IMAGES = (
    'The first metric against clips seen, a line for each seed',
    'Four heads of each row over time, of its first seed',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Collects what `python -m studies.run` has measured and writes tables with a verdict for every claim.

    Beside the collected results it draws learning curves, and heads of every row. Without --runs the page is
    made of what was collected before.

    Example:
      python -m studies.report --runs tables
    """

    # folders of studies.run, whose results replace those collected before; may be given several times
    runs: Annotated[tuple[Path, ...], 'DIR'] = ()
    results: Annotated[Path, 'FILE'] = Path('docs/studies-tables.json')  # collected results
    dest: Annotated[Path, 'FILE'] = Path('docs/studies-tables.md')  # the page


def run(options: Options) -> None:
    """Collects, then draws and writes."""
    records = json.loads(options.results.read_bytes()) if options.results.exists() else []
    for folder in options.runs:
        found = collected(folder)
        if not found:
            raise UserError(f'--runs {folder} holds no results; give the --outdir of studies.run')
        records = merged(records, found.values())
    if options.runs:
        with atomic_write(options.results, 'w') as file:
            file.write(json.dumps(records, indent=1) + '\n')
        draw(options, records)
    with atomic_write(options.dest, 'w') as file:
        file.write(page(records, options.results))
    click.echo(f'{options.dest}: {len(records)} runs')


def collected(folder: Path) -> dict[Path, dict[str, Any]]:
    """Reads the results of all runs in a folder, by their own folders."""
    return {path.parent: json.loads(path.read_bytes()) for path in sorted(folder.glob('*/metrics.json'))}


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns results of which the later one of each setting, row and seed is kept, in order."""
    kept = {(r['setting'], r['row'], r['seed']): r for r in [*old, *new]}
    return [kept[key] for key in sorted(kept)]


def draw(options: Options, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws courses and heads of each setting that --runs have results of, beside the results."""
    from studies.gallery import draw_courses, draw_heads, image_names, strips_of
    from viz.images import save_png

    found = {path: record for folder in options.runs for path, record in collected(folder).items()}
    for setting in sorted({r['setting'] for r in found.values()}):
        course, heads = (options.results.with_name(n) for n in image_names(options.results.stem, setting))
        curves = draw_courses([r for r in records if r['setting'] == setting])
        if curves is not None:
            save_png(course, curves)
        if strips := strips_of({path: r for path, r in found.items() if r['setting'] == setting}):
            save_png(heads, draw_heads(strips))


def page(records: Sequence[Mapping[str, Any]], results: Path) -> str:
    """Returns the page, a section for each setting, with the images that lie beside the results."""
    from studies.gallery import image_names
    from studies.paper import TABLES
    from studies.verdicts import table_text

    sections = [_HEAD.format(results=results.name)]
    for setting in sorted({r['setting'] for r in records}):
        own = [r for r in records if r['setting'] == setting]
        hours, frames = sum(r['seconds'] for r in own) / 3600, sum(r['frames'] for r in own) / 1e6
        cost = f'{len(own)} runs, {hours:.1f} hours of training, {frames:.2f} million frames seen.'
        sections.append(f'## `{setting}`\n\n{cost}\n')
        rows = {r['row'] for r in own}
        tables = {n: t for n, t in TABLES.items() if len(rows & {row.name for row in t.rows}) > 1}
        sections += [table_text(name, table, own) + '\n' for name, table in tables.items()]
        shown = zip(image_names(results.stem, setting), _IMAGES, strict=True)
        sections += [f'![{text}]({name})\n' for name, text in shown if results.with_name(name).exists()]
    return '\n'.join(sections)


main = command(Options, run, 'give fewer --runs')

if __name__ == '__main__':
    main()
