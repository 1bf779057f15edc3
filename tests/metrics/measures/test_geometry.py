"""Errors of depth and normals: closed forms, an estimator that learns, wrong geometry that scores worse."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.util import Skip, UserError
from heads.dataset import DEPTH_SCALE, HeadSet, write_dataset
from metrics.measures import geometry, geometry_truth
from metrics.measures import geometry_estimator as learned
from metrics.measures.geometry import Estimate, compare
from metrics.measures.geometry_estimator import EstimatorTraining, load_or_train_estimator
from metrics.measures.geometry_truth import Geometry, Truth, TruthReader, geometry_of
from support.small_data import write_zip
from support.tiny import seeded
from torch_utils.misc import parameter_count
from training import camera
from training.data.dataset import VideoDataset
from training.volumetric_rendering.ray_sampler import camera_rays
from viz.images import normals_from_xyz

CLIPS, FRAMES, SIZE = 24, 2, 32
QUICK = EstimatorTraining(steps=3, batch=4)
LONG = EstimatorTraining(steps=220)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('heads') / 'heads.zip'
    heads = HeadSet(people=CLIPS, frames=FRAMES, resolution=SIZE, seed=3)
    write_dataset(path, heads, workers=1, progress=False)
    return path


def opened(path, **options):
    return VideoDataset.Config(path=str(path), **options).build()


@pytest.fixture(scope='module')
def heads(path):
    return opened(path)


@pytest.fixture(scope='module')
def estimator(heads, tmp_path_factory):
    return load_or_train_estimator(heads, tmp_path_factory.mktemp('cache'), training=LONG)


@pytest.fixture(scope='module')
def unseen(heads):
    reader = TruthReader(heads, LONG.clips, LONG.frames)
    return reader.read(learned.held_out(len(reader)), SIZE)


def plane(size, yaw=0.3, tilt=0.4, distance=2.6):
    """Label, geometry and normal of a plane across the view, turned by `tilt` rad to the side."""
    label = camera.orbit_label(yaw, 0.1)[None].double()
    pose, intrinsics = camera.unpack_label(label)
    origins, directions = camera_rays(pose, intrinsics, size)
    right, _, forward, position = pose[0, :3].unbind(dim=1)
    normal = -np.cos(tilt) * forward + np.sin(tilt) * right
    depth = distance * (forward @ normal) / (directions @ normal)
    xyz = (origins + depth[..., None] * directions).transpose(1, 2).unflatten(2, (size, size))
    depth = depth.view(1, 1, size, size)
    return label, Geometry(depth, torch.ones_like(depth), xyz), normal.view(1, 3, 1, 1).expand_as(xyz)


def estimate_of(rendered, normal):
    """An estimate that agrees with what is rendered."""
    return Estimate(rendered.depth, normal, torch.ones_like(rendered.depth))


def waves(depth, height):
    """Adds +-height in stripes, as many up as down within the outermost pixels."""
    return depth + height * (1 - 2 * (torch.arange(depth.shape[-1]) % 2))


@pytest.mark.parametrize('turn_deg', [0.5, 30, 90, 150])
def test_angle_between_normals_is_found(turn_deg):
    label, rendered, normal = plane(16)
    up = camera.unpack_label(label)[0][0, :3, 1].view(1, 3, 1, 1).expand_as(normal)
    turn = np.radians(turn_deg)
    turned = normal * np.cos(turn) + torch.linalg.cross(up, normal, dim=1) * np.sin(turn)
    errors = compare(estimate_of(rendered, turned), rendered, far=3)
    assert errors['normal_error_deg'] == pytest.approx(turn_deg, abs=1e-3)


@pytest.mark.parametrize(('height', 'shift'), [(0, 0), (0, 0.07), (0.02, 0.05)])
def test_depth_error_is_the_mean_absolute_deviation(height, shift):
    _, rendered, normal = plane(16)
    wavy = rendered._replace(depth=waves(rendered.depth, height) + shift)
    errors = compare(estimate_of(rendered, normal), wavy, far=3)
    assert errors.pop('normal_error_deg') < 1e-4
    assert errors == pytest.approx({'depth_error': height, 'mask_iou': 1, 'depth_shift': shift}, abs=1e-6)


def test_outermost_pixels_of_the_head_do_not_count():
    _, rendered, normal = plane(16)
    opacity = torch.zeros_like(rendered.opacity)
    opacity[..., 4:12, 4:12] = 1
    depth = rendered.depth.clone()
    depth[..., 4, :] += 0.3  # a mixture with the background
    errors = compare(estimate_of(rendered, normal), Geometry(depth, opacity, rendered.xyz), far=4)
    assert errors['depth_error'] == pytest.approx(0, abs=1e-6)
    depth[..., 8, 8] += 0.3
    errors = compare(estimate_of(rendered, normal), Geometry(depth, opacity, rendered.xyz), far=4)
    assert errors['depth_error'] == pytest.approx(2 * 0.3 * (1 / 36) * (35 / 36), abs=1e-6)


@pytest.mark.parametrize('behind', ['not opaque', 'too far'])
def test_overlap_of_the_heads(behind):
    _, rendered, normal = plane(16)
    left, right = torch.arange(16) < 12, torch.arange(16) >= 4
    if behind == 'not opaque':
        hidden = rendered._replace(opacity=torch.where(left, 1.0, 0.4).expand(1, 1, 16, 16))
    else:
        hidden = rendered._replace(depth=torch.where(left, rendered.depth, 3.2))
    mask = torch.where(right, 2.0, -2.0).expand(1, 1, 16, 16)
    errors = compare(estimate_of(rendered, normal)._replace(mask_logit=mask), hidden, far=3)
    assert errors['mask_iou'] == pytest.approx(8 / 16)
    assert errors['depth_error'] == pytest.approx(0, abs=1e-6)


def test_more_rays_change_nothing():
    _, rendered, normal = plane(16)
    estimate = estimate_of(rendered, normal)._replace(depth=waves(rendered.depth, 0.01))
    for size in (32, 64):
        errors = compare(estimate, plane(size)[1], far=3)
        assert errors['depth_error'] == pytest.approx(0.01, abs=1e-4)
        assert errors['normal_error_deg'] < 0.1
    coarse = compare(estimate, plane(8)[1], far=3)  # stripes of a pixel average out
    assert coarse['depth_error'] < 1e-3
    assert coarse['normal_error_deg'] < 0.1


def test_what_cannot_be_measured_has_a_reason():
    _, rendered, normal = plane(16)
    estimate = estimate_of(rendered, normal)
    left = (torch.arange(16) < 8).expand(1, 1, 16, 16).double()
    cases = {
        'no surface': (estimate, rendered._replace(opacity=0 * rendered.opacity)),
        'no head': (estimate._replace(mask_logit=-estimate.mask_logit), rendered),
        'is not where': (estimate._replace(mask_logit=0.5 - left), rendered._replace(opacity=left)),
        'not finite': (estimate, rendered._replace(depth=rendered.depth / 0)),
    }
    for reason, (estimated, shown) in cases.items():
        with pytest.raises(Skip, match=reason):
            compare(estimated, shown, far=3)


def test_truth_is_what_the_files_say(heads, path):
    assert geometry_truth.DEPTH_SCALE == DEPTH_SCALE
    truth = TruthReader(heads, clips=CLIPS, frames=2).read([2], SIZE)
    assert truth.image.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(truth.image, heads.clip_frames(2, [0, 1]))
    assert torch.equal(truth.cameras, heads.clip_cameras(2)[[0, 1]])
    with zipfile.ZipFile(path) as archive:
        depth = np.array(Image.open(io.BytesIO(archive.read('000002/00001.depth.png')))) / DEPTH_SCALE
        mask = np.array(Image.open(io.BytesIO(archive.read('000002/00001.mask.png')))) > 0
    np.testing.assert_allclose(truth.depth[1, 0], depth, atol=1e-6)
    np.testing.assert_array_equal(truth.mask[1, 0], mask)


def test_smaller_truth_averages_what_is_there(heads):
    reader = TruthReader(heads, clips=CLIPS, frames=1)
    large, small = reader.read([1], SIZE), reader.read([1], SIZE // 2)
    block = large.depth[0, 0].unflatten(0, (-1, 2)).unflatten(2, (-1, 2))
    hit = large.mask[0, 0].unflatten(0, (-1, 2)).unflatten(2, (-1, 2))
    expected = block.sum(dim=(1, 3)) / hit.sum(dim=(1, 3)).clamp(min=1)
    torch.testing.assert_close(small.depth[0, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(small.mask[0, 0], hit.mean(dim=(1, 3)))
    lengths = small.normal.norm(dim=1, keepdim=True)[small.mask > 0]
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_true_points_project_to_their_pixels_and_have_the_true_normals(heads):
    truth = TruthReader(heads, clips=2, frames=2).read([0, 1], SIZE)
    shape = geometry_of(truth)
    points = shape.xyz.flatten(2).transpose(1, 2)
    xy, _ = camera.project(points, truth.cameras[:, None])
    centre = (torch.arange(SIZE) + 0.5) / SIZE
    expected = torch.cartesian_prod(centre, centre).flip(1).expand_as(xy)  # x, y; row by row
    torch.testing.assert_close(xy, expected, atol=1e-4, rtol=0)
    angles = geometry.angles_deg(normals_from_xyz(shape.xyz), truth.normal)[inner(truth.mask)]
    assert angles.median() < 10


def inner(mask):
    """Pixels whose neighbours the head covers, too."""
    return torch.nn.functional.avg_pool2d(mask, 3, stride=1, padding=1) > 0.999


def test_training_teaches_the_shape_of_people_never_seen(heads, estimator, unseen, tmp_path):
    beginner = load_or_train_estimator(heads, tmp_path, training=QUICK)
    assert beginner.size == estimator.size == SIZE
    with torch.no_grad():
        before, after = (
            learned._loss(e(unseen.image, unseen.cameras), unseen).item() for e in (beginner, estimator)
        )
    assert after < before / 2
    assert geometry.floor_errors(estimator, unseen) == pytest.approx(estimator.floor)
    assert parameter_count(estimator) <= 300_000


def wrong_geometry(truth, wrong):
    """Geometry that a metric must tell apart from the truth, on the same head or beside it."""
    size, shape = truth.depth.shape[-1], geometry_of(truth)
    origins, directions = camera_rays(*camera.unpack_label(truth.cameras), size)
    right, _, forward = camera.unpack_label(truth.cameras)[0][:, None, :3, :3].unbind(dim=-1)
    depth, opacity = truth.depth, shape.opacity
    if wrong == 'shifted':  # to the right by an eighth of the image
        depth, opacity = depth.roll(size // 8, 3), opacity.roll(size // 8, 3)
    elif wrong == 'flat':  # a plane across the view
        middle = depth.sum(dim=(1, 2, 3)) / opacity.sum(dim=(1, 2, 3)).clamp(min=1)
        depth = (middle[:, None] / (directions * forward).sum(dim=-1)).view_as(depth)
    elif wrong == 'tilted':  # by 20 degrees
        depth = depth + np.tan(0.35) * (directions * right).sum(dim=-1).view_as(depth) * depth
    depth = torch.where(opacity > 0, depth, geometry_truth.FAR)
    xyz = origins + depth.flatten(1)[..., None] * directions
    return Geometry(depth, opacity, xyz.transpose(1, 2).unflatten(2, (size, size)))


@pytest.mark.parametrize(('wrong', 'factor'), [('flat', 1.5), ('tilted', 1.2), ('shifted', 1.5)])
def test_wrong_geometry_scores_worse_than_the_truth(estimator, unseen, wrong, factor, monkeypatch):
    monkeypatch.setattr(geometry, 'geometry_of', lambda truth: wrong_geometry(truth, wrong))
    errors, truth = geometry.floor_errors(estimator, unseen), estimator.floor
    assert errors['depth_error'] > factor * truth['depth_error']
    assert errors['normal_error_deg'] > factor * truth['normal_error_deg']
    assert wrong != 'shifted' or errors['mask_iou'] < 0.9 * truth['mask_iou']


def test_one_bad_image_leaves_the_others_alone(estimator, unseen):
    shape = geometry_of(unseen)

    def errors(i):
        return compare(
            *list(geometry.pairs(estimator, unseen.image, unseen.cameras, shape))[i], estimator.far
        )

    good = [errors(i) for i in range(len(unseen.image))]
    expected = np.mean([e['depth_error'] for e in good])
    assert geometry.floor_errors(estimator, unseen)['depth_error'] == pytest.approx(expected)
    shape.opacity[1] = 0
    with pytest.raises(Skip, match='no surface is rendered'):
        errors(1)
    assert [errors(i) for i in (0, 2, 3)] == [good[i] for i in (0, 2, 3)]


def test_images_of_any_size_work(estimator, unseen):
    large = unseen.image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    same, double = (estimator(x, unseen.cameras) for x in (unseen.image, large))
    torch.testing.assert_close(same, double, atol=1e-4, rtol=1e-4)
    small = estimator(unseen.image[..., ::2, ::2], unseen.cameras)
    assert small.depth.shape == same.depth.shape == (len(unseen.image), 1, SIZE // 2, SIZE // 2)


def test_mirrored_frames_have_mirrored_geometry(unseen):
    size = len(unseen.image)
    batch = Truth(*(x.repeat(8, *[1] * (x.ndim - 1)) for x in unseen))
    drawn = learned._augment(batch, seeded(1))
    mirrored = (drawn.cameras != batch.cameras).any(dim=1)
    assert 0 < mirrored.sum() < 8 * size
    assert torch.equal(drawn.depth[mirrored], batch.depth[mirrored].flip(-1))
    for which, back in ((mirrored, batch.image.flip(-1)), (~mirrored, batch.image)):
        # noise and colours vary, not content
        assert np.corrcoef(drawn.image[which].flatten(), back[which].flatten())[0, 1] > 0.8
    angles = geometry.angles_deg(normals_from_xyz(geometry_of(drawn).xyz), drawn.normal)
    assert angles[inner(drawn.mask) & mirrored[:, None, None, None]].median() < 10


def weights(estimator):
    return torch.cat([p.flatten() for p in estimator.parameters()])


def test_equal_seeds_give_equal_bits_and_the_cache_is_used(heads, tmp_path):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    steps, folder = [], tmp_path / 'a' / 'b'
    first = load_or_train_estimator(heads, folder, 5, steps.append, QUICK)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_num_threads() == threads
    again = load_or_train_estimator(heads, tmp_path / 'c', 5, training=QUICK)
    cached = load_or_train_estimator(heads, folder, 5, steps.append, QUICK)
    assert sum(steps) == QUICK.steps
    for other in (again, cached):
        assert torch.equal(weights(first), weights(other))
        assert (first.floor, first.far, False) == (other.floor, other.far, other.training)
    other = load_or_train_estimator(heads, tmp_path, 6, training=QUICK)
    assert not torch.equal(weights(first), weights(other))
    (file,) = folder.iterdir()  # a corrupted file is written again
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    again = load_or_train_estimator(heads, folder, 5, training=QUICK)
    assert torch.equal(weights(first), weights(again)) and file.stat().st_size == len(whole)


def repacked(path, copy, change):
    """Copies a data set, its files {name: bytes} changed by `change`."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    return opened(write_zip(copy, files))


