"""Computes metrics: the way from a subject to results.

`Metrics.measure` is what the command line, the training loop and the tests all call, so that they give equal
values.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from dnnlib.progress import progress
from dnnlib.util import Skip, UserError
from metrics.base import METRICS, Context, Metric, Outcome, Request, Sample, Settings
from metrics.detectors.registry import Detector, load_detector
from metrics.measures.geometry_estimator import DEFAULT_TRAINING, load_or_train_estimator
from metrics.measures.geometry_truth import TruthReader
from metrics.metric_names import VIDEOS, reported_name
from metrics.records.digests import code_digest, json_digest, tensors_digest
from metrics.records.store import Record, Task, collect, open_folder
from metrics.sources.controls import control
from metrics.sources.items import Source
from metrics.sources.subjects import Subject
from torch_utils import distributed as dist
from training.data.dataset import VideoDataset

CONTROLS: Mapping[str, Literal['clips', 'views']] = {  # name -> what it degrades
    'frozen': 'clips',
    'static': 'clips',
    'shuffled': 'clips',
    'looped': 'clips',
    'flat': 'views',
    'still': 'views',
}


class DetectorFile(NamedTuple):
    """Which feature network it was."""

    name: str
    sha256: str
    registered: bool  # the file is the one that the registry knows


class ControlResult(NamedTuple):
    """A metric of degraded videos."""

    value: float
    count: int  # videos that it comes from
    failures: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A metric's value, and how it was computed."""

    name: str  # only values of one name may be compared
    request: Request
    outcome: Outcome
    count: int  # videos that the value comes from
    failures: Mapping[str, list[str]]  # reason -> videos that were skipped
    real_count: int
    real_failures: Mapping[str, list[str]]
    controls: Mapping[str, ControlResult]  # the same metric of degraded videos
    detector: DetectorFile | None
    faces: DetectorFile | None


class _Job(NamedTuple):
    """One metric of one side."""

    side: str  # '' = generated, 'real', or a control
    metric: Metric
    context: Context
    source: Source
    total: int

    def key(self, code: str) -> dict[str, Any]:
        """Returns what makes the records: items, measuring function, declared settings, networks."""
        measure, context = self.metric.measure, self.context
        known = {**vars(context.settings), 'bin_size': context.bin_size, 'seam': context.seam}
        key = {
            'source': self.source.identity,
            'code': code,
            'measure': f'{measure.__module__}.{measure.__name__}',
            'on': self.metric.on,
            **{name: known[name] for name in self.metric.depends_on},
        }
        if self.metric.needs_truth:
            key['estimator'] = tensors_digest(context.estimator().state_dict().items())
        networks = [d for d in (context.detector, context.faces) if d]
        if networks:
            key['networks'] = [[d.info.name, d.kind, d.sha256] for d in networks]
            key['device'] = context.settings.device.type
        return key


