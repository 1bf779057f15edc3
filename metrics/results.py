"""Results on the screen and in `metric-NAME.jsonl`: a line per measurement, with all that it depends on."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dnnlib.provenance import ROOT, git_revision
from dnnlib.util import append_json_line
from metrics.base import METRICS, Settings
from metrics.metric_main import Result
from torch_utils import distributed as dist

_NAMED = 100  # failed videos named for a reason in a line of JSON
_SHOWN = 3  # on the screen
_CLEAR = 1.5  # times the floor: a distance below it cannot be told from that of real videos


def append_results(
    folder: Path, results: Sequence[Result], settings: Settings, facts: Mapping[str, Any], seconds: float
) -> list[Path]:
    """Appends each result to `folder`/metric-NAME.jsonl and returns the files.

    Args:
        folder: of the run, or any other; it must exist.
        results: from Metrics.measure.
        settings: that they were computed with.
        facts: of the subject: files, checksums, kimg.
        seconds: time that all of them took.
    """
    revision, paths = git_revision(ROOT), []
    for result in results:
        path = Path(folder, f'metric-{result.name}.jsonl')
        coded = METRICS[result.request.metric].stage == 'clips'  # views never are
        known = {key: value for key, value in facts.items() if coded or key not in ('codec', 'crf', 'fps')}
        append_json_line(path, _line(result, settings, revision) | known | {'seconds': round(seconds, 1)})
        paths.append(path)
    return paths


def _line(result: Result, settings: Settings, revision: str | None) -> dict[str, Any]:
    detector, metric = result.detector, METRICS[result.request.metric]
    return {
        'metric': result.name,
        'value': result.outcome.value,
        'standard_error': result.outcome.error,
        **result.outcome.details,
        'controls': {name: control._asdict() for name, control in result.controls.items()},
        'videos': result.count,
        'failures': sum(map(len, result.failures.values())),
        'failure_reasons': {reason: names[:_NAMED] for reason, names in result.failures.items()},
        'real_videos': result.real_count,
        'real_failures': sum(map(len, result.real_failures.values())),
        'real_failure_reasons': {reason: names[:_NAMED] for reason, names in result.real_failures.items()},
        'detector': detector.name if detector else None,
        'detector_sha256': detector.sha256 if detector else None,
        'detector_registered': detector.registered if detector else None,
        'face_detector_sha256': result.faces.sha256 if result.faces else None,
        'protocol': settings.protocol,
        'seed': settings.seed,
        **({'landmarks': settings.landmarks} if 'landmarks' in metric.depends_on else {}),
        'git': revision,
        'torch': str(torch.__version__),
        'device': str(settings.device.type),
        'processes': dist.world_size(),
        'timestamp': time.time(),
    }


def describe(result: Result) -> str:
    """Returns a line for people: the value, its error, details, and what failed."""
    outcome, metric = result.outcome, METRICS[result.request.metric]
    facts = f'{metric.title}, {result.count} videos ({metric.goal})'
    error = '' if math.isnan(outcome.error) else f' +- {outcome.error:.2g}'
    value = 'no value' if math.isnan(outcome.value) else f'{outcome.value:.5g}{error}'
    lines = [f'{result.name:<24s} {value}  {facts}']
    details = [f'{name} {value:.4g}' for name, value in outcome.details.items() if _known(value)]
    for name, control in result.controls.items():
        failed = f' ({control.failures} failed)' if control.failures else ''
        details.append(f'{name} control {control.value:.4g}{failed}')
    lines += [f'  {", ".join(details)}'] if details else []
    floor = outcome.details.get('floor', 0.0)
    if math.isnan(floor) or outcome.value < _CLEAR * floor:
        reason = 'too few real videos for a floor' if math.isnan(floor) else 'not clearly above its floor'
        lines.append(f'  {reason}: with so few videos it says nothing of the generator')
    for side, failures in (('generated', result.failures), ('real', result.real_failures)):
        for reason, names in failures.items():
            more = ', ...' if len(names) > _SHOWN else ''
            lines.append(f'  {len(names)} {side} failed, {reason}: {", ".join(names[:_SHOWN])}{more}')
    return '\n'.join(lines)


def _known(value: Any) -> bool:
    return isinstance(value, float) and not math.isnan(value)
