"""Weights & Biases through a stand-in of its package; lines of stats.jsonl of a killed session."""

import dataclasses
import io
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from dnnlib.util import UserError
from training.loggers import TensorBoard, WeightsAndBiases, make_loggers
from training.presets import PRESETS
from training.reporting import _forget_after


class Run:
    def __init__(self):
        self.summary, self.logged = {}, []

    def log(self, values, step):
        self.logged.append((step, values))


@pytest.fixture
def config():
    config = PRESETS['tiny']('d.zip')
    return dataclasses.replace(config, output=dataclasses.replace(config.output, wandb='faces'))


def test_weights_and_biases(config, tmp_path, monkeypatch):
    inits, run = [], Run()
    fake = types.SimpleNamespace(
        init=lambda **facts: inits.append(facts) or run,
        Image=lambda image: ('image', image.shape),
        Video=lambda file, format: ('video', format, Image.open(io.BytesIO(file.read())).n_frames),
    )
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    board, logger = make_loggers(tmp_path, config, 0)
    assert isinstance(board, TensorBoard)
    logger.texts({'Run/session': 'x'})
    logger.scalars({'Loss': 1.0}, 8)
    logger.image('fakes', np.zeros((4, 4, 3), np.uint8), 8)
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 4, 3), 80, np.uint8)
    logger.video('video', frames, 25.0, 8)
    logger.flush()
    assert run.summary == {'Run/session': 'x'} and [step for step, _ in run.logged] == [8] * 3
    assert [values for _, values in run.logged] == [
        {'Loss': 1.0},
        {'fakes': ('image', (4, 4, 3))},
        {'video': ('video', 'gif', 3)},
    ]
    WeightsAndBiases(tmp_path, config)  # a later session
    first, second = inits
    assert first == second and first['project'] == 'faces' and first['resume'] == 'allow'
    assert first['config']['loss.r1_gamma'] == config.loss.r1_gamma


def test_a_missing_package_is_one_sentence(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
        WeightsAndBiases(tmp_path, config)


def test_what_a_killed_session_reported_is_forgotten(tmp_path):
    path = tmp_path / 'stats.jsonl'
    _forget_after(path, 8)  # there is none yet
    lines = [json.dumps({'Progress/kimg': kimg}) + '\n' for kimg in (0.004, 0.008, 0.012)]
    path.write_text(''.join(lines) + '{"Progress/ki')
    _forget_after(path, 8)
    assert path.read_text() == ''.join(lines[:2])
