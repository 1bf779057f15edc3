"""Makes videos, contact sheets and meshes from a network snapshot. `--help` shows examples."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnlib.cli import FiniteRange, one_sentence, refuse_without_effect

import click
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dnnlib import video
from dnnlib.util import UserError, explain_os_error
from interop.convert import open_snapshot
from torch_utils.checkpoint import Snapshot
from torch_utils.misc import keep_freed_memory, pick_device, set_float32_precision
from training.camera import LABEL_DIM
from training.data.files import read_index
from training.networks.registry import load_generator
from viz import images, rollout, shapes, trajectories
from viz.clip_writer import SHEET_COLUMNS, SHEET_TILE, Clip, ClipWriter

TRAJECTORIES = ('front', 'orbit', 'dataset', 'still')
_PERIODS = {'front': 2, 'orbit': 4, 'still': 4}  # default length in times through the training span
_MAX_NUMBER = 2**32 - 1  # largest seed
_MAX_COUNT = 100_000  # seeds of one call
_GRID_SIDE = 2048  # pixels, largest side of the grid video
_GRID_BYTES = 1 << 30  # memory for the grid video; long ones get smaller tiles
# option that nothing else listens to -> option it belongs to, and the values of that
_BELONGS_TO = {
    'data': ('trajectory', ('dataset',)),
    'orbit_yaw': ('trajectory', ('orbit', 'still')),
    'time': ('trajectory', ('front', 'orbit', 'dataset')),
    'crf': ('video_format', ('mp4',)),
    **{f'shape_{name}': ('shapes', shapes.FORMATS) for name in ('resolution', 'frames', 'level', 'parts')},
}

EPILOG = """
\b
Examples:
  # sixteen people, frontal camera, one video each and a grid
  python gen_videos.py --network snapshot.pkl --seeds 0-15 --outdir out
\b
  # camera on an ellipse about the talking face, with depth and normals
  python gen_videos.py --network snapshot.pkl --seeds 3 --outdir out --trajectory orbit --depth --normals
\b
  # one person, four motions, camera path of a real clip
  python gen_videos.py --network snapshot.pkl --seeds 3 --motion-seeds 0-3 --outdir out --trajectory dataset
\b
  # coloured meshes of three moments
  python gen_videos.py --network snapshot.pkl --seeds 3 --outdir out --shapes glb --shape-frames 0,8,15

A seed gives the same person and motion whichever other seeds are asked for; motion seed S is the motion that
seed S has by itself.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    network: str
    seeds: list[int]
    motion_seeds: list[int]
    outdir: Path
    trajectory: str
    data: str | None
    orbit_yaw: float
    frames: int | None
    fps: float
    time: str
    psi: float
    map_camera: str
    depth: bool
    normals: bool
    sheet: bool
    grid: bool
    shapes: str | None
    shape_resolution: int
    shape_frames: list[int]
    shape_level: float | None
    shape_parts: str
    neural_resolution: int | None
    render_samples: int | None
    video_format: str
    crf: int
    upscale: int
    compile: bool
    device: str


def parse_numbers(text: str) -> list[int]:
    """Parses '0-3,8' into [0, 1, 2, 3, 8].

    Raises:
        ValueError: for anything else.
    """
    numbers: list[int] = []
    for part in text.split(','):
        first, dash, last = part.strip().partition('-')
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise ValueError(f'{text!r} is not a list of numbers; write for example 3 or 0-15 or 0,4,8-11')
        start, stop = int(first), int(last) if dash else int(first)
        if stop < start:
            raise ValueError(f'{text!r} has a range that runs backwards; write the smaller number first')
        if stop > _MAX_NUMBER or len(numbers) + stop - start >= _MAX_COUNT:
            raise ValueError(f'{text!r} asks for too much: at most {_MAX_COUNT} numbers up to {_MAX_NUMBER}')
        numbers.extend(range(start, stop + 1))
    return list(dict.fromkeys(numbers))


