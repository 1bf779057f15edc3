"""Figures of the tiny networks against people that are noise; what is rendered, and for whom."""

import dataclasses

import numpy as np
import pytest
import torch

from studies import measure, samples
from studies.broken import Seen, distance_between
from studies.measure import Judges, Sizes
from studies.sheet import heads, motion_maps, sheet
from studies.truth import TIMES, YAWS_DEG, Truth, grid_cameras
from support import tiny
from torch_utils.checkpoint import read_snapshot, save_snapshot
from training.networks.motion import MotionConfig
from training.networks.patch_discriminators import PairDiscriminator

SIZE, PEOPLE, PAIRS = 32, 2, 4
SIZES = Sizes(codes=2, motions=3, seeds=4, mapped=2, mapping_cameras=3, pairs=PAIRS)
CAMERAS = torch.from_numpy(grid_cameras(4.2647))


@pytest.fixture(scope='module')
def G():
    return tiny.generator().eval().requires_grad_(False)


@pytest.fixture(scope='module')
def noise():
    rng = np.random.default_rng(0)

    def images(*shape):
        return rng.integers(0, 256, (*shape, SIZE, SIZE, 3)).astype(np.uint8)

    cameras = tiny.cameras(PAIRS, 2).numpy()
    times = np.tile(np.float32([0, 1]), (PAIRS, 1))
    grid, portraits = images(PEOPLE, 4, len(TIMES), len(YAWS_DEG)), images(PEOPLE).astype(np.float32)
    return Truth(grid, portraits, images(PAIRS, 2), cameras, images(PAIRS, 3), cameras, times)


def test_grid_is_made_frame_by_frame(G):
    grid = samples.motion_grid(G, 2, 3, TIMES, CAMERAS, seed=5)
    assert grid.shape == (2, 3, len(TIMES), 3, 3, SIZE, SIZE)
    drawn = samples.draw(G, samples.GRID, 6, 5)
    a, m, k, y = 1, 2, 1, 2
    t = torch.tensor([TIMES[k]])
    one = drawn._replace(z_a=drawn.z_a[a : a + 1], z_m=drawn.z_m[a * 3 + m : a * 3 + m + 1])
    ws = G.condition(one, CAMERAS[1:2], t)
    image = G.render(G.scene(one, ws, t), ws, CAMERAS[y : y + 1]).image.clamp(-1, 1)
    np.testing.assert_allclose(grid[a, m, k, y], image[0].numpy(), atol=1e-5)


def test_pairs_see_cameras_as_in_training(G):
    t, c = torch.tensor([[0.0, 1.0]] * PAIRS), tiny.cameras(PAIRS, 2)
    images = samples.pairs(G, t, c, seed=0)
    assert images.shape == (PAIRS, 2, 3, SIZE, SIZE)
    first = samples.pairs(G, t[:, :1].expand(-1, 2), c[:, :1].expand(-1, 2, -1), seed=0)
    torch.testing.assert_close(images[:, 0], first[:, 1], rtol=0, atol=1e-5)


def test_rows_of_motion(G, noise):
    real = measure.as_floats(noise.grid)
    rows = {row.name: row for row in measure.motion_rows(real, real, 4.2647)}
    assert rows['z_m-specific motion, sd over that of the data'].network.value == pytest.approx(1)
    assert rows['motion in mouth and eyes'].network == rows['motion in mouth and eyes'].data
    inside = sum(
        measure.region(c, 4.2647, SIZE).mean() for c in (measure._MOUTH, measure._EYES)
    )  # noise is everywhere alike
    assert rows['motion in mouth and eyes'].network.value == pytest.approx(inside, rel=0.1)
    assert abs(rows['motion common to all z_m, chance subtracted'].network.value) < 0.02


def test_regions_grow_with_the_focal_length():
    far, near = (measure.region(measure._MOUTH, focal, 64) for focal in (3.0, 6.0))
    assert near.sum() == pytest.approx(4 * far.sum(), rel=0.15)
    assert not (far & measure.region(measure._EYES, 3.0, 64)).any()
    assert far[:, :32].sum() == far[:, 32:].sum() and far[:32].sum() == 0 and far[32:].any()


