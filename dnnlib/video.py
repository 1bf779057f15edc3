"""Videos with ffmpeg, which no other module runs: read, write, probe, cut; and clips found in a folder.

A DataError means that this file is bad, an OSError that the machine failed, as with any file.
imageio_ffmpeg, which brings ffmpeg, is imported when it is used: training and images do without it.
"""

import contextlib
import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from dnnlib.util import DataError, UserError, atomic_write

VIDEO_TYPES = ('.mp4', '.mov', '.mkv', '.avi', '.webm', '.m4v')
IMAGE_TYPES = ('.png', '.jpg', '.jpeg', '.webp')

_MAX_LOG = 1 << 20  # bytes of the decoder's report that are read
_USUAL_FPS = 25.0  # where a file does not have its rate
# The path is bad, or a place in the file that a zip states (EINVAL).
_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
# Errors that a decoder only reports of the machine; EIO it also reports of files that are cut short.
_SYSTEM = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)
_SYSTEM += (errno.EACCES, errno.ESTALE)


class Overview(NamedTuple):
    """What a video file states about itself."""

    fps: float
    width: int  # pixels, as shown
    height: int
    length_sec: float  # 0 = not stated
    container: str  # ffmpeg's name of it


def ffmpeg_path() -> str:
    """Returns the program that comes with imageio_ffmpeg."""
    try:
        import imageio_ffmpeg
    except ImportError as err:
        raise UserError('videos need ffmpeg; pip install imageio-ffmpeg') from err
    return imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg_version() -> str:
    """Returns the version of ffmpeg, on which the bits of videos depend."""
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_version()


def run_ffmpeg(arguments: list[str]) -> 'subprocess.CompletedProcess[str]':
    """Runs ffmpeg to its end; the caller looks at returncode and stderr.

    Raises:
        OSError: if it cannot be started, or is killed.
    """
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    done = subprocess.run([ffmpeg_path(), *arguments], **pipes, text=True, errors='replace', check=False)
    if done.returncode < 0:
        raise OSError(errno.ENOMEM, f'killed by signal {-done.returncode}, maybe out of memory', 'ffmpeg')
    return done