def test_held_out_people_are_not_trained_on(heads, path, tmp_path):
    assert learned.held_out(CLIPS) == [7, 15, 23]
    assert learned.held_out(3) == [2]
    assert learned.held_out(64) == list(range(7, 64, 8))

    def swap(files):
        for name in [n for n in files if n.startswith('000007/')]:
            files[name] = files['000001' + name[6:]]

    first = load_or_train_estimator(heads, tmp_path, training=QUICK)
    other = load_or_train_estimator(repacked(path, tmp_path / 'x.zip', swap), tmp_path, training=QUICK)
    assert torch.equal(weights(first), weights(other))
    assert first.floor != other.floor
    assert len(list(tmp_path.glob('geometry-*.pt'))) == 2


@pytest.mark.parametrize('change', ['missing', 'corrupted', 'gray'])
def test_a_truth_file_that_is_missing_or_corrupted_is_named(path, tmp_path, change):
    name, gray = '000003/00001.depth.png', io.BytesIO()
    Image.new('L', (SIZE, SIZE)).save(gray, 'png')
    contents = {'missing': {}, 'corrupted': {name: b'nothing'}, 'gray': {name: gray.getvalue()}}

    def replace(files):
        del files[name]
        files.update(contents[change])

    with pytest.raises(UserError, match=name):
        load_or_train_estimator(repacked(path, tmp_path / 'x.zip', replace), tmp_path, training=QUICK)
    assert not list(tmp_path.glob('*.pt'))


def test_folder_of_data_and_too_few_people(heads, path, tmp_path):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / 'heads')
    reader = TruthReader(opened(tmp_path / 'heads'), CLIPS, FRAMES)
    assert reader.digest() == TruthReader(heads, CLIPS, FRAMES).digest()
    with pytest.raises(UserError, match='at least two people'):
        load_or_train_estimator(opened(path, max_clips=1), tmp_path, training=QUICK)
