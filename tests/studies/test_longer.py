"""Paths of motion compared by long videos: rows, what is measured, that it is not done twice."""

import json

import numpy as np
import pytest

from dnnlib.util import UserError
from metrics.metric_names import parse_metrics
from studies import long_rows
from studies.arms import read_results, run_arm
from studies.comparison import compare
from studies.long_rows import Wanted, make_tasks, metric_names
from studies.measure import Settings
from studies.results import TABLE
from support.small_data import SIZE, smooth_clip, write_zip
from training.run_folder import write_options


@pytest.fixture
def reference(tmp_path):
    """Two clips of 32 frames."""
    files, labels = {}, []
    for clip in range(2):
        images, cameras = smooth_clip(np.random.default_rng(clip), frames=32)
        files |= {f'{clip}/{i:02d}.png': image for i, image in enumerate(images)}
        labels += [[f'{clip}/{i:02d}.png', camera] for i, camera in enumerate(cameras)]
    table = {'format': 'pv3d-dataset', 'version': 1, 'resolution': SIZE, 'fps': 25.0, 'labels': labels}
    return write_zip(tmp_path / 'long.zip', {'dataset.json': json.dumps(table).encode(), **files})


def test_rows_are_trained_and_measured_once(small, data, reference, tmp_path, monkeypatch):
    write_options(tmp_path, small)
    base = str(tmp_path / 'training_options.json'), data
    settings = Settings(cache=tmp_path / 'cache')
    with pytest.raises(UserError, match='must have clips of 128 frames'):
        make_tasks(base, (0,), tmp_path / 'out', settings, 0.01, Wanted(reference, 'seam2_32f'))
    monkeypatch.setattr(long_rows, 'FRAMES', 32)
    wanted = Wanted(reference, 'lasting2_32f,seam2_32f')
    tasks = make_tasks(base, (0,), tmp_path / 'out', settings, 1.0, wanted)
    motions = [task.arm.config.generator.motion.path for task in tasks]
    assert motions == ['line', 'waves', 'spline']
    assert all(task.arm.config.dataset.pairs == 'distances' for task in tasks)
    assert run_arm(tasks[2]) == ''
    table = read_results(tasks[2].arm.folder, TABLE)
    names = [row['name'] for row in table['rows']]
    assert names[:3] == ['motion, last 16 frames over first', 'lasting of frozen', 'lasting of looped']
    assert table['rows'][1]['value'] == 0 < table['rows'][0]['value'] and table['metrics'] == wanted.metrics
    monkeypatch.setattr(long_rows, 'Metrics', None)  # nothing is measured again
    assert run_arm(tasks[2]) == '' and 'change of speed at knots' in compare([tasks[2].arm]).text


def test_names_of_the_metrics():
    requests = parse_metrics(metric_names(64))
    assert [(r.metric, r.count, r.detector) for r in requests] == [
        ('lasting', 64, None),
        ('recurrence', 64, None),
        ('seam', 64, None),
        ('idtime', 64, 'sface'),
        ('fvd', 64, 'lite0'),
    ]
