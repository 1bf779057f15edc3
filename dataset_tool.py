"""Makes, checks and shows data sets: clips of square images with one camera label per frame."""

import os
import shlex
import signal
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from dnnlib.cli import ARGUMENT, SETTINGS, OnlyWith, Range, command

import click

from dnnlib.scene import FOCAL
from dnnlib.util import UserError, atomic_write, usable_cores
from preprocessing.from_videos.options import Options as StageOptions

_TABLE_ROWS = 24  # clips that `check` lists before it continues with the bad ones
Zip = Annotated[str, 'X.zip']
Cores = Annotated[int, Range(1)]
Stage = Literal[
    'fetch', 'sources', 'shots', 'tracks', 'align', 'cameras', 'embeddings', 'verify', 'identities', 'pack'
]


@dataclass(frozen=True, kw_only=True)
class Synth:
    """Renders procedural talking heads with exact cameras, depth, normals and masks.

    Every clip has its own speech, blinks and camera path. The same options give the same zip; the same seed
    gives the same people, however many motions they have.

    Examples:
      python dataset_tool.py synth --dest data/heads.zip --people 50 --motions 4 --frames 32 --resolution 64
      python dataset_tool.py synth --dest data/faces.zip --people 8 --motions 24 --focal 7 --resolution 32
    """

    dest: Zip  # the zip to write
    people: Annotated[int, Range(1)] | None = None  # number of people [default: 50]
    # clips of each person, each with its own motion and camera path [default: 4]
    motions: Annotated[int, Range(1)] | None = None
    clips: Annotated[int, Range(1)] | None = None  # N is short for --people N --motions 1
    frames: Annotated[int, Range(2)] = 32  # frames per clip
    resolution: Annotated[int, Range(8, 2048)] = 64  # pixels of a side
    seed: Annotated[int, Range(0)] = 0  # another seed gives other people
    # focal length in image widths; at 7 the face fills the image
    focal: Annotated[float, Range(1.1, 17)] = FOCAL
    blink_rate: Annotated[float, Range(0.1, 5)] = 1.0  # factor on the number of blinks per second
    # factor on how far and fast the camera moves within a clip; 0 = it stands still
    camera_speed: Annotated[float, Range(0, 10)] = 1.0
    workers: Cores = field(default_factory=usable_cores)  # parallel processes [default: all cores]


