"""Clips: codes depend on their seed alone, batches and chunks change nothing, MapT maps once."""

import dataclasses

import pytest
import torch

from support import tiny
from viz import rollout, trajectories


@pytest.fixture(scope='module')
def G():
    return tiny.generator().eval()


def clip(G, frames=5, cameras=None, times=None, **options):
    """Renders a short clip and joins it."""
    codes = rollout.draw_codes(G, 7)
    cameras = trajectories.orbit(frames) if cameras is None else cameras
    times = trajectories.frame_times(frames, 16) if times is None else times
    ws = rollout.map_codes(G, codes, cameras[:1], times)
    batches = rollout.render_frames(G, codes, ws, cameras, times, rollout.RenderOptions(**options))
    return rollout.concatenate(list(batches))


def test_codes_come_from_one_generator_per_seed(G):
    generator = torch.Generator().manual_seed(5)
    z_a, z_m = (torch.randn(1, 16, generator=generator) for _ in range(2))  # not equal: motion is independent
    for codes in (rollout.draw_codes(G, 5), rollout.draw_codes(G, 5, motion_seed=5)):
        assert torch.equal(codes.z_a, z_a) and torch.equal(codes.z_m, z_m)
    mixed = rollout.draw_codes(G, 5, motion_seed=9)
    assert torch.equal(mixed.z_a, z_a) and torch.equal(mixed.z_m, rollout.draw_codes(G, 9).z_m)


def test_frames_are_those_of_the_generator(G):
    frames = clip(G)
    cameras, times = trajectories.orbit(5), trajectories.frame_times(5, 16)
    z_a, z_m = (z.expand(5, -1) for z in rollout.draw_codes(G, 7))
    with torch.no_grad():
        direct = G(z_a, z_m, times, cameras, cameras[:1].expand(5, -1))
    for name in rollout.Frames._fields:
        torch.testing.assert_close(getattr(frames, name), getattr(direct, name), atol=1e-5, rtol=0)


def test_batches_and_chunks_change_nothing(G):
    whole = clip(G, frame_batch=8, ray_chunk=None)
    for options in ({'frame_batch': 1}, {'frame_batch': 2, 'ray_chunk': 5}):
        for a, b in zip(whole, clip(G, **options), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.fixture
def synthesised(monkeypatch):
    """The number of scenes in each call of the synthesis."""
    sizes, plain = [], tiny.Generator.scene

    def scene(self, codes, ws, t):
        sizes.append(len(t))
        return plain(self, codes, ws, t)

    monkeypatch.setattr(tiny.Generator, 'scene', scene)
    return sizes


def test_one_moment_from_many_sides_needs_one_synthesis(G, synthesised):
    """Whether the cameras stand in one batch or not; an orbit about a frozen face synthesises once."""
    times, views = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0, 0.0]), trajectories.view_labels().repeat(2, 1)
    shared = clip(G, cameras=views, times=times, frame_batch=6)
    assert synthesised == [2]
    alone = clip(G, cameras=views, times=times, frame_batch=1)
    assert synthesised == [2, 1, 1]
    torch.testing.assert_close(shared.image, alone.image, atol=1e-5, rtol=0)
    clip(G, frames=9, times=torch.zeros(9))
    assert synthesised == [2, 1, 1, 1]


def test_scenes_are_kept_while_they_are_needed_and_fit(G, synthesised, monkeypatch):
    """t goes forth, back and forth again; with room for one scene alone, the same frames take more work."""
    times = torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0])
    kept = clip(G, frames=7, times=times, frame_batch=2)
    assert synthesised == [2, 1]
    monkeypatch.setattr(rollout, '_KEPT_BYTES', 4 * 3 * 8 * 32 * 32)
    synthesised.clear()
    again = clip(G, frames=7, times=times, frame_batch=2)
    assert sum(synthesised) > 3
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_stacked_scenes_keep_their_layout():
    """Channels innermost, as the renderer reads planes."""
    planes = torch.randn(2, 3, 8, 4, 4).permute(0, 1, 4, 2, 3)
    stacked = rollout._stack([planes[1], planes[0]])
    assert torch.equal(stacked, planes.flip(0)) and stacked.stride() == planes.stride()


def test_renderer_of_the_options_is_used(G):
    renderer = dataclasses.replace(G.config.renderer, resolution=12)
    frames = clip(G, frames=2, renderer=renderer)
    assert frames.depth.shape == (2, 1, 12, 12)
    assert frames.image.shape == (2, 3, 32, 32)


def test_mapping_once_for_each_camera_or_for_each_time():
    times = torch.linspace(0, 1, 4)
    cameras = trajectories.orbit(4)
    for kind, one, many in (('modconv', 1, 4), ('naive', 4, 4), ('shared_code', 1, 4)):
        G = tiny.generator(motion=tiny.motion(kind=kind)).eval()
        codes = rollout.draw_codes(G, 0)
        assert len(rollout.map_codes(G, codes, cameras[:1], times)) == one
        ws = rollout.map_codes(G, codes, cameras, times)
        assert len(ws) == many
        frames = rollout.concatenate(list(rollout.render_frames(G, codes, ws, cameras, times)))
        assert frames.image.shape == (4, 3, 32, 32)
