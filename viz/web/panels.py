"""The panels of a page, in their order."""

import dataclasses
from collections.abc import Callable

from training.data.dataset import VideoDataset
from viz.web.capture import CapturePanel
from viz.web.clips import ClipPanel
from viz.web.controls import CameraPanel, MotionPanel, PersonPanel, ViewPanel
from viz.web.geometry import GeometryPanel
from viz.web.keyframes import PathPanel
from viz.web.page import Page
from viz.web.status import StatusPanel
from viz.web.uploads import Project, UploadPanel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panels:
    """Builds the panels of pages."""

    data: VideoDataset | None = None  # is shown, too
    project: Project | None = None  # None = nothing may be uploaded
    count: Callable[[], int] = lambda: 1  # number of browsers

    def __call__(self, page: Page) -> None:
        """Adds the panels to a page."""
        gui = page.client.gui
        if page.painter is not None:
            page.panels += [kind(page, gui) for kind in (PersonPanel, MotionPanel, CameraPanel, ViewPanel)]
            page.panels.append(GeometryPanel(page, gui))
            capture = CapturePanel(page, gui)
            page.panels += [capture, PathPanel(page, gui, capture)]
        if self.project is not None and page.painter is not None:
            page.panels.append(UploadPanel(page, gui, self.project))
        if self.data is not None:
            page.panels.append(ClipPanel(page, gui, self.data))
        page.panels.append(StatusPanel(page, gui, self.count))