def video_frames(path: Path | str, start_sec: float = 0.0) -> Iterator[tuple[np.ndarray, float]]:
    """Decodes a video file, frame by frame as they are stored (none is doubled or dropped).

    The same file gives the same bits everywhere with one version of ffmpeg. To stop early, close the iterator
    (or drop it), which ends the decoder.

    Args:
        path: the file.
        start_sec: frames before this time are skipped, quickly where the file has an index.

    Yields:
        image, uint8 RGB [H, W, 3] (read-only), and the frame rate of the file.

    Raises:
        DataError: if the file cannot be decoded; the message does not repeat its name. One that was cut short
            in the middle ends early instead.
        OSError: if the machine could not do it (memory, open files, disk, permissions).
    """
    exact = '-fps_mode passthrough -sws_flags lanczos+accurate_rnd+full_chroma_int'
    coding = f'-pix_fmt rgb24 -c:v ppm -f image2pipe {exact} -'  # ppm: each frame has its size
    begin = f' -ss {start_sec:.6f}' if start_sec > 0 else ''
    options = f'-nostdin -hide_banner -nostats -threads 1{begin} -i'
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        decoder = subprocess.Popen(
            # 0:V:0 is the stream that `frame_times` counts
            [ffmpeg_path(), *options.split(), f'file:{path}', '-map', '0:V:0', *coding.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is for us, who then end it
        )
        stack.enter_context(decoder)
        stack.callback(decoder.kill)
        rate = None
        while (image := _read_ppm(decoder.stdout)) is not None:
            rate = rate or _frame_rate(_text(log))
            yield image, rate
        problem = _system_error(decoder.wait(), _text(log))
        if problem:
            raise OSError(*problem, str(path))
        if rate is None:
            raise DataError('the video cannot be decoded; it is corrupted, cut short, or of an unknown kind')


def is_system_error(error: BaseException | None) -> bool:
    """Returns whether an error lies with the machine at this moment, not with what a file holds or lacks."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING
    )


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """Reads an image of a stream, or None when it has ended, in the middle of one too."""
    magic, size, _ = (stream.readline() for _ in range(3))
    if magic != b'P6\n':
        return None
    width, height = map(int, size.split())
    data = stream.read(width * height * 3)
    complete = len(data) == width * height * 3
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if complete else None


def _frame_rate(log: str) -> float:
    """Returns what ffmpeg reports of the video in its input, 0 when it does not know."""
    match = re.search(r'Stream #0.*?: Video: .*?, ([0-9.]+)(k?) fps', log)
    return float(match[1]) * (1000 if match[2] else 1) if match else 0.0


def _text(log: IO[bytes]) -> str:
    return os.pread(log.fileno(), _MAX_LOG, 0).decode(errors='replace')


def _system_error(code: int, log: str) -> tuple[int, str] | None:
    """Returns (errno, reason) if a decoder with this exit status was stopped by the machine."""
    if code < 0:
        return errno.ENOMEM, f'the decoder was killed by signal {-code}'
    known = ((number, os.strerror(number)) for number in _SYSTEM)
    return next(((number, text) for number, text in known if code and text in log), None)


def _run_decoder(arguments: list[str], path: Path) -> 'subprocess.CompletedProcess[str]':
    """Runs ffmpeg, which reports errors alone; raises OSError, of `path`, if the machine failed."""
    done = run_ffmpeg(['-v', 'error', *arguments])
    if problem := _system_error(done.returncode, done.stderr):
        raise OSError(*problem, str(path))
    return done


def probe(path: Path) -> Overview:
    """Decodes the first frame of a video and reads what the file states.

    Raises:
        DataError: if it is empty or not a video.
    """
    if path.is_file() and not path.stat().st_size:
        raise DataError('the file is empty')
    with contextlib.closing(video_frames(path)) as frames:
        image, fps = next(frames)
    report = run_ffmpeg(['-i', f'file:{path}']).stderr
    length = re.search(r'Duration: (\d+):(\d+):([\d.]+)', report)
    hours, minutes, sec = map(float, length.groups() if length else '000')
    container = re.search(r'^Input #0, (\S+),', report, flags=re.M)
    length_sec, name = 3600 * hours + 60 * minutes + sec, container[1] if container else ''
    return Overview(fps or _USUAL_FPS, image.shape[1], image.shape[0], length_sec, name)


def frame_times(path: Path) -> tuple[np.ndarray, str]:
    """Decodes a whole video; returns the times of its frames in seconds, and errors ('' = none).

    Raises:
        OSError: if the machine could not do it.
    """
    command = ['-threads', '1', '-i', f'file:{path}', '-map', '0:V:0']
    done = _run_decoder([*command, '-fps_mode', 'passthrough', '-f', 'framecrc', '-'], path)
    tick = re.search(r'^#tb 0: (\d+)/(\d+)', done.stdout, flags=re.M)
    times = [int(line.split(',')[2]) for line in done.stdout.splitlines() if line[:2] == '0,']
    seconds = np.array(times) * int(tick[1]) / int(tick[2]) if tick else np.zeros(0)
    return seconds, done.stderr or ('ffmpeg failed' if done.returncode else '')


def is_cut_short(report: str) -> bool:
    """Returns whether ffmpeg reports that the file ends too early."""
    return re.search('partial file|ended prematurely', report) is not None


def key_frame_after(path: Path, sec: float) -> float:
    """Returns the time of the first key frame at or after `sec`, `sec` itself where there is none."""
    if sec <= 0:
        return 0.0
    command = ['-threads', '1', '-ss', f'{sec}', '-copyts', '-skip_frame', 'nokey', '-i', f'file:{path}']
    command += ['-map', '0:V:0', '-vf', 'showinfo', '-frames:v', '1', '-f', 'null', '-']
    times = [float(t) for t in re.findall(r'pts_time:\s*([\d.]+)', run_ffmpeg(command).stderr)]
    return min((t for t in times if t >= sec - 1e-6), default=sec)


def cut_video(
    path: Path,
    dest: Path,
    start_sec: float,
    end_sec: float | None = None,
    region: tuple[int, int, int, int] | None = None,
) -> None:
    """Cuts a piece out of a video into an mp4: one encoding, visually lossless, without sound.

    Args:
        path: the video.
        dest: file to write; its folder must exist.
        start_sec: time of the first frame.
        end_sec: time after the last frame; None = the end.
        region: width, height, left, top in pixels, even numbers; None = the whole frame.

    Raises:
        DataError: if the video was cut short or cannot be cut.
        OSError: if the machine could not do it (memory, open files, disk, permissions).
    """
    times = ['-ss', f'{start_sec:.4f}'] + ([] if end_sec is None else ['-t', f'{end_sec - start_sec:.4f}'])
    crop = [] if region is None else ['-vf', 'crop={}:{}:{}:{}:exact=1'.format(*region)]
    command = ['-y', '-threads', '1', *times, '-i', f'file:{path}', '-map', '0:V:0', '-an']
    command += [*crop, '-fps_mode', 'passthrough', '-c:v', 'libx264', '-crf', '8', '-preset', 'fast']
    command += ['-threads', '1', '-pix_fmt', 'yuv420p', '-map_metadata', '-1', '-bitexact', '-f', 'mp4']
    with atomic_write(dest) as file:  # of a name that no ffmpeg of a killed run still writes to
        done = _run_decoder([*command, f'file:{file.name}'], dest)
        if is_cut_short(done.stderr):
            raise DataError('the video is cut short')
        if done.returncode:
            raise DataError(f'the video cannot be cut: {(done.stderr.strip().splitlines() or ["?"])[-1]}')


def find_clips(root: Path) -> Iterator[Path]:
    """Finds video files and folders that hold images; loose images in the root are no clip."""
    for path in root.rglob('*'):
        if path.is_dir():
            if any(p.suffix.lower() in IMAGE_TYPES for p in path.iterdir()):
                yield path
        elif path.suffix.lower() in VIDEO_TYPES:
            yield path


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which frame2 comes before frame10."""
    parts = re.split(r'([0-9]+)', name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


@contextlib.contextmanager
def open_video(
    path: Path | str, fps: float = 25, crf: int = 15, note: str = ''
) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens an .mp4 (H.264, yuv420p, BT.709) or .gif file; yields a function that appends a frame [H, W, 3].

    The file appears under its name when the block ends well, and not at all otherwise. Odd sizes are padded
    by repeating the last row and column, because yuv420p needs even ones.

    Args:
        path: file to write; the suffix .gif makes a gif, any other an mp4.
        fps: frames per second.
        crf: H.264 constant rate factor, 0 = no loss but the colour subsampling, 51 = worst; unused for gif.
        note: comment in the metadata of the file.

    Raises:
        UserError: when the file cannot be written, for example on a full disk.
    """
    encoder: list[subprocess.Popen[bytes]] = []  # started by the first frame, which has the size

    def append(frame: np.ndarray) -> None:
        frame = np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode='edge')
        if not encoder:
            command = _encoder_command(frame.shape[1], frame.shape[0], Path(path).suffix, fps, crf)
            command += ['-metadata', f'comment={note}'] if note else []
            pipe = subprocess.PIPE
            # a session of its own: Ctrl-C in a terminal is for us, who then finish the file
            process = subprocess.Popen([*command, file.name], stdin=pipe, stderr=pipe, start_new_session=True)
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
            if note and Path(path).suffix == '.gif':
                _comment_gif(Path(file.name), note)
        finally:
            for process in encoder:
                process.kill()
                process.communicate()


def write_video(
    path: Path | str, frames: Iterable[np.ndarray], fps: float = 25, crf: int = 15, note: str = ''
) -> None:
    """Writes uint8 frames, an array [T, H, W, 3] or any iterable of [H, W, 3]; see open_video."""
    with open_video(path, fps, crf, note) as append:
        for frame in frames:
            append(frame)


def join_videos(parts: Sequence[Path], path: Path, note: str = '') -> None:
    """Writes mp4 files of `open_video` as one, frame after frame as they are; note: see open_video.

    Raises:
        DataError: if a part is not such a file.
        OSError: if the machine could not do it.
    """
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as table, atomic_write(path) as file:
        quoted = (str(part.resolve()).replace("'", "'\\''") for part in parts)
        table.writelines(f"file '{name}'\n" for name in quoted)
        table.flush()
        command = ['-y', '-f', 'concat', '-safe', '0', '-i', table.name, '-c', 'copy']
        command += ['-metadata', f'comment={note}'] if note else []
        command += ['-fflags', '+bitexact', '-movflags', '+faststart', '-f', 'mp4', f'file:{file.name}']
        done = _run_decoder(command, path)
        if done.returncode or done.stderr:
            raise DataError(f'{path}: its parts cannot be joined: {done.stderr.strip()[-200:]}')


def add_sound(path: Path, source: Path, start_sec: float = 0.0, length_sec: float | None = None) -> bool:
    """Gives an mp4 the sound of another video, from a time on; returns whether that has any.

    It ends with the images, or after `length_sec`.

    Raises:
        DataError: if the sound cannot be used.
        OSError: if the machine could not do it.
    """
    if not re.search(r'Stream #0\S*: Audio:', run_ffmpeg(['-i', f'file:{source}']).stderr):
        return False
    piece = ['-ss', f'{start_sec:.4f}', *(['-t', f'{length_sec:.4f}'] if length_sec else [])]
    command = ['-y', '-i', f'file:{path}', *piece, '-i', f'file:{source}']
    command += ['-map', '0:v', '-map', '1:a:0', '-c:v', 'copy', '-c:a', 'aac', '-threads', '1']
    command += ['-fflags', '+bitexact', '-flags:a', '+bitexact', '-movflags', '+faststart', '-f', 'mp4']
    command += ['-t', f'{probe(path).length_sec:.4f}']  # a longer sound ends with the images
    with atomic_write(path) as file:
        done = _run_decoder([*command, f'file:{file.name}'], source)
        if done.returncode:
            raise DataError(f'the sound of {source} cannot be used: {done.stderr.strip()[-200:]}')
    return True


def _close_encoder(encoder: 'subprocess.Popen[bytes]', path: Path | str) -> None:
    _, errors = encoder.communicate()
    if encoder.returncode:
        reason = errors.decode(errors='replace').strip().splitlines() or ['no reason given']
        raise UserError(f'cannot write {path}: the video encoder stopped ({reason[-1]}); is the disk full?')


def _comment_gif(path: Path, note: str) -> None:
    """Adds a comment, which ffmpeg does not write into gifs: blocks of 255 bytes before the last byte."""
    data, text = path.read_bytes(), note.encode()
    pieces = [text[i : i + 255] for i in range(0, len(text), 255)]
    blocks = b''.join(bytes([len(piece)]) + piece for piece in pieces)
    path.write_bytes(data[:-1] + b'\x21\xfe' + blocks + b'\0' + data[-1:])


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
    return [ffmpeg_path(), '-y', '-loglevel', 'error', *source.split(), *coding.split()]
