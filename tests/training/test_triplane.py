"""Lookup in three planes: linear ramps give coordinates back, nothing lies outside."""

import pytest
import torch

from support.tiny import same, seeded
from training.volumetric_rendering.triplane import PLANE_AXES, sample_planes


@pytest.mark.parametrize('axes', PLANE_AXES)
@pytest.mark.parametrize('box', [1.0, 1.6])
def test_planes_of_ramps(axes, box):
    """Two channels per plane that hold its own column and row coordinate: the lookup returns coordinates."""
    size = 16
    centres = ((torch.arange(size) + 0.5) / size - 0.5).double() * box
    rows, columns = torch.meshgrid(centres, centres, indexing='ij')
    planes = torch.zeros(1, 3, 6, size, size, dtype=torch.float64)
    for p in range(3):
        planes[0, p, 2 * p], planes[0, p, 2 * p + 1] = columns, rows
    points = (torch.rand((1, 200, 3), generator=seeded(0)).double() - 0.5) * box * (1 - 1 / size)
    found = sample_planes(planes, points, axes, box) * 3  # undoes the mean over planes
    named = {'xy_xz_yz': 'xyxzyz', 'released': 'xyxzzx'}[axes]
    expected = points[..., ['xyz'.index(name) for name in named]]
    same(found, expected, 1e-12)


@pytest.mark.parametrize('axes', PLANE_AXES)
def test_planes_are_zero_outside(axes):
    planes = torch.ones(1, 3, 2, 8, 8)
    points = torch.tensor([[[0.6, 0.6, 0.6], [-0.7, 0.9, -0.6], [0.0, 0.0, 0.0], [0.4, 0.1, 0.9]]])
    found = sample_planes(planes, points, axes, 1.0)[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0, 1 / 3]))  # the last one meets the xy plane


def test_a_point_that_is_nan_has_features_that_are():
    points = torch.zeros(1, 2, 3)
    points[0, 1, 0] = float('nan')  # so that training sees it, and skips the step
    found = sample_planes(torch.ones(1, 3, 2, 8, 8), points, 'xy_xz_yz', 1.0)
    assert found[0, 0].isfinite().all() and found[0, 1].isnan().all()


def test_samples_do_not_share_planes():
    planes = torch.randn((2, 3, 4, 8, 8), generator=seeded(0))
    points = torch.rand((2, 30, 3), generator=seeded(1)) - 0.5
    both = sample_planes(planes, points, 'xy_xz_yz', 1.0)
    torch.testing.assert_close(both[1:], sample_planes(planes[1:], points[1:], 'xy_xz_yz', 1.0))


def test_lookup_and_derivatives_are_those_of_grid_sample():
    """Points that want a gradient go through torch's own lookup; the others must give the same, and more."""
    layout = torch.channels_last
    planes = torch.randn((2, 9, 5, 7), generator=seeded(0)).double().contiguous(memory_format=layout)
    points = torch.rand((2, 40, 3), generator=seeded(1)).double() * 1.3 - 0.65  # some outside
    found = []
    for fixed in (points, points.clone().requires_grad_()):
        leaf = planes.clone().requires_grad_()
        values = sample_planes(leaf.unflatten(1, (3, 3)), fixed, 'xy_xz_yz', 1.0)
        found.append((values, *torch.autograd.grad(values.square().sum(), leaf)))
    for mine, torchs in zip(*found, strict=True):
        same(mine, torchs, 1e-12)

    def lookup(x):
        return sample_planes(x.unflatten(1, (3, 3)), points[:, :4], 'xy_xz_yz', 1.0)

    assert torch.autograd.gradgradcheck(lookup, planes.requires_grad_())
