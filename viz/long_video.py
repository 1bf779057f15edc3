"""Long videos in parts, so that memory does not grow with them and a killed run loses only one part."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dnnlib.video import join_videos
from training.networks.contract import VideoGenerator
from viz import images, rollout
from viz.clip_writer import Clip, ClipWriter
from viz.look import map_look

PART = 240  # frames of a part; a multiple of the frames rendered at a time


def time_mode(G: VideoGenerator, given: str | None, seconds: float | None) -> str:
    """Returns what time does after the training span: as given, or as fits a video of so many seconds."""
    return given or ('extend' if seconds and G.endless else 'pingpong')


def describe_long(G: VideoGenerator, given: str | None, seconds: float, fps: float) -> str:
    """Says what a long video of this network will show."""
    mode, sec = time_mode(G, given, seconds), G.config.span / fps
    if G.endless and mode == 'extend':
        return f'motion continues for {seconds:g} s without repeating'
    course = {
        'pingpong': f'is played forth and back, and repeats every {2 * sec:.2g} s',
        'cycle': f'starts again with a jump every {sec:.2g} s',
        'extend': f'is extrapolated: heads come to rest within about {8 * sec:.2g} s',
    }
    knows = 'this network can go on' if G.endless else 'this network knows motion along a line only'
    advice = '--time extend does' if G.endless else 'one that was trained with a spline continues'
    return f'{knows}: that of its training span ({sec:.2g} s) {course[mode]}; {advice}'


def part_of(clip: Clip, start: int, frames: int) -> Clip:
    """Returns the frames of a clip from `start` on, at most so many, as a clip named by `start`."""
    part = slice(start, start + frames)
    mapping = clip.map_cameras if len(clip.map_cameras) == 1 else clip.map_cameras[part]
    return dataclasses.replace(
        clip, name=f'{start:08d}', cameras=clip.cameras[part], map_cameras=mapping, times=clip.times[part]
    )


def write_long(writer: ClipWriter, clip: Clip, folder: Path, beside: Sequence[str] = ()) -> None:
    """Writes what `ClipWriter.videos` writes, in parts that are joined in the end.

    Args:
        writer: of mp4 files.
        clip: of any length; its look is no path through people.
        folder: keeps the parts until all are there; it must be of this clip and writer. Parts that a run
            before has finished stay, and the videos have the same bytes as without a break.
        beside: see `ClipWriter.videos`.
    """
    near_far = _depth_range(writer, clip) if 'depth' in beside else None
    inner = dataclasses.replace(writer, outdir=folder, report=lambda line: None, note='')
    parts = [part_of(clip, start, PART) for start in range(0, len(clip.times), PART)]
    kinds = ['', *(f'-{kind}' for kind in beside)]
    files = {kind: [folder / f'{part.name}{kind}{writer.suffix}' for part in parts] for kind in kinds}
    for i, part in enumerate(parts):
        if all(paths[i].exists() for paths in files.values()):
            writer.count(len(part.times))
        else:
            inner.videos(part, beside, near_far=near_far)
    for kind, paths in files.items():
        path = writer.outdir / f'{clip.name}{kind}{writer.suffix}'
        join_videos(paths, path, writer.note)
        writer.report(str(path))
    shutil.rmtree(folder)


def _depth_range(writer: ClipWriter, clip: Clip) -> tuple[float, float]:
    """Returns the depths that the first frames of a clip choose for its colours."""
    first = part_of(clip, 0, writer.render.frame_batch)
    ws = map_look(writer.G, first.codes, first.look, first.map_cameras, first.times)
    inputs = first.codes, ws, first.cameras, first.times, writer.render
    batch = next(rollout.render_batches(writer.G, *inputs))
    return images.depth_range(batch.depth, batch.opacity)


def facts_of(writer: ClipWriter, clip: Clip) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Returns what the parts of a clip depend on beside the network: plain data, and tensors by name."""
    render = writer.render.renderer
    plain = {
        'renderer': None if render is None else dataclasses.asdict(render),
        'device': rollout.device_of(writer.G).type,
        'fps': writer.fps,
        'crf': writer.crf,
        'upscale': writer.upscale,
        'strength': writer.render.strength,
        'look': dataclasses.asdict(clip.look),
    }
    tensors = {name: getattr(clip, name) for name in ('cameras', 'map_cameras', 'times')}
    return plain, {**clip.codes._asdict(), **tensors}
