"""Raw videos without faces, and stand-ins that find some in them."""

import numpy as np
import pytest

from support.pipelines import replace
from support.videos import ramps, write_video


@pytest.fixture
def fakes(monkeypatch):
    replace(monkeypatch)


@pytest.fixture(scope='session')
def videos(tmp_path_factory):
    """Two people, the second in two videos, one with a cut; a landscape, an empty file, a text."""
    root = tmp_path_factory.mktemp('videos')
    red = ramps(18)
    blue = 255 - ramps(20)[:, :, ::-1]
    green = np.zeros((20, 64, 64, 3), np.uint8)
    green[..., 1] = np.arange(64) * 3
    write_video(root / 'a' / 'red.mp4', red)
    write_video(root / 'blue2.mp4', blue)
    write_video(root / 'blue10.mp4', np.concatenate([blue, green, red[:5]]))
    write_video(root / 'landscape.mp4', green)
    (root / 'empty.mp4').touch()
    (root / 'notes.txt').write_text('x')
    return root
