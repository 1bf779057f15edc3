"""Cameras out of five points of a face: exact for the mean face, refused for what is no face."""

import math

import numpy as np
import pytest
import torch

from dnnlib.scene import PIVOT, RADIUS
from dnnlib.util import Skip
from metrics.base import METRICS, Context, Request, Settings
from metrics.detectors.face_alignment import project_face_points
from metrics.measures.consistency import MultiView
from metrics.measures.pose import camera_rotation, pose, pose_error
from training.camera import orbit_label, unpack_label

LABELS = orbit_label(torch.tensor([0.0, math.pi / 6, math.pi / 6, 0.0]), torch.tensor([0.0, 0.2, -0.1, 0.0]))


def direction_deg(yaw_rad):
    """The direction in which a camera of a yaw looks: at the pivot, not at the middle of its orbit."""
    x, z = RADIUS * math.sin(yaw_rad), RADIUS * math.cos(yaw_rad)
    return math.degrees(math.atan2(x - PIVOT[0], z - PIVOT[2]))


@pytest.mark.parametrize('label', LABELS[:3])
def test_the_camera_of_the_mean_face_is_found(label):
    points = (project_face_points(label[None], 64)[0] + 0.5) / 64
    rotation = camera_rotation(points, label)
    np.testing.assert_allclose(rotation, unpack_label(label)[0][:3, :3], atol=1e-4)
    assert max(pose_error(rotation, label)) < 0.01


def test_errors_are_angles():
    error = pose_error(unpack_label(LABELS[1].double())[0][:3, :3].numpy(), orbit_label(math.pi / 6, 0.1))
    assert error.yaw == pytest.approx(0, abs=0.5) and error.pitch == pytest.approx(math.degrees(0.1), abs=0.5)
    assert error.value == pytest.approx(math.degrees(0.1), abs=0.5)
    turned = pose_error(unpack_label(LABELS[0].double())[0][:3, :3].numpy(), orbit_label(0.3))
    assert turned.yaw == pytest.approx(direction_deg(0.3), abs=0.01)


def test_points_that_are_no_face():
    with pytest.raises(Skip, match='not those of a face'):
        camera_rotation(torch.tensor([[0.1, 0.1], [0.9, 0.9], [0.1, 0.9], [0.9, 0.1], [0.5, 0.1]]), LABELS[0])


class Faces:
    """A detector that finds what it is told."""

    def __init__(self, points):
        self.network = lambda images: self
        self.points, self.scores = points, torch.ones(len(points))


def context(faces, tmp_path):
    request = Request(name='pose', metric='pose', count=None, frames=16, detector=None)
    return Context(request, Settings(cache=tmp_path), None, faces, None, None)


def test_metric(tmp_path):
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    views = MultiView(images, None, None, None, LABELS, None)
    seen = project_face_points(LABELS, 64)
    assert pose(views, context(Faces(seen), tmp_path))['value'] < 0.01
    moved = pose(views, context(Faces(seen[[0, 0, 0, 0]]), tmp_path))
    # two of four are asked for from the side
    assert moved['yaw'] == pytest.approx(direction_deg(math.pi / 6) / 2, abs=0.2)
    with pytest.raises(Skip, match='landmarks detected'):
        pose(views, context(None, tmp_path))
    assert METRICS['pose'].stage == 'views'
