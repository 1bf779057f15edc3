"""Makes videos, images, contact sheets and meshes from a network snapshot. `--help` shows examples."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dnnlib.cli import NotWith, Numbers, OnlyWith, Range, command

import click

from dnnlib.scene import Camera, parse_camera, parse_map_camera
from dnnlib.util import UserError, file_sha256, remove_temp_files

if TYPE_CHECKING:  # functions import what they need: --help and errors in options need no torch
    from torch import Tensor, nn

    from torch_utils.checkpoint import Snapshot
    from viz.clip_writer import Clip, ClipWriter
    from viz.look import Look

_PERIODS = {'front': 2, 'orbit': 4, 'still': 4}  # default length in times through the training span
_GRID_SIDE = 2048  # pixels, largest side of the grid video
_GRID_BYTES = 1 << 30  # memory for the grid video; long ones get smaller tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Makes videos, images, contact sheets and meshes of talking heads from a network snapshot.

    A seed gives the same person and motion whichever other seeds are asked for; motion seed S is the motion
    that seed S has by itself.

    Examples:
      # sixteen people, frontal camera, one video each and a grid
      python gen_videos.py --network snapshot.pkl --seeds 0-15 --outdir out

      # camera on an ellipse around the talking face, with depth and normals
      python gen_videos.py --network snapshot.pkl --seeds 3 --outdir out --trajectory orbit --depth --normals

      # one person, four motions, camera path of a real clip
      python gen_videos.py --network a.pkl --seeds 3 --motion-seeds 0-3 --outdir out --trajectory dataset

      # the person of a portrait that edit_videos.py has made, with four motions
      python gen_videos.py --network snapshot.pkl --portrait me.portrait.pt --seeds 0-3 --outdir out

      # one image: half of the way through the span, seen from 20 degrees beside and 5 above
      python gen_videos.py --network snapshot.pkl --seeds 3 --outdir out --image-at 0.5 --camera 20,5

      # fine layers of another person, as style mixing of StyleGAN; a loop through three people
      python gen_videos.py --network snapshot.pkl --seeds 3 --outdir out --mix-seed 8 --mix-layers 7-13
      python gen_videos.py --network snapshot.pkl --interpolate 1,5,9 --outdir out --trajectory orbit

      # coloured meshes of three frames
      python gen_videos.py --network snapshot.pkl --seeds 3 --outdir out --shapes glb --shape-frames 0,8,15
    """

    # --- What
    # network snapshot, or a checkpoint of the released PV3D or EG3D; nothing else is needed
    network: Annotated[str, 'PKL']
    # people, e.g. 0-15 or 0,4,8-11; either this or --interpolate or --motion-of is needed
    seeds: Annotated[Numbers, NotWith('interpolate', 'motion_of')] | None = None
    outdir: Annotated[Path, 'DIR']  # folder for the results; made when missing
    # gives each person each of these motions [default: the person's own]
    motion_seeds: Annotated[Numbers, NotWith('motion_of')] | None = None
    # NAME.portrait.pt of edit_videos.py: shows that person; seeds then are those of motions alone
    portrait: Annotated[str, 'FILE'] | None = None
    # NAME.portrait.pt of a video, whose motion the portrait gets in place of a sampled one: with the same
    # file as recorded, with another one transferred. --image-at 1 is its last frame
    motion_of: Annotated[str, 'FILE', OnlyWith('portrait')] | None = None
    # truncation: 1 = none, 0 = the mean face
    psi: Annotated[float, Range(-10, 10), NotWith('portrait')] = 1.0
    # number of layers that --psi truncates, coarse ones first [default: all]
    psi_cutoff: Annotated[int, Range(0), NotWith('portrait'), NotWith('psi', values=(1.0,))] | None = None
    # mixes each person with that of this seed: in W, after truncation; the motion stays that of the first
    mix_seed: Annotated[int, Range(0, 2**32 - 1), NotWith('portrait', 'interpolate')] | None = None
    # layers that the second person enters, 0 = coarsest, e.g. 0-6 for head and hair, the last for colours;
    # style mixing of StyleGAN and EG3D [default: all]
    mix_layers: Annotated[Numbers, OnlyWith('mix_seed')] | None = None
    # fraction of the second person there [default: 0.5, with --mix-layers 1]
    mix_weight: Annotated[float, Range(0, 1), OnlyWith('mix_seed')] | None = None
    # one video of a smooth loop through these people in W, with the motion of the first; --frames is the
    # length of the whole, by default the usual one for each person
    interpolate: Annotated[Numbers, NotWith('portrait')] | None = None
    # factor on motion, counted from t = 0, where the face then stays: 0 = a frozen face
    motion_strength: Annotated[float, Range(-10, 10)] = 1.0
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available

    # --- Camera and time
    # front: fixed frontal camera. orbit: the camera moves on an ellipse while the face moves (yaw +-20, pitch
    # -7 to +11 degrees). dataset: cameras of a real clip. still: orbit around a face frozen at t = 0
    trajectory: Literal['front', 'orbit', 'dataset', 'still'] = 'front'
    # fixed camera in place of the frontal one: angles to the side and upwards and field of view, degrees, by
    # default that of training; or YAW,PITCH,FOV,RADIUS,X,Y,Z: also the distance from the origin and the point
    # that it looks at, in scene units
    camera: Annotated[Camera, parse_camera, 'YAW,PITCH[,FOV]', OnlyWith('trajectory', 'front')] | None = None
    # camera that moves smoothly through the keyframes of this file, for as long as they take: docs/videos.md
    camera_path: (
        Annotated[str, 'JSON', OnlyWith('trajectory', 'front'), NotWith('camera', 'frames', 'image_at')]
        | None
    ) = None
    # data set with the cameras of real clips [default: cameras in the snapshot]
    data: Annotated[str, 'ZIP|DIR', OnlyWith('trajectory', 'dataset')] | None = None
    # half width of the orbit, degrees
    orbit_yaw: Annotated[float, Range(0, 89), OnlyWith('trajectory', 'orbit', 'still')] = 20.0
    # frames of each video [default: front 60, orbit and still 120 for a span of 16; dataset: the clip]
    frames: Annotated[int, Range(1), NotWith('image_at')] | None = None
    # length of each video in place of --frames, in parts: the same command continues after a break. No grid
    seconds: (
        Annotated[
            float,
            Range(above=0),
            OnlyWith('video_format', 'mp4'),
            NotWith('frames', 'image_at', 'interpolate', 'camera_path', 'motion_of'),
        ]
        | None
    ) = None
    fps: Annotated[float, Range(0.1, 1000), NotWith('image_at')] = 25.0  # frames per second
    # time beyond the training span: forth and back, start again with a jump, or go on (networks trained with
    # waves, spline or codes do so as in training, others come to rest) [default: pingpong; with --seconds
    # extend where the network goes on]
    time: (
        Annotated[
            Literal['pingpong', 'cycle', 'extend'],
            OnlyWith('trajectory', 'front', 'orbit', 'dataset'),
            NotWith('image_at'),
        ]
        | None
    ) = None
    # writes one image (PNG) of each person in place of a video: at this time, 0 to 1 is the training span
    image_at: (
        Annotated[float, Range(0, 1000), 'T', OnlyWith('trajectory', 'front'), NotWith('interpolate')] | None
    ) = None
    # camera that the mapping network sees: YAW,PITCH[,FOV] or a name. canonical: frontal. first: frame 0 for
    # the whole video (MapT). per-frame: as rendered. auto: first for real cameras, else canonical; per-frame
    # for networks trained without MapT
    map_camera: Annotated[Camera | str, parse_map_camera, 'NAME|CAMERA'] = 'auto'

    # --- Output
    depth: bool = False  # also write a video of the depth (near = yellow, far = violet)
    normals: bool = False  # also write a video of the surface normals (world axes)
    raw: bool = False  # also write a video of the volume rendering, before super-resolution
    opacity: bool = False  # also write a video of the opacity (white = rays end)
    # write a contact sheet of each clip: times x three views; not with --image-at or --interpolate
    sheet: Annotated[bool, NotWith('image_at', 'interpolate')] = True
    grid: bool = True  # write one video or image with all clips, at most 2048 pixels wide
    # format of videos: mp4 is H.264, png a folder of numbered frames without any loss
    video_format: Annotated[Literal['mp4', 'gif', 'png'], NotWith('image_at')] = 'mp4'
    # quality: 0 = best, 51 = smallest file
    crf: Annotated[int, Range(0, 51), OnlyWith('video_format', 'mp4'), NotWith('image_at')] = 15
    upscale: Annotated[int, Range(1, 32)] = 1  # enlarges small images this many times, in the grid too

    # --- Meshes
    shapes: Literal['ply', 'obj', 'glb'] | None = None  # also write coloured meshes in this format
    shape_resolution: Annotated[int, Range(8, 1024), OnlyWith('shapes')] = 128  # voxels per axis
    shape_frames: Annotated[Numbers, OnlyWith('shapes')] = (0,)  # frames to make meshes of [default: 0]
    # density of the surface [default: 10, less for thin scenes]
    shape_level: Annotated[float, Range(above=0), OnlyWith('shapes')] | None = None
    # head: only the connected part in the middle. all: with what floats around it
    shape_parts: Annotated[Literal['head', 'all'], OnlyWith('shapes')] = 'head'

    # --- Rendering
    # pixels of a side of the volume rendering [default: as trained]
    neural_resolution: Annotated[int, Range(2, 1024)] | None = None
    # coarse and fine samples per ray [default: as trained]
    render_samples: Annotated[int, Range(4, 1024)] | None = None
    compile: bool = False  # use torch.compile: takes minutes, for thousands of frames


