"""Makes, checks and shows data sets: clips of square pictures with one camera label per frame."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from dnnlib.cli import FiniteRange, one_sentence

import click

from dnnlib.util import UserError, atomic_write, usable_cores

_TABLE_ROWS = 24  # clips that `check` lists before it goes on to the bad ones
_WORKERS = click.option(
    '--workers',
    type=click.IntRange(min=1),
    default=usable_cores,
    show_default='all cores',
    help='How many work side by side. The result does not depend on it.',
)


@click.group(context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 100})
def main() -> None:
    """Makes, checks and shows data sets: clips of square pictures with one camera label per frame.

    \b
    A data set is a zip (or the same files in a folder):
      000000/00000.png 000000/00001.png ...   frames of clip 000000, and so on
      dataset.json    {"format": "pv3d-dataset", "version": 1, "resolution": 64, "fps": 25.0,
                       "labels": [["000000/00000.png", [25 numbers]], ...]}
    \b
    A label is a 4x4 camera-to-world matrix (rows; x right, y down, z forward) and a 3x3 intrinsics
    matrix for pictures of size 1. World: y up, the face looks towards +z, cameras stand about 2.7
    units from the origin, the head fits into the box [-0.5, 0.5]^3.

    \b
    Examples:
      python dataset_tool.py synth --dest data/heads.zip --clips 200 --frames 32 --resolution 64
      python dataset_tool.py from-videos --source videos --dest data/my.zip --resolution 512
      python dataset_tool.py pack --source clips --cameras cameras.json --dest data/my.zip --resolution 512
      python dataset_tool.py check data/my.zip
      python dataset_tool.py show data/my.zip --dest my.png
    """


@main.command()
@click.option('--dest', required=True, metavar='X.zip', help='The zip to write.')
@click.option('--clips', type=click.IntRange(min=1), default=200, show_default=True, help='Number of clips.')
@click.option('--frames', type=click.IntRange(min=2), default=32, show_default=True, help='Frames per clip.')
@click.option(
    '--resolution', type=click.IntRange(min=8), default=64, show_default=True, help='Pixels of a side.'
)
@click.option(
    '--seed', type=click.IntRange(min=0), default=0, show_default=True, help='Other seeds, other people.'
)
@_WORKERS
def synth(dest: str, clips: int, frames: int, resolution: int, seed: int, workers: int) -> None:
    """Renders procedural talking heads with exact cameras, depth, normals and masks.

    Every clip has its own person, speech, blinks and camera path. The same seed gives the same zip.

    \b
    Example:
      python dataset_tool.py synth --dest data/heads.zip --clips 200 --frames 32 --resolution 64
    """
    with one_sentence('use fewer --workers'):
        from heads.dataset import (
            write_dataset,  # here: it brings torch, which --help need not wait for
        )

        write_dataset(dest, clips, frames, resolution, seed, workers=workers, progress=True)
    _say_written(dest)


@main.command()
@click.option('--source', required=True, metavar='DIR', help='Folder with videos or folders of pictures.')
@click.option('--cameras', metavar='FILE', help='Labels of the plain layout. [default: DIR/cameras.json]')
@click.option('--dest', required=True, metavar='X.zip', help='The zip to write.')
@click.option(
    '--resolution', required=True, type=click.IntRange(min=8), help='Pixels of a side after resizing.'
)
@click.option(
    '--format',
    type=click.Choice(['png', 'webp', 'jpg']),
    default='png',
    show_default=True,
    help='png keeps every bit; webp and jpg (quality 95) are several times smaller.',
)
@click.option(
    '--layout',
    type=click.Choice(['plain', 'released']),
    default='plain',
    show_default=True,
    help='How DIR is laid out; see above.',
)
@click.option('--max-frames', type=click.IntRange(min=2), help='Keep only the first frames of a clip.')
@click.option('--skip-bad', is_flag=True, help='Leave clips out that cannot be packed, instead of stopping.')
@_WORKERS
def pack(
    source: str,
    cameras: str | None,
    dest: str,
    resolution: int,
    format: str,
    layout: str,
    max_frames: int | None,
    skip_bad: bool,
    workers: int,
) -> None:
    """Packs clips that have camera labels.

    Clips are square video files or folders of square pictures (in the order of their names, frame2
    before frame10), anywhere below DIR. They are resized with an antialiased Lanczos filter.

    \b
    --layout plain: cameras.json is {"clip path relative to DIR": [one 25-number label per frame]};
      clips without labels are named and left out; the number of frames and of labels must agree.
    --layout released: the files of the released PV3D data: DIR/voxceleb.list, DIR/recrop_faces/*.mp4,
      DIR/smoothed_camera2world/*.json; the last camera stands in for missing ones.

    \b
    Examples:
      python dataset_tool.py pack --source clips --cameras cameras.json --dest my.zip --resolution 512
      python dataset_tool.py pack --source vox --layout released --dest vox.zip --resolution 512 --format webp
    """
    with one_sentence('use fewer --workers'):
        from preprocessing.dataset_files import pack

        if layout == 'released':
            if cameras is not None:
                raise UserError(
                    '--cameras belongs to the plain layout; the released one has its own label files'
                )
            clips, left = pack.find_released(source)
            note = 'without a video or labels'
        else:
            clips, left = pack.find_plain(source, cameras or str(Path(source, 'cameras.json')))
            note = 'without labels'
        if left:
            click.echo(f'left out, {len(left)} clips {note}: {pack.listing(left)}')
        options = pack.PackOptions(resolution, format, max_frames)
        bad, small = pack.pack(clips, dest, options, workers=workers, skip_bad=skip_bad)
    for line in bad:
        click.echo(f'left out, {line}')
    if small:
        sizes = ' to '.join(f'{side}x{side}' for side in sorted({min(small), max(small)}))
        click.echo(
            f'warning: the pictures of {len(small)} clips were enlarged to {resolution}x{resolution}, '
            f'they are {sizes}; a smaller --resolution would lose nothing of them'
        )
    click.echo(f'{len(clips) - len(bad)} clips')
    _say_written(dest)


@main.command('from-videos')
@click.option('--source', required=True, metavar='DIR', help='Folder with the videos, also those of a list.')
@click.option('--dest', required=True, metavar='X.zip', help='The zip to write.')
@click.option('--workdir', metavar='W', help='Folder for what the stages find. [default: X-work beside X]')
@click.option(
    '--resolution',
    type=click.IntRange(min=32),
    default=512,
    show_default=True,
    help='Pixels of a side of the crops.',
)
@click.option(
    '--list',
    'list_',
    nargs=2,
    type=(click.Choice(['voxceleb', 'celebvhq', 'talkinghead']), str),
    metavar='KIND FILE',
    help='A public clip list instead of all videos of DIR; see above.',
)
@click.option('--download', is_flag=True, help='Fetch listed videos that DIR lacks from YouTube.')
@click.option('--until', metavar='STAGE', help='Stop after this stage.')
@click.option('--only', metavar='STAGE', help='Run this stage alone; the earlier ones must have run.')
@click.option(
    '--min-frames', type=click.IntRange(min=2), default=16, show_default=True, help='The shortest clip.'
)
@click.option(
    '--face-size',
    type=FiniteRange(0, 1),
    default=0.25,
    show_default=True,
    help='A face smaller than this part of the largest in its shot is passed over.',
)
@click.option(
    '--sigma',
    type=FiniteRange(min=0),
    default=2.0,
    show_default=True,
    help='Gaussian smoothing of landmarks and cameras over time, in frames.',
)
@click.option('--deep3d', metavar='DIR', help='Cameras from Deep3DFaceRecon coefficients; see docs/data.md.')
@click.option('--arcface', metavar='FILE', help='Weights of ArcFace, to tell people apart. [default: SFace]')
@click.option(
    '--similarity',
    type=FiniteRange(-1, 1),
    default=0.5,
    show_default=True,
    help='A frame less similar than this to the others of its clip is noisy.',
)
@click.option(
    '--noisy', type=click.IntRange(min=0), default=2, show_default=True, help='Noisy frames a clip may have.'
)
@click.option(
    '--same-person',
    type=FiniteRange(-1, 1),
    default=0.5,
    show_default=True,
    help='Clips more similar than this are of one person.',
)
@click.option(
    '--per-person',
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help='Clips of a person at most.',
)
@click.option(
    '--format',
    type=click.Choice(['png', 'webp', 'jpg']),
    default='png',
    show_default=True,
    help='As in pack.',
)
@_WORKERS
def from_videos(
    list_: tuple[str, str] | None,
    arcface: str | None,
    until: str | None,
    only: str | None,
    workers: int,
    **rest: Any,
) -> None:
    """Makes a data set from raw videos: finds faces, crops them, estimates cameras, sorts people out.

    The steps of the paper (appendix A.3). Each leaves its results in the work folder W: the same command
    given again goes on where it was stopped, and after a change of an option makes what depends on it.

    \b
    Stages (--until, --only):
      fetch       brings the videos of a list (only with --list)
      sources     finds videos; broken ones are named and passed over   W/sources.json
      shots       cuts                                                  W/shots/VIDEO.json
      tracks      468 landmarks of every face, followed over time       W/tracks/VIDEO.json, .npz
      align       crops that follow the head without jitter             W/align/CLIP/00000.png ...
      cameras     where the camera stood, per frame                     W/cameras/CLIP.json
      embeddings  what the faces look like to a recognition network     W/embeddings/CLIP.npz
      verify      discards clips in which the face changes              W/verify/CLIP.json
      identities  who is who; at most two clips of a person             W/identities.json
      pack        writes X.zip and checks it                            W/pack.json
    W/report.html shows what was found and what was rejected, and why.

    \b
    Lists of KIND:
      voxceleb     folder with the .txt files of VoxCeleb2
      celebvhq     celebvhq_info.json of CelebV-HQ
      talkinghead  train_video_tubes.txt of TalkingHead-1KH, or its file of video ids

    \b
    Examples:
      python dataset_tool.py from-videos --source videos --dest data/my.zip --resolution 512
      python dataset_tool.py from-videos --source videos --dest data/my.zip --until align
      python dataset_tool.py from-videos --source yt --dest hq.zip --list celebvhq info.json --download
    """
    with one_sentence('use fewer --workers'):
        from preprocessing.from_videos import pipeline

        for stage in (until, only):
            if stage not in (None, *pipeline.STAGES):
                raise UserError(f'{stage} is no stage; the stages are {", ".join(pipeline.STAGES)}')
        if until and only:
            raise UserError('--only and --until exclude each other; give one of them')
        kind, path = list_ or (None, None)
        stem = rest['dest'].removesuffix('.zip')
        rest['workdir'] = rest['workdir'] or f'{stem}-work'
        network = ('arcface', arcface) if arcface else ('sface', None)
        options = pipeline.Options(
            **rest, list_kind=kind, list_path=path, recognizer=network[0], recognizer_file=network[1]
        )
        done = pipeline.run(options, until or pipeline.STAGES[-1], only, workers, click.echo)
    if done == 'pack':
        _say_written(options.dest)
        click.echo(f'look at it: python dataset_tool.py show {options.dest} --dest {stem}.png')
    click.echo(f'report: {options.workdir}/report.html')


@main.command()
@click.argument('path', metavar='X.zip')
@click.option(
    '--plot', metavar='FILE', help='Picture of the camera positions. [default: X-cameras.png beside X]'
)
@_WORKERS
def check(path: str, plot: str | None, workers: int) -> None:
    """Decodes every picture and examines every label of a data set.

    Labels must be 25 finite numbers with an orthonormal rotation (determinant +1, upright), a plausible
    focal length, a camera about 2.7 units from the origin, and a view that meets the box of the head;
    every picture must have a label and every label a picture. Prints a table, draws where the cameras
    stand, and ends with an error that names the bad clips if there are any.

    \b
    Example:
      python dataset_tool.py check data/my.zip
    """
    with one_sentence('use fewer --workers'):
        from preprocessing.dataset_files import check, sheets
        from preprocessing.dataset_files.pack import listing

        index, reports = check.check_dataset(path, workers)
        bad = [report.name or '(no folder)' for report in reports if report.problems]
        click.echo(check.format_table(reports, _TABLE_ROWS))
        size = f'{index.resolution}x{index.resolution}'
        click.echo(
            f'{len(index.clips):,} clips, {len(index.files):,} labelled frames, {size}: {len(bad)} bad clips'
        )
        plot = plot or str(Path(path).absolute().with_suffix('')) + '-cameras.png'
        _save_picture(sheets.camera_plot(index, set(bad), Path(path).name), plot)
        if bad:
            raise UserError(f'{path}: {len(bad)} of {len(reports)} clips are bad: {listing(bad)}')
    click.echo('all good')


@main.command()
@click.argument('path', metavar='X.zip')
@click.option('--dest', metavar='FILE', help='The picture to write. [default: X-sheet.png beside X]')
@click.option(
    '--clips', type=click.IntRange(min=1), default=8, show_default=True, help='Rows, spread over the set.'
)
@click.option(
    '--frames', type=click.IntRange(min=1), default=8, show_default=True, help='Columns, spread over a clip.'
)
@click.option(
    '--size',
    type=click.IntRange(8, 1024),
    default=128,
    show_default=True,
    help='Pixels of a side of a picture.',
)
def show(path: str, dest: str | None, clips: int, frames: int, size: int) -> None:
    """Draws a contact sheet: a row per clip, time to the right.

    \b
    Example:
      python dataset_tool.py show data/my.zip --clips 12 --frames 10
    """
    with one_sentence('show fewer --clips or --frames'):
        from preprocessing.dataset_files import sheets
        from training.data.dataset import VideoDataset

        sheet = sheets.contact_sheet(VideoDataset.Config(path=path).build(), clips, frames, size)
        _save_picture(sheet, dest or str(Path(path).absolute().with_suffix('')) + '-sheet.png')


def _save_picture(picture: Any, dest: str) -> None:
    with atomic_write(dest) as file:
        picture.save(file, 'JPEG' if dest.lower().endswith(('.jpg', '.jpeg')) else 'PNG')
    _say_written(dest)


def _say_written(path: str) -> None:
    click.echo(f'written: {path} ({os.path.getsize(path) / 1e6:.1f} MB)')


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # temporary files are removed on the way out
    main()
