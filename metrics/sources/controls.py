"""Controls: degraded versions of generated items, to see whether a metric notices.

The control `frozen`, faces that do not move before a moving camera, is made by clips.GeneratedClips.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib.util import Skip
from metrics.measures.consistency import OPAQUE, MultiView
from metrics.sources.items import Changed, Source
from training import camera
from training.volumetric_rendering.ray_sampler import camera_rays

FRONT = (0, 3)  # views of t0 and t1 from the front
SIDE = (2, 1)  # views of t0 and t1 from the side
_LOOP = 15  # frames of a loop: a training span of 16, whose last frame is the first of the next
_SHUFFLE = 104  # second word of the seeds, keeps streams apart


def control(source: Source, name: str, seed: int) -> Changed:
    """Returns the degraded items of a source; `name` is a key of CHANGES."""

    def change(item: Any, i: int) -> Any:
        return CHANGES[name](item, np.random.default_rng((seed, _SHUFFLE, i)))

    return Changed(source, change, {'control': name, 'seed': seed})


def static(clip: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Repeats the first frame."""
    return np.repeat(clip[:1], len(clip), axis=0)


def shuffled(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts the frames in another order."""
    order = rng.permutation(len(clip))
    while len(clip) > 1 and (order == np.arange(len(clip))).all():
        order = rng.permutation(len(clip))
    return clip[order]


def looped(clip: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Repeats the first 15 frames."""
    return clip[np.arange(len(clip)) % _LOOP]


def still(view: MultiView, _: np.random.Generator) -> MultiView:
    """Stops the head: t1 = t0."""
    order = [FRONT[0], SIDE[0], SIDE[0], FRONT[0]]
    return MultiView(*(x[order] for x in view[:5]), view.times[[0, 0]])


def flat(view: MultiView, _: np.random.Generator) -> MultiView:
    """Pastes each front image on one plane that faces the front camera and is seen by both cameras.

    The plane goes through the mean depth of what is opaque in the middle half of the front images: of the
    head, not of an opaque background. Images from the side are the exact homography, sampled bilinearly;
    depth, points and opacity are exact. Beyond the pasted image its border continues and opacity is 0.

    Raises:
        Skip: when no ray from the front hits the head.
    """
    size, front = view.depth.shape[-1], list(FRONT)
    middle = slice(size // 4, size - size // 4)
    points = view.xyz[front, :, middle, middle].flatten(2).transpose(1, 2)
    axial = camera.project(points, view.cameras[front, None])[1]
    hit = view.opacity[front, :, middle, middle].flatten(2).transpose(1, 2) > OPAQUE
    if not hit.any():
        raise Skip('no ray from the front hits the head')
    distance = axial[hit].double().mean()
    parts = [
        plane_view(view.image[p], view.cameras[p], view.cameras[k], distance, size)
        for k, p in enumerate((FRONT[0], FRONT[1], FRONT[0], FRONT[1]))
    ]
    image, depth, opacity, xyz = (torch.stack(x) for x in zip(*parts, strict=True))
    return MultiView(image, depth, opacity, xyz, view.cameras, view.times)


def plane_view(
    pasted: Tensor, front: Tensor, seen: Tensor, distance: Tensor, resolution: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Renders a plane that carries what one camera sees, from another camera.

    Args:
        pasted: image of the first camera, uint8 [3, H, H].
        front: label of the first camera [25]; the plane is perpendicular to its axis.
        seen: label of the other camera [25].
        distance: of the plane along the axis of the first camera, scene units.
        resolution: pixels along a side of depth, opacity and points.

    Returns:
        image [3, H, H], depth [1, h, h], opacity [1, h, h], points [3, h, h] of the other camera.

    Raises:
        Skip: when a ray of the other camera does not meet the plane.
    """
    pose = camera.unpack_label(front.double())[0]
    axis, point = pose[:3, 2], pose[:3, 3] + distance * pose[:3, 2]

    def hits(size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns places in the image [size, size, 2], depths [size, size], points [size, size, 3]."""
        matrices = camera.unpack_label(seen.double()[None])
        origin, direction = (x[0].unflatten(0, (size, size)) for x in camera_rays(*matrices, size))
        depth = ((point - origin) @ axis) / (direction @ axis)
        if not (depth > 0).all():
            raise Skip('a camera does not look at the plane')
        points = origin + depth[..., None] * direction
        return camera.project(points, front.double())[0], depth, points

    place = hits(pasted.shape[-1])[0][None] * 2 - 1
    image = nn.functional.grid_sample(
        pasted[None].double(), place, padding_mode='border', align_corners=False
    )
    place, depth, points = hits(resolution)
    inside = ((place >= 0) & (place <= 1)).all(dim=-1)
    maps = (depth[None], inside[None], points.permute(2, 0, 1))
    return image[0].round().to(torch.uint8), *(x.float() for x in maps)


CHANGES: Mapping[str, Callable[[Any, np.random.Generator], Any]] = {
    'static': static,
    'shuffled': shuffled,
    'looped': looped,
    'flat': flat,
    'still': still,
}
