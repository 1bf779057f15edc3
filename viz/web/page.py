"""One browser: what it has asked for, and what it is sent."""

import contextlib
import dataclasses
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from dnnlib.scene import FOCAL, PIVOT, fov_degrees
from dnnlib.util import Skip, UserError, is_out_of_memory, memory_advice
from viz.web import coverage
from viz.web.painter import Painter
from viz.web.state import LIMITS, State
from viz.web.turns import Superseded
from viz.web.worker import Player, Worker

_LOSSLESS_SIDE = 256  # images up to it are sent as PNG while they move, too
_MOVING_QUALITY = 80  # of JPEG
_SAME_DEG = 0.05  # a camera that is so near is the same: browsers report rounded numbers
_SAME_ZOOM = 0.01  # likewise, of distances
_DEAF_SEC = 0.5  # after we moved the browser's camera, its own reports of that are not taken for drags
_UNPLACED = (3.0, 3.0, 3.0)  # where viser's page has its camera before it knows ours, and may say so late
_ADVICE = 'choose fewer voxels or samples'


class Panel(Protocol):
    """A part of the controls."""

    def settled(self, state: State) -> None:
        """Called when a still image was sent: shows what has changed elsewhere."""

    def close(self) -> None:
        """Called when the browser has gone."""


@dataclasses.dataclass
class Speed:
    """Means of what a frame has cost lately."""

    paint_sec: float = 0.0
    send_sec: float = 0.0
    frames: int = 0
    last: float = 0.0  # when the last frame was sent
    gap_sec: float = 0.0  # between frames while they follow each other

    def note(self, paint_sec: float, send_sec: float) -> None:
        """Takes a frame into account."""
        now, keep = time.perf_counter(), 0.8 if self.frames else 0.0
        self.paint_sec = keep * self.paint_sec + (1 - keep) * paint_sec
        self.send_sec = keep * self.send_sec + (1 - keep) * send_sec
        gap = now - self.last
        if gap < 1:
            self.gap_sec = 0.8 * self.gap_sec + 0.2 * gap if self.gap_sec else gap
        self.frames, self.last = self.frames + 1, now


