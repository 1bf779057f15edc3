"""Volume rendering against closed forms, and samples and rays independent of their neighbours."""

import math

import pytest
import torch

from dnnlib.util import UserError
from support.tiny import cameras, same, seeded
from training.camera import orbit_label, pack_label, project, unpack_label
from training.volumetric_rendering import renderer
from training.volumetric_rendering.ray_marcher import composite
from training.volumetric_rendering.ray_sampler import camera_rays
from training.volumetric_rendering.renderer import RendererConfig, render_rays
from training.volumetric_rendering.sampling import importance_depths, stratified_depths

EMPTY = -1e4  # raw density of nothing


def raw_density(density):
    """Returns the raw value that `activate_density` turns into `density`."""
    return math.log(math.expm1(density)) + 1


def skewed_camera():
    pose, intrinsics = unpack_label(orbit_label(0.4, -0.2).double())
    intrinsics[0] += torch.tensor([0.7, 0.35, 0.06])
    intrinsics[1] += torch.tensor([0.0, -0.4, -0.03])
    return pack_label(pose, intrinsics)


@pytest.mark.parametrize('label', [orbit_label(0.0), orbit_label(-0.5, 0.3), skewed_camera()])
def test_rays_go_through_pixel_centres(label):
    label = label.double()[None]
    origins, directions = camera_rays(*unpack_label(label), 5)
    assert origins.shape == directions.shape == (1, 25, 3)
    same(directions.norm(dim=-1), torch.ones(1, 25).double(), 1e-5)
    assert torch.equal(origins, label[:, None, [3, 7, 11]].expand(1, 25, 3))
    points = origins + 2.3 * directions
    pixels, depth = project(points, label[:, None])
    centres = (torch.arange(5) + 0.5).double() / 5
    expected = torch.cartesian_prod(centres, centres).flip(1)  # row by row, x fastest
    same(pixels[0], expected, 1e-6)  # float32 rotations
    assert (depth > 0).all()


def sphere(density, radius, centre=(0.0, 0.0, 0.0), color=(0.25, 0.75)):
    """Returns the field of a ball of constant density and color."""

    def field(points):
        inside = (points - points.new_tensor(centre)).norm(dim=-1, keepdim=True) < radius
        features = points.new_tensor(color).expand(*points.shape[:2], len(color))
        return features, torch.where(inside, raw_density(density), EMPTY).to(points.dtype)

    return field


@pytest.mark.parametrize(('fine', 'jitter'), [(0, False), (400, False), (400, True)])
@pytest.mark.parametrize('density', [0.8, 4.0, 40.0])
def test_sphere(density, fine, jitter):
    """Opacity 1 - exp(-density L) and the mean of the exponential distribution cut at the chord length L."""
    radius = 0.3
    config = RendererConfig(resolution=8, depth_samples=1600, importance_samples=fine)
    origins, directions = camera_rays(*unpack_label(orbit_label(0.2, 0.1, pivot=(0, 0, 0)).double()[None]), 8)
    random = seeded(0) if jitter else None
    out = render_rays(sphere(density, radius), origins, directions, config, random)
    middle = -(origins * directions).sum(dim=-1, keepdim=True)
    chord = 2 * (radius**2 - (origins.square().sum(dim=-1, keepdim=True) - middle**2)).clamp_min(0).sqrt()
    opacity = 1 - torch.exp(-density * chord)
    gap = (3.3 - 2.25) / 1599 * (2 if jitter else 1)  # between samples, at most
    assert (chord > 0.1).sum() > 30
    error = (out.opacity - opacity).abs().max()
    assert error < 2 * density * gap  # the intervals that cross the surface, at both ends
    colors = opacity * torch.tensor([0.25, 0.75]).double() * 2 - 1
    assert (out.features - colors).abs().max() < 4 * density * gap
    hit = chord > 0.1
    depth = middle - chord / 2 + 1 / density - chord * torch.exp(-density * chord) / opacity
    assert (out.depth - depth)[hit].abs().max() < 3 * gap
    points = origins + directions * out.depth
    opaque = hit & (opacity > 1 - 1e-7)
    error = (out.points - points).norm(dim=-1, keepdim=True)
    assert opaque.any() == (density == 40.0) and (error[opaque] < 1e-5).all()


