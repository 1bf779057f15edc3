"""The progress line: speed, and the time that is left."""

import dataclasses
import math
import re
import time

import pytest
import torch

from torch_utils.training_stats import Moments
from training.batching import Progress
from training.data.dataset import KilledWorkerError
from training.presets import PRESETS
from training.reporting import Reporter


@pytest.mark.parametrize(
    ('tick_nimg', 'minutes', 'speed', 'left'),
    [
        (8, math.inf, '125.0', '4s'),  # 32 clips to go
        (8, 1, '125.0', '4s'),
        (8, 0.05, '125.0', '3s'),
        (8, -1, '125.0', '0s'),
        (0, 1, '-', '1m 00s'),
        (0, math.inf, '-', 'unknown'),
    ],
)
def test_time_left_ends_with_the_clips_or_the_minutes(tmp_path, capsys, tick_nimg, minutes, speed, left):
    config = dataclasses.replace(PRESETS['tiny']('d.zip'), total_nimg=40)
    reporter = Reporter(tmp_path, config, 25.0, torch.device('cpu'), 0, time.time() + 60 * minutes)
    reporter.report(Progress(cur_nimg=8), {'Probe/video/see_motion': Moments(0.25, 0.0, 1)}, tick_nimg, 1.0)
    out = capsys.readouterr().out
    assert re.search(rf' s/kimg {speed} +see_motion 0.250 +left {left} +mem ', out)


def test_where_no_bar_is_the_first_line_is_announced_once(tmp_path, capsys):
    config = dataclasses.replace(PRESETS['tiny']('d.zip'), total_nimg=40)
    config = dataclasses.replace(config, output=dataclasses.replace(config.output, tick_nimg=20))
    reporter = Reporter(tmp_path, config, 25.0, torch.device('cpu'), 4, math.inf)
    for nimg, elapsed in ((8, 50), (12, 100), (16, 150)):
        reporter.advance(4, nimg, elapsed)
    text = '8 clips in 1m 40s; a line comes every 0.02 kimg, the first in 1m 40s\n'
    assert capsys.readouterr().out == text
    reporter = Reporter(tmp_path, config, 25.0, torch.device('cpu'), 16, math.inf)
    reporter.report(Progress(cur_nimg=20), {}, 4, 50)
    capsys.readouterr()
    reporter.advance(4, 24, 100)
    assert capsys.readouterr().out == ''


def test_a_first_line_that_is_due_or_beyond_the_deadline_is_not_promised(tmp_path, capsys):
    config = dataclasses.replace(PRESETS['tiny']('d.zip'), total_nimg=400)
    config = dataclasses.replace(config, output=dataclasses.replace(config.output, tick_nimg=20))
    reporter = Reporter(tmp_path, config, 25.0, torch.device('cpu'), 16, time.time() + 30.5)
    reporter.advance(4, 20, 100)  # the line of 20 clips follows at once
    assert capsys.readouterr().out == ''
    reporter.advance(4, 24, 200)
    assert 'the first in 30s' in capsys.readouterr().out


def test_a_killed_data_process_ends_drawing_other_errors_do_not(tmp_path, capsys):
    reporter = Reporter(tmp_path, PRESETS['tiny']('d.zip'), 25.0, torch.device('cpu'), 0, math.inf)

    def fail(text):
        raise RuntimeError(text)

    with pytest.raises(KilledWorkerError):
        reporter.draw(lambda *_: fail('DataLoader worker (pid 1) is killed by signal: Killed.'), None, 0)
    reporter.draw(lambda *_: fail('no encoder'), None, 0)
    assert 'warning: not all images of this tick could be made: no encoder' in capsys.readouterr().out
