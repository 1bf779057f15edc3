"""Camera paths and times: closed forms."""

import math

import pytest
import torch

from training import camera
from viz import trajectories


def angles(labels):
    """Returns true yaw and pitch of the cameras, degrees, from their positions alone."""
    position = camera.unpack_label(labels)[0][..., :3, 3].double()
    yaw = torch.atan2(position[..., 0], position[..., 2])
    return yaw.rad2deg(), torch.asin(position[..., 1] / position.norm(dim=-1)).rad2deg()


def test_orbit_has_the_documented_angles():
    yaw, pitch = angles(trajectories.orbit(120))
    degrees = math.degrees(0.35)
    assert yaw[[0, 30, 60, 90]].tolist() == pytest.approx([0, degrees, 0, -degrees], abs=1e-4)
    assert pitch[0].item() == pytest.approx(-7.3, abs=0.05)
    assert pitch[60].item() == pytest.approx(11.0, abs=0.05)
    expected = [math.asin((0.1 - 0.5 * math.cos(2 * math.pi * i / 120)) / math.pi) for i in range(120)]
    assert pitch.tolist() == pytest.approx([math.degrees(x) for x in expected], abs=1e-4)
    assert angles(trajectories.orbit(4, math.radians(60)))[0][1].item() == pytest.approx(60, abs=1e-4)


def test_views_have_the_documented_angles():
    yaw, pitch = angles(trajectories.view_labels())
    assert yaw.tolist() == pytest.approx([-30, 0, 30], abs=1e-4)
    assert pitch.abs().max() < 1e-4


def test_cameras_have_the_focal_length_asked_for():
    paths = trajectories.front(2, 7.0), trajectories.orbit(3, focal=7.0), trajectories.view_labels(7.0)
    for labels in paths:
        assert labels[:, [16, 20]].unique().tolist() == [7.0]


def test_recorded_cameras_go_forward_and_backward():
    clip = torch.arange(3.0)[:, None].expand(3, 25)
    assert trajectories.recorded(clip, 8)[:, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert trajectories.recorded(clip[:1], 3)[:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ('mode', 'indices'),
    [('pingpong', [0, 1, 2, 3, 2, 1, 0, 1]), ('cycle', [0, 1, 2, 3, 0, 1, 2, 3]), ('extend', list(range(8)))],
)
def test_times_within_the_span_and_beyond(mode, indices):
    times = trajectories.frame_times(8, 4, mode)
    torch.testing.assert_close(times, torch.tensor(indices) / 3)
    torch.testing.assert_close(trajectories.frame_times(16, 16, mode), torch.linspace(0, 1, 16))
