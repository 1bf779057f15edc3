import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from preprocessing.faces.canonical import SIXTY_EIGHT
from preprocessing.from_videos import align, cameras
from support.head_views import SIZE, angles_between, landmarks, orbit, second_difference
from training import camera

MOVING = np.linspace(-1, 1, 24)


def moving(noise=0.0):
    return landmarks(orbit(35 * MOVING, 12 * MOVING**2), noise)


def similarity(scale, angle_deg, shift):
    """Returns the transform [2, 3] that turns, scales and then shifts."""
    c, s = scale * np.cos(np.deg2rad(angle_deg)), scale * np.sin(np.deg2rad(angle_deg))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def square(transform):
    return np.concatenate([transform, np.broadcast_to([[0.0, 0, 1]], (*transform.shape[:-2], 1, 3))], axis=-2)


def quad_by_the_paper(points):
    """Corners of FFHQ's crop, written out: middle, then half axes x and y; clockwise from the top left."""
    right, left = points[36:42].mean(0), points[42:48].mean(0)
    eyes, mouth = (right + left) / 2, (points[48] + points[54]) / 2
    x = (left - right) - np.array([-(mouth - eyes)[1], (mouth - eyes)[0]])
    x *= max(2.0 * np.hypot(*(left - right)), 1.8 * np.hypot(*(mouth - eyes))) / np.hypot(*x)
    y, c = np.array([-x[1], x[0]]), eyes + 0.1 * (mouth - eyes)
    return np.stack([c - x - y, c + x - y, c + x + y, c - x + y])


@pytest.mark.parametrize('yaw', [-40.0, 0.0, 25.0])
def test_ffhq_quad_against_the_paper(yaw):
    points = align.transform_points(similarity(1.3, 17, (40, 9))[None], landmarks(orbit([yaw], [8.0])))
    points = points[0, list(SIXTY_EIGHT), :2]
    corners = quad_by_the_paper(points) @ align.ffhq_quad(points)[:, :2].T + align.ffhq_quad(points)[:, 2]
    assert np.allclose(corners, [[0, 0], [1, 0], [1, 1], [0, 1]])  # upright: the first is the top left


def test_crop_of_an_aligned_image_is_the_identity():
    points = landmarks(orbit([0.0, 0.0, 0.0], [-10.0, 0.0, 15.0]))
    for one in points:
        transform = align.crop_transforms(one[None], SIZE, 0)[0]
        assert np.allclose(transform, similarity(1, 0, (0, 0)), atol=[5e-3, 5e-3, 1.0])


def test_cropped_landmarks_are_those_of_the_standard_camera():
    frame = align.transform_points(np.tile(similarity(0.4, -14, (300, 90)), (24, 1, 1)), moving())
    crop = align.transform_points(align.crop_transforms(frame, 256, 0), frame)
    found = cameras.estimate_cameras(crop, 256, 0)
    axes = found.labels[:, :16].reshape(-1, 4, 4)
    target = align.PIVOT - axes[:, :3, 3]
    cosine = (target * axes[:, :3, 2]).sum(axis=1) / np.linalg.norm(target, axis=1)
    assert np.rad2deg(np.arccos(np.clip(cosine, -1, 1))).max() < 0.1
    _, position = cameras.world_cameras(*cameras.face_pose(crop / 256))
    assert np.allclose(np.linalg.norm(position, axis=1), camera.RADIUS, atol=0.03)  # before it is normalised
    off = landmarks(found.labels)[..., :2] / SIZE * 256 - crop[..., :2]
    assert np.linalg.norm(off, axis=-1).max() < 1.0


@pytest.mark.parametrize('change', [similarity(2.5, 0, (0, 0)), similarity(1, 25, (300, -80))])
def test_equivariance(change):
    points = moving(noise=1)
    plain = align.crop_transforms(points, 256)
    changed = align.crop_transforms(align.transform_points(np.tile(change, (24, 1, 1)), points), 256)
    assert np.allclose(square(changed) @ square(change), square(plain), atol=[2e-4, 2e-4, 0.02])


def test_crops_do_not_jitter():
    points = moving(noise=2)
    rough, steady = (align.crop_transforms(points, SIZE, sigma) for sigma in (0, 2))
    truth = align.crop_transforms(moving(), SIZE, 0)
    for field in (0, 1):
        a, b = (align.decompose(x, np.full(2, 256.0))[field] for x in (rough, steady))
        assert second_difference(b) < second_difference(a) / 3
    rough_off, steady_off = (second_difference(x[..., 2] - truth[..., 2]) for x in (rough, steady))
    assert steady_off < rough_off / 3
    still = np.full((24, 2), 256.0)
    moved = [align.transform_points(x, still[:, None])[6:-6] for x in (truth, steady)]
    assert np.abs(moved[0] - moved[1]).max() < 4  # smoothed, not delayed


def test_cameras_survive_the_crop():
    """Where a head is in the frame, and its roll there, do not change the rest of its pose."""
    labels = orbit(35 * MOVING, 12 * MOVING**2)
    frame = align.transform_points(np.tile(similarity(1.7, 30, (800, -20)), (24, 1, 1)), landmarks(labels))
    crop = align.transform_points(align.crop_transforms(frame, SIZE, 0), frame)
    found = cameras.estimate_cameras(crop, SIZE, 0)
    forward = [x[:, :16].reshape(-1, 4, 4)[:, :3, 2] for x in (found.labels, labels)]
    assert np.rad2deg(np.arccos(np.minimum((forward[0] * forward[1]).sum(1), 1))).max() < 0.5
    assert angles_between(found.labels, labels).max() < 6


def smooth_image(size, seed=0, blur=4.0):
    noise = np.random.default_rng(seed).normal(size=(*size, 3))
    smooth = gaussian_filter(noise, (blur, blur, 0), mode='reflect')
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize('shift', [(0, 0), (-20, -33)])
def test_warp_by_whole_pixels_copies(shift):
    frame = smooth_image((120, 140), blur=1)
    x, y = -np.array(shift)
    assert np.array_equal(align.warp_frame(frame, similarity(1, 0, shift), 64), frame[y : y + 64, x : x + 64])


@pytest.mark.parametrize(('scale', 'angle'), [(1.0, 20), (1.9, -33), (3.0, 170), (0.8, 8)])
@pytest.mark.parametrize('middle', [(88.3, 71.9), (9.0, 12.0)])
def test_warp_is_interpolation_of_the_reflected_frame(scale, angle, middle):
    """Against cubic splines at the middles of the pixels; half a pixel of shift would change it by 13."""
    frame = smooth_image((150, 180))
    transform = similarity(scale, angle, (0, 0))
    transform[:, 2] = 40 - transform[:, :2] @ middle
    y, x = np.mgrid[:80, :80] + 0.5
    source = (np.stack([x, y], axis=-1) - transform[:, 2]) @ np.linalg.inv(transform[:, :2]).T
    at = [source[..., 1] - 0.5, source[..., 0] - 0.5]
    expected = [map_coordinates(frame[..., k].astype(float), at, order=3, mode='reflect') for k in range(3)]
    off = np.abs(align.warp_frame(frame, transform, 80) - np.stack(expected, axis=-1))
    assert off.mean() < 0.7
    assert off.max() < 5


def test_a_whole_frame_is_reflected_and_nothing_is_black():
    frame = smooth_image((24, 20)) // 2 + 60
    crop = align.warp_frame(frame, similarity(1, 0, (19, 23)), 40)
    tiled = np.concatenate([frame[::-1], frame], axis=0)
    tiled = np.concatenate([tiled[:, ::-1], tiled], axis=1)
    assert np.array_equal(crop[:, :39], tiled[1:41, 1:40])
    assert align.warp_frame(frame, similarity(1, 0, (500, -500)), 40).min() > 50


@pytest.mark.parametrize(('scale', 'angle'), [(0.5, 0), (0.31, 30), (0.1, 30)])
def test_a_checkerboard_becomes_grey(scale, angle):
    board = ((np.add.outer(np.arange(600), np.arange(600)) % 2) * 255).astype(np.uint8)
    frame = np.repeat(board[..., None], 3, axis=2)
    transform = similarity(scale, angle, (0, 0))
    transform[:, 2] = 24 - transform[:, :2] @ [300.2, 299.7]
    crop = align.warp_frame(frame, transform, 48).astype(float)
    assert np.abs(crop - 127.5).max() < 6
