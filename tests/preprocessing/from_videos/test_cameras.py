import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocessing.faces import canonical
from preprocessing.from_videos import cameras
from support import head_views
from support.head_views import SIZE, angles_between, landmarks, orbit, positions, second_difference
from training import camera

YAW, PITCH = (a.ravel() for a in np.meshgrid(np.linspace(-45, 45, 7), np.linspace(-20, 20, 5)))


def test_finds_known_cameras():
    labels = orbit(YAW, PITCH)
    found = cameras.estimate_cameras(landmarks(labels), SIZE, 0)
    assert np.allclose(found.labels, labels, atol=1e-5)
    assert found.residual < 1e-3


def test_finds_known_cameras_in_noise():
    labels = orbit(YAW, PITCH)
    found = cameras.estimate_cameras(landmarks(labels, noise=0.5), SIZE, 0)
    assert angles_between(found.raw_labels, labels).max() < 0.3
    direction = (positions(found.raw_labels) * positions(labels)).sum(axis=1) / camera.RADIUS**2
    assert np.rad2deg(np.arccos(np.minimum(direction, 1))).max() < 0.3
    assert found.residual == pytest.approx(0.5 * np.sqrt(np.pi / 2), rel=0.05)  # mean of Rayleigh's law


def test_any_position_and_roll():
    rng = np.random.default_rng(3)
    turn = Rotation.from_euler('xyz', rng.uniform(-30, 30, (20, 3)), degrees=True).as_matrix()
    rotation = turn @ np.diag([1.0, -1, -1])
    shift = np.stack([rng.uniform(-8, 8, 20), rng.uniform(-8, 8, 20), rng.uniform(70, 200, 20)], axis=1)
    face = canonical.points()
    seen = cameras.project(face, rotation, shift)
    depth = (face @ rotation.swapaxes(1, 2))[..., 2:] / shift[:, None, 2:] * cameras.FOCAL
    found = cameras.face_pose(np.concatenate([seen, depth], axis=-1))
    assert np.allclose(found[0], rotation, atol=1e-5)
    assert np.allclose(found[1], shift, atol=1e-3)


def test_derivatives():
    rng = np.random.default_rng(4)
    face, points = canonical.points()[::50], rng.uniform(size=(1, 10, 2))
    rotation, shift = Rotation.from_rotvec([[2.9, 0.2, 0.3]]).as_matrix(), np.array([[1.0, -2, 110]])
    _, jacobian = cameras._linearise(points, face, rotation, shift)
    for i in range(6):
        ends = []
        for h in (1e-5, -1e-5):
            step = np.zeros(6)
            step[i] = h
            turned = Rotation.from_rotvec(step[None, :3]).as_matrix() @ rotation
            ends.append(cameras._linearise(points, face, turned, shift + step[3:] * shift[:, 2:])[0])
        assert np.allclose((ends[0] - ends[1]) / 2e-5, jacobian[..., i], atol=1e-6)


def test_long_clips_are_solved_in_blocks(monkeypatch):
    """Memory does not grow with the length of a clip, and the poses stay the same."""
    points = landmarks(orbit(np.linspace(-30, 30, 50), np.linspace(-9, 9, 50)), noise=0.5)
    whole = cameras.estimate_cameras(points, SIZE, 2)
    seen, solve = [], cameras.refine_pose

    def refine_pose(points, *args):
        seen.append(len(points))
        return solve(points, *args)

    monkeypatch.setattr(cameras, 'refine_pose', refine_pose)
    monkeypatch.setattr(cameras, '_BLOCK', 16)
    parts = cameras.estimate_cameras(points, SIZE, 2)
    assert seen == [16, 16, 16, 2]
    assert np.allclose(parts.labels, whole.labels, atol=1e-6)


def test_outliers_do_no_harm():
    labels = orbit(YAW, PITCH)
    points = landmarks(labels, noise=0.5)
    rng = np.random.default_rng(5)
    for frame in points:
        frame[rng.choice(468, 40, replace=False)] += rng.uniform(20, 80, (40, 3))
    found = cameras.estimate_cameras(points, SIZE, 0)
    assert angles_between(found.raw_labels, labels).max() < 0.5


def test_smoothing_removes_the_jitter_and_keeps_the_motion():
    t = np.arange(60)
    labels = orbit(30 * np.sin(t / 20), 10 * np.cos(t / 15))
    found = cameras.estimate_cameras(landmarks(labels, noise=1.5), SIZE, 2)
    rough, left = (second_difference(x - labels) for x in (found.raw_labels, found.labels))
    assert left < rough / 3
    assert angles_between(found.labels, labels).max() < 0.5
    assert np.allclose(np.linalg.norm(positions(found.labels), axis=1), 2.7)


def test_face_rests_in_its_place():
    """The middle between the eyes, the tip of the nose and the mouth, in EG3D's world."""
    face = head_views.world_face()
    assert np.allclose(face[[33, 263]].mean(axis=0), [0, 0.083, 0.186], atol=0.01)
    assert face[:, 2].max() == pytest.approx(face[4, 2])  # the nose is nearest
    assert np.abs(face).max() < 0.5
