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
from torch import Tensor

from metrics.detectors.registry import Detector
from metrics.feature_store import Record
from metrics.frechet_distance import standard_error
from metrics.geometry import Estimator

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
    find_faces: Callable[[Tensor], list[Tensor | None]]  # pictures -> five points each, see face_alignment.py
    estimator: Callable[[], Estimator]  # of geometry, trained on the data when first asked for
    bin_size: float  # distance of two samples along a ray, scene units


class Feature(NamedTuple):
    """A kind of record, and how it is made of one item."""

    key: Mapping[str, Any]  # what makes the record, beside the source of the items
    compute: Callable[[int, Any], Record]  # (number of the item, frames [T, H, W, 3] or MultiView) -> record


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
    goal: Literal['lower', 'higher', 'as real']  # which value is good
    feature: Callable[[Context], Feature]
    reduce: Callable[[Context, list[Record], list[Record]], Outcome]  # of fakes and (comparing) reals
    detector: tuple[str, str] | None = None  # kind of feature network, and the one that needs no suffix
    comparing: bool = False  # with real videos: their number is then part of the name
    least_frames: int = 1  # of a video


def stack(records: Sequence[Record], name: str) -> np.ndarray:
    """Stacks one array of all records that are no failures, [N, ...]."""
    return np.array([record[name] for record in records if not isinstance(record, str)])


def mean_outcome(values: np.ndarray, details: Mapping[str, Any] | None = None) -> Outcome:
    """Returns mean and standard error of values of single videos [N]."""
    if not len(values):
        return Outcome(math.nan, math.nan, details or {})
    return Outcome(float(np.mean(values)), standard_error(values), details or {})


def part_means(records: Sequence[Record], names: Sequence[str]) -> dict[str, float]:
    """Returns the means of further values of single videos, as details."""
    return {name: mean_outcome(stack(records, name)).value for name in names}
