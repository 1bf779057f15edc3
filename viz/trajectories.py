"""Camera paths and time stamps of generated clips: labels [T, 25] (see camera.py) and times [T].

Angles are true ones in radians: yaw positive = camera at positive x, pitch positive = camera above the head.
`focal` is that of the cameras which the network has seen in training (`G.config.focal`), in image widths.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dnnlib.scene import FOCAL, LABEL_DIM, Camera
from dnnlib.util import UserError
from torch_utils.checkpoint import Snapshot
from training import camera
from training.data.files import read_index
from training.networks.contract import VideoGenerator

TIME_MODES = ('pingpong', 'cycle', 'extend')
VIEW_YAWS_DEG = (-30, 0, 30)
VIEW_NAMES = tuple(f'yaw {yaw}' for yaw in VIEW_YAWS_DEG)
ORBIT_YAW_RAD = 0.35  # amplitude, about 20 degrees [PV3D released]


def front(frames: int, focal: float = FOCAL) -> Tensor:
    """Returns the canonical frontal camera `frames` times."""
    return camera.front_label(focal).expand(frames, -1)


def placed(cameras: Sequence[Camera], focal: float = FOCAL) -> Tensor:
    """Returns the labels [T, 25] of cameras given by angles; those without a field of view have `focal`."""
    labels = [
        camera.orbit_label(
            math.radians(c.yaw),
            math.radians(c.pitch),
            radius=c.radius,
            pivot=c.look_at,
            focal=c.focal(focal),
        )
        for c in cameras
    ]
    return torch.stack(labels)


def orbit(frames: int, yaw_rad: float = ORBIT_YAW_RAD, focal: float = FOCAL) -> Tensor:
    """Returns one turn of PV3D's ellipse about the face.

    Yaw = `yaw_rad` sin(a), a = 2 pi i / frames. EG3D's vertical coordinate, pi/2 - 0.05 + 0.25 cos(a), is not
    an angle: the true pitch is asin((0.1 - 0.5 cos(a)) / pi), from -7.3 degrees (a = 0, camera below) to
    +11.0 (a = pi, camera above). Source: the released rendering script, with pi where it has 3.14.
    """
    middle, angles = math.pi / 2, [2 * math.pi * i / frames for i in range(frames)]
    coordinates = [(middle + yaw_rad * math.sin(a), middle - 0.05 + 0.25 * math.cos(a)) for a in angles]
    return torch.stack([camera.eg3d_label(*place, focal) for place in coordinates])


def recorded(labels: Tensor, frames: int) -> Tensor:
    """Returns the cameras [T, 25] of a real clip, played forward and backward when `frames` exceeds T."""
    return labels[_pingpong(frames, len(labels))]


def mapping_cameras(G: VideoGenerator, choice: Camera | str, cameras: Tensor, real: bool = False) -> Tensor:
    """Returns the cameras that the mapping sees: one for the whole clip [1, 25], or one for each frame.

    Args:
        G: generator.
        choice: a camera, or one of dnnlib.scene.MAP_CAMERAS.
        cameras: of the frames [T, 25].
        real: cameras of a real clip: `auto` then is the first of them, else the canonical one.
    """
    if isinstance(choice, Camera):
        return placed([choice], G.config.focal)
    fixed = {'canonical': front(1, G.config.focal), 'first': cameras[:1], 'per-frame': cameras}
    if choice in fixed:
        return fixed[choice]
    return G.mapping_cameras(cameras, fixed['first' if real else 'canonical'])


def view_labels(focal: float = FOCAL) -> Tensor:
    """Returns the cameras [3, 25] of a contact sheet: yaw -30, 0, 30 degrees at eye level."""
    return camera.orbit_label(torch.tensor(VIEW_YAWS_DEG).deg2rad(), focal=focal)


def frame_times(frames: int, span: int, mode: str = 'pingpong') -> Tensor:
    """Returns the times [frames] that go into the motion layers.

    Args:
        frames: number of frames.
        span: frames per training clip; training saw t = i / (span - 1) in [0, 1].
        mode: beyond the span, 'pingpong' runs forward and backward without a jump, 'cycle' restarts at 0 (as
            the released script does), 'extend' continues beyond 1: training never saw z_m t there; waves
            that are not anchored go on as in training (`training/networks/motion.py:MotionPath`).
    """
    index = torch.arange(frames)
    index = {'pingpong': _pingpong(frames, span), 'cycle': index % span, 'extend': index}[mode]
    return index / max(span - 1, 1)


def _pingpong(frames: int, span: int) -> Tensor:
    period = max(2 * (span - 1), 1)
    index = torch.arange(frames) % period
    return torch.minimum(index, period - index) if span > 1 else index * 0


def recorded_cameras(snapshot: Snapshot, data: str | None) -> list[Tensor]:
    """Returns the cameras [T, 25] of real clips, out of a data set or the snapshot."""
    if data:
        index = read_index(data)
        bounds = zip(index.clips, index.starts[:-1], index.starts[1:], strict=True)
        clips = [torch.from_numpy(index.cameras[a:b]) for name, a, b in bounds if name not in index.problems]
        if not clips:
            raise UserError(f'--data {data} has no usable clip; see dataset_tool.py check')
        return clips
    try:
        clips = [torch.as_tensor(clip, dtype=torch.float32) for clip in snapshot.meta.get('cameras') or []]
    except (TypeError, ValueError, RuntimeError):
        clips = []
    if not clips or any(clip.ndim != 2 or clip.shape[1] != LABEL_DIM or not len(clip) for clip in clips):
        raise UserError(
            f'{snapshot.path} holds no cameras of real clips, which --trajectory dataset needs; give --data'
        )
    return clips