class Page:
    """State, worker and controls of one browser."""

    def __init__(self, client: Any, painter: Painter | None) -> None:
        """Shows the first image.

        Args:
            client: viser's handle of the browser.
            painter: draws for all browsers; None = there is no network.
        """
        self.client, self.painter = client, painter
        self.panels: list[Panel] = []
        self.own: list[str] = []  # people that were made here
        self.speed = Speed()
        self.outside = False  # whether the browser's camera is where no training camera was
        self.backdrop: np.ndarray | None = None  # is shown instead of renderings
        self.state = State()
        self.shown: State | None = None  # what the browser sees in full; none = something is being drawn
        self._lock, self._deaf_until, self._aspect = threading.Lock(), 0.0, 0.0
        self.worker: Worker[State] = Worker(self._draw, self._full)
        self.player = Player(self._advance, self.worker)
        self.advance: Callable[[float], None] = lambda seconds: None  # set by the panel of motion

    # ---- what the browser asks for

    def change(self, **values: Any) -> None:
        """Changes the state and asks for its image."""
        with self._lock:
            new = dataclasses.replace(self.state, **values)
            if new == self.state:
                return
            self.state, self.shown = new, None
        self.worker.ask(new)

    def redraw(self) -> None:
        """Asks for the image of the state as it is."""
        self.shown = None
        self.worker.ask(self.state)

    def look(self) -> None:
        """Follows the browser's camera, as far as training cameras went."""
        camera = self.client.camera
        if camera.aspect != self._aspect:  # the window has another shape
            self._aspect = camera.aspect
            if self.backdrop is None:
                camera.fov = self._window_fov()
            self.redraw()
        if self.painter is None or self.backdrop is not None or time.monotonic() < self._deaf_until:
            return
        place = np.asarray(camera.position)
        if np.allclose(place, _UNPLACED):
            return
        *wanted, zoom = coverage.orbit_place(place, np.asarray(camera.look_at))
        yaw, pitch, self.outside = self.painter.model.coverage.clamp(*wanted)
        if abs(zoom / self._zoom() - 1) > _SAME_ZOOM:
            low, high, _ = LIMITS['fov']
            self.change(fov=min(max(fov_degrees(self.focal / zoom), low), high))
        if max(abs(yaw - self.state.yaw), abs(pitch - self.state.pitch)) > _SAME_DEG:
            self.change(yaw=yaw, pitch=pitch)
        elif self.outside:
            self.redraw()

    def aim(self) -> None:
        """Moves the browser's camera to where the state has it."""
        self._deaf_until = time.monotonic() + _DEAF_SEC
        self.outside = False
        with self.client.atomic():
            place = coverage.orbit_position(self.state.yaw, self.state.pitch, self._zoom())
            self.client.camera.position = place
            self.client.camera.look_at = PIVOT
            self.client.camera.up_direction = (0.0, 1.0, 0.0)
            self.client.camera.fov = self._window_fov()

    def _zoom(self) -> float:
        """Returns how far the browser's camera is away, 1 = as ours: its field of view does not change."""
        return self.focal / self.state.camera.focal(self.focal)

    def _window_fov(self) -> float:
        """Returns the vertical field of view of the window in which our square image fits, radians."""
        return float(2 * np.arctan(0.5 / self.focal / min(self.client.camera.aspect, 1.0)))

    @property
    def focal(self) -> float:
        """Focal length of the training cameras, image widths."""
        return self.painter.model.G.config.focal if self.painter else FOCAL

    def guard(self, act: Callable[[], object]) -> Callable[[Any], None]:
        """Returns a callback that shows an error on the page instead of raising it."""

        def run(_event: Any = None) -> None:
            try:
                act()
            except (UserError, Skip) as err:
                self.message(str(err))
            except Superseded:
                raise
            except Exception as err:  # whatever it was, the page lives on
                if is_out_of_memory(err):
                    self.message(memory_advice(err, _ADVICE))
                    return
                traceback.print_exc()
                self.message(f'this is a bug, the terminal says more: {err!r}')

        return run

    def message(self, text: str, title: str = 'Not possible') -> None:
        """Shows a sentence in a corner of the page."""
        red = title == 'Not possible'
        self.client.add_notification(title, text, auto_close_seconds=10.0, color='red' if red else 'blue')

    def close(self) -> None:
        """Ends the threads."""
        self.player.close()
        self.worker.close()
        for panel in self.panels:
            panel.close()

    # ---- what it is sent

    def _full(self, state: State) -> int:
        return 1 if self.painter is None else self.painter.full(state)

    def _advance(self, seconds: float) -> None:
        self.guard(lambda: self.advance(seconds))(None)

    def _draw(self, state: State, side: int, stale: Callable[[], bool] | None) -> None:
        with contextlib.suppress(Superseded):
            self.guard(lambda: self._paint_and_send(state, side, stale))(None)

    def _paint_and_send(self, state: State, side: int, stale: Callable[[], bool] | None) -> None:
        start = time.perf_counter()
        still = side == self._full(state)
        if self.backdrop is not None or self.painter is None:
            image = np.full((8, 8, 3), 40, np.uint8) if self.backdrop is None else self.backdrop
        else:
            image = self.painter.paint(state, side, stale)
        painted = time.perf_counter()
        self.send(image, still)
        self.speed.note(painted - start, time.perf_counter() - painted)
        if still and not self.player.playing:
            for panel in self.panels:
                panel.settled(self.state)
            if state == self.state:
                self.shown = state

    def send(self, image: np.ndarray, still: bool = True) -> None:
        """Shows an image [H, W, 3] in the middle of the window, whatever the shape of that is."""
        canvas = fit(image, self.client.camera.aspect)
        lossless = still or len(image) <= _LOSSLESS_SIDE
        self.client.scene.set_background_image(
            canvas, format='png' if lossless else 'jpeg', jpeg_quality=_MOVING_QUALITY
        )
        self.client.flush()


def fit(image: np.ndarray, aspect: float) -> np.ndarray:
    """Pads an image [H, W, 3] with its mean border colour to width / height = `aspect`."""
    height, width = image.shape[:2]
    wide = max(round(height * aspect), width)
    tall = max(round(width / aspect), height)
    if (tall, wide) == (height, width):
        return image
    canvas = np.full((tall, wide, 3), image[:, [0, -1]].mean(axis=(0, 1)).round(), np.uint8)
    top, left = (tall - height) // 2, (wide - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas
