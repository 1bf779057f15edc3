"""One face in an image or a video: crops, cameras, and what is refused, on procedural heads."""

import json

import numpy as np
import pytest
from PIL import Image

from dnnlib.scene import FOCAL
from dnnlib.util import DataError
from dnnlib.video import write_video
from preprocessing import one_face
from support.synthetic_faces import head, scene


def save(folder, image, name='a.png'):
    Image.fromarray(image).save(folder / name)
    return folder / name


def yaw_deg(label):
    return np.degrees(np.arctan2(label[3], label[11]))


@pytest.fixture(scope='module')
def face():
    return head(5, 25)[0]


@pytest.mark.parametrize('focal', [FOCAL, 7.0])
def test_crop_and_camera_of_a_face(face, tmp_path, focal):
    found = one_face.align_image(save(tmp_path, face), 64, focal)
    assert found.images.shape == (1, 64, 64, 3) and found.note == ''
    assert abs(yaw_deg(found.labels[0]) - 25) < 10
    assert found.labels[0, 16] == pytest.approx(focal) == found.labels[0, 20]


def test_a_longer_focal_length_sees_the_middle(face, tmp_path):
    path = save(tmp_path, face)
    wide, narrow = (one_face.align_image(path, 64, focal).images[0] for focal in (FOCAL, 2 * FOCAL))
    middle = np.asarray(Image.fromarray(narrow).resize((32, 32), Image.Resampling.BOX), float)
    assert np.abs(middle - wide[16:48, 16:48]).mean() < 6


def test_a_face_that_lies_is_refused_but_exif_is_obeyed(face, tmp_path):
    lying = np.ascontiguousarray(np.rot90(face, -1))
    with pytest.raises(DataError, match='turn the image by 90 degrees to the left'):
        one_face.align_image(save(tmp_path, lying), 64)
    exif = Image.Exif()
    exif[0x0112] = 8  # what is stored must be turned by 90 degrees to the left
    Image.fromarray(lying).save(tmp_path / 'b.png', exif=exif)
    assert one_face.align_image(tmp_path / 'b.png', 64).images.shape == (1, 64, 64, 3)


def test_of_two_faces_the_larger_is_used(face, tmp_path):
    small = np.asarray(Image.fromarray(face).resize((110, 110)))
    both = scene([(face, 0, 48), (small, 230, 90)])
    found = one_face.align_image(save(tmp_path, both), 64)
    assert '2 faces; the largest' in found.note
    alone = one_face.align_image(save(tmp_path, face, 'b.png'), 64)
    assert np.abs(found.images.astype(float) - alone.images).mean() < 8


def test_too_few_pixels_are_refused(face, tmp_path):
    small = np.asarray(Image.fromarray(face).resize((96, 96)))
    with pytest.raises(DataError, match='too small'):
        one_face.align_image(save(tmp_path, small), 512)


def test_videos(face, tmp_path):
    rest = [face] * 3
    write_video(tmp_path / 'a.mp4', rest)
    found = one_face.align_video(tmp_path / 'a.mp4', 64)
    assert found.images.shape == (3, 64, 64, 3) and found.labels.shape == (3, 25) and found.fps == 25
    assert one_face.align_video(tmp_path / 'a.mp4', 64, first=1, count=2).images.shape[0] == 2
    write_video(tmp_path / 'b.mp4', [*rest, 0 * face, *rest])
    with pytest.raises(DataError, match='only in frames 0 to 2 of 0 to 6; give --first 0 --frames 3'):
        one_face.align_video(tmp_path / 'b.mp4', 64)
    write_video(tmp_path / 'c.mp4', [0 * face] * 2)
    with pytest.raises(DataError, match='no face'):
        one_face.align_video(tmp_path / 'c.mp4', 64)


def test_a_folder_of_images(face, tmp_path):
    (tmp_path / 'in').mkdir()
    save(tmp_path / 'in', face)
    save(tmp_path / 'in', 0 * face, 'b.png')
    said = dict(one_face.align_folder(tmp_path / 'in', tmp_path / 'out', 64))
    assert said['a.png'] == '' and said['b.png'].startswith('skipped, ')
    table = json.loads((tmp_path / 'out' / 'cameras.json').read_text())
    assert list(table) == ['a.png'] and one_face.known_labels(tmp_path / 'out' / 'a.png').shape == (1, 25)
    assert one_face.known_labels(tmp_path / 'in' / 'a.png') is None
    (tmp_path / 'in' / 'cameras.json').write_text('[]')
    with pytest.raises(DataError, match='cameras.json is not'):
        one_face.known_labels(tmp_path / 'in' / 'a.png')
    (tmp_path / 'none').mkdir()
    with pytest.raises(DataError, match='no image with a face'):
        list(one_face.align_folder(tmp_path / 'none', tmp_path / 'out', 64))


def test_aligned_sources(tmp_path):
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[16:48, 16:48] = 200
    path, labels = save(tmp_path, ramp), np.zeros((1, 25), np.float32)
    labels[:, [16, 20]] = FOCAL
    same = one_face.read_aligned(path, labels, 64)
    assert np.array_equal(same.images[0], ramp) and np.array_equal(same.labels, labels)
    middle = one_face.read_aligned(path, labels, 32, 2 * FOCAL)
    assert (middle.images == 200).all() and middle.labels[0, 16] == pytest.approx(2 * FOCAL)
    with pytest.raises(DataError, match='a.png has cameras of focal length 4.265; it sees too little'):
        one_face.read_aligned(path, labels, 32, FOCAL / 2)
    with pytest.raises(DataError, match='a.png: 1 frames of 64x64, 0 cameras'):
        one_face.read_aligned(path, labels[:0], 32)
    write_video(tmp_path / 'a.mp4', [ramp] * 4, fps=10)
    part = one_face.read_aligned(tmp_path / 'a.mp4', labels.repeat(4, axis=0), 32, FOCAL, 1, 2)
    assert part.images.shape == (2, 32, 32, 3) and part.labels.shape == (2, 25) and part.fps == 10
    with pytest.raises(DataError, match=r'a\.mp4 has no frame 9; its 4 frames are 0 to 3'):
        one_face.read_aligned(tmp_path / 'a.mp4', labels.repeat(4, axis=0), 32, FOCAL, 9)
