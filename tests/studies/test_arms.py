"""Runs of a comparison: which there are, what they cost, that they continue."""

import dataclasses
import json
import math

import pytest
import torch

from dnnlib.config import override
from dnnlib.util import ConfigError, UserError
from studies import arms, comparison
from studies.arms import Budget, Cost, Judge, Task
from studies.comparison import compare, summarise, write_comparison


@pytest.mark.parametrize(
    'text', ['loss.r1_gamma=1+seed=3', 'loss.r1_gamma=1,seed=3', 'loss.r1_gamma = 1+seed = 3']
)
def test_changes_are_split(text):
    assert arms.split_changes(text) == {'loss.r1_gamma': '1', 'seed': '3'}


def test_values_may_hold_signs_and_commas():
    assert arms.split_changes('a.b=8,8+c=1e+3') == {'a.b': '8,8', 'c': '1e+3'}
    with pytest.raises(UserError, match='PATH=VALUE'):
        arms.split_changes('loss.r1_gamma')


def test_base_is_a_preset_or_a_file(tmp_path, small, data):
    from training.run_folder import write_options

    write_options(tmp_path, small)
    path = tmp_path / 'training_options.json'
    assert arms.base_config(str(path), data, None).loss == small.loss
    assert arms.base_config('study', data, 'a.pkl').resume == 'a.pkl'
    for bad in ('studdy', str(tmp_path)):
        with pytest.raises(UserError, match='pv3d-128'):
            arms.base_config(bad, data, None)


def make(small, tmp_path, *changes, seeds=(0,)):
    base = dataclasses.replace(small, total_nimg=10**9)
    configs = {'base': base, **{text: override(base, arms.split_changes(text)) for text in changes}}
    return [arms.make_arm(name, seed, config, tmp_path) for seed in seeds for name, config in configs.items()]


class Counter(Judge):
    """Notes what it should measure."""

    file, device = 'table.json', torch.device('cpu')

    def __init__(self):
        self.measured = []

    def facts(self):
        return {'full': False}

    def measure(self, arm, snapshot, facts):
        self.measured.append(snapshot)
        (arm.folder / self.file).write_text(json.dumps(facts))


def test_arms_go_seed_by_seed_and_have_folders_of_their_own(small, tmp_path):
    found = make(small, tmp_path, 'loss.r1_gamma=1', seeds=(1, 0))
    assert [(a.name, a.seed) for a in found] == [
        ('base', 1),
        ('loss.r1_gamma=1', 1),
        ('base', 0),
        ('loss.r1_gamma=1', 0),
    ]
    assert len({a.folder for a in found}) == 4
    assert {a.config.loss.r1_gamma for a in found} == {1.0, small.loss.r1_gamma}
    again = make(small, tmp_path, 'loss.r1_gamma=1', 'seed=7', seeds=(1, 0))
    assert {a.folder for a in found} < {a.folder for a in again}  # more changes leave what is there


def test_bad_changes_are_refused_before_anything_is_trained(small, tmp_path):
    for change in ('loss.gamma=1', 'batch=0', 'generator.resolution=64'):
        with pytest.raises(ConfigError):
            make(small, tmp_path, change)


def test_arm_trains_to_its_budget_and_continues(small, tmp_path, monkeypatch):
    clock = iter(range(10**6))  # a second passes whenever somebody looks
    monkeypatch.setattr(arms.time, 'process_time', lambda: float(next(clock)))
    (arm,) = make(small, tmp_path)
    judge = Counter()
    task = Task(arm, Budget(seconds=12.0), judge)
    assert arms.run_arm(task) == ''
    first = arms.read_cost(arm.folder)
    assert 12 <= first.seconds <= 16 and first.clips > 0 and len(judge.measured) == 1
    assert arms.run_arm(task) == '' and arms.read_cost(arm.folder) == first and len(judge.measured) == 1
    assert arms.run_arm(task._replace(budget=Budget(seconds=20.0))) == ''  # more time: the same run continues
    second = arms.read_cost(arm.folder)
    assert second.clips > first.clips and 20 <= second.seconds <= 24
    assert judge.measured == [
        arm.folder / f'network-snapshot-{cost.clips:09d}.pkl' for cost in (first, second)
    ]


