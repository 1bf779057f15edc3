"""The network of the metric `geometry`: learns from synthetic data to read depth and normals off images.

Training runs on one core of the CPU whatever the machine: equal data and seeds give equal weights.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnnlib.util import UserError, atomic_write
from metrics.measures.geometry import Estimate, floor_errors
from metrics.measures.geometry_truth import Truth, TruthReader, shrink
from metrics.records.digests import json_digest
from torch_utils.misc import seeded_generator
from training.camera import mirror_label, unpack_label
from training.data.dataset import VideoDataset
from training.volumetric_rendering.ray_sampler import camera_rays

_VERSION = 1  # of network, training and file; part of the file's name
_MULTIPLE = 8  # sides of images that the network takes
_WIDTHS = (32, 64, 96)  # channels at a half, a quarter and an eighth of the image's size
_DEPTH_RANGE = 0.25  # scene units per unit of the network's output
_FAR_QUANTILE = 0.995  # of true distances: rendered points beyond it are background
_HELD_OUT = 8  # every eighth person is left for the floor
_INIT, _DRAWS = 130, 131  # purposes of random draws; each has a stream of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatorTraining:
    """How the estimator is trained: about two minutes on a core."""

    size: int = 64  # pixels of a side of the images; less when the data have less
    clips: int = 64  # people, those held out included
    frames: int = 16  # of each
    steps: int = 1200
    batch: int = 16
    lr: float = 4e-3


DEFAULT_TRAINING = EstimatorTraining()


class Estimator(nn.Module):
    """U-Net from image and rays to depth, normals and mask; 0.27 M parameters.

    Attributes:
        size: pixels of a side of the images that it sees.
        far: distance beyond which no head reaches, scene units.
        floor: mean errors (the names of ERRORS) of true geometry of people that were held out.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.far = float('inf')
        self.floor: dict[str, float] = {}
        a, b, c = _WIDTHS
        self.top = nn.Sequential(_block(3 * 4 + 6, a), _block(a, a))
        self.middle = nn.Sequential(_block(a, b, stride=2), _block(b, b))
        self.bottom = nn.Sequential(_block(b, c, stride=2), _block(c, c), nn.Conv2d(c, b, 1))
        self.middle_up = nn.Sequential(_block(b, b), nn.Conv2d(b, a, 1))
        self.top_up = nn.Sequential(_block(a, a), nn.Conv2d(a, 5, 3, padding=1))

    def forward(self, images: Tensor, cameras: Tensor) -> Estimate:
        """Reads geometry off images.

        Args:
            images: [0, 255], any size [N, 3, H, H].
            cameras: labels [N, 25].
        """
        cam2world, intrinsics = unpack_label(cameras)
        side = self.size // 2
        origins, directions = camera_rays(cam2world, intrinsics, side)
        middle = -(origins * directions).sum(dim=-1, keepdim=True)  # distance of the point next to the origin
        near = (origins + middle * directions) * 3  # these points are within 1 / 3
        rays = torch.cat([directions, near], dim=-1)
        rays, middle = (x.transpose(1, 2).unflatten(2, (side, side)) for x in (rays, middle))
        pixels = F.pixel_unshuffle(_resize(images.float(), self.size) / 127.5 - 1, 2)
        top = self.top(torch.cat([pixels, rays], dim=1))
        between = self.middle(top)
        deep = between + F.interpolate(self.bottom(between), scale_factor=2)
        out = self.top_up(top + F.interpolate(self.middle_up(deep), scale_factor=2))
        local = out[:, 1:4] - out.new_tensor([0.0, 0.0, 1.0])[:, None, None]  # at first towards the camera
        normal = torch.einsum('nij,njhw->nihw', cam2world[:, :3, :3], F.normalize(local, dim=1))
        return Estimate(middle + _DEPTH_RANGE * out[:, :1], normal, out[:, 4:])


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


def _resize(images: Tensor, size: int) -> Tensor:
    """Resizes images: averages of areas, or smoothly where they are too small."""
    if images.shape[-1] >= size:
        return shrink(images, size)
    return F.interpolate(images, size=(size, size), mode='bilinear', antialias=True)


