"""Computes metrics: the table of them, their names, and the way from a subject to results.

`Metrics.measure` is what the command line, the training loop and the tests all call, so that they give equal
values. Adding a metric = a row in VIDEO_METRICS or VIEW_METRICS.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from dnnlib.util import UserError
from metrics.base import Context, Feature, Metric, Outcome, Request, Settings
from metrics.clip_source import ClipError, ClipSource
from metrics.clips import Shuffled, Static
from metrics.detectors.face_alignment import find_faces
from metrics.detectors.registry import Detector, load_detector
from metrics.digests import json_digest
from metrics.feature_store import Record, Task, collect
from metrics.geometry import DEFAULT_TRAINING, Estimator, load_or_train_estimator
from metrics.subjects import Subject
from metrics.video_metrics import VIDEO_METRICS
from metrics.view_metrics import VIEW_METRICS
from metrics.views import FlatPlane, ViewSource
from torch_utils import distributed as dist

METRICS: Mapping[str, Metric] = {**VIDEO_METRICS, **VIEW_METRICS}
FRAMES = 16  # of a video, unless the name says otherwise [PV3D A.4]
VIDEOS = 1000  # judged by metrics that compare with nothing, at most, unless the name says [PV3D A.4]
_NAME = re.compile(r'([a-z]+)(\d+)?(?:_(\d+)f)?(?:_([a-z]\w*))?')


class Control(NamedTuple):
    """Spoils the generated items, to see whether a metric notices."""

    stage: str
    title: str
    apply: Callable[[Any, int], Any]  # (source, seed) -> source


CONTROLS: Mapping[str, Control] = {
    'static': Control('clips', 'the first frame all the time', lambda source, _: Static(source)),
    'shuffled': Control('clips', 'frames in another order', Shuffled),
    'flat': Control('views', 'the front picture on a plane', lambda source, _: FlatPlane(source)),
}


class DetectorFile(NamedTuple):
    """Which feature network it was."""

    name: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A metric's value, and how it came about."""

    name: str  # only values of one name may be compared
    request: Request
    outcome: Outcome
    count: int  # videos that the value comes from
    failures: Mapping[str, list[str]]  # reason -> videos that gave nothing
    real_count: int
    real_failures: Mapping[str, list[str]]
    controls: Mapping[str, float]  # the same metric of spoilt videos
    detector: DetectorFile | None


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
    shown = {'fvd': 'fvd2048_16f', 'fid': 'fid2048', 'kid': 'kid2048'}
    return ', '.join(shown.get(name, name) for name in METRICS)


def _parse(name: str) -> Request:
    match = _NAME.fullmatch(name)
    kind, count, frames, detector = match.groups() if match else (None,) * 4
    metric = METRICS.get(kind or '')
    if metric is None:
        raise UserError(f'{name!r} is no metric; choose from {example_names()}')
    if metric.comparing and not count:
        raise UserError(f'{name}: say how many videos are compared, for example {kind}2048')
    if kind == 'fvd' and not frames:
        raise UserError(f'{name}: say how many frames a video has, for example {kind}{count}_{FRAMES}f')
    if detector and metric.detector is None:
        raise UserError(f'{name}: {kind} needs no feature network; leave _{detector} out')
    if frames and metric.stage == 'views':
        raise UserError(f'{name}: {kind} looks at two times of a video; leave _{frames}f out')
    if int(count or 2) < 2 or int(frames or FRAMES) < metric.least_frames:
        raise UserError(f'{name}: at least 2 videos of at least {metric.least_frames} frames are needed')
    standard = metric.detector[1] if metric.detector else None
    return Request(
        name=name,
        metric=kind,
        count=int(count) if count else None,
        frames=int(frames or FRAMES),
        detector=detector or standard,
    )


def reported_name(request: Request, settings: Settings) -> str:
    """Returns the name of a value in files and plots: the asked one, and what is not as usual."""
    parts = [request.name]
    if METRICS[request.metric].stage == 'clips' and settings.codec == 'none':
        parts.append('nocodec')
    elif METRICS[request.metric].stage == 'clips' and settings.crf != Settings.crf:
        parts.append(f'crf{settings.crf}')
    if settings.protocol != 'paper':
        parts.append(settings.protocol)
    elif request.metric == 'id' and settings.landmarks != 'detected':
        parts.append(settings.landmarks)
    return '_'.join(parts)


