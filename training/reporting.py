"""Progress reporting of a run: the progress line, stats.jsonl, loggers, sample sheets.

Only the leader reports.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dnnlib.config import to_dict
from dnnlib.provenance import session_facts
from dnnlib.util import UserError, append_json_line, atomic_write, format_time
from torch_utils.misc import peak_memory_gib
from torch_utils.training_stats import Moments
from training.batching import Progress
from training.config import TrainConfig
from training.data.dataset import KilledWorkerError, killed_workers_explained
from training.loggers import make_loggers

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


_WORD_AFTER_SEC = 60  # without a line


class Reporter:
    """Writes into a run folder.

    Args:
        run_dir, config: of the run.
        fps: frames per second of videos.
        device: whose memory is reported.
        start_nimg: clips seen before; what a killed session reported beyond that is forgotten.
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
        _forget_after(run_dir / 'stats.jsonl', start_nimg)
        self.loggers = make_loggers(run_dir, config, start_nimg)
        self._show_facts()
        # a bar only where somebody watches; the lines of the ticks stay above it
        self.bar = tqdm(total=config.total_nimg, initial=start_nimg, unit='clip', disable=None, leave=False)
        self._silent, self._clips = bool(self.bar.disable), 0  # before the first line

    def _show_facts(self) -> None:
        options = json.dumps(to_dict(self.config), indent=2)
        facts = '\n'.join(f'- {name}: `{value}`' for name, value in session_facts().items())
        for logger in self.loggers:
            logger.texts({'Run/options': f'```json\n{options}\n```', 'Run/session': facts})
            logger.flush()

    def report(self, progress: Progress, stats: dict[str, Moments], tick_nimg: int, elapsed: float) -> None:
        """Prints the progress line and appends to stats.jsonl and the loggers.

        stats, tick_nimg and elapsed: moments, clips and seconds since the last tick.
        """
        self._silent, nimg = False, progress.cur_nimg
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
        values |= {'Progress/lr_G': self.config.g_opt.lr, 'Progress/lr_D': self.config.d_opt.lr}
        values |= {'Timing/total_sec': progress.seconds, 'Timing/sec_per_kimg': per_kimg}
        append_json_line(self.run_dir / 'stats.jsonl', values | {'timestamp': time.time()})
        self._scalars(values, nimg)

    def advance(self, clips: int, nimg: int, elapsed: float) -> None:
        """Moves the progress bar; where there is none, says once when the first line will come.

        Args:
            clips: of this step.
            nimg: clips seen in all.
            elapsed: seconds since the first step of this session began, before its first line.
        """
        self.bar.update(clips)
        self._clips += clips
        tick = self.config.output.tick_nimg
        # whether a line follows at once
        due = nimg // tick > (nimg - clips) // tick or nimg >= self.config.total_nimg
        if self._silent and elapsed > _WORD_AFTER_SEC and not due:
            self._silent = False
            left = min(tick - nimg % tick, self.config.total_nimg - nimg) * elapsed / self._clips
            left = min(left, max(self.deadline - time.time(), 0))
            pace = f'{self._clips} clips in {format_time(elapsed)}'
            print(
                f'{pace}; a line comes every {tick / 1000:g} kimg, the first in {format_time(left)}',
                flush=True,
            )

    def metrics(self, values: dict[str, float], nimg: int) -> None:
        """Adds metric values to the loggers."""
        self._scalars({f'Metrics/{name}': value for name, value in values.items()}, nimg)

    def draw(self, draw: DrawSheets, G_ema: nn.Module, nimg: int) -> None:
        """Draws G_ema and shows the images in the loggers; failing is a warning, training continues."""
        try:
            with killed_workers_explained():
                for name, image in draw(G_ema, nimg):
                    self._show(name, image, nimg)
        except KilledWorkerError:
            raise
        except (UserError, OSError, RuntimeError) as err:  # no encoder, a full disk, out of memory
            self.bar.clear()
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            print(f'warning: not all images of this tick could be made: {reason}', flush=True)

    def _show(self, name: str, image: np.ndarray, nimg: int) -> None:
        for logger in self.loggers:
            if image.ndim == 3:
                logger.image(name, image, nimg)
            else:
                logger.video(name, image, self.fps, nimg)
            logger.flush()

    def _scalars(self, values: dict[str, float], nimg: int) -> None:
        for logger in self.loggers:
            logger.scalars(values, nimg)
            logger.flush()


def _forget_after(path: Path, nimg: int) -> None:
    """Removes lines of stats.jsonl beyond `nimg` clips: a killed session wrote them, this one will again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if _clips(line) <= nimg]
    if len(kept) < len(lines):
        with atomic_write(path, 'w') as file:
            file.writelines(kept)


def _clips(line: str) -> float:
    """Returns at how many clips a line was written; endless for one that a kill cut off."""
    try:
        return round(json.loads(line)['Progress/kimg'] * 1000)
    except (ValueError, KeyError, TypeError):
        return math.inf
