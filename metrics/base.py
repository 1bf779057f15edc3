"""The parts of a metric: what is asked for, what is looked at, what comes out.

A metric is a function that makes a small record of one item (a video, a frame, a set of views), decorated
with a `Metric`, and a reduction that makes a value of the records of all items. Records are kept by
records/store.py; an item that gives none is skipped with a reason, and reasons are counted.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metrics.detectors.registry import Detector, Kind
from metrics.records.store import Record

Protocol = Literal['paper', 'released']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How metrics are computed; whatever changes a value is part of its key or of its name."""

    cache: Path  # folder of feature networks and records
    device: torch.device = torch.device('cpu')
    protocol: Protocol = 'paper'  # or exactly what the released scripts compute, errors included
    # what the mapping of a generator sees: one camera for a clip (unless it is made otherwise) [PV3D MapT],
    # or that of each image
    mapping_camera: Literal['fixed', 'own'] = 'fixed'
    clip_camera: Literal['moving', 'held'] = 'moving'  # of generated videos; held = that of the first frame
    codec: Literal['h264', 'none'] = 'h264'  # videos are encoded before they are measured [PV3D A.4]
    resolution: int | None = (
        None  # pixels of a side that videos are resized to, of folders; none = as they are
    )
    crf: int = 15  # quality of the encoding, as gen_videos.py has it
    seed: int = 0  # of everything that is drawn
    landmarks: Literal['detected', 'camera'] = 'detected'  # aligns faces; camera = a mean face, projected
    controls: tuple[str, ...] = ()  # degraded versions of the generated items, measured beside them
    offline: bool = False  # forbids downloads of weights
    detector_files: Mapping[str, str | Path] = dataclasses.field(default_factory=dict)  # name -> weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One metric to compute; its name says everything except protocol and codec."""

    name: str  # as the user wrote it: fvd2048_16f_lite0
    metric: str  # fvd
    count: int | None  # videos of each side; None = as many as there are, up to 1000
    frames: int  # of each video
    detector: str | None  # name of a feature network


class Context(NamedTuple):
    """What a metric is computed with."""

    request: Request
    settings: Settings
    detector: Detector | None  # the feature network that the request names
    faces: Detector | None  # finds faces
    estimator: Callable[[], nn.Module]  # of geometry, trained on the data on first use
    bin_size: float | None  # distance of two samples along a ray, scene units; None = unknown
    seam: float = 15.0  # frames between knots of the motion path


class Sample(NamedTuple):
    """The records of one side."""

    records: Sequence[Mapping[str, np.ndarray]] = ()  # of the items that were measured
    groups: Sequence[int] = ()  # real clip that each item is a piece of; of generated ones each is its own
    people: Sequence[int] = ()  # who is in each item
    failures: Mapping[str, list[str]] = {}  # reason -> names of the items that were skipped

    @classmethod
    def of(cls, found: Iterable[Record], groups: Iterable[int], people: Iterable[int]) -> 'Sample':
        """Sorts records and failures `NAME: reason` apart."""
        good, failures = [], {}
        for record, *item in zip(found, groups, people, strict=True):
            if isinstance(record, str):
                name, _, reason = record.partition(': ')
                failures.setdefault(reason, []).append(name)
            else:
                good.append((record, *item))
        columns = map(list, zip(*good, strict=True)) if good else ([], [], [])
        return cls(*columns, failures)

    def stack(self, name: str) -> np.ndarray:
        """Stacks one array of all records, [N, ...]."""
        return np.array([record[name] for record in self.records])


class Outcome(NamedTuple):
    """The value of a metric."""

    value: float = math.nan  # nan = too few items
    error: float = math.nan  # standard error of the value
    details: Mapping[str, Any] = {}


def standard_error(values: np.ndarray) -> float:
    """Returns the standard error of the mean of independent values [N]; NaN for fewer than two values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan


def mean(context: Context, fakes: Sample, reals: Sample) -> Outcome:
    """Reduces records to the mean of `value`; means of other entries and of real items become details."""
    values, details = fakes.stack('value'), {}
    for name in sorted({name for record in fakes.records for name in record} - {'value'}):
        details[name] = float(np.mean(fakes.stack(name)))
    if reals.records or reals.failures:
        real = reals.stack('value')
        details['real'] = float(np.mean(real)) if len(real) else math.nan
        details['real_standard_error'] = standard_error(real)
    return Outcome(float(np.mean(values)), standard_error(values), details)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """Decorator that registers a metric: what stands above the function that measures one item.

    The function maps (item, context) to numbers or arrays by name; without `reduce`, 'value' is the metric's.
    An item of `clips` is a video along the cameras of a real clip, uint8 [T, H, W, 3]; of `frames`, frame
    i mod T of video i, [H, W, 3]; of `views`, a MultiView. The function raises Skip with a reason for an item
    that cannot be measured. Several metrics may decorate one function and then share its records.
    """

    name: str  # lower-case letters only
    on: Literal['clips', 'frames', 'views']
    title: str
    goal: str  # which value is good
    example: str = ''  # a complete name, where the name alone is not one
    reduce: Callable[[Context, Sample, Sample], Outcome] = mean  # of generated and real records
    detector: tuple[Kind, str] | None = None  # kind of feature network, and the one that needs no suffix
    depends_on: Sequence[Literal['protocol', 'landmarks', 'bin_size', 'seam']] = ()  # that change a record
    compares: bool = False  # with real videos; the name says how many
    names_frames: bool = False  # the name must say how many frames a video has
    needs_truth: bool = False  # data with true depth and normals, from which the estimator learns
    # which generated videos: before moving cameras, before one that stands still, or several of a person so
    films: Literal['fakes', 'held', 'motions'] = 'fakes'
    controls: Sequence[str] = ()  # of videos before a still camera that mean something to it
    least_videos: int = 2  # that give a value
    least_frames: int = 1  # of a video
    measure: Callable[[Any, Context], Mapping[str, Any]] | None = None  # the decorated function

    @property
    def stage(self) -> Literal['clips', 'views']:
        """What is rendered for it."""
        return 'views' if self.on == 'views' else 'clips'

    def __call__(self, measure: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the metric and returns the function as it is."""
        METRICS[self.name] = dataclasses.replace(self, measure=measure)
        return measure


METRICS: dict[str, Metric] = {}  # name -> metric; filled by the decorated functions


def exact_network(network: nn.Module, inputs: Tensor) -> Tensor:
    """Runs a feature network so that it gives the same bits in every process and run, also on GPUs."""
    flags = {'enabled': True, 'benchmark': False, 'deterministic': True, 'allow_tf32': False}
    with torch.no_grad(), torch.backends.cudnn.flags(**flags):
        return network(inputs)