def parse_option(_: click.Context, __: click.Parameter, text: str | None) -> list[int]:
    """Lets click parse a list of numbers; an absent option is an empty list."""
    try:
        return parse_numbers(text) if text is not None else []
    except ValueError as err:
        raise click.BadParameter(str(err)) from err


option = functools.partial(click.option, show_default=True)
positive = click.IntRange(min=1)


@click.command(
    epilog=EPILOG, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 110}
)
@option(
    '--network',
    metavar='PKL',
    required=True,
    help='Network snapshot, or a checkpoint of the released PV3D or EG3D; nothing else is needed.',
)
@option(
    '--seeds', metavar='LIST', required=True, callback=parse_option, help='People, e.g. 0-15 or 0,4,8-11.'
)
@option(
    '--outdir', metavar='DIR', required=True, type=Path, help='Folder for the results; made when missing.'
)
@option(
    '--trajectory',
    type=click.Choice(TRAJECTORIES),
    default='front',
    help='front: fixed frontal camera. orbit: the camera goes round an ellipse while the face moves (yaw '
    '+-20, pitch -7 to +11 degrees). dataset: cameras of a real clip. still: orbit about a face frozen at '
    't = 0.',
)
@option(
    '--data', metavar='ZIP|DIR', help='Data set for --trajectory dataset  [default: cameras in the snapshot]'
)
@option('--orbit-yaw', metavar='DEG', type=FiniteRange(0, 89), default=20.0, help='Half width of the orbit.')
@option(
    '--motion-seeds',
    metavar='LIST',
    callback=parse_option,
    help="Gives each person each of these motions  [default: the person's own]",
)
@option(
    '--frames',
    type=positive,
    help='Frames of each video  [default: front 60, orbit and still 120 for a span of 16; dataset: the clip]',
)
@option('--fps', type=FiniteRange(0.1, 1000), default=25.0, help='Frames per second.')
@option(
    '--time',
    type=click.Choice(trajectories.TIME_MODES),
    default='pingpong',
    help='Time beyond the training span: forth and back, start again with a jump, or extrapolate.',
)
@option('--psi', type=FiniteRange(-10, 10), default=1.0, help='Truncation: 1 = none, 0 = the mean face.')
@option(
    '--map-camera',
    type=click.Choice(['auto', 'canonical', 'first', 'per-frame']),
    default='auto',
    help='Camera that the mapping network sees. first: frame 0 for the whole video (MapT). auto: first for '
    'real cameras, else canonical; per-frame for networks trained without MapT.',
)
@option('--depth', is_flag=True, help='Also write a video of the depth (near = yellow, far = violet).')
@option('--normals', is_flag=True, help='Also write a video of the surface normals (world axes).')
@option('--sheet/--no-sheet', default=True, help='Contact sheet of each clip: moments x three views.')
@option('--grid/--no-grid', default=True, help='One video with all clips, at most 2048 pixels wide.')
@option('--shapes', type=click.Choice(shapes.FORMATS), help='Also write coloured meshes in this format.')
@option('--shape-resolution', type=click.IntRange(8, 1024), default=128, help='Voxels per axis.')
@option(
    '--shape-frames', metavar='LIST', default='0', callback=parse_option, help='Frames to make meshes of.'
)
@option(
    '--shape-level',
    type=FiniteRange(0, min_open=True),
    help='Density of the surface  [default: 10, less for thin scenes]',
)
@option(
    '--shape-parts',
    type=click.Choice(shapes.PARTS),
    default='head',
    help='head: the connected part in the middle alone. all: with what floats about it.',
)
@option(
    '--neural-resolution',
    type=click.IntRange(2, 1024),
    help='Pixels of the volume rendering  [default: as trained]',
)
@option(
    '--render-samples',
    type=click.IntRange(4, 1024),
    help='Coarse and fine samples per ray  [default: as trained]',
)
@option('--video-format', type=click.Choice(['mp4', 'gif']), default='mp4', help='mp4 is H.264.')
@option('--crf', type=click.IntRange(0, 51), default=15, help='mp4 quality: 0 = best, 51 = smallest file.')
@option(
    '--upscale',
    type=click.IntRange(1, 32),
    default=1,
    help='Enlarges small pictures for viewing this many times, in the grid too.',
)
@option(
    '--compile',
    is_flag=True,
    help='torch.compile the networks first: takes minutes and gains little; for thousands of frames.',
)
@option('--device', default='auto', help='cpu, cuda, cuda:1, ...; auto = cuda when there is one.')
def main(**flags: Any) -> None:
    """Makes videos, contact sheets and meshes of talking heads from a network snapshot."""
    knobs = '--neural-resolution, --render-samples, --upscale or --shape-resolution'
    with one_sentence(f'lower {knobs}, or use another --device'):
        refuse_without_effect(click.get_current_context(), _BELONGS_TO)
        run(Options(**flags), click.echo)