def run(options: Options) -> None:
    """Does what the command line asks for."""
    from tqdm import tqdm

    from dnnlib.progress import progress
    from interop.convert import open_snapshot
    from torch_utils.misc import pick_device, prepare_process
    from training.networks.registry import load_generator
    from viz.clip_writer import SHEET_COLUMNS, ClipWriter
    from viz.notice import notice
    from viz.rollout import RenderOptions
    from viz.trajectories import VIEW_NAMES
    from viz.view import sampling

    if not (options.seeds or options.interpolate or options.motion_of):
        raise UserError('give people: --seeds LIST, or --interpolate LIST for a loop through them')

    prepare_process()
    snapshot, digest = open_snapshot(options.network), file_sha256(options.network)
    G = load_generator(snapshot, pick_device(options.device))
    if options.portrait:
        from editing.codes import open_portrait

        G = open_portrait(G, options.portrait, motion_of=options.motion_of)
    if options.compile:
        for part in G.compilable():
            part.compile()
    if G.renderer is None and (_beside(options) or options.shapes or options.motion_strength != 1):
        raise UserError(
            f'{options.network}: a network of kind {G.config.kind} has no 3D; '
            'leave --depth, --normals, --raw, --opacity, --shapes and --motion-strength out'
        )
    options = _in_frames(G, options)
    clips = plan(G, snapshot, options)
    options.outdir.mkdir(parents=True, exist_ok=True)
    remove_temp_files(options.outdir)  # of a killed command
    renderer = sampling(G, options.neural_resolution, options.render_samples)
    sheet_frames = min(SHEET_COLUMNS, G.config.span) * len(VIEW_NAMES) if _has_sheet(options) else 0
    beside = sheet_frames + (len(options.shape_frames) if options.shapes else 0)
    total = sum(len(clip.times) + beside for clip in clips)
    with progress(total, 'rendering', 'frame') as count:
        writer = ClipWriter(
            G=G,
            outdir=options.outdir,
            report=tqdm.write,  # which leaves the bar alone
            count=count,
            render=RenderOptions(renderer=renderer, strength=options.motion_strength),
            suffix=_suffix(options),
            fps=options.fps,
            crf=options.crf,
            upscale=options.upscale,
            note=G.note if options.portrait else notice(Path(options.network).name, digest),
        )
        meshes = write(writer, clips, options)
    if options.shapes and not meshes:
        raise UserError('no mesh was made; give another --shape-level or other --shape-frames')


