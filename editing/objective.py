"""How well rendered frames agree with those that are wanted: pixels, features, identity.

The perceptual distance is that of LPIPS [Zhang et al. 2018] with the files that the user names, otherwise
EfficientNet-lite0's, which a package has: squared distance of features of unit length. Its blocks and size
are chosen here.
"""

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.detectors.face_alignment import align_faces, find_faces
from metrics.detectors.registry import default_cache, load_detector
from metrics.detectors.vgg16 import Perceptual
from training.camera import project
from training.networks.contract import Rendering

BLOCKS = (0, 2, 4, 7, 10)  # of EfficientNet-lite0, after which features are compared
_SIDE = 96  # pixels of a side of what it sees; small images are enlarged
_HEAD = ((0.0, 0.03, 0.05), 0.26)  # centre and radius of a ball around head and hair, scene units
_SOFT = 0.15  # width of the mask's border in radii


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the terms; images are in [-1, 1]."""

    pixels: float = 1.0  # squared difference of the image
    raw: float = 0.5  # the same of the volume-rendered image: super-resolution cannot do it alone
    perceptual: float = 1.0  # distance of features
    identity: float = 0.0  # 1 - cosine of SFace, where a face is found in the image
    background: float = 1.0  # factor on all but identity outside the head


class Targets(NamedTuple):
    """What T frames are compared with."""

    image: Tensor  # [T, 3, R, R] in [-1, 1]
    raw: Tensor  # reduced to the resolution of the volume rendering [T, 3, r, r]
    weight: Tensor  # of the pixels [T, 1, R, R], mean 1
    features: tuple[Tensor, ...]  # for the perceptual distance [T, C, h, w]; empty without it
    points: Tensor  # of the face, see face_alignment [T, 5, 2]
    identity: Tensor  # [T, 128], 0 where no face was found

    def rows(self, index: Tensor) -> 'Targets':
        """Returns some of the frames."""
        features = tuple(f[index] for f in self.features)
        return Targets(*(x[index] for x in self[:3]), features, self.points[index], self.identity[index])


class Objective(nn.Module):
    """The distance that is minimised."""

    def __init__(
        self, weights: Weights, device: torch.device | str, perceptual: Perceptual | None = None
    ) -> None:
        """Opens the networks that the weights need; `perceptual` replaces lite0."""
        super().__init__()
        self.weights, self.given = weights, perceptual
        self.share = weights.perceptual / (len(BLOCKS) if perceptual is None else 1)  # of a feature map
        look = {'files': {}, 'cache_dir': default_cache(), 'device': device, 'offline': True}
        self.lite0 = self.sface = None
        if weights.perceptual and perceptual is None:
            self.lite0 = load_detector('lite0', 'image', **look).network
        if weights.identity:
            self.sface = load_detector('sface', 'identity', **look).network
            self.yunet = load_detector('yunet', 'faces', **look).network

    @torch.no_grad()
    def targets(self, images: Tensor, cameras: Tensor, raw_resolution: int) -> Targets:
        """Prepares uint8 images [T, 3, R, R], seen by cameras [T, 25], on the device of the objective."""
        image = images.float() / 127.5 - 1
        weight = head_mask(cameras, images.shape[-1]) * (1 - self.weights.background)
        weight = weight + self.weights.background
        weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
        points, identity = image.new_zeros(len(image), 5, 2), image.new_zeros(len(image), 128)
        if self.sface is not None:
            for i, found in enumerate(find_faces(images, self.yunet)):
                if found is not None:
                    points[i] = found
                    identity[i] = self.sface(align_faces(images[i : i + 1], points[i : i + 1]))[0]
        return Targets(image, reduce(image, raw_resolution), weight, self._features(image), points, identity)

    def forward(self, seen: Rendering, wanted: Targets) -> Tensor:
        """Returns the distance of N rendered frames from N targets, the mean over frames."""
        terms = self.weights.pixels * weighted_mean((seen.image - wanted.image).square(), wanted.weight)
        difference = (seen.image_raw - wanted.raw).square()
        terms = terms + self.weights.raw * weighted_mean(
            difference, reduce(wanted.weight, difference.shape[-1])
        )
        for ours, theirs in zip(self._features(seen.image), wanted.features, strict=True):
            distance = (ours - theirs).square().sum(dim=1, keepdim=True)
            apart = weighted_mean(distance, reduce(wanted.weight, distance.shape[-1]))
            terms = terms + self.share * apart
        known = wanted.identity.any(dim=1)
        if known.any():
            crops = align_faces(seen.image[known] * 127.5 + 127.5, wanted.points[known])
            cosine = (self.sface(crops) * wanted.identity[known]).sum(dim=1)
            terms = terms + self.weights.identity * (1 - cosine).sum() / len(known)
        return terms

    @torch.no_grad()
    def mirrored(self, wanted: Targets) -> Targets:
        """Returns the targets of mirrored frames, without identity: for cameras mirrored likewise."""
        flipped = (x.flip(-1) for x in wanted[:3])
        image, raw, weight = (x.contiguous() for x in flipped)
        nobody = torch.zeros_like(wanted.identity)
        return Targets(image, raw, weight, self._features(image), wanted.points, nobody)

    def _features(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.given is not None and self.weights.perceptual:
            return self.given(image)
        if self.lite0 is None:
            return ()
        resized = F.interpolate(image, (_SIDE, _SIDE), mode='bilinear', antialias=True)
        return tuple(F.normalize(f, dim=1) for f in self.lite0.maps(resized, BLOCKS))


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Returns the mean of x [N, C, H, W] with weights [N, 1, H, W] whose mean is 1."""
    return (x * weight).mean()


def reduce(image: Tensor, size: int) -> Tensor:
    """Reduces images [N, C, H, W] to [N, C, size, size] by averaging; smaller ones are enlarged."""
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, (size, size), mode='bilinear', antialias=True)


def head_mask(cameras: Tensor, size: int) -> Tensor:
    """Returns where the head is expected, soft: a ball around it seen by cameras [T, 25], [T, 1, size, size].

    1 inside, falling to 0 over a border; the ball is a disc in the image to within its small perspective.
    """
    centre = cameras.new_tensor(_HEAD[0])
    middle, depth = project(centre, cameras)  # [T, 2], [T, 1]
    radius = _HEAD[1] * cameras[:, 16:17] / depth  # image widths
    axis = (torch.arange(size, device=cameras.device, dtype=cameras.dtype) + 0.5) / size
    x, y = axis - middle[:, :1], axis - middle[:, 1:]  # [T, size]
    distance = (x[:, None, :].square() + y[:, :, None].square()).sqrt() / radius[..., None]
    return ((1 + _SOFT - distance) / _SOFT).clamp(0, 1)[:, None]


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the peak signal-to-noise ratio in dB of images in [-1, 1], [N, 3, H, W] -> [N].

    Both are clamped; with a mask [N, 1, H, W] in [0, 1] only pixels inside count.
    """
    square = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean(dim=1, keepdim=True)
    weight = torch.ones_like(square) if mask is None else mask
    mean = (square * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    return -10 * mean.clamp(min=1e-10).log10()
