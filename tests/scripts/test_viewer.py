"""The viewer end to end: its command, its page in a real browser, the command lines that it prints."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import torch
from click.testing import CliRunner

import gen_videos
import viewer
from benchmarks.viewer import frame_work
from editing import live
from editing.codes import save_portrait
from editing.inputs import Source
from editing.objective import Weights
from editing.recipes import Recipe
from support import browser, tiny
from support.paths import ROOT
from support.portraits import portrait
from torch_utils.checkpoint import save_snapshot
from training.data.dataset import VideoDataset
from training.presets import PRESETS
from viz import trajectories
from viz.images import png_bytes
from viz.trajectories import front
from viz.view import View, Views
from viz.web.follow import Follower
from viz.web.painter import Painter
from viz.web.panels import Panels
from viz.web.state import State

DEMO = str(ROOT / 'assets' / 'demo.pkl')


@pytest.fixture(scope='module')
def G():
    return tiny.generator(span=4).eval()


@pytest.fixture(scope='module')
def network(G, tmp_path_factory):
    path = tmp_path_factory.mktemp('network') / 'network-snapshot-000001.pkl'
    save_snapshot(path, {'G_ema': G}, {'cameras': [trajectories.orbit(3).tolist()], 'fps': 25.0})
    return str(path)


def options(network, **changes):
    return viewer.Options(network=network, device='cpu', **changes)


def refused(*args):
    """Runs the command, which must fail, and returns its sentence."""
    result = CliRunner().invoke(viewer.main, [str(a) for a in args])
    assert result.exit_code == 1 and result.output.startswith('Error: ') and result.output.count('\n') == 1
    return result.output


def test_what_cannot_be_shown_is_refused(network, tmp_path):
    assert '--data ZIP alone' in refused()
    assert '--data ZIP alone' in refused('--network', network, '--run', tmp_path)
    assert 'needs --network' in refused('--data', 'a.zip', '--allow-upload')
    assert 'needs --network' in refused('--run', tmp_path, '--portrait', 'a.portrait.pt')
    assert 'no network-snapshot' in refused('--run', tmp_path)
    assert 'no such folder' in refused('--run', tmp_path / 'missing')
    assert 'missing.pkl' in refused('--network', tmp_path / 'missing.pkl')
    pytest.importorskip('viser')
    assert '--host' in refused('--network', network, '--device', 'cpu', '--host', '203.0.113.7')


def test_printed_commands_make_the_same_image(network, G, tmp_path):
    path = tmp_path / 'ann.portrait.pt'
    save_portrait(path, portrait(G, 3))
    painter = Painter(viewer.open_model(network, options(network, portrait=(str(path),))))
    states = [
        State(seed=4, psi=0.7, cutoff=3, mix=0.25, other_seed=9, time=0.37, yaw=12.34, pitch=-5, fov=17.5),
        State(motion_seed=3, strength=0.6, time=1, samples=2, kind='depth', map_camera='current', yaw=-8),
        State(yaw=5, kind='normals', map_camera='first', first=(10.0, 4.0, None)),
        State(person='ann', seed=2, time=0.5, kind='raw'),
        State(person='ann', motion='recorded', time=1.0),
        State(kind='opacity', second='image', split_at=0.0),
    ]
    for i, state in enumerate(states):
        words = shlex.split(painter.command(state))
        assert words[:2] == ['python', 'gen_videos.py'] and words[-1] == '--outdir=out'
        out = tmp_path / str(i)
        assert words[-2] == '--device=cpu'  # as the viewer was told
        done = CliRunner().invoke(gen_videos.main, [*words[2:-1], f'--outdir={out}'])
        assert done.exit_code == 0, done.output
        kind = state.second or state.kind
        file = min(out.iterdir()) if kind != 'image' else min(out.iterdir(), key=lambda f: len(f.name))
        assert kind == 'image' or file.stem.endswith(f'-{kind}')
        assert file.read_bytes() == png_bytes(painter.paint(state), painter.note(state)), state


def test_portraits_move_as_recorded_and_as_each_other(network, G, tmp_path):
    paths = []
    for i, frames in enumerate((1, 3, 4)):
        paths.append(str(tmp_path / f'p{i}.portrait.pt'))
        save_portrait(paths[-1], portrait(G, frames, seed=i))
    people = viewer.people(G, tuple(paths))
    assert [list(person.motions) for person in people.values()] == [
        ['sampled', 'as p1', 'as p2'],
        ['sampled', 'recorded', 'as p2'],
        ['sampled', 'as p1', 'recorded'],
    ]
    recorded = people['p2'].motions['recorded']
    u = portrait(G, 4, seed=2).u
    tiny.same(recorded.motion_at(None, u.new_tensor([0.0, 1 / 3, 1.0])), u[[0, 1, 3]], 1e-6)
    assert people['p2'].seconds['recorded'] == 3 / 25 and people['p0'].sources == {
        'as p1': paths[1],
        'as p2': paths[2],
    }


def test_work_of_a_frame_on_a_gpu_is_counted():
    work = frame_work(PRESETS['tiny'](''))
    turning, playing = (sum(work[name].flops.values()) for name in ('turning', 'playing'))
    assert 0 < turning < playing and work['turning'].calls < work['playing'].calls


class Watched:
    """Stands for the server."""

    def __init__(self):
        self.painters, self.messages = [], []

    def replace(self, painter):
        self.painters.append(painter)

    def message(self, text, title):
        self.messages.append(text)


def test_a_run_is_followed(G, tmp_path):
    first = tmp_path / 'network-snapshot-000000001.pkl'
    save_snapshot(first, {'G_ema': G}, {})
    watched = Watched()
    follower = Follower(tmp_path, first, lambda path: viewer.open_model(path, options(path)), watched)
    follower.close()
    follower.look()
    assert not watched.messages
    (tmp_path / 'network-snapshot-000000002.pkl').write_bytes(b'broken')
    follower.look()
    follower.look()
    assert len(watched.messages) == 1 and '000000002' in watched.messages[0] and not watched.painters
    save_snapshot(tmp_path / 'network-snapshot-000000003.pkl', {'G_ema': G}, {})
    follower.look()
    assert watched.painters[0].model.path.endswith('000000003.pkl')
    for file in tmp_path.iterdir():
        file.unlink()
    follower.look()  # a run that was removed is no reason to stop
    assert len(watched.painters) == 1 and len(watched.messages) == 2


@pytest.mark.slow
def test_the_command_prints_its_address_and_ends_well(network):
    pytest.importorskip('viser')
    command = [sys.executable, str(ROOT / 'viewer.py'), '--network', network, '--port', '0']
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            url, tunnel = (process.stdout.readline().strip() for _ in range(2))
            assert url.startswith('http://127.0.0.1:') and f'ssh -L {url.rpartition(":")[2]}:' in tunnel
            with urllib.request.urlopen(url) as page:
                assert page.status == 200
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f'{url}/../../../../etc/passwd')
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.fixture(scope='module')
def tab():
    pytest.importorskip('viser')
    with browser.open_browser() as found:
        yield found


@contextlib.contextmanager
def served(painter, **panels):
    """Serves pages in this process."""
    from viz.web.server import Viewer

    server = Viewer(painter, Panels(**panels), '127.0.0.1', 0)
    try:
        yield server
    finally:
        server.stop()


CHANGES = [  # controls in an order in which each changes the image
    ('type', 'seed', 3, 0),
    ('type', 'time', 1, 0),
    ('tick', 'own motion', False, True),
    ('type', 'motion seed', 5, 0),
    ('type', 'strength', 0.5, 1),
    ('type', 'psi', 0.5, 1),
    ('type', 'cutoff', 3, 10),
    ('type', 'mix', 0.4, 0),
    ('type', 'second seed', 7, 1),
    ('type', 'pitch', 6, 0),
    ('type', 'yaw', -12, 0),
    ('choose', 'mapping camera', 'current', 'canonical'),
    ('type', 'field of view', 12, 8.2),
    ('choose', 'right half', 'normals', 'none'),
    ('type', 'split at', 0.4, 0.5),
    ('choose', 'show', 'depth', 'image'),
    ('choose', 'samples', '4', '1'),
]


def opened(tab, server):
    """Opens a page; returns it as it is seen, its other end, and the first image."""
    known = set(server.pages)
    screen = browser.Screen(tab, server.url)
    (number,) = browser.until(lambda: server.pages.keys() - known)
    page = server.pages[number]
    screen.label('samples').wait_for()
    browser.until(lambda: page.shown == page.state and screen.look().std() > 10)  # no longer blank
    return screen, page, screen.still(1.0)


@pytest.mark.slow
def test_a_person_uses_the_page(tab):
    """Moves every control and back, drags, plays, makes a mesh, saves; then nothing may be wrong."""
    painter = Painter(viewer.open_model(DEMO, options(DEMO)))
    with served(painter) as server:
        screen, page, first = opened(tab, server)
        seen = first

        def change(act, label, value):
            before = page.state
            browser.persist(lambda: getattr(screen, act)(label, value), lambda: page.state != before)

        for act, label, value, _ in CHANGES:
            change(act, label, value)
            seen = screen.other(seen)
        for act, label, _, value in reversed(CHANGES):
            change(act, label, value)
        browser.until(lambda: page.shown == page.state)
        assert page.state == State()
        screen.again(first)
        screen.drag(40)
        screen.other(first)
        assert page.state.yaw < -3
        screen.wheel(300)
        browser.until(lambda: page.state.fov)
        screen.click('Reset camera')
        screen.again(first)
        sent = page.speed.frames
        screen.type('speed', 2)
        browser.until(lambda: page.panels[1].speed.value == 2)
        screen.tick('play', True)
        browser.until(lambda: page.speed.frames > sent + 8)
        screen.tick('play', False)
        browser.until(lambda: page.shown == page.state and not page.player.playing)
        browser.until(lambda: abs(screen.value('time') - page.state.time) < 0.01)  # the control has followed
        browser.persist(lambda: screen.type('time', 0), lambda: page.state == State())
        screen.again(first)
        screen.click('Geometry')
        screen.choose('voxels', '32')
        screen.click('Make mesh')
        screen.other(first)
        screen.tick('show in the scene', False)
        screen.again(first)
        screen.click('Capture')
        assert screen.download('Image (PNG)') == png_bytes(painter.paint(State()), painter.model.note)
        assert screen.problems == []


def made_again(command, tmp_path, *changes):
    """Runs a printed command, or gen_videos.py with other words; returns the only file's bytes."""
    out = tmp_path / f'out{len(list(tmp_path.iterdir()))}'
    words = [*(word for word in command if word != '--outdir=out'), *changes, f'--outdir={out}']
    done = CliRunner().invoke(gen_videos.main, words)
    assert done.exit_code == 0, done.output
    (file,) = out.iterdir()
    return file.read_bytes()