def synth(options: Synth) -> None:
    """Renders a data set."""
    from heads.dataset import HeadSet, write_dataset

    o = options
    if o.clips and (o.people or o.motions):
        raise UserError('--clips N is short for --people N --motions 1; give either that or the two others')
    heads = HeadSet(
        people=o.clips or o.people or 50,
        motions=1 if o.clips else o.motions or 4,
        frames=o.frames,
        resolution=o.resolution,
        seed=o.seed,
        focal=o.focal,
        blink_rate=o.blink_rate,
        camera_speed=o.camera_speed,
    )
    write_dataset(o.dest, heads, workers=o.workers, progress=True)
    _report_written(o.dest)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Packs clips that have camera labels.

    Clips are square video files or folders of square images (in the order of their names, frame2 before
    frame10), anywhere below DIR. They are resized with an antialiased Lanczos filter.

    Layouts:
      plain     cameras.json is {"clip path relative to DIR": [one 25-number label per frame]}; clips without
                labels are named and skipped; the number of frames and of labels must agree
      released  the files of the released PV3D data: DIR/voxceleb.list, DIR/recrop_faces/*.mp4,
                DIR/smoothed_camera2world/*.json; the last camera stands in for missing ones

    Examples:
      python dataset_tool.py pack --source clips --cameras cameras.json --dest my.zip --resolution 512
      python dataset_tool.py pack --source vox --layout released --dest vox.zip --resolution 512 --format webp
    """

    source: Annotated[str, 'DIR']  # folder with videos or folders of images
    dest: Zip  # the zip to write
    resolution: Annotated[int, Range(8)]  # pixels of a side after resizing
    # labels of the plain layout [default: DIR/cameras.json]
    cameras: Annotated[str, 'FILE', OnlyWith('layout', 'plain')] | None = None
    # png keeps every bit; webp and jpg (quality 95) are several times smaller
    format: Literal['png', 'webp', 'jpg'] = 'png'
    layout: Literal['plain', 'released'] = 'plain'  # layout of DIR, see below
    max_frames: Annotated[int, Range(2)] | None = None  # keep only the first frames of a clip
    skip_bad: bool = False  # skip clips that cannot be packed, instead of stopping
    workers: Cores = field(default_factory=usable_cores)  # parallel processes [default: all cores]


def pack(options: Pack) -> None:
    """Packs clips."""
    from preprocessing.dataset_files import pack as packing

    o = options
    if o.layout == 'released':
        clips, left = packing.find_released(o.source)
        note = 'without a video or labels'
    else:
        clips, left = packing.find_plain(o.source, o.cameras or str(Path(o.source, 'cameras.json')))
        note = 'without labels'
    if left:
        click.echo(f'skipped, {len(left)} clips {note}: {packing.listing(left)}')
    look = packing.PackOptions(o.resolution, o.format, o.max_frames)
    bad, small = packing.pack(clips, o.dest, look, workers=o.workers, skip_bad=o.skip_bad)
    for line in bad:
        click.echo(f'skipped, {line}')
    if small:
        sizes = ' to '.join(f'{side}x{side}' for side in sorted({min(small), max(small)}))
        click.echo(
            f'warning: the images of {len(small)} clips were enlarged to {o.resolution}x{o.resolution}, '
            f'they are {sizes}; a smaller --resolution would lose nothing of them'
        )
    click.echo(f'{len(clips) - len(bad)} clips')
    _report_written(o.dest)


@dataclass(frozen=True, kw_only=True)
class FromVideos(StageOptions):
    """Makes a data set from raw videos: finds faces, crops them, estimates cameras, sorts people.

    The steps of the paper (appendix A.3). Each leaves its results in the work folder W: the same command
    given again continues where it was stopped, and after a change of an option makes what depends on it.

    Stages (--until, --only):
      fetch       downloads the videos of a list (only with --list)
      sources     finds videos; corrupted ones are named and skipped    W/sources.json
      shots       cuts                                                  W/shots/VIDEO.json
      tracks      468 landmarks of every face, followed over time       W/tracks/VIDEO.json, .npz
      align       crops that follow the head without jitter             W/align/CLIP/00000.png ...
      cameras     where the camera stood, per frame                     W/cameras/CLIP.json
      embeddings  what the faces look like to a recognition network     W/embeddings/CLIP.npz
      verify      discards clips in which the face changes              W/verify/CLIP.json
      identities  who is who; at most two clips of a person             W/identities.json
      pack        writes X.zip and checks it                            W/pack.json
    W/report.html shows what was found and what was rejected, and why.

    Lists of KIND:
      voxceleb     folder with the .txt files of VoxCeleb2
      celebvhq     celebvhq_info.json of CelebV-HQ
      talkinghead  train_video_tubes.txt of TalkingHead-1KH, or its file of video ids

    Examples:
      python dataset_tool.py from-videos --source videos --dest data/my.zip --resolution 512
      python dataset_tool.py from-videos --source videos --dest data/my.zip --until align
      python dataset_tool.py from-videos --source yt --dest hq.zip --list celebvhq info.json --download
    """

    # The other options stand in preprocessing/from_videos/options.py.

    # folder for what the stages find [default: X-work beside X]
    workdir: Annotated[str, 'W'] | None = None
    # a public clip list instead of all videos of DIR; see below
    list: Annotated[tuple[Literal['voxceleb', 'celebvhq', 'talkinghead'], str], 'KIND FILE'] | None = None
    arcface: Annotated[str, 'FILE'] | None = None  # weights of ArcFace, to recognise people [default: SFace]
    until: Annotated[Stage, 'STAGE'] | None = None  # stop after this stage
    only: Annotated[Stage, 'STAGE'] | None = None  # run only this stage; the earlier ones must have run
    workers: Cores = field(default_factory=usable_cores)  # parallel processes [default: all cores]


def from_videos(options: FromVideos) -> None:
    """Runs the stages."""
    from preprocessing.from_videos import pipeline

    if options.until and options.only:
        raise UserError('--only and --until exclude each other; give one of them')
    stem = options.dest.removesuffix('.zip')
    kind, path = options.list or (None, None)
    network = {'recognizer': 'arcface', 'recognizer_file': options.arcface} if options.arcface else {}
    given = {f.name: getattr(options, f.name) for f in fields(StageOptions)}
    given |= {'workdir': options.workdir or f'{stem}-work', 'list_kind': kind, 'list_path': path, **network}
    done = pipeline.run(
        StageOptions(**given), options.until or 'pack', options.only, options.workers, click.echo
    )
    if done == 'pack':
        _report_written(options.dest)
        shown = shlex.join([options.dest, '--dest', f'{stem}.png'])
        click.echo(f'look at it: python dataset_tool.py show {shown}')
    click.echo(f'report: {given["workdir"]}/report.html')


@dataclass(frozen=True, kw_only=True)
class FromImages:
    """Aligns the faces of images, for edit_videos.py and train.py --images: as from-videos, one by one.

    Writes DIR/NAME.png, DIR/cameras.json and DIR/dataset.json; images without a face that can be used are
    named and skipped. Of several faces the largest is used. Motion is learned from videos: from-videos.

    Example:
      python dataset_tool.py from-images --source photos --dest aligned --resolution 512
    """

    source: Annotated[Path, 'DIR']  # folder with images
    dest: Annotated[Path, 'DIR']  # folder to write
    resolution: Annotated[int, Range(32)] = 512  # pixels of a side of the crops
    # focal length of the network that sees them, image widths; 7 shows little more than the face
    focal: Annotated[float, Range(1.1, 17)] = FOCAL


def from_images(options: FromImages) -> None:
    """Aligns images."""
    from preprocessing.one_face import align_folder

    if not options.source.is_dir():
        raise UserError(f'{options.source} is not a folder; --source is the folder that holds the images')
    count = skipped = 0
    for name, text in align_folder(options.source, options.dest, options.resolution, options.focal):
        count, skipped = count + 1, skipped + text.startswith('skipped')
        if text:
            click.echo(f'{name}: {text}')
    click.echo(f'{count - skipped} of {count} images in {options.dest}')


@dataclass(frozen=True, kw_only=True)
class Check:
    """Decodes every image and examines every label of a data set.

    Labels must be 25 finite numbers with an orthonormal rotation (determinant +1, upright), a plausible focal
    length, a camera about 2.7 units from the origin, and a view that meets the box of the head; every image
    must have a label and every label an image. Single images (of from-images, for train.py --images) are
    checked one by one. Prints a table, and how many clips and camera paths people
    have, draws where the cameras stand, and ends with an error that names the bad clips if there are any.

    Example:
      python dataset_tool.py check data/my.zip
    """

    path: Annotated[str, ARGUMENT, 'X.zip']
    plot: Annotated[str, 'FILE'] | None = None  # image of the camera positions [default: X-cameras.png]
    workers: Cores = field(default_factory=usable_cores)  # parallel processes [default: all cores]


def check(options: Check) -> None:
    """Checks a data set."""
    from preprocessing.dataset_files import check, sheets
    from preprocessing.dataset_files.pack import listing
    from training.data.files import are_images

    path = options.path
    index, reports = check.check_dataset(path, options.workers)
    bad = [report.name or '(no folder)' for report in reports if report.problems]
    click.echo(check.format_table(reports, _TABLE_ROWS))
    single, size = are_images(index), f'{index.resolution}x{index.resolution}'
    what = 'images' if single else 'clips'
    frames = '' if single else f', {len(index.files):,} labelled frames'
    click.echo(f'{len(index.clips):,} {what}{frames}, {size}: {len(bad)} bad {what}')
    for line in check.people_lines(index):
        click.echo(line)
    plot = sheets.camera_plot(index, set(bad), Path(path).name)
    _save_image(plot, options.plot or _beside(path, '-cameras.png'))
    if bad:
        raise UserError(f'{path}: {len(bad)} of {len(reports)} {what} are bad: {listing(bad)}')
    use = ', as single images: for train.py --images and edit_videos.py, not for --data'
    click.echo(f'all good{use if single else ""}')


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draws a contact sheet: a row per clip, time to the right; single images fill the rows one by one.

    Example:
      python dataset_tool.py show data/my.zip --clips 12 --frames 10
    """

    path: Annotated[str, ARGUMENT, 'X.zip']
    dest: Annotated[str, 'FILE'] | None = None  # the image to write, .png or .jpg [default: X-sheet.png]
    clips: Annotated[int, Range(1)] = 8  # rows, spread over the data set
    frames: Annotated[int, Range(1)] = 8  # columns, spread over a clip
    size: Annotated[int, Range(8, 1024)] = 128  # pixels of a side of an image


def show(options: Show) -> None:
    """Draws a contact sheet."""
    from preprocessing.dataset_files import sheets
    from training.data.dataset import VideoDataset
    from training.data.files import are_images, read_index

    kind = 'single' if are_images(read_index(options.path)) else 'pair'
    data = VideoDataset.Config(path=options.path, frames=kind).build()
    sheet = sheets.contact_sheet(data, options.clips, options.frames, options.size)
    _save_image(sheet, options.dest or _beside(options.path, '-sheet.png'))


def _beside(path: str, ending: str) -> str:
    return str(Path(path).absolute().with_suffix('')) + ending


def _save_image(image: Any, dest: str) -> None:
    formats = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}
    suffix = Path(dest).suffix.lower()
    if suffix not in formats:
        raise UserError(f'{dest} must end in one of {", ".join(formats)}')
    with atomic_write(dest) as file:
        image.save(file, formats[suffix])
    _report_written(dest)


def _report_written(path: str) -> None:
    click.echo(f'written: {path} ({os.path.getsize(path) / 1e6:.1f} MB)')


@click.group(context_settings=SETTINGS)
def main() -> None:
    """Makes, checks and shows data sets: clips of square images with one camera label per frame.

    \b
    A data set is a zip (or the same files in a folder):
      000000/00000.png 000000/00001.png ...   frames of clip 000000, and so on
      dataset.json    {"format": "pv3d-dataset", "version": 1, "resolution": 64, "fps": 25.0,
                       "labels": [["000000/00000.png", [25 numbers]], ...]}
    \b
    A label is a 4x4 camera-to-world matrix (rows; x right, y down, z forward) and a 3x3 intrinsics
    matrix for images of size 1. World: y up, the face looks towards +z, cameras stand about 2.7
    units from the origin, the head fits into the box [-0.5, 0.5]^3.

    \b
    Examples:
      python dataset_tool.py synth --dest data/heads.zip --people 50 --motions 4 --resolution 64
      python dataset_tool.py from-videos --source videos --dest data/my.zip --resolution 512
      python dataset_tool.py pack --source clips --cameras cameras.json --dest data/my.zip --resolution 512
      python dataset_tool.py check data/my.zip
      python dataset_tool.py show data/my.zip --dest my.png
    """


_FEWER = 'use fewer --workers'
_NOT_OPTIONS = ('list_kind', 'list_path', 'recognizer', 'recognizer_file')
main.add_command(command(Synth, synth, _FEWER, name='synth'))
main.add_command(command(Pack, pack, _FEWER, name='pack'))
main.add_command(command(FromVideos, from_videos, _FEWER, _NOT_OPTIONS, name='from-videos'))
main.add_command(command(FromImages, from_images, 'use a smaller --resolution', name='from-images'))
main.add_command(command(Check, check, _FEWER, name='check'))
main.add_command(command(Show, show, 'show fewer --clips or --frames', name='show'))

if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # temporary files are removed on the way out
    main()
