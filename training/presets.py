"""Presets: functions from the path of the data to a TrainConfig that fixes everything else."""

import dataclasses
from collections.abc import Callable

from training.baselines import BASELINES
from training.config import EmaConfig, OutputConfig, SamplingConfig, TrainConfig
from training.data.dataset import VideoDataset
from training.loss import PV3DLoss
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.motion import MotionConfig
from training.networks.pv3d import Generator
from training.volumetric_rendering.renderer import RendererConfig


def _square(
    cfg: str,
    data: str,
    resolution: int,
    *,
    channel_base: int = 32768,
    channel_max: int = 512,
    **generator: object,
) -> TrainConfig:
    """A config whose networks share resolution and widths; `generator`: further fields of its Config."""
    widths = {'resolution': resolution, 'channel_base': channel_base, 'channel_max': channel_max}
    return TrainConfig(
        cfg=cfg,
        dataset=VideoDataset.Config(path=data),
        generator=Generator.Config(**widths, **generator),
        d_image=ImageDiscriminator.Config(**widths),
        d_video=VideoDiscriminator.Config(**widths),
    )


def pv3d_voxceleb(data: str) -> TrainConfig:
    """512x512, the paper's weights for VoxCeleb: 8 GPUs."""
    return dataclasses.replace(_square('pv3d-voxceleb', data, 512), float32_precision='tf32')


def pv3d_celebvhq(data: str) -> TrainConfig:
    """512x512, the paper's weights for CelebV-HQ."""
    loss = PV3DLoss.Config(density_weight=0.05, r1_gamma=4.0)
    return dataclasses.replace(pv3d_voxceleb(data), cfg='pv3d-celebvhq', loss=loss)


def pv3d_talkinghead(data: str) -> TrainConfig:
    """512x512, the paper's weights for TalkingHead-1KH."""
    loss = PV3DLoss.Config(density_weight=0.5)
    return dataclasses.replace(pv3d_voxceleb(data), cfg='pv3d-talkinghead', loss=loss)


def pv3d_released(data: str) -> TrainConfig:
    """512x512, every switch as in the code that the authors released (8 GPUs x 2 clips)."""
    return dataclasses.replace(
        _square('pv3d-released', data, 512, plane_axes='released'),
        dataset=VideoDataset.Config(path=data, distinct=False, mirror_fakes=False),
        loss=PV3DLoss.Config(density_box='released', blur_fade_nimg=12_500),  # fades by the batch of one GPU
        sampling=SamplingConfig(fake_times='continuous'),
    )


def pv3d_256(data: str) -> TrainConfig:
    """256x256 on one GPU."""
    config = _square('pv3d-256', data, 256, channel_base=16384, sr_channels=(128, 64))
    loss = PV3DLoss.Config(r1_gamma=1.0, blur_sigma=5.0)
    return dataclasses.replace(config, loss=loss, float32_precision='tf32')


def pv3d_128(data: str) -> TrainConfig:
    """128x128 on one GPU."""
    config = _square(
        'pv3d-128',
        data,
        128,
        channel_base=16384,
        channel_max=256,
        plane_resolution=128,
        sr_resolution=64,
        sr_channels=(128, 64),
        renderer=RendererConfig(depth_samples=32, importance_samples=32),
    )
    return dataclasses.replace(
        config,
        loss=PV3DLoss.Config(r1_gamma=0.5, blur_sigma=2.5, blur_fade_nimg=50_000, swap_fade_nimg=200_000),
        total_nimg=1_000_000,
    )


