"""A second system, as small as one can be: a 2D generator, a discriminator of whole clips, a loss of its own.

It is here to prove that training, sampling and measuring know networks only through their contracts.
"""

import dataclasses

import torch
from torch import nn

from dnnlib.config import BaseConfig, Configurable
from dnnlib.scene import FOCAL
from training.config import OutputConfig, TrainConfig
from training.data.dataset import VideoDataset
from training.loss import LOSSES
from training.loss_contract import Loss, Term
from training.networks.contract import Codes, Rendering, VideoGenerator
from training.networks.layers import Conv2d, FullyConnected
from training.networks.registry import DISCRIMINATORS, GENERATORS


class FlatGenerator(VideoGenerator, Configurable):
    """Codes and times -> images, by a 4x4 map that is upsampled and convolved; ignores cameras."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        kind = 'flat'
        resolution: int = 32
        span: int = 16
        focal: float = FOCAL
        width: int = 8

    z_dim, motion_dim = 6, 4

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.appearance = FullyConnected(self.z_dim, config.width, act='lrelu')
        self.motion = FullyConnected(self.motion_dim, config.width)
        self.grow = FullyConnected(config.width, config.width * 16)
        self.out = Conv2d(config.width, 3, 3, act='linear')

    def condition(self, codes, cameras, times, psi=1.0, cutoff=None):
        return psi * self.appearance(codes.z_a)[:, None]

    def scene(self, codes, ws, times, noise_mode='const', generator=None):
        features = self.grow(ws[:, 0] + self.motion(codes.z_m) * times[:, None])
        return features.unflatten(1, (self.config.width, 4, 4))

    def render(self, scene, ws, cameras, renderer=None, generator=None, ray_chunk=None):
        size = (self.config.resolution, self.config.resolution)
        image = self.out(nn.functional.interpolate(scene, size=size, mode='bilinear'))
        return Rendering(image, image)

    def forward(self, codes, times):
        ws = self.condition(codes, None, times)
        return self.render(self.scene(codes, ws, times), ws, None)

    def example_inputs(self, n):
        return Codes(torch.empty(n, self.z_dim), torch.empty(n, self.motion_dim)), torch.empty(n)


class ClipDiscriminator(nn.Module, Configurable):
    """Frames of a whole clip [N, T, 3, R, R] -> logits [N, 1]."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        kind = 'clip'
        resolution: int = 32

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.conv = nn.Conv3d(3, 4, 4, stride=4)
        self.head = nn.Linear(4, 1)

    def forward(self, frames):
        x = nn.functional.leaky_relu(self.conv(frames.transpose(1, 2)), 0.2)
        return self.head(x.mean(dim=(2, 3, 4)))

    def example_inputs(self, n):
        return (torch.empty(n, 16, 3, self.config.resolution, self.config.resolution),)


class HingeLoss(Loss, Configurable):
    """The hinge loss on whole clips, without regularisation."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        kind = 'hinge'
        margin: float = 1.0

    frames = 'clip'
    discriminators = ('D_video',)

    def __init__(self, config):
        self.config = config

    def has(self, phase):
        return phase in ('Gmain', 'Dmain')

    def terms(self, phase, networks, real, fake, nimg, generator, augment=0.0):
        G, D = networks.G, networks.D_video
        codes, times = fake.frame_codes(), fake.t.flatten()
        ws = G.condition(codes, fake.c.flatten(0, 1), times)
        image = G.render(G.scene(codes, ws, times), ws, fake.c.flatten(0, 1)).image
        score = D(image.unflatten(0, fake.t.shape))
        if phase == 'Gmain':
            yield Term(-score.mean(), {'Loss/G/clip': -score.mean().detach()})
        else:
            hinge = (self.config.margin + score).relu() + (self.config.margin - D(real.frames)).relu()
            yield Term(hinge.mean(), {'Loss/D/clip': hinge.mean().detach()}, ws[:, 0].mean(dim=0))


KINDS = (
    (GENERATORS, 'flat', FlatGenerator),
    (DISCRIMINATORS, 'clip', ClipDiscriminator),
    (LOSSES, 'hinge', HingeLoss),
)


def second(data):
    """The config of a run of the second system."""
    return TrainConfig(
        cfg='second',
        dataset=VideoDataset.Config(path=data, frames='clip', resolution=32),
        generator=FlatGenerator.Config(),
        d_image=ClipDiscriminator.Config(),
        d_video=ClipDiscriminator.Config(),
        loss=HingeLoss.Config(),
        output=OutputConfig(tick_nimg=4, snapshot_ticks=1, image_ticks=0, sheet_seeds=2),
        batch=2,
        total_nimg=8,
        workers=0,
    )
