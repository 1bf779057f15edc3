"""A real browser, without a window, and what a person does with the page of the viewer."""

import contextlib
import io
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

NEEDED = 'PV3D_NEEDS_BROWSER'  # in the environment: a test without its browser fails
WINDOW = {'width': 720, 'height': 360}  # drawn in software: pixels cost
SEEN = {'x': 185, 'y': 30, 'width': 190, 'height': 320}  # part of the image that nothing covers
# root has no sandbox, /dev/shm may be small, and there is no GPU
FLAGS = '--no-sandbox --disable-dev-shm-usage --use-angle=swiftshader --enable-unsafe-swiftshader'
LIMIT_SEC = 120
UNSEEN = '.mantine-Notifications-root { opacity: 0 }'  # sentences come and go before the image
# the page draws all the time, as often as it may: that leaves nothing to the others on a busy machine
CALM = 'window.requestAnimationFrame = act => setTimeout(() => act(performance.now()), 100)'


@contextlib.contextmanager
def open_browser():
    """Starts Debian's chromium; skips the test, or fails it where NEEDED is set, if there is none."""
    program = shutil.which('chromium') or shutil.which('google-chrome')
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        (pytest.fail if os.environ.get(NEEDED) else pytest.skip)('needs chromium and playwright')
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


def until(condition, seconds=LIMIT_SEC):
    """Waits until a condition holds, and returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f'nothing happened: {value!r}'
        time.sleep(0.05)
    return value


def persist(act, condition):
    """Acts until a condition holds: on a busy machine the page may redraw a field while it is typed into."""
    for _ in range(4):
        act()
        with contextlib.suppress(AssertionError):
            return until(condition, LIMIT_SEC / 4)
    raise AssertionError('nothing happened')


class Screen:
    """The page in a browser; `problems` are errors of its console, and requests that left the machine."""

    def __init__(self, browser, url):
        self.tab = browser.new_page(viewport=WINDOW)
        self.tab.set_default_timeout(1000 * LIMIT_SEC)
        self.tab.add_init_script(CALM)
        self.problems = []
        self.tab.on('console', lambda m: m.type == 'error' and self.problems.append(m.text))
        self.tab.on('pageerror', lambda error: self.problems.append(str(error)))
        local = (url, f'blob:{url}', 'data:', url.replace('http', 'ws'))
        self.tab.on('request', lambda r: r.url.startswith(local) or self.problems.append(r.url))
        self.tab.goto(f'{url}/?fixedDpr=1')  # else viser draws fewer pixels when the machine is busy
        self.tab.add_style_tag(content=UNSEEN)

    def look(self):
        """Returns what is seen now."""
        shot = self.tab.screenshot(clip=SEEN)
        return np.asarray(Image.open(io.BytesIO(shot)).convert('RGB'))

    def still(self, seconds=0.2):
        """Waits until nothing has moved for so long, and returns what is seen."""
        last = self.look()
        while True:
            time.sleep(seconds)
            now = self.look()
            if np.array_equal(now, last):
                return now
            last = now

    def other(self, before):
        """Waits until something else than before is seen, and nothing moves."""
        until(lambda: not np.array_equal(self.look(), before))
        return self.still()

    def again(self, before):
        """Waits until exactly the same as before is seen."""
        until(lambda: np.array_equal(self.look(), before))

    def label(self, text):
        return self.tab.locator(f'label:text-is("{text}")')

    def control(self, text):
        """Returns the element that belongs to a label."""
        return self.tab.locator(f'[id="{self.label(text).get_attribute("for")}"]')

    def number(self, text):
        """Returns the input of a number, or that beside a slider."""
        row = self.label(text).locator('xpath=ancestor::*[.//input[@type="text"]][1]')
        return row.locator('input[type=text]')

    def value(self, text):
        """Returns the number beside a slider."""
        return float(self.number(text).input_value())

    def type(self, text, value):
        """Types a value into a field or beside a slider."""
        field = self.number(text)
        field.fill(str(value))
        field.press('Enter')
        field.blur()

    def choose(self, text, option):
        """Chooses from a list."""
        self.control(text).click()
        self.tab.get_by_role('option', name=option, exact=True).locator('visible=true').click()

    def tick(self, text, on):
        """Sets a check box."""
        self.control(text).set_checked(on, force=True)

    def click(self, text):
        """Clicks a button or a heading."""
        self.tab.get_by_text(text, exact=True).click()

    def drag(self, right, down=0):
        """Drags from the middle of the image."""
        x, y = SEEN['x'] + SEEN['width'] // 2, SEEN['y'] + SEEN['height'] // 2
        mouse = self.tab.mouse
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + right, y + down, steps=4)
        mouse.up()

    def wheel(self, down):
        """Turns the wheel over the image."""
        self.tab.mouse.move(SEEN['x'] + 100, SEEN['y'] + 100)
        self.tab.mouse.wheel(0, down)

    def upload(self, text, path):
        """Clicks a button and chooses a file."""
        with self.tab.expect_file_chooser() as chosen:
            self.click(text)
        chosen.value.set_files(path)

    def download(self, text):
        """Clicks a button and returns the bytes of the file that it sends."""
        with self.tab.expect_download() as found:
            self.click(text)
        with open(found.value.path(), 'rb') as file:
            return file.read()
