"""Progress of long work: lines in log files, a bar on terminals."""

import re
import sys
from unittest import mock

import pytest

from dnnlib import progress


def test_a_log_file_gets_lines_now_and_then(monkeypatch, capsys):
    clock = mock.Mock(side_effect=range(0, 1000, 20))  # each look at it is 20 s later
    monkeypatch.setattr(progress.time, 'monotonic', clock)
    with progress.progress(6, 'real videos', 'record', 'fvd, kid') as count:
        for _ in range(6):
            count(1)
    out, err = capsys.readouterr()
    assert not out and '\r' not in err
    first, *more, last = err.splitlines()
    assert first == 'real videos (fvd, kid): 0/6 records' and last == 'real videos: 6/6 records'
    assert 1 <= len(more) < 5 and all(line.startswith('real videos: ') for line in more)
    assert all(re.fullmatch(r'real videos: \d/6 records, [\dm s]+ left', line) for line in more)


def test_short_work_is_two_lines_at_most_and_a_failure_claims_no_end(capsys):
    with progress.progress(2, 'views', 'item', 'cd') as count:
        count(2)
    assert list(progress.follow('abc', 3, 'clips', 'clip')) == ['a', 'b', 'c']
    with pytest.raises(KeyError), progress.progress(9, 'videos', 'item', 'id') as count:
        count(1)
        raise KeyError
    assert capsys.readouterr().err.splitlines() == [
        'views (cd): 0/2 items',
        'views: 2/2 items',
        'videos (id): 0/9 items',
    ]


def test_a_terminal_gets_a_bar_and_other_processes_nothing(monkeypatch, capsys):
    with progress.progress(2, 'views', 'item', shown=False) as count:
        count(2)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    with progress.progress(2, 'views', 'item', 'details') as count:
        count(2)
    shown = capsys.readouterr().err
    assert '2/2' in shown and '\r' in shown and 'details' not in shown
    with progress.progress(2, 'views', 'item', after_sec=60) as count:
        count(2)
    assert '2/2' not in capsys.readouterr().err
