"""A small data set of patterns that move, made without the renderer of heads."""

import io
import zipfile

import numpy as np
from PIL import Image

from training.camera import orbit_label

SIZE, CLIPS, FRAMES = 32, 6, 18  # the data set of all tests


def smooth_clip(rng, frames=FRAMES, size=SIZE):
    """Returns PNG files of a random pattern that moves, and its camera labels as lists."""
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(-9, 9, (3, 3, 1, 1))  # per channel: along x, along y, phase
    speed = rng.uniform(-0.3, 0.3)
    yaw, pitch = rng.uniform(-0.5, 0.5, 2) * [1, 0.4]
    images, labels = [], []
    for i in range(frames):
        values = np.sin(waves[:, 0] * x + waves[:, 1] * y + waves[:, 2] + speed * i)
        pixels = np.round((values + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format='png')
        images.append(buffer.getvalue())
        labels.append(orbit_label(yaw + 0.02 * i, pitch).tolist())
    return images, labels


def write_zip(path, files):
    """Writes files {name: bytes} as a zip, not compressed."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)
