"""torchvision's video networks: transforms of their weights, features before the classifier."""

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from metrics.detectors.registry import DETECTORS
from metrics.detectors.torchvision_video import TorchvisionVideo

NAMES = [n for n, info in DETECTORS.items() if info.networks.get('video', '').startswith('torchvision_video')]


def frames(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('name', NAMES)
def test_registered_files_are_those_of_torchvision(name):
    weights, info = get_model_weights(name).KINETICS400_V1, DETECTORS[name]
    assert info.url == weights.url
    assert info.filename == weights.url.split('/')[-1] == f'{name}-{info.sha256}.pth'


@pytest.mark.parametrize(('name', 'head', 'width'), [('r3d_18', 'fc', 512), ('s3d', 'classifier', 1024)])
def test_classifier_on_the_features_gives_the_classes(name, head, width):
    torch.manual_seed(0)
    detector = TorchvisionVideo(name).eval()
    whole = get_model(name, weights=None).eval()
    whole.load_state_dict(detector.network.state_dict())  # strict: the file fits
    clip = frames(1, 14, 3, 40, 30)
    with torch.no_grad():
        features = detector(clip)
        classes = whole(get_model_weights(name).KINETICS400_V1.transforms()(clip))
        layer = getattr(whole, head)
        classified = layer(features) if head == 'fc' else layer(features.view(1, width, 1, 1, 1)).flatten(1)
    assert features.shape == (1, width)
    torch.testing.assert_close(classified, classes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['mvit_v2_s', 'swin3d_t'])
def test_transformers(name):
    torch.manual_seed(0)
    detector = TorchvisionVideo(name).eval()
    clip = frames(1, 16 if name == 'mvit_v2_s' else 6, 3, 30, 30)
    with torch.no_grad():
        features = detector(clip)
        classes = detector.network.head(features)
    assert features.shape == (1, 768) and torch.equal(
        classes, features
    )  # what follows the features is not used


@pytest.mark.parametrize(
    ('name', 'count', 'message'),
    [
        ('s3d', 13, 's3d needs clips of at least 14 frames, got 13'),
        ('mvit_v2_s', 17, 'exactly 16 frames, got 17'),
    ],
)
def test_wrong_number_of_frames(name, count, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionVideo(name)(frames(1, count, 3, 16, 16))


def test_wrong_type():
    with pytest.raises(ValueError, match=r'frames must be uint8 \[N, T, 3, H, W\], got torch.float32'):
        TorchvisionVideo('r3d_18')(frames(1, 16, 3, 16, 16).float())
