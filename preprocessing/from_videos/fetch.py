"""Fetches the videos of a public list from YouTube with yt-dlp (`pip install -e '.[download]'`).

The highest resolution, one video at a time with a pause after it. A video that is there is not fetched again,
a partial download is continued. A video that is gone for good (private, removed) is remembered as such; one
that a failing network kept away is tried again by the next run.
"""

import logging
import re
import time
from pathlib import Path
from typing import Any

from dnnlib.util import Skip, UserError
from dnnlib.video import VIDEO_TYPES, ffmpeg_path
from preprocessing.from_videos.stages import Item, Stage, TryAgain

ADDRESS = 'https://www.youtube.com/watch?v={}'
PAUSE_SEC = 2.0  # after each video

GONE = re.compile(  # messages of yt-dlp about videos that will not come back
    r'private|removed|video unavailable|not available|terminated|copyright|deleted|your age|members|'
    r'HTTP Error 4(?:04|10)',
    flags=re.I,
)


def fetched(video: str, folder: str) -> str | None:
    """Returns the file of a video in a folder, none if it is missing: named by its id, any video suffix."""
    found = [path for suffix in VIDEO_TYPES if (path := Path(folder, video + suffix)).is_file()]
    return str(found[0]) if found else None


def _holds(item: Item, options: Any, result: dict[str, Any]) -> bool:
    """Returns whether the folder still fits the result: people remove files, or bring them by hand."""
    return result.get('path') == fetched(item.name, options.source)


@Stage('fetch', per='id', options=('download',), paths=('source',), here=True, facts=('path',), holds=_holds)
def fetch_stage(item: Item, options: Any) -> dict[str, Any]:
    """Finds a listed video in the folder of the videos, or fetches it; returns {"path": file}."""
    path = fetched(item.name, options.source)
    if path is None:
        if not options.download:
            raise TryAgain('not in the folder of --source: --download fetches what is missing')
        youtube(item.name, options.source)
        time.sleep(PAUSE_SEC)
        path = fetched(item.name, options.source)
    if path is None:
        raise TryAgain('the video was not fetched, and no reason was given')
    return {'path': path}


def youtube(video: str, folder: str, address: str = ADDRESS) -> None:
    """Fetches one video with yt-dlp.

    Args:
        video: its id; the file is named by it.
        folder: where to; made when missing.
        address: of the video, with {} for the id.

    Raises:
        Skip: if the video is gone.
        TryAgain: if it cannot be fetched now.
        UserError: if yt-dlp is not installed.
    """
    try:
        import yt_dlp
    except ImportError as err:
        raise UserError("--download needs yt-dlp: pip install -e '.[download]'") from err
    name = str(Path(folder, video)).replace('%', '%%')
    options = {
        'format': 'bestvideo*/best',
        'format_sort': ['res', 'fps', 'vcodec:h264'],
        'outtmpl': {'default': f'{name}.%(ext)s'},
        'ffmpeg_location': ffmpeg_path(),
        'continuedl': True,
        'noplaylist': True,
        'retries': 3,
        'quiet': True,
        'noprogress': True,
        'no_warnings': True,
        'logger': logging.Logger('yt_dlp', logging.CRITICAL),  # silent: what matters comes as an exception
    }
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            downloader.download([address.format(video)])
    except yt_dlp.utils.YoutubeDLError as err:
        reason = re.sub(r'\x1b\[[0-9;]*m|^ERROR:\s*|\[\S+\] (?:\S+: )?', '', str(err)).strip().split('\n')[0]
        raise (Skip if GONE.search(reason) else TryAgain)(f'the video cannot be fetched: {reason}') from err