def test_arm_trains_on_equal_data(small, tmp_path):
    (arm,) = make(small, tmp_path)
    assert arms.run_arm(Task(arm, Budget(clips=3), Counter())) == ''
    assert arms.read_cost(arm.folder).clips == 4  # whole batches of 2
    assert arms.run_arm(Task(arm, Budget(clips=6), judge := Counter())) == ''
    assert judge.measured == [arm.folder / 'network-snapshot-000000006.pkl']


def test_each_process_is_prepared(small, tmp_path, monkeypatch):
    """A spawned one is not by its parent: a fifth of its time went into clearing pages, GPUs took TF32."""
    prepared = []
    monkeypatch.setattr(arms, 'prepare_process', lambda: prepared.append(True))
    (arm,) = make(small, tmp_path)
    assert arms.run_arm(Task(arm, Budget(clips=2), Counter())) == '' and prepared == [True]


def test_arm_starts_from_one_that_is_done_before(small, tmp_path):
    first, judge = make(small, tmp_path)[0], Counter()
    config = dataclasses.replace(first.config, resume=str(first.folder / arms.NEWEST))
    second = arms.make_arm('second', 0, config, tmp_path)
    task = Task(second, Budget(clips=2), judge, Task(first, Budget(clips=4), judge))
    assert arms.run_arm(task) == ''
    assert judge.measured == [
        first.folder / 'network-snapshot-000000004.pkl',
        second.folder / 'network-snapshot-000000002.pkl',
    ]
    assert 'starting from the weights of' in (second.folder / 'process.txt').read_text()


def test_arm_that_fails_says_why(small, tmp_path, monkeypatch):
    def fail(task):
        raise UserError('it has diverged')

    monkeypatch.setattr(arms, 'train_arm', fail)
    (arm,) = make(small, tmp_path)
    assert arms.run_arm(Task(arm, Budget(seconds=1.0), Counter())) == f'{arm.folder}: it has diverged'


def test_two_seeds_have_half_their_difference_as_error():
    assert summarise([1.0, 2.0], [0.1, 0.1]) == (1.5, 0.5)
    assert summarise([1.0], [0.2]) == (1.0, 0.2)
    mean, error = summarise([1.0, 1.0], [0.2, 0.2])
    assert mean == 1 and error == pytest.approx(0.2 / math.sqrt(2))
    assert summarise([1.0, 3.0], [math.nan, math.nan]) == (2.0, 1.0)


def test_comparison_marks_what_differs(small, tmp_path):
    found = make(small, tmp_path, 'loss.r1_gamma=1', 'batch=4', seeds=(0, 1))
    for arm in found[:5]:  # one is missing
        value = {'base': 0.5, 'loss.r1_gamma=1': 0.9, 'batch=4': 0.501}[arm.name] + 0.01 * arm.seed
        row = {'name': 'fmd', 'goal': '<= .2', 'percent': False, 'value': value, 'error': 0.002}
        row |= {'data': None, 'data_error': None}
        table = {**Cost(10.0, 1000)._asdict(), 'full': False, 'rows': [row]}
        (arm.folder / 'table.json').write_text(json.dumps(table))
    result = compare(found)
    line = next(line for line in result.text.splitlines() if 'fmd' in line)
    assert line.split('|')[4].strip() == '0.505 ± 0.005'
    assert line.split('|')[5].strip() == '0.905 ± 0.005 *'
    assert line.split('|')[6].strip() == '0.501 ± 0.002'
    assert '2: batch=4, seeds 0\n' in result.text and '1: loss.r1_gamma=1, seeds 0, 1\n' in result.text
    write_comparison(tmp_path, result)
    stored = json.loads((tmp_path / 'results.json').read_text())
    assert [len(arm['runs']) for arm in stored] == [2, 2, 1]
    assert (tmp_path / 'results.md').read_text() == result.text + '\n'
    assert comparison.compare([]).arms == []
