"""Follows the snapshots of a run: the newest one takes the place of the one that is shown."""

import threading
from collections.abc import Callable
from pathlib import Path

from dnnlib.util import UserError
from viz.web.painter import Painter
from viz.web.people import Model
from viz.web.server import Viewer

EVERY_SEC = 2.0
_SNAPSHOTS = 'network-snapshot-*.pkl'


def newest_snapshot(run_dir: Path) -> Path:
    """Returns the newest snapshot of a run.

    Raises:
        UserError: if there is none, or no such folder.
    """
    if not run_dir.is_dir():
        raise UserError(f'--run {run_dir}: no such folder; give that of a run, such as runs/00000-demo-...')
    found = sorted(run_dir.glob(_SNAPSHOTS))
    if not found:
        raise UserError(f'--run {run_dir} holds no network-snapshot-*.pkl yet; give the folder of a run')
    return found[-1]


class Follower:
    """A thread that looks for newer snapshots."""

    def __init__(
        self, run_dir: Path, shown: Path, open_model: Callable[[str], Model], viewer: Viewer
    ) -> None:
        """Starts the thread.

        Args:
            run_dir: folder of the run.
            shown: snapshot that is shown already.
            open_model: opens a snapshot.
            viewer: shows it.
        """
        self.run_dir, self.last, self.open_model, self.viewer = run_dir, shown, open_model, viewer
        self.ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.ended.wait(EVERY_SEC):
            self.look()

    def look(self) -> None:
        """Shows the newest snapshot if it is another one; one that cannot be used is named on the pages."""
        path = max(self.run_dir.glob(_SNAPSHOTS), default=self.last)
        if path == self.last:
            return
        self.last = path
        try:
            self.viewer.replace(Painter(self.open_model(str(path))))
        except (UserError, OSError, RuntimeError) as err:  # removed meanwhile, or out of memory
            self.viewer.message(str(err), 'Not possible')
        else:
            self.viewer.message(path.name, 'New snapshot')

    def close(self) -> None:
        """Ends the thread."""
        self.ended.set()