class _Job(NamedTuple):
    context: Context
    feature: Feature


class Metrics:
    """Some metrics with all that they are computed with; networks stay loaded from one use to the next.

    Args:
        requests: what to compute.
        settings: how.

    Raises:
        UserError: when a feature network is missing, before anything is computed.
    """

    def __init__(self, requests: Sequence[Request], settings: Settings) -> None:
        self.requests, self.settings = requests, settings
        load = functools.cache(self._load)
        kinds = {r.name: METRICS[r.metric].detector for r in requests}
        self._detectors = {r.name: load(r.detector, kinds[r.name][0]) for r in requests if kinds[r.name]}
        aligns = any(r.metric == 'id' for r in requests) and settings.protocol == 'paper'
        self._faces = load('yunet', 'faces') if aligns and settings.landmarks == 'detected' else None

    def measure(self, subject: Subject) -> list[Result]:
        """Computes all metrics of a subject; every process must call it and gets the results.

        Raises:
            UserError: when the subject lacks what a metric needs.
        """
        contexts = [self._context(request, subject) for request in self.requests]
        for request in self.requests:
            _check_sources(request, subject)
        jobs = [_Job(c, METRICS[c.request.metric].feature(c)) for c in contexts]
        fakes = self._records(jobs, 'generated', functools.partial(_fake_source, subject))
        with_real = [job for job in jobs if job.context.stage == 'clips' and subject.reals]
        reals = self._records(with_real, 'real', lambda _, frames, count: subject.reals(frames, count))
        controls = {name: self._control(name, jobs, subject) for name in self.settings.controls}
        results = None
        if dist.is_leader():  # the others would do the same
            results = [self._result(context, fakes, reals, controls) for context in contexts]
        return dist.broadcast_object(results)

    def _control(self, name: str, jobs: Sequence[_Job], subject: Subject) -> dict[str, list[Record]]:
        control = CONTROLS[name]
        return self._records(
            [job for job in jobs if job.context.stage == control.stage],
            f'{name} control',
            lambda *args: control.apply(_fake_source(subject, *args), self.settings.seed),
        )

    def _load(self, name: str, kind: str) -> Detector:
        s = self.settings
        return load_detector(name, kind, s.detector_files, s.cache / 'detectors', s.device, s.offline)

    def _context(self, request: Request, subject: Subject) -> Context:
        return Context(
            request=request,
            stage=METRICS[request.metric].stage,
            settings=self.settings,
            detector=self._detectors.get(request.name),
            find_faces=lambda images: find_faces(images, self._faces.network),
            estimator=functools.cache(functools.partial(self._estimator, subject)),
            bin_size=subject.bin_size,
        )

    def _estimator(self, subject: Subject) -> Estimator:
        """Returns the estimator of geometry; the leader trains it where there is none yet."""
        if subject.data is None:
            raise UserError('geometry is measured against synthetic data: give --network and --data')
        folder, seed = self.settings.cache / 'estimators', self.settings.seed
        if dist.is_leader():
            with tqdm(
                total=DEFAULT_TRAINING.steps, desc='learning geometry', unit='step', disable=None
            ) as bar:
                load_or_train_estimator(subject.data, folder, seed, bar.update)
        dist.barrier()
        return load_or_train_estimator(subject.data, folder, seed)

    def _records(
        self,
        jobs: Sequence[_Job],
        label: str,
        make_source: Callable[[str, int, int], ClipSource | ViewSource],
    ) -> dict[str, list[Record]]:
        """Collects the records of all metrics, {name: records}; metrics of equal sources share the videos."""
        groups: dict[tuple[str, int], list[_Job]] = collections.defaultdict(list)
        for job in jobs:
            groups[job.context.stage, job.context.request.frames].append(job)
        found = {}
        for (stage, frames), members in groups.items():
            requests, features = [j.context.request for j in members], [j.feature for j in members]
            source = make_source(stage, frames, max(r.count or VIDEOS for r in requests))
            tasks = [
                Task({'source': source.identity, **feature.key}, _available(request, len(source), label))
                for request, feature in zip(requests, features, strict=True)
            ]
            read = source.clip if stage == 'clips' else source.view
            hidden = None if dist.is_leader() else True
            with tqdm(total=_records(tasks), desc=f'{label} {stage}', unit='record', disable=hidden) as bar:
                compute = functools.partial(_compute, read, features)
                records = collect(self.settings.cache / 'records', tasks, compute, bar.update)
            found |= {request.name: r for request, r in zip(requests, records, strict=True)}
        return found

    def _result(
        self,
        context: Context,
        fakes: Mapping[str, list[Record]],
        reals: Mapping[str, list[Record]],
        controls: Mapping[str, Mapping[str, list[Record]]],
    ) -> Result:
        request = context.request
        reduce, name = METRICS[request.metric].reduce, request.name
        real, detector = reals.get(name, []), context.detector
        spoilt = {c: records[name] for c, records in controls.items() if name in records}
        return Result(
            name=reported_name(request, self.settings),
            request=request,
            outcome=reduce(context, fakes[name], real),
            count=_successes(fakes[name]),
            failures=_failures(fakes[name]),
            real_count=_successes(real),
            real_failures=_failures(real),
            controls={c: reduce(context, records, real).value for c, records in spoilt.items()},
            detector=DetectorFile(detector.info.name, detector.sha256) if detector else None,
        )


