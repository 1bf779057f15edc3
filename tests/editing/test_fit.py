"""Adam for rows, schedules, batches, penalties, and the steps of a stage."""

import dataclasses
import itertools

import pytest
import torch

from editing import fit as fits
from editing.fit import Fit, RowAdam, Stage, StageRun, choose_rows, rate_factor
from editing.objective import Objective, Weights
from support import tiny


def fit(frames=3, **options):
    G = tiny.solid_generator()
    return Fit(G, torch.zeros(1, 1, 16), tiny.cameras(frames), **options)


def test_rows_without_gradient_stay_and_others_follow_adam():
    start = torch.randn(3, 4, generator=tiny.seeded(0))
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    kept = RowAdam([{'params': [ours], 'lr': 0.1}]), torch.optim.Adam([theirs], lr=0.1)
    for step in range(4):
        for p, optimizer in zip((ours, theirs), kept, strict=True):
            optimizer.zero_grad()
            (p[:2] ** 3).sum().backward()
            optimizer.step()
        if step == 1:
            ours.grad = torch.zeros(3, 4)
            before = ours.detach().clone()
            kept[0].step()
            assert torch.equal(ours, before)  # no momentum moves what is not in the batch
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours[2], start[2])


def test_isotropic_steps_turn_with_the_gradients():
    turn = torch.linalg.qr(torch.randn(4, 4, generator=tiny.seeded(1)))[0]
    paths = []
    for axes in (torch.eye(4), turn):
        p = torch.zeros(2, 4, requires_grad=True)
        optimizer = RowAdam([{'params': [p], 'lr': 0.1, 'isotropic': True}])
        for _ in range(4):
            optimizer.zero_grad()
            (p @ axes.T - torch.tensor([1.0, 0.2, 0.0, -3.0])).square().sum().backward()
            optimizer.step()
        paths.append(p.detach() @ axes.T)
    torch.testing.assert_close(*paths)
    assert not paths[0][:, 2].any()


def test_rates_rise_and_fall():
    factors = [rate_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[10] == factors[70] == 1
    assert factors[-1] < 0.001 and all(a >= b for a, b in itertools.pairwise(factors[70:]))


def test_batches_are_neighbours_and_reach_every_frame():
    stage = Stage(name='x', steps=1, batch=3)
    batches = [choose_rows(stage, 7, step, 0).tolist() for step in range(60)]
    assert all(b == list(range(b[0], b[0] + 3)) for b in batches)
    assert {i for b in batches for i in b} == set(range(7))
    assert choose_rows(stage, 2, 0, 0).tolist() == [0, 1]
    assert choose_rows(Stage(name='x', steps=1, first_only=True), 7, 0, 0).tolist() == [0]
    assert choose_rows(stage, 7, 5, 0).tolist() == batches[5]


def test_neutral_frame_has_no_motion():
    found = fit(neutral=1, model='zm+')
    found.u.data.normal_(generator=tiny.seeded(0))
    motion = found.motion(torch.arange(3))
    assert not motion[1].any() and torch.equal(motion[0], found.u[0] - found.u[1])


def test_single_code_is_the_path_of_the_network():
    found = fit(model='single')
    found.u.data.normal_(generator=tiny.seeded(0))
    torch.testing.assert_close(
        found.motion(torch.arange(3)), found.u[:1] * torch.tensor([[0.0], [0.5], [1.0]])
    )


def test_penalties_are_their_closed_forms():
    found, rows = fit(model='zm+'), torch.arange(3)
    found.u.data[:] = torch.tensor([[0.0], [2.0], [4.0]])
    still, far = Stage(name='x', steps=1), torch.tensor(0.5)
    stage = dataclasses.replace(still, motion=0.1, smooth=0.5)
    square, beyond, mean, step = 20 / 3, (0 + 3 + 15) / 3, 4.0, 4.0
    cost = 1e-3 * square + 1e-2 * beyond + 1e-3 * mean + 0.5 * step
    assert fits.penalties(found, rows, stage, far).item() == pytest.approx(cost)
    assert fits.penalties(found, rows, still, far) == 0
    found.offsets.data[:, 0] = 0.052  # one spread
    camera = dataclasses.replace(still, camera=0.1)
    assert fits.penalties(found, rows, camera, far).item() == pytest.approx(0.1 * 0.5)


def test_cameras_of_given_crops_only_turn():
    for free in (False, True):
        found = fit(free_crop=free)
        found.offsets.data[:] = 0.1
        moved = found.cameras(torch.arange(3))[:, 16:]
        assert torch.equal(moved, found.labels[:, 16:]) != free


def test_side_change_is_zero_until_something_changes():
    found, row, side = fit(), torch.tensor([0]), tiny.cameras(1)[0]
    assert fits.side_change(found, found.G, row, side) == 0
    other = tiny.generator()
    assert fits.side_change(found, other, row, side) > 0


@pytest.mark.parametrize('path', ['line', 'waves'])
def test_which_networks_move_at_the_start(path):
    G = tiny.generator(motion=tiny.motion(path=path))
    assert fits.starts_moving(G) == (path == 'waves')
    anchored = tiny.generator(motion=tiny.motion(path=path, anchored=True))
    assert not fits.starts_moving(anchored)


@pytest.mark.parametrize(('distance', 'other', 'weight'), [(0.1, 0.4, 0.25), (0.4, 0.1, 1.0)])
def test_the_mirrored_image_counts_as_the_image_is_met(distance, other, weight):
    distances = itertools.cycle([torch.tensor(x, requires_grad=True) for x in (distance, other)])

    class Given(Objective):
        def forward(self, seen, wanted):
            return next(distances) + 0 * seen.image.sum()

    found, given = fit(1), Given(Weights(raw=0.0, perceptual=0.0), 'cpu')
    targets = given.targets(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), found.labels, 8)
    stage = Stage(name='x', steps=1, code=0.1, mirror=0.5)
    run = StageRun(found, stage, given, targets, found.G, 0)
    run.advance()
    assert run.notes[0][1] == pytest.approx(distance + 0.5 * weight * other)
