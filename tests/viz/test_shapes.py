"""Surfaces of analytic fields: radius, orientation, colours, levels, files."""

import json

import numpy as np
import pytest
import torch
import trimesh

from dnnlib.util import Skip
from support import tiny
from viz import rollout, shapes

RADIUS, CENTRE = 0.3, torch.tensor([0.05, -0.02, 0.1])


def sphere(peak=200.0, radius=RADIUS):
    """Returns a field: a ball whose density falls through 10 at its radius, coloured by position."""

    def field(points):
        distance = (points - CENTRE).norm(dim=-1, keepdim=True) - radius
        raw = np.log(np.expm1(10)) + 1 - peak * distance  # softplus(raw - 1) = 10 at the radius
        return (points + 0.5).clamp(0, 1), raw

    return field


def surface(field, resolution=48, level=10.0):
    """Returns vertices and faces of a field in a box of side 1."""
    return shapes.extract_surface(shapes.density_grid(field, resolution, 1.0), level, 1.0)


def test_grid_is_the_field_at_voxel_centres(monkeypatch):
    monkeypatch.setattr(shapes, '_POINT_CHUNK', 100)  # does not divide 6^3
    grid = shapes.density_grid(sphere(), 6, 2.0)
    axis = (torch.arange(6) + 0.5) / 3 - 1
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), -1)
    expected = torch.nn.functional.softplus(sphere()(points)[1][..., 0] - 1)
    np.testing.assert_allclose(grid, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_sphere_has_its_place_radius_and_orientation():
    vertices, faces = surface(sphere())
    np.testing.assert_allclose(np.linalg.norm(vertices - CENTRE.numpy(), axis=1), RADIUS, rtol=0.01)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.02)  # negative if turned inside out
    outward = (mesh.triangles_center - CENTRE.numpy()) * mesh.face_normals
    assert (outward.sum(axis=1) > 0.9 * RADIUS).all()


def test_surface_is_closed_at_the_walls_of_the_box():
    vertices, faces = surface(sphere(radius=0.6), 24)
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    assert np.abs(vertices).max() <= 0.5 + 1 / 24


def test_level_of_a_thin_scene_lies_where_rays_become_half_opaque():
    depth = (torch.arange(64) + 0.5) / 64
    profile = 4 * (1 - depth).expand(64, 64, 64)  # 4 at the back of the box, 0 at its front, along z
    level = shapes.choose_level(profile.numpy(), 1.0).value
    # from the front, d in: density 4 d, thickness 2 d^2 = ln 2
    assert level == pytest.approx(4 * np.sqrt(np.log(2) / 2), rel=0.03)


def test_a_dense_head_is_separated_from_haze():
    """As in the demo network: all frontal rays end in haze, which fills the box, a few in the head."""
    density = np.maximum(shapes.density_grid(sphere(radius=0.2), 32, 1.0), 3)
    assert shapes.choose_level(density, 1.0).value == 10
    density[:, :, :16] += 40 * (np.indices((32, 32, 16))[:2].sum(0) < 4)  # 10 of 1024 rays, out of the way
    density = np.minimum(density, 3 + 7 * (np.indices((32, 32, 32))[:2].sum(0) < 4))
    assert shapes.choose_level(density, 1.0).value == pytest.approx(3)


def test_the_head_is_the_solid_in_the_middle():
    """Not that with the most triangles, which is a wall here, nor a speck in the middle."""
    alone = shapes.density_grid(sphere(radius=0.15), 48, 1.0)
    density = alone.copy()
    density[:, :, :6] = 20
    density[24, 24, 42] = density[20, 34, 30] = 20
    wall, head = density[:, :, :6].size, (alone > 10).sum()
    assert head < wall
    kept = shapes.head_part(density, 10)
    assert np.array_equal(kept > 10, alone > 10)
    assert np.array_equal(kept[density <= 10], density[density <= 10])  # where the surface ends is as it was


