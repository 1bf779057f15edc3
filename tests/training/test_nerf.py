"""3DVidGen: sizes as published, fields and upsampling against closed forms, a run from start to views."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dnnlib.util import ConfigError
from metrics.sources.clips import GeneratedClips
from metrics.sources.views import GeneratedViews
from support import tiny
from support.small_runs import assert_same, everything, train
from torch_utils.checkpoint import read_snapshot, snapshot_path
from training.baselines import BASELINES
from training.camera import unpack_label
from training.networks import nerf_layers
from training.networks.contract import Codes
from training.networks.nerf import NerfGenerator
from training.networks.registry import load_generator
from training.volumetric_rendering.ray_sampler import camera_rays
from training.volumetric_rendering.renderer import RendererConfig

CONFIG = NerfGenerator.Config(
    resolution=32,
    z_dim=16,
    w_dim=16,
    mapping_layers=2,
    hidden=8,
    layers=3,
    features=6,
    background_code=5,
    background_hidden=8,
    background_layers=2,
    code_dim=16,
    channel_base=256,
    channel_max=8,
    renderer=RendererConfig(
        resolution=8, depth_samples=4, importance_samples=4, ray_start=2.376, ray_end=3.024
    ),
)


@pytest.fixture(scope='module')
def G():
    return tiny.build(CONFIG).eval().requires_grad_(False)


def codes_of(G, n, seed=0):
    return G.draw_codes(n, tiny.seeded(seed))


def test_sizes_as_published():
    with torch.device('meta'):
        G = NerfGenerator.Config(resolution=256).build()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in G.named_children()}
    assert counts['mapping_network'] == 2_101_248 and counts['background'] == 37_188
    # view directions, which are left out, have 24 x 256 + 256
    assert counts['foreground'] + counts['color'] + counts['motion'] == 884_160 - 6400
    blocks = [sum(p.numel() for p in block.parameters()) for block in G.blocks]
    assert blocks == [1_249_667, 772_675, 324_899]
    assert counts['motion'] == 98_688 and G.num_ws == 17


def test_coordinates_are_coded_octave_by_octave():
    x = tiny.draw(2, 3)
    found = nerf_layers.encode(x).unflatten(1, (3, 20))
    for k in range(10):
        tiny.same(found[:, 1, k], torch.sin(2**k * math.pi * x[:, 1]), 1e-9)
        tiny.same(found[:, 2, 10 + k], torch.cos(2**k * math.pi * x[:, 2]), 1e-9)


def test_rays_leave_spheres():
    origins = torch.nn.functional.normalize(tiny.draw(1, 4, 3), dim=-1)
    directions = torch.nn.functional.normalize(-origins + 0.1 * tiny.draw(1, 4, 3, seed=1), dim=-1)
    radius = torch.tensor([2.0, 5.0], dtype=torch.float64)
    found = nerf_layers.on_sphere(origins, directions, radius)
    tiny.same(found.norm(dim=-1), radius.expand(1, 4, 2))
    along = found - origins[:, :, None]
    tiny.same(torch.nn.functional.normalize(along, dim=-1), directions[:, :, None].expand_as(along))


def test_upsampling_mixes_neighbours():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    repeated, mixed = nerf_layers.beside_neighbours(x)[0]
    assert torch.equal(repeated, x[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1))
    # left 3, up 1, right 5, down 7 of the middle
    assert mixed[2:4, 2:4].tolist() == [[2, 3], [5, 6]]
    assert mixed[0, 0] == 0 and mixed[0, 1] == 0.5  # no left and no upper neighbour


@torch.no_grad()
def test_motion_is_one_vector_for_all_points_of_the_first_layer(G):
    codes, t = codes_of(G, 2), torch.tensor([0.3, 0.9])
    ws = G.condition(codes, tiny.cameras(2), t)
    assert ws.shape == (2, G.num_ws + 1, 16)
    tiny.same(ws[:, -1, :5], codes.z_a[:, 16:])
    scene, points = G.scene(codes, ws, t), 0.3 * torch.randn((2, 7, 3), generator=tiny.seeded(3))
    vector = G.motion(codes.z_m * t[:, None])
    x = nerf_layers.encode(points / 2.7).transpose(1, 2)[..., None]
    x = G.foreground.layers[0](x, ws[:, 0]) + vector[:, :, None, None]
    for i in (1, 2):
        x = G.foreground.layers[i](x, ws[:, i])
    features = G.foreground.features(x, ws[:, 4])[..., 0].transpose(1, 2)
    found, density = G.sample_field(scene, points)
    tiny.same(2 * found[..., 3:] - 1, features, 1e-5)
    tiny.same(2 * found[..., :3] - 1, G.color(features.flatten(0, 1)).unflatten(0, (2, 7)), 1e-5)
    tiny.same(density, G.foreground.density(x, ws[:, 3])[..., 0].transpose(1, 2), 1e-5)
    still = [G.motion_at(Codes(codes.z_a, z), 0 * t) for z in codes.z_m[:, None]]
    assert torch.equal(*still)  # at t = 0 all codes have the same frame


@torch.no_grad()
def test_an_empty_scene_shows_the_background(G, monkeypatch):
    codes, t, c = codes_of(G, 1), torch.zeros(1), tiny.cameras(1)
    ws = G.condition(codes, c, t)
    field = G.sample_field

    def empty(scene, points):
        features, density = field(scene, points)
        return features, density - 1000

    def full(scene, points):
        features, density = field(scene, points)
        return features, density + 1e6

    monkeypatch.setattr(G, 'sample_field', empty)
    out = G.render(G.scene(codes, ws, t), ws, c)
    rays = camera_rays(*unpack_label(c), 8)
    behind = G.background(rays[0] / 2.7, rays[1], codes.z_a[:, 16:])[..., :3]
    assert out.opacity.max() < 1e-6 and out.image.shape == (1, 3, 32, 32)
    tiny.same(out.image_raw.flatten(2).transpose(1, 2), behind, 1e-4)
    monkeypatch.setattr(G, 'sample_field', full)
    solid = G.render(G.scene(codes, ws, t), ws, c)
    other = ws.clone()
    other[:, -1] += 1
    again = G.render(G.scene(codes, other, t), other, c)
    assert solid.opacity.min() > 0.999 and torch.allclose(solid.image_raw, again.image_raw, atol=1e-3)
    tiny.differs(solid.image_raw, out.image_raw)


@torch.no_grad()
def test_rendering_in_chunks_and_with_other_rays(G):
    codes, t, c = codes_of(G, 2), torch.tensor([0.2, 0.7]), tiny.cameras(2)
    ws = G.condition(codes, c, t)
    whole, parts = (G.render(G.scene(codes, ws, t), ws, c, ray_chunk=n) for n in (None, 10))
    for a, b in zip(whole, parts, strict=True):
        tiny.same(a, b, 1e-5)
    fine = G.render(G.scene(codes, ws, t), ws, c, dataclasses.replace(CONFIG.renderer, resolution=12))
    assert fine.image.shape == (2, 3, 32, 32) and fine.image_raw.shape == (2, 3, 12, 12)
    rendered, mapping = G.training_cameras(tiny.cameras(2, 3), tiny.cameras(2, 3, seed=1))
    assert (rendered == rendered[:, :1]).all() and (mapping == mapping[:, :1]).all()
    truncated = G.condition(codes, c, t, psi=0)
    assert (truncated[:, :-1] == 0).all() and torch.equal(truncated[:, -1], ws[:, -1])


def test_sizes_that_do_not_go_together():
    for change in ({'resolution': 24}, {'resolution': 8}, {'background_code': 17}):
        with pytest.raises(ConfigError, match='renderer.resolution=8'):
            dataclasses.replace(CONFIG, **change)


def test_a_run_of_3dvidgen(small, tmp_path):
    """It trains all phases, continues bit for bit, is filmed and seen from sides."""
    config = BASELINES['3dvidgen'](dataclasses.replace(small, total_nimg=4, d_reg_interval=1))
    whole = train(config, tmp_path / 'whole')
    assert whole.networks.D_image.b32.fromrgb.weight.shape[1] == 3 and whole.networks.D_image.mapping is None
    assert whole.progress.nonfinite == 0
    train(config, tmp_path / 'parts', until=2)
    assert_same(everything(train(config, tmp_path / 'parts')), everything(whole), least=100)
    G = load_generator(read_snapshot(snapshot_path(whole.run_dir, 4)))
    assert isinstance(G, NerfGenerator)
    clip = GeneratedClips(G, [whole.dataset.clip_cameras(0)], 4, 0, 1, still='camera').item(0)
    assert clip.shape == (4, 32, 32, 3) and np.ptp(clip, axis=0).max() > 0
    assert GeneratedViews(G, 0, 1).item(0).depth.shape == (4, 1, 8, 8)
