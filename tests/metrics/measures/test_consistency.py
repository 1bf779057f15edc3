"""Identity, Chamfer distance and warping error on scenes whose answers are known."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from dnnlib.util import Skip
from metrics.base import METRICS, Context, Request, Sample, Settings
from metrics.measures import consistency
from metrics.measures.consistency import MultiView, chamfer_distance, identity_similarity, warping_error
from support.analytic_scenes import Plane, Sphere, flat, still, waves
from training import camera

BIN = 1.05 / 47  # scene units, of the default renderer
WALL = Plane((0.0, 0.0, 1.0), -0.1, waves)
BALL = Sphere((0.0, 0.0, 0.1), 0.2, waves)
TURNED = Plane((0.3, 0.2, 1.0), 0.1, waves)
OCCLUDER = Sphere((0.05, 0.0, 0.25), 0.06, flat(250.0))
SCENES = {'wall': [WALL], 'turned': [TURNED], 'ball': [BALL], 'ball and wall': [BALL, WALL]}
PAIRS = [(0, 2), (3, 1), (0, 1), (3, 2), (0, 3), (2, 1)]


@pytest.fixture(scope='module')
def scenes():
    return {name: still(scene) for name, scene in SCENES.items()}


def clouds_of(points, opacity=None):
    """Views of given points [4, 64, 64, 3]; images and depth say nothing."""
    opacity = torch.ones(4, 1, 64, 64) if opacity is None else opacity
    xyz = torch.as_tensor(points).permute(0, 3, 1, 2)
    image, depth = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.full((4, 1, 64, 64), 2.5)
    return MultiView(image, depth, opacity, xyz, camera.front_label().expand(4, 25), torch.zeros(2))


def grid(spacing=0.01):
    x, y = np.meshgrid(np.arange(64) * spacing, np.arange(64) * spacing)
    return np.stack([x, y, np.zeros_like(x)], axis=-1)


def test_identity_is_the_mean_cosine_of_six_pairs():
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 7)))
    cosines = [torch.cosine_similarity(vectors[a], vectors[b], dim=0).item() for a, b in PAIRS]
    same_time, both_differ, same_yaw = np.reshape(cosines, (3, 2)).mean(1)
    expected = (np.mean(cosines), same_time, same_yaw, both_differ)
    assert identity_similarity(vectors) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('bad', [0.0, torch.nan, torch.inf])
def test_identity_without_an_embedding(bad):
    vectors = torch.ones(4, 3)
    vectors[2] = bad
    with pytest.raises(Skip, match='zero or not finite'):
        identity_similarity(vectors)


@pytest.mark.parametrize('name', SCENES)
def test_chamfer_of_a_consistent_scene_is_that_of_its_samples(scenes, name):
    views = scenes[name]
    spacing = 2.6 / (64 * 4.2647)  # between neighbouring rays on a surface that faces the camera
    same_time = chamfer_distance(views, BIN, 'paper').same_time
    assert 0 < same_time < 2 * (0.9 * spacing / BIN) ** 2
    finer = still(SCENES[name], image_size=32, depth_size=128)
    assert chamfer_distance(finer, BIN, 'released').value < chamfer_distance(views, BIN, 'released').value / 3


def naive_chamfer(views, protocol):
    """Returns the value and that of one time, from all distances."""
    points = views.xyz.permute(0, 2, 3, 1).reshape(4, -1, 3).double().numpy()
    opaque = (views.opacity > 0.5).reshape(4, -1).numpy()
    values = []
    for a, b in PAIRS if protocol == 'paper' else PAIRS[:4]:
        distances = cdist(points[a], points[b], 'sqeuclidean')
        if protocol == 'paper':
            kept = distances[opaque[a]][:, opaque[b]] / BIN**2
            values.append(np.median(kept.min(1)) + np.median(kept.min(0)))
        else:
            there, back = distances.min(1)[opaque[a]], distances.min(0)[opaque[b]]
            values.append(float(torch.from_numpy(there).median() + torch.from_numpy(back).median()))
    total = np.mean if protocol == 'paper' else np.sum
    return total(values), total(values[:2])


@pytest.mark.parametrize('protocol', ['paper', 'released'])
def test_chamfer_against_all_distances(protocol):
    rng = np.random.default_rng(1)
    opacity = torch.from_numpy((rng.uniform(size=(4, 1, 64, 64)) > 0.7).astype(np.float32))
    views = clouds_of(rng.normal(size=(4, 64, 64, 3)), opacity)
    expected = (*naive_chamfer(views, protocol), float(opacity.double().mean()))
    assert chamfer_distance(views, BIN, protocol) == pytest.approx(expected, rel=1e-9)


def test_transparent_points_serve_as_neighbours_in_released_alone():
    # Opaque points of t0 and t1 are 0.5 apart; transparent ones of every view where others are opaque.
    points, opacity = np.stack([grid()] * 4), torch.zeros(4, 1, 64, 64)
    points[:, :, 32:] = points[:, :, :32] + [0, 0, 0.5]
    opacity[[0, 2], :, :, :32] = 1
    opacity[[1, 3], :, :, 32:] = 1
    views = clouds_of(points, opacity)
    assert chamfer_distance(views, 1.0, 'paper').value == pytest.approx(4 / 6 * 2 * 0.25)
    assert chamfer_distance(views, 1.0, 'released').value == 0
    points = views.xyz.clone()
    points[opacity.expand(-1, 3, -1, -1) == 0] = torch.nan
    assert chamfer_distance(views._replace(xyz=points), 1.0, 'paper').value == pytest.approx(4 / 6 * 2 * 0.25)
    with pytest.raises(Skip, match='not finite'):
        chamfer_distance(views._replace(xyz=points), 1.0, 'released')


@pytest.mark.parametrize('size', [32, 96, 128, 256])
def test_resizing_a_cloud_never_mixes_it_with_the_background(size):
    y, x = np.mgrid[:size, :size] / size
    opaque = torch.from_numpy((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1)
    points = torch.from_numpy(np.stack([x, y, np.full_like(x, 0.25)]))
    points[:, ~opaque] = 1e6
    cloud = consistency._cloud(points, opaque)
    assert len(cloud) / 64**2 == pytest.approx(float(opaque.float().mean()), abs=0.02)
    np.testing.assert_allclose(cloud[:, 2], 0.25, rtol=1e-12)
    assert np.abs(cloud[:, :2] - 0.5).max() < 0.35
    whole = consistency._cloud(torch.from_numpy(np.stack([x, y, x])), torch.ones_like(opaque))
    inner = ((np.arange(64) + 0.5) / 64 - 0.5 / size)[2:-2]
    np.testing.assert_allclose(whole[:, 0].reshape(64, 64)[:, 2:-2], np.tile(inner, (64, 1)), atol=1e-12)


def test_chamfer_of_views_with_too_few_points():
    views = clouds_of(np.stack([grid()] * 4))
    few = views.opacity.clone()
    few[2] = 0
    few[2, 0, 0, :60] = 0.6
    with pytest.raises(Skip, match='too few opaque points'):
        chamfer_distance(views._replace(opacity=few), BIN, 'paper')
    assert chamfer_distance(views._replace(opacity=few), BIN, 'released').value == 0
    few[2] = 0.5
    with pytest.raises(Skip, match='no opaque point'):
        chamfer_distance(views._replace(opacity=few), BIN, 'released')
    views.xyz[1, 0, 5, 5] = torch.nan
    with pytest.raises(Skip, match='not finite'):
        chamfer_distance(views, BIN, 'paper')


@pytest.mark.parametrize('name', SCENES)
def test_warping_error_of_a_consistent_scene_is_near_zero(scenes, name):
    result = warping_error(scenes[name], 'paper')
    assert result.value < 0.5 and result.same_time < 0.5  # gray levels; neighbouring pixels differ by about 2
    assert result.visible > 0.2
    assert warping_error(scenes[name], 'released').value > 0.9


@pytest.mark.parametrize('protocol', ['paper', 'released'])
@pytest.mark.parametrize(('brighter', 'value', 'same_time'), [((1, 2), 30, 30), ((1, 3), 15, 0)])
def test_warping_error_of_images_that_differ_by_a_constant(scenes, protocol, brighter, value, same_time):
    """The side views are brighter, or those of the later time."""
    image = torch.full_like(scenes['wall'].image, 100)
    image[list(brighter)] += 30
    result = warping_error(scenes['wall']._replace(image=image), protocol)
    assert result[:2] == pytest.approx((value, same_time), abs=1e-9)


def test_warping_error_of_an_image_and_depth_of_512():
    small, large = (
        still([TURNED], image_size=s, depth_size=d, rays=r) for s, d, r in ((256, 64, 2), (512, 512, 1))
    )
    errors = [warping_error(v, 'paper') for v in (small, large)]
    assert errors[1].value < errors[0].value < 0.5
    assert errors[1].visible == pytest.approx(errors[0].visible, abs=0.03)


def test_an_occluder_that_only_the_front_view_shows_hides_what_is_behind():
    # It lies outside of the side view, so that only the front view's own depth can tell.
    near = Sphere((-0.03, 0.0, 1.9), 0.03, flat(250.0))
    wall = WALL._replace(pattern=flat(20.0))
    views = still([near, wall])
    assert (views.image[2] < 25).all() and (views.image[0] > 240).float().mean() > 0.02
    assert warping_error(views, 'paper').value < 0.05
    assert warping_error(views, 'released').value > 5


def behind_the_occluder(points):
    """White where the middle of the occluder hides a point from the front camera, else black."""
    front = camera.front_label().double()
    middle = torch.tensor(OCCLUDER.centre, dtype=torch.float64)
    away = (camera.project(points, front)[0] - camera.project(middle, front)[0]).norm(dim=-1, keepdim=True)
    return torch.where(away < 0.5 * 0.06 * camera.FOCAL / 2.45, 250.0, 0.0).expand(-1, 3)


def test_the_side_views_own_points_hide_each_other():
    # The front view is black and transparent, so that its depth hides nothing: the z-buffer must.
    black, wall = OCCLUDER._replace(pattern=flat(0.0)), WALL._replace(pattern=behind_the_occluder)
    error = {}
    for name, scene in {'hidden': [black, wall], 'seen': [wall]}.items():
        views = still(scene)
        views.image[[0, 3]], views.opacity[[0, 3]] = 0, 0
        error[name] = warping_error(views, 'paper').value
    assert error['seen'] > 2 and error['hidden'] < 0.02 * error['seen']


@pytest.mark.parametrize('depth_size', [64, 128])
def test_the_back_of_a_thin_body_does_not_show_through(depth_size):
    # Near its outline the ball's back lies less than SAME_SURFACE behind its front.
    def white_front(points):
        return torch.where(points[:, 2:] > 0.25, 250.0, 0.0).expand(-1, 3)

    scene = [OCCLUDER._replace(pattern=white_front), WALL._replace(pattern=flat(100.0))]
    assert warping_error(still(scene, depth_size=depth_size), 'paper').value < 0.03


def test_surfaces_that_are_out_of_view_add_error_in_released_alone():
    # A ball half-way between the side camera and its pivot: in the middle of the side image, outside of the
    # front image. The wall is so far that it leaves only that border of the front image.
    half_way = torch.tensor(camera.PIVOT) / 2 + camera.orbit_label(torch.pi / 6, 0.05)[3:12:4] / 2
    ball = Sphere(tuple(half_way.tolist()), 0.05, flat(250.0))
    wall = WALL._replace(offset=-0.2, pattern=flat(20.0))
    views = still([ball, wall])
    assert (views.image[2] > 240).double().mean() > 0.05 and (views.image[0] < 25).all()
    assert warping_error(views, 'paper').value < 1e-9
    assert warping_error(views, 'released').value > 0.1
    assert warping_error(still([wall]), 'released').value < 1e-9


def test_transparent_side_pixels_do_not_count_in_paper(scenes):
    views = scenes['wall']
    image, opacity = views.image.clone(), views.opacity.clone()
    opacity[[1, 2], :, 20:40, 20:40] = 0.4
    image[[1, 2], :, 80:160, 80:160] = 0
    hidden = warping_error(views._replace(image=image, opacity=opacity), 'paper')
    assert hidden.value < 0.5 < warping_error(views._replace(image=image), 'paper').value
    assert hidden.visible < warping_error(views, 'paper').visible - 0.05
    depth = torch.where(opacity > 0.5, views.depth, torch.nan)
    assert warping_error(views._replace(image=image, opacity=opacity, depth=depth), 'paper') == hidden
    with pytest.raises(Skip, match='not finite'):
        warping_error(views._replace(depth=depth), 'paper')


def test_what_lands_on_the_background_of_the_front_view_is_an_error(scenes):
    views = scenes['ball']
    depth = views.depth.clone()
    depth[[1, 2]] += 0.2  # the ball of the side views is behind: it covers the front view's background
    errors = [warping_error(v, 'paper').value for v in (views, views._replace(depth=depth))]
    assert errors[1] > 20 * errors[0]


def test_only_paper_is_independent_of_the_order_of_pixels():
    # The scene turned upside down has the same error, unless later pixels overwrite earlier ones.
    scene = [Sphere((0.0, 0.08, 0.25), 0.06, flat(250.0)), WALL._replace(pattern=flat(20.0))]
    views = still(scene, yaws=(0.0, 0.0), pitch=0.5)
    mirror = torch.diag(torch.tensor([1.0, -1, 1, 1]))
    pose, intrinsics = camera.unpack_label(views.cameras)
    cameras = camera.pack_label(mirror @ pose @ mirror, intrinsics)
    flipped = MultiView(*(f.flip(2) for f in views[:4]), cameras, views.times)
    paper, released = ([warping_error(v, p) for v in (views, flipped)] for p in ('paper', 'released'))
    assert paper[0].value == pytest.approx(paper[1].value, rel=1e-6)
    assert paper[0].visible == pytest.approx(paper[1].visible, abs=1e-4)
    assert abs(released[0].value - released[1].value) > 1


def naive_released(views, front, side):
    """The released script's pixels one after the other, for an image of 256."""
    depth = torch.nn.functional.interpolate(views.depth[[side]].double(), size=(256, 256), mode='bilinear')
    points = consistency._unproject(views.cameras[side], depth.flatten())
    places = (camera.project(points, views.cameras[front].double())[0] * 256).tolist()
    side_image = views.image[side].float()
    warped, written, outside = torch.zeros(3, 256, 256), set(), set()
    for i in range(256):
        for j in range(256):
            column, row = (int(v) for v in places[i * 256 + j])
            if not (0 <= column < 256 and 0 <= row < 256):
                outside.add((i, j))
            target = min(max(row, 0), 255), min(max(column, 0), 255)
            warped[:, target[0], target[1]] = side_image[:, i, j]
            written.add(target)
    kept = sorted(written - outside)
    rows, columns = zip(*kept, strict=True)
    difference = (views.image[front].float() - warped)[:, rows, columns].abs()
    return float(difference.mean()), len(kept) / 256**2


