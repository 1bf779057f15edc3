"""Four views of a clip, from a generator or from files, and two controls: a flat plane, a frozen head.

As clips: item i -> MultiView, or ClipError with the reason; `identity` says exactly what comes. Source: PV3D
A.4 and its released script for views.
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.util import UserError, atomic_write
from dnnlib.video import is_system_trouble, natural
from metrics.measures.consistency import MultiView
from metrics.records.digests import claim_folder, files_digest
from metrics.records.store import CHUNK
from metrics.sources import shooting
from metrics.sources.clip_source import ClipError, checked
from torch_utils import distributed as dist
from training import camera
from training.volumetric_rendering.ray_sampler import camera_rays
from viz import rollout

SIDE_YAW_RAD = math.pi / 6  # 30 degrees [PV3D A.4]
SIDE_V_RAD = math.pi / 2 - 0.05  # vertical coordinate of the released side camera, see camera.eg3d_label
FRONT = (0, 3)  # views of t0 and t1 from the front
SIDE = (2, 1)  # views of t0 and t1 from the side
_TIMES = 120  # second word of the seeds, keeps streams apart
_OPAQUE = 0.5  # rays above it hit the head


class ViewSource(Protocol):
    """Views by number."""

    size: int  # pixels of a side of the pictures

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON that says exactly which views come; the number of items is not part of it."""

    def __len__(self) -> int:
        """Returns the number of items."""

    def name(self, i: int) -> str:
        """Returns what item i is called where failures are told."""

    def view(self, i: int) -> MultiView:
        """Returns the views of item i, or raises ClipError."""


def view_cameras(protocol: str) -> Tensor:
    """Returns the labels [2, 25] of the front and of the side camera.

    The front camera is the canonical one. The side camera stands at yaw 30 degrees: in 'paper' at eye level,
    in 'released' at v = pi / 2 - 0.05, which is 1.8 degrees above it.
    """
    side = camera.orbit_label(SIDE_YAW_RAD)
    if protocol == 'released':
        side = camera.eg3d_label(math.pi / 2 + SIDE_YAW_RAD, SIDE_V_RAD)
    return torch.stack([camera.front_label(), side])


class GeneratedViews:
    """Views of generated clips: item i has the codes of item i of GeneratedClips and two times of the span.

    The times are different ones in 'paper'; 'released' draws with replacement, so they may be equal. The
    mapping sees the canonical camera, or each picture's own in a network conditioned so ('non').
    """

    def __init__(
        self,
        G: nn.Module,
        seed: int,
        count: int,
        protocol: str = 'paper',
        options: rollout.RenderOptions = rollout.DEFAULT_OPTIONS,
    ) -> None:
        """Prepares `count` items of a generator in eval mode, which must not change any more."""
        self.G, self.seed, self.count, self.protocol = G, seed, count, protocol
        self.options = shooting.protocol_options(G, protocol, options)
        self.size = G.config.resolution
        self.identity = {
            'source': 'generator',
            **shooting.network_identity(G, self.options),
            'seed': seed,
            'protocol': protocol,
        }

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        """See ViewSource."""
        return f'seed {self.seed}, item {i}'

    def view(self, i: int) -> MultiView:
        """See ViewSource."""
        rng = np.random.default_rng((self.seed, _TIMES, i))
        span = self.G.config.span
        drawn = rng.choice(span, 2, replace=self.protocol == 'released')
        t = torch.from_numpy(drawn / (span - 1)).float()
        front, side = view_cameras(self.protocol)
        cameras, times = torch.stack([front, side, side, front]), t[[0, 1, 0, 1]]
        codes = shooting.item_codes(self.G, self.seed, i)
        shot = shooting.shoot(self.G, codes, cameras, cameras[:1], times, self.options)
        if problem := shooting.nonfinite(shot):
            raise ClipError(problem)
        pictures = checked(shooting.to_pictures(shot.image, self.protocol))
        image = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        return MultiView(image, shot.depth, shot.opacity, shot.xyz, cameras, t)