def demo(data: str) -> TrainConfig:
    """64x64 on a CPU: small networks, fast schedules, and a video discriminator that looks at motion."""
    config = _square(
        'demo',
        data,
        64,
        channel_base=2048,
        channel_max=96,
        z_dim=128,
        w_dim=128,
        plane_resolution=64,
        plane_channels=16,
        feature_channels=16,
        box_warp=0.6,  # a head and no more: the planes are coarse
        sr_resolution=32,
        sr_channels=(32, 16),
        motion=MotionConfig(code_dim=128, path='waves', lr_multiplier=0.01),
        renderer=RendererConfig(
            resolution=32, depth_samples=8, importance_samples=8, ray_start=2.35, ray_end=3.05
        ),
    )
    return dataclasses.replace(
        config,
        d_image=dataclasses.replace(config.d_image, channel_base=1024),
        d_video=dataclasses.replace(config.d_video, channel_base=1024, pair='difference'),
        loss=PV3DLoss.Config(
            image_frames=1,
            video_weight=2.0,
            r1_gamma_video=0.2,
            diversity_weight=0.5,
            diversity_fade_nimg=30_000,
            reuse_fakes=True,
            density_weight=0.25,
            density_points=300,
            blur_sigma=1.5,
            blur_fade_nimg=4000,
            swap_end=1.0,
        ),
        ema=EmaConfig(half_life_nimg=2000, rampup=0.1),
        output=OutputConfig(tick_nimg=1000, snapshot_ticks=5, image_ticks=5),
        batch=8,
        g_reg_interval=8,
        total_nimg=400_000,
        workers=1,
    )


def study(data: str) -> TrainConfig:
    """32x32 for experiments of minutes on a CPU, with the paper's motion; made for data with --focal 7."""
    config = _square(
        'study',
        data,
        32,
        channel_base=512,
        channel_max=64,
        z_dim=128,
        w_dim=128,
        plane_resolution=64,
        plane_channels=8,
        feature_channels=16,
        sr_resolution=16,
        sr_channels=(16, 16),
        box_warp=0.6,
        motion=MotionConfig(code_dim=128),
        renderer=RendererConfig(
            resolution=16, depth_samples=6, importance_samples=6, ray_start=2.35, ray_end=3.05
        ),
    )
    return dataclasses.replace(
        config,
        loss=PV3DLoss.Config(
            image_frames=1,
            video_weight=1.0,
            r1_gamma=0.2,
            reuse_fakes=True,
            density_weight=0.25,
            density_points=250,
            blur_sigma=0.75,
            blur_fade_nimg=4000,
            swap_fade_nimg=20_000,
        ),
        ema=EmaConfig(half_life_nimg=1500, rampup=0.1),
        output=OutputConfig(tick_nimg=2000, snapshot_ticks=5, image_ticks=10, probe_ticks=5),
        batch=8,
        g_reg_interval=8,
        total_nimg=1_000_000,
        workers=0,
    )


def tiny(data: str) -> TrainConfig:
    """32x32 for tests: everything as small as it can be."""
    config = _square(
        'tiny',
        data,
        32,
        channel_base=512,
        channel_max=16,
        z_dim=16,
        w_dim=16,
        plane_resolution=32,
        plane_channels=4,
        feature_channels=8,
        sr_resolution=16,
        sr_channels=(8, 8),
        motion=MotionConfig(code_dim=16),
        renderer=RendererConfig(resolution=8, depth_samples=6, importance_samples=6),
    )
    return dataclasses.replace(
        config,
        loss=PV3DLoss.Config(blur_sigma=1.0, blur_fade_nimg=16, density_points=64),
        ema=EmaConfig(half_life_nimg=16),
        output=OutputConfig(tick_nimg=8, snapshot_ticks=1, image_ticks=2, sheet_seeds=4),
        batch=4,
        total_nimg=32,
        workers=0,
    )


def _baseline(name: str) -> Callable[[str], TrainConfig]:
    """Returns the preset of a baseline at 512x512, with what it shares with PV3D on VoxCeleb."""
    return lambda data: dataclasses.replace(BASELINES[name](pv3d_voxceleb(data)), cfg=name)


PRESETS: dict[str, Callable[[str], TrainConfig]] = {
    'pv3d-voxceleb': pv3d_voxceleb,
    'pv3d-celebvhq': pv3d_celebvhq,
    'pv3d-talkinghead': pv3d_talkinghead,
    'pv3d-released': pv3d_released,
    'pv3d-256': pv3d_256,
    'pv3d-128': pv3d_128,
    'demo': demo,
    'study': study,
    'tiny': tiny,
    **{name: _baseline(name) for name in BASELINES},
}
