"""Camera paths: through their keyframes, smooth where they close, and one sentence for each mistake."""

import json

import numpy as np
import pytest

from dnnlib.scene import FOCAL, Camera, fov_degrees
from dnnlib.util import UserError
from viz import camera_path
from viz.camera_path import CameraPath, Keyframe

CAMERAS = (Camera(yaw=-20.0, pitch=5.0), Camera(yaw=20.0), Camera(yaw=20.0, pitch=-5.0, radius=3.0))


def path(cameras=CAMERAS, **more):
    keys = (Keyframe(time_sec=float(i * (i + 1) / 2), camera=c) for i, c in enumerate(cameras))  # 0, 1, 3
    return CameraPath(keyframes=tuple(keys), **more)


def yaws(cameras):
    return np.array([c.yaw for c in cameras])


def test_keyframes_are_met_and_nothing_beyond_their_range():
    cameras = path().cameras(10.0)
    assert len(cameras) == 31
    assert [cameras[i] for i in (0, 10, 30)] == list(CAMERAS)
    assert np.all(np.diff(yaws(cameras)[:11]) > 0)
    assert np.all(yaws(cameras)[10:] == 20)  # a curve that is only smooth would swing beyond
    assert path().at(np.array([-1.0, 99.0])) == [CAMERAS[0], CAMERAS[-1]]


def test_a_loop_closes_smoothly():
    loop = path(loop_sec=2.0)
    cameras = loop.cameras(10.0)
    assert len(cameras) == 50 and loop.at(np.array([5.0])) == [CAMERAS[0]]
    for number in ('yaw', 'pitch', 'radius'):
        values = np.array([getattr(c, number) for c in loop.at(np.arange(-100, 100) / 1000)])
        speed = np.diff(values) * 1000
        assert np.abs(np.diff(speed)).max() < 0.05 * max(1, np.ptp(yaws(CAMERAS)))


def test_field_of_view_of_training_is_kept_exactly_or_interpolated():
    assert {c.fov for c in path().cameras(5.0)} == {None}
    zoom = path((Camera(), Camera(fov=30.0))).cameras(2.0, focal=FOCAL)
    assert zoom[0].fov == pytest.approx(fov_degrees(FOCAL)) and zoom[-1].fov == 30
    assert zoom[0].fov < zoom[1].fov < 30


@pytest.mark.parametrize('loop', [None, 1.5])
def test_file_holds_everything(tmp_path, loop):
    written = path((*CAMERAS, Camera(fov=11.5, look_at=(0.0, 0.1, 0.2))), loop_sec=loop)
    camera_path.save_path(tmp_path / 'a.json', written)
    assert camera_path.load_path(tmp_path / 'a.json') == written


GOOD = {'time_sec': 0, 'yaw': 0, 'pitch': 0}
LATER = {**GOOD, 'time_sec': 1}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'format': 'x'}, 'not a camera path'),
        ({'keyframes': {}}, '"keyframes" must be a list'),
        ({'keyframes': [GOOD]}, 'at least 2 keyframes, not 1'),
        ({'keyframes': [GOOD, GOOD]}, 'must begin at 0 and grow'),
        ({'keyframes': [LATER, GOOD]}, 'must begin at 0 and grow'),
        ({'keyframes': [GOOD, {'yaw': 1}]}, 'keyframe 1 needs time_sec, yaw, pitch'),
        ({'keyframes': [GOOD, 7]}, 'keyframe 1 needs time_sec, yaw, pitch'),
        ({'keyframes': [GOOD, {**LATER, 'roll': 1}]}, "keyframe 1 has an unknown 'roll'; known are fov"),
        ({'keyframes': [GOOD, {**LATER, 'yaw': 'x'}]}, "yaw of keyframe 1 is 'x'"),
        ({'keyframes': [GOOD, {**LATER, 'yaw': True}]}, 'yaw of keyframe 1 is True'),
        ({'keyframes': [GOOD, {**LATER, 'fov': float('nan')}]}, 'fov of keyframe 1 is nan'),
        ({'keyframes': [GOOD, {**LATER, 'pitch': 95}]}, 'keyframe 1: pitch 95 of a camera must be'),
        ({'keyframes': [GOOD, {**LATER, 'look_at': [1, 2]}]}, 'look_at of keyframe 1 must be a list of 3'),
        ({'loop_sec': 0}, 'loop_sec 0 must be more than 0'),
        ({'loop_sec': 'x'}, "loop_sec is 'x'"),
        ({'loop_sec': 1e9}, 'is too long'),
        ({'fps': 3}, "the file has an unknown 'fps'"),
    ],
)
def test_mistakes_name_file_and_keyframe(tmp_path, change, message):
    content = {'format': 'pv3d-camera-path', 'version': 1, 'keyframes': [GOOD, LATER], **change}
    (tmp_path / 'a.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        camera_path.load_path(tmp_path / 'a.json')
    assert str(error.value).startswith(f'{tmp_path}/a.json: ')


@pytest.mark.parametrize(
    ('content', 'message'), [(b'{', 'not JSON'), (b'\xff', 'not a text'), (b'3', 'not a camera path')]
)
def test_files_of_another_kind(tmp_path, content, message):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(UserError, match=message):
        camera_path.load_path(tmp_path / 'a.json')
