"""Finds people in a network, for an image or a video of them, and moves them. `--help` shows examples."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnlib.cli import SETTINGS, command

import click

from dnnlib.util import UserError, remove_temp_files
from editing.options import (
    Animate,
    Common,
    Edit,
    Project,
    Reconstruct,
    Score,
    Search,
    Transfer,
    Views,
)

if TYPE_CHECKING:  # functions import what they need: --help and errors in options need no torch
    from editing.codes import Portrait
    from editing.recipes import Recipe
    from metrics.detectors.vgg16 import Perceptual
    from training.networks.contract import RadianceGenerator


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
        perceptual=_perceptual(options),
    )
    find_and_write(G, source, job, click.echo)


def _recipe(options: Search, photo: bool, motion: dict[str, Any]) -> Recipe:
    """Returns the preset with what was given besides."""
    from editing.objective import Weights
    from editing.recipes import PRESETS

    o = options
    given = {name: getattr(o, name) for name in ('space', 'steps', 'layer_steps', 'tune_steps', 'tune_rate')}
    given |= {'hold': o.hold_views, 'mirror': o.mirror, 'refine_camera': o.refine_camera, **motion}
    background = o.background if o.background is not None else (0.3 if photo else 1.0)
    identity = o.identity if o.identity is not None else (0.1 if photo else 0.0)
    weights = Weights(background=background, identity=identity)
    known = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(PRESETS[o.preset], weights=weights, **known)
    if o.layer_steps and recipe.space == 'w+':
        raise UserError(
            '--layer-steps is for --space w: with w+ each layer has a code of its own from the start'
        )
    return recipe


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
        writer.videos(clip, [kind for kind in ('depth', 'normals') if getattr(options, kind)])


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
        if options.sound:  # beyond the frame the lips go their own way
            _add_sound(path, options.sound, portrait, (start + 1) / portrait.fps)


def transfer(options: Transfer) -> None:
    """Moves one person as another."""
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
    note = f'{_note(target)}, with the motion of {source.provenance.get("source")}'
    _report(write_take(path, G, Take(target.ws, u, cameras[options.camera]), source.fps, note))
    if options.sound:
        _add_sound(path, options.sound, source)


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
        write_mesh(path, G, portrait, options.shape_resolution, _note(portrait))
        click.echo(path)


def score(options: Score) -> None:
    """Measures a portrait."""
    import json

    from dnnlib.util import atomic_write
    from editing.codes import load_portrait, own_network
    from editing.inputs import open_views
    from editing.scores import measure, view_scores

    G, _ = _network(options)
    portrait = load_portrait(options.portrait)
    own, perceptual = own_network(G, portrait, options.portrait), _perceptual(options)
    scores = measure(G, own, portrait, perceptual)
    if options.truth:
        scores['truth'] = view_scores(
            own, portrait, open_views(options.truth, G.config.resolution, G.config.focal), perceptual
        )
    for heading, rows in scores.items():
        for name, value in rows.items() if isinstance(rows, dict) else [('', rows)]:
            click.echo(
                f'{heading:>10} {name:24} {value if not isinstance(value, float) else round(value, 4)}'
            )
    path = _folder(options) / f'{_stem(options.portrait)}-score.json'
    with atomic_write(path, 'w') as file:
        made = {'provenance': portrait.provenance, 'notice': _note(portrait)}
        json.dump(scores | made, file, indent=2)
    click.echo(path)


def _network(options: Common) -> tuple[RadianceGenerator, str]:
    """Opens the network, in full precision; returns also the SHA-256 of its file."""
    from dnnlib.util import file_sha256
    from editing.codes import require_3d
    from interop.convert import open_snapshot
    from torch_utils.misc import pick_device, prepare_process
    from training.networks.registry import load_generator

    prepare_process()
    G = load_generator(open_snapshot(options.network), pick_device(options.device))
    return require_3d(G, options.network), file_sha256(options.network)


def _portrait(options: Common, path: str) -> tuple[RadianceGenerator, Portrait]:
    """Opens a portrait and its own network."""
    from editing.codes import load_portrait, own_network

    portrait = load_portrait(path)
    return own_network(_network(options)[0], portrait, path), portrait


def _perceptual(options: Search | Score) -> Perceptual | None:
    """Opens the files that the user names for the perceptual distance."""
    from metrics.detectors.vgg16 import load_perceptual
    from torch_utils.misc import pick_device

    if options.vgg is None:
        return None
    return load_perceptual(options.vgg, options.lpips, pick_device(options.device))


def _add_sound(path: Path, video: Path, portrait: Portrait, length_sec: float | None = None) -> None:
    """Adds the sound of the piece of a video that a portrait was made of."""
    from dnnlib.video import add_sound

    if not add_sound(path, video, portrait.provenance['start_sec'], length_sec):
        click.echo(f'{video} has no sound')


def _folder(options: Common) -> Path:
    options.outdir.mkdir(parents=True, exist_ok=True)
    remove_temp_files(options.outdir)  # of a killed command
    return options.outdir


def _report(paths: list[Path]) -> None:
    for path in paths:
        click.echo(path)


def _stem(path: str) -> str:
    from editing.codes import SUFFIX

    return Path(path).name.removesuffix(SUFFIX)


def _note(portrait: Portrait) -> str:
    """Returns the comment in the metadata of a file: how its portrait was made, and the file itself."""
    return f'{portrait.note}, shown by {_command()}'


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
