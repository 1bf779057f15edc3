"""Cameras: projection against hand-made geometry, orbits, mirroring."""

import math

import pytest
import torch

from support.tiny import same
from training import camera

POINTS = torch.tensor(
    [[0.0, 0.0, 0.2], [0.1, 0.0, 0.2], [0.0, 0.1, 0.2], [-0.05, 0.12, 0.3]], dtype=torch.float64
)


def skewed_labels(n: int) -> torch.Tensor:
    """Cameras at random places with intrinsics in which every number counts, float64 [n, 25]."""
    generator = torch.Generator().manual_seed(3)
    yaw, pitch = 0.8 * torch.randn(2, n, generator=generator)
    pose, _ = camera.unpack_label(camera.orbit_label(yaw, 0.4 * pitch).double())
    intrinsics = torch.tensor([[4.0, 0.3, 0.45], [0.0, 4.4, 0.58], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return camera.pack_label(pose, intrinsics.expand(n, 3, 3))


def angles(pose: torch.Tensor) -> tuple[float, float]:
    """Returns yaw and pitch of where a camera stands, 2.7 from the origin."""
    x, y, z = pose[:3, 3].tolist()
    return math.atan2(x, z), math.asin(y / 2.7)


def test_label_round_trip():
    label = torch.arange(50.0).reshape(2, 25)
    pose, intrinsics = camera.unpack_label(label)
    assert pose[1].tolist()[0] == [25, 26, 27, 28] and intrinsics[0].tolist()[1] == [19, 20, 21]
    assert torch.equal(camera.pack_label(pose, intrinsics), label)


def test_frontal_camera_is_the_canonical_one():
    pose, intrinsics = camera.unpack_label(camera.front_label())
    same(pose, torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]]), 1e-6)
    assert torch.equal(intrinsics, torch.tensor([[4.2647, 0, 0.5], [0, 4.2647, 0.5], [0, 0, 1]]))


def test_frontal_projection_by_hand():
    uv, depth = camera.project(POINTS, camera.front_label().double())
    focal = float(torch.tensor(4.2647))
    expected = [[0.5, 0.5], [0.5 + 0.1 * focal / 2.5, 0.5], [0.5, 0.5 - 0.1 * focal / 2.5]]
    same(uv[:3], torch.tensor(expected, dtype=torch.float64), 1e-6)
    same(depth[:, 0], 2.7 - POINTS[:, 2], 1e-6)


@pytest.mark.parametrize(('yaw', 'pitch'), [(0.0, 0.0), (0.7, 0.0), (-0.5, 0.3), (2.5, -0.6)])
def test_orbit_stands_at_the_angles_and_looks_at_the_pivot(yaw, pitch):
    label = camera.orbit_label(yaw, pitch).double()
    pose, _ = camera.unpack_label(label)
    assert angles(pose) == pytest.approx((yaw, pitch), abs=1e-6)
    same(pose[:3, :3].T @ pose[:3, :3], torch.eye(3).double(), 1e-6)
    assert torch.linalg.det(pose[:3, :3]).item() == pytest.approx(1, abs=1e-6)
    uv, depth = camera.project(torch.tensor(camera.PIVOT, dtype=torch.float64), label)
    same(uv, torch.tensor([0.5, 0.5], dtype=torch.float64), 1e-5)
    above, _ = camera.project(torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64), label)
    assert depth.item() > 0 and above[1] < 0.5 and above[0] == pytest.approx(0.5, abs=1e-5)


def test_eg3d_pitch_is_not_an_angle():
    pose, _ = camera.unpack_label(camera.eg3d_label(math.pi / 2 + 0.3, math.pi / 2 - 0.4))
    yaw, pitch = angles(pose)
    assert yaw == pytest.approx(0.3, abs=1e-6)
    assert pitch == pytest.approx(0.2575, abs=5e-4)  # v 0.4 below pi / 2 is only 0.257 rad


def test_mirroring_moves_the_image_of_every_mirrored_point():
    labels = skewed_labels(5)
    mirrored = camera.mirror_label(labels)
    for point in POINTS:
        uv, depth = camera.project(point, labels)
        other_uv, other_depth = camera.project(point * torch.tensor([-1.0, 1.0, 1.0]), mirrored)
        same(other_uv, torch.stack([1 - uv[:, 0], uv[:, 1]], dim=1), 1e-12)
        same(other_depth, depth, 1e-12)
    torch.testing.assert_close(camera.mirror_label(mirrored), labels)
    rotation = camera.unpack_label(mirrored)[0][:, :3, :3]
    same(torch.linalg.det(rotation), torch.ones(5).double(), 1e-6)
