import json

import numpy as np
import pytest
import scipy.io
from scipy.spatial.transform import Rotation

from dnnlib.util import UserError
from preprocessing.from_videos import deep3d
from support.head_views import angles_between, orbit, positions, rotations, second_difference

RNG = np.random.default_rng(0)


def coefficients(labels):
    """Writes out the other way: angle and translation of the face that these cameras see."""
    back = rotations(labels) * np.array([1.0, -1, -1])
    angle = Rotation.from_matrix(back.swapaxes(1, 2)).as_euler('xyz')
    in_face = (positions(labels) - [0, 0.006, 0.161]) / 0.27
    return angle, [0, 0, 10] - (back.swapaxes(1, 2) @ in_face[..., None])[..., 0]


def matrix(angle):
    """Euler angles about x, y, z one after the other, written out."""
    (a, b, c), (u, v, w) = np.cos(angle), np.sin(angle)
    x = np.array([[1, 0, 0], [0, a, -u], [0, u, a]])
    y = np.array([[b, 0, v], [0, 1, 0], [-v, 0, b]])
    z = np.array([[c, -w, 0], [w, c, 0], [0, 0, 1]])
    return z @ y @ x


def test_finds_known_cameras():
    labels = orbit(RNG.uniform(-50, 50, 30), RNG.uniform(-25, 25, 30))
    found = deep3d.coefficient_cameras(*coefficients(labels), sigma=0)
    assert np.allclose(found.labels, labels, atol=1e-6)
    assert np.allclose(found.labels, found.raw_labels)
    assert found.residual is None


def test_a_face_point_is_seen_where_its_own_camera_sees_it():
    """The label's camera against the definition: turn, shift, look from (0, 0, 10) along -z."""
    angle, shift, point = RNG.uniform(-0.4, 0.4, 3), np.array([0.05, -0.02, 0.3]), RNG.normal(0, 0.5, (20, 3))
    before = point @ matrix(angle).T + shift
    expected = before[:, :2] / (10 - before[:, 2:]) * [1, -1]
    label = deep3d.coefficient_cameras(angle[None], shift[None], sigma=0).labels
    position = positions(label)[0]
    unscaled = 0.27 * (matrix(angle).T @ ([0, 0, 10] - shift)) + [0, 0.006, 0.161]
    assert np.allclose(position, 2.7 * unscaled / np.linalg.norm(unscaled))
    seen = (0.27 * point + [0, 0.006, 0.161] - unscaled) @ rotations(label)[0]
    assert np.allclose(seen[:, :2] / seen[:, 2:], expected)


def test_smoothing():
    labels = orbit(np.linspace(-20, 20, 50), np.zeros(50))
    angle, shift = coefficients(labels)
    found = deep3d.coefficient_cameras(angle + RNG.normal(0, 0.02, angle.shape), shift, sigma=2)
    assert second_difference(found.labels) < second_difference(found.raw_labels) / 3
    assert angles_between(found.labels, labels).max() < 2.5


def write(path, content):
    if path.suffix == '.mat':
        scipy.io.savemat(path, content)
    elif path.suffix == '.npz':
        np.savez(path, **content)
    else:
        path.write_text(json.dumps({k: v.tolist() for k, v in content.items()}))


@pytest.mark.parametrize('suffix', ['.mat', '.npz', '.json'])
@pytest.mark.parametrize('kind', ['angle', 'coeff', 'one file'])
def test_reads_the_three_kinds_of_files(tmp_path, suffix, kind):
    angle, shift = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 3))
    coeff = RNG.normal(size=(12, 257))
    coeff[:, 224:227], coeff[:, 254:] = angle, shift
    path = tmp_path / f'clip{suffix}' if kind == 'one file' else tmp_path
    if kind == 'one file':
        write(path, {'angle': angle, 'trans': shift})
    for i, (a, t) in enumerate(zip(angle, shift, strict=True)):
        content = {'angle': a, 'trans': t} if kind == 'angle' else {'coeff': coeff[i : i + 1]}
        write(tmp_path / f'{i}{suffix}', content)  # '10' comes after '9'
    (tmp_path / 'readme.txt').write_text('not one of them')
    found = deep3d.load_coefficients(path)
    assert np.array_equal(found[0], angle)
    assert np.array_equal(found[1], shift)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.mat', {'coefs': np.zeros(257)}, 'found coefs'),
        ('a.npz', {'coeff': np.zeros((1, 256))}, r'coeff.*\[1, 256\]'),
        ('a.json', {'angle': np.zeros((4, 3)), 'trans': np.zeros((3, 3))}, '4 angles but 3'),
        ('a.json', {'angle': np.zeros(3)}, "'trans'"),
        ('a.npz', {'angle': np.full(3, np.nan), 'trans': np.zeros(3)}, 'angle.*finite'),
        ('a.npz', {'angle': np.array(['x', 'y', 'z']), 'trans': np.zeros(3)}, 'a.npz'),
        ('a.npz', {'angle': np.array([{}, 1], dtype=object), 'trans': np.zeros(3)}, 'a.npz'),  # a pickle
    ],
)
def test_invalid_content_is_named(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        deep3d.load_coefficients(tmp_path / name)


@pytest.mark.parametrize('name', ['a.mat', 'a.npz', 'a.json', 'a.txt'])
@pytest.mark.parametrize('data', [b'', b'garbage' * 50, b'\x80\x04\x95', b'[1, 2]', b'[[1, 2]]', 700])
def test_corrupted_files_are_named(tmp_path, name, data):
    path = tmp_path / name
    if data == 700:  # cut short
        write(path, {'angle': RNG.normal(size=(50, 3)), 'trans': RNG.normal(size=(50, 3))})
        data = path.read_bytes()[:data]
    path.write_bytes(data)
    with pytest.raises(UserError, match=name):
        deep3d.load_coefficients(path)


def test_folders(tmp_path):
    with pytest.raises(UserError, match='no files'):
        deep3d.load_coefficients(tmp_path)
    with pytest.raises(UserError, match='absent'):
        deep3d.load_coefficients(tmp_path / 'absent.mat')
    write(tmp_path / '0.json', {'angle': np.zeros((2, 3)), 'trans': np.zeros((2, 3))})
    with pytest.raises(UserError, match=r'0\.json'):
        deep3d.load_coefficients(tmp_path)