def run(options: Options, say: Callable[[str], None]) -> None:
    """Does what the command line asks for; `say` gets one line for each file and message."""
    set_float32_precision()
    keep_freed_memory()
    snapshot = open_snapshot(options.network)
    G = load_generator(snapshot, pick_device(options.device))
    if options.compile:
        for part in G.compilable():
            part.compile()
    if G.renderer is None and (options.depth or options.normals or options.shapes):
        raise UserError(
            f'{options.network}: a network of kind {G.config.kind} has no 3D; '
            'leave --depth, --normals and --shapes out'
        )
    clips = _plan(G, snapshot, options)
    if options.shapes:
        _check_shape_frames(clips, options.shape_frames)
    _make_outdir(options.outdir)
    sheet_frames = SHEET_COLUMNS * len(trajectories.VIEW_YAWS_DEG) if options.sheet else 0
    with tqdm(total=sum(len(clip.times) + sheet_frames for clip in clips), unit='frame', disable=None) as bar:

        def report(line: str) -> None:
            bar.clear()
            say(line)

        writer = ClipWriter(
            G=G,
            outdir=options.outdir,
            say=report,
            count=bar.update,
            render=_render_options(G, options),
            suffix=f'.{options.video_format}',
            fps=options.fps,
            crf=options.crf,
            upscale=options.upscale,
        )
        tile = (
            _grid_tile(G.config.resolution * options.upscale, clips)
            if options.grid and len(clips) > 1
            else None
        )
        tiles = []
        for clip in clips:
            tiles.append(writer.videos(clip, options.depth, options.normals, tile))
            if options.sheet:
                writer.sheet(clip)
            if options.shapes:
                writer.meshes(
                    clip,
                    options.shapes,
                    options.shape_frames,
                    options.shape_resolution,
                    options.shape_level,
                    options.shape_parts,
                )
    if tile:
        path = options.outdir / f'grid.{options.video_format}'
        rows = (images.grid(np.stack(moment)) for moment in zip(*tiles, strict=False))
        video.write_video(path, rows, options.fps, options.crf)
        say(str(path))


def _make_outdir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError(f'--outdir cannot be made: {explain_os_error(err, folder)}') from err
    if not os.access(folder, os.W_OK):
        raise UserError(f'--outdir {folder} is not writable; choose another folder')


def _render_options(G: nn.Module, options: Options) -> rollout.RenderOptions:
    changes: dict[str, int] = {}
    if options.neural_resolution:
        changes['resolution'] = options.neural_resolution
    if options.render_samples:
        changes['depth_samples'] = changes['importance_samples'] = options.render_samples
    renderer = None if G.renderer is None else dataclasses.replace(G.renderer, **changes)
    return rollout.RenderOptions(renderer=renderer)


