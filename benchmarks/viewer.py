"""Images per second of the viewer: while a camera turns, and while a clip plays.

`python -m benchmarks.viewer --network assets/demo.pkl`. On the server side that is rendering, padding to the
window and encoding; CPU time per image is given beside the wall clock, because on a busy machine it alone
compares. `--browser` also counts what headless chromium (package playwright) gets, drawing in software.
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

from benchmarks import common
from interop.convert import open_snapshot
from torch_utils.misc import keep_freed_memory, pick_device, set_float32_precision
from training.networks.registry import load_generator
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
@click.option('--json', 'path', type=click.Path(), help='Write the figures to this file.')
@torch.no_grad()
def main(network: str, device: str, frames: int, browser: bool, path: str | None) -> None:
    """Measures and prints."""
    set_float32_precision()
    keep_freed_memory()
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
    common.write_report(path, figures)


if __name__ == '__main__':
    main()
