"""Surfaces of a density field: grid, iso level, marching cubes, vertex colours, mesh files.

Vertices are in world coordinates and scene units (y up, face towards +z), triangles turn counter-clockwise
seen from outside, and the grid is closed with empty cells at the walls of the box, so that meshes are
watertight. scipy, scikit-image and trimesh are imported when a mesh is made: all else does without them.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.util import Skip, atomic_write
from training.networks.contract import RadianceGenerator
from viz import images

FORMATS = ('ply', 'obj', 'glb')
PARTS = ('head', 'all')
DEFAULT_LEVEL = 10.0  # density, 1 / scene unit [PV3D released]
_DENSE_FRACTION = 0.05  # of the rays that see something; a head covers more, haze is never so dense [ours]
_SEEN = math.log(2)  # optical thickness at which a ray is half opaque
_POINT_CHUNK = 1 << 17  # points evaluated at once; bounds memory
_SHELL = 8  # samples through the skin that a vertex colour is composited from
_SHELL_VOXELS = (-0.5, 3.0)  # where they begin and end along the inward normal

Field = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points [1, M, 3] -> features [1, M, F] in [0, 1] and raw density [1, M, 1]."""


class Level(NamedTuple):
    """An iso level and why it was chosen."""

    value: float
    reason: str


class Mesh(NamedTuple):
    """A coloured triangle mesh in world coordinates."""

    vertices: np.ndarray  # float32 [V, 3]
    faces: np.ndarray  # int64 [F, 3], counter-clockwise from outside
    colors: np.ndarray  # uint8 [V, 3], sRGB


