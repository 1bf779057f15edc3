"""Who can be shown: the seeds of a network, and people that the script hands in, with their motions."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

import torch

from training.networks.contract import VideoGenerator
from viz import rollout
from viz.trajectories import front
from viz.web.coverage import DEFAULT, Coverage

SAMPLED = 'sampled'  # the motion that motion seeds give


@dataclasses.dataclass(frozen=True, kw_only=True)
class Person:
    """One who is shown instead of the network's seeds: a generator for each motion."""

    motions: Mapping[str, VideoGenerator]  # SAMPLED among them; each gives this person for all codes
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)  # length of recorded motions
    path: str | None = None  # of the file, for command lines
    sources: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # files of recorded motions, likewise
    private: bool = False  # only the page that made it lists it
    content: Callable[[], bytes] | None = None  # makes a file of one who has none
    about: str = ''  # a line of facts
    note: str = ''  # comment in the metadata of files that show the person


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A network and the people in it; a new snapshot of a run is a new one."""

    G: VideoGenerator
    path: str  # of the network, for command lines
    device: str = 'auto'  # that was asked for, likewise
    coverage: Coverage = DEFAULT
    fps: float = 25.0  # of the training clips
    note: str = ''  # comment in the metadata of files that show its seeds
    people: Mapping[str, Person] = dataclasses.field(default_factory=dict)

    def names(self, own: Collection[str]) -> tuple[str, ...]:
        """Returns the names of the people that a page lists, its own among them."""
        return tuple(name for name, person in self.people.items() if name in own or not person.private)

    def generator(self, person: str, motion: str = SAMPLED) -> VideoGenerator:
        """Returns the network that shows a person with a motion; the network itself for unknown names."""
        known = self.people.get(person)
        return self.G if known is None else known.motions.get(motion, known.motions[SAMPLED])

    @property
    def layers(self) -> int:
        """The number of ws."""
        codes, time = rollout.draw_codes(self.G, 0), torch.zeros(1)
        return rollout.map_codes(self.G, codes, front(1), time).shape[1]

    def span_sec(self, person: str, motion: str) -> float:
        """Returns how long times from 0 to 1 last."""
        known = self.people.get(person)
        return (known.seconds if known else {}).get(motion, (self.G.config.span - 1) / self.fps)

    def frame_rate(self, person: str, motion: str) -> float:
        """Returns the frames per second of a motion."""
        return (self.generator(person, motion).config.span - 1) / self.span_sec(person, motion)
