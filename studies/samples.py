"""What a network shows: the same grids and pairs as in studies/truth.py, of codes instead of people.

Images are float32 [3, R, R] in [-1, 1]; codes depend on the seed alone.
"""

import numpy as np
import torch
from torch import Tensor

from dnnlib.progress import follow
from torch_utils.misc import seeded_generator
from training.data.dataset import VideoDataset
from training.networks.contract import Codes, VideoGenerator
from viz.rollout import device_of, to

_BATCH = 24  # frames at a time
_CODES = 33  # purpose of random draws
GRID, SEEDS, MAPPED, PAIRS, VIEWS = range(5)  # uses of codes, each with draws of its own


def draw(G: VideoGenerator, use: int, count: int, seed: int) -> Codes:
    """Draws the codes of `count` clips for one of the uses above."""
    return G.draw_codes(count, seeded_generator('cpu', seed, _CODES, use))


@torch.no_grad()
def shoot(G: VideoGenerator, codes: Codes, mapping: Tensor, times: Tensor, cameras: Tensor) -> np.ndarray:
    """Renders N moments from Y sides, with progress.

    Args:
        G: generator in eval mode.
        codes: N rows.
        mapping: cameras that the mapping sees [N, 25], or one [1, 25].
        times: in units of the span [N].
        cameras: [N, Y, 25].

    Returns:
        images, clamped [N, Y, 3, R, R].
    """
    sides, device = cameras.shape[1], device_of(G)
    step = max(1, _BATCH // sides)
    mapping = mapping.expand(len(times), -1)
    parts = []
    starts = range(0, len(times), step)
    for start in follow(starts, len(starts), 'rendering heads', 'part'):
        at = slice(start, start + step)
        part, t, view = to(Codes(*(z[at] for z in codes)), device), times[at].to(device), cameras[at]
        ws = G.condition(part, mapping[at].to(device), t).expand(len(t), -1, -1)
        scene = G.scene(part, ws, t)
        views = view.flatten(0, 1).to(device)
        out = G.render(scene.repeat_interleave(sides, 0), ws.repeat_interleave(sides, 0), views)
        parts.append(out.image.float().clamp(-1, 1).unflatten(0, (-1, sides)).cpu().numpy())
    return np.concatenate(parts)


def motion_grid(
    G: VideoGenerator, codes: int, motions: int, times: tuple[float, ...], cameras: Tensor, seed: int
) -> np.ndarray:
    """Renders appearance codes x motion codes x times x cameras [Y, 25]: images [A, M, T, Y, 3, R, R].

    Each appearance has motion codes of its own, as each person of the truth has motions of its own. The
    mapping sees the middle one of the cameras.
    """
    drawn = draw(G, GRID, codes * motions, seed)
    z_a = drawn.z_a[:codes].repeat_interleave(motions * len(times), 0)
    rows = Codes(z_a, drawn.z_m.repeat_interleave(len(times), 0))
    t = torch.tensor(times).repeat(codes * motions)
    front = cameras[len(cameras) // 2][None]
    images = shoot(G, rows, front, t, cameras.expand(len(t), -1, -1))
    return images.reshape(codes, motions, len(times), *images.shape[1:])


def portraits(G: VideoGenerator, codes: Codes, mapping: Tensor, camera: Tensor) -> np.ndarray:
    """Renders codes in the middle of the span before one camera [25], the mapping seeing others [N or 1, 25].

    Returns:
        images [N, 3, R, R].
    """
    count = len(codes.z_a)
    return shoot(G, codes, mapping, torch.full((count,), 0.5), camera.expand(count, 1, -1))[:, 0]


def mapped_portraits(G: VideoGenerator, codes: int, cameras: Tensor, front: Tensor, seed: int) -> np.ndarray:
    """Renders codes from the front [25] while the mapping sees each of K cameras: images [N, K, 3, R, R]."""
    drawn, count = draw(G, MAPPED, codes, seed), len(cameras)
    rows = Codes(*(z.repeat_interleave(count, 0) for z in drawn))
    return portraits(G, rows, cameras.repeat(codes, 1), front).reshape(codes, count, *_shape(G))


def pairs(G: VideoGenerator, times: Tensor, cameras: Tensor, seed: int) -> Tensor:
    """Renders a clip's two frames at times [N, 2] before cameras [N, 2, 25]: images [N, 2, 3, R, R]."""
    drawn = draw(G, PAIRS, len(times), seed)
    rendered, mapping = G.training_cameras(cameras, cameras[:, :1].expand_as(cameras))
    rows = Codes(*(z.repeat_interleave(2, 0) for z in drawn))
    images = shoot(G, rows, mapping.flatten(0, 1), times.flatten(), rendered.flatten(0, 1)[:, None])
    return torch.from_numpy(images.reshape(len(times), 2, *_shape(G)))


def random_views(G: VideoGenerator, data: VideoDataset, count: int, seed: int) -> np.ndarray:
    """Renders codes before cameras of the data, which the mapping sees, too: images [N, 3, R, R]."""
    rng = np.random.default_rng((seed, _CODES, VIEWS))
    cameras, times = (x[:, 0] for x in data.sample_cameras(rng, count))
    return shoot(G, draw(G, VIEWS, count, seed), cameras, times, cameras[:, None])[:, 0]


def _shape(G: VideoGenerator) -> tuple[int, int, int]:
    return 3, G.config.resolution, G.config.resolution
