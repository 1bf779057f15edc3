"""The configuration of a training run: one frozen tree.

Lengths of training and of schedules count clips ("nimg"); 1 kimg = 1000 clips.
"""

import dataclasses
import math
from typing import Annotated, Literal

from dnnlib.config import BaseConfig, Kinds
from dnnlib.util import ConfigError
from torch_utils.misc import Float32Precision
from training.augment import AugmentConfig
from training.data.dataset import VideoDataset
from training.loss import LOSSES, PV3DLoss
from training.loss_contract import Networks
from training.networks.discriminators import ImageDiscriminator, VideoDiscriminator
from training.networks.pv3d import Generator
from training.networks.registry import NETWORKS


def check_least(config: object, prefix: str, least: int, *names: str) -> None:
    """Raises ConfigError for the first of these fields that is below `least`."""
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f'{prefix}{name}={getattr(config, name)} must be at least {least}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam before the correction for lazy regularisation: lr and betas are adjusted by k / (k + 1)."""

    lr: float  # learning rate
    beta1: float = 0.0  # [StyleGAN2]
    beta2: float = 0.99  # [StyleGAN2]
    eps: float = 1e-8  # [StyleGAN2]

    def __post_init__(self) -> None:
        if not (0 <= self.lr < math.inf and 0 <= min(self.betas) <= max(self.betas) < 1 and self.eps > 0):
            raise ConfigError(f'lr={self.lr} must be at least 0, betas={self.betas} in [0, 1), eps positive')

    @property
    def betas(self) -> tuple[float, float]:
        """Both decays."""
        return self.beta1, self.beta2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average of the generator's weights."""

    half_life_nimg: int = 5000  # clips: batch x 10 / 32 x 1000 [EG3D]
    rampup: float = 0.05  # at first the half-life is at most this fraction of the clips seen [EG3D]

    def __post_init__(self) -> None:
        if self.half_life_nimg < 1 or not 0 < self.rampup < math.inf:
            given = f'ema.half_life_nimg={self.half_life_nimg} and ema.rampup={self.rampup}'
            raise ConfigError(f'{given} must be positive')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Times and cameras of fakes."""

    fake_times: Literal['lattice', 'continuous'] = 'lattice'  # continuous gives fakes away by their dt [ours]
    tie_time: bool = False  # take t from the frames that the cameras belong to [ours]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Single images that D_image alone sees, beside the frames of the clips."""

    path: str | None = None  # data set or folder of `dataset_tool.py from-images`; none = clips alone [PV3D]
    per_clip: int = 1  # images for each clip; D_image also sees loss.image_frames of it [ours]

    def __post_init__(self) -> None:
        check_least(self, 'images.', 1, 'per_clip')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What a run writes, and when."""

    tick_nimg: int = 4000  # clips between progress lines [EG3D]
    snapshot_ticks: int = 50  # ticks between checkpoints; 0 = at the end only [EG3D]
    image_ticks: int = 50  # ticks between sample sheets; 0 = none [EG3D]
    probe_ticks: int = 1  # ticks between probes of what is learned; 0 = none [ours]
    keep_states: int = 2  # training states kept; snapshots all stay
    sheet_seeds: int = 16  # heads on a sample sheet
    metrics: tuple[str, ...] = ()  # measured at every checkpoint, names as for calc_metrics.py
    wandb: str | None = (
        None  # project at Weights & Biases that also gets the figures; none = TensorBoard alone
    )

    def __post_init__(self) -> None:
        check_least(self, 'output.', 1, 'tick_nimg', 'keep_states', 'sheet_seeds')
        check_least(self, 'output.', 0, 'snapshot_ticks', 'image_ticks', 'probe_ticks')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Root of the tree, saved as training_options.json."""

    cfg: str  # name of the preset it came from
    dataset: VideoDataset.Config
    generator: Annotated[BaseConfig, NETWORKS['G']] = Generator.Config()
    d_image: Annotated[BaseConfig, NETWORKS['D_image']] = ImageDiscriminator.Config()
    d_video: Annotated[BaseConfig, NETWORKS['D_video']] = VideoDiscriminator.Config()
    loss: Annotated[BaseConfig, Kinds(LOSSES, 'pv3d')] = PV3DLoss.Config()
    sampling: SamplingConfig = SamplingConfig()
    images: ImagesConfig = ImagesConfig()
    augment: AugmentConfig = AugmentConfig()
    g_opt: AdamConfig = AdamConfig(lr=0.0025)  # [EG3D]
    d_opt: AdamConfig = AdamConfig(lr=0.002)  # [EG3D]
    ema: EmaConfig = EmaConfig()
    output: OutputConfig = OutputConfig()
    batch: int = 16  # clips per iteration over all processes [PV3D A.1]
    batch_gpu: int | None = None  # clips per backward on one process; none = batch / processes
    total_nimg: int = 4_800_000  # clips to train for: 300k iterations x 16 [PV3D A.1]
    g_reg_interval: int = 4  # iterations between density regularisations [EG3D]
    d_reg_interval: int = 16  # iterations between R1 regularisations [EG3D]
    # of convolutions in float32 on CUDA: exact [EG3D] | tf32, 10 bits of mantissa [ours]
    float32_precision: Float32Precision = 'exact'
    max_nonfinite: int = 4  # iterations in a row with a nan or infinity after which the run stops [ours]
    seed: int = 0  # of weights and every draw
    workers: int = 3  # processes that decode data, per rank
    resume: str | None = None  # snapshot to start from: weights only, a new run
    # networks, or parts such as G.synthesis, that this run does not train; those of G take G_ema's weights
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_least(self, '', 1, 'batch', 'g_reg_interval', 'd_reg_interval', 'max_nonfinite')
        check_least(self, '', 0, 'total_nimg', 'seed', 'workers')
        if self.seed >= 2**63:
            raise ConfigError(f'seed={self.seed} must be below 2**63')
        sizes = {self.generator.resolution, self.d_image.resolution, self.d_video.resolution}
        if len(sizes) > 1:
            raise ConfigError(f'generator, d_image and d_video differ in resolution: {sorted(sizes)}')

        loss = self.loss.build()
        unseen = not loss.takes_singles or 'D_image' not in loss.discriminators
        if self.images.path is not None and (unseen or self.augment.target is not None):
            raise ConfigError(
                'images.path needs the loss pv3d with D_image (loss.image_weight above 0) to see images, '
                'and no augment.target, which is measured on clips; augment.probability can be set'
            )
        augmented = self.augment.probability > 0 or self.augment.target is not None
        if augmented and not loss.augments:
            raise ConfigError(
                f'augment.probability={self.augment.probability} and target={self.augment.target} have no '
                f'effect on the loss {self.loss.kind}, which augments nothing; leave them at 0 and none'
            )
        if self.augment.target is not None and self.dataset.heldout_clips == 0:
            raise ConfigError('augment.target is measured on clips held out: set dataset.heldout_clips, too')

    def split_batch(self, world_size: int) -> tuple[int, int]:
        """Returns (clips per backward on a process, backwards per phase).

        Raises:
            ConfigError: if the batch does not divide.
        """
        batch_gpu = self.batch // world_size if self.batch_gpu is None else self.batch_gpu
        images = 0 if self.images.path is None else self.images.per_clip
        if batch_gpu < 1 or self.batch % (batch_gpu * world_size):
            raise ConfigError(
                f'--batch {self.batch} must be a multiple of '
                f'processes x --batch-gpu = {world_size} x {batch_gpu}'
            )
        # minibatch deviation divides 2 batch_gpu frames and batch_gpu pairs into groups of at most this
        group = max(getattr(d, 'group_size', 1) for d in (self.d_image, self.d_video))
        judged = batch_gpu * (getattr(self.loss, 'image_frames', 2) + images)  # by D_image
        if (batch_gpu > 2 and batch_gpu % group) or (images and judged > group and judged % group):
            raise ConfigError(
                f'{batch_gpu} clips at a time: the discriminators compare them in groups of {group}; choose '
                f'--batch and --batch-gpu so that 1, 2 or a multiple of {group} go through at a time'
                + (f', and a multiple of {group} frames with --images' if images else '')
            )
        return batch_gpu, self.batch // (batch_gpu * world_size)


