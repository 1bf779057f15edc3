"""Finds people in a network, for an image or a video of them, and moves them. `--help` shows examples."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dnnlib.cli import ARGUMENT, SETTINGS, Numbers, OnlyWith, Range, command

import click

from dnnlib.util import UserError

if TYPE_CHECKING:  # functions import what they need: --help and errors in options need no torch
    from editing.codes import Portrait
    from editing.recipes import Recipe
    from training.networks.contract import RadianceGenerator

Preset = Literal['standard', 'fast', 'best', 'paper']
Steps = Annotated[int, Range(0, 100_000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options of all commands."""

    # --- What
    network: Annotated[str, 'PKL']  # network snapshot; portraits need the one that they were made with
    outdir: Annotated[Path, 'DIR']  # folder for the results; made when missing
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Common):
    """Options of what looks for a person."""

    source: Annotated[str, ARGUMENT, 'SOURCE']
    name: str | None = None  # stem of the files [default: that of the source]
    seed: Annotated[int, Range(0)] = 0  # of random draws

    # --- How
    # values of the options below that are not given; see docs/editing.md for what they reach. standard: W,
    # refined camera, tuned network. paper: W+, network and camera as they are
    preset: Preset = 'standard'
    # w: one code for all layers keeps the head whole from the sides. w+: one for each layer is nearer to what
    # is seen [default: preset]
    space: Literal['w', 'w+'] | None = None
    steps: Annotated[int, Range(1, 100_000)] | None = None  # of the code [default: preset]
    refine_camera: bool | None = None  # yes or no: corrects the cameras, too [default: preset]
    tune_steps: Steps | None = None  # of the network itself, 0 = it stays as it is [default: preset]
    tune_rate: Annotated[float, Range(above=0)] | None = None  # learning rate of tuning [default: preset]
    # weight of the side views of the person before tuning, 0 = free [default: preset]
    hold_views: Annotated[float, Range(0)] | None = None
    # weight of pixels outside the head [default: 0.3 for images and videos, 1 for clips of data sets]
    background: Annotated[float, Range(0, 1)] | None = None
    # weight of the identity network, where it finds a face [default: 0.1 for images and videos, else 0]
    identity: Annotated[float, Range(0)] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Project(Search):
    """Finds the person of an image: writes NAME.portrait.pt, a comparison, an orbit and a report.

    SOURCE is an image of a face as it comes from a camera, or DATASET:CLIP:FRAME of a data set. Only with the
    consent of the person shown. Ctrl-C keeps the best so far; the same command continues.

    Examples:
      python edit_videos.py project me.jpg --network snapshot.pkl --outdir out
      python edit_videos.py project heads.zip:0:0 --network snapshot.pkl --outdir out --preset paper
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(Search):
    """Finds the person of a video and the motion of every frame; writes NAME.portrait.pt and compare.mp4.

    SOURCE is a video of one face, or DATASET:CLIP. The sound of a video is kept. Only with the consent of the
    person shown. Ctrl-C keeps the best so far; the same command continues.

    Examples:
      python edit_videos.py reconstruct me.mp4 --network snapshot.pkl --outdir out --frames 48
      python edit_videos.py reconstruct heads.zip:3 --network snapshot.pkl --outdir out --motion none
    """

    # --- Motion
    first: Annotated[int, Range(0)] = 0  # first frame of the source that is used
    frames: Annotated[int, Range(2)] | None = None  # number of frames [default: all]
    # zm+: of each frame by itself. single: of one motion code. none: the face is still
    motion: Literal['zm+', 'single', 'none'] = 'zm+'
    motion_steps: Annotated[int, Range(1, 100_000)] | None = (
        None  # of code, motion, cameras [default: preset]
    )
    smooth: Annotated[float, Range(0)] | None = None  # weight of restless motion [default: preset]
    neutral: Annotated[int, Range(0)] | None = None  # frame defined as without expression [default: first]
    batch_frames: Annotated[int, Range(1)] = 8  # frames in memory at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Animate(Common):
    """Moves the person of a portrait by sampled motion codes: a video of each.

    Every video begins with the neutral frame of the portrait.

    Example:
      python edit_videos.py animate out/me.portrait.pt --network snapshot.pkl --outdir out --motion-seeds 0-3
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']
    motion_seeds: Numbers = (0,)  # motion codes, e.g. 0-3 or 0,4 [default: 0]
    strength: Annotated[float, Range(-10, 10)] = 1.0  # factor on motion, 0 = a still
    # source: the camera of the portrait. front: frontal. orbit: on an ellipse around the head
    trajectory: Literal['source', 'front', 'orbit'] = 'source'
    orbit_yaw: Annotated[float, Range(0, 89), OnlyWith('trajectory', 'orbit')] = 20.0  # half width, degrees
    frames: Annotated[int, Range(1)] = 60  # of each video
    time: Literal['pingpong', 'cycle', 'extend'] = 'pingpong'  # time beyond the training span
    depth: bool = False  # also write a video of the depth
    normals: bool = False  # also write a video of the surface normals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(Common):
    """Shows a reconstructed video up to a frame, from which on sampled motion takes over.

    Example:
      python edit_videos.py edit out/me.portrait.pt --network snapshot.pkl --outdir out --from-frame 12
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']
    from_frame: Annotated[int, Range(0)] = 0  # last frame with its own motion
    motion_seeds: Numbers = (0,)  # motion codes, e.g. 0-3 or 0,4 [default: 0]
    strength: Annotated[float, Range(-10, 10)] = 1.0  # factor on motion
    blend: Annotated[int, Range(1)] = 8  # frames in which the old expression fades
    frames: Annotated[int, Range(1)] = 60  # from that frame on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Common):
    """Gives the motion of one reconstructed video to the person of another portrait.

    Example:
      python edit_videos.py transfer out/a.portrait.pt out/b.portrait.pt --network snapshot.pkl --outdir out
    """

    source: Annotated[str, ARGUMENT, 'SOURCE']  # portrait whose motion is taken
    target: Annotated[str, ARGUMENT, 'TARGET']  # portrait that is moved
    # relative: what the source does is added to the target's neutral face. absolute: takes its place
    relative: bool = True
    strength: Annotated[float, Range(-10, 10)] = 1.0  # factor on motion
    camera: Literal['source', 'target', 'front'] = 'source'  # whose cameras
    sound: Annotated[Path, 'FILE'] | None = None  # video whose sound is added: that of the source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views(Common):
    """Shows a portrait from new cameras, with depth and meshes.

    Example:
      python edit_videos.py views out/me.portrait.pt --network snapshot.pkl --outdir out --shapes glb
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']
    trajectory: Literal['orbit', 'front'] = 'orbit'  # camera on an ellipse, or frontal
    orbit_yaw: Annotated[float, Range(0, 89), OnlyWith('trajectory', 'orbit')] = 20.0  # half width, degrees
    frames: Annotated[int, Range(1)] | None = (
        None  # of the video [default: those of the portrait, at least 60]
    )
    shapes: Literal['ply', 'obj', 'glb'] | None = None  # also write a mesh of the first frame
    shape_resolution: Annotated[int, Range(8, 1024), OnlyWith('shapes')] = 128  # voxels per axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Common):
    """Measures a portrait: likeness, motion, geometry, identity; prints a table, writes NAME-score.json.

    Example:
      python edit_videos.py score out/me.portrait.pt --network snapshot.pkl --outdir out
    """

    portrait: Annotated[str, ARGUMENT, 'PORTRAIT']


