"""Shows networks, portraits and data sets in a browser. `--help` shows examples."""

from __future__ import annotations

import dataclasses
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dnnlib.cli import Range, command

import click

from dnnlib.util import UserError, file_sha256

if TYPE_CHECKING:  # functions import what they need: --help and errors in options need no torch
    from collections.abc import Callable

    from editing.codes import Portrait
    from training.networks.contract import VideoGenerator
    from viz.web.people import Model, Person
    from viz.web.uploads import Watch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Shows networks, portraits and data sets in a browser: turn, play, change, save.

    At least one of --network, --run and --data is needed. Prints the address of the page; Ctrl-C ends.

    Examples:
      # the people of a network
      python viewer.py --network snapshot.pkl

      # people that edit_videos.py has found; each can move as the others
      python viewer.py --network snapshot.pkl --portrait me.portrait.pt --portrait you.portrait.pt

      # a run while it trains, and the cameras of its data
      python viewer.py --run runs/00000-demo-heads-gpus1-batch8-gamma2 --data heads.zip
    """

    # --- What
    # network snapshot, or a checkpoint of the released PV3D or EG3D
    network: Annotated[str, 'PKL'] | None = None
    # folder of a training run, instead of --network: shows its newest snapshot, and newer ones as they come
    run: Annotated[Path, 'DIR'] | None = None
    # NAME.portrait.pt of edit_videos.py, made with this --network; may be given several times
    portrait: Annotated[tuple[str, ...], 'FILE'] = ()
    # data set whose clips are shown with their cameras
    data: Annotated[str, 'ZIP|DIR'] | None = None

    # --- Server
    # address to listen at: by default only this machine reaches the page; 0.0.0.0 lets every one in
    host: str = '127.0.0.1'
    # the first free port from here on; 0 = any
    port: Annotated[int, Range(0, 65535)] = 8000
    # lets pages project images that they upload, which takes minutes of computing
    allow_upload: bool = False
    device: str = 'auto'  # where to compute: cpu, cuda, cuda:1, ...; auto = cuda if available


def run(options: Options) -> None:
    """Does what the command line asks for."""
    from torch_utils.misc import prepare_process
    from training.data.dataset import VideoDataset
    from viz.web.follow import Follower, newest_snapshot
    from viz.web.painter import Painter
    from viz.web.panels import Panels
    from viz.web.server import Viewer

    networks = [given for given in (options.network, options.run) if given]
    if len(networks) > 1 or not (networks or options.data):
        raise UserError('give one of --network FILE and --run DIR, or --data ZIP alone')
    if options.portrait and not options.network:
        raise UserError('--portrait needs --network FILE, the network that the portraits were made with')
    if options.allow_upload and not networks:
        raise UserError('--allow-upload needs --network or --run')
    prepare_process()
    data = VideoDataset.Config(path=options.data).build() if options.data else None
    path = newest_snapshot(options.run) if options.run else options.network
    painter = Painter(open_model(str(path), options)) if path else None
    upload = project if options.allow_upload else None
    panels = Panels(data=data, project=upload, count=lambda: len(viewer.pages))
    viewer = Viewer(painter, panels, options.host, options.port)
    follower = None
    if options.run:
        follower = Follower(options.run, path, lambda new: open_model(new, options), viewer)
    click.echo(f'{viewer.url}\nfrom another machine: {viewer.tunnel}')
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    if follower:
        follower.close()
    viewer.stop()


def open_model(path: str, options: Options) -> Model:
    """Opens a network and the people in it."""
    import torch

    from interop.convert import open_snapshot
    from torch_utils.misc import pick_device
    from training.networks.registry import load_generator
    from viz.notice import notice
    from viz.web import coverage
    from viz.web.people import Model

    snapshot = open_snapshot(path)
    G = load_generator(snapshot, pick_device(options.device))
    clips = [torch.as_tensor(clip, dtype=torch.float32) for clip in snapshot.meta.get('cameras') or []]
    return Model(
        G=G,
        path=path,
        device=options.device,
        coverage=coverage.covered(clips),
        fps=float(snapshot.meta.get('fps') or 25.0),
        note=notice(Path(path).name, file_sha256(path)),
        people=people(G, options.portrait),
    )


def people(G: VideoGenerator, paths: tuple[str, ...]) -> dict[str, Person]:
    """Opens portraits: each person moves as sampled, as recorded, or as the others were recorded."""
    from editing.codes import SUFFIX, load_portrait

    portraits = {path: load_portrait(path) for path in paths}
    names = {path: Path(path).name.removesuffix(SUFFIX) for path in paths}
    if len(set(names.values())) < len(paths):
        raise UserError(f'--portrait: two of the files have the same name: {", ".join(paths)}')
    videos = {path: portrait for path, portrait in portraits.items() if len(portrait.u) > 1}
    return {names[path]: person(G, portrait, path, videos) for path, portrait in portraits.items()}


def person(
    G: VideoGenerator, portrait: Portrait, path: str | None = None, videos: dict[str, Portrait] | None = None
) -> Person:
    """Makes a person of a portrait.

    Args:
        G: the network.
        portrait: its file's content.
        path: its file.
        videos: portraits by file whose motion the person may take over; its own is `recorded`.
    """
    from editing.codes import SUFFIX, MovedPortrait, PortraitGenerator, own_network, require_3d
    from editing.motion import transferred
    from viz.web.people import SAMPLED, Person

    own = own_network(require_3d(G, 'the network'), portrait, path or 'the portrait')
    motions, seconds, sources = {SAMPLED: PortraitGenerator(own, portrait)}, {}, {}
    for file, other in (videos or {}).items():
        name = 'recorded' if other is portrait else f'as {Path(file).name.removesuffix(SUFFIX)}'
        u = transferred(other.u, other.neutral, portrait.neutral)
        motions[name] = MovedPortrait(own, portrait, u)
        seconds[name], sources[name] = (len(u) - 1) / other.fps, file
    source, quality = portrait.provenance.get('source'), portrait.scores.get('PSNR')
    about = f'found for {source}' + (f', PSNR {quality:.2f} dB' if isinstance(quality, float) else '')
    facts = {'path': path, 'about': about, 'note': portrait.note}
    return Person(motions=motions, seconds=seconds, sources=sources, **facts)


def project(model: Model, content: bytes, watch: Watch, should_stop: Callable[[], bool]) -> Person:
    """Finds the person of an uploaded image; see viz.web.uploads.Project."""
    from editing.live import portrait_bytes, project_upload

    found = project_upload(model.G, content, model.path, watch, should_stop)
    return dataclasses.replace(person(model.G, found), content=lambda: portrait_bytes(found))


main = command(Options, run, 'use a smaller network or another --device')

if __name__ == '__main__':
    main()
