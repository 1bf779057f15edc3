"""Images of procedural heads for tests of faces."""

import functools

import numpy as np
import torch

from heads.face import EYE_RADIUS
from heads.identity import sample_identity
from heads.model import HeadModel
from heads.motion import Motion
from training import camera

SIZE = 192


@functools.cache
def head(seed=4, yaw_deg=0.0):
    """Returns a head, uint8 [192, 192, 3], and x, y of its eyes, float [2, 2]; the image's left first."""
    model = HeadModel(sample_identity(seed))
    label = camera.orbit_label(np.radians(yaw_deg), 0)
    image = model.render(Motion(), label.numpy(), SIZE).image
    radius = EYE_RADIUS * model.identity.eye_size
    pupils = model.face.eyes + [0, 0, radius]
    eyes, _ = camera.project(torch.from_numpy(pupils), label.double())
    image.setflags(write=False)
    return image, eyes.numpy() * SIZE


def scene(places, height=288, width=384):
    """Returns a gray image with heads in it; places = [(image, left, top)]."""
    result = np.full((height, width, 3), 128, np.uint8)
    for image, left, top in places:
        result[top : top + len(image), left : left + image.shape[1]] = image
    return result