def project(options: Project) -> None:
    """Finds the person of an image."""
    from editing.inputs import Piece

    _find(options, Piece(frames=1), {})


def reconstruct(options: Reconstruct) -> None:
    """Finds the person of a video and its motion."""
    from editing.inputs import Piece

    names = {'motion': 'motion', 'motion_steps': 'motion_steps', 'smooth': 'smooth', 'neutral': 'neutral'}
    given = {name: getattr(options, option) for name, option in names.items()} | {
        'batch': options.batch_frames
    }
    _find(options, Piece(first=options.first, frames=options.frames), given)


def _find(options: Search, piece: Any, motion: dict[str, Any]) -> None:
    """Looks for the person of a source, and writes all files about it."""
    from editing.inputs import open_source
    from editing.results import Job, find_and_write

    G, digest = _network(options)
    source = open_source(options.source, G.config.resolution, G.config.focal, piece)
    if source.facts.get('note'):
        click.echo(source.facts['note'])
    neutral = motion.get('neutral')
    if neutral is not None and neutral >= len(source.cameras):
        raise UserError(f'--neutral {neutral} is beyond the {len(source.cameras)} frames of the source')
    job = Job(
        name=options.name or source.name,
        outdir=_folder(options),
        recipe=_recipe(options, source.photo, motion),
        seed=options.seed,
        network=Path(options.network).name,
        network_sha256=digest,
        command=_command(),
    )
    find_and_write(G, source, job, click.echo)