class Metrics:
    """Some metrics with all that they are computed with; networks stay loaded from one use to the next.

    Args:
        requests: what to compute.
        settings: how.

    Raises:
        UserError: when a feature network is missing or needs longer videos, before anything is computed.
    """

    def __init__(self, requests: Sequence[Request], settings: Settings) -> None:
        self.requests, self.settings = requests, settings
        metrics = [METRICS[r.metric] for r in requests]
        for name in settings.controls:
            if not any(_applies(name, metric) for metric in metrics):
                raise UserError(f'--control {name} has no effect on these metrics; leave it out')
        detects_faces = settings.protocol == 'paper' and settings.landmarks == 'detected'
        load, self._detectors, self._faces = functools.cache(self._load), {}, None
        for request, metric in zip(requests, metrics, strict=True):
            if metric.detector:
                detector = load(request.detector, metric.detector[0])
                least = getattr(detector.network, 'least_frames', 1)
                if request.frames < least:
                    raise UserError(f'{request.name}: {detector.info.name} needs at least {least} frames')
                self._detectors[request.name] = detector
            if detects_faces and 'landmarks' in metric.depends_on:
                self._faces = load('yunet', 'faces')

    def check(self, data: VideoDataset) -> None:
        """Finds out, before a run begins, what would end it at its first checkpoint.

        Raises:
            UserError: when the data cannot do what a metric needs.
        """
        open_folder(self.settings.cache / 'records', {'check': 'writable'})
        longest = max(data.num_frames(i) for i in range(len(data)))
        for request in self.requests:
            metric = METRICS[request.metric]
            if metric.stage == 'clips' and request.frames > longest:
                raise UserError(f'{request.name}: the longest clip of the data has {longest} frames')
            if metric.needs_truth:
                TruthReader(data, clips=1, frames=1)

    def measure(self, subject: Subject) -> list[Result]:
        """Computes all metrics of a subject; every process must call it and gets the results.

        Raises:
            UserError: when the subject lacks what a metric needs.
        """
        for request in self.requests:
            self._check_sources(request, subject)
        contexts = [self._context(request, subject) for request in self.requests]
        samples = self._samples(self._jobs(subject, contexts))
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
            settings=self.settings,
            detector=self._detectors.get(request.name),
            faces=self._faces if 'landmarks' in METRICS[request.metric].depends_on else None,
            estimator=functools.cache(functools.partial(self._estimator, subject)),
            bin_size=subject.bin_size,
            seam=subject.seam,
        )

    def _estimator(self, subject: Subject) -> nn.Module:
        """Returns the estimator of geometry; the leader trains it unless the cache has it."""
        folder, seed = self.settings.cache / 'estimators', self.settings.seed
        if dist.is_leader():
            with progress(DEFAULT_TRAINING.steps, 'learning geometry', 'step') as count:
                load_or_train_estimator(subject.data, folder, seed, count)
        dist.barrier()
        return load_or_train_estimator(subject.data, folder, seed)

    def _check_sources(self, request: Request, subject: Subject) -> None:
        metric, problem = METRICS[request.metric], ''
        if metric.stage == 'views' and subject.views is None:
            problem = 'needs depth and several views: give --network, or --views DIR'
        elif metric.stage == 'clips' and subject.fakes is None:
            problem = 'needs videos: give --network, or --fake DIR'
        elif metric.films != 'fakes' and subject.held is None:
            problem = 'needs generated videos whose camera stands still: give --network'
        elif metric.compares and subject.reals is None:
            problem = 'compares with real videos: give --data, or --real DIR'
        elif metric.needs_truth and subject.data is None:
            problem = 'compares with synthetic data: give --network and --data'
        elif 'frozen' in self.settings.controls and _applies('frozen', metric) and subject.frozen is None:
            problem = 'needs a generator for --control frozen: give --network'
        elif 'bin_size' in metric.depends_on and self.settings.protocol == 'paper' and not subject.bin_size:
            problem = (
                'needs bin_size, the distance of samples along a ray in scene units: add it to views.json'
            )
        if problem:
            raise UserError(f'{request.name} {problem}')
        if metric.compares and subject.real_clips < request.count:
            dist.print0(
                f'warning: {request.name}: there are only {subject.real_clips} real videos; several pieces '
                'of each are used, so that the value cannot be compared with one from more videos'
            )

    def _jobs(self, subject: Subject, contexts: Sequence[Context]) -> list[_Job]:
        """Lists what is to be collected; jobs that look at the same items share their source."""
        source = functools.cache(functools.partial(_source, subject, self.settings.seed))
        most = max(r.count or VIDEOS for r in self.requests)
        jobs = []
        for context in contexts:
            request, metric = context.request, METRICS[context.request.metric]
            sides = ['', *(c for c in self.settings.controls if _applies(c, metric))]
            if metric.stage == 'clips' and subject.reals is not None and metric.films != 'held':
                sides.append('real')
            for side in sides:
                films = 'views' if metric.stage == 'views' else metric.films
                items = source(side, 'fakes' if side == 'real' else films, request.frames, most)
                label = 'real' if side == 'real' else 'generated'
                total = _available(request, len(items), label)
                jobs.append(_Job(side, metric, context, items, total))
        return jobs

    def _samples(self, jobs: Sequence[_Job]) -> dict[tuple[str, str], Sample]:
        """Collects the records of all jobs, {(side, name of the metric): records}."""
        code, samples = code_digest(), {}
        groups: dict[tuple[str, int], list[_Job]] = collections.defaultdict(list)
        for job in jobs:  # real videos apart, and those of other lengths; the rest shares its items
            items = 'videos' if job.metric.stage == 'clips' else 'views'
            label = f'{"real" if job.side == "real" else "generated"} {items}'
            groups[label, job.context.request.frames].append(job)
        for (label, _), members in groups.items():
            tasks = [Task(job.key(code), job.total) for job in members]
            names = ', '.join(dict.fromkeys(job.context.request.name for job in members))
            with progress(_records(tasks), label, 'record', names, dist.is_leader()) as count:
                compute = functools.partial(_compute, members)
                records = collect(self.settings.cache / 'records', tasks, compute, count)
            for job, found in zip(members, records, strict=True):
                items = range(len(found))
                sample = Sample.of(found, map(job.source.group, items), map(job.source.person, items))
                samples[job.side, job.context.request.name] = sample
        return samples

    def _result(self, context: Context, samples: Mapping[tuple[str, str], Sample], encodes: bool) -> Result:
        name = context.request.name
        fakes, reals = samples['', name], samples.get(('real', name), Sample())
        controls = {}
        for side in self.settings.controls:
            if sample := samples.get((side, name)):
                failed = sum(map(len, sample.failures.values()))
                value = _reduce(context, sample, reals).value
                controls[side] = ControlResult(value, len(sample.records), failed)
        return Result(
            name=reported_name(context.request, self.settings, encodes),
            request=context.request,
            outcome=_reduce(context, fakes, reals),
            count=len(fakes.records),
            failures=fakes.failures,
            real_count=len(reals.records),
            real_failures=reals.failures,
            controls=controls,
            detector=_file_of(context.detector),
            faces=_file_of(context.faces),
        )


