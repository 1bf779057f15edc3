"""Where figures and images of a run are shown: TensorBoard always, Weights & Biases where it is asked for.

Both take the same five things, so that Reporter knows neither. Steps are clips seen.
"""

import abc
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from dnnlib.config import flatten, to_dict
from dnnlib.util import UserError
from training.config import TrainConfig


class RunLogger(abc.ABC):
    """Shows a run to people."""

    @abc.abstractmethod
    def texts(self, texts: Mapping[str, str]) -> None:
        """Shows facts of the run by name, Markdown."""

    @abc.abstractmethod
    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """Shows figures by name."""

    @abc.abstractmethod
    def image(self, name: str, image: np.ndarray, nimg: int) -> None:
        """Shows an image, uint8 [H, W, 3]."""

    @abc.abstractmethod
    def video(self, name: str, video: np.ndarray, fps: float, nimg: int) -> None:
        """Shows a video, uint8 [T, H, W, 3]."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Makes what was shown visible to readers."""


class TensorBoard(RunLogger):
    """Files of events in the run folder; `start_nimg` hides what a killed session reported beyond it."""

    def __init__(self, run_dir: Path, start_nimg: int) -> None:
        self._events = SummaryWriter(run_dir, purge_step=start_nimg + 1 if start_nimg else None)

    def texts(self, texts: Mapping[str, str]) -> None:
        """See RunLogger."""
        for name, text in texts.items():
            self._events.add_text(name, text)

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """See RunLogger."""
        for name, value in values.items():
            self._events.add_scalar(name, value, nimg)

    def image(self, name: str, image: np.ndarray, nimg: int) -> None:
        """See RunLogger."""
        self._events.add_image(name, image, nimg, dataformats='HWC')

    def video(self, name: str, video: np.ndarray, fps: float, nimg: int) -> None:
        """Packs frames as an animated GIF; TensorBoard's own writer needs another package."""
        height, width = video.shape[1:3]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=_gif(video, fps).getvalue()
        )
        self._events.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), nimg)

    def flush(self) -> None:
        """See RunLogger."""
        self._events.flush()


class WeightsAndBiases(RunLogger):
    """A run of a project at wandb.ai; continued sessions of one run folder are one run there.

    Raises:
        UserError: if the package is missing.
    """

    def __init__(self, run_dir: Path, config: TrainConfig) -> None:
        try:
            import wandb  # noqa: PLC0415 - optional
        except ImportError as err:
            raise UserError('output.wandb needs a package: run `pip install wandb`, or leave it out') from err
        name = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
        facts = {'project': config.output.wandb, 'name': run_dir.name, 'dir': str(run_dir), 'id': name}
        self._wandb = wandb
        self._run: Any = wandb.init(**facts, config=flatten(to_dict(config)), resume='allow')

    def texts(self, texts: Mapping[str, str]) -> None:
        """See RunLogger."""
        self._run.summary.update(dict(texts))

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """See RunLogger."""
        self._run.log(dict(values), step=nimg)

    def image(self, name: str, image: np.ndarray, nimg: int) -> None:
        """See RunLogger."""
        self._run.log({name: self._wandb.Image(image)}, step=nimg)

    def video(self, name: str, video: np.ndarray, fps: float, nimg: int) -> None:
        """See RunLogger."""
        self._run.log({name: self._wandb.Video(_gif(video, fps), format='gif')}, step=nimg)

    def flush(self) -> None:
        """Nothing: the package sends by itself."""


def make_loggers(run_dir: Path, config: TrainConfig, start_nimg: int) -> list[RunLogger]:
    """Opens the loggers of a run."""
    loggers: list[RunLogger] = [TensorBoard(run_dir, start_nimg)]
    return loggers + ([WeightsAndBiases(run_dir, config)] if config.output.wandb else [])


def _gif(video: np.ndarray, fps: float) -> io.BytesIO:
    first, *others = map(Image.fromarray, video)
    buffer = io.BytesIO()
    first.save(buffer, 'GIF', save_all=True, append_images=others, duration=1000 / fps, loop=0)
    buffer.seek(0)
    return buffer
