"""Where a search begins: at the drawn code that shows the first frame, or at the mean."""

import torch

from editing.fit import Fit
from editing.objective import Objective, Weights
from editing.start import first_code
from support import tiny
from torch_utils.misc import seeded_generator

CODE = 2  # of those that are drawn


def begin(G, cameras, images, tries):
    objective = Objective(Weights(perceptual=0.0), 'cpu')
    targets = objective.targets(images, cameras, G.renderer.resolution)
    return first_code(G, cameras, objective, targets, tries, 0)


def test_the_search_begins_at_the_code_that_shows_the_first_frame():
    G, cameras = tiny.solid_generator(), tiny.cameras(2)
    codes = G.draw_codes(1000, seeded_generator('cpu', 0, 3))
    ws = G.condition(codes, cameras[:1], torch.zeros(1000))
    fit = Fit(G, ws[CODE : CODE + 1, :1], cameras)
    with torch.no_grad():
        images = (fit(torch.arange(2)).image.clamp(-1, 1) * 127.5 + 127.5).round().byte()
    images[1] = 255 - images[1]  # the second frame shows something else
    met, missed = (begin(G, cameras, images, tries)[0, 0] for tries in (CODE + 1, CODE))
    torch.testing.assert_close(met, ws[CODE, 0])
    assert not torch.allclose(missed, ws[CODE, 0], atol=0.01)
    torch.testing.assert_close(begin(G, cameras, images, 0)[0, 0], ws.mean(dim=(0, 1)))
