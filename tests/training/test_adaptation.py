"""Adaptive augmentation in runs of a few steps: what moves the probability, and that resuming is exact."""

import dataclasses
import json

import pytest
import torch

from dnnlib.config import override
from dnnlib.util import ConfigError
from support.small_runs import assert_same, everything, new_trainer, train
from training import adaptation
from training.augment import AugmentConfig
from training.data.dataset import batches
from training.walk_loss import WalkLoss


@pytest.fixture
def adaptive(small):
    """A run that changes the probability at iterations 0 and 4 of 6, by 8 / 40."""
    augment = AugmentConfig(probability=0.4, target=0.5, ramp_nimg=40)
    dataset = dataclasses.replace(small.dataset, heldout_clips=2)
    return dataclasses.replace(small, dataset=dataset, augment=augment)


def test_stop_and_resume_is_the_same_run(adaptive, tmp_path):
    whole = train(adaptive, tmp_path / 'whole')
    for nimg in (2, 12):  # stops before the second change
        parts = train(adaptive, tmp_path / 'parts', until=nimg)
        if nimg == 2:
            assert abs(parts.progress.augment - 0.4) == pytest.approx(0.2)
    assert_same(everything(parts), everything(whole))
    text = (tmp_path / 'whole' / 'stats.jsonl').read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]['Progress/augment'] == pytest.approx(whole.progress.augment)
    measured = [sorted(n for n in line if n.startswith('Loss/overfitting/')) for line in lines]
    both = ['Loss/overfitting/image', 'Loss/overfitting/video']
    assert measured == [both, [], both]  # ticks of two iterations


@pytest.mark.parametrize(('measured', 'expected'), [(0.9, 0.6), (0.1, 0.2)])
def test_the_worst_discriminator_decides(adaptive, tmp_path, monkeypatch, measured, expected):
    values = iter([0.05, measured])
    monkeypatch.setattr(adaptation, 'overfitting', lambda train, heldout, fake: next(values))
    assert train(adaptive, tmp_path, until=2).progress.augment == pytest.approx(expected)


def test_scores_are_of_held_out_clips_before_the_step(adaptive, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(adaptation, 'overfitting', lambda *scores: seen.append(scores) or 0.0)
    trainer = new_trainer(adaptive, tmp_path)
    held = trainer.dataset.heldout()
    assert not set(held.names) & set(trainer.dataset.names) and len(held) == 2
    train(adaptive, tmp_path, until=2)
    assert len(seen) == 2 and len({score for scores in seen for score in scores}) == 6


def test_fixed_probability_stays_and_needs_no_held_out_clips(small, tmp_path):
    config = dataclasses.replace(small, augment=AugmentConfig(probability=0.3))
    assert train(config, tmp_path, until=4).progress.augment == 0.3
    with pytest.raises(ConfigError, match='set dataset.heldout_clips'):
        dataclasses.replace(small, augment=AugmentConfig(target=0.3))


def test_held_out_clips_are_drawn_apart(adaptive, tmp_path):
    """Else the window of a clip that is held out would follow that of the clip trained on at its place."""
    trainer = new_trainer(adaptive, tmp_path)
    held = trainer.dataset.heldout()
    draw, like = next(trainer._adaptation._draws), next(batches(held, seed=adaptive.seed, start=0, batch=2))
    assert not torch.equal(draw['t'], like['t'])


def test_a_loss_that_augments_nothing_is_refused(small):
    walk = override(small, {'generator.motion.num_layers': '0'})
    for option in ({'augment.probability': '0.2'}, {'augment.target': '0.6', 'dataset.heldout_clips': '2'}):
        with pytest.raises(ConfigError, match='no effect on the loss walk'):
            dataclasses.replace(override(walk, option), loss=WalkLoss.Config())