@pytest.mark.slow
def test_a_person_makes_films_from_a_page(tab, tmp_path):
    """Plans a camera path, saves it and loads it, films; gen_videos.py makes the same files."""
    painter = Painter(viewer.open_model(DEMO, options(DEMO)))
    same = [f'--network={DEMO}', '--seeds=0', '--device=cpu', '--no-sheet', f'--fps={painter.model.fps}']
    with served(painter) as server:
        screen, page, first = opened(tab, server)
        planned = page.panels[6]
        screen.click('Camera path')
        screen.type('seconds', 0.5)
        browser.until(lambda: planned.seconds.value == 0.5)
        for i, yaw in enumerate((0, 10, -10)):
            browser.persist(lambda yaw=yaw: screen.type('yaw', yaw), lambda yaw=yaw: page.state.yaw == yaw)
            screen.click('Add this camera')
            browser.until(lambda i=i: len(planned.cameras) == i + 1)
        screen.other(first)
        screen.click('Preview')
        browser.until(lambda: planned.stopped and page.state.yaw == -10)
        path = tmp_path / 'path.json'
        path.write_bytes(screen.download('Save (JSON)'))
        film = screen.download('Video of the path (MP4)')
        assert film == made_again(same, tmp_path, f'--camera-path={path}')
        screen.click('Remove the last')
        browser.until(lambda: len(planned.cameras) == 2)
        screen.upload('Load (JSON)', path)
        browser.until(lambda: len(planned.cameras) == 3)
        screen.click('Reset camera')
        screen.again(first)
        screen.click('Capture')
        orbit = screen.download('Video of an orbit (MP4)')
        assert orbit == made_again(same, tmp_path, '--trajectory=orbit')
        motion = screen.download('Video of the motion (MP4)')
        assert motion == made_again(same, tmp_path)
        assert screen.problems == []


