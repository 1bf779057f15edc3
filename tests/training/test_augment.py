"""Augmentation: one draw per clip, labels that move with the image, gradients, and the controller."""

import dataclasses
import math

import pytest
import torch

from dnnlib.util import ConfigError
from support.tiny import cameras, draw, same, seeded
from training import augment, camera
from training.augment import AugmentConfig, Changes, adapt, augment_images, augment_labels, draw_changes

STILL = Changes(*(torch.tensor([x] * 2) for x in (0.0, 1.0, 1.0, 1.0, 0.0)), torch.zeros(2, 2))


def changed(**values):
    """Changes of two clips, none but those that are given."""
    return STILL._replace(**{name: torch.tensor(value) for name, value in values.items()})


def blobs(where, size, width=0.04):
    """Images [..., 3, size, size] with a bright spot at places [..., 2] of [0, 1]^2."""
    axis = (torch.arange(size) + 0.5) / size
    x, y = (torch.exp(-(((axis - where[..., i : i + 1]) / width) ** 2)) for i in (0, 1))
    return (y[..., :, None] * x[..., None, :])[..., None, :, :].expand(*where.shape[:-1], 3, size, size)


def centre(images):
    """Centre of brightness [..., 2] of the first channel."""
    image = images[..., 0, :, :].clamp(min=0)
    axis = (torch.arange(image.shape[-1]) + 0.5) / image.shape[-1]
    total = image.sum(dim=(-2, -1))
    places = [(image.sum(dim=d) * axis).sum(dim=-1) / total for d in (-2, -1)]
    return torch.stack(places, dim=-1)


def test_nothing_drawn_changes_nothing():
    images, labels = draw(2, 2, 3, 8, 8), cameras(2, 2)
    for changes in (STILL, draw_changes(2, 0.0, seeded(0))):
        same(augment_images(images, changes), images, 1e-6)
        same(augment_labels(labels, changes), labels, 1e-6)


def test_frequency_and_size_of_draws():
    drawn, n = draw_changes(20_000, 0.3, seeded(0)), 20_000
    for x in (drawn.brightness, drawn.turn_rad, drawn.shift[:, 0], *(f.log2() for f in drawn[1:4])):
        assert (x != 0).float().mean().item() == pytest.approx(0.3, abs=0.015)
    always = draw_changes(n, 1.0, seeded(0))
    stds = [always.brightness, *(f.log2() for f in always[1:4])]
    assert [x.std().item() for x in stds] == pytest.approx([0.2, 0.4, 0.6, 0.15], rel=0.03)
    for x, most in ((always.turn_rad, math.radians(8)), (always.shift, 1 / 8)):
        assert 0.99 * most < x.abs().max() <= most and abs(x.mean()) < 0.02 * most


def test_colours_closed_form():
    images = draw(2, 2, 3, 4, 4)
    done = augment_images(images, changed(brightness=[0.3, 0.0], contrast=[2.0, 1.0], saturation=[0.5, 1.5]))
    x = (images[0] + 0.3) * 2
    same(done[0], 0.5 * x + 0.5 * x.mean(dim=1, keepdim=True), 1e-6)
    same(done[1], 1.5 * images[1] - 0.5 * images[1].mean(dim=1, keepdim=True), 1e-6)


def test_shift_by_whole_pixels_reflects():
    images = draw(2, 1, 3, 8, 8)
    done = augment_images(images, changed(shift=[[1 / 8, 0.0], [0.0, -2 / 8]]))
    same(done[0, ..., 1:], images[0, ..., :-1], 1e-6)  # to the right
    same(done[0, ..., 0], images[0, ..., 0], 1e-6)
    same(done[1, ..., :-2, :], images[1, ..., 2:, :], 1e-6)  # up
    same(done[1, ..., -2:, :], images[1, ..., -2:, :].flip(-2), 1e-6)


def test_labels_move_with_the_image():
    """A spot is painted where a point appears; the changed camera must see the point on the changed spot."""
    n = 40
    changes = draw_changes(n, 1.0, seeded(1))._replace(brightness=torch.zeros(n), contrast=torch.ones(n))
    point, labels = torch.tensor([0.06, -0.04, 0.15]), cameras(n, 2, seed=3)
    labels[..., 16] *= 1.1  # pixels that are not square, an optical axis that is off the centre
    labels[..., 17], labels[..., 18] = 0.2, 0.47
    images = blobs(camera.project(point, labels)[0], 96)
    moved = augment_labels(labels, changes)
    pose, intrinsics = camera.unpack_label(moved)
    same(pose[..., :3, :3] @ pose[..., :3, :3].mT, torch.eye(3).expand(n, 2, 3, 3), 1e-5)
    assert (intrinsics[..., 1, 0] == 0).all() and (intrinsics[..., 2, :] == torch.tensor([0.0, 0, 1])).all()
    assert torch.equal(pose[..., 3], camera.unpack_label(labels)[0][..., 3])  # no camera changes its place
    where = camera.project(point, moved)[0]
    keep = ((where - 0.5).abs() < 0.35).all(dim=-1)
    assert keep.sum() > n  # of 2 n
    same(centre(augment_images(images, changes))[keep], where[keep], 0.004)


def test_frames_of_a_clip_and_both_sizes_change_alike():
    changes = draw_changes(3, 1.0, seeded(2))
    frame = torch.nn.functional.interpolate(draw(3, 3, 6, 6), size=(64, 64), mode='bicubic')
    clip = augment_images(torch.stack([frame, -frame], dim=1), changes)
    again = augment_images(torch.stack([frame, frame], dim=1), changes)
    assert torch.equal(again[:, 0], again[:, 1]) and torch.equal(clip[:, 0], again[:, 0])
    half = torch.nn.functional.avg_pool2d
    small = augment_images(half(frame, 2)[:, None], changes)[:, 0]
    error = small - half(again[:, 0], 2)
    assert error.square().mean() < (0.02 * again.std()) ** 2


def test_gradients_reach_images():
    changes = Changes(*(x.double() for x in draw_changes(1, 1.0, seeded(3))))
    images = draw(1, 2, 3, 4, 4, grad=True)
    assert torch.autograd.gradcheck(lambda x: augment_images(x, changes), (images,))


def test_overfitting_closed_form():
    assert augment.overfitting(4.0, 4.0, -2.0) == 0
    assert augment.overfitting(4.0, 1.0, -2.0) == 0.5
    assert augment.overfitting(14.0, 11.0, 8.0) == 0.5  # where 0 is has no effect
    assert augment.overfitting(1.0, -5.0, 1.0) == 0  # a discriminator that knows nothing


def test_probability_goes_from_0_to_its_limit_and_back():
    config = AugmentConfig(target=0.3, ramp_nimg=1000)
    p, seen = 0.0, []
    for measured in [0.9] * 100 + [0.1] * 100:
        p = adapt(config, p, measured, 16)
        seen.append(p)
    assert seen[9] == pytest.approx(0.16) and seen[99] == 0.8 and seen[109] == pytest.approx(0.64)
    assert seen[-1] == 0


@pytest.mark.parametrize(
    'options', [{'probability': 1.1}, {'target': 0.0}, {'target': 1.0}, {'ramp_nimg': 0}], ids=str
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=r'must be in \[0, 1\], target'):
        dataclasses.replace(AugmentConfig(), **options)
