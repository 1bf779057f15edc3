"""Pixels for people to look at: layout, depth and normal colours, PNG files.

Images are uint8 arrays [H, W, 3], stacks of them [N, H, W, 3]; tensors from the generator are NCHW.
"""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from dnnlib.util import atomic_write

# near to far, yellow to violet: eight even steps of a perceptually uniform map (viridis, public domain)
_COLOR_STEPS = ('fde725', 'addc30', '5ec962', '28ae80', '21918c', '2c728e', '3b528b', '472d7b', '440154')
_BACKGROUND = 0.5  # gray behind depth and normals where rays hit nothing


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


def save_png(path: Path | str, picture: np.ndarray) -> None:
    """Writes a uint8 picture [H, W, 3] as PNG.

    Raises:
        UserError: when the file cannot be written; nothing is left behind.
    """
    with atomic_write(path) as file:
        PIL.Image.fromarray(picture).save(file, format='png')
