"""Error of generated depth and normals: against a network that reads both off the generated picture.

A generated picture has no truth. As EG3D's depth metric asks a face reconstruction network, this one asks a
small network that was trained on pictures with true depth and normals: synthetic data. Its own error on
people that it never saw is the floor: two values below it cannot be told apart.

Nothing is compared that one picture cannot tell, or that depends on the number of rays: depth counts but for
its mean, the outermost pixels of a head, where rays half hit it, do not count, and all is compared at half
the size of the pictures, 32x32, which is the number of rays of a small generator.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnnlib.util import UserError, atomic_write, explain_os_error
from metrics.measures.consistency import Degenerate
from metrics.measures.geometry_truth import Geometry, Truth, TruthReader, Wrong, geometry_of, shrink
from torch_utils.misc import seeded_generator
from training.camera import mirror_label, unpack_label
from training.data.dataset import VideoDataset
from training.volumetric_rendering.ray_sampler import camera_rays
from viz.images import normals_from_xyz

ERRORS = ('depth_error', 'normal_error_deg', 'mask_iou', 'depth_shift')
_VERSION = 1  # of network, training and file; part of the file's name
_MULTIPLE = 8  # sides of pictures that the network takes
_WIDTHS = (32, 64, 96)  # channels at a half, a quarter and an eighth of the picture's size
_DEPTH_RANGE = 0.25  # scene units per unit of the network's output
_FAR_QUANTILE = 0.995  # of true distances: rendered points beyond it are background
_OPAQUE = 0.5  # opacity of a ray that hits the head
_MIN_AREA = 0.02  # share of the picture that a head must fill
_EVAL_BATCH = 32  # pictures in memory at once
_HELD_OUT = 8  # every eighth person is left for the floor
_INIT, _DRAWS = 130, 131  # purposes of random draws; each has a stream of its own


class Estimate(NamedTuple):
    """What a picture says of the shape that it shows, at half its size s."""

    depth: Tensor  # distance along the unit ray, scene units [N, 1, s, s]
    normal: Tensor  # unit, world axes [N, 3, s, s]
    mask_logit: Tensor  # of the head [N, 1, s, s]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatorTraining:
    """How the estimator is trained: about two minutes on a core."""

    size: int = 64  # pixels of a side of the pictures; less when the data have less
    clips: int = 64  # people, those held out included
    frames: int = 16  # of each
    steps: int = 1200
    batch: int = 16
    lr: float = 4e-3


DEFAULT_TRAINING = EstimatorTraining()


class Estimator(nn.Module):
    """U-Net from picture and rays to depth, normals and mask; 0.27 M parameters.

    Attributes:
        size: pixels of a side of the pictures that it sees.
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
        """Reads geometry off pictures.

        Args:
            images: [0, 255], any size [N, 3, H, H].
            cameras: labels [N, 25].
        """
        cam2world, intrinsics = unpack_label(cameras)
        side = self.size // 2
        origins, directions = camera_rays(cam2world, intrinsics, side)
        middle = -(origins * directions).sum(dim=-1, keepdim=True)  # distance of the point next to the origin
        rays = torch.cat(
            [directions, (origins + middle * directions) * 3], dim=-1
        )  # the points are within 1 / 3
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
    """Resizes pictures: averages of areas, or smoothly where they are too small."""
    if images.shape[-1] >= size:
        return shrink(images, size)
    return F.interpolate(images, size=(size, size), mode='bilinear', antialias=True)


@torch.no_grad()
def geometry_errors(
    estimator: Estimator, images: Tensor, cameras: Tensor, depth: Tensor, opacity: Tensor, xyz: Tensor
) -> list[dict[str, np.ndarray] | str]:
    """Compares rendered depth and normals with those that the estimator reads off the pictures.

    Args:
        estimator: from load_or_train_estimator, on the device of the rest.
        images: uint8 [N, 3, H, H].
        cameras: labels of the render cameras [N, 25].
        depth: distance along the unit ray, scene units [N, 1, h, h].
        opacity: [N, 1, h, h].
        xyz: world points [N, 3, h, h].

    Returns:
        for each picture the reason why it cannot be measured, or numbers: depth_error, mean absolute
        difference of depth but for its mean, scene units; normal_error_deg, mean angle, degrees; mask_iou,
        intersection over union of the heads; depth_shift, mean of rendered - estimated depth, scene units.
    """
    if len({len(x) for x in (images, cameras, depth, opacity, xyz)}) != 1:
        raise ValueError('as many pictures, cameras, depths, opacities and points expected')
    estimates = estimator(images, cameras)
    records: list[dict[str, np.ndarray] | str] = []
    for i in range(len(images)):
        estimate = Estimate(*(x[i : i + 1] for x in estimates))
        rendered = Geometry(*(x[i : i + 1] for x in (depth, opacity, xyz)))
        try:
            errors = compare(estimate, rendered, estimator.far)
        except Degenerate as error:
            records.append(str(error))
        else:
            records.append({name: np.array(value) for name, value in errors.items()})
    return records