def test_a_hollow_head_keeps_its_skin():
    density = shapes.density_grid(sphere(radius=0.32), 48, 1.0)
    density[shapes.density_grid(sphere(radius=0.25), 48, 1.0) > 10] = 0
    mesh = trimesh.Trimesh(*shapes.extract_surface(shapes.head_part(density, 10), 10, 1.0), process=False)
    assert np.linalg.norm(mesh.vertices - CENTRE.numpy(), axis=1).max() == pytest.approx(0.32, abs=0.02)
    assert mesh.volume > 0


def test_with_an_empty_middle_the_largest_solid_is_kept():
    density = np.zeros((32, 32, 32), np.float32)
    density[:, :, :3] = density[4, 4, 28] = 20
    assert np.argwhere(shapes.head_part(density, 10) > 10)[:, 2].max() == 2
    assert np.array_equal(shapes.head_part(density, 30), density)


def test_thin_air_is_skipped_with_a_reason():
    with pytest.raises(Skip, match='no surface: .* 39% opaque'):  # 1 - exp(-0.5)
        shapes.choose_level(np.full((8, 8, 8), 0.5, np.float32), 1.0)
    with pytest.raises(Skip, match='never cross 1e[+]09'):
        surface(sphere(), 8, level=1e9)


def test_colours_come_from_under_the_skin():
    """The field is black outside the ball and red within it: vertices on the border must be red."""

    def field(points):
        inside = (points - CENTRE).norm(dim=-1, keepdim=True) < RADIUS
        return inside * torch.tensor([1.0, 0.0, 0.0]), torch.where(inside, 200.0, -20.0)

    vertices, faces = surface(field)
    features = shapes.shell_features(field, vertices, faces, 1 / 48)
    assert features.shape == (len(vertices), 3)
    assert features[:, 0].min() > 0.9
    assert features[:, 1:].max() == 0


def test_colours_vary_with_the_place(monkeypatch):
    monkeypatch.setattr(shapes, '_POINT_CHUNK', 1000)
    vertices, faces = surface(sphere(), 32)
    features = shapes.shell_features(sphere(), vertices, faces, 1 / 32).numpy()
    assert np.abs(features - (vertices + 0.5)).max() < 2 / 32


@pytest.mark.parametrize('kind', shapes.FORMATS)
def test_files_come_back(tmp_path, kind):
    vertices, faces = surface(sphere(), 16)
    colors = np.repeat(np.array([[0, 128, 255]], np.uint8), len(vertices), axis=0)
    path = tmp_path / f'ball.{kind}'
    shapes.save_mesh(path, shapes.Mesh(vertices.astype(np.float32), faces, colors), 'made\nby é')
    note = 'made\nby é' if kind == 'glb' else r'made by \xe9'  # one line of ASCII
    assert (json.dumps(note) if kind == 'glb' else f' {note}\n').encode() in path.read_bytes()
    mesh = trimesh.load(path, force='mesh')
    assert mesh.volume == pytest.approx(trimesh.Trimesh(vertices, faces).volume, rel=1e-4)
    stored = mesh.visual.vertex_colors[0, :3].tolist()
    assert stored == ([0, 55, 255] if kind == 'glb' else [0, 128, 255])  # glTF stores linear light


def test_mesh_of_a_network_has_the_colours_of_its_images(monkeypatch):
    G = tiny.generator().eval()
    monkeypatch.setattr(type(G), 'sample_field', lambda self, planes, points: features_of_ball(points))
    codes = rollout.draw_codes(G, 0)
    ws = rollout.map_codes(G, codes, torch.zeros(1, 25), torch.zeros(1))
    mesh, level = shapes.head_mesh(G, rollout.scene_at(G, codes, ws, torch.zeros(1)), ws, 24)
    assert level.value == 10
    flat = torch.full((1, 8, 1, 1), 0.25 * 2 - 1)
    expected = G.to_rgb_raw(flat, ws).detach().flatten() * 127.5 + 127.5
    assert np.abs(mesh.colors - expected.clamp(0, 255).numpy()).max() < 1


def features_of_ball(points):
    """A ball with eight features, all 0.25."""
    return torch.full((*points.shape[:-1], 8), 0.25), sphere()(points)[1]
