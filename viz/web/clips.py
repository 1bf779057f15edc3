"""Clips of a data set in the scene: cameras as frusta around a head, which shows a wrong label at once."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from dnnlib.scene import fov_degrees
from training.camera import unpack_label
from training.data.dataset import VideoDataset
from viz.images import resize
from viz.web import coverage
from viz.web.page import Page
from viz.web.state import State

_ROOT = '/clip'
_MOST = 48  # frusta at once
_FRUSTUM = 0.3  # length, scene units
_THUMB = 64  # pixels of the image in a frustum
_OVERVIEW = (3.2, 1.4, 4.0)  # from where the scene is seen first
_HEAD_RADII = (0.17, 0.23, 0.2)  # of the ellipsoid that stands for a head, scene units
_NOSE = (0.0, -0.05, 0.22)
_DARK = np.full((8, 8, 3), 45, np.uint8)


class ClipPanel:
    """Controls of the data set."""

    def __init__(self, page: Page, gui: Any, data: VideoDataset) -> None:
        self.page, self.data = page, data
        self.labels = data.clip_cameras(0)
        with gui.add_folder('Data'):
            self.shown = gui.add_checkbox('show the data', page.painter is None)
            self.clip = gui.add_slider('clip', 0, max(len(data) - 1, 1), 1, 0, hint='number of the clip')
            self.frame = gui.add_slider('frame', 0, max(len(self.labels) - 1, 1), 1, 0)
            self.facts = gui.add_markdown('')
            self.image = gui.add_image(np.zeros((_THUMB, _THUMB, 3), np.uint8))
            hint = 'moves to the camera of the frame, with the frame behind the head'
            gui.add_button('Look through this camera', hint=hint).on_click(page.guard(self.through))
            gui.add_button('Overview').on_click(page.guard(self.overview))
        self.shown.on_update(page.guard(self.show))
        self.clip.on_update(page.guard(self.choose))
        self.frame.on_update(page.guard(self.step))
        if self.shown.value:
            self.show()

    def show(self) -> None:
        """Shows the data in place of the network, or the network again."""
        scene = self.page.client.scene
        if not self.shown.value:
            self.root.remove()
            self.page.backdrop = None
            self.page.aim()
            self.page.redraw()
            return
        self.root = scene.add_frame(_ROOT, show_axes=False)
        add_head(scene)
        self.choose()
        self.overview()

    def choose(self) -> None:
        """Shows the cameras of a clip."""
        clip = min(int(self.clip.value), len(self.data) - 1)
        self.labels = self.data.clip_cameras(clip)
        self.frame.max = max(len(self.labels) - 1, 1)
        if self.frame.value > self.frame.max:
            self.frame.value = 0
        if self.shown.value:
            self.cameras = self.page.client.scene.add_frame(f'{_ROOT}/cameras', show_axes=False)
            places = np.linspace(0, len(self.labels) - 1, min(len(self.labels), _MOST)).round().astype(int)
            for i in places.tolist():
                self._frustum(f'{_ROOT}/cameras/{i}', self.labels[i], (120, 150, 200), None)
        self.step()

    def step(self) -> None:
        """Shows a frame of the clip; behind the head, if it is looked at through its camera."""
        clip, row = min(int(self.clip.value), len(self.data) - 1), self._row()
        image = self.data.clip_frames(clip, [row])[0].permute(1, 2, 0).numpy()
        label = self.labels[row]
        yaw, pitch = coverage.angles(label)
        fov = fov_degrees(float(label[16]))
        self.image.image = resize(image[None], 2 * _THUMB)[0]
        self.facts.content = (
            f'{self.data.names[clip]}, {len(self.labels)} frames; yaw {yaw:.1f}, pitch {pitch:.1f}, '
            f'field of view {fov:.1f} degrees'
        )
        if self.shown.value:
            thumb = resize(image[None], _THUMB)[0]
            self.current = self._frustum(f'{_ROOT}/current', label, (255, 160, 40), thumb)

    def _row(self) -> int:
        return min(int(self.frame.value), len(self.labels) - 1)

    def _frustum(
        self, name: str, label: Tensor, color: tuple[int, int, int], image: np.ndarray | None
    ) -> Any:
        from viser.transforms import SO3

        pose, intrinsics = unpack_label(label.double())
        half = 0.5 / float(intrinsics[1, 1])
        return self.page.client.scene.add_camera_frustum(
            name,
            2 * math.atan(half),
            1.0,
            # viser scales a frustum by its volume
            scale=_FRUSTUM * (4 if image is not None else 1) * (half**2 / 3) ** (1 / 3),
            thickness=0.004,
            color=color,
            image=image,
            wxyz=SO3.from_matrix(pose[:3, :3].numpy()).wxyz,
            position=pose[:3, 3].numpy(),
            cast_shadow=False,
        )

    def through(self) -> None:
        """Looks through the camera of the frame: head and frame then cover each other."""
        self.shown.value = True
        clip, row = min(int(self.clip.value), len(self.data) - 1), self._row()
        self.page.backdrop = self.data.clip_frames(clip, [row])[0].permute(1, 2, 0).numpy()
        pose, intrinsics = unpack_label(self.labels[row].double())
        place, camera = pose[:3, 3].numpy(), self.page.client.camera
        half = 0.5 / float(intrinsics[1, 1])
        with self.page.client.atomic():
            camera.position = place
            camera.look_at = place + pose[:3, 2].numpy() * float(np.linalg.norm(place))
            camera.up_direction = -pose[:3, 1].numpy()
            camera.fov = 2 * math.atan(half / min(camera.aspect, 1.0))
        self.cameras.visible = self.current.visible = False
        self.page.redraw()

    def overview(self) -> None:
        """Looks at all cameras from outside."""
        self.page.backdrop = _DARK
        self.shown.value = True
        self.cameras.visible = self.current.visible = True
        camera = self.page.client.camera
        with self.page.client.atomic():
            camera.position = _OVERVIEW
            camera.look_at = (0.25, -0.1, 1.1)
            camera.up_direction = (0.0, 1.0, 0.0)
            camera.fov = math.radians(34)
        self.page.redraw()

    def settled(self, state: State) -> None:
        """Shows nothing of the state."""

    def close(self) -> None:
        """Nothing is left to end."""


def add_head(scene: Any) -> None:
    """Adds an ellipsoid with a nose, the face towards +z as in all data sets."""
    look = {'opacity': 0.4, 'cast_shadow': False, 'subdivisions': 4}
    scene.add_icosphere(f'{_ROOT}/head', 1.0, color=(200, 180, 160), scale=_HEAD_RADII, **look)
    scene.add_icosphere(f'{_ROOT}/nose', 0.022, color=(220, 110, 90), position=_NOSE, **look)