def _file_of(detector: Detector | None) -> DetectorFile | None:
    return DetectorFile(detector.info.name, detector.sha256, detector.registered) if detector else None


def _reduce(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    """Computes the value, nan when too few videos are left."""
    metric = METRICS[context.request.metric]
    least = min(len(side.records) for side in ([fakes, reals] if metric.compares else [fakes]))
    return metric.reduce(context, fakes, reals) if least >= metric.least_videos else Outcome()


def _source(subject: Subject, seed: int, side: str, films: str, frames: int, count: int) -> Source:
    """Returns the items of a side: generated ones, 'real', or a control of them.

    Args:
        subject: where they come from.
        seed: of controls.
        side: '' = generated, 'real', or a control.
        films: `fakes`, `held`, `motions` or `views`.
        frames, count: of videos.
    """
    if side == 'real':
        return subject.reals(frames, count)
    if side == 'frozen' and films == 'fakes':
        return subject.frozen(frames, count)
    base = subject.views(count) if films == 'views' else getattr(subject, films)(frames, count)
    # before a still camera a frozen face is the first frame all the time
    return control(base, 'static' if side == 'frozen' else side, seed) if side else base


def _applies(name: str, metric: Metric) -> bool:
    """Returns whether a control has an effect on a metric."""
    return CONTROLS[name] == metric.stage and (metric.films == 'fakes' or name in metric.controls)


def _available(request: Request, length: int, label: str) -> int:
    """Returns how many items are used; a name that asks for more than there are is refused."""
    if request.count is not None and length < request.count:
        raise UserError(
            f'{request.name}: there are only {length} {label} videos; give more, or ask for at most {length}'
        )
    return min(request.count or VIDEOS, length)


def _compute(jobs: Sequence[_Job], i: int, wanted: Sequence[int]) -> list[Record]:
    """Makes the wanted records of item i: the record, or `VIDEO: reason` when it is skipped."""
    item_of = functools.cache(lambda source: source.item(i))
    records = []
    for job in (jobs[k] for k in wanted):
        try:
            item = item_of(job.source)
            frame = item[i % len(item)] if job.metric.on == 'frames' else item  # each moment equally often
            records.append(dict(job.metric.measure(frame, job.context)))
        except Skip as reason:
            records.append(f'{job.source.name(i)}: {reason}')
    return records


def _records(tasks: Sequence[Task]) -> int:
    """Returns how many records tasks have together; those of equal keys are the same."""
    largest_last = sorted(tasks, key=lambda task: task.total)
    return sum({json_digest(task.key): task.total for task in largest_last}.values())
