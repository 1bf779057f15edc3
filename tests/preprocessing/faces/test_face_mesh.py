"""Faces and meshes in images of procedural heads; the canonical face."""

import itertools

import numpy as np
import pytest
from PIL import Image

from preprocessing.faces import canonical, mesh
from preprocessing.faces.canonical import SIXTY_EIGHT
from preprocessing.faces.detector import Face, merge, overlap, search_places
from support.real_faces import real_frames
from support.synthetic_faces import SIZE, head, scene

RIGHT_RING, LEFT_RING = SIXTY_EIGHT[36:42], SIXTY_EIGHT[42:48]  # of the eyes, sides of the person


@pytest.fixture(scope='module')
def networks():
    return mesh.FaceMesh()


def refined(networks, image, face):
    """Finds the points of a face as tracking does: around the points of a first try."""
    points, _ = networks.landmarks(image, [mesh.rect_of_face(face)])
    points, scores = networks.landmarks(image, [mesh.rect_of_landmarks(points[0])])
    return points[0], scores[0]


def eyes_of(points):
    return np.stack([points[list(ring), :2].mean(axis=0) for ring in (RIGHT_RING, LEFT_RING)])


@pytest.mark.parametrize('seed, yaw_deg', [(4, 0), (5, 25), (7, -25)])
def test_eyes_are_where_the_head_has_them(networks, seed, yaw_deg):
    image, eyes = head(seed, yaw_deg)
    (face,) = networks.detect(image)
    assert face.score > 0.7
    np.testing.assert_allclose(face.keypoints[:2], eyes, atol=5)
    points, score = refined(networks, image, face)
    assert score > 0.99
    np.testing.assert_allclose(eyes_of(points), eyes, atol=4)


def test_depth_grows_away_from_the_viewer(networks):
    """The nose is the nearest; the ear's side that the face turns to the viewer is nearer than the other."""
    nearer = []
    for yaw_deg in (25, -25):
        image, _ = head(5, yaw_deg)
        points, _ = refined(networks, image, networks.detect(image)[0])
        assert points[[1, 4], 2].max() < np.quantile(points[:, 2], 0.1)
        widths = abs(points[1, 0] - points[[234, 454], 0])  # the cheek that is seen in full
        nearer.append(points[234, 2] < points[454, 2])
        assert nearer[-1] == (widths[0] > widths[1])
    assert nearer[0] != nearer[1]


@pytest.mark.parametrize('change', ['doubled', 'turned', 'wide', 'high'])
def test_points_move_with_the_image(networks, change):
    image, _ = head()
    base, _ = refined(networks, image, networks.detect(image)[0])
    factor, matrix, shift = 1, np.eye(2), np.zeros(2)
    if change == 'doubled':
        image, factor = np.array(Image.fromarray(image).resize((2 * SIZE, 2 * SIZE), Image.LANCZOS)), 2
    elif change == 'turned':  # a quarter to the left: x, y -> y, size - x
        image, matrix, shift = np.rot90(image).copy(), np.array([[0, 1], [-1, 0]]), [0, SIZE]
    else:
        x, y, height, width = (500, 3, 200, 800) if change == 'wide' else (1, 301, 650, 194)
        image, shift = scene([(image, x, y)], height, width), [x, y]
    if change == 'turned':  # the detector finds upright faces; the mesh must be found in any rectangle
        rect = mesh.rect_of_landmarks(base)
        rect = np.array([*matrix @ rect[:2] + shift, rect[2], rect[3] - np.pi / 2])
        points = networks.landmarks(image, [rect])[0][0]
        np.testing.assert_allclose(mesh.rect_of_landmarks(points)[3], rect[3], atol=0.02)
    else:
        (face,) = networks.detect(image)
        points, _ = refined(networks, image, face)
    expected = factor * base[:, :2] @ matrix.T + shift
    assert np.abs(points[:, :2] - expected).mean() < 1.5 * factor
    assert np.abs(points[:, 2] - factor * base[:, 2]).mean() < 2 * factor


def test_small_faces_are_found_in_tiles(networks):
    small = np.array(Image.fromarray(head()[0]).resize((150, 150), Image.LANCZOS))  # a face of 70 pixels
    image = scene([(small, 700, 400)], 720, 1280)
    assert networks.detect(image, tiles=False) == []
    (face,) = networks.detect(image)
    points, score = refined(networks, image, face)
    expected = head()[1] * 150 / SIZE + [700, 400]
    assert score > 0.9
    np.testing.assert_allclose(eyes_of(points), expected, atol=4)


def test_faces_in_a_batch_are_as_alone(networks):
    two = scene([(head(4)[0], 0, 90), (head(5)[0], 190, 20)])
    rects = [mesh.rect_of_face(face) for face in networks.detect(two)]
    points, scores = networks.landmarks(two, rects)
    assert points.shape == (2, 468, 3) and points.dtype == np.float32 and scores.shape == (2,)
    for i in range(2):
        alone, score = networks.landmarks(two, [rects[i]])
        np.testing.assert_allclose(points[i], alone[0], atol=2e-3)
        assert abs(score[0] - scores[i]) < 1e-5
    assert networks.landmarks(two, [])[0].shape == (0, 468, 3)


def test_no_face_is_found_in_noise(networks):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for image in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        assert networks.detect(image) == []
    _, scores = networks.landmarks(noise, [np.array([200.0, 150, 200, 0])])
    assert scores[0] < 0.5


