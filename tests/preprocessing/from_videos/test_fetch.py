"""Fetching, with stand-ins for YouTube: a function, and if yt-dlp is installed a server on this machine."""

import functools
import http.server
import threading
from pathlib import Path

import pytest

from dnnlib.util import UserError
from preprocessing.from_videos import fetch as fetching
from preprocessing.from_videos.fetch import fetch, fetched, youtube
from preprocessing.from_videos.stages import StageError, run_stage
from support.videos import pictures, write_video


def stand_in(calls, video, folder):
    """Writes a file, as yt-dlp would; some videos are gone, for one the network fails."""
    calls.append(video)
    if video == 'gone0':
        raise StageError('the video cannot be fetched: Private video')
    if video == 'later':
        raise StageError('the video cannot be fetched: timed out', retry=True)
    if video != 'lost0':
        (folder / f'{video}.webm').write_bytes(b'x')


def test_what_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / 'own00.mov').touch()
    (tmp_path / 'half0.mp4.part').touch()
    calls, ids = [], ['own00', 'half0', 'gone0', 'later', 'lost0']

    def run():
        work = functools.partial(
            fetch, folder=tmp_path, fetch_one=functools.partial(stand_in, calls), pause_sec=0
        )
        return run_stage('fetch', tmp_path / 'w', ids, {i: 1 for i in ids}, work, 1)

    results = run()
    assert calls == ['half0', 'gone0', 'later', 'lost0']
    assert (
        results['own00']['path'] == str(tmp_path / 'own00.mov')
        and fetched('half0', tmp_path).suffix == '.webm'
    )
    assert set(results.rejected) == {'gone0', 'later', 'lost0'} and 'Private' in results.rejected['gone0']
    calls.clear()
    run()
    assert calls == ['later', 'lost0']  # what is gone for good is remembered


def test_pause_follows_a_fetch_only(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetching.time, 'sleep', pauses.append)
    for _ in range(2):
        fetch('abcde', tmp_path, functools.partial(stand_in, []))
    assert pauses == [fetching.PAUSE_SEC]


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'yt_dlp', None)
    with pytest.raises(UserError, match=r"--download needs yt-dlp: pip install -e '.\[download\]'"):
        youtube('abcdefghijk', tmp_path)


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
    assert fetching.is_gone(message) == gone


@pytest.fixture
def server(tmp_path):
    (tmp_path / 'www').mkdir()
    write_video(tmp_path / 'www' / 'abcdefghijk.mp4', pictures(12))

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
    (tmp_path / 'videos').mkdir()
    one = functools.partial(youtube, address=server)
    path = fetch('abcdefghijk', tmp_path / 'videos', one, 0)['path']
    assert path == str(tmp_path / 'videos' / 'abcdefghijk.mp4')
    assert (tmp_path / 'www' / 'abcdefghijk.mp4').read_bytes() == Path(path).read_bytes()
    with pytest.raises(StageError, match='cannot be fetched.*404') as caught:
        fetch('missing', tmp_path / 'videos', one, 0)
    assert not caught.value.retry
    with pytest.raises(StageError, match='cannot be fetched') as caught:
        youtube('abcdefghijk', tmp_path / 'x', 'http://127.0.0.1:9/{}.mp4')
    assert caught.value.retry and '\x1b' not in caught.value.reason
