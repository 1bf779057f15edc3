"""What a run tells people: the progress line, stats.jsonl, TensorBoard, sample sheets.

One process writes it.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dnnlib.util import UserError, append_json_line, format_time
from torch_utils.misc import peak_memory_gib
from torch_utils.training_stats import Moments
from training.batching import Progress
from training.config import TrainConfig
from training.dataset import VideoDataset
from training.dataset_files import DataError
from training.rollout import device_of
from training.visualize import grid, save_png, training_sheets, write_video

_LINE = (  # statistic -> its name in the progress line
    ('Loss/G/image', 'G_img'),
    ('Loss/G/video', 'G_vid'),
    ('Loss/signs/image/real', 'sign_img'),
    ('Loss/signs/video/real', 'sign_vid'),
    ('Loss/r1/image', 'r1_img'),
)


class Reporter:
    """Writes into a run folder.

    Args:
        run_dir: the folder.
        config: of the run.
        dataset: gives real frames and cameras.
        device: whose memory is reported.
        start_nimg: clips seen before; TensorBoard then hides what a killed session reported beyond that.
        deadline: when this session ends at the latest, as of time.time().
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainConfig,
        dataset: VideoDataset,
        device: torch.device,
        start_nimg: int,
        deadline: float,
    ) -> None:
        self.run_dir, self.config, self.dataset, self.device = run_dir, config, dataset, device
        self.deadline = deadline
        self.events = SummaryWriter(run_dir, purge_step=start_nimg + 1 if start_nimg else None)
        # a bar only where somebody watches; the lines of the ticks stay above it
        self.bar = tqdm(total=config.total_nimg, initial=start_nimg, unit='clip', disable=None, leave=False)

    def report(self, progress: Progress, stats: dict[str, Moments], tick_nimg: int, elapsed: float) -> None:
        """Prints the progress line and appends to stats.jsonl and TensorBoard.

        Args:
            progress: the trainer's Progress.
            stats: moments since the last tick.
            tick_nimg: clips since the last tick.
            elapsed: seconds since then.
        """
        nimg = progress.cur_nimg
        per_kimg = elapsed / tick_nimg * 1000 if tick_nimg else math.inf
        speed = f'{per_kimg:.1f}' if tick_nimg else '-'
        clips_left = max(self.config.total_nimg - nimg, 0)
        left = min(clips_left * per_kimg / 1000, self.deadline - time.time()) if clips_left else 0
        memory = peak_memory_gib(self.device)
        self.bar.clear()
        losses = ' '.join(f'{short} {stats[name].mean:<7.3f}' for name, short in _LINE if name in stats)
        print(
            f'tick {progress.tick:<5d} kimg {nimg / 1000:<9.3f} time {format_time(progress.seconds):<11s} '
            f's/kimg {speed:<8s} {losses} left {format_time(left):<11s} mem {memory:.1f} GiB',
            flush=True,
        )
        values = {name: moments.mean for name, moments in stats.items()}
        values |= {'Progress/kimg': nimg / 1000, 'Progress/tick': progress.tick}
        values |= {'Progress/nonfinite': progress.nonfinite, 'Resources/peak_memory_gib': memory}
        values |= {'Timing/total_sec': progress.seconds, 'Timing/sec_per_kimg': per_kimg}
        append_json_line(self.run_dir / 'stats.jsonl', values | {'timestamp': time.time()})
        self._scalars(values, nimg)

    def advance(self, clips: int) -> None:
        """Moves the progress bar."""
        self.bar.update(clips)

    def metrics(self, values: dict[str, float], nimg: int) -> None:
        """Adds metric values to TensorBoard."""
        self._scalars({f'Metrics/{name}': value for name, value in values.items()}, nimg)

    def first_pictures(self, G_ema: nn.Module) -> None:
        """Writes a sheet of real frames and the first, untrained samples; see `pictures`."""
        with self._spared():
            self._draw_reals()
            self._draw(G_ema, 0)

    def pictures(self, G_ema: nn.Module, nimg: int) -> None:
        """Writes the sample sheets and a video of G_ema; failing is a warning, training goes on without."""
        with self._spared():
            self._draw(G_ema, nimg)

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        try:
            yield
        except (UserError, OSError, RuntimeError) as err:  # no encoder, a full disk, too little memory
            self.bar.clear()
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            print(f'warning: not all pictures of this tick could be made: {reason}', flush=True)

    def _draw_reals(self) -> None:
        clips = np.linspace(0, len(self.dataset) - 1, min(len(self.dataset), 64)).astype(int)
        frames = []
        for clip in clips:
            with contextlib.suppress(
                DataError
            ):  # training says what it cannot read, and how much is too much
                frames.append(self.dataset.clip_frames(int(clip), [0])[0].permute(1, 2, 0).numpy())
        if frames:
            save_png(self.run_dir / 'reals.png', grid(np.stack(frames)))

    def _draw(self, G_ema: nn.Module, nimg: int) -> None:
        seeds = range(self.config.output.sheet_seeds)
        cameras = torch.stack([self.dataset.clip_cameras(i % len(self.dataset))[0] for i in seeds])
        sheets = training_sheets(G_ema, seeds, cameras.to(device_of(G_ema)))
        video = sheets.pop('video')
        for name, picture in sheets.items():
            save_png(self.run_dir / f'{name}{nimg:09d}.png', picture)
            self.events.add_image(name, picture, nimg, dataformats='HWC')
        write_video(self.run_dir / f'video{nimg:09d}.mp4', video, self.dataset.fps)
        self.events.file_writer.add_summary(_video_summary('video', video, self.dataset.fps), nimg)
        self.events.flush()

    def _scalars(self, values: dict[str, float], nimg: int) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, nimg)
        self.events.flush()


def _video_summary(tag: str, video: np.ndarray, fps: float) -> Summary:
    """Packs frames [T, H, W, 3] as an animated GIF; TensorBoard's own writer needs another package."""
    encoded = iio.imwrite('<bytes>', video, extension='.gif', duration=1000 / fps, loop=0)
    height, width = video.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