def test_two_coloured_plane():
    """A wall seen from the front: colors by side, depth along the ray (not along the optical axis)."""

    def field(points):
        x, z = points[..., :1], points[..., 2:]
        features = torch.cat([x > 0, x < 0], dim=-1).to(points.dtype)
        return features, torch.where(z < 0.1, 1e5, EMPTY).to(points.dtype)

    origins, directions = camera_rays(*unpack_label(orbit_label(0.0).double()[None]), 6)
    config = RendererConfig(resolution=6, depth_samples=700, importance_samples=0)
    out = render_rays(field, origins, directions, config)
    image = out.features.unflatten(1, (6, 6))[0]
    left, right = torch.tensor([-1.0, 1.0]).double(), torch.tensor([1.0, -1.0]).double()
    same(image[:, :3], left.expand(6, 3, 2), 1e-6)
    same(image[:, 3:], right.expand(6, 3, 2), 1e-6)
    distance = -(2.7 - 0.1) / directions[..., 2:]
    step = (3.3 - 2.25) / 699
    assert (out.depth - distance).abs().max() < step
    assert distance.max() - distance.min() > 5 * step
    assert (out.opacity - 1).abs().max() < 1e-6
    assert (out.points[..., 2] - 0.1).abs().max() < step


def test_composite_is_the_recursion():
    """Front to back, interval by interval, in plain arithmetic."""
    g = seeded(1)
    features, density = torch.rand((2, 3, 5, 2), generator=g), torch.randn((2, 3, 5, 1), generator=g) * 3
    depths = torch.rand((2, 3, 5, 1), generator=g).sort(dim=2).values + 1
    out = composite(features.double(), density.double(), depths.double())
    for n in range(2):
        for r in range(3):
            light, color, where, total = 1.0, torch.zeros(2).double(), 0.0, 0.0
            for s in range(4):
                raw = (density[n, r, s, 0] + density[n, r, s + 1, 0]).item() / 2
                length = (depths[n, r, s + 1, 0].double() - depths[n, r, s, 0].double()).item()
                alpha = 1 - math.exp(-math.log1p(math.exp(raw - 1)) * length)
                color += light * alpha * (features[n, r, s] + features[n, r, s + 1]).double() / 2
                where += light * alpha * (depths[n, r, s, 0] + depths[n, r, s + 1, 0]).item() / 2
                total += light * alpha
                light *= 1 - alpha
            same(out.features[n, r], color, 1e-6)
            assert out.depth[n, r].item() == pytest.approx(where / total, abs=1e-6)
            assert out.opacity[n, r].item() == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize('raw', [EMPTY, 1e4])
def test_gradients_stay_finite(raw):
    """Nothing along a ray, or a wall at its first sample (where the transmittance underflows)."""
    density = torch.full((1, 2, 6, 1), raw, requires_grad=True)
    depths = torch.linspace(2, 3, 6)[:, None].expand(1, 2, 6, 1)
    out = composite(torch.rand((1, 2, 6, 3), generator=seeded(0)), density, depths)
    (out.features.sum() + out.depth.sum() + out.opacity.sum()).backward()
    assert density.grad.isfinite().all() and out.depth.isfinite().all()


def test_stratified_depths():
    depths = stratified_depths(2.0, 3.0, 5, torch.tensor(0.25))[:, 0]
    torch.testing.assert_close(depths, torch.tensor([2.0, 2.25, 2.5, 2.75, 3.0]) + 0.0625)
    jitter = torch.rand((4, 50, 9, 1), generator=seeded(0))
    depths = stratified_depths(2.0, 3.0, 9, jitter)
    assert depths.shape == (4, 50, 9, 1)
    bins = ((depths[..., 0] - 2) * 8).floor()
    assert torch.equal(bins, torch.arange(9.0).expand(4, 50, 9))


def expected_pdf(weights):
    """The chance of each bin between middles: neighbours' maximum, averaged, with a floor.

    As in EG3D, a bin takes the weight of the interval that begins in its middle, and the last bin takes none.
    """
    padded = torch.cat([weights[:1] * 0 - 1, weights, weights[:1] * 0 - 1])
    largest = torch.maximum(padded[1:], padded[:-1])
    smooth = (largest[1:] + largest[:-1]) / 2 + 0.01
    pdf = smooth[1:-1] + 1e-5
    return pdf / pdf.sum()


def test_importance_sampling_follows_the_weights():
    s, draws = 9, 200_000
    depths = (torch.linspace(2, 3, s) ** 2)[None, None, :, None]  # bins of unequal width
    weights = torch.tensor([0.0, 0.0, 0.1, 0.5, 0.2, 0.0, 0.0, 0.3])[None, None, :, None]
    u = torch.rand((1, 1, draws), generator=seeded(3))
    fine = importance_depths(depths, weights, u)
    assert fine.shape == (1, 1, draws, 1) and not fine.requires_grad
    edges = ((depths[0, 0, 1:, 0] + depths[0, 0, :-1, 0]) / 2)[:-1]
    pdf = expected_pdf(weights.flatten())
    counts = torch.histogram(fine.flatten(), edges).hist
    assert counts.sum() == draws
    sigma = (draws * pdf * (1 - pdf)).sqrt()
    assert ((counts - draws * pdf).abs() < 4.5 * sigma).all()
    for lower, upper in zip(edges[:-1], edges[1:], strict=True):  # uniform within each bin
        inside = fine[(fine >= lower) & (fine < upper)]
        error = (inside.mean() - (lower + upper) / 2).abs()
        assert error < 4.5 * (upper - lower) / 12**0.5 / len(inside) ** 0.5


