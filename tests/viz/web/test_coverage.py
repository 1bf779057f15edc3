"""Limits of the orbit, and the browser's camera as one on our sphere."""

import numpy as np
import pytest
import torch

from dnnlib.scene import PIVOT
from training.camera import front_label, orbit_label
from viz.web.coverage import DEFAULT, Coverage, angles, covered, orbit_place, orbit_position


def test_angles_are_those_of_the_label():
    yaw, pitch = torch.tensor([-40.0, 0, 12]), torch.tensor([5.0, -3, 0])
    found = angles(orbit_label(yaw.deg2rad(), pitch.deg2rad()))
    np.testing.assert_allclose(found, torch.stack([yaw, pitch], 1), atol=1e-4)


def test_what_clips_cover():
    assert covered([]) == DEFAULT
    clip = orbit_label(torch.tensor([-20.3, 10]).deg2rad(), torch.tensor([4.0, 7.2]).deg2rad())
    assert covered([clip, front_label()[None]]) == Coverage((-21.0, 10.0), (0.0, 8.0))
    assert covered([orbit_label(0.4)[None]]).yaw == (0.0, 23.0)  # the front is always part of it


@pytest.mark.parametrize(
    ('wanted', 'shown'),
    [
        ((5, 5), (5, 5, False)),
        ((30, 5), (20, 5, True)),
        ((5, -30), (5, -10, True)),
        ((20.01, 0), (20, 0, False)),
    ],
)
def test_clamp(wanted, shown):
    assert Coverage((-20.0, 20.0), (-10.0, 10.0)).clamp(*wanted) == shown


@pytest.mark.parametrize('place', [(0, 0), (40, 10), (-70, -20), (89, 60)])
def test_direction_and_distance_of_the_browsers_camera_count(place):
    """The camera of our sphere looks at the pivot; panned, it is the same."""
    position, pivot = orbit_position(*place), np.array(PIVOT)
    np.testing.assert_allclose(position, orbit_label(*np.radians(place))[[3, 7, 11]], atol=1e-6)
    np.testing.assert_allclose(orbit_place(position, pivot), (*place, 1), atol=1e-9)
    nearer, pan = orbit_position(*place, zoom=0.4), np.array([0.3, -0.1, 0.2])
    np.testing.assert_allclose(orbit_place(nearer + pan, pivot + pan), (*place, 0.4), atol=1e-9)
