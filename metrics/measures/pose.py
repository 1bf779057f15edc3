"""Error of the camera that generated faces show, against the one that was asked for, as EG3D reports it.

A face detector finds five points; the camera is the one from which a mean face shows them there. A mean face
is not that person's, so that real faces have an error, too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from dnnlib.util import Skip
from metrics.base import Context, Metric
from metrics.detectors.face_alignment import FACE_POINTS, find_faces
from metrics.measures.consistency import MultiView
from training.camera import front_label, unpack_label

_WORST = 0.05  # image widths that points may lie beside those of the fitted camera, root mean square


class PoseError(NamedTuple):
    """Errors of a camera, degrees."""

    value: float  # angle of the rotation between both cameras
    yaw: float  # difference of the viewing directions
    pitch: float


def camera_rotation(points: Tensor, label: Tensor) -> np.ndarray:
    """Finds the camera that shows the mean face with its five points at given places.

    Args:
        points: in the image, which is [0, 1]^2, [5, 2].
        label: whose intrinsics the camera has [25].

    Returns:
        camera-to-world rotation [3, 3].

    Raises:
        Skip: when no camera shows them so.
    """
    face, seen = np.array(FACE_POINTS), points.double().cpu().numpy()
    intrinsics = unpack_label(label.double().cpu())[1].numpy()
    start = unpack_label(front_label().double())[0].numpy()
    frontal, position = Rotation.from_matrix(start[:3, :3]), start[:3, 3]

    def residuals(x: np.ndarray) -> np.ndarray:
        turned = (frontal * Rotation.from_rotvec(x[:3])).as_matrix()
        local = (face - position - x[3:]) @ turned
        projected = local @ intrinsics.T
        return (projected[:, :2] / projected[:, 2:] - seen).ravel()

    found = least_squares(residuals, np.zeros(6))
    if np.sqrt(np.mean(found.fun**2)) > _WORST:
        raise Skip('the points of the face are not those of a face')
    return (frontal * Rotation.from_rotvec(found.x[:3])).as_matrix()


def pose_error(found: np.ndarray, label: Tensor) -> PoseError:
    """Compares a camera-to-world rotation [3, 3] with that of a camera [25]."""
    asked = unpack_label(label.double().cpu())[0][:3, :3].numpy()
    angle = Rotation.from_matrix(found @ asked.T).magnitude()
    angles = [(np.arctan2(-r[0, 2], -r[2, 2]), np.arcsin(np.clip(-r[1, 2], -1, 1))) for r in (found, asked)]
    yaw, pitch = (abs(a - b) for a, b in zip(*angles, strict=True))
    return PoseError(*(float(np.degrees(x)) for x in (angle, yaw, pitch)))


@Metric(
    name='pose',
    on='views',
    title='angle between the camera a face is seen from and the one asked for, degrees',
    goal='lower is better',
    depends_on=('protocol', 'landmarks'),
)
def pose(views: MultiView, context: Context) -> Mapping[str, Any]:
    """Returns the mean errors over the four views."""
    if context.faces is None:
        raise Skip('pose needs faces that are found: --landmarks detected and --protocol paper')
    found = find_faces(views.image.to(context.settings.device), context.faces.network)
    if any(face is None for face in found):
        raise Skip('no face found')
    size = views.image.shape[-1]
    errors = [
        pose_error(camera_rotation((points + 0.5) / size, label), label)
        for points, label in zip(found, views.cameras, strict=True)
    ]
    means = torch.tensor(errors).mean(dim=0).tolist()
    return PoseError(*means)._asdict()
