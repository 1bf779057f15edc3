"""Videos as frames: decoding with ffmpeg, and finding clips (video files, folders of pictures) in a folder.

numpy and imageio_ffmpeg alone: the processes that pack a data set start quickly without torch.
"""

import contextlib
import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from dnnlib.util import UserError, atomic_write

VIDEO_TYPES = ('.mp4', '.mov', '.mkv', '.avi', '.webm', '.m4v')
VIDEO_SUFFIXES = ('.mp4', '.gif')  # that are written
PICTURE_TYPES = ('.png', '.jpg', '.jpeg', '.webp')


_UNDECODABLE = 'the video cannot be decoded; it is broken, cut short, or of an unknown kind'
_MAX_LOG = 1 << 20  # bytes of what the decoder says that are looked at
_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)  # as good as broken
_TRANSIENT = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC)  # of the decoder


class SystemTrouble(UserError):
    """A file could not be read though it may be good: memory, open files, the disk, permissions."""


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
        SystemTrouble: when the machine could not do it, with this file or any other.
    """
    exact = '-fps_mode passthrough -sws_flags lanczos+accurate_rnd+full_chroma_int'
    coding = f'-pix_fmt rgb24 -c:v ppm -f image2pipe {exact}'  # ppm: each frame tells its size
    options = '-nostdin -hide_banner -nostats -threads 1'
    begin = f' -ss {start_sec:.6f}' if start_sec > 0 else ''
    with _naming_trouble(path), contextlib.ExitStack() as stack:
        _check_readable(path)
        log = stack.enter_context(tempfile.TemporaryFile())
        decoder = subprocess.Popen(
            [
                imageio_ffmpeg.get_ffmpeg_exe(),
                *(options + begin).split(),
                '-i',
                f'file:{path}',
                '-map',
                '0:V:0',  # the stream that `examine` counts
                *coding.split(),
                '-',
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is for us, who then end it
        )
        stack.enter_context(decoder)
        stack.callback(decoder.kill)
        rate = None
        while (picture := _read_ppm(decoder.stdout)) is not None:
            rate = rate or _frame_rate(_text(log))
            yield picture, rate
        _check_end(decoder.wait(), _text(log), rate is not None)


def is_system_trouble(error: BaseException | None) -> bool:
    """Tells whether an error lies with the machine at this moment, not with what a file holds or lacks."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING
    )


@contextlib.contextmanager
def _naming_trouble(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SystemTrouble(f'cannot decode {path}: {what or "out of memory"}') from error


def _check_readable(path: Path | str) -> None:
    try:
        open(path, 'rb').close()
    except OSError as error:
        if is_system_trouble(error):
            raise
        raise VideoError(_UNDECODABLE) from error


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """Reads a picture of a stream, or None when it has ended, in the middle of one too."""
    magic, size, _ = (stream.readline() for _ in range(3))
    if magic != b'P6\n':
        return None
    width, height = map(int, size.split())
    data = stream.read(width * height * 3)
    complete = len(data) == width * height * 3
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if complete else None


def _frame_rate(log: str) -> float:
    """Returns what ffmpeg says of the video in its input, 0 when it does not know."""
    match = re.search(r'Stream #0.*?: Video: .*?, ([0-9.]+)(k?) fps', log)
    return float(match[1]) * (1000 if match[2] else 1) if match else 0.0


def _text(log: IO[bytes]) -> str:
    return os.pread(log.fileno(), _MAX_LOG, 0).decode(errors='replace')


def _check_end(code: int, log: str, any_frames: bool) -> None:
    """Raises unless the decoder ended as it should; `code` is its exit status."""
    if code < 0:
        raise OSError(errno.ENOMEM, f'the decoder was killed by signal {-code}')
    for number in _TRANSIENT:
        if code and os.strerror(number) in log:
            raise OSError(number, os.strerror(number))
    if not any_frames:
        raise VideoError(_UNDECODABLE)


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


@contextlib.contextmanager
def open_video(path: Path | str, fps: float = 25, crf: int = 15) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens an .mp4 (H.264, yuv420p, BT.709) or .gif file; yields a function that appends a frame [H, W, 3].

    The file appears under its name when the block ends well, and not at all otherwise. Odd sizes are padded
    by repeating the last row and column, because yuv420p needs even ones.

    Args:
        path: file to write; its suffix chooses the format.
        fps: frames per second.
        crf: H.264 constant rate factor, 0 = no loss but the colour subsampling, 51 = worst; unused for gif.

    Raises:
        UserError: when the file cannot be written, for example on a full disk.
    """
    if Path(path).suffix not in VIDEO_SUFFIXES:
        raise ValueError(f'video {path} must end in one of {", ".join(VIDEO_SUFFIXES)}')
    encoder: list[subprocess.Popen[bytes]] = []  # started by the first frame, which tells the size

    def append(frame: np.ndarray) -> None:
        frame = np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode='edge')
        if not encoder:
            command = _encoder_command(frame.shape[1], frame.shape[0], Path(path).suffix, fps, crf)
            pipe = subprocess.PIPE
            command.append(file.name)
            # a session of its own: Ctrl-C in a terminal is for us, who then finish the file
            process = subprocess.Popen(command, stdin=pipe, stderr=pipe, start_new_session=True)
            encoder.append(process)
        try:
            encoder[0].stdin.write(np.ascontiguousarray(frame))
        except BrokenPipeError:
            _close_encoder(encoder[0], path)

    with atomic_write(path) as file:
        try:
            yield append
            if not encoder:
                raise ValueError(f'video {path} has no frames')
            _close_encoder(encoder[0], path)
        finally:
            for process in encoder:
                process.kill()
                process.communicate()


def write_video(path: Path | str, frames: Iterable[np.ndarray], fps: float = 25, crf: int = 15) -> None:
    """Writes uint8 frames, an array [T, H, W, 3] or any iterable of [H, W, 3]; see open_video."""
    with open_video(path, fps, crf) as append:
        for frame in frames:
            append(frame)


def _close_encoder(encoder: subprocess.Popen[bytes], path: Path | str) -> None:
    _, errors = encoder.communicate()
    if encoder.returncode:
        reason = errors.decode(errors='replace').strip().splitlines() or ['no reason given']
        raise UserError(f'cannot write {path}: the video encoder stopped ({reason[-1]}); is the disk full?')


def _encoder_command(width: int, height: int, suffix: str, fps: float, crf: int) -> list[str]:
    source = f'-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i -'
    if suffix == '.gif':
        coding = '-filter_complex [0:v]split[a][b];[a]palettegen[p];[b][p]paletteuse -f gif'
    else:
        # tags and conversion agree, so that every player shows the colours that went in
        tags = '-colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv'
        filters = 'scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd,format=yuv420p'
        # one thread and no version strings: the same frames give the same bytes
        exact = '-threads 1 -fflags +bitexact -flags:v +bitexact -movflags +faststart'
        coding = f'-vf {filters} -c:v libx264 -crf {crf} {tags} {exact} -f mp4'
    return [imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error', *source.split(), *coding.split()]