def _in_frames(G: nn.Module, options: Options) -> Options:
    """Returns options with --frames in place of --seconds; says what a long video will show."""
    from viz.long_video import describe_long

    if not options.seconds:
        return options
    click.echo(describe_long(G, options.time, options.seconds, options.fps))
    return dataclasses.replace(options, frames=max(1, round(options.seconds * options.fps)))


def _beside(options: Options) -> list[str]:
    """Returns what is written beside the image, names of viz.images.KINDS."""
    return [kind for kind in ('raw', 'depth', 'normals', 'opacity') if getattr(options, kind)]


def _has_sheet(options: Options) -> bool:
    return options.sheet and options.image_at is None and not options.interpolate


def _suffix(options: Options) -> str:
    """Returns the ending of videos; a folder of frames has none."""
    if options.image_at is not None:
        return '.png'
    return '' if options.video_format == 'png' else f'.{options.video_format}'


def _look(options: Options) -> Look:
    """Returns what is done with the appearance codes."""
    from viz.look import Look

    usual = 0.5 if options.mix_layers is None else 1.0
    return Look(
        psi=options.psi,
        cutoff=options.psi_cutoff,
        mix_seed=options.mix_seed,
        mix_layers=options.mix_layers,
        mix_weight=usual if options.mix_weight is None else options.mix_weight,
        path_seeds=options.interpolate or (),
    )


