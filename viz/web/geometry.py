"""The mesh of what is seen: made, shown in the scene, downloaded."""

import dataclasses
from typing import Any

import numpy as np

from dnnlib.util import UserError
from viz import shapes
from viz.web.page import Page
from viz.web.state import State

_NODE = '/mesh'
_VOXELS = ('32', '64', '128', '256')
_OTHER = '⚠️ This is the mesh of another person or moment; make it again.'
_GRAY = np.full((8, 8, 3), 60, np.uint8)  # behind the mesh


class GeometryPanel:
    """Controls of the mesh."""

    def __init__(self, page: Page, gui: Any) -> None:
        self.page, self.mesh, self.node, self.made_of, self.note = page, None, None, None, ''
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
        with page.painter.turns.taken():
            views = page.painter.views(state)
            scene, ws = views.scene(page.painter.view(state))
        level, parts = self.level.value or None, 'head' if self.head.value else 'all'
        try:
            made = shapes.head_mesh(views.G, scene, ws, int(self.voxels.value), level, parts)
        finally:
            self.facts.content = ''
        self.mesh, chosen = made
        self.made_of, self.note = moment(state), page.painter.note(state)
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
        content = shapes.mesh_file(self.mesh, kind, self.note)
        self.page.client.send_file_download(f'mesh.{kind}', content, save_immediately=True)

    def settled(self, state: State) -> None:
        """Says when the mesh is that of another moment."""
        if self.mesh is not None and moment(state) != self.made_of:
            self.facts.content = _OTHER

    def close(self) -> None:
        """Forgets the mesh."""
        self.mesh = None


def moment(state: State) -> State:
    """Returns a state without what changes no mesh."""
    plain = State()
    seen = ('yaw', 'pitch', 'fov', 'kind', 'second', 'split_at', 'samples')
    return dataclasses.replace(state, **{name: getattr(plain, name) for name in seen})
