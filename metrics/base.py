"""The parts of a metric: what is asked for, what is looked at, what comes out.

A metric is a map over items (`Metric.feature` makes a small record of each video or set of views) and a
reduction (`Metric.reduce` makes a value of the records). Records are kept by feature_store.py under the key
of their feature; a video that gives none gives a reason instead, and reasons are counted.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metrics.detectors.registry import Detector
from metrics.measures.frechet import standard_error
from metrics.measures.geometry import Estimator
from metrics.records.store import Record

Protocol = Literal['paper', 'released']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How metrics are computed; whatever changes a value is part of its key or of its name."""

    cache: Path  # folder of feature networks and records
    device: torch.device = torch.device('cpu')
    protocol: Protocol = 'paper'  # or exactly what the released scripts compute, traps included
    codec: Literal['h264', 'none'] = (
        'h264'  # videos are encoded and decoded before they are judged [PV3D A.4]
    )
    crf: int = 15  # quality of the encoding, as gen_videos.py has it
    seed: int = 0  # of everything that is drawn
    landmarks: Literal['detected', 'camera'] = 'detected'  # aligns faces; camera = a mean face, projected
    controls: tuple[str, ...] = ()  # spoilt versions of the fakes that are measured beside them
    offline: bool = False  # forbids downloads of weights
    detector_files: Mapping[str, str | Path] = dataclasses.field(
        default_factory=dict
    )  # name -> file of weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One metric to compute; its name says all but protocol and codec."""

    name: str  # as the user wrote it: fvd2048_16f_lite0
    metric: str  # fvd
    count: int | None  # videos of each side; none = as many as there are, up to 1000
    frames: int  # of each video
    detector: str | None  # name of a feature network


class Context(NamedTuple):
    """What a metric is computed with."""

    request: Request
    stage: str  # of its metric
    settings: Settings
    detector: Detector | None  # the feature network that the request names
    faces: Detector | None  # finds faces
    estimator: Callable[[], Estimator]  # of geometry, trained on the data when first asked for
    bin_size: float | None  # distance of two samples along a ray, scene units; none = not known


class Feature(NamedTuple):
    """A kind of record, and how it is made of one item."""

    key: Mapping[str, Any]  # what makes the record, beside the source of the items
    compute: Callable[[int, Any], Record]  # (number of the item, frames [T, H, W, 3] or MultiView) -> record


class Sample(NamedTuple):
    """The records of one side."""

    records: Sequence[Record]
    groups: Sequence[int]  # real clip that each item is a piece of; of generated ones each is its own

    def stack(self, name: str) -> np.ndarray:
        """Stacks one array of all records that are no failures, [N, ...]."""
        return np.array([record[name] for record in self.records if not isinstance(record, str)])

    def good_groups(self) -> list[int]:
        """Returns the groups of the records that are no failures."""
        pairs = zip(self.records, self.groups, strict=True)
        return [group for record, group in pairs if not isinstance(record, str)]

    def failures(self) -> dict[str, list[str]]:
        """Returns {reason: videos} out of failures `VIDEO: reason`."""
        found: dict[str, list[str]] = {}
        for record in self.records:
            if isinstance(record, str):
                video, _, reason = record.partition(': ')
                found.setdefault(reason, []).append(video)
        return found

    def means(self) -> dict[str, float]:
        """Returns the means of all further values of single videos."""
        good = [record for record in self.records if not isinstance(record, str)]
        names = sorted({name for record in good for name in record} - {'value'})
        return {name: float(np.mean([record[name] for record in good])) for name in names}


class Outcome(NamedTuple):
    """The value of a metric."""

    value: float  # nan when there is none
    error: float  # standard error of the value
    details: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table of metrics."""

    stage: Literal['clips', 'views']  # videos along real cameras, or two times x two yaws
    title: str
    goal: str  # which value is good
    feature: Callable[[Context], Feature]
    reduce: Callable[[Context, Sample, Sample], Outcome]  # of fakes and of reals, which may be empty
    detector: tuple[str, str] | None = None  # kind of feature network, and the one that needs no suffix
    comparing: bool = False  # with real videos: their number is then part of the name
    least_videos: int = 2  # that give a value
    least_frames: int = 1  # of a video
    held: bool = False  # looks at generated videos whose camera does not move


def mean_outcome(values: np.ndarray, details: Mapping[str, Any] | None = None) -> Outcome:
    """Returns mean and standard error of values of single videos [N]."""
    if not len(values):
        return Outcome(math.nan, math.nan, details or {})
    return Outcome(float(np.mean(values)), standard_error(values), details or {})


def exact_network(network: nn.Module, inputs: Tensor) -> Tensor:
    """Runs a feature network so that it gives the same bits in every process and run, also on GPUs."""
    flags = {'enabled': True, 'benchmark': False, 'deterministic': True, 'allow_tf32': False}
    with torch.no_grad(), torch.backends.cudnn.flags(**flags):
        return network(inputs)