def _plan(G: nn.Module, snapshot: Snapshot, options: Options) -> list[Clip]:
    """Lists the clips to make: every person with every motion."""
    recorded = _recorded_cameras(snapshot, options.data) if options.trajectory == 'dataset' else []
    clips = []
    for index, seed in enumerate(options.seeds):
        cameras = _cameras(options, G.config.span, recorded[index % len(recorded)] if recorded else None)
        times = trajectories.frame_times(len(cameras), G.config.span, options.time)
        if options.trajectory == 'still':
            times = torch.zeros(len(cameras))
        for motion_seed in options.motion_seeds or [None]:
            codes = rollout.draw_codes(G, seed, motion_seed)
            mapping = _map_cameras(G, options, cameras)
            name = f'seed{seed:04d}' + (f'-motion{motion_seed:04d}' if motion_seed is not None else '')
            clips.append(
                Clip(
                    name=name, codes=codes, cameras=cameras, map_cameras=mapping, times=times, psi=options.psi
                )
            )
    return clips


def _check_shape_frames(clips: list[Clip], frames: list[int]) -> None:
    shortest = min(clips, key=lambda clip: len(clip.times))
    count = len(shortest.times)
    if max(frames) >= count:
        raise UserError(
            f'--shape-frames {max(frames)} is beyond {shortest.name}, whose {count} frames are 0 to '
            f'{count - 1}; name earlier ones or give more --frames'
        )


def _recorded_cameras(snapshot: Snapshot, data: str | None) -> list[Tensor]:
    """Returns the cameras [T, 25] of real clips, out of a data set or the snapshot."""
    if data:
        index = read_index(data)
        bounds = zip(index.clips, index.starts[:-1], index.starts[1:], strict=True)
        clips = [torch.from_numpy(index.cameras[a:b]) for name, a, b in bounds if name not in index.problems]
        if not clips:
            raise UserError(f'--data {data} has no usable clip; see dataset_tool.py check')
        return clips
    try:
        clips = [torch.as_tensor(clip, dtype=torch.float32) for clip in snapshot.meta.get('cameras') or []]
    except (TypeError, ValueError, RuntimeError):
        clips = []
    if not clips or any(clip.ndim != 2 or clip.shape[1] != LABEL_DIM or not len(clip) for clip in clips):
        raise UserError(
            f'{snapshot.path} holds no cameras of real clips, which --trajectory dataset needs; give --data'
        )
    return clips


def _cameras(options: Options, span: int, recorded: Tensor | None) -> Tensor:
    """Returns the render cameras [T, 25] of a clip; T follows from the trajectory unless it is given."""
    if recorded is not None:
        return trajectories.recorded(recorded, options.frames or len(recorded))
    frames = options.frames or _PERIODS[options.trajectory] * 2 * max(span - 1, 1)
    if options.trajectory == 'front':
        return trajectories.front(frames)
    return trajectories.orbit(frames, math.radians(options.orbit_yaw))


def _map_cameras(G: nn.Module, options: Options, cameras: Tensor) -> Tensor:
    """Returns the mapping cameras of a clip, [1, 25] or [T, 25]."""
    fixed = {'canonical': trajectories.front(1), 'first': cameras[:1], 'per-frame': cameras}
    if options.map_camera != 'auto':
        return fixed[options.map_camera]
    return G.mapping_cameras(cameras, fixed['first' if options.trajectory == 'dataset' else 'canonical'])


def _grid_tile(side: int, clips: list[Clip]) -> int:
    """Returns the side of a tile of the grid video: that of single videos, in bounds of size and memory."""
    wanted = min(max(side, SHEET_TILE), _GRID_SIDE // images.grid_shape(len(clips))[1])
    affordable = math.isqrt(_GRID_BYTES // (3 * sum(len(clip.times) for clip in clips)))
    return max(min(wanted, affordable) // 2 * 2, 2)


if __name__ == '__main__':
    main()
