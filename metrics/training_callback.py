"""Metrics during training: what train.py gives to the loop, which knows nothing of metrics itself."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from metrics.base import Settings
from metrics.metric_main import Metrics
from metrics.metric_names import parse_metrics, reported_name
from metrics.results import append_results, describe
from metrics.sources.subjects import network_subject
from torch_utils import distributed as dist
from torch_utils.checkpoint import snapshot_path
from torch_utils.ops.build import cache_folder
from training.data.dataset import VideoDataset


def make_evaluate(
    names: Sequence[str], data: VideoDataset, run_dir: Path, device: torch.device
) -> Callable[[nn.Module, float], dict[str, float]]:
    """Returns evaluate(G_ema, kimg) -> {name: value}, which also appends to metric-*.jsonl of the run.

    The values are those that calc_metrics.py gives for the snapshot. Every process must call it. A snapshot
    whose values are in the files already is not measured again: it returns {}.

    Args:
        names: of metrics, see metric_names.parse_metrics.
        data: the training data.
        run_dir: folder of the run.
        device: of G_ema.

    Raises:
        UserError: for what would end the run at its first checkpoint: an unknown name, a missing network, ...
    """
    settings = Settings(cache=cache_folder(), device=device)
    metrics = Metrics(parse_metrics(','.join(names)), settings)
    metrics.check(data)

    def evaluate(G_ema: nn.Module, kimg: float) -> dict[str, float]:
        start = time.time()
        snapshot = snapshot_path(run_dir, round(kimg * 1000)).name
        if dist.broadcast_object(dist.is_leader() and _is_measured(run_dir, metrics, snapshot)):
            return {}
        subject = network_subject(G_ema, data, settings, snapshot, kimg)
        results = metrics.measure(subject)
        if dist.is_leader():
            append_results(run_dir, results, settings, subject.facts, time.time() - start)
        for result in results:
            dist.print0(describe(result))
        return {result.name: result.outcome.value for result in results}

    return evaluate


def _is_measured(run_dir: Path, metrics: Metrics, snapshot: str) -> bool:
    """Returns whether the files of the run have all metrics of a snapshot."""
    paths = [run_dir / f'metric-{reported_name(r, metrics.settings)}.jsonl' for r in metrics.requests]
    return all(path.is_file() and f'"snapshot": "{snapshot}"' in path.read_text() for path in paths)
