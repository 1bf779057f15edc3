"""The paper's tables as data: rows are possible, verdicts are right, runs and pages come out of commands."""

import json
import math
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy import stats

from dnnlib.util import UserError
from studies import gallery, paper, report, run, verdicts
from studies.judges import snapshots_before
from support.paths import ROOT
from torch_utils.checkpoint import snapshot_path
from training.config import build_networks
from training.presets import study
from viz.images import save_png


@pytest.mark.parametrize('name', sorted(set(paper.rows_of('all')) - {paper.PV3D}))
def test_each_row_is_another_run_of_the_study(name):
    base = study('d.zip')
    config = paper.config_of(base, paper.rows_of('all')[name])
    assert config != base
    with torch.device('meta'):
        build_networks(config)


def test_changes_that_follow_the_base():
    base = study('d.zip')
    found = paper.resolved(
        base, {'generator.renderer.resolution': '*0.5', 'generator.motion.num_layers': 'blocks'}
    )
    assert list(found.values()) == ['8', '5']  # early, middle and late are 2, 4 and 5


def test_tables_are_complete():
    for name, table in paper.TABLES.items():
        rows = {row.name: row for row in table.rows}
        assert paper.PV3D in rows and set(paper.rows_of(name)) == set(rows)
        for claim in table.claims:  # the paper's own figures agree with what it claims
            for low in claim.lower:
                for high in claim.higher:
                    assert rows[low].paper[claim.metric] < rows[high].paper[claim.metric]
    assert set(paper.rows_of('all')) >= set(paper.rows_of('2')) >= set(paper.rows_of('2b'))


def unpaired(values, first=0):
    """Values of seeds from the first on, without errors of their own."""
    return {first + i: (value, math.nan) for i, value in enumerate(values)}


@pytest.mark.parametrize(
    ('lower', 'higher', 'text'),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], 'holds'),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], 'does not hold'),
        ([1.0, 2.0], [1.5, 2.5], 'not decided'),
        ([1.0], [], 'not run'),
    ],
)
def test_verdicts(lower, higher, text):
    assert verdicts.decide(unpaired(lower), unpaired(higher, 9)).text == text


def test_probability_is_that_of_a_t_test():
    a, b = [1.0, 1.2, 1.7], [1.4, 1.9, 2.0]
    found = verdicts.decide(unpaired(a), unpaired(b, 9))
    expected = stats.ttest_ind(a, b, alternative='less').pvalue
    assert found.probability == pytest.approx(1 - expected)
    one = verdicts.decide({0: (1.0, 0.3)}, {0: (2.0, 0.4)})  # one seed: the errors of the metric
    assert one.probability == pytest.approx(stats.t.cdf(1 / 0.5, 1))


def test_seeds_are_compared_with_themselves():
    a, b = [90.0, 78.0, 84.0], [106.0, 91.0, 98.0]
    found = verdicts.decide(unpaired(a), unpaired([*b, 500.0]))  # nobody to compare the last one with
    expected = stats.ttest_rel(a, b, alternative='less').pvalue
    assert found.probability == pytest.approx(1 - expected) and found.text == 'holds'
    wide = verdicts.decide({0: (1.0, 3.0), 1: (2.0, 3.0)}, {0: (2.0, 4.0), 1: (3.0, 4.0)})
    assert wide.probability == pytest.approx(stats.t.cdf(1 / (5 / 2**0.5), 1))  # two may agree by chance


def record(row, seed, fvd, setting='study'):
    """What a run leaves."""
    metrics = {'fvd256_16f_lite0': {'value': fvd, 'error': None}, 'cd64': {'value': None, 'error': None}}
    return {
        'setting': setting,
        'row': row,
        'seed': seed,
        'clips': 2000,
        'frames': 4000,
        'seconds': 1800.0,
        'course': {'metric': 'fvd256_16f_lite0', 'points': [[1000, 9.0, None], [2000, fvd, None]]},
    } | {'metrics': metrics}


