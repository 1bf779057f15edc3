"""Refined cameras: angles and intrinsics, against closed forms."""

import pytest
import torch

from dnnlib.scene import PIVOT
from editing import cameras
from support.tiny import same
from training.camera import orbit_label, project

ORIGIN = (0.0, 0.0, 0.0)


def offsets(**values):
    names = ('yaw', 'pitch', 'roll', 'right', 'down', 'zoom')
    return torch.tensor([[values.get(name, 0.0) for name in names]], dtype=torch.float64)


def label(yaw, pitch, **more):
    return orbit_label(yaw, pitch, **more).double()[None]


@pytest.mark.parametrize(('yaw', 'pitch'), [(0.0, 0.0), (0.3, 0.1), (-0.4, -0.2)])
def test_turning_is_that_of_orbits(monkeypatch, yaw, pitch):
    monkeypatch.setattr(cameras, 'PIVOT', ORIGIN)  # then both turn about one point
    start, end = (label(*angles, pivot=ORIGIN) for angles in ((yaw, pitch), (yaw + 0.2, pitch + 0.1)))
    same(cameras.turn(start, offsets(yaw=0.2, pitch=0.1)), end, atol=1e-6)


def test_turning_keeps_the_pivot_in_its_place():
    before = label(0.3, 0.1)
    after = cameras.turn(before, offsets(yaw=0.5, pitch=-0.2))
    pivot = torch.tensor(PIVOT, dtype=torch.float64)
    for a, b in zip(project(pivot, before), project(pivot, after), strict=True):
        same(a, b, atol=1e-6)  # labels are float32


def test_roll_turns_the_image():
    point, before = torch.tensor([0.1, 0.05, 0.0], dtype=torch.float64), label(0.0, 0.0)
    (x, y), (u, v) = (
        (project(point, c)[0][0] - 0.5).tolist()
        for c in (before, cameras.turn(before, offsets(roll=torch.pi / 2)))
    )
    assert (u, v) == pytest.approx((y, -x), abs=1e-6)


def test_crop_moves_and_scales_the_image():
    point, before = torch.tensor([0.1, 0.05, 0.0], dtype=torch.float64), label(0.2, 0.1)
    after = cameras.turn(before, offsets(right=0.02, down=-0.01, zoom=0.1))
    moved = (project(point, before)[0] - 0.5) * torch.tensor(0.1).double().exp() + 0.5
    same(project(point, after)[0], moved + torch.tensor([0.02, -0.01]).double(), atol=1e-7)


def test_gradients():
    start = label(0.3, 0.1)
    assert torch.autograd.gradcheck(lambda x: cameras.turn(start, x), offsets(yaw=0.1).requires_grad_())


def test_offsets_of_one_spread_each_cost_one():
    spread = torch.tensor([cameras.SPREAD]).double()
    same(cameras.improbability(spread), torch.tensor(6.0).double(), atol=1e-6)
    same(cameras.improbability(torch.cat([spread, 0 * spread])), torch.tensor(3.0).double(), atol=1e-6)
