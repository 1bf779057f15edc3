"""What a network's figures owe to how it is measured: closed forms, and the command on a small network."""

import json
import math

import pytest
from click.testing import CliRunner

from metrics.base import Outcome
from studies import protocols
from studies.protocols import Difference
from support import tiny
from torch_utils.checkpoint import save_snapshot


def test_differences_and_their_errors():
    found = {'fixed': {'we': Outcome(10.0, 0.3)}, 'own': {'we': Outcome(11.2, 0.4)}}
    difference = protocols.compare(found)['we']
    assert difference == Difference(10.0, 11.2, pytest.approx(0.5)) and difference.verdict == 'changes'
    assert Difference(10.0, 10.9, 0.5).verdict == 'no difference seen'
    assert Difference(10.0, math.nan, 0.5).verdict == 'unknown'


def test_one_shape_in_the_bins_of_several_renderers():
    """Chamfer distances are squared: half the bin, four times the distance."""
    bins = protocols.in_bins(0.01, 0.05)
    assert bins['its own'] == pytest.approx(4) and bins['EG3D, 48 samples'] == pytest.approx(20.04, abs=0.01)
    ratio = bins['EG3D, 48 samples'] / bins['StyleNeRF, 14 samples']
    assert ratio == pytest.approx((0.0498 / 0.0223) ** 2, rel=0.01)


def test_command(data, tmp_path, monkeypatch):
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'cache'))
    save_snapshot(tmp_path / 'a.pkl', {'G_ema': tiny.solid_generator()}, {'kimg': 1.0})
    args = ['--network', str(tmp_path / 'a.pkl'), '--data', data, '--videos', '2', '--device', 'cpu']
    result = CliRunner().invoke(protocols.main, args)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / 'protocols.json').read_bytes())
    assert list(found['mapping']) == ['we', 'id', 'cd', 'cdscene']
    assert found['mapping']['we']['fixed'] != found['mapping']['we']['own']  # planes change with the view
    assert found['bin_size'] == pytest.approx((3.3 - 2.25) / 5)  # six samples
    assert found['cd']['its own'] == pytest.approx(found['mapping']['cd']['fixed'])
    assert 'StyleNeRF, 14 samples' in result.output and 'one camera' in result.output
