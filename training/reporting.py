"""Progress reporting of a run: the progress line, stats.jsonl, TensorBoard, sample sheets.

Only the leader reports.
"""

import io
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dnnlib.util import UserError, append_json_line, format_time
from torch_utils.misc import peak_memory_gib
from torch_utils.training_stats import Moments
from training.batching import Progress
from training.config import TrainConfig

DrawSheets = Callable[[nn.Module, int], Iterable[tuple[str, np.ndarray]]]
"""(G_ema, clips seen) -> names with images [H, W, 3] or videos [T, H, W, 3], uint8."""

_LINE = (  # statistic -> its name in the progress line
    ('Loss/G/image', 'G_img'),
    ('Loss/G/video', 'G_vid'),
    ('Loss/signs/image/real', 'sign_img'),
    ('Loss/signs/video/real', 'sign_vid'),
    ('Loss/r1/image', 'r1_img'),
    ('Progress/augment', 'augment'),  # where it is in use
    ('Probe/video/see_motion', 'see_motion'),
)


class Reporter:
    """Writes into a run folder.

    Args:
        run_dir, config: of the run.
        fps: frames per second of videos.
        device: whose memory is reported.
        start_nimg: clips seen before; TensorBoard then hides what a killed session reported beyond that.
        deadline: when this session ends at the latest, as of time.time().
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainConfig,
        fps: float,
        device: torch.device,
        start_nimg: int,
        deadline: float,
    ) -> None:
        self.run_dir, self.config, self.fps = run_dir, config, fps
        self.device, self.deadline = device, deadline
        self.events = SummaryWriter(run_dir, purge_step=start_nimg + 1 if start_nimg else None)
        # a bar only where somebody watches; the lines of the ticks stay above it
        self.bar = tqdm(total=config.total_nimg, initial=start_nimg, unit='clip', disable=None, leave=False)

    def report(self, progress: Progress, stats: dict[str, Moments], tick_nimg: int, elapsed: float) -> None:
        """Prints the progress line and appends to stats.jsonl and TensorBoard.

        stats, tick_nimg and elapsed: moments, clips and seconds since the last tick.
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

    def draw(self, draw: DrawSheets, G_ema: nn.Module, nimg: int) -> None:
        """Draws G_ema and shows the images in TensorBoard; failing is a warning, training continues."""
        try:
            for name, image in draw(G_ema, nimg):
                if image.ndim == 3:
                    self.events.add_image(name, image, nimg, dataformats='HWC')
                else:
                    self.events.file_writer.add_summary(_video_summary(name, image, self.fps), nimg)
            self.events.flush()
        except (UserError, OSError, RuntimeError) as err:  # no encoder, a full disk, out of memory
            self.bar.clear()
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            print(f'warning: not all images of this tick could be made: {reason}', flush=True)

    def _scalars(self, values: dict[str, float], nimg: int) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, nimg)
        self.events.flush()


def _video_summary(tag: str, video: np.ndarray, fps: float) -> Summary:
    """Packs frames [T, H, W, 3] as an animated GIF; TensorBoard's own writer needs another package."""
    first, *others = map(Image.fromarray, video)
    buffer = io.BytesIO()
    first.save(buffer, 'GIF', save_all=True, append_images=others, duration=1000 / fps, loop=0)
    encoded = buffer.getvalue()
    height, width = video.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
