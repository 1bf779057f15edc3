"""Pages without a browser: controls change images, errors become sentences, files are what they should be."""

import io
import math
import time

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from dnnlib.scene import PIVOT
from dnnlib.util import UserError
from support import tiny
from support.fake_browser import Client
from support.second_system import FlatGenerator
from training.data.dataset import VideoDataset
from viz.camera_path import parse_path
from viz.clip_writer import ClipWriter
from viz.web.coverage import Coverage, orbit_place, orbit_position
from viz.web.page import Page, fit
from viz.web.painter import Painter
from viz.web.panels import Panels
from viz.web.people import Model, Person
from viz.web.state import State


@pytest.fixture(scope='module')
def G():
    return tiny.solid_generator()


@pytest.fixture
def open_page(G):
    """Returns a function that opens a page on a new painter, or on none."""
    pages = []

    usual = Model(G=G, path='a.pkl', coverage=Coverage((-30.0, 30.0), (-10.0, 10.0)))

    def open_(model=usual, **panels):
        pages.append(page := Page(Client(), Painter(model) if model else None))
        Panels(**panels)(page)
        page.aim()
        page._deaf_until = 0.0
        page.redraw()
        return page

    yield open_
    for page in pages:
        page.close()


def shown(page):
    """Waits for the still image, and returns it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert page.worker.wait(20)
        if page.shown == page.state:
            return page.client.scene.images[-1]
        time.sleep(0.02)
    raise AssertionError('no still image')


CONTROLS = {
    'seed': 5,
    'psi': 0.5,
    'mix': 0.5,
    'time': 0.75,
    'yaw': 12.0,
    'pitch': -5.0,
    'field of view': 20.0,
    'show': 'normals',
    'right half': 'opacity',
    'samples': '2',
}


@pytest.mark.parametrize('label', CONTROLS)
def test_a_control_changes_the_image_and_back(open_page, label):
    page = open_page()
    control, before = page.client.gui[label], shown(page)
    usual = control.value
    control.value = CONTROLS[label]
    assert not np.array_equal(shown(page), before)
    control.value = usual
    assert np.array_equal(shown(page), before)
    assert not page.client.messages


def test_controls_that_act_together(open_page):
    page = open_page()
    gui = page.client.gui
    gui['time'].value = 1.0
    before = shown(page)
    gui['own motion'].value = False
    gui['motion seed'].value = 8
    moved = shown(page)
    assert not np.array_equal(moved, before) and page.state.motion_seed == 8
    gui['strength'].value = 0.0
    assert not np.array_equal(shown(page), moved)
    gui['psi'].value, gui['cutoff'].value = 0.0, 1
    assert page.state.cutoff == 1
    page.change(yaw=15.0)
    gui['Keep this camera as first'].press()
    gui['mapping camera'].value = 'first'
    assert page.state.first == (15.0, 0.0, None) and shown(page) is not None
    gui['Another person'].press()
    assert shown(page) is not None and gui['seed'].value == page.state.seed
    gui['Reset camera'].press()
    assert page.state.yaw == 0 and not page.client.messages


def test_a_camera_that_the_browser_has_not_placed_yet_is_no_drag(open_page):
    page = open_page()
    shown(page)
    page._deaf_until = 0.0
    page.client.camera.position, page.client.camera.look_at = np.full(3, 3.0), np.zeros(3)
    page.look()
    assert page.state == State()


def test_dragging_turns_within_limits(open_page):
    page = open_page()
    camera = page.client.camera
    shown(page)
    camera.position, camera.look_at = orbit_position(20, 5), np.array(PIVOT)
    page.look()
    shown(page)
    assert (page.state.yaw, page.state.pitch) == (20.0, 5.0) and not page.outside
    assert page.client.gui['yaw'].value == 20.0
    camera.position = orbit_position(20, 5, zoom=1.5)  # the wheel
    page.look()
    seen = page.state.camera.focal() * 1.5
    assert abs(seen / page.focal - 1) < 1e-3 and page.client.gui['yaw'].value == 20.0
    page.look()  # nothing has moved
    assert page.state.camera.focal() * 1.5 == seen
    page.client.gui['field of view'].value = 10.0
    shown(page)
    zoom = 2 * page.focal * math.tan(math.radians(5))
    assert abs(orbit_place(camera.position, camera.look_at)[2] - zoom) < 1e-3
    page.client.gui['Reset camera'].press()
    page._deaf_until = 0.0
    np.testing.assert_allclose(camera.position, orbit_position(0, 0))
    camera.position = orbit_position(80, 5)
    page.look()
    assert page.state.yaw == 30.0 and page.outside
    shown(page)
    np.testing.assert_allclose(camera.position, orbit_position(30, 5))  # it was brought back


def test_wrong_values_are_sentences(open_page):
    page = open_page()
    shown(page)
    page.client.gui['seed'].value = -4  # no control allows it, but a page may send it
    page.client.gui['psi'].value = float('nan')
    page.client.gui['show'].value = '../../etc/passwd'
    assert [text.split()[0] for text in page.client.messages] == ['seed', 'psi', 'kind']
    page.guard(lambda: 1 / 0)(None)
    assert 'bug' in page.client.messages[-1]
    assert page.state == State() and shown(page) is not None


def test_playing_moves_time(open_page):
    page = open_page()
    shown(page)
    page.client.gui['play'].value = True
    times = set()
    deadline = time.monotonic() + 10
    while len(times) < 4 and time.monotonic() < deadline:
        times.add(page.state.time)
        time.sleep(0.02)
    page.client.gui['play'].value = False
    assert len(times) >= 4 and max(times) <= 1


def test_mesh(open_page):
    page = open_page()
    gui = page.client.gui
    gui['voxels'].value = '99999'
    gui['Make mesh'].press()
    assert 'voxels' in page.client.messages.pop()
    gui['voxels'].value = '32'
    image = shown(page)
    gui['Make mesh'].press()
    assert not page.client.messages
    assert page.client.scene.nodes['/mesh'].visible and len(shown(page)) == 8  # plain gray
    for kind in ('.glb', '.ply', '.obj'):
        gui['download'].press(kind)
        mesh = trimesh.load(io.BytesIO(page.client.files[f'mesh{kind}']), file_type=kind[1:], force='mesh')
        assert mesh.is_watertight
    facts = page.panels[4].facts
    page.change(yaw=5.0)
    shown(page)
    assert 'triangles' in facts.content
    page.change(yaw=0.0, seed=9)
    shown(page)
    assert 'another person' in facts.content  # the scene still shows the old one
    page.change(seed=0)
    gui['show in the scene'].value = False
    assert not page.client.scene.nodes['/mesh'].visible and np.array_equal(shown(page), image)
    gui['level'].value = 1e6
    gui['Make mesh'].press()
    assert 'never cross' in page.client.messages[-1]


def test_files(open_page, G):
    page = open_page(Model(G=G, path='a.pkl', note='Synthetic'))
    page.change(kind='depth')
    image = shown(page)
    gui, files = page.client.gui, page.client.files
    gui['Image (PNG)'].press()
    file = Image.open(io.BytesIO(files['image.png']))
    assert np.array_equal(np.asarray(file), image) and file.text['Comment'] == 'Synthetic'
    gui['Video of the motion (MP4)'].press()
    assert files['motion.mp4'][4:8] == b'ftyp' and not page.client.messages
    assert gui['command'].value.startswith('python gen_videos.py --network=a.pkl --seeds=0')


def test_the_mapping_of_a_video_sees_what_the_image_says(open_page, monkeypatch):
    page, clips = open_page(), []
    monkeypatch.setattr(ClipWriter, 'videos', lambda self, clip, beside: clips.append(clip) or 1 / 0)
    for choice in ('canonical', 'current'):
        page.change(map_camera=choice)
        page.client.gui['Video of an orbit (MP4)'].press()
    assert [len(clip.map_cameras) for clip in clips] == [1, 120]  # that which renders: of every frame
    assert torch.equal(clips[1].map_cameras, clips[1].cameras)


def test_camera_path(open_page):
    page = open_page()
    gui, files = page.client.gui, page.client.files
    gui['Save (JSON)'].press()
    assert 'keyframes' in page.client.messages.pop()
    for yaw in (-10.0, 20.0):
        page.change(yaw=yaw)
        gui['Add this camera'].press()
    gui['loop'].value = True
    gui['Save (JSON)'].press()
    path = parse_path(files['path.json'].decode())
    assert [(key.time_sec, key.camera.yaw) for key in path.keyframes] == [(0, -10), (2, 20)]
    gui['Remove the last'].press()
    gui['Load (JSON)'].press(type('File', (), {'content': files['path.json']}))
    gui['Save (JSON)'].press()
    assert parse_path(files['path.json'].decode()) == path
    gui['Load (JSON)'].press(type('File', (), {'content': b'\xff'}))
    gui['Load (JSON)'].press(type('File', (), {'content': b'{}'}))
    assert len(page.client.messages) == 2
    gui['loop'].value, gui['seconds'].value = False, 0.5
    page.panels[6].times = [0.0, 0.3]
    gui['Preview'].press()
    assert page.state.yaw == 20


def test_data_without_a_network(open_page, data):
    clips = VideoDataset.Config(path=data).build()
    page = open_page(model=None, data=clips)
    gui, nodes = page.client.gui, page.client.scene.nodes
    frusta = [name for name in nodes if name.startswith('/clip/cameras/')]
    assert len(frusta) == len(clips.clip_cameras(0))
    current = nodes['/clip/current']
    gui['clip'].value = 1
    gui['frame'].value = 3
    assert nodes['/clip/current'] is not current
    label = clips.clip_cameras(1)[3]
    np.testing.assert_allclose(nodes['/clip/current'].position, label[[3, 7, 11]])
    gui['Look through this camera'].press()
    np.testing.assert_allclose(page.client.camera.position, label[[3, 7, 11]])
    assert not nodes['/clip/cameras'].visible
    gui['show the data'].value = False
    assert not [name for name in nodes if name.startswith('/clip')] and not page.client.messages


def test_projecting(open_page, G):
    def project(model, content, watch, should_stop):
        assert model.G is G
        if b'face' not in content:
            raise UserError('no face was found')
        watch('code', 3, 10, 21.5)
        if len(network) > 1:  # a run has brought a new one
            page.painter = network.pop()
        if content == b'long face':
            page.close()
        motions = {'sampled': tiny.build(tiny.G_CONFIG, seed=7).eval()}
        return Person(motions=motions, about='found', content=lambda: b'a portrait')

    page, other = open_page(project=project), open_page(project=project)
    network = [page.painter]
    before = shown(page)
    gui = page.client.gui
    gui['Upload an image'].press(type('File', (), {'content': b'tree'}))
    assert page.client.messages.pop() == 'no face was found' and np.array_equal(shown(page), before)
    gui['Upload an image'].press(type('File', (), {'content': b'face'}))
    assert not np.array_equal(shown(page), before)
    assert len(gui['who'].options) == 2 and gui['who'].value == page.own[0]
    other.painter = page.painter
    other.change(seed=1)
    shown(other)
    assert len(other.client.gui['who'].options) == 1  # others do not see who was uploaded
    assert 'none' in gui['command'].value
    gui['Save this person'].press()
    assert page.client.files == {'upload-1.portrait.pt': b'a portrait'} and shown(page) is not None
    assert '--portrait=upload-1.portrait.pt --seeds=0' in gui['command'].value
    gui['who'].value = 'seeds'
    gui['Save this person'].press()
    assert 'who' in page.client.messages.pop()
    network.append(Painter(page.painter.model))
    gui['Upload an image'].press(type('File', (), {'content': b'face'}))
    assert 'another snapshot' in page.client.messages.pop() and len(page.own) == 1
    gui['Upload an image'].press(type('File', (), {'content': b'long face'}))
    assert page.painter.model.people == {} and not page.client.messages  # the page was closed meanwhile


@pytest.mark.parametrize(('aspect', 'size'), [(1, (32, 32)), (1.5, (32, 48)), (0.5, (64, 32))])
def test_images_keep_their_shape_in_any_window(aspect, size):
    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    canvas = fit(image, aspect)
    top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
    assert canvas.shape[:2] == size and np.array_equal(canvas[top : top + 32, left : left + 32], image)


def test_browsers_have_their_own_state(open_page):
    first, second = open_page(), open_page()
    second.painter = first.painter
    before = shown(first)
    second.change(seed=3)
    assert not np.array_equal(shown(second), before) and first.state == State()
    first.change(seed=3)
    assert np.array_equal(shown(first), shown(second))


def test_a_network_without_3d(open_page):
    flat = FlatGenerator.Config().build().eval()
    page = open_page(model=Model(G=flat, path='flat.pkl'))
    before = shown(page)
    gui = page.client.gui
    assert gui['strength'].disabled and gui['samples'].disabled and gui['show'].options == ('image',)
    gui['seed'].value = 4
    assert not np.array_equal(shown(page), before)
    gui['Make mesh'].press()
    assert page.client.messages == ['this network has no 3D, so there is no mesh of it']