def _fake_source(subject: Subject, stage: str, frames: int, count: int) -> ClipSource | ViewSource:
    return subject.fakes(frames, count) if stage == 'clips' else subject.views(count)


def _check_sources(request: Request, subject: Subject) -> None:
    metric = METRICS[request.metric]
    if metric.stage == 'views' and subject.views is None:
        raise UserError(f'{request.name} needs depth and several views: give --network, or --views DIR')
    if metric.stage == 'clips' and subject.fakes is None:
        raise UserError(f'{request.name} needs videos: give --network, or --fake DIR')
    if metric.comparing and subject.reals is None:
        raise UserError(f'{request.name} compares with real videos: give --data, or --real DIR')
    if metric.comparing and subject.real_clips < request.count:
        dist.print0(
            f'warning: {request.name}: there are only {subject.real_clips} real videos; several pieces of '
            'each are taken, so that the value cannot be compared with one from more videos'
        )


def _available(request: Request, length: int, label: str) -> int:
    """Returns how many items are used; a name that asks for more than there are is refused."""
    if request.count is not None and length < request.count:
        raise UserError(
            f'{request.name}: there are only {length} {label} videos; give more, or ask for at most {length}'
        )
    return min(request.count or VIDEOS, length)


def _compute(
    read: Callable[[int], Any], features: Sequence[Feature], i: int, wanted: Sequence[int]
) -> list[Record]:
    """Makes the wanted records of item i; one that cannot be had gives the reason for all of them."""
    try:
        item = read(i)
    except ClipError as reason:
        return [str(reason)] * len(wanted)
    return [features[k].compute(i, item) for k in wanted]


def _records(tasks: Sequence[Task]) -> int:
    """Returns how many records tasks have together; those of equal keys are the same."""
    totals: dict[str, int] = {}
    for task in tasks:
        key = json_digest(task.key)
        totals[key] = max(task.total, totals.get(key, 0))
    return sum(totals.values())


def _successes(records: Sequence[Record]) -> int:
    return sum(not isinstance(record, str) for record in records)


def _failures(records: Sequence[Record]) -> dict[str, list[str]]:
    """Returns {reason: videos}, out of failures `VIDEO: reason`, or `reason` of the video of that number."""
    found = collections.defaultdict(list)
    for i, record in enumerate(records):
        if isinstance(record, str):
            video, _, reason = record.rpartition(': ')
            found[reason].append(video or f'item {i}')
    return dict(found)
