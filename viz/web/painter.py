"""States to images: the same functions as gen_videos.py, a frame at a time. It knows no browsers."""

import dataclasses
from collections.abc import Callable

import numpy as np

from training.networks.contract import VideoGenerator
from viz import images
from viz.rollout import RenderOptions
from viz.view import View, Views, command_line, sampling
from viz.web.people import Model, Person
from viz.web.state import State
from viz.web.turns import Turns

_KEPT_BYTES = 1 << 28  # of scenes of each person


class Painter:
    """Draws the states of all browsers with one network, one at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.turns = Turns()  # two drawings at once would only take turns in every operator
        self._views: dict[VideoGenerator, Views] = {}

    def views(self, state: State) -> Views:
        """Returns what renders the person of a state."""
        G = self.model.generator(state.person, state.motion)
        return self._views.setdefault(G, Views(G, _KEPT_BYTES))

    def view(self, state: State, resolution: int | None = None) -> View:
        """Returns what is rendered of a state, with rays of another resolution than trained if given."""
        renderer = self.model.generator(state.person).renderer
        if renderer is None:
            return state.view(None)
        changed = None if resolution == renderer.resolution else resolution
        return state.view(renderer.depth_samples, changed)

    def full(self, state: State) -> int:
        """Returns the resolution of the rays of a still image; without 3D that of the image."""
        G = self.model.generator(state.person)
        return G.renderer.resolution if G.renderer else G.config.resolution

    def paint(
        self, state: State, resolution: int | None = None, stale: Callable[[], bool] | None = None
    ) -> np.ndarray:
        """Returns the image of a state, uint8 [H, W, 3]; both sides of a split are of one rendering.

        Args:
            state: what is shown.
            resolution: of the rays; None = as trained.
            stale: see viz.web.turns.Turns.taken.
        """
        with self.turns.taken(stale):
            frames = self.views(state).render(self.view(state, resolution))
        size = self.model.G.config.resolution
        kinds = [state.kind, *([state.second] if state.second else [])]
        left, *right = (images.resize(images.to_uint8(images.shown(frames, kind)), size)[0] for kind in kinds)
        at = round(state.split_at * size)
        return np.concatenate([left[:, :at], right[0][:, at:]], axis=1) if right else left

    def add(self, name: str, person: Person) -> None:
        """Lets states name another person."""
        with self.turns.taken():
            self.model = dataclasses.replace(self.model, people={**self.model.people, name: person})

    def remove(self, name: str) -> None:
        """Forgets a person."""
        with self.turns.taken():
            people = dict(self.model.people)
            for G in people.pop(name).motions.values() if name in people else ():
                self._views.pop(G, None)
            self.model = dataclasses.replace(self.model, people=people)

    @property
    def has_3d(self) -> bool:
        """Whether there is depth, and a mesh."""
        return self.model.G.renderer is not None

    def options(self, state: State) -> RenderOptions:
        """Returns how the frames of a video of a state are rendered."""
        view = self.view(state)
        renderer = sampling(self.model.G, view.neural_resolution, view.render_samples)
        return RenderOptions(renderer=renderer, strength=view.strength)

    def note(self, state: State) -> str:
        """Returns the comment in the metadata of files that show a state."""
        person = self.model.people.get(state.person)
        return person.note if person else self.model.note

    def command(self, state: State) -> str:
        """Returns the command line that makes the image of a state; empty where there is none."""
        person = self.model.people.get(state.person)
        if person is not None and person.path is None:
            return ''
        files = (person.path, person.sources.get(state.motion)) if person else (None, None)
        shown = {state.kind, state.second or state.kind} - {'image'}
        more = [f'--{kind}' for kind in images.KINDS if kind in shown]
        more += [f'--device={self.model.device}'] if self.model.device != 'auto' else []
        given = dict(zip(('portrait', 'motion_of'), files, strict=True))
        return command_line(self.view(state), self.model.path, **given, more=more)


def kinds(G: VideoGenerator) -> tuple[str, ...]:
    """Returns what can be shown of a network."""
    return images.KINDS if G.renderer else ('image',)
