"""A portrait of an image that is uploaded: progress, a stop button, the result as a person of the page."""

import dataclasses
import secrets
import threading
from collections.abc import Callable
from typing import Any

from dnnlib.util import UserError
from viz.web.page import Page
from viz.web.people import SAMPLED, Model, Person
from viz.web.state import State

MAX_BYTES = 32 << 20  # of an uploaded file

Watch = Callable[[str, int, int, float], None]
"""Gets the stage, the steps done, those of the stage, and the PSNR in dB."""
Project = Callable[[Model, bytes, Watch, Callable[[], bool]], Person]
"""Finds a person: network, bytes of an image file, progress, whether to stop -> the best that was found."""


class UploadPanel:
    """Controls of projecting."""

    def __init__(self, page: Page, gui: Any, project: Project) -> None:
        self.page, self.project = page, project
        self.stopping, self.busy, self.closed = threading.Event(), threading.Lock(), False
        with gui.add_folder('Project a portrait', expand_by_default=False):
            gui.add_markdown('Only of yourself, or with consent.')
            self.file = gui.add_upload_button('Upload an image', mime_type='image/*')
            self.file.on_upload(page.guard(lambda: self.run(self.file.value.content)))
            self.progress = gui.add_progress_bar(0.0, visible=False)
            self.line = gui.add_markdown('')
            self.stop = gui.add_button('Stop: take the best so far', disabled=True)
            self.stop.on_click(page.guard(self.stopping.set))
            hint = 'NAME.portrait.pt, for viewer.py --portrait, gen_videos.py --portrait and edit_videos.py'
            self.saving = gui.add_button('Save this person', hint=hint, disabled=True)
            self.saving.on_click(page.guard(self.save))

    def run(self, content: bytes) -> None:
        """Looks for the person and shows it.

        Raises:
            UserError: if one is being looked for, or the image cannot be used.
        """
        if len(content) > MAX_BYTES:
            raise UserError(f'the file has {len(content)} bytes; at most {MAX_BYTES} are allowed')
        if not self.busy.acquire(blocking=False):
            raise UserError('another image is being projected; stop it first')
        try:
            self.stopping.clear()
            self.stop.disabled, self.progress.visible, self.line.content = False, True, 'looking for a face'
            painter = self.page.painter
            person = self.project(painter.model, content, self.watch, self.stopping.is_set)
            if self.closed:
                return
            if painter is not self.page.painter:
                raise UserError('another snapshot has taken the place of that of this person; project again')
            # nobody guesses the name: other browsers do not see the person
            name = f'upload {len(self.page.own) + 1} ({secrets.token_hex(4)})'
            self.page.own.append(name)
            painter.add(name, dataclasses.replace(person, private=True))
            self.page.change(person=name, motion=SAMPLED, time=0.0)
            self.line.content, self.saving.disabled = f'{name}: {person.about}', False
        except UserError:
            self.line.content = ''
            raise
        finally:
            self.stop.disabled, self.progress.visible = True, False
            self.busy.release()

    def save(self) -> None:
        """Sends the file of the person that is shown; command lines then name it.

        Raises:
            UserError: if it is not one of this page.
        """
        name, painter = self.page.state.person, self.page.painter
        person = painter.model.people.get(name)
        if person is None or name not in self.page.own:
            raise UserError('choose a person that was projected here in the list "who"')
        file = f'{"-".join(name.split()[:2])}.portrait.pt'
        self.page.client.send_file_download(file, person.content(), save_immediately=True)
        painter.add(name, dataclasses.replace(person, path=file))
        self.page.redraw()

    def watch(self, stage: str, step: int, steps: int, quality: float) -> None:
        """Shows progress."""
        self.progress.value = 100.0 * step / steps
        self.line.content = f'{stage}: step {step} of {steps}, {quality:.2f} dB'

    def settled(self, state: State) -> None:
        """Shows nothing of the state."""

    def close(self) -> None:
        """Stops, and forgets the people."""
        self.closed = True
        self.stopping.set()
        for name in self.page.own:
            self.page.painter.remove(name)
