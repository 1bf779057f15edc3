from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dnnlib.util import UserError
from metrics.detectors import lite0
from metrics.detectors.lite0 import Lite0, Lite0Video, SameConv, preprocess
from support.real_faces import lite0_file

CLASSES = {  # of ImageNet
    'chelsea.png': (281, 282, 285),  # tabby, tiger cat, Egyptian cat
    'coffee.png': (504, 967),  # mug, espresso
    'motorcycle_left.png': (665, 670),  # moped, scooter
}


@pytest.fixture(scope='module')
def network():
    return Lite0(lite0_file()).requires_grad_(False)


def photo(name):
    """Returns the middle square of a picture that comes with scikit-image, uint8 [1, 3, H, H]."""
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


@pytest.mark.parametrize(
    ('kernel', 'stride', 'size'), [(3, 2, 8), (3, 2, 7), (5, 2, 8), (5, 1, 6), (1, 1, 4)]
)
def test_padding_is_tensorflows(kernel, stride, size):
    conv = SameConv(1, 1, kernel, stride)
    x = torch.rand(1, 1, size, size)
    y = conv(x)
    assert y.shape[2:] == (-(-size // stride),) * 2
    odd = {(3, 2, 8): 0, (3, 2, 7): 1, (5, 2, 8): 1, (5, 1, 6): 2, (1, 1, 4): 0}[kernel, stride, size]
    full = F.conv2d(F.pad(x, [odd, 9, odd, 9]), conv.weight, stride=stride)  # margin at the left and above
    torch.testing.assert_close(y, full[:, :, : y.shape[2], : y.shape[3]])


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
    with pytest.raises(ValueError, match='uint8'):
        network(images.float())


def test_video_features():
    network = Lite0Video(lite0_file()).requires_grad_(False)
    a, b = (F.interpolate(photo(name), (64, 64)) for name in ('chelsea.png', 'coffee.png'))
    clips = torch.stack([torch.cat([a, b, a]), torch.cat([b, b, b])])
    features = network(clips)
    assert features.shape == (2, 2560)
    fa, fb = network.image(torch.cat([a, b]))
    torch.testing.assert_close(features[0, :1280], (2 * fa + fb) / 3, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features[0, 1280:], (fa - fb).abs(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features[1, :1280], fb, atol=1e-4, rtol=1e-4)
    assert features[1, 1280:].abs().max() < 1e-4
    for bad in (clips[:, :1], clips[0]):
        with pytest.raises(ValueError, match='T of at least 2'):
            network(bad)


def test_broken_files(tmp_path):
    path = tmp_path / 'a.pth'
    with pytest.raises(UserError, match=r'a\.pth'):
        Lite0(path)
    path.write_bytes(b'nothing')
    with pytest.raises(UserError, match='is not the file of EfficientNet-lite0'):
        Lite0(path)
    torch.save({'_conv_stem.weight': torch.zeros(32, 3, 3, 3)}, path)
    with pytest.raises(UserError, match='is not the file of EfficientNet-lite0'):
        Lite0(path)
