"""Fetching, with stand-ins for YouTube: a function, and if yt-dlp is installed a server on this machine."""

import functools
import http.server
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dnnlib.util import Skip, UserError
from preprocessing.from_videos import fetch as fetching
from preprocessing.from_videos.fetch import fetch_stage, fetched, youtube
from preprocessing.from_videos.stages import Item, TryAgain, run_stage, stage_key
from preprocessing.from_videos.work_folder import WorkFolder
from support.videos import ramps, write_video


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    """Some videos are gone, for one the network fails; a pause follows a fetch only."""
    (tmp_path / 'own00.mov').touch()
    (tmp_path / 'half0.mp4.part').touch()
    calls, pauses, ids = [], [], ['own00', 'half0', 'gone0', 'later', 'lost0']

    def stand_in(video, folder):
        calls.append(video)
        if video == 'gone0':
            raise Skip('the video cannot be fetched: Private video')
        if video == 'later':
            raise TryAgain('the video cannot be fetched: timed out')
        if video != 'lost0':
            Path(folder, f'{video}.webm').write_bytes(b'x')

    monkeypatch.setattr(fetching, 'youtube', stand_in)
    monkeypatch.setattr(fetching.time, 'sleep', pauses.append)
    work, options = WorkFolder(tmp_path / 'w'), SimpleNamespace(source=str(tmp_path), download=True)
    items = [Item(video, work, {}) for video in ids]
    tasks = [(item, stage_key(fetch_stage.stage, item, (), options)) for item in items]
    results = run_stage(fetch_stage, work, tasks, options)
    assert calls == ['half0', 'gone0', 'later', 'lost0'] and pauses == [fetching.PAUSE_SEC] * 2
    assert results['own00']['path'] == str(tmp_path / 'own00.mov')
    assert fetched('half0', tmp_path) == str(tmp_path / 'half0.webm')
    assert set(results.rejected) == {'gone0', 'later', 'lost0'} and 'Private' in results.rejected['gone0']
    calls.clear()
    run_stage(fetch_stage, work, tasks, options)
    assert calls == ['later', 'lost0']  # what is gone for good is remembered


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'yt_dlp', None)
    with pytest.raises(UserError, match=r"--download needs yt-dlp: pip install -e '.\[download\]'"):
        youtube('abcdefghijk', str(tmp_path))


@pytest.mark.parametrize(
    'message, gone',
    [
        ('ERROR: [youtube] abc: Private video. Sign in if', True),
        ('ERROR: [youtube] abc: Video unavailable', True),
        ('HTTP Error 404: Not Found', True),
        ('HTTP Error 503: Service Unavailable', False),
        ('Unable to download webpage: timed out', False),
        ('<urlopen error [Errno 111] Connection refused>', False),
    ],
)
def test_gone_or_later(message, gone):
    assert bool(fetching.GONE.search(message)) == gone


@pytest.fixture
def server(tmp_path):
    (tmp_path / 'www').mkdir()
    write_video(tmp_path / 'www' / 'abcdefghijk.mp4', ramps(12))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / 'www'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}/{{}}.mp4'
        httpd.shutdown()


def test_yt_dlp(tmp_path, server):
    pytest.importorskip('yt_dlp')
    youtube('abcdefghijk', str(tmp_path / 'videos'), server)
    path = fetched('abcdefghijk', tmp_path / 'videos')
    assert path == str(tmp_path / 'videos' / 'abcdefghijk.mp4')
    assert (tmp_path / 'www' / 'abcdefghijk.mp4').read_bytes() == Path(path).read_bytes()
    with pytest.raises(Skip, match='cannot be fetched.*404') as caught:
        youtube('missing', str(tmp_path / 'videos'), server)
    assert not isinstance(caught.value, TryAgain)
    with pytest.raises(TryAgain, match='cannot be fetched') as caught:
        youtube('abcdefghijk', str(tmp_path / 'x'), 'http://127.0.0.1:9/{}.mp4')
    assert '\x1b' not in str(caught.value)