def _recipe(options: Search, photo: bool, motion: dict[str, Any]) -> Recipe:
    """Returns the preset with what was given besides."""
    from editing.objective import Weights
    from editing.recipes import PRESETS

    o = options
    given = {'space': o.space, 'steps': o.steps, 'tune_steps': o.tune_steps, 'tune_rate': o.tune_rate}
    given |= {'hold': o.hold_views, 'refine_camera': o.refine_camera, **motion}
    background = o.background if o.background is not None else (0.3 if photo else 1.0)
    identity = o.identity if o.identity is not None else (0.1 if photo else 0.0)
    weights = Weights(background=background, identity=identity)
    known = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[o.preset], weights=weights, **known)


def animate(options: Animate) -> None:
    """Moves a portrait by sampled motion codes."""
    import torch

    from editing.codes import PortraitGenerator
    from viz import trajectories
    from viz.clip_writer import Clip, ClipWriter
    from viz.rollout import draw_codes

    G, portrait = _portrait(options, options.portrait)
    person = PortraitGenerator(G, portrait, options.strength)
    count, focal = options.frames, G.config.focal
    still = portrait.cameras[portrait.neutral_frame].expand(count, -1)
    cameras = {'source': still, 'front': trajectories.front(count, focal)}
    cameras['orbit'] = trajectories.orbit(count, math.radians(options.orbit_yaw), focal)
    writer = ClipWriter(
        G=person, outdir=_folder(options), report=click.echo, fps=portrait.fps, note=_note(portrait)
    )
    for seed in options.motion_seeds:
        clip = Clip(
            name=f'{_stem(options.portrait)}-motion{seed:04d}',
            codes=draw_codes(G, 0, seed),
            cameras=cameras[options.trajectory],
            map_cameras=torch.zeros(1, still.shape[1]),  # a portrait does not see it
            times=trajectories.frame_times(count, G.config.span, options.time),
        )
        writer.videos(clip, options.depth, options.normals)


def edit(options: Edit) -> None:
    """Lets sampled motion take over from a frame on."""
    import torch

    from editing.motion import continued, sampled
    from editing.render import Take, write_take
    from viz.rollout import draw_codes
    from viz.trajectories import frame_times, recorded

    G, portrait = _portrait(options, options.portrait)
    start, total = options.from_frame, len(portrait.u)
    if start >= total:
        raise UserError(
            f'--from-frame {start} is beyond {options.portrait}, whose frames are 0 to {total - 1}'
        )
    times = frame_times(options.frames, G.config.span)
    count = start + options.frames
    for seed in options.motion_seeds:
        moved = options.strength * sampled(G, draw_codes(G, 0, seed), times)
        own = continued(portrait.u[start : start + 1], portrait.neutral, moved, options.blend)
        u = torch.cat([portrait.u[:start], own])
        path = _folder(options) / f'{_stem(options.portrait)}-edit{seed:04d}.mp4'
        take = Take(portrait.ws, u, recorded(portrait.cameras, count))
        _report(write_take(path, G, take, portrait.fps, _note(portrait)))


def transfer(options: Transfer) -> None:
    """Moves one person as another."""
    from dnnlib.video import add_sound
    from editing.codes import load_portrait
    from editing.motion import transferred
    from editing.render import Take, write_take
    from viz.trajectories import front, recorded

    G, target = _portrait(options, options.target)
    source = load_portrait(options.source)
    if source.network != target.network:
        raise UserError(
            f'{options.source} and {options.target} belong to different networks; use one for both'
        )
    neutral = target.neutral if options.relative else source.neutral
    u, count = transferred(source.u, source.neutral, neutral, options.strength), len(source.u)
    cameras = {'source': source.cameras, 'target': recorded(target.cameras, count)}
    cameras['front'] = front(count, G.config.focal)
    path = _folder(options) / f'{_stem(options.target)}-as-{_stem(options.source)}.mp4'
    _report(write_take(path, G, Take(target.ws, u, cameras[options.camera]), source.fps, _note(target)))
    if options.sound and not add_sound(path, options.sound, source.provenance['start_sec']):
        click.echo(f'{options.sound} has no sound')


