"""A browser without a browser: what pages see of viser, recorded."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np

_IDS = itertools.count()


class Handle:
    """A control or a node of the scene: its properties as they were made and set."""

    def __init__(self, label, value, **facts):
        self.__dict__.update(facts, label=label, _value=value, callbacks=[])

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        changed, self._value = self._value != value, value
        if changed:
            self.fire()

    def fire(self):
        for callback in self.callbacks:
            callback(None)

    def press(self, value=None):
        """Clicks a button; of a group, the one of this name."""
        self._value = value
        self.fire()

    def on_update(self, callback):
        self.callbacks.append(callback)

    on_click = on_upload = on_update


class Gui:
    """Controls by label."""

    def __init__(self):
        self.handles = {}

    def __getitem__(self, label):
        return self.handles[label]

    def _add(self, label, value=None, **facts):
        assert label not in self.handles or not label, f'two controls are called {label}'
        self.handles[label] = handle = Handle(label, value, **facts)
        return handle

    @contextlib.contextmanager
    def add_folder(self, label, **facts):
        yield

    def add_slider(self, label, min, max, step, initial_value, **facts):
        assert min <= initial_value <= max and type(min) is type(max) is type(initial_value)
        return self._add(label, initial_value, min=min, max=max, **facts)

    def add_number(self, label, initial_value, **facts):
        return self._add(label, initial_value, **facts)

    add_checkbox = add_text = add_number

    def add_dropdown(self, label, options, initial_value=None, **facts):
        return self._add(label, initial_value or options[0], options=options, **facts)

    def add_button(self, label, **facts):
        return self._add(label, **facts)

    add_upload_button = add_button

    def add_button_group(self, label, options, **facts):
        return self._add(label, options[0], **facts)

    def add_progress_bar(self, value, **facts):
        return Handle('', value, **facts)

    def add_markdown(self, content, **facts):
        return Handle('', None, content=content, **facts)

    def add_image(self, image, **facts):
        return Handle('', None, image=image, **facts)


class Scene:
    """Nodes by name, and the background images that were set."""

    def __init__(self):
        self.nodes, self.images = {}, []

    def set_background_image(self, image, **facts):
        self.images.append(np.array(image))

    def _node(self, name, *args, **facts):
        self.nodes[name] = node = Handle(name, None, **{'visible': True, 'args': args, **facts})
        node.remove = lambda: [self.nodes.pop(n) for n in list(self.nodes) if n.startswith(name)]
        return node

    add_glb = add_frame = add_icosphere = add_camera_frustum = _node


class Client:
    """A browser: `messages` that it showed and `files` that it was sent."""

    def __init__(self, aspect=1.0):
        self.client_id = next(_IDS)
        self.gui, self.scene = Gui(), Scene()
        self.messages, self.files = [], {}
        self.camera = SimpleNamespace(
            position=np.array([0.0, 0.0, 2.7]), look_at=np.array([0.0, 0.0, 0.2]), aspect=aspect, fov=0.2
        )

    def atomic(self):
        return contextlib.nullcontext()

    def flush(self):
        pass

    def add_notification(self, title, body, **facts):
        self.messages.append(body)

    def send_file_download(self, name, content, save_immediately=False):
        self.files[name] = content