def test_importance_quantiles_are_monotonic_and_cover_the_range():
    depths = torch.linspace(2, 3, 7)[None, None, :, None].expand(2, 5, 7, 1)
    weights = torch.rand((2, 5, 6, 1), generator=seeded(4))
    fine = importance_depths(depths, weights, torch.linspace(0, 1, 33))
    assert fine.shape == (2, 5, 33, 1)
    assert (fine.diff(dim=2) >= 0).all()
    middles = (depths[:, :, 1:] + depths[:, :, :-1]) / 2
    torch.testing.assert_close(fine[:, :, 0], middles[:, :, 0])
    torch.testing.assert_close(fine[:, :, -1], middles[:, :, -2])  # see expected_pdf


@pytest.mark.parametrize('rays', [1, 5])
@pytest.mark.parametrize('jitter', [False, True])
def test_coarse_and_fine_samples_are_merged_in_order(rays, jitter, monkeypatch):
    kept = {}

    def spy(features, density, depths):
        kept.update(features=features, density=density, depths=depths)
        return composite(features, density, depths)

    monkeypatch.setattr(renderer, 'composite', spy)
    origins, directions = (x[:, :rays] for x in camera_rays(*unpack_label(cameras(2)), 4))
    config = RendererConfig(depth_samples=7, importance_samples=9)

    def field(points):  # features that show where they were taken
        return points, points[..., 2:] * 20

    out = render_rays(field, origins, directions, config, seeded(0) if jitter else None)
    assert out.features.shape == (2, rays, 3) and out.depth.shape == (2, rays, 1)
    depths = kept['depths']
    assert depths.shape == (2, rays, 16, 1) and (depths.diff(dim=2) >= 0).all()
    points = origins[:, :, None] + depths * directions[:, :, None]
    torch.testing.assert_close(kept['features'], points)
    torch.testing.assert_close(kept['density'], points[..., 2:] * 20)


@pytest.mark.parametrize('fine', [0, 8])
def test_every_ray_has_its_own_jitter_of_the_seed(fine):
    origins = torch.tensor([0.0, 0.0, 2.7]).expand(2, 2, 3)
    directions = torch.tensor([0.0, 0.0, -1.0]).expand(2, 2, 3)
    config = RendererConfig(depth_samples=8, importance_samples=fine)

    def depth(random):
        return render_rays(sphere(5.0, 0.3), origins, directions, config, random).depth

    assert len(depth(seeded(1)).unique()) == 4 and len(depth(None).unique()) == 1
    assert torch.equal(depth(seeded(1)), depth(seeded(1)))
    assert not torch.equal(depth(seeded(1)), depth(seeded(2)))


def test_empty_rays_know_nothing_of_their_neighbours():
    """The depth of a ray that meets nothing is the far end, whatever else is in the batch."""
    config = RendererConfig(depth_samples=8, importance_samples=8)
    origins = torch.tensor([[[0.0, 0.0, 2.7]], [[3.0, 0.0, 2.7]], [[0.0, 0.0, 5.0]]])  # the second one misses
    directions = torch.tensor([0.0, 0.0, -1.0]).expand(3, 1, 3)
    together = render_rays(sphere(20.0, 0.3), origins, directions, config)
    alone = render_rays(sphere(20.0, 0.3), origins[1:2], directions[1:2], config)
    assert together.opacity[1].item() == 0
    for name in ('features', 'depth', 'opacity', 'points'):
        torch.testing.assert_close(getattr(together, name)[1:2], getattr(alone, name))
    assert 3.0 < alone.depth.item() < 3.5  # EG3D clamped depths to the range of the whole batch
    torch.testing.assert_close(alone.features, torch.full_like(alone.features, -1.0))
    torch.testing.assert_close(alone.points, origins[1:2] + alone.depth * directions[1:2])


@pytest.mark.parametrize(
    'options',
    [{'resolution': 0}, {'depth_samples': 3}, {'importance_samples': -1}, {'ray_start': 0}, {'ray_end': 2.0}],
)
def test_impossible_sampling_is_refused(options):
    with pytest.raises(UserError, match='renderer:'):
        RendererConfig(**options)
