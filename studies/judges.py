"""How the runs of a comparison are measured: against the truth of procedural people, or by the metrics."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.util import atomic_write
from interop.convert import open_snapshot
from metrics.base import Request
from metrics.base import Settings as MetricSettings
from metrics.metric_main import Metrics
from metrics.metric_names import parse_metrics
from metrics.sources.subjects import network_subject
from studies.arms import Arm, Judge
from studies.measure import Settings, measure
from studies.results import TABLE, known, write_result
from training.data.dataset import VideoDataset
from training.networks.registry import load_generator
from viz.sheets import TrainingSheets

METRICS = 'metrics.json'


class TruthJudge(Judge):
    """Measures against the truth of procedural people: table.json and images."""

    file = TABLE

    def __init__(self, settings: Settings, full: bool) -> None:
        """Takes settings and whether they have all codes."""
        self.settings, self.full, self.device = settings, full, settings.device

    def facts(self) -> dict[str, Any]:
        """See Judge."""
        return {'full': self.full}

    def measure(self, arm: Arm, snapshot: Path, facts: Mapping[str, Any]) -> None:
        """See Judge."""
        write_result(arm.folder, measure(snapshot, arm.config.dataset.path, self.settings), facts)


class MetricsJudge(Judge):
    """Measures as calc_metrics.py does, on any data: metrics.json and the sheets of a training run."""

    file = METRICS

    def __init__(self, names: str, settings: MetricSettings, setting: str, points: int = 0) -> None:
        """Takes what is measured and how.

        Args:
            names: metrics, as for calc_metrics.py.
            settings: how they are computed.
            setting: what all runs of the study have in common.
            points: snapshots on the way that the first metric is measured of, too.
        """
        self.requests = parse_metrics(names)
        self.settings, self.setting, self.points = settings, setting, points
        self.device = settings.device

    def facts(self) -> dict[str, Any]:
        """See Judge."""
        names = [request.name for request in self.requests]
        return {'setting': self.setting, 'names': names, 'points': self.points}

    def measure(self, arm: Arm, snapshot: Path, facts: Mapping[str, Any]) -> None:
        """See Judge."""
        config, data = arm.config, arm.config.dataset.build()
        metrics, first = self._measure(snapshot, data, self.requests), self.requests[0].name
        points = []
        for path in snapshots_before(snapshot, self.points):
            found = self._measure(path, data, self.requests[:1])[first]
            points.append([int(path.stem.rpartition('-')[2]), found['value'], found['error']])
        points.append([facts['clips'], metrics[first]['value'], metrics[first]['error']])
        G = load_generator(open_snapshot(str(snapshot)), torch.device(self.device))
        sheets = TrainingSheets(run_dir=arm.folder, dataset=data, heads=config.output.sheet_seeds)
        list(sheets(G, facts['clips']))
        frames = config.loss.build().num_frames(config.generator.span) * facts['clips']
        record = {'row': arm.name, 'seed': arm.seed, 'frames': frames, **facts}
        record |= {'metrics': metrics, 'course': {'metric': first, 'points': points}}
        with atomic_write(arm.folder / METRICS, 'w') as file:
            json.dump(record, file, indent=1)

    def _measure(
        self, snapshot: Path, data: VideoDataset, requests: Sequence[Request]
    ) -> dict[str, dict[str, float | None]]:
        """Returns value and standard error of metrics by name."""
        stored = open_snapshot(str(snapshot))
        G = load_generator(stored, torch.device(self.device))
        subject = network_subject(G, data, self.settings, snapshot.name, stored.meta.get('kimg'))
        results = Metrics(requests, self.settings).measure(subject)
        return {
            r.request.name: {'value': known(r.outcome.value), 'error': known(r.outcome.error)}
            for r in results
        }


def snapshots_before(newest: Path, count: int) -> list[Path]:
    """Returns so many of the older snapshots beside one, or all, spread evenly; in order."""
    older = [path for path in sorted(newest.parent.glob('network-snapshot-*.pkl')) if path.name < newest.name]
    chosen = np.linspace(0, len(older), count, endpoint=False).astype(int) if older else []
    return [older[i] for i in dict.fromkeys(int(i) for i in chosen)]
