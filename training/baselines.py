"""The baselines of PV3D's table 1 as changes of a config; presets of 512x512 are made of them.

Where a paper is silent, what is built here says so. What all have in common with PV3D stays: data, cameras,
no augmentation.
"""

import dataclasses
from collections.abc import Callable

from dnnlib.config import override
from training.config import AdamConfig, EmaConfig, TrainConfig
from training.networks.motion import MotionConfig
from training.networks.patch_discriminators import ClipDiscriminator, PairDiscriminator
from training.networks.walk import STATIC, WalkGenerator
from training.walk_loss import WalkLoss

_NEVER = 1000  # iterations between regularisations that a loss does not have; lr is hardly corrected for them


def threedvidgen_eg3d(config: TrainConfig) -> TrainConfig:
    """3DVidGen with the backbone of EG3D: additive motion, one camera for a clip, a D_video without cameras.

    Not published are where motion enters (here the K blocks of PV3D), the losses (here PV3D's with both
    discriminators alike, as in 3DVidGen) and D_image (here EG3D's, with cameras). Cameras are drawn from the
    data.
    """
    changes = {
        'generator.motion.kind': 'additive',
        'generator.camera_condition': 'all',
        'd_video.camera': 'false',
        'loss.video_weight': '1',
    }
    return override(config, changes)


def eg3d_static(config: TrainConfig) -> TrainConfig:
    """The first stage of EG3D + MoCoGAN-HD: a static EG3D on single frames of the videos."""
    return override(config, {'generator.motion.num_layers': '0', 'loss.video_weight': '0'})


def eg3d_mcg(config: TrainConfig) -> TrainConfig:
    """The second stage of EG3D + MoCoGAN-HD, which starts from the first one by `resume`.

    Steps of the walk are learned, the rest is frozen. Widths follow w_dim: 384 of 512 principal directions,
    64 channels in discriminators. Frames follow each other, as PV3D's do (MoCoGAN-HD takes every second one),
    and cameras are those of a real clip. G takes one step for one of D, MoCoGAN-HD five.
    """
    G = config.generator
    fields = {f.name: getattr(G, f.name) for f in dataclasses.fields(G)} | {
        'motion': MotionConfig(num_layers=0)
    }
    directions, width = 3 * G.w_dim // 4, max(G.w_dim // 8, 1)
    sizes = {'resolution': G.resolution, 'width': width}
    return dataclasses.replace(
        config,
        generator=WalkGenerator.Config(**fields, hidden=directions, components=directions),
        d_image=PairDiscriminator.Config(**sizes),
        d_video=ClipDiscriminator.Config(**sizes),
        loss=WalkLoss.Config(),
        g_opt=AdamConfig(lr=1e-4, beta1=0.5, beta2=0.999),
        d_opt=AdamConfig(lr=1e-4, beta1=0.5, beta2=0.999),
        ema=EmaConfig(half_life_nimg=1),  # none
        batch=max(4, config.batch // 2),
        g_reg_interval=_NEVER,
        d_reg_interval=_NEVER,
        freeze=tuple(f'G.{part}' for part in STATIC),
    )


BASELINES: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    '3dvidgen-eg3d': threedvidgen_eg3d,
    'eg3d-static': eg3d_static,
    'eg3d-mcg': eg3d_mcg,
}
