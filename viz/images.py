"""Images for people to look at: layout, colours of depth and normals, PNG files.

Images are uint8 arrays [H, W, 3], stacks of them [N, H, W, 3]; tensors from the generator are NCHW.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from dnnlib.util import atomic_write
from viz.rollout import Frames

KINDS = ('image', 'raw', 'depth', 'normals', 'opacity')  # what `shown` makes of frames
# near to far, yellow to violet: eight even steps of a perceptually uniform map (viridis, public domain)
_COLOR_STEPS = ('fde725', 'addc30', '5ec962', '28ae80', '21918c', '2c728e', '3b528b', '472d7b', '440154')
_BACKGROUND = 0.5  # gray behind depth and normals where rays hit nothing


def to_uint8(image: Tensor) -> np.ndarray:
    """Turns images [N, C, H, W] in [-1, 1] (clamped) into uint8 images [N, H, W, C]."""
    return pixels(image).cpu().numpy()


def pixels(image: Tensor) -> Tensor:
    """Does what to_uint8 does, on the device of the images; uint8 [N, H, W, C]."""
    scaled = (image.detach().float() * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 images [N, H, W, 3] to [N, size, size, 3], smoothly (Lanczos)."""
    if images.shape[1:3] == (size, size):
        return images
    resized = [Image.fromarray(i).resize((size, size), Image.Resampling.LANCZOS) for i in images]
    return np.stack([np.asarray(i) for i in resized])


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Repeats the pixels of small images [N, H, W, C] until each side has at least `size` of them."""
    factor = -(-size // min(images.shape[1:3]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def grid(images: np.ndarray, cols: int | None = None) -> np.ndarray:
    """Arranges images [N, H, W, C] in rows of `cols` (default: nearly square); missing images are black."""
    count, height, width, channels = images.shape
    cols = cols or grid_shape(count)[1]
    rows = -(-count // cols)
    canvas = np.zeros((rows * cols, height, width, channels), images.dtype)
    canvas[:count] = images
    canvas = canvas.reshape(rows, cols, height, width, channels).transpose(0, 2, 1, 3, 4)
    return canvas.reshape(rows * height, cols * width, channels)


def grid_shape(count: int) -> tuple[int, int]:
    """Returns (rows, columns) of a nearly square grid with at least `count` places."""
    cols = int(np.ceil(np.sqrt(count)))
    return -(-count // cols), cols


def strip(frames: np.ndarray) -> np.ndarray:
    """Arranges frames [T, H, W, C] in one row."""
    return grid(frames, cols=len(frames))


def shown(frames: Frames, kind: str, near_far: tuple[float, float] | None = None) -> Tensor:
    """Returns one of KINDS of rendered frames as images in about [-1, 1], [T, 3, H, W].

    All but `image` have the size of the volume rendering.

    near_far: range of the colours of depth, scene units; None = that of these frames.
    """
    if kind == 'depth':
        return colorize_depth(
            frames.depth, frames.opacity, *(near_far or depth_range(frames.depth, frames.opacity))
        )
    if kind == 'normals':
        return colorize_normals(normals_from_xyz(frames.xyz), frames.opacity)
    if kind == 'opacity':
        return frames.opacity.expand(-1, 3, -1, -1) * 2 - 1
    return frames.image_raw if kind == 'raw' else frames.image


def depth_range(depth: Tensor, opacity: Tensor) -> tuple[float, float]:
    """Returns (near, far), scene units: middle 98 % of the depths [N, 1, H, W] of rays more than half opaque.

    One range for a whole clip keeps its colours from flickering. Without an opaque ray all depths count.
    """
    finite = depth.isfinite()
    seen = finite & (opacity > 0.5)
    values = depth[seen if seen.any() else finite].float().cpu().numpy()
    near, far = np.quantile(values, [0.01, 0.99]) if len(values) else (0.0, 1.0)
    return float(near), float(max(far, near + 1e-3))


def colorize_depth(depth: Tensor, opacity: Tensor, near: float, far: float) -> Tensor:
    """Colours depth [N, 1, H, W], near yellow, far violet, over gray by opacity; [N, 3, H, W] in [-1, 1]."""
    table = torch.tensor([list(bytes.fromhex(step)) for step in _COLOR_STEPS])
    table = table.to(depth.device, non_blocking=True) / 255
    place = ((depth.nan_to_num(far, far, near) - near) / (far - near)).clamp(0, 1) * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    color = torch.lerp(table[low], table[low + 1], (place - low)[..., None])  # [N, 1, H, W, 3]
    return _over_gray(color[:, 0].permute(0, 3, 1, 2), opacity)


def normals_from_xyz(xyz: Tensor) -> Tensor:
    """Estimates surface normals from world points.

    Args:
        xyz: world point seen by each pixel, rows downwards, columns to the right, [N, 3, H, W].

    Returns:
        unit normals in world axes that point towards the camera [N, 3, H, W]: down x right, because with x
        right and y down in a right-handed frame, right x down points away from the camera.
    """
    down, right = torch.gradient(xyz.float(), dim=(2, 3))
    return nn.functional.normalize(torch.linalg.cross(down, right, dim=1), dim=1)


def colorize_normals(normals: Tensor, opacity: Tensor) -> Tensor:
    """Colours unit normals [N, 3, H, W] as normal * 0.5 + 0.5, over gray by opacity; in [-1, 1]."""
    return _over_gray(normals * 0.5 + 0.5, opacity)


def _over_gray(color: Tensor, opacity: Tensor) -> Tensor:
    return torch.lerp(torch.full_like(color, _BACKGROUND), color, opacity.clamp(0, 1)) * 2 - 1


def png_bytes(image: np.ndarray, note: str = '') -> bytes:
    """Returns the content of the file that save_png writes."""
    file, info = io.BytesIO(), PngInfo()
    if note:
        info.add_text('Comment', note)
    Image.fromarray(image).save(file, format='png', pnginfo=info)
    return file.getvalue()


def save_png(path: Path | str, image: np.ndarray, note: str = '') -> None:
    """Writes a uint8 image [H, W, 3] as PNG, a note in its metadata; a UserError leaves nothing behind."""
    with atomic_write(path) as file:
        file.write(png_bytes(image, note))


@contextlib.contextmanager
def open_frames(path: Path, note: str = '') -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that writes the next frame [H, W, 3] of a clip as PNG.

    Args:
        path: NAME.png, the file of a clip of one frame, or the folder in which frames are 0000.png, 0001.png
            and so on. Frames of a longer clip that was there before are removed.
        note: comment in the metadata of each.
    """
    single, written = path.suffix == '.png', []
    if not single:
        path.mkdir(parents=True, exist_ok=True)

    def append(frame: np.ndarray) -> None:
        written.append(path if single else path / f'{len(written):04d}.png')
        save_png(written[-1], frame, note)

    yield append
    for old in () if single else path.glob('[0-9][0-9][0-9][0-9]*.png'):
        if old not in written:
            old.unlink()