def test_released_against_a_loop_over_pixels(scenes):
    views = scenes['ball and wall']
    error, fraction = naive_released(views, front=0, side=2)
    result = warping_error(views, 'released')  # nothing moves: all pairs are the same
    assert result[:2] == pytest.approx((error, error), rel=1e-5)
    assert result.visible == pytest.approx(fraction, rel=1e-9)


def test_warping_error_of_views_that_share_nothing(scenes):
    views = scenes['wall']
    with pytest.raises(Skip, match='too few pixels in common'):
        warping_error(views._replace(opacity=torch.zeros_like(views.opacity)), 'paper')
    depth = views.depth.clone()
    depth[1, 0, 3, 3] = torch.nan
    for protocol in ('paper', 'released'):
        with pytest.raises(Skip, match='not finite'):
            warping_error(views._replace(depth=depth), protocol)


def test_chamfer_distance_in_scene_units(tmp_path):
    """The same records as cd's, without bins."""
    request = Request(name='cd2', metric='cd', count=2, frames=16, detector=None)
    context = Context(request, Settings(cache=tmp_path), None, None, None, 0.5)
    records = Sample(records=[{'value': np.float64(4.0)}, {'value': np.float64(6.0)}])
    outcome = METRICS['cdscene'].reduce(context, records, Sample())
    assert (outcome.value, outcome.error) == (1.25, 0.25)
    assert METRICS['cdscene'].measure is METRICS['cd'].measure
