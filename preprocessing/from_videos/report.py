"""report.html: one self-contained page about a run of `from-videos`, made from its work folder at any time.

Counts and reasons of each stage, pictures of clips with landmarks and pose axes, histograms, what was left
out and why, where clips are from. Pictures are samples, so that the page of a thousand clips stays small. The
same work folder gives the same bytes.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dnnlib.util import atomic_write
from preprocessing.from_videos.report_facts import STAGES, Clip, Facts, collect
from preprocessing.from_videos.report_images import (
    data_uri,
    histogram,
    rejection_picture,
    round_limits,
    sheet,
)
from preprocessing.from_videos.stages import count_reasons
from preprocessing.from_videos.work_folder import WorkFolder

T = TypeVar('T')


_SHEETS, _SHEET_FRAMES, _TILE = 100, 6, 168  # clips that are shown, frames of each, pixels of a frame
_THUMBNAILS, _THUMBNAIL = 120, 330  # things left out that are shown, pixels of their width
_LISTED = 1000  # rows of a table
_REASONS = 8  # kinds of reasons per stage

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 24px auto; max-width: 1080px;
padding: 0 16px }
h1 { font-size: 24px; margin-bottom: 4px } h2 { font-size: 18px; margin-top: 36px }
p.note { color: #666; margin: 4px 0 12px }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 4px 12px 4px 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #e4e4e4 } td.number { text-align: right }
.scroll { overflow: auto; max-height: 480px; border: 1px solid #e4e4e4; padding: 0 8px }
.charts { display: flex; flex-wrap: wrap; gap: 16px }
figure { margin: 0 0 14px } figure img { display: block; max-width: 100% }
figcaption { color: #555; font-size: 12px; overflow-wrap: anywhere }
.gone { display: flex; flex-wrap: wrap; gap: 16px } .gone figure { width: 330px; margin: 0 }
.x { color: #eb3c32 } .y { color: #1e9e48 } .z { color: #3a6ee8 } .bad { color: #c62828 }
"""


def write_report(workdir: str | Path, options: Mapping[str, Any]) -> Path:
    """Makes report.html in the work folder.

    Args:
        workdir: the work folder; stages that have not run are shown as such.
        options: what the run was told, shown as it is.

    Returns:
        path of the page.

    Raises:
        UserError: if the page cannot be written or a result cannot be read.
    """
    work = WorkFolder(workdir)
    page = make_page(work, options)
    path = work.root / 'report.html'
    with atomic_write(path, 'w') as file:
        file.write(page)
    return path


def make_page(work: WorkFolder, options: Mapping[str, Any]) -> str:
    """Returns the page as text."""
    facts = collect(work)
    title = f'Data set {facts.pack["dest"]}' if facts.pack else 'Data set from videos'
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{esc(title)}</title>',
        f'<style>{_STYLE}</style></head><body>',
        f'<h1>{esc(title)}</h1>',
        _summary(facts),
        '<h2>Stages</h2>',
        _stages(facts),
        '<h2>Measured</h2>',
        _charts(facts),
        '<h2>Clips</h2>',
        _sheets(work, facts),
        '<h2>Left out</h2>',
        _left_out(work, facts),
        '<h2>Where the clips are from</h2>',
        _provenance(facts),
        '<h2>Options</h2>',
        _table(['option', 'value'], [[esc(k), esc(v)] for k, v in sorted(options.items())]),
        '</body></html>\n',
    ]
    return '\n'.join(parts)


def esc(value: Any) -> str:
    """Makes text safe for a page, also inside attributes."""
    return html.escape(str(value))


