"""Cameras as text: what is written is read again exactly; mistakes are one sentence."""

import math

import pytest

from dnnlib.scene import FOCAL, Camera, fov_degrees, parse_camera, parse_map_camera
from dnnlib.util import UserError


@pytest.mark.parametrize(
    ('text', 'camera'),
    [
        ('20,-5', Camera(yaw=20.0, pitch=-5.0)),
        ('-20, 5, 13.4', Camera(yaw=-20.0, pitch=5.0, fov=13.4)),
        ('1,2,,3,.1,-.2,0', Camera(yaw=1.0, pitch=2.0, radius=3.0, look_at=(0.1, -0.2, 0.0))),
    ],
)
def test_text_and_camera(text, camera):
    assert parse_camera(text) == camera == parse_camera(str(camera)) == parse_map_camera(str(camera))


def test_every_digit_is_kept():
    third = Camera(yaw=1 / 3, pitch=-1e-17, fov=40 / 3, radius=math.pi, look_at=(0.1, 1 / 7, -2.0))
    assert parse_camera(str(third)) == third


def test_focal_length():
    assert Camera().focal(3.0) == 3.0
    assert Camera(fov=90).focal() == pytest.approx(0.5)
    assert Camera(fov=fov_degrees(FOCAL)).focal() == pytest.approx(FOCAL)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('1', "'1' is not a camera"),
        ('1,2,3,4', 'is not a camera'),
        ('1,,3', 'is not a camera'),
        ('1,x', 'is not a camera'),
        ('1,90', 'pitch 90 of a camera must be -89 to 89'),
        ('nan,0', 'yaw nan'),
        ('0,0,0', 'fov 0'),
        ('0,0,9,1,0,0,1', 'nearer to the origin'),
        ('0,0,9,1,0,inf,0', 'nearer to the origin'),
    ],
)
def test_what_is_no_camera(text, message):
    with pytest.raises(UserError, match=message):
        parse_camera(text)


def test_names_of_mapping_cameras():
    assert parse_map_camera('first') == 'first'
    with pytest.raises(UserError, match="'last' is none of auto, canonical, first, per-frame"):
        parse_map_camera('last')
