"""VGG16 and LPIPS from files: names, features, distance; with random weights in place of the real files."""

import pytest
import torch
import torch.nn.functional as F

from dnnlib.util import UserError
from metrics.detectors import vgg16
from support import tiny

SMALL = (2, 3, 4, 5, 6)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files of a narrow network and of linear layers, of the real layout."""
    monkeypatch.setattr(vgg16, 'CHANNELS', SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = vgg16.VGG16().state_dict()
    state['classifier.0.weight'] = torch.zeros(2, 2)  # the real file has them
    torch.save(state, tmp_path / 'vgg16.pth')
    lines = {f'lin{i}.model.1.weight': torch.rand(1, c, 1, 1) for i, c in enumerate(SMALL)}
    torch.save(lines, tmp_path / 'vgg.pth')
    return tmp_path / 'vgg16.pth', tmp_path / 'vgg.pth', state, lines


def test_names_are_those_of_torchvision_and_lpips():
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's vgg16
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    with torch.device('meta'):
        ours = {k: tuple(v.shape) for k, v in vgg16.VGG16().state_dict().items()}
        linear = {k: tuple(v.shape) for k, v in vgg16.Linear().state_dict().items()}
    assert set(ours) == {f'features.{i}.{part}' for i in places for part in ('weight', 'bias')}
    for i, inputs, outputs in zip(places, widths[:-1], widths[1:], strict=True):
        assert ours[f'features.{i}.weight'] == (outputs, inputs, 3, 3)
    sizes = (64, 128, 256, 512, 512)  # of the file that lpips 0.1.4 has
    assert linear == {f'lin{i}.model.1.weight': (1, c, 1, 1) for i, c in enumerate(sizes)}


def naive_features(state, x):
    """Features after the last convolution of each group, layer by layer as the paper's table lists them."""
    found, i = [], 0
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            x = F.conv2d(x, state[f'features.{i}.weight'], state[f'features.{i}.bias'], padding=1).relu()
            i += 2
        found.append(x)
        x, i = F.max_pool2d(x, 2), i + 1
    return found


@pytest.mark.parametrize('linear', [True, False])
def test_distance_is_that_of_lpips(files, linear):
    vgg, line, state, lines = files
    perceptual = vgg16.load_perceptual(vgg, line if linear else None, 'cpu')
    assert perceptual.linear == linear and len(perceptual.sha256) == 1 + linear
    a, b = (torch.rand(2, 3, 32, 32, generator=tiny.seeded(i)) * 2 - 1 for i in range(2))
    shift, scale = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])
    maps = [naive_features(state, (x - shift[:, None, None]) / scale[:, None, None]) for x in (a, b)]
    expected = 0
    for i, (x, y) in enumerate(zip(*maps, strict=True)):
        unit = [f / f.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12) for f in (x, y)]
        weight = lines[f'lin{i}.model.1.weight'] if linear else 1 / 5
        expected = expected + ((unit[0] - unit[1]) ** 2 * weight).sum(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(perceptual.distance(a, b), expected)
    assert (perceptual.distance(a, a) == 0).all()


def test_large_images_are_reduced(files):
    perceptual = vgg16.load_perceptual(files[0], None, 'cpu')
    assert perceptual(torch.zeros(1, 3, 512, 512))[0].shape == (1, 2, 256, 256)


def test_other_files_are_refused(files):
    vgg, line, *_ = files
    for pair in ((line, None), (vgg, vgg)):
        with pytest.raises(UserError, match='these are not the weights of'):
            vgg16.load_perceptual(*pair, 'cpu')
    vgg.write_bytes(b'x')
    with pytest.raises(UserError, match='refused'):
        vgg16.load_perceptual(vgg, None, 'cpu')