def plan(G: nn.Module, snapshot: Snapshot, options: Options) -> list[Clip]:
    """Lists the clips: every person with every motion."""
    import torch

    from viz import rollout, trajectories
    from viz.clip_writer import Clip
    from viz.long_video import time_mode
    from viz.look import map_look

    look, clips = _look(options), []
    people = options.seeds or (options.interpolate or (0,))[:1]  # a loop has the motion of its first person
    for seed, cameras in zip(people, _cameras(G, snapshot, options, len(people)), strict=True):
        mode = time_mode(G, options.time, options.seconds)
        times = trajectories.frame_times(len(cameras), G.config.span, mode)
        if options.image_at is not None or options.trajectory == 'still':
            times = torch.full((len(cameras),), options.image_at or 0.0)
        real = options.trajectory == 'dataset'
        facts = {
            'cameras': cameras,
            'map_cameras': trajectories.mapping_cameras(G, options.map_camera, cameras, real),
            'times': times,
            'look': look,
        }
        stem = _stem(options, seed)
        for motion_seed in options.motion_seeds or (None,):
            codes = rollout.draw_codes(G, seed, motion_seed)
            name = stem + (f'-motion{motion_seed:04d}' if motion_seed is not None else '')
            clips.append(Clip(name=name, codes=codes, **facts))
    map_look(
        G, clips[0].codes, look, clips[0].map_cameras[:1], clips[0].times[:1]
    )  # layers that are not there
    shortest = min(clips, key=lambda clip: len(clip.times))
    frames, last = len(shortest.times), max(options.shape_frames)
    if options.shapes and last >= frames:
        raise UserError(
            f'--shape-frames {last} is beyond {shortest.name}, whose {frames} frames are 0 to {frames - 1}; '
            'name earlier ones or give more --frames'
        )
    return clips


