"""Training with images compared: rows, who appears, and whose heads move."""

import dataclasses
import functools

import numpy as np
import pytest

from dnnlib.util import UserError
from heads.dataset import HeadSet, write_dataset
from studies import joint_rows
from studies.arms import NEWEST, read_results, run_arm
from studies.comparison import compare
from studies.joint_rows import Data, make_tasks, moving_rows, people_rows
from studies.measure import Settings, Sizes
from studies.truth import TIMES, Amounts
from training.presets import tiny
from training.run_folder import write_options

SIZE = 32
SHAPE = len(TIMES), 3, 3, SIZE, SIZE


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """Clips of two people, and images of two others."""
    folder = tmp_path_factory.mktemp('sets')
    for name, seed in (('clips', 1), ('images', 2)):
        heads = HeadSet(people=2, motions=1, frames=16, resolution=SIZE, focal=7, seed=seed)
        write_dataset(folder / f'{name}.zip', heads, 1, False)
    return Data(str(folder / 'clips.zip'), str(folder / 'images.zip'))


def test_rows_are_trained_and_measured(small, sets, tmp_path, monkeypatch):
    base, outdir = tmp_path / 'training_options.json', tmp_path / 'out'
    write_options(tmp_path, dataclasses.replace(tiny(sets.clips), batch=4, output=small.output))
    amounts = Amounts(people=2, motions=2, portraits=2, pairs=2)
    monkeypatch.setattr(joint_rows, 'load_truth', functools.partial(joint_rows.load_truth, amounts=amounts))
    monkeypatch.setattr(joint_rows, '_CODES', 3)
    settings = Settings(sizes=Sizes(seeds=4), cache=tmp_path)
    with pytest.raises(UserError, match='2 people of --images are in --data'):
        make_tasks(str(base), Data(sets.clips, sets.clips), (0,), outdir, settings, 1.0)
    tasks = make_tasks(str(base), sets, (0,), outdir, settings, 1.0)
    configs = [task.arm.config for task in tasks]
    assert [config.images.path for config in configs] == [None, sets.images, None]
    first = tasks[2].before.arm
    assert first.config.dataset.path == sets.images and first.config.generator.motion.num_layers == 0
    assert configs[2].resume == str(first.folder / NEWEST) and configs[2].generator.motion.learned_weight
    assert run_arm(tasks[2]) == '' and run_arm(tasks[1]) == ''
    assert read_results(first.folder, 'table.json')['clips'] > 0
    text = compare([tasks[1].arm, tasks[2].arm]).text
    assert 'people of the images that appear' in text and 'heads of the clips: fmd' in text


def test_people_are_counted_by_set():
    share, images, clips = people_rows(np.array([0, 0, 2, 5, 5, 5, 5, 5]), (4, 2))
    assert (share.network.value, images.network.value, clips.network.value) == (3 / 8, 2 / 4, 1 / 2)


def test_motion_is_that_of_the_chosen_heads(monkeypatch):
    rng = np.random.default_rng(0)
    real, grid = (rng.normal(size=(4, 4, *SHAPE)).astype(np.float32) for _ in range(2))
    grid[2:] = grid[2:, :1, :1] + 1e-3 * grid[2:]  # these heads hardly move
    monkeypatch.setattr(joint_rows, '_LEAST', 2)
    moving, still = (
        {
            row.name: row.network.value
            for row in moving_rows('shown', real, grid, np.isin(np.arange(4), at), 7)
        }
        for at in ((0, 1), (2, 3))
    )
    name = 'heads shown: z_m-specific motion, sd over that of the data'
    assert moving[name] == pytest.approx(1, abs=0.1) and still[name] == pytest.approx(0, abs=0.1)
    rows = moving_rows('shown', real, grid, np.arange(4) == 0, 7)
    assert all(np.isnan(row.network.value) for row in rows)  # one head says nothing
