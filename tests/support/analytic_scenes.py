"""Scenes whose images and depths are exact: a ray meets planes and spheres in closed form."""

from typing import NamedTuple

import torch

from metrics.measures.consistency import MultiView
from training import camera
from training.volumetric_rendering.ray_sampler import camera_rays

YAWS = (0.0, torch.pi / 6)


class Plane(NamedTuple):
    """Points p with normal . p = offset; the pattern gives colours [P, 3] for points [P, 3]."""

    normal: tuple
    offset: float
    pattern: object

    def distance(self, origins, directions):
        normal = torch.tensor(self.normal, dtype=origins.dtype)
        t = (self.offset - origins @ normal) / (directions @ normal)
        return torch.where(t > 0, t, torch.inf)


class Sphere(NamedTuple):
    centre: tuple
    radius: float
    pattern: object

    def distance(self, origins, directions):
        away = origins - torch.tensor(self.centre, dtype=origins.dtype)
        b = (away * directions).sum(-1)
        root = b**2 - (away**2).sum(-1) + self.radius**2
        return torch.where(root > 0, -b - root.clamp(min=0).sqrt(), torch.inf)


def waves(points):
    """A smooth pattern over the whole range of colours that is fixed to places in the world."""
    x, y, z = points.unbind(-1)
    red, green, blue = (31 * x + 17 * y).sin(), (23 * y - 11 * z).sin(), (19 * x + 13 * y + 7 * z + 1).sin()
    return 127.5 + 100 * torch.stack([red, green, blue], dim=-1)


def flat(level):
    return lambda points: torch.full_like(points, level)


def cast(objects, label, size):
    """Returns distance (inf = nothing) [size^2] and colour [size^2, 3] through the pixel centres."""
    pose, intrinsics = camera.unpack_label(label.double()[None])
    origins, directions = (t[0] for t in camera_rays(pose, intrinsics, size))
    distances = torch.stack([o.distance(origins, directions) for o in objects])
    nearest, winner = distances.min(dim=0)
    points = origins + torch.where(nearest.isfinite(), nearest, 0)[:, None] * directions
    colours = torch.stack([o.pattern(points) for o in objects])[winner, torch.arange(len(winner))]
    return nearest, torch.where(nearest.isfinite()[:, None], colours, 0.0)


def render(objects, label, image_size, depth_size, rays):
    """Returns image (rays x rays a pixel), depth, opacity and points of one view, as in MultiView."""
    colour = cast(objects, label, rays * image_size)[1].T.reshape(1, 3, rays * image_size, rays * image_size)
    image = torch.nn.functional.avg_pool2d(colour, rays)[0].round().to(torch.uint8)
    distance, _ = cast(objects, label, depth_size)
    opacity = distance.isfinite().double()
    depth = torch.where(distance.isfinite(), distance, 3.3)
    pose, intrinsics = camera.unpack_label(label.double()[None])
    origins, directions = (t[0] for t in camera_rays(pose, intrinsics, depth_size))
    xyz = (origins + depth[:, None] * directions).T.reshape(3, depth_size, depth_size)
    shape = (1, depth_size, depth_size)
    return image, depth.reshape(shape).float(), opacity.reshape(shape).float(), xyz.float()


def multi_view(scene_t0, scene_t1, image_size=256, depth_size=64, yaws=YAWS, pitch=0.05, rays=2):
    """Renders two scenes (lists of objects) into a MultiView; the pitch is that of the side views."""
    labels = [camera.orbit_label(yaws[0], 0.0), camera.orbit_label(yaws[1], pitch)]

    def view(scene, yaw):
        return render(scene, labels[yaw], image_size, depth_size, rays)

    front, side = view(scene_t0, 0), view(scene_t0, 1)
    same = scene_t0 is scene_t1
    views = [front, side if same else view(scene_t1, 1), side, front if same else view(scene_t1, 0)]
    fields = (torch.stack(field) for field in zip(*views, strict=True))
    return MultiView(*fields, torch.stack([labels[yaw] for yaw in (0, 1, 1, 0)]), torch.tensor([0.2, 0.7]))


def still(scene, **options):
    """Renders a scene that does not move."""
    return multi_view(scene, scene, **options)
