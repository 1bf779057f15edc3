"""What the names of metrics ask for: `fvd2048_16f_lite0`, `id`, `we64`.

Adding a metric = one function decorated with base.Metric in a module of metrics/measures.
"""

import difflib
import re

from dnnlib.util import UserError
from metrics.base import METRICS, Request, Settings
from metrics.measures import (  # noqa: F401 - they fill METRICS
    consistency,
    coverage,
    differences,
    frechet,
    geometry,
    lasting,
    motion,
    pose,
)

FRAMES = 16  # of a video, unless the name says otherwise [PV3D A.4]
VIDEOS = 1000  # measured by metrics without a comparison, at most, unless the name says [PV3D A.4]
_NAME = re.compile(r'([a-z]+)(\d+)?(?:_(\d+)f)?(?:_([a-z]\w*))?')


def parse_metrics(text: str) -> list[Request]:
    """Parses a comma-separated list of names such as `fvd2048_16f_lite0`, `id`, `we64`.

    Raises:
        UserError: for an invalid name; says what names look like.
    """
    names = dict.fromkeys(part.strip() for part in text.split(',') if part.strip())
    if not names:
        raise UserError(f'no metric is named; choose from {example_names()}')
    return [_parse(name) for name in names]


def example_names() -> str:
    """Returns one name of each metric."""
    return ', '.join(metric.example or name for name, metric in METRICS.items())


def _parse(name: str) -> Request:
    match = _NAME.fullmatch(name)
    kind, count, frames, detector = match.groups() if match else (None,) * 4
    if kind not in METRICS:
        near = _nearest(name)
        advice = f'did you mean {near}?' if near else f'choose from {example_names()}'
        raise UserError(f'{name!r} is not a metric; {advice}')
    metric, problem = METRICS[kind], ''
    if metric.compares and not count:
        problem = f'give the number of videos, for example {metric.example}'
    elif metric.names_frames and not frames:
        problem = f'give the number of frames of a video, for example {kind}{count}_{FRAMES}f'
    elif detector and metric.detector is None:
        problem = f'{kind} needs no feature network; leave _{detector} out'
    elif frames and metric.stage == 'views':
        problem = f'{kind} looks at two times of a video; leave _{frames}f out'
    elif int(count or VIDEOS) < metric.least_videos or int(frames or FRAMES) < metric.least_frames:
        problem = f'at least {metric.least_videos} videos of {metric.least_frames} frames are needed'
    if problem:
        raise UserError(f'{name}: {problem}')
    return Request(
        name=name,
        metric=kind,
        count=int(count) if count else None,
        frames=int(frames or FRAMES),
        detector=detector or (metric.detector[1] if metric.detector else None),
    )


def _nearest(name: str) -> str | None:
    """Returns what a misspelt name may have meant."""
    kind = re.match('[A-Za-z]*', name)[0]
    for near in difflib.get_close_matches(kind.lower(), METRICS, 1):
        meant = near + name[len(kind) :].lower()
        try:
            return _parse(meant).name if meant != name else METRICS[near].example or near
        except UserError:
            return METRICS[near].example or near
    return None


def reported_name(request: Request, settings: Settings, encodes: bool = True) -> str:
    """Returns the name of a value in files and plots: the requested one, and what is unusual.

    Args:
        request: the metric.
        settings: it is computed with.
        encodes: whether the codec of the settings makes a difference; it does not to videos that are files.
    """
    metric, parts = METRICS[request.metric], [request.name]
    encoded = metric.stage == 'clips' and encodes
    if encoded and settings.codec == 'none':
        parts.append('nocodec')
    elif encoded and settings.crf != Settings.crf:
        parts.append(f'crf{settings.crf}')
    if settings.clip_camera == 'held' and metric.stage == 'clips' and metric.films == 'fakes':
        parts.append('held')
    if settings.mapping_camera == 'own':
        parts.append('own')
    if metric.stage == 'clips' and settings.resolution is not None:
        parts.append(f'{settings.resolution}px')
    if settings.protocol != 'paper':
        parts.append(settings.protocol)
    elif 'landmarks' in metric.depends_on and settings.landmarks != 'detected':
        parts.append(settings.landmarks)
    return '_'.join(parts)
