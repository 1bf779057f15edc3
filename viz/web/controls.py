"""Controls of what is seen: person, motion, camera, view. Each is bound to a field of the state."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from dnnlib.scene import fov_degrees
from viz.web.page import Page
from viz.web.painter import kinds
from viz.web.people import SAMPLED
from viz.web.state import LIMITS, MAX_SEED, State

_NETWORK = 'seeds'  # in the list of people
_NONE = 'none'
_FASTEST = 4  # times as fast as the training clips
_STEPS = 4  # times of a played clip between two training frames


def same(value: Any) -> Any:
    """Returns the value."""
    return value


class Bound:
    """Controls that show fields of the state and change them.

    A control is set only when its field has changed elsewhere: what a person is just typing stays.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self._handles: dict[str, tuple[Any, Callable[[Any], Any]]] = {}
        self._seen: dict[str, Any] = {}  # what the control of a field was set to, or has set

    def bind(
        self,
        field: str,
        handle: Any,
        to_state: Callable[[Any], Any] = same,
        to_handle: Callable[[Any], Any] = same,
        then: Callable[[], object] = lambda: None,
    ) -> Any:
        """Binds a control to a field.

        Args:
            field: of the state.
            handle: of the control.
            to_state, to_handle: convert values where they speak differently.
            then: what else is done when the control has changed the field.
        """

        def changed() -> None:
            value = to_state(handle.value)
            if to_handle(getattr(self.page.state, field)) == handle.value:
                return
            self.page.change(**{field: value})
            self._seen[field] = getattr(self.page.state, field)
            then()

        self._handles[field], self._seen[field] = (handle, to_handle), getattr(self.page.state, field)
        handle.on_update(self.page.guard(changed))
        return handle

    def settled(self, state: State) -> None:
        """Shows the fields that have changed elsewhere."""
        for field, (handle, to_handle) in self._handles.items():
            value = getattr(state, field)
            if value != self._seen[field]:
                self._seen[field] = value
                handle.value = to_handle(value)

    def close(self) -> None:
        """Nothing is left to end."""


def slider(gui: Any, label: str, limits: tuple[float, float], step: float, value: float, hint: str) -> Any:
    """Adds a slider of fractional numbers."""
    low, high = map(float, limits)
    return gui.add_slider(label, low, high, step, float(min(max(value, low), high)), hint=hint)


class PersonPanel(Bound):
    """Who is seen."""

    def __init__(self, page: Page, gui: Any) -> None:
        super().__init__(page)
        model, state = page.painter.model, page.state
        layers = model.layers
        with gui.add_folder('Person'):
            self.names = (_NETWORK, *model.names(page.own))
            self.people = gui.add_dropdown('who', self.names)
            self.people.visible = len(self.names) > 1
            self.bind(
                'person',
                self.people,
                lambda name: '' if name == _NETWORK else name,
                lambda name: name or _NETWORK,
            )
            hint = 'every seed is another person'
            self.bind('seed', gui.add_number('seed', state.seed, min=0, max=MAX_SEED, step=1, hint=hint))
            gui.add_button('Another person').on_click(page.guard(self.another))
            hint = 'truncation: 1 = none, 0 = the mean face'
            self.bind('psi', slider(gui, 'psi', (-0.5, 1.5), 0.05, state.psi, hint))
            hint = 'number of layers that psi acts on, coarse ones first'
            cutoff = gui.add_slider('cutoff', 0, layers, 1, layers, hint=hint)
            self.bind(
                'cutoff',
                cutoff,
                lambda n: None if n == layers else n,
                lambda n: layers if n is None else min(n, layers),
            )
            hint = 'another person who is mixed in'
            other = gui.add_number('second seed', state.other_seed, min=0, max=MAX_SEED, step=1, hint=hint)
            self.bind('other_seed', other)
            self.bind('mix', slider(gui, 'mix', (0, 1), 0.05, state.mix, '0 = the first, 1 = the second'))

    def another(self) -> None:
        """Shows a person at random."""
        self.page.change(person='', seed=random.randrange(10000))

    def settled(self, state: State) -> None:
        """Shows the state, and the people that there are now."""
        names = (_NETWORK, *self.page.painter.model.names(self.page.own))
        if names != self.names:
            self.names = self.people.options = names
            self.people.visible = len(names) > 1
        super().settled(state)


