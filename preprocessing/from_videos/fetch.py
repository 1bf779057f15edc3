"""Fetches the videos of a public list from YouTube with yt-dlp (`pip install -e '.[download]'`).

The highest resolution, one video at a time with a pause behind it. What is there already is not fetched
again, what was half fetched is continued. A video that is gone for good (private, removed) is remembered as
such; one that a failing network kept away is tried again by the next run.
"""

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dnnlib.util import UserError
from dnnlib.video import VIDEO_TYPES, ffmpeg_path
from preprocessing.from_videos.stages import StageError
from preprocessing.from_videos.work_folder import read_json

ADDRESS = 'https://www.youtube.com/watch?v={}'
PAUSE_SEC = 2.0  # behind each video

_GONE = re.compile(
    r'private|removed|video unavailable|not available|terminated|copyright|deleted|your age|members|'
    r'HTTP Error 4(?:04|10)',
    flags=re.I,
)


def fetched(video: str, folder: Path) -> Path | None:
    """Returns the file of a video in a folder, none if it is not there: named by its id, any video suffix."""
    found = [path for suffix in VIDEO_TYPES if (path := folder / (video + suffix)).is_file()]
    return found[0] if found else None


def forget_changed(results: Path, videos: Iterable[str], folder: Path) -> None:
    """Removes results of stage `fetch` that the folder of the videos denies.

    Those of files that are not there any more, and rejections of videos that somebody has brought since.

    Args:
        results: folder of the results.
        videos: ids.
        folder: where videos are kept.
    """
    for video in videos:
        result, found = results / f'{video}.json', fetched(video, folder)
        if result.exists() and read_json(result).get('path') != (None if found is None else str(found)):
            result.unlink()


def fetch(
    video: str, folder: Path, fetch_one: Callable[[str, Path], None], pause_sec: float = PAUSE_SEC
) -> dict[str, Any]:
    """Fetches one video into a folder unless it is there; the work of stage `fetch`.

    Args:
        video: its id.
        folder: where videos are kept.
        fetch_one: fetches a video into the folder as id.suffix; `youtube` outside tests.
        pause_sec: how long to wait after a fetch.

    Returns:
        {"path": file}.

    Raises:
        StageError: if it cannot be had.
    """
    path = fetched(video, folder)
    if path is None:
        fetch_one(video, folder)
        time.sleep(pause_sec)
        path = fetched(video, folder)
    if path is None:
        raise StageError('the video was not fetched, for no reason that was told', retry=True)
    return {'path': str(path)}


def youtube(video: str, folder: Path, address: str = ADDRESS) -> None:
    """Fetches one video with yt-dlp.

    Args:
        video: its id; the file is named by it.
        folder: where to.
        address: of the video, with {} for the id.

    Raises:
        StageError: if the video is gone, or cannot be had now.
        UserError: if yt-dlp is not installed.
    """
    try:
        import yt_dlp
    except ImportError as err:
        raise UserError("--download needs yt-dlp: pip install -e '.[download]'") from err
    options = {
        'format': 'bestvideo*/best',
        'format_sort': ['res', 'fps', 'vcodec:h264'],
        'outtmpl': {
            'default': str(folder / (video + '.%(ext)s')).replace('%', '%%').replace('%%(ext)', '%(ext)')
        },
        'ffmpeg_location': ffmpeg_path(),
        'continuedl': True,
        'noplaylist': True,
        'retries': 3,
        'quiet': True,
        'noprogress': True,
        'no_warnings': True,
        'logger': _Silent(),
    }
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            downloader.download([address.format(video)])
    except yt_dlp.utils.YoutubeDLError as err:
        reason = re.sub(r'\x1b\[[0-9;]*m|^ERROR:\s*|\[\S+\] (?:\S+: )?', '', str(err)).strip().split('\n')[0]
        raise StageError(f'the video cannot be fetched: {reason}', retry=not is_gone(reason)) from err


def is_gone(message: str) -> bool:
    """Tells whether a message of yt-dlp says that a video will not come back."""
    return _GONE.search(message) is not None


class _Silent:
    """Takes the messages of yt-dlp; what matters comes as an exception."""

    def debug(self, message: str) -> None:
        """Drops it."""

    warning = error = debug