class FolderViews:
    """Views in files NAME.npz with the arrays of MultiView by name, so that any network can be measured.

    Cameras and world are those of training/camera.py. views.json beside them, or else the further arrays
    `bin_size` (distance of two samples along a ray, scene units) and `protocol` of each file, say how they
    were made; what is said nowhere is None.
    """

    def __init__(self, path: str | Path, count: int | None = None) -> None:
        """Looks for files; count = None takes all, else the first in natural order.

        Raises:
            UserError: when there are none, or when they do not agree on how they were made.
        """
        self.root = Path(path)
        found = self.root.glob('*.npz') if self.root.is_dir() else []
        self.paths = sorted((p for p in found if p.name[0] != '.'), key=lambda p: natural(p.name))[:count]
        if not self.paths:
            raise UserError(f'{path} must be a folder with views, NAME.npz each')
        self.size = self._first_size()
        self.bin_size, self.protocol = self._made_with()

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See ViewSource."""
        return {'source': 'folder', 'files': files_digest(self.root, self.paths), 'resolution': self.size}

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """See ViewSource."""
        return self.paths[i].name

    def view(self, i: int) -> MultiView:
        """See ViewSource."""
        view = load_view(self.paths[i])
        if view.image.shape[2] != self.size:
            size = view.image.shape[2]
            raise ClipError(f'pictures of {size}x{size}, the others have {self.size}x{self.size}')
        checked(view.image.permute(0, 2, 3, 1).numpy())
        return view

    def _made_with(self) -> tuple[float | None, str | None]:
        """Returns bin size and protocol."""
        note = _read_note(self.root / 'views.json')
        notes = []
        for path in self.paths:
            with contextlib.suppress(ClipError):
                arrays = _read_arrays(path, ('bin_size', 'protocol'))
                notes.append({k: x.item() for k, x in arrays.items() if x.ndim == 0})
        found = []
        for key in ('bin_size', 'protocol'):
            values = {n.get(key, note.get(key)) for n in (note, *notes) if key in note or n is not note}
            if len(values) > 1:
                told = ' and '.join(sorted(map(str, values)))
                raise UserError(f'{self.root} holds views of different {key}: {told}; keep them apart')
            found.append(values.pop() if values else None)
        bin_size, protocol = found
        if bin_size is not None and not (isinstance(bin_size, int | float) and 0 < bin_size < math.inf):
            raise UserError(f'{self.root}: bin_size {bin_size!r} of views must be a positive number')
        if protocol not in (None, *shooting.PROTOCOLS):
            allowed = ' or '.join(shooting.PROTOCOLS)
            raise UserError(f'{self.root}: protocol {protocol!r} of views must be {allowed}')
        return bin_size, protocol

    def _first_size(self) -> int:
        for path in self.paths:
            try:
                return load_view(path).image.shape[2]
            except ClipError as err:
                reason = f'{path.name}: {err}'
        raise UserError(f'{self.root}: none of {len(self.paths)} files holds views; the last one: {reason}')


def load_view(path: Path) -> MultiView:
    """Reads a file of FolderViews.

    Raises:
        ClipError: when it is damaged, or an array is missing, of another shape, or not finite.
        OSError, MemoryError: when the machine could not read it.
    """
    arrays = _read_arrays(path, MultiView._fields)
    lost = [name for name in MultiView._fields if name not in arrays]
    if lost:
        raise ClipError(f'{", ".join(lost)} is missing')
    side, low = arrays['image'].shape[-1:], arrays['depth'].shape[-1:]
    shapes = [(4, 3, *side, *side), *((4, n, *low, *low) for n in (1, 1, 3)), (4, camera.LABEL_DIM), (2,)]
    for (name, array), shape in zip(arrays.items(), shapes, strict=True):
        if array.shape != shape:
            raise ClipError(f'{name} has shape {array.shape}; expected {shape}')
        kind = 'u' if name == 'image' else 'fiu'
        if array.dtype.kind not in kind or (name == 'image' and array.dtype != np.uint8):
            raise ClipError(f'{name} holds {array.dtype}; images are uint8, the rest numbers')
        if not np.isfinite(array).all():
            raise ClipError(f'{name} is not finite')
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return MultiView(**{name: x if name == 'image' else x.float() for name, x in tensors.items()})


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads those of the named arrays that a file has."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file.files}
    except Exception as err:  # broken files make numpy and zipfile raise a dozen unrelated types
        if is_system_trouble(err):
            raise
        raise ClipError(f'cannot be read ({err})') from err


def _read_note(path: Path) -> dict[str, Any]:
    """Reads views.json; {} where there is none."""
    try:
        note = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as err:
        raise UserError(f'{path} is not JSON ({err}); mend or remove it') from err
    if not isinstance(note, dict):
        raise UserError(f'{path} must hold a JSON object such as {{"bin_size": 0.0223}}')
    return note


def save_views(
    source: ViewSource,
    folder: str | Path,
    progress: Callable[[int], object] = lambda count: None,
    bin_size: float | None = None,
    protocol: str | None = None,
) -> dict[int, str]:
    """Writes the views of a source as NUMBER.npz, those that are not there yet; processes share the work.

    Args:
        source: of views.
        folder: made when missing.
        progress: gets 1 for each item of this process.
        bin_size: distance of two samples along a ray, scene units, which FolderViews gives back.
        protocol: of the views, likewise.

    Returns:
        the reasons of the failures, by item.

    Raises:
        UserError: when the folder holds views of another source, or cannot be written.
    """
    folder, failures = Path(folder), {}
    made = {k: v for k, v in (('bin_size', bin_size), ('protocol', protocol)) if v is not None}
    claim_folder(folder, 'views.json', {'views': source.identity, **made})
    for i in range(len(source)):
        if i // CHUNK % dist.world_size() == dist.rank():
            path = folder / f'{i:05d}.npz'
            try:
                if not path.exists():
                    arrays = {name: x.numpy() for name, x in source.view(i)._asdict().items()}
                    with atomic_write(path) as file:
                        np.savez_compressed(file, **arrays, **made)
            except ClipError as err:
                failures[i] = str(err)
            progress(1)
    return {i: reason for part in dist.gather_objects(failures) for i, reason in part.items()}


class _Changed:
    """The views of another source, changed one by one."""

    def __init__(self, source: ViewSource, control: str) -> None:
        self.source, self.size = source, source.size
        self.identity = {'control': control, 'of': source.identity}

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        """See ViewSource."""
        return self.source.name(i)


class FrozenViews(_Changed):
    """Control: a head that does not move, t1 = t0."""

    def __init__(self, source: ViewSource) -> None:
        super().__init__(source, 'static')

    def view(self, i: int) -> MultiView:
        """See ViewSource."""
        view = self.source.view(i)
        order = [FRONT[0], SIDE[0], SIDE[0], FRONT[0]]
        return MultiView(*(x[order] for x in view[:5]), view.times[[0, 0]])


class FlatPlane(_Changed):
    """Control: each front picture pasted on one plane that faces the front camera, seen by both cameras.

    The plane goes through the mean depth of what is opaque (> 0.5) in the middle half of the front pictures:
    of the head, not of an opaque background. Pictures from the side are the exact homography, sampled
    bilinearly; depth, points and opacity are exact. Beyond the pasted picture its border goes on and opacity
    is 0.
    """

    def __init__(self, source: ViewSource) -> None:
        super().__init__(source, 'flat plane')

    def view(self, i: int) -> MultiView:
        """See ViewSource."""
        view = self.source.view(i)
        size = view.depth.shape[-1]
        middle = slice(size // 4, size - size // 4)
        points = view.xyz[list(FRONT), :, middle, middle].flatten(2).transpose(1, 2)
        axial = camera.project(points, view.cameras[list(FRONT), None])[1]
        hit = view.opacity[list(FRONT), :, middle, middle].flatten(2).transpose(1, 2) > _OPAQUE
        if not hit.any():
            raise ClipError('no ray from the front hits the head')
        distance = axial[hit].double().mean()
        parts = [
            plane_view(view.image[p], view.cameras[p], view.cameras[k], distance, size)
            for k, p in enumerate((FRONT[0], FRONT[1], FRONT[0], FRONT[1]))
        ]
        image, depth, opacity, xyz = (torch.stack(x) for x in zip(*parts, strict=True))
        return MultiView(image, depth, opacity, xyz, view.cameras, view.times)


def plane_view(
    picture: Tensor, pasted: Tensor, seen: Tensor, distance: Tensor, resolution: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Renders a plane that carries what one camera sees, from another camera.

    Args:
        picture: of the first camera, uint8 [3, H, H].
        pasted: label of the first camera [25]; the plane is perpendicular to its axis.
        seen: label of the other camera [25].
        distance: of the plane along the axis of the first camera, scene units.
        resolution: pixels along a side of depth, opacity and points.

    Returns:
        picture [3, H, H], depth [1, h, h], opacity [1, h, h], points [3, h, h] of the other camera.

    Raises:
        ClipError: when a ray of the other camera does not meet the plane.
    """
    pose = camera.unpack_label(pasted.double())[0]
    axis, point = pose[:3, 2], pose[:3, 3] + distance * pose[:3, 2]

    def hits(size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns places in the picture [size, size, 2], depths [size, size], points [size, size, 3]."""
        matrices = camera.unpack_label(seen.double()[None])
        origin, direction = (x[0].unflatten(0, (size, size)) for x in camera_rays(*matrices, size))
        depth = ((point - origin) @ axis) / (direction @ axis)
        if not (depth > 0).all():
            raise ClipError('a camera does not look at the plane')
        points = origin + depth[..., None] * direction
        return camera.project(points, pasted.double())[0], depth, points

    place = hits(picture.shape[-1])[0]
    image = nn.functional.grid_sample(
        picture[None].double(), place[None] * 2 - 1, padding_mode='border', align_corners=False
    )
    place, depth, points = hits(resolution)
    inside = ((place >= 0) & (place <= 1)).all(dim=-1)
    return (
        image[0].round().to(torch.uint8),
        depth[None].float(),
        inside[None].float(),
        points.permute(2, 0, 1).float(),
    )
