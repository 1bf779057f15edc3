"""Pictures and videos for people to look at: grids, depth and normal colours, labels, files, training sheets.

Pictures are uint8 arrays [H, W, 3], stacks of them [N, H, W, 3]; tensors from the generator are NCHW. Files
are written under a temporary name and renamed: no half-written picture or video ever stands under its final
name.
"""

import contextlib
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor, nn

from dnnlib.util import UserError, atomic_write
from training import rollout, trajectories

VIDEO_SUFFIXES = ('.mp4', '.gif')
# near to far, yellow to violet: eight even steps of a perceptually uniform map (viridis, public domain)
_COLOR_STEPS = ('fde725', 'addc30', '5ec962', '28ae80', '21918c', '2c728e', '3b528b', '472d7b', '440154')
_BACKGROUND = 0.5  # gray behind depth and normals where rays hit nothing
_LABEL_HEIGHT = 20  # pixels of a label bar
_GEOMETRY_TILE = 128  # pixels of a side, at least, by which people judge geometry
_SHEET_HEADS = 4  # heads in the 'views', 'strip' and 'video' sheets of a tick
_STRIP_FRAMES = 8  # columns at most of the 'strip' sheet


def to_uint8(image: Tensor) -> np.ndarray:
    """Turns images [N, C, H, W] in [-1, 1] (clamped) into uint8 pictures [N, H, W, C]."""
    pixels = (image.detach().float() * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def resize(pictures: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 pictures [N, H, W, 3] to [N, size, size, 3], smoothly (Lanczos)."""
    if pictures.shape[1:3] == (size, size):
        return pictures
    resized = [PIL.Image.fromarray(p).resize((size, size), PIL.Image.Resampling.LANCZOS) for p in pictures]
    return np.stack([np.asarray(p) for p in resized])


def enlarge(pictures: np.ndarray, size: int) -> np.ndarray:
    """Repeats the pixels of small pictures [N, H, W, C] until each side has at least `size` of them."""
    factor = -(-size // min(pictures.shape[1:3]))
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def grid(pictures: np.ndarray, cols: int | None = None) -> np.ndarray:
    """Lays pictures [N, H, W, C] out in rows of `cols` (default: nearly square); missing places are black."""
    count, height, width, channels = pictures.shape
    cols = cols or grid_shape(count)[1]
    rows = -(-count // cols)
    canvas = np.zeros((rows * cols, height, width, channels), pictures.dtype)
    canvas[:count] = pictures
    canvas = canvas.reshape(rows, cols, height, width, channels).transpose(0, 2, 1, 3, 4)
    return canvas.reshape(rows * height, cols * width, channels)


def grid_shape(count: int) -> tuple[int, int]:
    """Returns (rows, columns) of a nearly square grid with at least `count` places."""
    cols = int(np.ceil(np.sqrt(count)))
    return -(-count // cols), cols


def strip(frames: np.ndarray) -> np.ndarray:
    """Lays frames [T, H, W, C] out in one row."""
    return grid(frames, cols=len(frames))


def depth_range(depth: Tensor, opacity: Tensor) -> tuple[float, float]:
    """Returns (near, far), scene units: middle 98 % of the depths [N, 1, H, W] of rays more than half opaque.

    One range for a whole clip keeps its colours from flickering. Without an opaque ray all depths count.
    """
    seen = depth[(opacity > 0.5) & depth.isfinite()].float()
    values = seen if seen.numel() else depth[depth.isfinite()].float()
    if not values.numel():
        return 0.0, 1.0
    near, far = np.quantile(values.cpu().numpy(), [0.01, 0.99])
    return float(near), float(max(far, near + 1e-3))


def colorize_depth(depth: Tensor, opacity: Tensor, near: float, far: float) -> np.ndarray:
    """Colours depth [N, 1, H, W] in scene units, near = yellow, far = violet, over gray by opacity.

    Returns:
        uint8 pictures [N, H, W, 3].
    """
    table = torch.tensor([list(bytes.fromhex(step)) for step in _COLOR_STEPS], device=depth.device) / 255
    place = ((depth.nan_to_num(far, far, near) - near) / (far - near)).clamp(0, 1) * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    color = torch.lerp(table[low], table[low + 1], (place - low)[..., None])  # [N, 1, H, W, 3]
    return _over_gray(color[:, 0].permute(0, 3, 1, 2), opacity)


def normals_from_xyz(xyz: Tensor) -> Tensor:
    """Estimates surface normals from world points.

    Args:
        xyz: world point that each pixel sees, rows downwards, columns to the right, [N, 3, H, W].

    Returns:
        unit normals in world axes that point towards the camera [N, 3, H, W]: down x right, because with x
        right and y down in a right-handed frame, right x down points away from the camera.
    """
    down, right = torch.gradient(xyz.float(), dim=(2, 3))
    return nn.functional.normalize(torch.linalg.cross(down, right, dim=1), dim=1)


def colorize_normals(normals: Tensor, opacity: Tensor) -> np.ndarray:
    """Colours unit normals [N, 3, H, W] as normal * 0.5 + 0.5, over gray by opacity; uint8 [N, H, W, 3]."""
    return _over_gray(normals * 0.5 + 0.5, opacity)


def _over_gray(color: Tensor, opacity: Tensor) -> np.ndarray:
    return to_uint8(torch.lerp(torch.full_like(color, _BACKGROUND), color, opacity.clamp(0, 1)) * 2 - 1)


def label_tile(height: int, width: int, text: str) -> np.ndarray:
    """Returns a white tile [height, width, 3] with `text` in its middle."""
    tile = PIL.Image.new('RGB', (width, height), 'white')
    font = PIL.ImageFont.load_default(size=12)
    PIL.ImageDraw.Draw(tile).text((width / 2, height / 2), text, 'black', font=font, anchor='mm')
    return np.asarray(tile)


def label_bar(texts: Sequence[str], width: int) -> np.ndarray:
    """Returns a white bar [20, width * len(texts), 3] with one text over each column of `width` pixels."""
    return np.concatenate([label_tile(_LABEL_HEIGHT, width, text) for text in texts], axis=1)


def contact_sheet(
    rows: Sequence[np.ndarray], row_labels: Sequence[str] = (), col_labels: Sequence[str] = ()
) -> np.ndarray:
    """Stacks rows of pictures, each [T, H, W, 3], into one picture; optional labels stand left and on top."""
    lines = [strip(row) for row in rows]
    if col_labels:
        lines.insert(0, label_bar(col_labels, rows[0].shape[2]))
    if row_labels:
        margin = 8 * max(map(len, row_labels)) + 8  # pixels; a character is at most 8 wide
        texts = ['', *row_labels] if col_labels else row_labels
        lines = [
            np.concatenate([label_tile(line.shape[0], margin, text), line], axis=1)
            for line, text in zip(lines, texts, strict=True)
        ]
    return np.concatenate(lines)


def save_png(path: Path | str, picture: np.ndarray) -> None:
    """Writes a uint8 picture [H, W, 3] as PNG.

    Raises:
        UserError: when the file cannot be written; nothing is left behind.
    """
    with atomic_write(path) as file:
        PIL.Image.fromarray(picture).save(file, format='png')


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


def training_sheets(
    G: nn.Module,
    seeds: Sequence[int],
    cameras: Tensor,
    options: rollout.RenderOptions = rollout.DEFAULT_OPTIONS,
    on_frames: Callable[[int], object] = lambda count: None,
) -> dict[str, np.ndarray]:
    """Renders what a training tick shows of a generator; about len(seeds) + 4 * (3 + span) frames.

    Args:
        G: generator, usually the EMA copy in eval mode.
        seeds: one head per seed; the first four also get views, strip and video.
        cameras: real camera labels for the 'fakes' grid, used in turn, [K, 25].
        options: rendering batch and resolution.
        on_frames: called with the number of frames after each batch, for a progress bar.

    Returns:
        uint8 pictures: 'fakes' and 'depth' (a grid of heads at t = 0.5, real cameras), 'views' (rows: heads,
        columns: yaw -30, 0, 30 degrees), 'strip' (rows: heads, columns: t from 0 on, frontal), and 'video'
        [span, H, W, 3]. Tiles of 'depth' and 'views' are enlarged to at least 128 pixels.
    """
    codes = [rollout.draw_codes(G, seed) for seed in seeds]
    labels = cameras[torch.arange(len(seeds)) % len(cameras)]
    views = trajectories.view_labels()
    front = trajectories.front(G.config.span)
    times = trajectories.frame_times(G.config.span, G.config.span)

    def shoot(index: int, render: Tensor, mapping: Tensor, t: Tensor) -> rollout.Frames:
        ws = rollout.map_codes(G, codes[index], mapping, t)
        batches = []
        for batch in rollout.render_frames(G, codes[index], ws, render, t, options):
            batches.append(batch)
            on_frames(len(batch.image))
        return rollout.concatenate(batches)

    fakes = rollout.concatenate(
        [shoot(i, c[None], c[None], torch.tensor([0.5])) for i, c in enumerate(labels)]
    )
    heads = range(min(len(seeds), _SHEET_HEADS))
    canonical = front[:1]
    middle = torch.full([len(views)], 0.5)
    sides = [enlarge(to_uint8(shoot(i, views, canonical, middle).image), _GEOMETRY_TILE) for i in heads]
    depth = colorize_depth(fakes.depth, fakes.opacity, *depth_range(fakes.depth, fakes.opacity))
    clips = np.stack(
        [to_uint8(shoot(i, front, canonical, times).image) for i in heads]
    )  # [heads, T, H, W, 3]
    columns = np.arange(0, len(times), -(-len(times) // _STRIP_FRAMES))
    return {
        'fakes': grid(to_uint8(fakes.image)),
        'depth': grid(enlarge(depth, _GEOMETRY_TILE)),
        'views': contact_sheet(sides, col_labels=trajectories.VIEW_NAMES),
        'strip': contact_sheet(list(clips[:, columns]), col_labels=[f't {t:.2f}' for t in times[columns]]),
        'video': np.stack([grid(frame) for frame in clips.swapaxes(0, 1)]),
    }
