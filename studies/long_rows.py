"""The rows of studies.longer: which runs there are, and what is measured of each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dnnlib.config import override
from dnnlib.util import UserError, atomic_write
from metrics.base import Settings as MetricSettings
from metrics.metric_main import Metrics, Result
from metrics.metric_names import parse_metrics
from metrics.sources.subjects import network_subject
from studies.arms import Arm, Budget, Judge, Task, base_config, make_arm, split_changes
from studies.measure import Settings
from studies.results import TABLE
from torch_utils.checkpoint import read_snapshot
from training.data.dataset import VideoDataset
from training.networks.registry import load_generator

# common: changes of all rows; rows: of those beside the base, the line
CHANGES = Path(__file__).with_name('longer.json')
FRAMES = 128  # of the videos that are measured
_CONTROLS = ('frozen', 'looped')


class Figure(NamedTuple):
    """A metric of the table."""

    metric: str  # without its numbers
    name: str
    goal: str = ''
    suffix: str = ''  # of the metric


FIGURES = (
    Figure('lasting', 'motion, last 16 frames over first', '>= .8'),
    Figure('recurrence', 'rise of autocorrelation'),
    Figure('seam', 'change of speed at knots'),
    Figure('idtime', 'identity, first and last frame', 'data - .05', '_sface'),
    Figure('fvd', 'FVD, 16 of 128 frames', '', '_lite0'),
)


class Wanted(NamedTuple):
    """What is measured, against what."""

    reference: str  # data set
    metrics: str  # names, as for calc_metrics.py


def metric_names(videos: int) -> str:
    """Returns the metrics of so many videos, as for calc_metrics.py."""
    return ','.join(f'{figure.metric}{videos}_{FRAMES}f{figure.suffix}' for figure in FIGURES)


def make_tasks(
    made_of: tuple[str, str],
    seeds: Sequence[int],
    outdir: Path,
    settings: Settings,
    budget_sec: float,
    wanted: Wanted,
) -> list[Task]:
    """Makes the folders of all runs.

    Args:
        made_of: preset or options of the base, and data.
        seeds: of training.
        outdir: folder of all runs.
        settings: where to compute, and the folder of features.
        budget_sec: of training, for each run.
        wanted: what is measured.

    Raises:
        UserError: if data or reference cannot be used.
    """
    base_name, data = made_of
    changes = json.loads(CHANGES.read_bytes())
    base = override(base_config(base_name, data), split_changes(changes['common']))
    open_reference(wanted.reference, base.generator)
    configs = {text: override(base, split_changes(text)) for text in changes['rows']}
    configs = {'base': base, **configs}
    arms = [make_arm(name, seed, config, outdir) for seed in seeds for name, config in configs.items()]
    return [Task(arm, Budget(seconds=budget_sec), LongJudge(settings, wanted)) for arm in arms]


def open_reference(path: str, generator: Any) -> VideoDataset:
    """Opens the reference for a generator's config."""
    data = VideoDataset.Config(path=path, span=generator.span, resolution=generator.resolution).build()
    if min(data.num_frames(i) for i in range(len(data))) < FRAMES:
        raise UserError(f'--reference {path} must have clips of {FRAMES} frames')
    return data


class LongJudge(Judge):
    """Measures long videos, with their controls, against the reference: table.json."""

    file = TABLE

    def __init__(self, settings: Settings, wanted: Wanted) -> None:
        """Takes where to compute and what is measured."""
        self.settings, self.wanted, self.device = settings, wanted, settings.device

    def facts(self) -> dict[str, Any]:
        """See Judge."""
        return self.wanted._asdict()

    def measure(self, arm: Arm, snapshot: Path, facts: Mapping[str, Any]) -> None:
        """See Judge."""
        G = load_generator(read_snapshot(snapshot), self.device)
        data = open_reference(self.wanted.reference, G.config)
        # faces of 32 pixels are not found: those of this data fill the frame, which is taken whole
        how = {'codec': 'none', 'landmarks': 'camera', 'controls': _CONTROLS}
        how = MetricSettings(cache=self.settings.cache, device=self.device, **how)
        subject = network_subject(G, data, how, snapshot.name, facts['clips'] / 1000)
        rows = as_rows(Metrics(parse_metrics(self.wanted.metrics), how).measure(subject))
        with atomic_write(arm.folder / self.file, 'w') as file:
            json.dump({**facts, 'rows': rows}, file, indent=1)


def as_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns the rows of table.json, as studies.comparison reads them: metrics and their controls."""
    known = {figure.metric: figure for figure in FIGURES}
    rows = []
    for result in results:
        figure, (value, error, details) = known[result.request.metric], result.outcome
        data = next((details[k] for k in ('real_last', 'real', 'floor') if k in details), None)
        rows.append(_row(figure.name, figure.goal, value, error, data))
        if details.get('first'):
            rows.append(_row('FVD, last 16 frames over first', '<= 1.3', details['last'] / details['first']))
        for side, control in result.controls.items():
            rows.append(_row(f'{figure.metric} of {side}', '', control.value))
    return rows


def _row(
    name: str, goal: str, value: float | None, error: float | None = None, data: float | None = None
) -> dict[str, Any]:
    numbers = {'value': value, 'error': error, 'data': data}
    plain = {key: None if x is None or x != x else float(x) for key, x in numbers.items()}  # nan: unknown
    return {'name': name, 'goal': goal, 'percent': False, **plain}