@pytest.fixture
def uploaded(monkeypatch, tmp_path):
    """An image file; what is uploaded is taken as one in which a face was found."""
    G = viewer.open_model(DEMO, options(DEMO)).G
    face = Views(G).image(View(seed=5))
    found = Source('upload', torch.from_numpy(face.copy()).permute(2, 0, 1)[None], front(1), 25.0, {})
    found.facts.update({'source': 'upload.png', 'first frame': 0})
    monkeypatch.setattr(live, 'open_source', lambda *args: found)
    quick = Recipe(steps=1000, tune_steps=1000, weights=Weights(perceptual=0.0))
    monkeypatch.setattr(live.project_upload, '__defaults__', (quick,))
    (tmp_path / 'me.png').write_bytes(png_bytes(face))
    return tmp_path / 'me.png'


@pytest.mark.slow
def test_a_person_is_projected_from_a_page(tab, uploaded, tmp_path):
    """Uploads an image, watches, stops, uses and saves what was found, which no other page sees."""
    painter = Painter(viewer.open_model(DEMO, options(DEMO)))
    with served(painter, project=viewer.project) as server:
        screen, page, first = opened(tab, server)
        panel = page.panels[7]
        screen.click('Project a portrait')
        screen.upload('Upload an image', uploaded)
        screen.tab.get_by_text(' dB').wait_for()
        browser.until(lambda: 'step 5' in panel.line.content)
        screen.click('Stop: take the best so far')
        browser.until(lambda: page.own and page.shown == page.state)
        assert page.state.person == page.own[0] and not screen.problems
        screen.other(first)
        saved = tmp_path / 'upload-1.portrait.pt'
        saved.write_bytes(screen.download('Save this person'))
        command = browser.until(lambda: 'upload-1' in page.panels[5].command.value and page.panels[5].command)
        words = shlex.split(command.value.replace('upload-1.portrait.pt', str(saved)))
        image = png_bytes(painter.paint(page.state), painter.note(page.state))
        assert image == made_again(words[2:], tmp_path)
        assert painter.model.names([]) == ()
        browser.persist(lambda: screen.choose('who', 'seeds'), lambda: page.state == State())
        screen.again(first)
        screen.tab.close()
        browser.until(lambda: not painter.model.people)  # forgotten


@pytest.mark.slow
def test_a_page_shows_a_data_set_and_the_snapshots_of_a_run(tab, network, data, tmp_path):
    model = viewer.open_model(network, options(network))
    save_snapshot(tmp_path / 'network-snapshot-000002.pkl', {'G_ema': tiny.build(tiny.G_CONFIG, seed=7)}, {})
    with served(Painter(model), data=VideoDataset.Config(path=data).build()) as server:
        screen, page, first = opened(tab, server)
        clips = page.panels[-2]
        screen.click('Look through this camera')
        through = screen.other(first)
        screen.type('clip', 1)
        browser.until(lambda: clips.clip.value == 1)
        screen.click('Look through this camera')
        screen.other(through)
        screen.click('Overview')
        overview = screen.other(through)
        screen.type('frame', 2)
        screen.other(overview)
        screen.tick('show the data', False)
        screen.again(first)
        follower = Follower(tmp_path, network, lambda path: viewer.open_model(path, options(path)), server)
        newer = screen.other(first)
        follower.close()
        screen.tab.get_by_text('New snapshot').wait_for()
        assert not (newer == first).all() and screen.problems == []
