"""Augmentation of what discriminators see, alike in all frames of a clip, against memorising small sets.

Real and fake clips are changed alike, with gradients, so that nothing changed leaks into fakes while the
probability is below about .8. Camera labels move with the image: shift and scale change the intrinsics, a
turn in the plane is a roll of the camera. Nothing is mirrored: the data set does that, labels and all.
Source: ADA, "Training Generative Adversarial Networks with Limited Data", here for clips with cameras.
"""

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from dnnlib.util import ConfigError
from training.camera import pack_label, unpack_label
from training.loss_contract import Shown

_MOST = 0.8  # adaptive probabilities end here: beyond, changes leak into fakes [ADA]
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.2, 0.4, 0.6  # std: of an offset in [-1, 1], of factors in octaves
_SCALE = 0.15  # std of the size, octaves
_SHIFT = 1 / 8  # at most, of the image's side
_TURN_RAD = math.radians(8)  # at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How often clips are changed before the discriminators see them."""

    # of each change of a clip: brightness, contrast, saturation, scale, shift, turn; at first, if adaptive
    probability: float = 0.0
    # adapts the probability to this overfitting on held-out clips, see `overfitting`; none = it stays [ADA]
    target: float | None = None
    ramp_nimg: int = 500_000  # clips in which an adaptive probability goes from 0 to 1 [ADA]

    def __post_init__(self) -> None:
        outside = self.target is not None and not 0 < self.target < 1
        if not 0 <= self.probability <= 1 or outside or self.ramp_nimg < 1:
            raise ConfigError(
                f'augment.probability={self.probability} must be in [0, 1], target={self.target} none or in '
                f'(0, 1), ramp_nimg={self.ramp_nimg} at least 1'
            )


class Changes(NamedTuple):
    """What is done to each of N clips."""

    brightness: Tensor  # added to images in [-1, 1] [N]
    contrast: Tensor  # factor [N]
    saturation: Tensor  # factor [N]
    scale: Tensor  # factor of the size of what is seen [N]
    turn_rad: Tensor  # from x to y, which is clockwise as y points down [N]
    shift: Tensor  # to the right and down, in sides of the image [N, 2]


def draw_changes(n: int, probability: float, generator: torch.Generator) -> Changes:
    """Draws the changes of n clips on the generator's device, each with this probability."""
    like = {'generator': generator, 'device': generator.device}
    on = (torch.rand(6, n, **like) < probability).float()
    normal = torch.randn(4, n, **like)
    even = torch.rand(3, n, **like) * 2 - 1
    return Changes(
        brightness=on[0] * normal[0] * _BRIGHTNESS,
        contrast=torch.exp2(on[1] * normal[1] * _CONTRAST),
        saturation=torch.exp2(on[2] * normal[2] * _SATURATION),
        scale=torch.exp2(on[3] * normal[3] * _SCALE),
        turn_rad=on[4] * even[0] * _TURN_RAD,
        shift=(on[5] * even[1:] * _SHIFT).T,
    )


def augmented(shown: Shown, probability: float, generator: torch.Generator | None) -> Shown:
    """Returns what discriminators judge with changes drawn for each clip; None as generator draws none."""
    if probability == 0 or generator is None:
        return shown
    changes, clips = draw_changes(len(shown.t), probability, generator), shown.t.shape
    image, raw = (augment_images(x.unflatten(0, clips), changes).flatten(0, 1) for x in shown[:2])
    return shown._replace(image=image, image_raw=raw, c=augment_labels(shown.c, changes))


def augment_images(images: Tensor, changes: Changes) -> Tensor:
    """Changes clips [N, T, 3, H, W]; reflects beyond the border. All sizes of an image change alike.

    Bicubic, since at 64x64 bilinear lookup loses 40 % of the energy of details finer than three pixels, and
    bicubic 20 %. Where nothing is drawn the image stays as it is, to rounding.
    """
    brightness, contrast, saturation = (x.to(images.dtype)[:, None, None, None, None] for x in changes[:3])
    x = (images + brightness) * contrast
    gray = x.mean(dim=2, keepdim=True)
    x = gray + (x - gray) * saturation
    back = _rotation(-changes.turn_rad) / changes.scale[:, None, None]  # where a place comes from
    theta = torch.cat([back, -2 * back @ changes.shift[..., None]], dim=2).to(x.dtype)  # in [-1, 1]^2
    grid = affine_grid(theta, [len(x), 1, *x.shape[-2:]], align_corners=False)
    x = grid_sample(x.flatten(1, 2), grid, mode='bicubic', padding_mode='reflection', align_corners=False)
    return x.view(images.shape)


def augment_labels(labels: Tensor, changes: Changes) -> Tensor:
    """Returns the cameras [N, T, 25] whose images look like those of `labels` when they are changed."""
    pose, intrinsics = unpack_label(labels)
    pose, intrinsics = pose.clone(), intrinsics.clone()
    matrix = (changes.scale[:, None, None] * _rotation(changes.turn_rad))[:, None].to(labels.dtype)
    moved = matrix @ (intrinsics[..., :2, 2:] - 0.5) + 0.5
    intrinsics[..., :2, 2] = moved[..., 0] + changes.shift[:, None].to(labels.dtype)
    # the rest of the intrinsics becomes a triangular matrix again times a roll of the camera
    square = matrix @ intrinsics[..., :2, :2]
    roll = _rotation(torch.atan2(square[..., 1, 0], square[..., 1, 1]))
    intrinsics[..., :2, :2] = (square @ roll.mT).triu()
    pose[..., :3, :2] = pose[..., :3, :2] @ roll.mT
    return pack_label(pose, intrinsics)


def overfitting(train: float, heldout: float, fake: float) -> float:
    """Returns how much of the gap between real and fake is memorised, by mean logits of a discriminator.

    0 = held-out clips look as real as those trained on, 1 = as false as fakes. Unlike signs it does not
    depend on where 0 is, which relativistic losses leave open. Source: ADA, its r_v.
    """
    return (train - heldout) / (train - fake) if train > fake else 0.0


def adapt(config: AugmentConfig, probability: float, measured: float, clips: int) -> float:
    """Returns the probability after `clips` more, a step towards where overfitting is at its target."""
    step = math.copysign(clips / config.ramp_nimg, measured - config.target)
    return min(max(probability + step, 0.0), _MOST)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)