def sample(items: Sequence[T], most: int) -> list[T]:
    """Takes at most `most` items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _summary(facts: Facts) -> str:
    if not facts.pack:
        return '<p class="note">No data set has been written yet; this is how far the run came.</p>'
    pack, problems = facts.pack, facts.pack.get('problems', {})
    people = len({clip.identity for clip in facts.clips.values() if clip.packed})
    text = (
        f'{len(pack["clips"])} clips of {people} people, {pack["frames"]} frames of {pack["resolution"]} '
        f'pixels ({pack["format"]}), from {len(facts.videos)} videos. SHA-256 {pack["sha256"]}.'
    )
    lines = [f'<p class="note">{esc(text)}</p>']
    if problems:
        rows = [[esc(folder), esc('; '.join(what))] for folder, what in sorted(problems.items())[:_LISTED]]
        lines.append(f'<p class="bad">The check found problems in {len(problems)} clips.</p>')
        lines.append(_table(['clip', 'problem'], rows))
    else:
        lines.append('<p class="note">The check found no problem.</p>')
    return '\n'.join(lines)


def _stages(facts: Facts) -> str:
    rows = []
    for stage in STAGES:
        gone = [rejection for rejection in facts.rejections if rejection.stage == stage]
        kinds = count_reasons(r.reason for r in gone)
        lines = [f'{count} &times; {esc(reason)}' for reason, count in kinds[:_REASONS]]
        lines += [f'{len(kinds) - _REASONS} more kinds of reasons'] if len(kinds) > _REASONS else []
        rows.append([stage, *map(esc, facts.passed[stage]), str(len(gone)), '<br>'.join(lines)])
    return _table(['stage', 'in', 'out', 'left out', 'why'], rows)


def _charts(facts: Facts) -> str:
    kept = [clip for clip in facts.kept() if len(clip.angles_deg)]
    turns = np.concatenate([np.zeros((0, 3)), *(clip.angles_deg for clip in kept)])
    alike = np.concatenate([np.zeros(0), *(clip.similarity for clip in facts.clips.values())])
    limit = max(30.0, np.abs(turns).max(initial=0))
    wide = round_limits(np.array([limit, -limit]), (-30, 30))
    names = ('Yaw of frames', 'Pitch of frames', 'Roll of frames')
    charts = [histogram(turns[:, k], name, '°', wide) for k, name in enumerate(names)]
    mark = None if np.isnan(facts.threshold) else facts.threshold
    low = min(0.0, alike.min(initial=0.0))
    charts.append(histogram(alike, 'Similarity of all examined frames', '', (low, 1.0), mark))
    for values, name, least in (
        ([clip.upscale for clip in facts.kept()], 'Upscale factor of clips', (0, 2)),
        ([clip.frames for clip in facts.kept()], 'Frames of clips', (0, 100)),
        ([clip.residual for clip in kept], 'Camera residual, pixels at 512', (0, 5)),
    ):
        array = np.array(values, np.float64)
        charts.append(histogram(array, name, '', round_limits(array, least)))
    note = (
        'Of the clips that were kept; similarity is of all. Positive yaw: the face looks to the left of the '
        'picture; positive pitch: the camera stands above; positive roll: the head leans left. The red '
        'line is the threshold of the stage verify. Upscale factor: aligned pixels per pixel of the source; '
        'above 1 the picture is blurred.'
    )
    return f'<p class="note">{note}</p><div class="charts">{"".join(charts)}</div>'


def _sheets(work: WorkFolder, facts: Facts) -> str:
    kept = facts.kept()
    shown = sample(kept, _SHEETS)
    note = (
        f'{len(shown)} of {len(kept)} clips; time runs to the right. White: landmarks. Axes of the head: '
        '<span class="x">x to its left</span>, <span class="y">y up</span>, '
        '<span class="z">z out of the face</span>.'
    )
    figures = [f'<p class="note">{note}</p>']
    for clip in shown:
        frames = sample(range(clip.frames), _SHEET_FRAMES)
        picture = data_uri(sheet(work, clip.name, frames, _TILE))
        alt = f'frames {", ".join(map(str, frames))} of {clip.name}'
        caption = f'<figcaption>{esc(_caption(clip, facts))}</figcaption>'
        figures.append(f'<figure><img src="{picture}" alt="{esc(alt)}">{caption}</figure>')
    return '\n'.join(figures)


def _caption(clip: Clip, facts: Facts) -> str:
    parts = [clip.name + (f' (clip {clip.packed})' if clip.packed else '')]
    parts.append(f'{clip.frames} frames from {clip.first / clip.fps:.2f} s')
    if clip.identity >= 0:
        speaker = facts.speakers.get(str(clip.identity))
        parts.append(f'identity {clip.identity}' + (f' (speaker {speaker})' if speaker else ''))
    parts.append(f'upscale {clip.upscale:.2f}')
    if len(clip.angles_deg):
        low, high = clip.angles_deg.min(axis=0), clip.angles_deg.max(axis=0)
        spans = [f'{n} {a:.0f}° to {b:.0f}°' for n, a, b in zip(('yaw', 'pitch'), low, high, strict=False)]
        parts += [*spans, f'residual {clip.residual:.1f}']
    if len(clip.similarity):
        parts.append(f'similarity at least {clip.similarity.min():.2f}')
    if clip.noisy:
        parts.append(f'noisy frames {", ".join(map(str, clip.noisy))}')
    return '; '.join(parts)


def _left_out(work: WorkFolder, facts: Facts) -> str:
    if not facts.rejections:
        return '<p class="note">Nothing.</p>'
    # a sample from each stage, so that a frequent reason does not hide the others
    by_stage = [[r for r in facts.rejections if r.stage == stage] for stage in STAGES]
    share = max(1, _THUMBNAILS // sum(map(bool, by_stage)))
    shown = [rejection for gone in by_stage for rejection in sample(gone, share)]
    figures = []
    for rejection in shown:
        clip = facts.clips.get(rejection.clip)
        path = str(facts.videos.get(rejection.video, {}).get('path', ''))
        picture = rejection_picture(work, rejection, _telling_frames(clip), path, _THUMBNAIL)
        if picture is None:  # no video, or one that does not decode
            continue
        image = f'<img src="{data_uri(picture)}" alt="{esc(rejection.item)}">'
        text = f'<b>{esc(rejection.item)}</b><br>{rejection.stage}: {esc(rejection.reason)}'
        figures.append(f'<figure>{image}<figcaption>{text}</figcaption></figure>')
    lines = []
    if figures:
        lines = [
            f'<p class="note">{len(figures)} of {len(facts.rejections)} with a picture: of clips the first '
            'and the last frame and, between them, the one least like the others; of videos the first of '
            'the shot.</p>',
            f'<div class="gone">{"".join(figures)}</div>',
        ]
    if len(figures) < len(facts.rejections):
        rows = [[r.stage, esc(r.item), esc(r.reason)] for r in facts.rejections[:_LISTED]]
        lines.append(f'<p class="note">{_of(len(rows), len(facts.rejections))} in words:</p>')
        lines.append(f'<div class="scroll">{_table(["stage", "what", "why"], rows)}</div>')
    return '\n'.join(lines)


def _telling_frames(clip: Clip | None) -> list[int]:
    """Returns the first and the last frame, and between them the one least like the others, if examined."""
    if clip is None:
        return [0]
    worst = clip.examined[int(clip.similarity.argmin())] if len(clip.similarity) else clip.frames // 2
    return [0, worst, clip.frames - 1]


def _provenance(facts: Facts) -> str:
    kept = facts.kept()
    rows = []
    for clip in kept[:_LISTED]:
        video = facts.videos.get(clip.video, {})
        start, end = clip.first / clip.fps, (clip.first + clip.frames) / clip.fps
        name = Path(str(video.get('path', clip.video))).name
        digits, size = str(video.get('sha256', ''))[:12], f'{video.get("width")}x{video.get("height")}'
        person = str(clip.identity) if clip.identity >= 0 else ''
        texts = [clip.packed, clip.name, name, size, digits, f'{start:.2f} to {end:.2f}', person]
        rows.append([esc(text) for text in texts])
    heads = ['clip', 'item', 'file', 'size', 'SHA-256', 'seconds', 'identity']
    note = f'{_of(len(rows), len(kept))} clips; crops and scores are in dataset.json, under "clips".'
    return f'<p class="note">{note}</p><div class="scroll">{_table(heads, rows)}</div>'


def _of(shown: int, there: int) -> str:
    return f'All {there}' if shown == there else f'{shown} of {there}'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; cells are HTML already."""
    head = ''.join(f'<th>{text}</th>' for text in heads)
    body = '\n'.join(f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for row in rows)
    return f'<table><tr>{head}</tr>\n{body}</table>'
