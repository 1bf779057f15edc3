"""report.html: one self-contained page about a run of `from-videos`, made from its work folder at any time.

Counts and reasons of each stage, images of clips with landmarks and pose axes, histograms, what was left out
and why, where clips are from. Images are samples, so that the page of a thousand clips stays small. The same
work folder gives the same bytes. The page is report.html.j2; jinja2 escapes all text in it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dnnlib.util import atomic_write
from preprocessing.from_videos.identities import people
from preprocessing.from_videos.report_facts import Clip, Facts, collect
from preprocessing.from_videos.report_images import (
    data_uri,
    draw_histograms,
    histograms,
    rejection_image,
    sheet,
)
from preprocessing.from_videos.stages import count_reasons
from preprocessing.from_videos.work_folder import WorkFolder

T = TypeVar('T')

_SHEETS, _SHEET_FRAMES, _TILE = 100, 6, 168  # clips that are shown, frames of each, pixels of a frame
_THUMBNAILS, _THUMBNAIL = 120, 330  # things left out that are shown, pixels of their width
_LISTED = 1000  # rows of a table
_REASONS = 8  # kinds of reasons per stage


def write_report(workdir: str | Path, options: Mapping[str, Any], clip_stages: Sequence[str]) -> Path:
    """Makes report.html in the work folder and returns its path; the options are shown as they are.

    Raises:
        UserError: if the page cannot be written or a result cannot be read.
    """
    work = WorkFolder(workdir)
    page = make_page(work, options, clip_stages)
    path = work.root / 'report.html'
    with atomic_write(path, 'w') as file:
        file.write(page)
    return path


def make_page(work: WorkFolder, options: Mapping[str, Any], clip_stages: Sequence[str]) -> str:
    """Returns the page as text."""
    import jinja2

    facts = collect(work, clip_stages)
    pack, kept = facts.pack, facts.kept()
    template = Path(__file__).with_name('report.html.j2').read_text(encoding='utf-8')
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    problems = [[folder, '; '.join(what)] for folder, what in sorted(pack.get('problems', {}).items())]
    stages = [(stage, [r.reason for r in facts.rejections if r.stage == stage]) for stage in facts.passed]
    return page.render(
        title=f'Data set {pack["dest"]}' if pack else 'Data set from videos',
        facts=facts,
        pack=pack,
        people=people(clip.identity for clip in facts.clips.values() if clip.packed),
        problems=problems[:_LISTED],
        stages=[(stage, *facts.passed[stage], len(gone), count_reasons(gone)) for stage, gone in stages],
        most_kinds=_REASONS,
        charts=draw_histograms(histograms(facts)),
        kept=len(kept),
        sheets=[_sheet(work, clip, facts) for clip in sample(kept, _SHEETS)],
        thumbnails=_thumbnails(work, facts),
        rejected=[[r.stage, r.item, r.reason] for r in facts.rejections[:_LISTED]],
        origins=[_origin(clip, facts) for clip in kept[:_LISTED]],
        options=sorted(options.items()),
    )


def sample(items: Sequence[T], most: int) -> list[T]:
    """Takes at most `most` items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _sheet(work: WorkFolder, clip: Clip, facts: Facts) -> tuple[str, str, str]:
    """Returns the image of a clip, its caption, and which frames are shown."""
    frames = sample(range(clip.frames), _SHEET_FRAMES)
    shown = f'frames {", ".join(map(str, frames))} of {clip.name}'
    return data_uri(sheet(work, clip.name, frames, _TILE)), _caption(clip, facts), shown


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


def _thumbnails(work: WorkFolder, facts: Facts) -> list[tuple[str, Any]]:
    """Returns images of what was left out; a sample of each stage, so that no reason hides the others."""
    by_stage = [[r for r in facts.rejections if r.stage == stage] for stage in facts.passed]
    each = max(1, _THUMBNAILS // max(1, sum(map(bool, by_stage))))
    chosen = [rejection for gone in by_stage for rejection in sample(gone, each)]
    images = [(rejection_image(work, rejection, facts, _THUMBNAIL), rejection) for rejection in chosen]
    return [(data_uri(image), rejection) for image, rejection in images if image is not None]


def _origin(clip: Clip, facts: Facts) -> list[str]:
    video = facts.videos[clip.video]
    start, end = clip.first / clip.fps, (clip.first + clip.frames) / clip.fps
    size, identity = f'{video["width"]}x{video["height"]}', clip.identity if clip.identity >= 0 else ''
    file = Path(video['path']).name
    return [
        *(clip.packed, clip.name, file, size),
        *(video['sha256'][:12], f'{start:.2f} to {end:.2f}', identity),
    ]
