"""How the runs of a comparison are measured: against the truth of procedural people, or by the metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dnnlib.util import atomic_write
from interop.convert import open_snapshot
from metrics.base import Settings as MetricSettings
from metrics.metric_main import Metrics
from metrics.metric_names import parse_metrics
from metrics.sources.subjects import network_subject
from studies.arms import Arm, Judge
from studies.measure import Settings, measure
from studies.results import TABLE, known, write_result
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

    def __init__(self, names: str, settings: MetricSettings, setting: str) -> None:
        """Takes names of metrics, how they are computed, and what all runs of the study have in common."""
        self.requests = parse_metrics(names)
        self.settings, self.setting, self.device = settings, setting, settings.device

    def facts(self) -> dict[str, Any]:
        """See Judge."""
        return {'setting': self.setting, 'names': [request.name for request in self.requests]}

    def measure(self, arm: Arm, snapshot: Path, facts: Mapping[str, Any]) -> None:
        """See Judge."""
        config, data = arm.config, arm.config.dataset.build()
        stored = open_snapshot(str(snapshot))
        G = load_generator(stored, torch.device(self.device))
        subject = network_subject(G, data, self.settings, snapshot.name, facts['clips'] / 1000)
        results = Metrics(self.requests, self.settings).measure(subject)
        sheets = TrainingSheets(run_dir=arm.folder, dataset=data, heads=config.output.sheet_seeds)
        list(sheets(G, facts['clips']))
        frames = config.loss.build().num_frames(config.generator.span) * facts['clips']
        record = {'row': arm.name, 'seed': arm.seed, 'frames': frames, **facts}
        record['metrics'] = {
            r.request.name: {'value': known(r.outcome.value), 'error': known(r.outcome.error)}
            for r in results
        }
        with atomic_write(arm.folder / METRICS, 'w') as file:
            json.dump(record, file, indent=1)
