"""The portrait file, NAME.portrait.pt: who, what the face does, from where, and what it was fitted to.

It holds no network, but the tensors that tuning has changed; the network it belongs to is named by a digest.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.scene import LABEL_DIM
from dnnlib.util import CheckpointError, UserError
from editing.motion import transferred
from metrics.records.digests import tensors_digest
from torch_utils.checkpoint import PORTRAIT, load_state, save_state
from training.networks.contract import Codes, RadianceGenerator, Rendering, VideoGenerator
from training.volumetric_rendering.renderer import RendererConfig
from viz.notice import notice

SUFFIX = '.portrait.pt'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Portrait:
    """A person in a network: found for T frames."""

    network: str  # digest of the network before tuning
    ws: Tensor  # appearance [1, num_ws, w_dim]
    u: Tensor  # motion of each frame [T, motion_dim]
    cameras: Tensor  # of the frames, as refined [T, 25]
    images: Tensor  # what was fitted, uint8 [T, 3, H, W]
    fps: float
    neutral_frame: int  # whose motion is without expression, from which others start
    tuned: dict[str, Tensor]  # tensors of the network that differ from the original; empty = none
    provenance: dict[str, Any]  # plain values: command, source and its SHA-256, network file
    scores: dict[str, Any]  # plain values, what report.json shows

    @property
    def neutral(self) -> Tensor:
        """The motion from which others start [1, motion_dim]."""
        return self.u[self.neutral_frame : self.neutral_frame + 1]

    @property
    def note(self) -> str:
        """The comment in the metadata of all that shows the person."""
        made = self.provenance
        network = notice(made.get('network', ''), made.get('network sha256', ''))
        return f'{network}: {made.get("command")} (source {made.get("source")})'


def network_digest(G: VideoGenerator) -> str:
    """Returns the SHA-256 of the tensors of a network; precision and the like do not count."""
    return tensors_digest(sorted(G.state_dict().items()))


def save_portrait(path: str | Path, portrait: Portrait) -> None:
    """Writes a portrait; equal portraits give equal bytes."""
    state = {field.name: getattr(portrait, field.name) for field in dataclasses.fields(portrait)}
    save_state(path, PORTRAIT, state)


def load_portrait(path: str | Path) -> Portrait:
    """Reads a portrait.

    Raises:
        CheckpointError: if the file is missing, corrupted, of another format, or its parts do not fit.
    """
    state = load_state(path, PORTRAIT)
    known = {field.name for field in dataclasses.fields(Portrait)}
    if state.keys() != known or not _fits(state):
        raise CheckpointError(f'{path}: parts of the portrait are missing or do not fit; make it again')
    return Portrait(**state)


def _fits(state: dict[str, Any]) -> bool:
    """Returns whether the parts of a portrait are of the right kinds and shapes."""
    named = [state[name] for name in ('ws', 'u', 'cameras', 'images')]
    tensors = [*named, *state['tuned'].values()] if isinstance(state['tuned'], dict) else [None]
    if not all(isinstance(x, Tensor) for x in tensors):
        return False
    ws, u, cameras, images = named
    shapes = ws.ndim == 3 and len(ws) == 1 and u.ndim == 2 and images.ndim == 4 and len(u) > 0
    same = len(u) == len(cameras) == len(images) and cameras.shape[1:] == (LABEL_DIM,)
    finite = all(bool(x.isfinite().all()) for x in (ws, u, cameras))
    plain = isinstance(state['network'], str) and isinstance(state['fps'], float) and state['fps'] > 0
    return shapes and same and finite and plain and state['neutral_frame'] in range(len(u))


def own_network(G: RadianceGenerator, portrait: Portrait, path: str | Path) -> RadianceGenerator:
    """Returns the network of a portrait: G itself, or a copy with the tuned tensors.

    Args:
        G: the network that the portrait was made with.
        portrait: from `load_portrait`.
        path: of the portrait, for messages.

    Raises:
        CheckpointError: if the portrait belongs to another network, or its tensors do not fit.
    """
    if network_digest(G) != portrait.network:
        made_with = portrait.provenance.get('network', 'another network')
        raise CheckpointError(
            f'{path} belongs to another network than this one: it was made with {made_with}; give that '
            'with --network, or project the image again'
        )
    state = G.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in portrait.tuned.items()}
    if any(name not in state or tuple(state[name].shape) != shape for name, shape in shapes.items()):
        raise CheckpointError(f'{path}: its tuned tensors do not fit the network; make the portrait again')
    if not portrait.tuned:
        return G
    own = copy.deepcopy(G)
    own.load_state_dict({**state, **portrait.tuned})
    return own


def require_3d(G: VideoGenerator, name: str) -> RadianceGenerator:
    """Returns a network that has 3D.

    Raises:
        UserError: for any other.
    """
    if not isinstance(G, RadianceGenerator):
        raise UserError(f'{name}: a network of kind {G.config.kind} has no 3D, which editing needs')
    return G


class PortraitGenerator(RadianceGenerator):
    """A network in which every appearance code and camera gives one person, that of a portrait.

    Motion codes move the person from the neutral frame, which every code gives exactly at t = 0, whatever
    path of motion the network has. Samplers and metrics use it as any other generator.
    """

    def __init__(self, G: RadianceGenerator, portrait: Portrait, strength: float = 1.0) -> None:
        super().__init__()
        self.G, self.strength, self.note = G, strength, portrait.note
        self.config, self.renderer = G.config, G.renderer
        self.z_dim, self.motion_dim = G.z_dim, G.motion_dim
        self.endless, self.knot = G.endless, G.knot
        device = next(G.parameters()).device
        self.register_buffer('ws', portrait.ws.to(device))
        self.register_buffer('neutral', portrait.neutral.to(device))

    def condition(
        self, codes: Codes, cameras: Tensor, times: Tensor, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """See the contract; truncation has no effect."""
        return self.ws.expand(max(len(codes.z_a), len(cameras)), -1, -1)

    def motion_at(self, codes: Codes, times: Tensor) -> Tensor:
        """See the contract."""
        moved = self.G.motion_at(codes, times) - self.G.motion_at(codes, torch.zeros_like(times))
        return self.neutral + self.strength * moved

    def moved_scene(
        self, ws: Tensor, u: Tensor, noise_mode: str = 'const', generator: torch.Generator | None = None
    ) -> Tensor:
        """See the contract."""
        return self.G.moved_scene(ws, u, noise_mode, generator)

    def render(
        self,
        scene: Tensor,
        ws: Tensor,
        cameras: Tensor,
        renderer: RendererConfig | None = None,
        generator: torch.Generator | None = None,
        ray_chunk: int | None = None,
    ) -> Rendering:
        """See the contract."""
        return self.G.render(scene, ws, cameras, renderer, generator, ray_chunk)

    def sample_field(self, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See the contract."""
        return self.G.sample_field(scene, points)

    def to_rgb_raw(self, features: Tensor, ws: Tensor) -> Tensor:
        """See the contract."""
        return self.G.to_rgb_raw(features, ws)

    def compilable(self) -> tuple[torch.nn.Module, ...]:
        """See the contract."""
        return self.G.compilable()

    def example_inputs(self, n: int) -> tuple[Any, ...]:
        """See the contract."""
        return self.G.example_inputs(n)


