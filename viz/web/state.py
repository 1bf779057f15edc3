"""What a browser has asked for: all that decides the image, checked, as plain values."""

import dataclasses
import math
import typing
from typing import Literal

from dnnlib.scene import Camera
from dnnlib.util import UserError
from viz.images import KINDS
from viz.look import Look
from viz.view import View

MapCamera = Literal['canonical', 'first', 'current']
MAX_SEED = 2**32 - 1
# lowest and highest value of numbers, and their decimals: what a command line states is what is shown
LIMITS = {
    'seed': (0, MAX_SEED, 0),
    'other_seed': (0, MAX_SEED, 0),
    'motion_seed': (0, MAX_SEED, 0),
    'mix': (0, 1, 3),
    'psi': (-1, 2, 3),
    'cutoff': (0, 1000, 0),
    'time': (0, 1e4, 5),
    'strength': (0, 2, 3),
    'yaw': (-89, 89, 2),
    'pitch': (-89, 89, 2),
    'fov': (3, 40, 3),
    'samples': (1, 4, 0),
    'split_at': (0, 1, 3),
}
_OPTIONAL = ('motion_seed', 'cutoff', 'fov')  # may be None
_CHOICES = {'kind': KINDS, 'second': (*KINDS, None), 'map_camera': typing.get_args(MapCamera)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """Who, when, from where, shown how."""

    # --- Person
    person: str = ''  # name of one who was handed in; empty = the seeds of the network
    seed: int = 0
    other_seed: int = 1  # mixed in
    mix: float = 0.0  # 0 = the seed alone, 1 = the other
    psi: float = 1.0  # truncation
    cutoff: int | None = None  # number of layers that are truncated; none = all
    # --- Motion
    motion: str = 'sampled'  # or the name of another motion of the person
    motion_seed: int | None = None  # none = the seed's own
    time: float = 0.0  # in spans of training; of a recording: in its length
    strength: float = 1.0  # factor on motion
    # --- Camera
    yaw: float = 0.0  # degrees
    pitch: float = 0.0  # degrees
    fov: float | None = None  # degrees; none = that of the training cameras
    map_camera: MapCamera = 'canonical'  # that the mapping network sees
    first: tuple[float, float, float | None] = (0.0, 0.0, None)  # yaw, pitch, fov of `map_camera=first`
    # --- View
    kind: str = 'image'
    second: str | None = None  # on the right of a split
    split_at: float = 0.5  # fraction of the width
    samples: int = 1  # factor on the samples of a ray

    def __post_init__(self) -> None:
        """Rounds numbers to what is printed.

        Raises:
            UserError: for a value that is not allowed, wherever it comes from.
        """
        for name, (low, high, digits) in LIMITS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
                raise UserError(f'{name.replace("_", " ")} is {value!r}; it must be {low} to {high}')
            # adding 0 makes 0 of -0
            object.__setattr__(self, name, round(float(value), digits) + 0.0 if digits else int(value))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f'{name.replace("_", " ")} must be one of {", ".join(map(str, known))}')

    @property
    def camera(self) -> Camera:
        """The camera that renders."""
        return Camera(yaw=self.yaw, pitch=self.pitch, fov=self.fov)

    def view(self, samples: int | None, resolution: int | None = None) -> View:
        """Returns the view that is rendered.

        Args:
            samples: of a ray, as trained; None without 3D.
            resolution: of the rays; None = as trained.
        """
        yaw, pitch, fov = self.first
        cameras = {
            'canonical': 'canonical',
            'first': Camera(yaw=yaw, pitch=pitch, fov=fov),
            'current': 'per-frame',
        }
        look = {'psi': self.psi, 'cutoff': self.cutoff}
        look |= {'mix_seed': self.other_seed, 'mix_weight': self.mix} if self.mix else {}
        return View(
            seed=self.seed,
            motion_seed=self.motion_seed,
            look=Look() if self.person else Look(**look),  # a portrait has one look
            time=self.time,
            strength=self.strength,
            camera=self.camera,
            map_camera=cameras[self.map_camera],
            neural_resolution=resolution,
            render_samples=samples * self.samples if samples and self.samples > 1 else None,
        )