@torch.no_grad()
def density_grid(
    field: Field, resolution: int, box_size: float, device: torch.device | str = 'cpu'
) -> np.ndarray:
    """Evaluates a field, in chunks, at the centres of resolution^3 voxels of a box around the origin.

    Returns:
        density in 1 / scene unit, float32 [x, y, z], each axis increasing.
    """
    density = torch.empty(resolution**3)
    for start in range(0, len(density), _POINT_CHUNK):
        index = torch.arange(start, min(start + _POINT_CHUNK, len(density)), device=device)
        cell = torch.stack([index // resolution**2, index // resolution % resolution, index % resolution], -1)
        points = ((cell + 0.5) / resolution - 0.5) * box_size
        raw = field(points[None])[1]
        density[start : start + len(index)] = nn.functional.softplus(raw[0, :, 0].float() - 1).cpu()
    return density.reshape(resolution, resolution, resolution).numpy()


def choose_level(density: np.ndarray, box_size: float) -> Level:
    """Chooses the iso level of a density grid [x, y, z]: 10 where images show such a surface, else less.

    A frontal ray sees a surface where it becomes half opaque. If one such ray in twenty reaches density 10,
    the level is 10, which separates a head from a hazy background. If not, it is the median density where
    rays become half opaque, so that the surface is where images show it.

    Raises:
        Skip: if no ray becomes half opaque.
    """
    front_to_back = density[:, :, ::-1].reshape(-1, density.shape[2])  # rays along -z
    thickness = np.cumsum(front_to_back, axis=1) * (box_size / density.shape[2])
    seen = thickness[:, -1] > _SEEN
    if not seen.any():
        opaque = -math.expm1(-float(thickness[:, -1].max()))
        raise Skip(
            f'it has no surface: frontal rays are at most {opaque:.0%} opaque '
            f'and the highest density is {density.max():.3g}; train longer'
        )
    rays = front_to_back[seen]
    if np.mean(rays.max(axis=1) >= DEFAULT_LEVEL) >= _DENSE_FRACTION:
        return Level(DEFAULT_LEVEL, f'the default density {DEFAULT_LEVEL:g}')
    first = np.argmax(thickness[seen] > _SEEN, axis=1)
    level = float(np.median(rays[np.arange(len(rays)), first]))
    why = f'density {level:.3g}, where frontal rays become half opaque, as few reach {DEFAULT_LEVEL:g}'
    return Level(level, why)


def extract_surface(density: np.ndarray, level: float, box_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Runs marching cubes over a density grid [x, y, z].

    Returns:
        vertices [V, 3] in scene units and faces [F, 3].

    Raises:
        Skip: if the density never crosses the level.
    """
    from skimage.measure import marching_cubes

    closed = np.pad(density, 1)
    if not 0 < level < closed.max():
        raise Skip(f'the densities from {density.min():.3g} to {density.max():.3g} never cross {level:g}')
    vertices, faces, _, _ = marching_cubes(closed, level, gradient_direction='ascent')
    # voxel i of the padded grid has its centre at (i - 1 + 0.5) / R - 0.5
    return ((vertices - 0.5) / density.shape[0] - 0.5) * box_size, faces


def head_part(density: np.ndarray, level: float) -> np.ndarray:
    """Returns a density grid [x, y, z] with only one solid above the level, 0 where others were.

    It is the one with the most voxels in the middle half of the box, where heads are: a background may have
    more in total.
    """
    from scipy import ndimage

    solids, _ = ndimage.label(density > level)
    quarter = len(density) // 4
    middle = solids[(slice(quarter, len(density) - quarter),) * 3]
    counts = np.bincount((middle if middle.any() else solids).ravel())
    counts[0] = 0
    return np.where((solids == 0) | (solids == counts.argmax()), density, 0)


@torch.no_grad()
def head_mesh(
    G: RadianceGenerator,
    planes: Tensor,
    ws: Tensor,
    resolution: int,
    level: float | None = None,
    parts: str = 'head',
) -> tuple[Mesh, Level]:
    """Extracts the coloured surface of one frame.

    Args:
        G: generator.
        planes: of one frame, leading axis 1.
        ws: [1, num_ws, w_dim].
        resolution: voxels per axis.
        level: density to cut at; by default see choose_level.
        parts: one of PARTS: 'head' only, see head_part, or 'all' surfaces.

    Returns:
        the mesh, and the level with its reason.

    Raises:
        Skip: if the field has no surface.
    """

    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        return G.sample_field(planes, points)

    box_size = G.config.box_warp
    density = density_grid(field, resolution, box_size, planes.device)
    chosen = choose_level(density, box_size) if level is None else Level(level, 'the given level')
    kept = head_part(density, chosen.value) if parts == 'head' else density
    vertices, faces = extract_surface(kept, chosen.value, box_size)
    features = shell_features(field, vertices, faces, box_size / resolution, planes.device)
    raw = G.to_rgb_raw(features.T[None, :, :, None] * 2 - 1, ws)  # [1, 3, V, 1]
    colors = images.to_uint8(raw)[0, :, 0]
    return Mesh(vertices.astype(np.float32), faces.astype(np.int64), colors), chosen


def shell_features(
    field: Field, vertices: np.ndarray, faces: np.ndarray, voxel: float, device: torch.device | str = 'cpu'
) -> Tensor:
    """Composites features [V, F] along short rays from half a voxel outside to three inside.

    What an image shows of a surface lies behind its iso level; one sample at the vertex would have the colour
    of thin air.
    """
    import trimesh

    normals = trimesh.Trimesh(vertices, faces, process=False).vertex_normals
    offsets = torch.linspace(*_SHELL_VOXELS, _SHELL, device=device) * voxel
    chunks = []
    step = _POINT_CHUNK // _SHELL
    for start in range(0, len(vertices), step):
        place = torch.as_tensor(vertices[start : start + step].copy(), dtype=torch.float32, device=device)
        inward = torch.as_tensor(-normals[start : start + step], dtype=torch.float32, device=device)
        points = place[:, None] + inward[:, None] * offsets[:, None]  # [V, S, 3]
        features, raw = field(points.reshape(1, -1, 3))
        density = nn.functional.softplus(raw.float().view(len(place), _SHELL) - 1)
        thickness = density * (offsets[1] - offsets[0])
        before = thickness.cumsum(1) - thickness
        weights = (1 - torch.exp(-thickness)) * torch.exp(-before)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-10)
        chunks.append((weights[..., None] * features.float().view(len(place), _SHELL, -1)).sum(1))
    return torch.cat(chunks)


def mesh_file(mesh: Mesh, kind: str, note: str = '') -> bytes:
    """Returns the file of a mesh in one of FORMATS, with vertex colours (linear light in glb, as in glTF).

    The note is a comment of ply and obj, where it becomes ASCII, and `asset.extras` of glb.
    """
    import trimesh

    colors = mesh.colors
    if kind == 'glb':
        srgb = colors / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        colors = (linear * 255).round().astype(np.uint8)
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colors, process=False)
    data = solid.export(file_type=kind, **_noted(kind, note))
    data = data.encode() if isinstance(data, str) else data
    if kind == 'ply' and note:  # a comment follows the line of the format, the second
        data = data.replace(b'\nelement', b'\ncomment ' + _ascii(note).encode() + b'\nelement', 1)
    return data


def save_mesh(path: Path | str, mesh: Mesh, note: str = '') -> None:
    """Writes a mesh in one of FORMATS, by suffix; see mesh_file."""
    with atomic_write(path) as file:
        file.write(mesh_file(mesh, Path(path).suffix[1:], note))


def _noted(kind: str, note: str) -> dict[str, Any]:
    """Returns the arguments by which trimesh notes something in a file of a kind; for ply it has none."""
    if kind == 'obj' and note:
        return {'header': _ascii(note)}
    if kind == 'glb' and note:
        return {'tree_postprocessor': lambda tree: tree['asset'].update(extras={'comment': note})}
    return {}


def _ascii(note: str) -> str:
    """Returns a note as one line of ASCII."""
    return ' '.join(note.encode('ascii', 'backslashreplace').decode().split())