def views(options: Views) -> None:
    """Shows a portrait from new cameras."""
    from editing.render import Take, write_mesh, write_take
    from viz import trajectories

    G, portrait = _portrait(options, options.portrait)
    count = options.frames or max(len(portrait.u), 60)
    focal, folder, stem = G.config.focal, _folder(options), _stem(options.portrait)
    if options.trajectory == 'front':
        cameras = trajectories.front(count, focal)
    else:
        cameras = trajectories.orbit(count, math.radians(options.orbit_yaw), focal)
    path = folder / f'{stem}-{options.trajectory}.mp4'
    take = Take(portrait.ws, trajectories.recorded(portrait.u, count), cameras)
    _report(write_take(path, G, take, portrait.fps, _note(portrait), depth=True))
    if options.shapes:
        path = folder / f'{stem}.{options.shapes}'
        write_mesh(path, G, portrait.ws, portrait.u[:1], options.shape_resolution)
        click.echo(path)


def score(options: Score) -> None:
    """Measures a portrait."""
    import json

    from dnnlib.util import atomic_write
    from editing.codes import load_portrait, own_network
    from editing.scores import measure

    G, _ = _network(options)
    portrait = load_portrait(options.portrait)
    scores = measure(G, own_network(G, portrait, options.portrait), portrait)
    for heading, rows in scores.items():
        for name, value in rows.items() if isinstance(rows, dict) else [('', rows)]:
            click.echo(
                f'{heading:>10} {name:24} {value if not isinstance(value, float) else round(value, 4)}'
            )
    path = _folder(options) / f'{_stem(options.portrait)}-score.json'
    with atomic_write(path, 'w') as file:
        json.dump(scores, file, indent=2)
    click.echo(path)


def _network(options: Common) -> tuple[RadianceGenerator, str]:
    """Opens the network, in full precision; returns also the SHA-256 of its file."""
    from dnnlib.util import file_sha256
    from editing.codes import require_3d
    from interop.convert import open_snapshot
    from torch_utils.misc import pick_device, set_float32_precision
    from training.networks.registry import load_generator

    set_float32_precision()
    G = load_generator(open_snapshot(options.network), pick_device(options.device))
    return require_3d(G, options.network), file_sha256(options.network)


def _portrait(options: Common, path: str) -> tuple[RadianceGenerator, Portrait]:
    """Opens a portrait and its own network."""
    from editing.codes import load_portrait, own_network

    portrait = load_portrait(path)
    return own_network(_network(options)[0], portrait, path), portrait


def _folder(options: Common) -> Path:
    options.outdir.mkdir(parents=True, exist_ok=True)
    return options.outdir


def _report(paths: list[Path]) -> None:
    for path in paths:
        click.echo(path)


def _stem(path: str) -> str:
    from editing.codes import SUFFIX

    return Path(path).name.removesuffix(SUFFIX)


def _note(portrait: Portrait) -> str:
    from editing.reporting import provenance_note

    return provenance_note(portrait.provenance)


def _command() -> str:
    """Returns the command line as it was given."""
    return shlex.join(['edit_videos.py', *sys.argv[1:]])


@click.group(context_settings=SETTINGS)
def main() -> None:
    """Finds people in a network, for an image or a video of them, and moves them.

    \b
    project      an image -> NAME.portrait.pt
    reconstruct  a video -> NAME.portrait.pt with the motion of every frame
    animate      sampled motion moves a portrait
    edit         sampled motion takes over in a reconstructed video
    transfer     the motion of one portrait moves another
    views        a portrait from new cameras, with depth and meshes
    score        figures of a portrait

    \b
    Do not use it to deceive or harm, nor on images of anybody without consent. Say of every
    result what it is: the files state it in their metadata.

    \b
    Example:
      python edit_videos.py project me.jpg --network snapshot.pkl --outdir out
    """


_SMALLER = 'use fewer --batch-frames or --frames, or another --device'
main.add_command(command(Project, project, _SMALLER, name='project'))
main.add_command(command(Reconstruct, reconstruct, _SMALLER, name='reconstruct'))
main.add_command(command(Animate, animate, _SMALLER, name='animate'))
main.add_command(command(Edit, edit, _SMALLER, name='edit'))
main.add_command(command(Transfer, transfer, _SMALLER, name='transfer'))
main.add_command(command(Views, views, _SMALLER, name='views'))
main.add_command(command(Score, score, _SMALLER, name='score'))

if __name__ == '__main__':
    main()