class MovedPortrait(PortraitGenerator):
    """The person of a portrait with a given path of motion; times 0 to 1 run through its frames.

    Codes change nothing; a time between two frames shows the nearer one.
    """

    def __init__(self, G: RadianceGenerator, portrait: Portrait, u: Tensor) -> None:
        """u: motion of each frame [T, motion_dim], T >= 2."""
        super().__init__(G, portrait)
        self.config = dataclasses.replace(G.config, span=len(u))
        self.register_buffer('u', u.to(self.ws.device))

    def motion_at(self, codes: Codes, times: Tensor) -> Tensor:
        """See the contract."""
        last = len(self.u) - 1
        return self.u[(times * last).round().long().clamp(0, last)]


def open_portrait(
    G: VideoGenerator, path: str | Path, strength: float = 1.0, motion_of: str | Path | None = None
) -> PortraitGenerator:
    """Opens a portrait file as a generator of that person.

    Args:
        G: the network that it was made with.
        path: the file.
        strength: factor on sampled motion.
        motion_of: the portrait file, with two frames or more, whose motion takes the place of sampled motion:
            with the same file the motion as recorded, with another one transferred, counted from its neutral.

    Raises:
        UserError: if a file cannot be used, or belongs to another network.
    """
    portrait = load_portrait(path)
    own = own_network(require_3d(G, str(path)), portrait, path)
    if motion_of is None:
        return PortraitGenerator(own, portrait, strength)
    source = load_portrait(motion_of)
    if source.network != portrait.network:
        raise UserError(f'{motion_of} and {path} belong to different networks; use one for both')
    if len(source.u) < 2:
        raise UserError(f'{motion_of} has one frame and no motion; give the portrait of a video')
    return MovedPortrait(own, portrait, transferred(source.u, source.neutral, portrait.neutral))
