"""Where a search begins: at the code, of some that the network draws, that is nearest to the first frame.

A network of few people has a valley for each of them in w, and Adam does not leave the one it begins in.
"""

import torch
from torch import Tensor

from editing.fit import Fit
from editing.objective import Objective, Targets
from torch_utils.misc import seeded_generator
from training.networks.contract import Codes, RadianceGenerator

_MEAN_CODES = 1000  # codes whose mean the search begins at, or near
_CODES_KEY = 3  # purpose of random draws; those of fit.py are 1 and 2
_FROM_MEAN = (0.5, 1.0)  # fractions of the way from the mean to a code that are tried


@torch.no_grad()
def first_code(
    G: RadianceGenerator, cameras: Tensor, objective: Objective, targets: Targets, tries: int, seed: int
) -> Tensor:
    """Returns the w [1, 1, w_dim] that a search begins at.

    Args:
        G: the network.
        cameras: of the frames [T, 25]; the mapping sees the first.
        objective: what is minimised.
        targets: of the frames; the first is looked at.
        tries: codes that are compared besides the mean of 1,000; 0 = the mean.
        seed: of the codes.
    """
    codes = G.draw_codes(_MEAN_CODES, seeded_generator('cpu', seed, _CODES_KEY))
    codes = Codes(*(z.to(cameras.device) for z in codes))
    drawn = G.condition(codes, cameras[:1], cameras.new_zeros(_MEAN_CODES))
    mean = drawn.mean(dim=(0, 1), keepdim=True)
    away = drawn[:tries, :1] - mean
    places = torch.cat([mean, *(mean + fraction * away for fraction in _FROM_MEAN)])
    if not tries:
        return mean
    first = torch.tensor([0], device=cameras.device)
    wanted = targets.rows(first)
    fit, distances = Fit(G, mean, cameras[:1]), []
    for w in places:
        fit.w.copy_(w[None])
        distances.append(objective(fit(first), wanted).item())
    return places[distances.index(min(distances)), None]
