"""Camera paths: keyframes, a preview, and the JSON file that gen_videos.py --camera-path renders."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.scene import Camera
from dnnlib.util import UserError
from viz import trajectories
from viz.camera_path import CameraPath, Keyframe, parse_path, save_path
from viz.web.capture import CapturePanel
from viz.web.page import Page
from viz.web.state import State

_PREVIEW_FPS = 15.0
_MAX_FILE = 1 << 20  # bytes of a JSON file


class PathPanel:
    """Controls of a camera path."""

    def __init__(self, page: Page, gui: Any, capture: CapturePanel) -> None:
        self.page, self.capture = page, capture
        self.cameras: list[Camera] = []
        self.times: list[float] = []
        self.stopped = True
        with gui.add_folder('Camera path', expand_by_default=False):
            self.list = gui.add_markdown('no keyframes')
            self.seconds = gui.add_slider(
                'seconds', 0.5, 10.0, 0.5, 2.0, hint='from one keyframe to the next'
            )
            gui.add_button('Add this camera').on_click(page.guard(self.add))
            gui.add_button('Remove the last').on_click(page.guard(self.remove))
            self.loop = gui.add_checkbox('loop', False, hint='returns to the first keyframe')
            self.button = gui.add_button('Preview')
            self.button.on_click(page.guard(self.preview))
            gui.add_button('Save (JSON)').on_click(page.guard(self.save))
            self.upload = gui.add_upload_button('Load (JSON)', mime_type='application/json')
            self.upload.on_upload(page.guard(lambda: self.load(self.upload.value.content)))
            gui.add_button('Video of the path (MP4)').on_click(page.guard(self.film))

    def path(self) -> CameraPath:
        """Returns the path.

        Raises:
            UserError: if it has fewer than two keyframes.
        """
        keys = zip(self.times, self.cameras, strict=True)
        return CameraPath(
            keyframes=tuple(Keyframe(time_sec=sec, camera=camera) for sec, camera in keys),
            loop_sec=float(self.seconds.value) if self.loop.value else None,
        )

    def add(self) -> None:
        """Adds the camera that is shown."""
        self.times.append(self.times[-1] + float(self.seconds.value) if self.times else 0.0)
        self.cameras.append(self.page.state.camera)
        self._show()

    def remove(self) -> None:
        """Removes the last keyframe."""
        del self.cameras[-1:], self.times[-1:]
        self._show()

    def _show(self) -> None:
        lines = [
            f'{sec:g} s: yaw {camera.yaw:g}, pitch {camera.pitch:g}'
            for sec, camera in zip(self.times, self.cameras, strict=True)
        ]
        self.list.content = '<br/>'.join(lines) or 'no keyframes'

    def preview(self) -> None:
        """Moves the camera along the path, or stops it."""
        if not self.stopped:
            self.stopped = True
            return
        path, self.stopped, self.button.label = self.path(), False, 'Stop'
        start = time.perf_counter()
        try:
            while not self.stopped:
                sec = time.perf_counter() - start
                self.stopped = sec > path.duration_sec and not path.loop_sec  # this is the last one
                (camera,) = path.at(np.array([sec]), self.page.focal)
                self.page.change(yaw=camera.yaw, pitch=camera.pitch, fov=camera.fov)
                time.sleep(1 / _PREVIEW_FPS)
                self.page.worker.wait(5.0)
        finally:
            self.stopped, self.button.label = True, 'Preview'
            self.page.aim()

    def save(self) -> None:
        """Sends the file."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'path.json')
            save_path(file, self.path())
            self.page.client.send_file_download('path.json', file.read_bytes(), save_immediately=True)

    def load(self, content: bytes) -> None:
        """Takes the keyframes of a file.

        Raises:
            UserError: if it is none, or has cameras that the page cannot show.
        """
        try:
            text = content[:_MAX_FILE].decode()
        except UnicodeDecodeError as err:
            raise UserError('the file is not text') from err
        path = parse_path(text)
        for key in path.keyframes:
            camera = key.camera
            if camera != Camera(yaw=camera.yaw, pitch=camera.pitch, fov=camera.fov):
                raise UserError('a keyframe has its own radius or look_at, which only gen_videos.py renders')
            State(yaw=camera.yaw, pitch=camera.pitch, fov=camera.fov)  # raises for what is not shown
        self.cameras = [key.camera for key in path.keyframes]
        self.times = [key.time_sec for key in path.keyframes]
        self.loop.value = path.loop_sec is not None
        if path.loop_sec is not None:
            self.seconds.value = path.loop_sec
        self._show()

    def film(self) -> None:
        """Sends a video of the path."""
        state = self.page.state
        fps = self.page.painter.model.frame_rate(state.person, state.motion)
        cameras = self.path().cameras(fps, self.page.focal)
        self.capture.film('path', trajectories.placed(cameras, self.page.focal))

    def settled(self, state: State) -> None:
        """Shows nothing of the state."""

    def close(self) -> None:
        """Stops the preview."""
        self.stopped = True
