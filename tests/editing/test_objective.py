"""The distance of rendered frames from targets."""

import math

import pytest
import torch
from torch import nn

from editing import objective
from editing.objective import Objective, Weights, head_mask, psnr
from support import tiny
from training.camera import mirror_label, orbit_label
from training.networks.contract import Rendering

PIXELS = Weights(pixels=1.0, raw=0.0, perceptual=0.0)


def images(n=2, size=32, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=tiny.seeded(seed), dtype=torch.uint8)


def rendering(image, raw_size=8):
    return Rendering(image, objective.reduce(image, raw_size))


def test_pixels_are_the_mean_squared_difference():
    loss = Objective(PIXELS, 'cpu')
    wanted = loss.targets(images(), tiny.cameras(2), 8)
    assert loss(rendering(wanted.image + 0.1), wanted).item() == pytest.approx(0.01, rel=1e-5)
    raw = Objective(Weights(pixels=0.0, raw=2.0, perceptual=0.0), 'cpu')
    assert raw(rendering(wanted.image + 0.1), wanted).item() == pytest.approx(0.02, rel=1e-5)


def test_background_counts_less():
    loss = Objective(Weights(raw=0.0, perceptual=0.0, background=0.0), 'cpu')
    wanted = loss.targets(images(), tiny.cameras(2), 8)
    corner = wanted.image.clone()
    corner[..., :3, :3] += 1
    assert loss(rendering(corner), wanted) == 0
    middle = wanted.image.clone()
    middle[..., 15:18, 15:18] += 1
    assert loss(rendering(middle), wanted) > 9 / 32**2
    assert torch.allclose(wanted.weight.mean(dim=(1, 2, 3)), torch.ones(2))


class Maps(nn.Module):
    """Stands in for the feature network: the images, and their mean."""

    def maps(self, x, blocks):
        return [x, x.mean(dim=(2, 3), keepdim=True)]


def test_features_are_compared_at_unit_length(monkeypatch):
    loss = Objective(Weights(pixels=0.0, raw=0.0, perceptual=5.0), 'cpu')
    loss.lite0 = Maps()
    wanted = loss.targets(images(), tiny.cameras(2), 8)
    assert loss(rendering(wanted.image * 0.5), wanted).item() == pytest.approx(0, abs=1e-5)
    opposite = loss(rendering(-wanted.image), wanted).item()  # 2 from each of the two unit vectors
    assert opposite == pytest.approx(2 * 4, rel=1e-3)


def test_given_features_replace_those_of_the_project():
    class Given(nn.Module):
        def forward(self, image):
            return (image, 2 * image)

    loss = Objective(Weights(pixels=0.0, raw=0.0, perceptual=3.0), 'cpu', Given())
    wanted = loss.targets(images(), tiny.cameras(2), 8)
    seen = rendering(wanted.image + 0.1)
    assert loss(seen, wanted).item() == pytest.approx(3 * 3 * (0.1**2 + 0.2**2), rel=1e-4)  # three colours


def test_mirrored_frames_and_cameras_belong_together():
    loss = Objective(PIXELS, 'cpu')
    frames, cameras = images(2), tiny.cameras(2)
    ours = loss.mirrored(loss.targets(frames, cameras, 8))
    theirs = loss.targets(frames.flip(-1), mirror_label(cameras), 8)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(a, b)


def test_rows_are_single_targets():
    loss = Objective(PIXELS, 'cpu')
    frames, cameras = images(3), tiny.cameras(3)
    many, one = loss.targets(frames, cameras, 8), loss.targets(frames[1:2], cameras[1:2], 8)
    for a, b in zip(many.rows(torch.tensor([1])), one, strict=True):
        assert isinstance(a, tuple) or torch.allclose(a, b)


def test_head_mask_is_a_soft_disc():
    mask = head_mask(orbit_label(torch.tensor([0.0, 0.5])), 64)
    assert mask.shape == (2, 1, 64, 64) and mask.min() == 0 and mask.max() == 1
    near = 4.2647 / 2.65  # image widths of a scene unit at the head
    area = (mask.mean(dim=(1, 2, 3)) / (near * 0.26 * (1 + 0.075)) ** 2).tolist()
    assert area == pytest.approx([math.pi, math.pi], rel=0.2)


def test_psnr():
    a = torch.zeros(1, 3, 4, 4)
    assert psnr(a, a + 0.2).item() == pytest.approx(20, abs=1e-4)  # 0.1 of a range of 1
    b, mask = a.clone(), torch.zeros(1, 1, 4, 4)
    b[..., 0, 0], mask[..., 0, 0] = 0.2, 1
    assert psnr(a, b, mask).item() == pytest.approx(20, abs=1e-4)
    assert psnr(a + 5, a + 1).item() == pytest.approx(100)  # both are clamped
