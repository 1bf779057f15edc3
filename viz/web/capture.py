"""What is seen as files: an image, videos, and the command line that makes the image again."""

import math
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from viz import images, rollout, trajectories
from viz.clip_writer import Clip, ClipWriter
from viz.web.page import Page
from viz.web.people import SAMPLED
from viz.web.state import State

_ORBIT_FRAMES, _ORBIT_YAW_RAD = 120, math.radians(20)  # as gen_videos.py --trajectory orbit
_NO_COMMAND = 'none: there is no file of this person'


class CapturePanel:
    """Controls that send files."""

    def __init__(self, page: Page, gui: Any) -> None:
        self.page = page
        with gui.add_folder('Capture', expand_by_default=False):
            gui.add_button('Image (PNG)').on_click(page.guard(self.image))
            gui.add_button('Video of an orbit (MP4)').on_click(page.guard(self.orbit))
            gui.add_button('Video of the motion (MP4)').on_click(page.guard(self.motion))
            self.progress = gui.add_progress_bar(0.0, visible=False)
            self.command = gui.add_text('command', '', multiline=True, hint='makes the same image')

    def image(self) -> None:
        """Sends the image, without loss."""
        page = self.page
        image = page.painter.paint(page.state)
        content = images.png_bytes(image, page.painter.note(page.state))
        page.client.send_file_download('image.png', content, save_immediately=True)

    def orbit(self) -> None:
        """Sends a video in which the camera goes round while the person moves."""
        self.film('orbit', trajectories.orbit(_ORBIT_FRAMES, _ORBIT_YAW_RAD, self.page.focal))

    def motion(self) -> None:
        """Sends a video of the whole motion from this camera."""
        page, state = self.page, self.page.state
        span = page.painter.views(state).G.config.span
        frames = 4 * (span - 1) if state.motion == SAMPLED else span
        label = trajectories.placed([state.camera], page.focal)
        self.film('motion', label.expand(frames, -1))

    def film(self, name: str, cameras: Tensor) -> None:
        """Sends a video of the person before these cameras [T, 25]."""
        page, state = self.page, self.page.state
        view, views = page.painter.view(state), page.painter.views(state)
        fps = page.painter.model.frame_rate(state.person, state.motion)
        clip = Clip(
            name=name,
            codes=rollout.draw_codes(views.G, view.seed, view.motion_seed),
            cameras=cameras,
            map_cameras=trajectories.mapping_cameras(views.G, view.map_camera, cameras),
            times=trajectories.frame_times(len(cameras), views.G.config.span),
            look=view.look,
        )
        done, kind = [0], state.kind
        self.progress.value, self.progress.visible = 0.0, True

        def count(frames: int) -> None:
            done[0] += frames
            self.progress.value = 100.0 * done[0] / len(cameras)

        try:
            with tempfile.TemporaryDirectory() as folder:
                writer = ClipWriter(
                    G=views.G,
                    outdir=Path(folder),
                    report=lambda line: None,
                    count=count,
                    render=page.painter.options(state),
                    fps=fps,
                    note=page.painter.note(state),
                )
                writer.videos(clip, () if kind == 'image' else (kind,))
                file = f'{name}.mp4' if kind == 'image' else f'{name}-{kind}.mp4'
                data = Path(folder, file).read_bytes()
        finally:
            self.progress.visible = False
        page.client.send_file_download(f'{name}.mp4', data, save_immediately=True)

    def settled(self, state: State) -> None:
        """Shows the command line."""
        self.command.value = self.page.painter.command(state) or _NO_COMMAND

    def close(self) -> None:
        """Nothing is left to end."""