def _stem(options: Options, seed: int) -> str:
    """Returns the name of a person's files."""
    if options.motion_of:
        person, source = (Path(path).name.partition('.')[0] for path in (options.portrait, options.motion_of))
        return f'{person}-as-{source}'
    return 'seed' + '-'.join(f'{s:04d}' for s in options.interpolate or (seed,))


def _cameras(G: nn.Module, snapshot: Snapshot, options: Options, people: int) -> list[Tensor]:
    """Returns the cameras [T, 25] for each person."""
    from viz import camera_path, trajectories

    span, focal, path = G.config.span, G.config.focal, options.trajectory
    if path == 'dataset':
        recorded = trajectories.recorded_cameras(snapshot, options.data)
        real = [recorded[i % len(recorded)] for i in range(people)]
        return [trajectories.recorded(labels, options.frames or len(labels)) for labels in real]
    if options.camera_path:
        keyframes = camera_path.load_path(options.camera_path)
        return [trajectories.placed(keyframes.cameras(options.fps, focal), focal)] * people
    usual = _PERIODS[path] * 2 * max(span - 1, 1) * len(options.interpolate or (0,))
    usual = span if options.motion_of else usual
    count = 1 if options.image_at is not None else options.frames or usual
    if options.camera is not None:
        cameras = trajectories.placed([options.camera], focal).expand(count, -1)
    elif path == 'front':
        cameras = trajectories.front(count, focal)
    else:
        cameras = trajectories.orbit(count, math.radians(options.orbit_yaw), focal)
    return [cameras] * people


def write(writer: ClipWriter, clips: list[Clip], options: Options) -> int:
    """Writes all files; returns the number of meshes."""
    import numpy as np

    from viz import images
    from viz.clip_writer import SHEET_TILE
    from viz.long_video import write_long

    tile = None
    if options.grid and len(clips) > 1 and not options.seconds:  # as large as the videos, within limits
        side = max(writer.G.config.resolution * options.upscale, SHEET_TILE)
        affordable = math.isqrt(_GRID_BYTES // (3 * sum(len(clip.times) for clip in clips)))
        tile = max(min(side, _GRID_SIDE // images.grid_shape(len(clips))[1], affordable) // 2 * 2, 2)
    tiles, meshes, seconds = [], 0, 0.0
    for clip in clips:
        start = time.perf_counter()
        if options.seconds:
            write_long(writer, clip, parts_folder(writer, clip), _beside(options))
        else:
            tiles.append(writer.videos(clip, _beside(options), tile))
        seconds += time.perf_counter() - start
        if _has_sheet(options):
            writer.sheet(clip)
        if options.shapes:
            look = (options.shape_resolution, options.shape_level, options.shape_parts)
            meshes += writer.meshes(clip, options.shapes, options.shape_frames, *look)
    if tile:
        with writer.open(path := options.outdir / f'grid{writer.suffix}') as append:
            for frames in zip(*tiles, strict=False):
                append(images.grid(np.stack(frames)))
        writer.report(str(path))
    frames = sum(len(clip.times) for clip in clips)
    writer.report(f'{frames / seconds:.1f} frames/s: {frames} frames rendered and encoded in {seconds:.1f} s')
    return meshes


def parts_folder(writer: ClipWriter, clip: Clip) -> Path:
    """Returns the folder of the parts of a long video, which states what they are parts of."""
    from metrics.records.digests import claim_folder, network_digest, tensors_digest
    from viz.long_video import facts_of

    folder, (facts, tensors) = writer.outdir / f'{clip.name}-parts', facts_of(writer, clip)
    facts |= {'network': network_digest(writer.G), 'clip': tensors_digest(tensors.items())}
    claim_folder(folder, 'parts.json', facts)
    return folder


_SMALLER = 'lower --neural-resolution, --render-samples, --upscale or --shape-resolution'
main = command(Options, run, f'{_SMALLER}, or use another --device')

if __name__ == '__main__':
    main()
