"""The configuration of a training run: one frozen tree, and presets as functions that return one.

Lengths of training and of schedules count clips ("nimg"); 1 kimg = 1000 clips. A preset
fixes everything but the data.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

from dnnlib.util import ConfigError
from training.data.dataset import VideoDataset
from training.loss import PV3DLoss
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.motion import MotionConfig
from training.networks.pv3d import Generator
from training.volumetric_rendering.renderer import RendererConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam before the correction for lazy regularisation: lr and betas are adjusted by k / (k + 1)."""

    lr: float  # learning rate
    beta2: float = 0.99  # beta1 is 0 [StyleGAN2]
    eps: float = 1e-8  # [StyleGAN2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average of the generator's weights."""

    half_life_nimg: int = 5000  # clips: batch x 10 / 32 x 1000 [EG3D]
    rampup: float = 0.05  # at first the half-life is at most this share of the clips seen [EG3D]

    def __post_init__(self) -> None:
        if self.half_life_nimg < 1 or not 0 < self.rampup < math.inf:
            raise ConfigError(
                f'ema.half_life_nimg={self.half_life_nimg} and ema.rampup={self.rampup} must be positive'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Times and cameras of fakes."""

    fake_times: Literal['lattice', 'continuous'] = 'lattice'  # continuous gives fakes away by their dt [ours]
    tie_time: bool = False  # take t from the frames that the cameras belong to [ours]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What a run writes, and when."""

    tick_nimg: int = 4000  # clips between progress lines [EG3D]
    snapshot_ticks: int = 50  # ticks between checkpoints; 0 = at the end only [EG3D]
    image_ticks: int = 50  # ticks between sample sheets; 0 = none [EG3D]
    keep_states: int = 2  # training states kept; snapshots all stay
    sheet_seeds: int = 16  # heads on a sample sheet
    metrics: tuple[str, ...] = ()  # measured at every checkpoint, names as for calc_metrics.py

    def __post_init__(self) -> None:
        for name, least in (('tick_nimg', 1), ('snapshot_ticks', 0), ('image_ticks', 0), ('keep_states', 1)):
            if getattr(self, name) < least:
                raise ConfigError(f'output.{name}={getattr(self, name)} must be at least {least}')
        if self.sheet_seeds < 1:
            raise ConfigError(f'output.sheet_seeds={self.sheet_seeds} must be at least 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Root of the tree, saved as training_options.json."""

    cfg: str  # name of the preset it came from
    dataset: VideoDataset.Config
    generator: Generator.Config = dataclasses.field(default_factory=Generator.Config)
    d_image: ImageDiscriminator.Config = dataclasses.field(default_factory=ImageDiscriminator.Config)
    d_video: VideoDiscriminator.Config = dataclasses.field(default_factory=VideoDiscriminator.Config)
    loss: PV3DLoss.Config = dataclasses.field(default_factory=PV3DLoss.Config)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    g_opt: AdamConfig = dataclasses.field(default_factory=lambda: AdamConfig(lr=0.0025))  # [EG3D]
    d_opt: AdamConfig = dataclasses.field(default_factory=lambda: AdamConfig(lr=0.002))  # [EG3D]
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)
    batch: int = 16  # clips per iteration over all processes [PV3D A.1]
    batch_gpu: int | None = None  # clips per backward on one process; none = batch / processes
    total_nimg: int = 4_800_000  # clips to train for: 300k iterations x 16 [PV3D A.1]
    g_reg_interval: int = 4  # iterations between density regularisations [EG3D]
    d_reg_interval: int = 16  # iterations between R1 regularisations [EG3D]
    max_nonfinite: int = 4  # iterations in a row with a nan or infinity after which the run stops [ours]
    seed: int = 0  # of weights and every draw
    workers: int = 3  # processes that decode data, per rank
    resume: str | None = None  # snapshot to start from: weights only, a new run

    def __post_init__(self) -> None:
        for name in ('batch', 'g_reg_interval', 'd_reg_interval', 'max_nonfinite'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name}={getattr(self, name)} must be at least 1')
        for name in ('total_nimg', 'seed', 'workers'):
            if getattr(self, name) < 0:
                raise ConfigError(f'{name}={getattr(self, name)} must not be negative')
        if self.seed >= 2**63:
            raise ConfigError(f'seed={self.seed} must be below 2**63')
        sizes = {self.generator.resolution, self.d_image.resolution, self.d_video.resolution}
        if len(sizes) > 1:
            raise ConfigError(f'generator, d_image and d_video differ in resolution: {sorted(sizes)}')

    def split_batch(self, world_size: int) -> tuple[int, int]:
        """Returns (clips per backward on a process, backwards per phase).

        Raises:
            ConfigError: if the batch does not divide.
        """
        batch_gpu = self.batch // world_size if self.batch_gpu is None else self.batch_gpu
        if batch_gpu < 1 or self.batch % (batch_gpu * world_size):
            raise ConfigError(
                f'--batch {self.batch} must be a multiple of '
                f'processes x --batch-gpu = {world_size} x {batch_gpu}'
            )
        # what minibatch deviation can divide: 2 batch_gpu frames and batch_gpu pairs into groups of at most 4
        if batch_gpu > 2 and batch_gpu % 4:
            raise ConfigError(
                f'{batch_gpu} clips at a time: the discriminators compare them in groups of 4; choose '
                '--batch and --batch-gpu so that 1, 2 or a multiple of 4 go through at a time'
            )
        return batch_gpu, self.batch // (batch_gpu * world_size)


def with_resolution(config: TrainConfig, resolution: int) -> TrainConfig:
    """Returns the config with the picture size of all three networks set."""
    parts = {
        n: dataclasses.replace(getattr(config, n), resolution=resolution) for n in ('d_image', 'd_video')
    }
    generator = dataclasses.replace(config.generator, resolution=resolution)
    return dataclasses.replace(config, generator=generator, **parts)


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
    return _square('pv3d-voxceleb', data, 512)


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
    return dataclasses.replace(config, loss=PV3DLoss.Config(r1_gamma=1.0, blur_sigma=5.0))


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
    """64x64 on a CPU: small networks, fast schedules."""
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
        sr_resolution=32,
        sr_channels=(32, 16),
        motion=MotionConfig(code_dim=128),
        renderer=RendererConfig(resolution=32, depth_samples=10, importance_samples=10),
    )
    return dataclasses.replace(
        config,
        loss=PV3DLoss.Config(
            video_weight=3.0,  # motion sooner
            r1_gamma=0.2,
            density_weight=0.25,
            blur_sigma=1.5,
            blur_fade_nimg=4000,
            swap_fade_nimg=20_000,
        ),
        ema=EmaConfig(half_life_nimg=1000, rampup=0.1),
        output=OutputConfig(tick_nimg=200, snapshot_ticks=5, image_ticks=5),
        batch=4,
        total_nimg=100_000,
        workers=1,
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


PRESETS: dict[str, Callable[[str], TrainConfig]] = {
    'pv3d-voxceleb': pv3d_voxceleb,
    'pv3d-celebvhq': pv3d_celebvhq,
    'pv3d-talkinghead': pv3d_talkinghead,
    'pv3d-released': pv3d_released,
    'pv3d-256': pv3d_256,
    'pv3d-128': pv3d_128,
    'demo': demo,
    'tiny': tiny,
}