def compare(estimate: Estimate, rendered: Geometry, far: float) -> dict[str, float]:
    """Returns the errors, named as in ERRORS, of one picture.

    Args:
        estimate: of one picture, N = 1.
        rendered: of one picture, N = 1.
        far: rendered points at this distance or beyond are background, scene units.

    Raises:
        Degenerate: when it cannot be measured.
    """
    size = min(estimate.depth.shape[-1], rendered.depth.shape[-1])
    if not all(x.isfinite().all() for x in (*estimate, *rendered)):
        raise Degenerate('the picture or its depth is not finite')
    seen = ((rendered.opacity > _OPAQUE) & (rendered.depth < far)).float()
    shown = (estimate.mask_logit > 0).float()
    depth = shrink(rendered.depth, size, seen) - shrink(estimate.depth, size, shown)
    xyz, expected = shrink(rendered.xyz, size, seen), shrink(estimate.normal, size, shown)
    head, face = shrink(seen, size) > 0.5, shrink(shown, size) > 0.5
    if head.float().mean() < _MIN_AREA:
        raise Degenerate('no surface is rendered')
    if face.float().mean() < _MIN_AREA:
        raise Degenerate('no head is recognised in the picture')
    # at the outline depth is a mixture, and normals, which are differences of neighbours, are nonsense
    inner = (F.avg_pool2d(head.float(), 3, stride=1) > 0.999) & face[..., 1:-1, 1:-1]
    if inner.sum() < _MIN_AREA / 2 * head.numel():
        raise Degenerate('the rendered surface is not where the picture shows a head')
    difference = depth[..., 1:-1, 1:-1][inner].double()
    normals = normals_from_xyz(xyz)[..., 1:-1, 1:-1]
    angle = angles_deg(normals, expected[..., 1:-1, 1:-1])[inner]
    return {
        'depth_error': float((difference - difference.mean()).abs().mean()),
        'normal_error_deg': float(angle.mean()),
        'mask_iou': float((head & face).sum() / (head | face).sum()),
        'depth_shift': float(difference.mean()),
    }


def angles_deg(a: Tensor, b: Tensor) -> Tensor:
    """Returns the angles [N, 1, H, W] between vectors [N, 3, H, W] of any length, degrees."""
    a, b = a.double(), b.double()
    across = torch.linalg.cross(a, b, dim=1).norm(dim=1, keepdim=True)
    return torch.rad2deg(torch.atan2(across, (a * b).sum(dim=1, keepdim=True)))


def control_errors(estimator: Estimator, truth: Truth, wrong: Wrong = 'none') -> dict[str, float]:
    """Returns the mean errors of a data set's own frames with their true geometry or a wrong one.

    Raises:
        Degenerate: when not a single frame can be measured.
    """
    records = []
    whole = (truth.image, truth.cameras, *geometry_of(truth, wrong))
    for parts in zip(*(x.split(_EVAL_BATCH) for x in whole), strict=True):
        records += geometry_errors(estimator, *parts)
    good = [r for r in records if not isinstance(r, str)]
    if not good:
        raise Degenerate(str(records[0]))
    return {name: float(np.mean([r[name] for r in good])) for name in ERRORS}


def load_or_train_estimator(
    data: VideoDataset | str | Path,
    cache: Path,
    seed: int = 0,
    progress: Callable[[int], object] = lambda steps: None,
    training: EstimatorTraining = DEFAULT_TRAINING,
) -> Estimator:
    """Returns the estimator of a data set with truth, on the CPU; trains it unless the cache has it.

    Training runs on one core of the CPU whatever the machine: equal data and seeds give equal weights.

    Args:
        data: data set or its path.
        cache: folder of trained weights; made if it does not exist.
        seed: of the weights and of the training.
        progress: called with 1 after each of `training.steps` steps.
        training: options.

    Raises:
        UserError: when the data have no truth or fewer than two people, or the cache cannot be written.
    """
    reader = TruthReader(data, training.clips, training.frames)
    if len(reader) < 2:
        raise UserError('the error of geometry needs synthetic data of two people or more, got one clip')
    size = max(_MULTIPLE, min(training.size, reader.resolution) // _MULTIPLE * _MULTIPLE)
    key = {
        'version': _VERSION,
        'data': reader.digest(),
        'training': dataclasses.asdict(training),
        'size': size,
        'seed': seed,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = Path(cache, f'geometry-{name[:32]}.pt')
    estimator = _build(size, seed)
    if not _load(path, estimator):
        _train(estimator, reader, seed, progress, training)
        _save(path, estimator)
    return estimator.eval().requires_grad_(False)


def held_out(clips: int) -> list[int]:
    """Returns which of the clips of a TruthReader are not trained on: every eighth, and at least one."""
    return list(range(min(_HELD_OUT, clips) - 1, clips, _HELD_OUT))


def _load(path: Path, estimator: Estimator) -> bool:
    """Loads a file of `_save`; returns False where there is none, or a damaged one."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        estimator.load_state_dict(content['state'])
        estimator.far, estimator.floor = content['far'], content['floor']
    except Exception:  # the safe unpickler raises nearly anything on a damaged file; it is written anew
        return False
    return True


def _save(path: Path, estimator: Estimator) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError('cannot write ' + explain_os_error(err, path)) from err
    content = {'state': estimator.state_dict(), 'far': estimator.far, 'floor': estimator.floor}
    with atomic_write(path) as file:
        torch.save(content, file)


def _build(size: int, seed: int) -> Estimator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded_generator('cpu', seed, _INIT).initial_seed())
        return Estimator(size)


def _train(
    estimator: Estimator,
    reader: TruthReader,
    seed: int,
    progress: Callable[[int], object],
    training: EstimatorTraining,
) -> None:
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
        estimator.floor = control_errors(estimator, unseen)


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
