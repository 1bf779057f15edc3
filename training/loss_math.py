"""Pure functions that losses are made of: schedules, the blur of what is judged, the size of a gradient."""

import math

import torch
from torch import Tensor

from torch_utils.ops.convolution import no_weight_gradients


def fade(nimg: int, start: float, end: float, duration: int) -> float:
    """Returns a value that goes linearly from start to end over `duration` clips and stays there."""
    return end if nimg >= duration else start + (end - start) * nimg / duration


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blurs images [..., C, H, W] by 2^-(k / sigma)^2, zero borders; sigma in pixels, 0 = none [EG3D].

    Both passes are products with a band matrix: convolutions of one channel are several times slower.
    """
    reach = math.floor(3 * sigma)
    if reach == 0:
        return images
    like = {'device': images.device, 'dtype': images.dtype}
    total = torch.exp2(-((torch.arange(-reach, reach + 1, **like) / sigma) ** 2)).sum()

    def band(size: int) -> Tensor:
        at = torch.arange(size, **like)
        distance = (at[:, None] - at).abs()
        return torch.exp2(-((distance / sigma) ** 2)) * (distance <= reach) / total

    *_, height, width = images.shape
    return band(height) @ (images @ band(width))


def r1_penalty(logits: Tensor, inputs: list[Tensor]) -> Tensor:
    """Returns the squared norm of the gradient of the logits with respect to the inputs, per sample [N]."""
    with no_weight_gradients():  # those of this pass
        grads = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return sum(g.square().sum(dim=tuple(range(1, g.ndim))) for g in grads)