def test_page_has_figures_and_verdicts(tmp_path):
    records = [record(*x) for x in (('pv3d', 0, 3.0), ('pv3d', 1, 3.2), ('early', 0, 9.0), ('early', 1, 9.4))]
    text = report.page([*records, record('pv3d', 0, 1.0, 'other')], tmp_path / 'r.json')
    line = next(line for line in text.splitlines() if line.startswith('| early'))
    cells = [cell.strip() for cell in line.split('|')]
    assert cells[1:7] == ['early', '`generator.motion.num_layers=2`', '2', '30', '2.0', '9.2 ± 0.2 [40.2]']
    assert cells[7] == '- [2.32]'
    assert '- FVD, pv3d < early: **holds** (P = 0.995)' in text and 'pv3d < late: **not run**' in text
    assert '4 runs, 2.0 hours of training, 0.02 million frames seen.' in text
    assert text.count('### Table') == 1 and '## `other`' in text


def test_a_row_costs_what_it_starts_from_too():
    records = [record('eg3d_static', 0, 9.0), record('eg3d_mcg', 0, 8.0), record('eg3d_mcg', 1, 8.0)]
    lines = verdicts.table_text('1', paper.TABLES['1'], records).splitlines()
    minutes = {line.split('|')[1].strip(): line.split('|')[4].strip() for line in lines if '|' in line}
    assert (minutes['eg3d_static'], minutes['eg3d_mcg'], minutes['pv3d']) == ('30', '60', '-')


def test_two_metrics_of_a_kind_are_two_columns():
    """And not two seeds; the first one is what is claimed of."""
    first = record('pv3d', 0, 3.0)
    first['metrics']['fvd64_128f_lite0'] = {'value': 50.0, 'error': None}
    assert [v for v, _ in verdicts.values_of([first], 'pv3d', 'fvd').values()] == [3.0]
    assert [v for v, _ in verdicts.values_of([first], 'pv3d', 'fvd64_128f_lite0').values()] == [50.0]
    text = verdicts.table_text('2a', paper.TABLES['2a'], [first])
    assert 'fvd64_128f_lite0' in text.splitlines()[2] and '| 3 ± 0 [29.1]' in text


def test_later_results_replace_earlier_ones():
    old = [record('pv3d', 0, 1.0), record('late', 0, 2.0)]
    found = report.merged(old, {'folder': record('pv3d', 0, 5.0)}.values())
    assert [r['metrics']['fvd256_16f_lite0']['value'] for r in found] == [2.0, 5.0]


def test_committed_page_is_that_of_the_committed_results(tmp_path):
    docs = ROOT / 'docs'
    args = ['--results', str(docs / 'studies-tables.json'), '--dest', str(tmp_path / 'a.md')]
    assert CliRunner().invoke(report.main, args).exit_code == 0
    assert (tmp_path / 'a.md').read_bytes() == (docs / 'studies-tables.md').read_bytes()


def test_rows_are_trained_measured_and_reported(data, tmp_path):
    args = ['2a', '--preset', 'tiny', '--data', data, '--outdir', str(tmp_path / 'runs'), '--seeds', '3']
    args += ['--rows', 'early,pv3d', '--metrics', 'motion2', '--kimg', '0.004', '--points', '2']
    args += ['--set', 'batch=2,output.tick_nimg=2,output.snapshot_ticks=1']
    result = CliRunner().invoke(run.main, args)
    assert result.exit_code == 0, result.output
    folders = sorted(p for p in (tmp_path / 'runs').iterdir() if p.is_dir())
    assert [p.name.rpartition('-')[0] for p in folders] == ['early-seed3', 'pv3d-seed3']
    made = [(p / 'metrics.json').stat().st_mtime_ns for p in folders]
    again = CliRunner().invoke(run.main, args)
    assert again.exit_code == 0  # nothing is left to do
    assert re.search(r'^training and measuring \(process.txt .*\): 0/(\d+) runs$', again.stderr, flags=re.M)
    assert re.search(r'^training and measuring: (\d+)/\1 runs$', again.stderr, flags=re.M)
    assert [(p / 'metrics.json').stat().st_mtime_ns for p in folders] == made
    results, page = tmp_path / 'r.json', tmp_path / 'r.md'
    files = ['--results', str(results), '--dest', str(page)]
    result = CliRunner().invoke(report.main, ['--runs', str(tmp_path / 'runs'), *files])
    assert result.exit_code == 0, result.output
    first, second = json.loads(results.read_bytes())
    assert (first['row'], first['seed'], first['clips'], first['frames']) == ('early', 3, 4, 8)
    assert second['metrics']['motion2']['value'] > 0
    points = second['course']['points']  # one on the way, then the end
    assert [clips for clips, *_ in points] == [2, 4] and points[1][1] == second['metrics']['motion2']['value']
    text = page.read_text()
    assert '## `tiny+batch=2+output' in text and list(folders[0].glob('fakes*.png'))
    for name in gallery.image_names('r', second['setting']):
        assert f'({name})' in text and Image.open(tmp_path / name).size[0] > 200
    assert CliRunner().invoke(report.main, files).exit_code == 0 and page.read_text() == text


