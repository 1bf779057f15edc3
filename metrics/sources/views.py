"""Four views of a clip, from a generator or from files: PV3D A.4 and its released script for views."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.scene import FOCAL
from dnnlib.util import Skip, UserError, atomic_write
from dnnlib.video import natural
from metrics.measures.consistency import MultiView
from metrics.records.digests import claim_folder, files_digest
from metrics.sources import shooting
from metrics.sources.items import Progress, Source, blames_machine, checked, save_items
from training import camera

SIDE_YAW_RAD = math.pi / 6  # 30 degrees [PV3D A.4]
SIDE_V_RAD = math.pi / 2 - 0.05  # vertical coordinate of the released side camera, see camera.eg3d_label
_TIMES = 120  # second word of the seeds, keeps streams apart


def view_cameras(protocol: str, focal: float = FOCAL) -> Tensor:
    """Returns the labels [2, 25] of the front and of the side camera.

    The front camera is the canonical one, the side camera stands at yaw 30 degrees: in 'paper' at eye level,
    in 'released' at v = pi / 2 - 0.05, which is 1.8 degrees above it.

    focal: of the cameras in training, image widths.
    """
    side = camera.orbit_label(SIDE_YAW_RAD, focal=focal)
    if protocol == 'released':
        side = camera.eg3d_label(math.pi / 2 + SIDE_YAW_RAD, SIDE_V_RAD, focal)
    return torch.stack([camera.front_label(focal), side])


class GeneratedViews(shooting.Generated):
    """Views of generated clips: item i has the codes of item i of GeneratedClips and two times of the span.

    The times are different ones in 'paper'; 'released' draws with replacement, so they may be equal. The
    mapping sees the canonical camera, or each image's own in a network conditioned so ('non').
    """

    def item(self, i: int) -> MultiView:
        """See Source."""
        rng = np.random.default_rng((self.seed, _TIMES, i))
        span = self.G.config.span
        drawn = rng.choice(span, 2, replace=self.protocol == 'released')
        t = torch.from_numpy(drawn / (span - 1)).float()
        front, side = view_cameras(self.protocol, self.G.config.focal)
        cameras, times = torch.stack([front, side, side, front]), t[[0, 1, 0, 1]]
        images, shot = self.shoot(i, cameras, times)
        image = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return MultiView(image, shot.depth, shot.opacity, shot.xyz, cameras, t)


class FolderViews(Source):
    """Views in files NAME.npz with the arrays of MultiView by name, so that any network can be measured.

    Cameras and world are those of training/camera.py. An optional file views.json beside them has the entries
    `bin_size` (distance of two samples along a ray, scene units) and `protocol`; None without.
    """

    def __init__(self, path: str | Path, count: int | None = None) -> None:
        """Looks for files; count = None takes all, else the first in natural order.

        Raises:
            UserError: when no file can be read, or views.json is invalid.
        """
        self.root = Path(path)
        found = self.root.glob('*.npz') if self.root.is_dir() else []
        self.paths = sorted((p for p in found if p.name[0] != '.'), key=lambda p: natural(p.name))[:count]
        if not self.paths:
            raise UserError(f'{path} must be a folder with views, NAME.npz each')
        self.size, self.count = self._first_size(), len(self.paths)
        self.bin_size, self.protocol = _read_note(self.root / 'views.json')

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See Source."""
        return {'source': 'folder', 'files': files_digest(self.root, self.paths), 'resolution': self.size}

    def name(self, i: int) -> str:
        """See Source."""
        return self.paths[i].name

    def item(self, i: int) -> MultiView:
        """See Source."""
        view = load_view(self.paths[i])
        size = view.image.shape[2]
        if size != self.size:
            raise Skip(f'images of {size}x{size}, the others have {self.size}x{self.size}')
        checked(view.image.permute(0, 2, 3, 1).numpy())
        return view

    def _first_size(self) -> int:
        for path in self.paths:
            try:
                return load_view(path).image.shape[2]
            except Skip as err:
                reason = f'{path.name}: {err}'
        raise UserError(f'{self.root}: none of {len(self.paths)} files holds views; the last one: {reason}')


def load_view(path: Path) -> MultiView:
    """Reads a file of FolderViews.

    Raises:
        Skip: when it is corrupted, or an array is missing, of another shape or kind, or not finite.
        OSError: when the machine could not read it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in MultiView._fields}
    except Exception as err:  # corrupted files make numpy and zipfile raise a dozen unrelated types
        if blames_machine(err):
            raise
        raise Skip(f'cannot be read ({err})') from err
    side, low = arrays['image'].shape[-1:], arrays['depth'].shape[-1:]
    shapes = [(4, 3, *side, *side), *((4, n, *low, *low) for n in (1, 1, 3)), (4, camera.LABEL_DIM), (2,)]
    for (name, array), shape in zip(arrays.items(), shapes, strict=True):
        typed = array.dtype == np.uint8 if name == 'image' else array.dtype.kind in 'fiu'
        if not (typed and array.size and array.shape == shape and np.isfinite(array).all()):
            raise Skip(f'{name} is {array.dtype} {list(array.shape)}; expected finite {list(shape)}')
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return MultiView(**{name: x if name == 'image' else x.float() for name, x in tensors.items()})


def _read_note(path: Path) -> tuple[float | None, str | None]:
    """Returns bin size and protocol of views.json, an optional file."""
    try:
        note = json.loads(path.read_bytes()) if path.exists() else {}
        bin_size, protocol = note.get('bin_size'), note.get('protocol')
        valid = (bin_size is None or 0 < bin_size < math.inf) and protocol in (None, *shooting.PROTOCOLS)
    except (ValueError, AttributeError, TypeError):
        valid = False
    if not valid:
        raise UserError(
            f'{path} must be a JSON object such as {{"bin_size": 0.0223, "protocol": "paper"}}, with a '
            f'positive bin_size and the protocol {" or ".join(shooting.PROTOCOLS)}; correct or remove it'
        )
    return bin_size, protocol


def save_views(
    source: Source,
    folder: str | Path,
    progress: Progress = lambda count: None,
    bin_size: float | None = None,
    protocol: str | None = None,
) -> dict[int, str]:
    """Writes the views of a source as NUMBER.npz, those that are missing; processes share the work.

    views.json in the folder describes them. Returns the reasons of the failures, by item.

    Raises:
        UserError: when the folder holds views of another source, or of other options.
    """
    folder, made = Path(folder), {'bin_size': bin_size, 'protocol': protocol}
    claim_folder(folder, 'views.json', {'views': source.identity, **made})

    def save(i: int) -> None:
        path = folder / f'{i:05d}.npz'
        if not path.exists():
            arrays = {name: x.numpy() for name, x in source.item(i)._asdict().items()}
            with atomic_write(path) as file:
                np.savez_compressed(file, **arrays)

    return save_items(len(source), save, progress)
