"""What the page costs: times, frames per second, device, browsers."""

import threading
from collections.abc import Callable
from typing import Any

from viz.rollout import device_of
from viz.web.page import Page
from viz.web.state import State

_EVERY_SEC = 1.0


class StatusPanel:
    """A line of facts that a thread keeps up to date."""

    def __init__(self, page: Page, gui: Any, count: Callable[[], int]) -> None:
        """Adds the line.

        Args:
            page: whose costs are shown.
            gui: of the page.
            count: returns the number of browsers.
        """
        self.page, self.count, self.seen = page, count, -1
        self.ended = threading.Event()
        with gui.add_folder('Status', expand_by_default=False):
            self.line = gui.add_markdown('')
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.ended.wait(_EVERY_SEC):
            if self.page.speed.frames != self.seen:
                self.seen = self.page.speed.frames
                self.line.content = self.text()

    def text(self) -> str:
        """Returns the line."""
        speed, painter = self.page.speed, self.page.painter
        rate = f'{1 / speed.gap_sec:.1f} images/s, ' if speed.gap_sec else ''
        where = f'{device_of(painter.model.G)}, ' if painter else ''
        return (
            f'{rate}rendering {1000 * speed.paint_sec:.0f} ms, encoding {1000 * speed.send_sec:.0f} ms, '
            f'{where}browsers: {self.count()}, {speed.frames} images sent'
        )

    def settled(self, state: State) -> None:
        """Shows nothing of the state."""

    def close(self) -> None:
        """Ends the thread."""
        self.ended.set()
