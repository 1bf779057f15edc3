"""Videos as frames: decoding with ffmpeg, and finding clips (video files, folders of pictures) in a folder.

numpy and imageio_ffmpeg alone: the processes that pack a data set start quickly without torch.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from dnnlib.util import UserError

VIDEO_TYPES = ('.mp4', '.mov', '.mkv', '.avi', '.webm', '.m4v')
PICTURE_TYPES = ('.png', '.jpg', '.jpeg', '.webp')


class VideoError(UserError):
    """A video that cannot be decoded; the message does not repeat its name, which the caller knows."""


def video_frames(path: Path | str, start_sec: float = 0.0) -> Iterator[tuple[np.ndarray, float]]:
    """Decodes a video file, frame by frame as they are stored (none is doubled or dropped).

    The same file gives the same bits everywhere with one version of ffmpeg. Whoever stops early closes the
    iterator (or lets go of it), which ends the decoder.

    Args:
        path: the file.
        start_sec: frames before this time are skipped, quickly where the file has an index.

    Yields:
        picture, uint8 RGB [H, W, 3] (read-only), and the frame rate of the file.

    Raises:
        VideoError: when the file cannot be decoded. One that was cut short in the middle ends early instead.
    """
    exact = ['-fps_mode', 'passthrough', '-sws_flags', 'lanczos+accurate_rnd+full_chroma_int']
    begin = ['-threads', '1'] + (['-ss', f'{start_sec:.6f}'] if start_sec > 0 else [])
    reader = imageio_ffmpeg.read_frames(str(path), input_params=begin, output_params=exact)
    try:
        meta = next(reader)
        width, height = meta['size']
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3), float(meta['fps'])
    except (OSError, RuntimeError, ValueError, LookupError, StopIteration) as error:
        raise VideoError(
            'the video cannot be decoded; it is broken, cut short, or of an unknown kind'
        ) from error
    finally:
        reader.close()


def find_clips(root: Path) -> Iterator[Path]:
    """Finds video files and folders that hold pictures; loose pictures in the root are no clip."""
    for path in root.rglob('*'):
        if path.is_dir():
            if any(p.suffix.lower() in PICTURE_TYPES for p in path.iterdir()):
                yield path
        elif path.suffix.lower() in VIDEO_TYPES:
            yield path


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which frame2 comes before frame10."""
    parts = re.split(r'([0-9]+)', name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