def test_snapshots_on_the_way_are_spread_evenly(tmp_path):
    paths = [snapshot_path(tmp_path, nimg) for nimg in range(10, 90, 10)]
    for path in paths:
        path.touch()
    assert snapshots_before(paths[6], 3) == [paths[0], paths[2], paths[4]]
    assert snapshots_before(paths[2], 9) == paths[:2] and snapshots_before(paths[0], 4) == []


def test_heads_of_the_first_seed_are_shown(tmp_path):
    for folder, seed in (('a', 1), ('b', 0), ('c', 0)):
        (tmp_path / folder).mkdir()
        save_png(tmp_path / folder / 'strip000002000.png', np.full((8, 40, 3), 50 * seed, np.uint8))
    made = {tmp_path / 'a': record('pv3d', 1, 1.0), tmp_path / 'b': record('pv3d', 0, 1.0)}
    made[tmp_path / 'c'] = record('early', 0, 1.0)
    strips = gallery.strips_of(made)
    assert list(strips.items()) == [
        (r, tmp_path / f / 'strip000002000.png') for r, f in (('pv3d', 'b'), ('early', 'c'))
    ]
    assert gallery.draw_heads(strips).shape == (16, 40 + 8 * 5 + 8, 3)


def test_courses_need_points_on_the_way():
    records = [record('pv3d', 0, 3.0), record('early', 0, 4.0)]
    assert gallery.draw_courses(records).shape[2] == 3
    for r in records:
        r['course']['points'] = r['course']['points'][1:]
    assert gallery.draw_courses(records) is None


def test_what_is_not_allowed():
    base = ['2a', '--preset', 'tiny', '--data', 'x.zip', '--outdir', 'o']
    for more in ([], ['--kimg', '1', '--minutes', '1']):
        assert 'give --kimg or --minutes' in CliRunner().invoke(run.main, [*base, *more]).output
    for part in ('3/2', '0/1', 'a', '1/'):
        with pytest.raises(UserError, match='I/N'):
            run.parse_part(part)
    assert run.parse_part('2/3') == (2, 3)


def test_rows_are_chosen_by_name():
    options = run.Options(table='2', preset='tiny', data='x', outdir=ROOT, rows='late, pv3d')
    assert list(run.chosen_rows(options)) == ['late', 'pv3d']
    with pytest.raises(UserError, match='nose'):
        run.chosen_rows(run.Options(table='2a', preset='tiny', data='x', outdir=ROOT, rows='nose'))


def test_walk_is_trained_after_the_static_network(data, tmp_path):
    """Whose loss sees one frame of a clip, as in the preset study; a walk sees all of them."""
    args = ['1', '--preset', 'tiny', '--data', data, '--outdir', str(tmp_path), '--seeds', '0']
    args += ['--rows', 'eg3d_mcg', '--metrics', 'motion2', '--kimg', '0.002', '--device', 'cpu']
    args += ['--set', 'batch=2,loss.image_frames=1']
    assert CliRunner().invoke(run.main, args, catch_exceptions=False).exit_code == 0
    found = {r['row']: r for r in report.collected(tmp_path).values()}
    assert {name: (r['clips'], r['frames']) for name, r in found.items()} == {
        'eg3d_static': (2, 2),
        'eg3d_mcg': (4, 64),
    }
