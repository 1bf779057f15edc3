"""The progress line: speed, and the time that is left."""

import dataclasses
import math
import re
import time

import pytest
import torch

from torch_utils.training_stats import Moments
from training.batching import Progress
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