def test_rows_of_people(noise):
    still = tiny.generator(motion=MotionConfig(code_dim=16)).eval().requires_grad_(False)
    dataset = FakeData()
    portraits = samples.portraits(still, samples.draw(still, samples.SEEDS, 4, 0), CAMERAS[1:2], CAMERAS[1])
    people = np.moveaxis((portraits[:2] + 1) * 127.5, 1, -1).astype(np.float32)
    truth = noise._replace(portraits=people)
    rows = {r.name: r for r in measure.people_rows(still, dataset, truth, CAMERAS[1], SIZES, 0)}
    assert rows['people that appear'].network.value == 1
    assert rows['rarest of the people, seeds of 256'].data.value == 128


class FakeData:
    """As much of a data set as mapping cameras need."""

    def __len__(self):
        return 5

    def clip_cameras(self, clip):
        return tiny.cameras(2, seed=clip)


def test_rows_of_judges_depend_on_what_was_trained(G, noise):
    networks = tiny.networks()
    for network in networks:
        network.eval().requires_grad_(False)
    both = measure.judge_rows(G, Judges(networks.D_image, networks.D_video, 8), noise, PAIRS, 0)
    assert len(both) == 4 and all(np.isfinite(row.network.value) for row in both)
    same = noise._replace(moved=np.concatenate([noise.own, noise.own[:, 1:]], axis=1))
    rows = measure.judge_rows(G, Judges(networks.D_image, networks.D_video, 8), same, PAIRS, 0)
    assert [row.network.value for row in rows] == [0, 0, 0, 0]  # nothing is new, and nothing frozen differs
    assert measure.judge_rows(G, Judges(None, None, 8), noise, PAIRS, 0) == []


def test_discriminators_of_other_kinds_judge_nothing(G, tmp_path):
    """Those of a walk see whole clips."""
    patches = PairDiscriminator.Config(resolution=SIZE, width=2).build()
    save_snapshot(
        tmp_path / 'a.pkl', {'G_ema': G, 'D_image': patches, 'D_video': tiny.networks().D_video}, {}
    )
    found = measure.judges(read_snapshot(tmp_path / 'a.pkl'), G, torch.device('cpu'))
    assert found.D_image is None and found.D_video.sees_frames


def test_broken_heads_are_the_farthest(monkeypatch):
    images = np.linspace(-1, 1, 40, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    monkeypatch.setattr(measure.broken, 'features', lambda x, device: x.reshape(len(x), -1)[:, :2])
    seen = Seen(np.full((3, 2), -1.0), np.linspace(0, 1, 101), np.full(3, 4.0))
    (row, far), worst = measure.broken_rows(images, seen, 'cpu')
    assert far.network.value == far.data.value == 0
    assert row.network.value == pytest.approx((np.sqrt(2) * (images[:, 0, 0, 0] + 1) > 0.99).mean())
    assert len(worst) == 32 and (worst[0] == 1).all()


def test_people_are_compared_with_others():
    features, people = np.array([[0.0], [1], [5], [7]]), np.array([3, 3, 8, 8])
    assert sorted(distance_between(features, people)) == [4, 4, 5, 6]
    assert len(distance_between(features, people * 0)) == 0


def test_sheets_show_missing_codes_as_black():
    grid = np.ones((2, 3, len(TIMES), 3, 8, 8), np.float32)
    image = sheet(measure.Result([], grid, grid, grid[:, 0, 0]))
    assert image.shape[1] == 16 * 64 + 3 * 6 and image.shape[2] == 3
    assert (image[-64:] == 0).mean() > 0.9 and (image[-8 * 64 : -6 * 64] == 255).all()
    assert heads(grid[:, 0, 0]).shape == (64, 128, 3)


def test_motion_maps_show_which_pixels_move():
    """White where pixels move by .3 or more, black where they stay; the network above the data."""
    grid, still = np.zeros((3, 2, len(TIMES), 3, 64, 64), np.float32), np.zeros((2, 2, len(TIMES), 3, 64, 64))
    grid[:, 0, :, :, :32], grid[:, 1, :, :, :32] = -0.5, 0.5
    image = motion_maps(measure.Result([], grid, still.astype(np.float32), grid[:, 0, 0]))[:, -128:]
    assert image.shape == (4 * 64, 128, 3)
    assert (image[64:96] == 255).all() and (image[96:128] == 0).all() and (image[192:] == 0).all()


def test_quick_looks_at_less():
    full, quick = (dataclasses.asdict(s) for s in (measure.FULL, measure.QUICK))
    assert all(quick[name] <= full[name] for name in full) and quick != full
