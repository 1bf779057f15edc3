"""Images per second of the viewer: while a camera turns, and while a clip plays.

`python -m benchmarks.viewer --network assets/demo.pkl`. On the server side that is rendering, padding to the
window and encoding; CPU time per image is given beside the wall clock, because on a busy machine it alone
compares. `--browser` also counts what headless chromium (package playwright) gets, drawing in software.
`--count pv3d-voxceleb` adds what GPUs should reach with a preset: its frames run on fake tensors, and their
work is divided by what a card reaches (training/cards.py and training/estimate.py state the guesses in it);
encoding an image of noise is measured here, and nothing runs beside anything else.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import cv2
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import common
from interop.convert import open_snapshot
from torch_utils.misc import pick_device, prepare_process
from training.camera import LABEL_DIM
from training.cards import CARDS
from training.config import TrainConfig
from training.estimate import Meter, Work, counting_for, speed_of
from training.networks.contract import Codes
from training.networks.registry import load_generator
from training.presets import PRESETS
from viz.rollout import DEFAULT_OPTIONS
from viz.web.page import Page, fit
from viz.web.painter import Painter
from viz.web.panels import Panels
from viz.web.people import Model
from viz.web.server import Viewer
from viz.web.state import State

_ASPECT = 1.6  # of the window
_FLAGS = ('--no-sandbox', '--disable-dev-shm-usage', '--use-angle=swiftshader', '--enable-unsafe-swiftshader')


def states(frames: int, span: int) -> dict[str, list[State]]:
    """Lists what is drawn, by name."""
    angles = [20 * np.sin(2 * np.pi * i / frames) for i in range(frames)]
    lattice = 4 * (span - 1)
    clip = [State(seed=i // lattice, time=i % lattice / lattice) for i in range(frames)]
    return {'turning': [State(yaw=float(yaw)) for yaw in angles], 'playing': clip, 'playing again': clip}


def encode(image: np.ndarray) -> bytes:
    """Makes what is sent of an image: PNG or JPEG by OpenCV, as viser does."""
    canvas = cv2.cvtColor(fit(image, _ASPECT), cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png' if len(image) <= 256 else '.jpeg', canvas)[1].tobytes()


def frame_work(config: TrainConfig) -> dict[str, Work]:
    """Counts the work of a frame on a GPU: of known planes, and of new ones."""
    found = {'turning': Work(), 'playing': Work()}
    with FakeTensorMode(), counting_for(torch.device('cuda')):
        G = config.generator.build().eval()
        codes = Codes(torch.empty(1, G.z_dim), torch.empty(1, G.motion_dim))
        t, c = torch.zeros(1), torch.empty(1, LABEL_DIM)
        ws = G.condition(codes, c, t)
        planes = G.scene(codes, ws, t)
        with Meter(found['turning']):
            G.render(planes, ws, c, ray_chunk=DEFAULT_OPTIONS.ray_chunk)
        with Meter(found['playing']):
            G.render(G.scene(codes, ws, t), ws, c, ray_chunk=DEFAULT_OPTIONS.ray_chunk)
    return found


def counted(preset: str) -> dict[str, dict[str, float]]:
    """Returns images per second by name of a card: what it should reach, encoding included."""
    config = PRESETS[preset]('')
    size = config.generator.resolution
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    wall = time.process_time()
    for _ in range(10):
        encode(noise)
    encode_sec = (time.process_time() - wall) / 10
    works = frame_work(config)
    speeds = {name: speed_of(card, config) for name, card in CARDS.items()}
    return {
        name: {what: round(1 / (speed.seconds(work) + encode_sec), 1) for what, work in works.items()}
        for name, speed in speeds.items()
    }


def measure(painter: Painter, shown: list[State]) -> tuple[float, float]:
    """Returns images per second, and CPU milliseconds of an image."""
    encode(painter.paint(State(seed=99)))  # nothing that is measured is known, but all is loaded
    wall, cpu = time.perf_counter(), time.process_time()
    for state in shown:
        encode(painter.paint(state))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return len(shown) / wall, 1000 * cpu / len(shown)


@contextlib.contextmanager
def opened(painter: Painter) -> Iterator[tuple[Any, Page]]:
    """Opens the page in a browser; yields its tab and the page's other end."""
    from playwright.sync_api import sync_playwright

    viewer = Viewer(painter, Panels(), '127.0.0.1', 0)
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which('chromium'), args=_FLAGS)
        tab = browser.new_page(viewport={'width': 1120, 'height': 700})
        tab.goto(viewer.url)
        tab.get_by_text('samples', exact=True).wait_for()
        yield tab, next(iter(viewer.pages.values()))
        browser.close()
    viewer.stop()


def in_browser(painter: Painter, seconds: float) -> dict[str, float]:
    """Returns images per second that a browser was sent while one drags, and while a clip plays."""
    with opened(painter) as (tab, page):
        found = {}

        def count(name: str, act: Callable[[float], object]) -> None:
            time.sleep(1)
            start, frames = time.perf_counter(), page.speed.frames
            while (spent := time.perf_counter() - start) < seconds:
                act(spent)
            found[name] = (page.speed.frames - frames) / (time.perf_counter() - start)

        tab.mouse.move(400, 400)
        tab.mouse.down()
        count('turning', lambda sec: tab.mouse.move(400 + 30 * np.sin(3 * sec), 400))
        tab.mouse.up()
        page.player.play(True)
        count('playing', lambda sec: time.sleep(0.1))
        page.player.play(False)
    return found


@click.command(help=__doc__)
@click.option('--network', required=True, metavar='PKL', help='Network snapshot.')
@click.option('--device', default='auto', help='Where to compute.')
@click.option('--frames', default=60, type=click.IntRange(8), help='Images of each measurement.')
@click.option('--browser', is_flag=True, help='Also measure in headless chromium.')
@click.option('--count', type=click.Choice(list(PRESETS)), help='Count for GPUs, too.')
@click.option('--json', 'path', type=click.Path(), help='Write the figures to this file.')
@torch.no_grad()
def main(network: str, device: str, frames: int, browser: bool, count: str | None, path: str | None) -> None:
    """Measures and prints."""
    prepare_process()
    G = load_generator(open_snapshot(network), pick_device(device))
    figures = {'network': network, **common.machine(str(pick_device(device)))}
    painter = Painter(Model(G=G, path=network))
    for name, shown in states(frames, G.config.span).items():
        rate, cpu = measure(painter, shown)
        figures[name] = {'images/s': round(rate, 1), 'CPU ms': round(cpu, 1)}
        click.echo(f'{name:>14}: {rate:6.1f} images/s, {cpu:6.1f} ms of CPU an image')
    if browser:
        for name, rate in in_browser(painter, 8.0).items():
            figures[f'{name} in a browser'] = {'images/s': round(rate, 1)}
            click.echo(f'{name:>14}: {rate:6.1f} images/s in headless chromium')
    if count:
        figures[f'counted, {count}'] = cards = counted(count)
        for name, rates in cards.items():
            click.echo(f'{name:>14}: {rates} images/s of {count}, counted, not measured')
    common.write_report(path, figures)


if __name__ == '__main__':
    main()
