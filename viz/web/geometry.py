"""The mesh of what is seen: made, shown in the scene, downloaded."""

from typing import Any

import numpy as np

from dnnlib.util import UserError
from viz import shapes
from viz.web.page import Page
from viz.web.state import State

_NODE = '/mesh'
_VOXELS = ('32', '64', '128', '256')
_GRAY = np.full((8, 8, 3), 60, np.uint8)  # behind the mesh


class GeometryPanel:
    """Controls of the mesh."""

    def __init__(self, page: Page, gui: Any) -> None:
        self.page, self.mesh, self.node = page, None, None
        with gui.add_folder('Geometry', expand_by_default=False):
            hint = 'density of the surface, 1 / scene unit; 0 = chosen by the scene'
            self.level = gui.add_number('level', 0.0, min=0.0, max=1000.0, step=0.5, hint=hint)
            self.voxels = gui.add_dropdown('voxels', _VOXELS, initial_value='128', hint='along each axis')
            hint = 'leaves out what floats around the head'
            self.head = gui.add_checkbox('head only', True, hint=hint)
            gui.add_button('Make mesh').on_click(page.guard(self.make))
            self.shown = gui.add_checkbox('show in the scene', False, disabled=True)
            self.shown.on_update(page.guard(self.show))
            self.facts = gui.add_markdown('')
            self.files = gui.add_button_group('download', tuple(f'.{kind}' for kind in shapes.FORMATS))
            self.files.visible = False
            self.files.on_click(page.guard(self.download))

    def make(self) -> None:
        """Makes the mesh of the person at this moment and shows it."""
        page, state = self.page, self.page.state
        if not page.painter.has_3d:
            raise UserError('this network has no 3D, so there is no mesh of it')
        if self.voxels.value not in _VOXELS:
            raise UserError(f'voxels must be one of {", ".join(_VOXELS)}')
        self.facts.content = 'working ...'
        with page.painter.lock:
            views = page.painter.views(state)
            scene, ws = views.scene(page.painter.view(state))
        level, parts = self.level.value or None, 'head' if self.head.value else 'all'
        try:
            made = shapes.head_mesh(views.G, scene, ws, int(self.voxels.value), level, parts)
        finally:
            self.facts.content = ''
        self.mesh, chosen = made
        self.facts.content = f'{len(self.mesh.faces)} triangles; surface at {chosen.reason}'
        self.node = page.client.scene.add_glb(_NODE, shapes.mesh_file(self.mesh, 'glb'))
        self.files.visible, self.shown.disabled = True, False
        self.shown.value = True
        self.show()

    def show(self) -> None:
        """Shows the mesh in place of the image, or the image again."""
        page, on = self.page, bool(self.shown.value) and self.node is not None
        if self.node is not None:
            self.node.visible = on
        page.backdrop = _GRAY if on else None
        if not on:
            page.aim()
        page.redraw()

    def download(self) -> None:
        """Sends the file of the mesh."""
        kind = self.files.value.removeprefix('.')
        content = shapes.mesh_file(self.mesh, kind, self.page.painter.note(self.page.state))
        self.page.client.send_file_download(f'mesh.{kind}', content, save_immediately=True)

    def settled(self, state: State) -> None:
        """Shows nothing of the state."""

    def close(self) -> None:
        """Forgets the mesh."""
        self.mesh = None
