"""Curves of a run: every snapshot once, in order, with what is unknown left open."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from studies import curves, measure
from studies.figures import Figure
from studies.measure import Result, Row


@pytest.fixture
def measured(monkeypatch):
    """The snapshots that were measured."""
    paths = []

    def fake(snapshot, data, settings):
        paths.append(snapshot.name)
        image = np.zeros((1, 1, 4, 3, 8, 8), np.float32)
        rows = [
            Row('fmd', '<= .2', Figure(1 / len(paths), 0.1), Figure(0.05, 0.0), '2 codes'),
            Row('no goal', '', Figure(1.0, 0.0), None, ''),
            Row('unknown', '>= 90 %', Figure(math.nan, math.nan), None, ''),
        ]
        return Result(rows, image, image, image[0, 0])

    monkeypatch.setattr(measure, 'measure', fake)
    return paths


def call(folder, *options):
    return CliRunner().invoke(curves.main, ['--run', str(folder), '--data', 'x.zip', *options])


def test_each_snapshot_is_measured_once(tmp_path, measured):
    for clips in (2000, 1000):
        (tmp_path / f'network-snapshot-{clips:09d}.pkl').touch()
    assert call(tmp_path).exit_code == 0
    (tmp_path / 'network-snapshot-000003000.pkl').touch()
    assert call(tmp_path, '--dest', str(tmp_path / 'c.png')).exit_code == 0
    assert measured == [f'network-snapshot-00000{k}000.pkl' for k in (1, 2, 3)]
    assert Image.open(tmp_path / 'c.png').width > 500
    found = {}
    for k in (1, 2, 3):
        table = json.loads((tmp_path / 'figures' / f'00000{k}000' / 'table.json').read_bytes())
        found[1000 * k] = table['rows']
    fmd, unknown = curves._curves(found)
    assert (fmd.kimg, fmd.value, fmd.level) == ([1, 2, 3], [1, 1 / 2, 1 / 3], 0.05)
    assert np.isnan(unknown.value).all() and unknown.level is None
    found[1000] = found[1000][1:]  # as when there was no fmd yet
    assert curves._curves(found)[0].value[1:] == [1 / 2, 1 / 3] and math.isnan(
        curves._curves(found)[0].value[0]
    )


def test_a_folder_without_snapshots(tmp_path):
    result = call(tmp_path)
    assert result.exit_code == 1 and 'holds no network-snapshot' in result.output
