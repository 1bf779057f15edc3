"""Numbers of the world, for code with and without torch; training/camera.py has the conventions."""

import dataclasses
import math

from dnnlib.util import UserError

LABEL_DIM = 25  # numbers of a camera label: 4x4 camera-to-world and 3x3 intrinsics
RADIUS = 2.7  # distance of the camera from the origin, scene units [EG3D FFHQ]
PIVOT = (0.0, 0.0, 0.2)  # point that sampled cameras look at, scene units [EG3D FFHQ]
FOCAL = 4.2647  # focal length in image widths [EG3D FFHQ]

# Smallest and largest value of each number of a camera; a pitch of 90 degrees has no upright image.
CAMERA_LIMITS = {'yaw': (-360, 360), 'pitch': (-89, 89), 'fov': (1, 120), 'radius': (0.1, 100)}
MAP_CAMERAS = ('auto', 'canonical', 'first', 'per-frame')  # cameras of the mapping network that have a name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """An upright camera on a sphere about the origin.

    Raises:
        UserError: for numbers that no camera has.
    """

    yaw: float = 0.0  # degrees, 0 = frontal, positive = camera at positive x
    pitch: float = 0.0  # degrees, positive = camera above the head
    fov: float | None = None  # field of view, degrees; None = that of the training cameras
    radius: float = RADIUS  # distance from the origin, scene units
    look_at: tuple[float, float, float] = PIVOT  # scene units

    def __post_init__(self) -> None:
        for name, (low, high) in CAMERA_LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f'{name} {value:g} of a camera must be {low:g} to {high:g}')
        if not all(map(math.isfinite, self.look_at)) or math.hypot(*self.look_at) >= self.radius:
            raise UserError(
                f'the camera looks at {self.look_at}, which must be nearer to the origin than its radius '
                f'{self.radius:g}'
            )

    def focal(self, trained: float = FOCAL) -> float:
        """Returns the focal length in image widths; `trained` is that of the training cameras."""
        return trained if self.fov is None else 0.5 / math.tan(math.radians(self.fov) / 2)

    def __str__(self) -> str:
        """Returns what `parse_camera` turns into exactly this camera."""
        fov = '' if self.fov is None else repr(self.fov)
        angles = f'{self.yaw!r},{self.pitch!r},{fov}'
        if (self.radius, self.look_at) == (RADIUS, PIVOT):
            return angles.removesuffix(',')
        return ','.join([angles, *map(repr, (self.radius, *self.look_at))])


def fov_degrees(focal: float) -> float:
    """Returns the field of view of a focal length in image widths."""
    return math.degrees(2 * math.atan(0.5 / focal))


def parse_camera(text: str) -> Camera:
    """Parses YAW,PITCH[,FOV[,RADIUS,X,Y,Z]]; an empty FOV is that of the training cameras.

    Raises:
        UserError: for anything else.
    """
    parts = [part.strip() for part in text.split(',')]
    try:
        numbers = [None if i == 2 and not part else float(part) for i, part in enumerate(parts)]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3, 7):
        raise UserError(f'{text!r} is not a camera; write YAW,PITCH or YAW,PITCH,FOV, for example 20,-5,13.4')
    named = dict(zip(CAMERA_LIMITS, numbers, strict=False))
    return Camera(**named, **({'look_at': tuple(numbers[4:])} if len(numbers) == 7 else {}))


def parse_map_camera(text: str) -> Camera | str:
    """Parses the camera of the mapping network: a name or a camera; UserError as parse_camera."""
    if text in MAP_CAMERAS:
        return text
    if ',' not in text:
        raise UserError(f'{text!r} is none of {", ".join(MAP_CAMERAS)}, nor a camera: YAW,PITCH[,FOV]')
    return parse_camera(text)