class MotionPanel(Bound):
    """When it is, and how the person moves; plays."""

    def __init__(self, page: Page, gui: Any) -> None:
        super().__init__(page)
        model, state = page.painter.model, page.state
        self.forward, self.place, self.shown = True, 0.0, 0.0
        with gui.add_folder('Motion'):
            self.names = self._names(state)
            self.motion = gui.add_dropdown('motion', self.names, initial_value=SAMPLED)
            self.bind('motion', self.motion)
            self.motion.visible = bool(model.people)
            hint = 'of the training span, or of the recording'
            self.bind('time', slider(gui, 'time', (0, 1), 0.01, state.time, hint))
            self.playing = gui.add_checkbox('play', False)
            self.playing.on_update(page.guard(self._play))
            self.pingpong = gui.add_checkbox('forth and back', True, hint='else it starts again with a jump')
            self.speed = slider(gui, 'speed', (0.05, _FASTEST), 0.05, 1, '1 = as fast as the training clips')
            self.own = gui.add_checkbox('own motion', True, hint="the motion of the person's seed")
            self.seed = gui.add_number('motion seed', 0, min=0, max=MAX_SEED, step=1)
            self.bind('motion_seed', self.own, self._motion_seed, lambda seed: seed is None)
            self.seed.on_update(page.guard(self._choose))
            hint = 'factor on motion: 0 = a still'
            strength = slider(gui, 'strength', (0, 1.5), 0.05, state.strength, hint)
            strength.disabled = not page.painter.has_3d  # other networks have no path of motion
            self.bind('strength', strength)
        page.advance = self.advance

    def _names(self, state: State) -> Sequence[str]:
        person = self.page.painter.model.people.get(state.person)
        return tuple(person.motions) if person else (SAMPLED,)

    def _play(self) -> None:
        self.page.player.play(self.playing.value)
        if not self.playing.value:
            self.page.redraw()  # and the controls show where it has stopped

    def _motion_seed(self, own: bool) -> int | None:
        return None if own else self.seed.value

    def _choose(self) -> None:
        if not self.own.value:
            self.page.change(motion_seed=self.seed.value)

    def advance(self, seconds: float) -> None:
        """Moves time on by so many seconds of the wall clock."""
        state, model = self.page.state, self.page.painter.model
        step = seconds * min(max(self.speed.value, 0), _FASTEST) / model.span_sec(state.person, state.motion)
        if state.time != self.shown:  # the slider was moved
            self.place = min(state.time, 1.0)
        self.place, self.forward = travel(self.place, step, self.forward, self.pingpong.value)
        lattice = _STEPS * max(model.G.config.span - 1, 1)
        self.page.change(time=round(self.place * lattice) / lattice)
        self.shown = self.page.state.time

    def settled(self, state: State) -> None:
        """Shows the state, and the motions of the person."""
        names = self._names(state)
        if names != self.names:
            self.names = self.motion.options = names
        super().settled(state)


def travel(place: float, step: float, forward: bool, pingpong: bool) -> tuple[float, bool]:
    """Returns the place in [0, 1] after a step, and whether it goes forward there."""
    if not pingpong:
        return (place + step) % 1.0, True
    turned = (place if forward else 2 - place) + step
    turned %= 2
    return (turned, True) if turned <= 1 else (2 - turned, False)


class CameraPanel(Bound):
    """From where it is seen."""

    def __init__(self, page: Page, gui: Any) -> None:
        super().__init__(page)
        model = page.painter.model
        hint = 'degrees; training cameras were from {:.0f} to {:.0f}'
        with gui.add_folder('Camera'):
            self.sign = gui.add_markdown(_OUTSIDE)
            self.sign.visible = False
            for field, limits in zip(('yaw', 'pitch'), model.coverage, strict=True):
                handle = slider(gui, field, limits, 0.5, 0.0, hint.format(*limits))
                self.bind(field, handle, then=page.aim)
            usual = round(fov_degrees(model.G.config.focal), 1)
            hint = f'degrees; training cameras had {usual}'
            fov = slider(gui, 'field of view', LIMITS['fov'][:2], 0.1, usual, hint)
            self.bind(
                'fov',
                fov,
                lambda value: None if value == usual else value,
                lambda value: usual if value is None else value,
                page.aim,
            )
            gui.add_button('Reset camera').on_click(page.guard(self.reset))
            hint = 'that the mapping network sees: the frontal one, a fixed one, or the one that renders'
            mapping = gui.add_dropdown('mapping camera', ('canonical', 'first', 'current'), hint=hint)
            self.bind('map_camera', mapping)
            button = gui.add_button('Keep this camera as first', hint='for the mapping camera `first`')
            button.on_click(page.guard(self.keep_first))

    def reset(self) -> None:
        """Returns to the frontal camera."""
        self.page.change(yaw=0.0, pitch=0.0, fov=None)
        self.page.aim()

    def keep_first(self) -> None:
        """Makes the camera the first one."""
        state = self.page.state
        self.page.change(first=(state.yaw, state.pitch, state.fov))

    def settled(self, state: State) -> None:
        """Shows the state, and brings the browser's camera back inside."""
        super().settled(state)
        self.sign.visible = self.page.outside
        if self.page.outside:
            self.page.aim()


_OUTSIDE = '⚠️ **Outside of what training cameras covered**: shown from the nearest place inside.'


class ViewPanel(Bound):
    """What is shown of a rendering."""

    def __init__(self, page: Page, gui: Any) -> None:
        super().__init__(page)
        known = kinds(page.painter.model.G)
        with gui.add_folder('View'):
            self.bind('kind', gui.add_dropdown('show', known))
            second = gui.add_dropdown('right half', (_NONE, *known), hint='splits the image')
            self.bind('second', second, lambda k: None if k == _NONE else k, lambda k: k or _NONE)
            self.bind('split_at', slider(gui, 'split at', (0, 1), 0.05, 0.5, 'where the right half begins'))
            hint = 'times as many samples per ray as trained: smoother depth, slower'
            samples = gui.add_dropdown('samples', ('1', '2', '4'), hint=hint)
            samples.disabled = not page.painter.has_3d
            self.bind('samples', samples, int, str)
