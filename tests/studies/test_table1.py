"""The paper's table for a given network, end to end on a stand-in."""

import json

import pytest
from click.testing import CliRunner

from studies import table1
from support import tiny
from torch_utils.checkpoint import save_snapshot


def test_both_protocols_beside_the_paper(data, tmp_path, monkeypatch):
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'cache'))
    save_snapshot(tmp_path / 'a.pkl', {'G_ema': tiny.solid_generator()}, {'kimg': 1.0})
    args = ['--network', str(tmp_path / 'a.pkl'), '--data', data, '--metrics', 'cd2,cdscene2,we2']
    result = CliRunner().invoke(table1.main, [*args, '--row', 'celebvhq', '--device', 'cpu'])
    assert result.exit_code == 0, result.output
    assert 'paper, celebvhq' in result.output and '1.21' in result.output and '8.18' in result.output
    lines = json.loads((tmp_path / 'table1.json').read_bytes())['lines']
    seen = [(line['protocol'], line['mapping']) for line in lines]
    assert seen == [(p, m) for m in ('one camera', "each image's") for p in ('paper', 'released')]
    values = [{name: m['value'] for name, m in line['metrics'].items()} for line in lines]
    bin_size = (3.3 - 2.25) / 5  # six samples
    assert values[0]['cdscene2'] == pytest.approx(values[0]['cd2'] * bin_size**2)
    assert values[1]['cdscene2'] == values[1]['cd2']  # released: scene units
    assert values[0]['we2'] != values[2]['we2']  # planes change with the view
