"""Computes metrics: the way from a subject to results.

`Metrics.measure` is what the command line, the training loop and the tests all call, so that they give equal
values.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnnlib.progress import progress
from dnnlib.util import UserError
from metrics.base import Context, Feature, Metric, Outcome, Request, Sample, Settings
from metrics.detectors.registry import Detector, load_detector
from metrics.measures.geometry import DEFAULT_TRAINING, Estimator, load_or_train_estimator
from metrics.measures.geometry_truth import has_truth
from metrics.metric_names import METRICS, VIDEOS, reported_name
from metrics.records.digests import code_digest, json_digest
from metrics.records.store import Record, Task, collect, open_folder
from metrics.sources.clip_source import ClipError
from metrics.sources.clips import Shuffled, Static
from metrics.sources.subjects import Subject
from metrics.sources.views import FlatPlane, FrozenViews
from torch_utils import distributed as dist
from training.data.dataset import VideoDataset


class Control(NamedTuple):
    """Spoils the generated items, to see whether a metric notices."""

    stage: str
    title: str
    make: Callable[[Subject, int, int, int], Any]  # (subject, frames, count, seed) -> source


CONTROLS: Mapping[str, Control] = {
    'frozen': Control(
        'clips',
        'faces that do not move before a moving camera',
        lambda s, frames, count, _: s.frozen(frames, count),
    ),
    'static': Control(
        'clips', 'the first frame all the time', lambda s, frames, count, _: Static(s.fakes(frames, count))
    ),
    'shuffled': Control(
        'clips',
        'frames in another order',
        lambda s, frames, count, seed: Shuffled(s.fakes(frames, count), seed),
    ),
    'flat': Control(
        'views', 'the front picture on a plane', lambda s, _, count, __: FlatPlane(s.views(count))
    ),
    'still': Control(
        'views', 'both times are the first', lambda s, _, count, __: FrozenViews(s.views(count))
    ),
}


class DetectorFile(NamedTuple):
    """Which feature network it was."""

    name: str
    sha256: str
    registered: bool  # the file is the one that the registry knows


class ControlResult(NamedTuple):
    """A metric of spoilt videos."""

    value: float
    count: int  # videos that it comes from
    failures: int


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
    controls: Mapping[str, ControlResult]  # the same metric of spoilt videos
    detector: DetectorFile | None
    faces: DetectorFile | None


class _Job(NamedTuple):
    """One metric of one kind of videos."""

    side: str  # '' = generated, 'real', or a control
    context: Context
    feature: Feature
    source: Any
    total: int


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
        for name in settings.controls:
            if not any(_applies(name, METRICS[r.metric]) for r in requests):
                raise UserError(
                    f'--control {name} changes nothing that the metrics asked for look at; leave it out'
                )
        load = functools.cache(self._load)
        kinds = {r.name: METRICS[r.metric].detector for r in requests}
        self._detectors = {r.name: load(r.detector, kinds[r.name][0]) for r in requests if kinds[r.name]}
        aligns = any(r.metric == 'id' for r in requests) and settings.protocol == 'paper'
        self._faces = load('yunet', 'faces') if aligns and settings.landmarks == 'detected' else None

    def check(self, data: VideoDataset) -> None:
        """Finds out, before a run begins, what would end it at its first checkpoint.

        Raises:
            UserError: when the data or a network cannot do what a metric needs.
        """
        open_folder(self.settings.cache / 'records', {'check': 'writable'})
        longest = max(data.num_frames(i) for i in range(len(data)))
        for request in self.requests:
            stage, detector = METRICS[request.metric].stage, self._detectors.get(request.name)
            if stage == 'clips' and request.frames > longest:
                raise UserError(f'{request.name}: the longest clip of the data has {longest} frames')
            if request.metric == 'geometry' and not has_truth(data.config.path):
                raise UserError('geometry is measured against the truth in data of `dataset_tool.py synth`')
            if stage == 'clips' and detector is not None and detector.kind == 'video':
                blank = np.zeros((request.frames, 32, 32, 3), np.uint8)
                context = self._context(request, Subject(facts={}))
                METRICS[request.metric].feature(context).compute(0, blank)

    def measure(self, subject: Subject) -> list[Result]:
        """Computes all metrics of a subject; every process must call it and gets the results.

        Raises:
            UserError: when the subject lacks what a metric needs.
        """
        for request in self.requests:
            _check_sources(request, subject)
        contexts = [self._context(request, subject) for request in self.requests]
        features = [METRICS[c.request.metric].feature(c) for c in contexts]
        jobs = self._jobs(subject, contexts, features)
        samples = self._samples(jobs)
        results = None
        if dist.is_leader():  # the others would do the same
            results = [self._result(context, samples, subject.encodes) for context in contexts]
        return dist.broadcast_object(results)

    def _load(self, name: str, kind: str) -> Detector:
        s = self.settings
        if dist.is_leader():  # one of them downloads
            load_detector(name, kind, s.detector_files, s.cache / 'detectors', 'cpu', s.offline)
        dist.barrier()
        return load_detector(name, kind, s.detector_files, s.cache / 'detectors', s.device, s.offline)

    def _context(self, request: Request, subject: Subject) -> Context:
        return Context(
            request=request,
            stage=METRICS[request.metric].stage,
            settings=self.settings,
            detector=self._detectors.get(request.name),
            faces=self._faces if request.metric == 'id' else None,
            estimator=functools.cache(functools.partial(self._estimator, subject)),
            bin_size=subject.bin_size,
        )

    def _estimator(self, subject: Subject) -> Estimator:
        """Returns the estimator of geometry; the leader trains it where there is none yet."""
        if subject.data is None:
            raise UserError('geometry is measured against synthetic data: give --network and --data')
        folder, seed = self.settings.cache / 'estimators', self.settings.seed
        if dist.is_leader():
            steps = DEFAULT_TRAINING.steps
            with progress(steps, 'learning geometry', 'step') as count:
                load_or_train_estimator(subject.data, folder, seed, count)
        dist.barrier()
        return load_or_train_estimator(subject.data, folder, seed)

    def _jobs(self, subject: Subject, contexts: Sequence[Context], features: Sequence[Feature]) -> list[_Job]:
        """Lists what is to be collected; jobs that look at the same items share their source."""
        source = functools.cache(functools.partial(_source, subject, self.settings.seed))
        jobs = []
        for context, feature in zip(contexts, features, strict=True):
            request, metric = context.request, METRICS[context.request.metric]
            sides = ['', *(c for c in self.settings.controls if _applies(c, metric))]
            if metric.stage == 'clips' and subject.reals is not None and not metric.held:
                sides.append('real')
            for side in sides:
                kind = side or ('held' if metric.held else 'fake')
                items = source(kind, metric.stage, request.frames, self._most())
                label = 'real' if side == 'real' else 'generated'
                jobs.append(_Job(side, context, feature, items, _available(request, len(items), label)))
        return jobs

    def _most(self) -> int:
        return max(r.count or VIDEOS for r in self.requests)

    def _samples(self, jobs: Sequence[_Job]) -> dict[tuple[str, str], Sample]:
        """Collects the records of all jobs, {(side, name of the metric): records}."""
        code, samples = code_digest(), {}
        groups: dict[tuple[str, int], list[_Job]] = collections.defaultdict(list)
        for job in jobs:  # real videos apart, and those of other lengths; the rest shares its items
            items = 'videos' if job.context.stage == 'clips' else job.context.stage
            label = f'{"real" if job.side == "real" else "generated"} {items}'
            groups[label, job.context.request.frames].append(job)
        for (label, _), members in groups.items():
            tasks = [
                Task({'source': j.source.identity, 'code': code, **j.feature.key}, j.total) for j in members
            ]
            names = ', '.join(dict.fromkeys(job.context.request.name for job in members))
            with progress(_records(tasks), label, 'record', names, dist.is_leader()) as count:
                compute = functools.partial(_compute, members)
                records = collect(self.settings.cache / 'records', tasks, compute, count)
            for job, found in zip(members, records, strict=True):
                group = (
                    [job.source.group(i) for i in range(len(found))]
                    if job.side == 'real'
                    else range(len(found))
                )
                samples[job.side, job.context.request.name] = Sample(found, group)
        return samples

    def _result(self, context: Context, samples: Mapping[tuple[str, str], Sample], encodes: bool) -> Result:
        request, name = context.request, context.request.name
        fakes, reals = samples['', name], samples.get(('real', name), Sample([], []))
        controls = {c: samples[c, name] for c in self.settings.controls if (c, name) in samples}
        return Result(
            name=reported_name(request, self.settings, encodes),
            request=request,
            outcome=_reduce(context, fakes, reals),
            count=len(fakes.good_groups()),
            failures=fakes.failures(),
            real_count=len(reals.good_groups()),
            real_failures=reals.failures(),
            controls={c: _control_result(context, sample, reals) for c, sample in controls.items()},
            detector=_file_of(context.detector),
            faces=_file_of(context.faces),
        )


def _file_of(detector: Detector | None) -> DetectorFile | None:
    return DetectorFile(detector.info.name, detector.sha256, detector.registered) if detector else None


def _reduce(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    """Computes the value, nan where too few videos are left."""
    metric = METRICS[context.request.metric]
    sides = [fakes, reals] if metric.comparing else [fakes]
    if min(len(side.good_groups()) for side in sides) < metric.least_videos:
        return Outcome(math.nan, math.nan)
    return metric.reduce(context, fakes, reals)


def _control_result(context: Context, sample: Sample, reals: Sample) -> ControlResult:
    good = len(sample.good_groups())
    return ControlResult(_reduce(context, sample, reals).value, good, len(sample.records) - good)


def _source(subject: Subject, seed: int, side: str, stage: str, frames: int, count: int) -> Any:
    """Returns the items of a side: of generated videos, spoilt ones, real ones."""
    if side in CONTROLS:
        return CONTROLS[side].make(subject, frames, count, seed)
    if stage == 'views':
        return subject.views(count)
    return {'fake': subject.fakes, 'held': subject.held, 'real': subject.reals}[side](frames, count)


def _applies(control: str, metric: Metric) -> bool:
    """Tells whether a control says anything of a metric; those of videos move the camera."""
    return CONTROLS[control].stage == metric.stage and not metric.held


def _check_sources(request: Request, subject: Subject) -> None:
    metric = METRICS[request.metric]
    if metric.stage == 'views' and subject.views is None:
        raise UserError(f'{request.name} needs depth and several views: give --network, or --views DIR')
    if metric.stage == 'clips' and subject.fakes is None:
        raise UserError(f'{request.name} needs videos: give --network, or --fake DIR')
    if metric.held and subject.held is None:
        raise UserError(f'{request.name} needs generated videos whose camera stands still: give --network')
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


def _compute(jobs: Sequence[_Job], i: int, wanted: Sequence[int]) -> list[Record]:
    """Makes the wanted records of item i: the record, or `VIDEO: reason` where there is none."""
    items: dict[int, Any] = {}
    records = []
    for k in wanted:
        job = jobs[k]
        source, stage = job.source, job.context.stage
        try:
            if id(source) not in items:
                items[id(source)] = source.clip(i) if stage == 'clips' else source.view(i)
            record = job.feature.compute(i, items[id(source)])
        except ClipError as reason:
            record = str(reason)
        records.append(f'{source.name(i)}: {record}' if isinstance(record, str) else record)
    return records


def _records(tasks: Sequence[Task]) -> int:
    """Returns how many records tasks have together; those of equal keys are the same."""
    totals: dict[str, int] = {}
    for task in tasks:
        key = json_digest(task.key)
        totals[key] = max(task.total, totals.get(key, 0))
    return sum(totals.values())