@pytest.mark.parametrize('side, angle', [(192, 0.0), (96, 0.4), (480, -0.7), (700, 3.0)])
def test_cut_out_samples_at_the_centres(side, angle):
    """Of slow waves; a shift by half a pixel of the image would change them by 6."""

    def waves(x, y):
        return 128 + 120 * np.stack([np.sin(x / 10), np.cos(y / 10), np.sin((x - y) / 14)], axis=-1)

    y, x = np.mgrid[:900, :1000] + 0.5
    center = np.array([510.3, 440.8])
    image = np.round(waves(x, y)).astype(np.uint8)
    cut = mesh.cut_out(image, np.array([*center, side, angle])).astype(float)
    v, u = (np.mgrid[:192, :192] + 0.5 - 96) * side / 192
    sx = center[0] + np.cos(angle) * u - np.sin(angle) * v
    sy = center[1] + np.sin(angle) * u + np.cos(angle) * v
    inside = (sx > 5) & (sx < 995) & (sy > 5) & (sy < 895)
    assert inside.mean() > 0.9
    assert np.abs(cut - waves(sx, sy))[inside].max() < 4.5


def test_cut_out_repeats_the_border():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    cut = mesh.cut_out(image, np.array([0.0, 0.0, 192.0, 0.0]))  # the corner is in the middle
    assert (cut[:96, :96] == image[0, 0]).all() and (cut[96:136, 96:146] == image).all()
    assert (cut[136:, 146:] == image[-1, -1]).all() and (cut[100, :96] == image[4, 0]).all()
    for x, column in ((-500.0, 0), (500.0, -1)):
        far = mesh.cut_out(image, np.array([x, 20.0, 192.0, 0.0]))
        assert (far[76:116] == image[:, column, None]).all()


def test_rectangles():
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    level = np.random.default_rng(0).uniform(-1, 1, (468, 3)) * [40, 60, 5]
    level[:4, :2] = [[-40, 0], [40, 0], [0, -60], [0, 60]]
    level[33, :2], level[263, :2] = [-20, -30], [25, -30]
    points = level.copy()
    points[:, :2] = level[:, :2] @ turn.T + [200, 100]
    np.testing.assert_allclose(mesh.rect_of_landmarks(points), [200, 100, 180, angle])
    keypoints = np.array([[30, 50], [70, 90], [0, 0], [0, 0], [0, 0], [0, 0]])
    face = Face(np.array([10.0, 20, 90, 120]), 0.9, keypoints)
    np.testing.assert_allclose(mesh.rect_of_face(face), [50, 70, 150, np.pi / 4])


def test_boxes_are_averaged_by_score():
    def points(left):
        return np.array([[left, 0], [left + 10, 10], *[[left + k, 5] for k in range(6)]], float)

    faces = merge(np.stack([points(2), points(0), points(50)]), np.array([0.6, 0.9, 0.7]))
    assert [face.score for face in faces] == [0.9, 0.7]
    np.testing.assert_allclose(faces[0].box, [0.8, 0, 10.8, 10])
    np.testing.assert_allclose(faces[0].keypoints[:, 0], np.arange(6) + 0.8)
    np.testing.assert_allclose(faces[1].box, [50, 0, 60, 10])
    assert merge(np.zeros((0, 8, 2)), np.zeros(0)) == []
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [3, 3, 3, 3.0]])
    np.testing.assert_allclose(overlap(boxes[0], boxes), [1, 1 / 3, 0, 0])


@pytest.mark.parametrize('height, width', [(512, 512), (720, 1280), (1280, 720), (200, 900), (1080, 1920)])
def test_tiles_cover_the_image(height, width):
    (whole, *squares), small = search_places(height, width)
    assert whole == (0, 0, width, height)
    assert (len(squares) > 0) == (height != width) and (len(small) > 0) == (min(height, width) >= 256)
    for level in filter(None, (squares, small)):
        side = level[0][2]
        face = side // 2 - 1  # any face up to half a tile is in one of them as a whole
        for y, x in np.random.default_rng(0).integers(0, [height - face, width - face], (200, 2)):
            assert any(a <= x and b <= y and x + face <= a + s and y + face <= b + t for a, b, s, t in level)
        assert all(s == t == side and a >= 0 <= b for a, b, s, t in level)
        assert max(a for a, *_ in level) == width - side and max(b for _, b, *_ in level) == height - side


def test_canonical_face():
    points = canonical.points()
    assert points.shape == (468, 3)
    mirror = np.linalg.norm(points[:, None] - points * [-1, 1, 1], axis=2)
    other = mirror.argmin(axis=1)
    assert mirror.min(axis=1).max() < 1e-6
    six = canonical.SIXTY_EIGHT
    assert len(six) == len(set(six)) == 68
    assert [six.index(other[i]) for i in six] == MIRRORED
    x, y, z = points[list(six)].T
    assert y.argmin() == 8 and z.argmax() == 30 and x[:17].argmin() < 3
    assert (np.diff(x[:17]) > -1).all() and (np.diff(x[17:27]) > 0).all() and (np.diff(y[27:31]) < 0).all()


ENDS = (0, 17, 27, 28, 29, 30, 31, 36), (42, 46, 48), (36, 40, 42), (48, 55, 60, 65, 68)  # of its lines
LINES = [line for ends in ENDS for line in itertools.pairwise(ends)]  # the left eye, then the right one
MIRRORED = [i for a, b in LINES for i in range(b - 1, a - 1, -1)]  # the point of the other side


def test_real_faces(networks):
    for name, (frames, _) in real_frames(24, 2).items():
        for image in frames.permute(0, 2, 3, 1).numpy():
            faces = networks.detect(image)
            points, score = refined(networks, image, faces[0])
            assert score > 0.99 and np.abs(eyes_of(points) - faces[0].keypoints[:2]).max() < 20, name
