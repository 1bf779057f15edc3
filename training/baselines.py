"""The baselines of PV3D's table 1 as changes of a config; presets of 512x512 are made of them.

Where a paper is silent, what is built here says so. What all have in common with PV3D stays: data, cameras,
no augmentation.
"""

import dataclasses
from collections.abc import Callable

from dnnlib.config import override
from training.augment import AugmentConfig
from training.config import AdamConfig, EmaConfig, TrainConfig
from training.networks.nerf import NerfGenerator
from training.networks.patch_discriminators import ClipDiscriminator, PairDiscriminator
from training.networks.walk import NerfWalkGenerator, WalkConfig, WalkGenerator, Walking
from training.walk_loss import WalkLoss

# of a loss that sees frames one by one, and has no motion codes to tell apart
_SINGLE = {'loss.video_weight': '0', 'loss.diversity_weight': '0'}
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


def threedvidgen(config: TrainConfig) -> TrainConfig:
    """3DVidGen: a StyleNeRF with a background, one camera for a clip, discriminators without cameras.

    At most 32x32 rays with 14 + 14 samples, widths a quarter and half of w_dim. Cameras are drawn from the
    data, which is kinder than its Gaussian. Left out are what its papers add for quality: progressive growing
    (here images begin blurred), style mixing, view directions, path lengths, the consistency of upsampling,
    noise of the density, augmentation, which the other methods do not have either.
    """
    G = config.generator
    rays = dataclasses.replace(
        G.renderer,
        resolution=min(32, G.renderer.resolution),
        depth_samples=min(14, G.renderer.depth_samples),
        importance_samples=min(14, G.renderer.importance_samples),
        ray_start=max(2.376, G.renderer.ray_start),
        ray_end=min(3.024, G.renderer.ray_end),
    )
    generator = NerfGenerator.Config(
        resolution=G.resolution,
        span=G.span,
        focal=G.focal,
        z_dim=G.z_dim,
        w_dim=G.w_dim,
        hidden=max(G.w_dim // 4, 16),
        features=G.w_dim // 2,
        background_code=min(32, G.w_dim),
        code_dim=G.motion.code_dim,
        channel_base=G.channel_base,
        channel_max=G.channel_max,
        box_warp=G.box_warp,
        renderer=rays,
    )
    changes = {'d_image.dual': 'false', 'd_image.camera': 'false', 'd_video.camera': 'false'}
    changes |= {'loss.video_weight': '1', 'loss.density_weight': '0'}
    return override(dataclasses.replace(config, generator=generator), changes)


def eg3d_static(config: TrainConfig) -> TrainConfig:
    """The first stage of EG3D + MoCoGAN-HD: a static EG3D on single frames of the videos."""
    still = {'num_layers': '0', 'kind': 'modconv', 'path': 'line'}
    return override(config, {f'generator.motion.{name}': value for name, value in still.items()} | _SINGLE)


def stylenerf_static(config: TrainConfig) -> TrainConfig:
    """The first stage of StyleNeRF + MoCoGAN-HD: what 3DVidGen is made of, on single frames of the videos."""
    return override(threedvidgen(config), {'generator.moving': 'false'} | _SINGLE)


def eg3d_mcg(config: TrainConfig) -> TrainConfig:
    """The second stage of EG3D + MoCoGAN-HD, which starts from the first one by `resume`."""
    return _walking(eg3d_static(config), WalkGenerator)


def stylenerf_mcg(config: TrainConfig) -> TrainConfig:
    """The second stage of StyleNeRF + MoCoGAN-HD, which starts from the first one by `resume`.

    Clips have the moving cameras of the data, as those of EG3D + MoCoGAN-HD.
    """
    return _walking(stylenerf_static(config), NerfWalkGenerator)


def _walking(static: TrainConfig, kind: type[Walking]) -> TrainConfig:
    """Makes MoCoGAN-HD of a static run.

    Steps of the walk are learned, the rest is frozen. Widths follow w_dim: 384 of 512 principal directions,
    64 channels in discriminators. Frames follow each other, as PV3D's do (MoCoGAN-HD takes every second one),
    and cameras are those of a real clip. G takes one step for one of D, MoCoGAN-HD five.
    """
    G = static.generator
    fields = {f.name: getattr(G, f.name) for f in dataclasses.fields(G)}
    directions, width = 3 * G.w_dim // 4, max(G.w_dim // 8, 1)
    walk, sizes = WalkConfig(hidden=directions, components=directions), {'resolution': G.resolution}
    return dataclasses.replace(
        static,
        generator=kind.Config(**fields, walk=walk),
        d_image=PairDiscriminator.Config(**sizes, width=width),
        d_video=ClipDiscriminator.Config(**sizes, width=width),
        loss=WalkLoss.Config(),
        g_opt=AdamConfig(lr=1e-4, beta1=0.5, beta2=0.999),
        d_opt=AdamConfig(lr=1e-4, beta1=0.5, beta2=0.999),
        ema=EmaConfig(half_life_nimg=1),  # next to none
        augment=AugmentConfig(),
        batch=max(4, static.batch // 2),
        g_reg_interval=_NEVER,
        d_reg_interval=_NEVER,
        freeze=tuple(f'G.{part}' for part in kind.static_parts),
    )


BASELINES: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    '3dvidgen': threedvidgen,
    '3dvidgen-eg3d': threedvidgen_eg3d,
    'eg3d-static': eg3d_static,
    'eg3d-mcg': eg3d_mcg,
    'stylenerf-static': stylenerf_static,
    'stylenerf-mcg': stylenerf_mcg,
}