def images_dataset(config: TrainConfig) -> VideoDataset | None:
    """Opens the single images of a run; None without.

    Raises:
        DataError: if they cannot be used.
    """
    if config.images.path is None:
        return None
    whole = {'path': config.images.path, 'frames': 'single', 'max_clips': None, 'heldout_clips': 0}
    return dataclasses.replace(config.dataset, **whole).build()


def describe_data(data: VideoDataset, images: VideoDataset | None) -> str:
    """Returns a line about the clips of a run, and one about its single images."""
    lines = [f'data: {data.describe()}', *([f'images: {images.describe()}'] if images is not None else [])]
    return '\n'.join(lines)


def build_networks(config: TrainConfig) -> Networks:
    """Builds the generator, then the discriminators that the loss uses; ConfigError if they do not fit it."""
    G, loss = config.generator.build(), config.loss.build()
    named = (('D_image', config.d_image), ('D_video', config.d_video))
    networks = Networks(G, *(c.build() if name in loss.discriminators else None for name, c in named))
    if problem := loss.problem(networks):
        raise ConfigError(f'the loss {config.loss.kind} cannot train these networks: {problem}')
    return networks


def with_followers(config: TrainConfig) -> TrainConfig:
    """Returns the config with what follows from the generator and the loss set: sizes, frames of a draw."""
    G = config.generator
    facts = {'resolution': G.resolution, 'span': G.span, 'frames': config.loss.build().frames}
    dataset = dataclasses.replace(config.dataset, **facts)
    return with_resolution(dataclasses.replace(config, dataset=dataset), G.resolution)


def with_focal(config: TrainConfig, focal: float) -> TrainConfig:
    """Returns the config with the focal length of the data, in image widths."""
    return dataclasses.replace(config, generator=dataclasses.replace(config.generator, focal=focal))


def with_resolution(config: TrainConfig, resolution: int) -> TrainConfig:
    """Returns the config with the image size of all three networks set."""
    names = ('generator', 'd_image', 'd_video')
    parts = {n: dataclasses.replace(getattr(config, n), resolution=resolution) for n in names}
    return dataclasses.replace(config, **parts)
