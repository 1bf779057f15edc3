"""The table of metrics, and what their names ask for: `fvd2048_16f_lite0`, `id`, `we64`.

Adding a metric = a row in VIDEO_METRICS or VIEW_METRICS.
"""

import difflib
import re
from collections.abc import Mapping

from dnnlib.util import UserError
from metrics.base import Metric, Request, Settings
from metrics.video_metrics import VIDEO_METRICS
from metrics.view_metrics import VIEW_METRICS

METRICS: Mapping[str, Metric] = {**VIDEO_METRICS, **VIEW_METRICS}
FRAMES = 16  # of a video, unless the name says otherwise [PV3D A.4]
VIDEOS = 1000  # judged by metrics that compare with nothing, at most, unless the name says [PV3D A.4]
_EXAMPLES = {'fvd': f'fvd2048_{FRAMES}f', 'fid': 'fid2048', 'kid': 'kid2048'}
_NAME = re.compile(r'([a-z]+)(\d+)?(?:_(\d+)f)?(?:_([a-z]\w*))?')


def parse_metrics(text: str) -> list[Request]:
    """Parses a comma-separated list of names such as `fvd2048_16f_lite0`, `id`, `we64`.

    Raises:
        UserError: for a name that is no metric; says what names look like.
    """
    names = dict.fromkeys(part.strip() for part in text.split(',') if part.strip())
    if not names:
        raise UserError(f'no metric is named; choose from {example_names()}')
    return [_parse(name) for name in names]


def example_names() -> str:
    """Returns one name of each metric."""
    return ', '.join(_EXAMPLES.get(name, name) for name in METRICS)


def _parse(name: str) -> Request:
    match = _NAME.fullmatch(name)
    kind, count, frames, detector = match.groups() if match else (None,) * 4
    metric = METRICS.get(kind or '')
    if metric is None:
        near = _nearest(name)
        advice = f'did you mean {near}?' if near else f'choose from {example_names()}'
        raise UserError(f'{name!r} is no metric; {advice}')
    if metric.comparing and not count:
        raise UserError(f'{name}: say how many videos are compared, for example {_EXAMPLES[kind]}')
    if kind == 'fvd' and not frames:
        raise UserError(f'{name}: say how many frames a video has, for example {kind}{count}_{FRAMES}f')
    if detector and metric.detector is None:
        raise UserError(f'{name}: {kind} needs no feature network; leave _{detector} out')
    if frames and metric.stage == 'views':
        raise UserError(f'{name}: {kind} looks at two times of a video; leave _{frames}f out')
    if int(count or VIDEOS) < metric.least_videos or int(frames or FRAMES) < metric.least_frames:
        raise UserError(
            f'{name}: at least {metric.least_videos} videos of {metric.least_frames} frames are needed'
        )
    standard = metric.detector[1] if metric.detector else None
    return Request(
        name=name,
        metric=kind,
        count=int(count) if count else None,
        frames=int(frames or FRAMES),
        detector=detector or standard,
    )


def _nearest(name: str) -> str | None:
    """Returns what a misspelt name may have meant."""
    kind = re.match('[A-Za-z]*', name)[0]
    for near in difflib.get_close_matches(kind.lower(), METRICS, 1):
        meant = near + name[len(kind) :].lower()
        try:
            return _parse(meant).name if meant != name else _EXAMPLES.get(near, near)
        except UserError:
            return _EXAMPLES.get(near, near)
    return None


def reported_name(request: Request, settings: Settings, encodes: bool = True) -> str:
    """Returns the name of a value in files and plots: the asked one, and what is not as usual.

    Args:
        request: the metric.
        settings: it is computed with.
        encodes: whether the codec of the settings makes a difference; none to videos that are files.
    """
    parts = [request.name]
    clips = METRICS[request.metric].stage == 'clips' and encodes
    if clips and settings.codec == 'none':
        parts.append('nocodec')
    elif clips and settings.crf != Settings.crf:
        parts.append(f'crf{settings.crf}')
    if settings.protocol != 'paper':
        parts.append(settings.protocol)
    elif request.metric == 'id' and settings.landmarks != 'detected':
        parts.append(settings.landmarks)
    return '_'.join(parts)