def load_or_train_estimator(
    data: VideoDataset,
    cache: Path,
    seed: int = 0,
    progress: Callable[[int], object] = lambda steps: None,
    training: EstimatorTraining = DEFAULT_TRAINING,
) -> Estimator:
    """Returns the estimator of a data set with truth, on the CPU; trains it unless the cache has it.

    Args:
        data: data set.
        cache: folder of trained weights; made if it does not exist.
        seed: of the weights and of the training.
        progress: called with 1 after each of `training.steps` steps.
        training: options.

    Raises:
        UserError: when the data have no truth or fewer than two people.
    """
    reader = TruthReader(data, training.clips, training.frames)
    if len(reader) < 2:
        raise UserError('the metric geometry needs synthetic data of at least two people, got one clip')
    size = max(_MULTIPLE, min(training.size, reader.resolution) // _MULTIPLE * _MULTIPLE)
    options = {'training': dataclasses.asdict(training), 'size': size, 'seed': seed}
    name = json_digest({'version': _VERSION, 'data': reader.digest(), **options})
    path = Path(cache, f'geometry-{name[:32]}.pt')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded_generator('cpu', seed, _INIT).initial_seed())
        estimator = Estimator(size)
    if not _load(path, estimator):
        _train(estimator, reader, seed, progress, training)
        _save(path, estimator)
    return estimator.eval().requires_grad_(False)


def held_out(clips: int) -> list[int]:
    """Returns which of the clips of a TruthReader are not trained on: every eighth, and at least one."""
    return list(range(min(_HELD_OUT, clips) - 1, clips, _HELD_OUT))


def _load(path: Path, estimator: Estimator) -> bool:
    """Loads a file of `_save`; returns False when it is missing or corrupted."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        estimator.load_state_dict(content['state'])
        estimator.far, estimator.floor = content['far'], content['floor']
    except Exception:  # the safe unpickler raises nearly anything on a corrupted file; it is written again
        return False
    return True


def _save(path: Path, estimator: Estimator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {'state': estimator.state_dict(), 'far': estimator.far, 'floor': estimator.floor}
    with atomic_write(path) as file:
        torch.save(content, file)


def _train(
    estimator: Estimator,
    reader: TruthReader,
    seed: int,
    progress: Callable[[int], object],
    training: EstimatorTraining,
) -> None:
    """Trains on most people of the data and measures the floor on the others."""
    held, size, rate = held_out(len(reader)), estimator.size, training.lr
    truth = reader.read([i for i in range(len(reader)) if i not in held], size)
    unseen = reader.read(held, size)  # now: what cannot be read should not be found after training
    distances = truth.depth[truth.mask > 0.5].numpy()
    if len(distances):
        estimator.far = float(np.quantile(distances, _FAR_QUANTILE))
    optimizer = torch.optim.AdamW(estimator.parameters(), rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, training.steps, pct_start=0.15)
    generator = seeded_generator('cpu', seed, _DRAWS)
    with _one_thread():
        for _ in range(training.steps):
            chosen = torch.randint(len(truth.image), (training.batch,), generator=generator)
            batch = _augment(Truth(*(x[chosen] for x in truth)), generator)
            optimizer.zero_grad(set_to_none=True)
            _loss(estimator(batch.image, batch.cameras), batch).backward()
            optimizer.step()
            schedule.step()
            progress(1)
        estimator.floor = floor_errors(estimator, unseen)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps the order of sums, and with it every bit, whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _loss(estimate: Estimate, truth: Truth) -> Tensor:
    size = estimate.depth.shape[-1]
    mask = shrink(truth.mask, size)
    weight = mask / mask.sum().clamp(min=1)
    depth = (estimate.depth - shrink(truth.depth, size, truth.mask)).abs()
    normal = F.normalize(shrink(truth.normal, size, truth.mask), dim=1)
    bend = 1 - (estimate.normal * normal).sum(dim=1, keepdim=True)
    outline = F.binary_cross_entropy_with_logits(estimate.mask_logit, mask)
    return (weight * (10 * depth + 2 * bend)).sum() + outline


def _augment(batch: Truth, generator: torch.Generator) -> Truth:
    """Mirrors half of the frames, and varies what generators vary: colour, sharpness, noise."""
    n = len(batch.image)

    def draw(*shape: int) -> Tensor:
        return torch.rand((n, *shape, 1, 1), generator=generator)

    flip = draw(1) < 0.5
    flipped = batch.normal.flip(-1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    image = batch.image.float() * (0.8 + 0.4 * draw(1)) * (0.9 + 0.2 * draw(3)) + 40 * (draw(1) - 0.5)
    coarse = F.interpolate(F.avg_pool2d(image, 2), scale_factor=2, mode='bilinear')
    image = torch.lerp(image, coarse, draw(1))
    image = image + 12 * draw(1) * torch.randn(image.shape, generator=generator)
    pick = [torch.where(flip, x.flip(-1), x) for x in (image.clamp(0, 255), batch.depth, batch.mask)]
    cameras = torch.where(flip[:, 0, 0], mirror_label(batch.cameras), batch.cameras)
    return Truth(pick[0], cameras, pick[1], torch.where(flip, flipped, batch.normal), pick[2])
