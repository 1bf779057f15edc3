"""One image of a network, described completely, and the command line that makes it again.

`View` holds plain values. gen_videos.py --image-at and `Views` render the same image of it, bit for bit,
because both render it alone, through the same functions.
"""

import collections
import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.scene import Camera
from training.networks.contract import VideoGenerator
from training.volumetric_rendering.renderer import RendererConfig
from viz import images, rollout, trajectories
from viz.look import Look, map_look

_KEPT_BYTES = 1 << 29  # of scenes, which later views may show again


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What one image shows: who, when, from where, and how it is sampled."""

    seed: int = 0  # person, and its motion unless that has a seed of its own
    motion_seed: int | None = None
    look: Look = Look()  # truncation and mixing; no path
    time: float = 0.0  # in units of the training span
    strength: float = 1.0  # factor on motion, counted from t = 0
    camera: Camera = Camera()
    map_camera: Camera | str = 'auto'  # that the mapping sees: a camera or one of dnnlib.scene.MAP_CAMERAS
    neural_resolution: int | None = None  # pixels of a side of the volume rendering; None = as trained
    render_samples: int | None = None  # coarse and fine samples per ray; None = as trained


def sampling(
    G: VideoGenerator, neural_resolution: int | None = None, render_samples: int | None = None
) -> RendererConfig | None:
    """Returns how a network's rays are sampled, with what is given changed; None without 3D."""
    samples = ('depth_samples', 'importance_samples')
    changes = dict.fromkeys(samples, render_samples) if render_samples else {}
    changes |= {'resolution': neural_resolution} if neural_resolution else {}
    return None if G.renderer is None else dataclasses.replace(G.renderer, **changes)


class Views:
    """Renders views of one network; the scene is kept where views differ in what does not change it."""

    def __init__(self, G: VideoGenerator, kept_bytes: int = _KEPT_BYTES) -> None:
        self.G, self.kept_bytes = G, kept_bytes
        self._kept: collections.OrderedDict[tuple, tuple[Tensor, Tensor]] = collections.OrderedDict()

    def scene(self, view: View) -> tuple[Tensor, Tensor]:
        """Returns the scene [1, ...] of a view and its ws [1, num_ws, w_dim], new or kept."""
        _, mapping = self._cameras(view)
        key = view.seed, view.motion_seed, view.look, view.time, view.strength, tuple(mapping[0].tolist())
        if key not in self._kept:
            codes = rollout.draw_codes(self.G, view.seed, view.motion_seed)
            times = torch.tensor([view.time])
            ws = map_look(self.G, codes, view.look, mapping, times)
            self._kept[key] = rollout.scene_at(self.G, codes, ws, times, view.strength), ws
        self._kept.move_to_end(key)
        while len(self._kept) > max(1, self.kept_bytes // self._kept[key][0].nbytes):
            self._kept.popitem(last=False)
        return self._kept[key]

    @torch.no_grad()
    def render(self, view: View) -> rollout.Frames:
        """Renders a view; one frame, on the device of the network."""
        scene, ws = self.scene(view)
        cameras, _ = self._cameras(view)
        options = rollout.RenderOptions(
            renderer=sampling(self.G, view.neural_resolution, view.render_samples)
        )
        return rollout.render_scene(self.G, scene, ws, cameras.to(ws.device), options)

    def image(self, view: View, kind: str = 'image') -> np.ndarray:
        """Renders a view as gen_videos.py writes it: one of images.KINDS, uint8 [H, W, 3]."""
        shown = images.to_uint8(images.shown(self.render(view), kind))
        return images.resize(shown, self.G.config.resolution)[0]

    def _cameras(self, view: View) -> tuple[Tensor, Tensor]:
        """Returns the camera [1, 25] of a view and that of its mapping."""
        camera = trajectories.placed([view.camera], self.G.config.focal)
        return camera, trajectories.mapping_cameras(self.G, view.map_camera, camera)


def arguments(view: View, seeds: bool = True) -> list[str]:
    """Returns the options of gen_videos.py that state a view, without those at their defaults, or seeds."""
    look = view.look
    layers = None if look.mix_layers is None else ','.join(map(str, look.mix_layers))
    mixed = look.mix_seed is not None and look.mix_layers != ()
    given = {
        'seeds': view.seed if seeds else None,
        'motion-seeds': view.motion_seed if seeds else None,
        'psi': None if look.psi == 1 else look.psi,
        'psi-cutoff': None if look.psi == 1 else look.cutoff,
        'mix-seed': look.mix_seed if mixed else None,
        'mix-layers': layers if mixed else None,
        'mix-weight': look.mix_weight if mixed else None,
        'motion-strength': None if view.strength == 1 else view.strength,
        'image-at': view.time,
        'camera': None if view.camera == Camera() else view.camera,
        'map-camera': None if view.map_camera == 'auto' else view.map_camera,
        'neural-resolution': view.neural_resolution,
        'render-samples': view.render_samples,
    }
    return _options(given)


def _options(given: dict[str, Any]) -> list[str]:
    return [f'--{name}={value}' for name, value in given.items() if value is not None]


def command_line(
    view: View,
    network: str | Path,
    outdir: str | Path = 'out',
    portrait: str | Path | None = None,
    motion_of: str | Path | None = None,
    more: Iterable[str] = (),
) -> str:
    """Returns the command that writes the image of a view.

    Args:
        view: what is shown.
        network: its file.
        outdir: folder for the image.
        portrait: the portrait file whose person is shown.
        motion_of: the portrait file that gives the motion in place of the seeds.
        more: further options, for example ('--depth',) or ('--device=cuda:1',).
    """
    person = {'portrait': portrait, 'motion-of': motion_of}
    words = [f'--network={network}', *_options(person), *arguments(view, motion_of is None), *more]
    words.append(f'--outdir={outdir}')
    return shlex.join(['python', 'gen_videos.py', *words])
