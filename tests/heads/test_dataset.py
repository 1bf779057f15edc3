"""Heads: geometry agrees with cameras, motion moves what it should, data sets have the fixed format."""

import dataclasses
import errno
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from dnnlib.util import UserError
from heads import rasterizer
from heads.dataset import DEPTH_SCALE, Clip, HeadSet, clip_seed, sample_camera_path, write_dataset
from heads.identity import Identity, sample_identity
from heads.model import HeadModel
from heads.motion import Motion, sample_camera_angles, sample_motion_path
from support.paths import ROOT
from training import camera

TALK = Motion(jaw=0.5, smile=0.4, gaze_yaw_rad=0.1)


def label_at(yaw_deg, pitch_deg):
    return camera.orbit_label(np.radians(yaw_deg), np.radians(pitch_deg)).numpy()


def rays_of(label, size):
    """Returns the origin [3] and the directions [size, size, 3] of the rays through pixel centres."""
    origin, directions = rasterizer.camera_rays(label, size)
    return origin, np.moveaxis(directions, 0, -1)


def world_points(frame, label):
    origin, directions = rays_of(label, len(frame.depth))
    return origin + directions * frame.depth[..., None]


def image_coordinates(points, label):
    """Returns x and y in 0..1 of world points [N, 3]."""
    xy, _ = camera.project(torch.from_numpy(points), torch.from_numpy(label).double())
    return xy.numpy()


@pytest.fixture(scope='module')
def views():
    model = HeadModel(sample_identity(5))
    return {yaw: (label_at(yaw, 4), model.render(TALK, label_at(yaw, 4), 128)) for yaw in (0, 12)}


@pytest.mark.parametrize('yaw_deg, pitch_deg', [(0, 0), (40, -15), (-25, 18)])
def test_rays_pass_through_the_pixels_that_the_camera_projects_to(yaw_deg, pitch_deg):
    label = label_at(yaw_deg, pitch_deg)
    origin, directions = rays_of(label, 7)
    points = origin + 2.3 * directions
    centre = (np.arange(7) + 0.5) / 7
    expected = np.stack(np.meshgrid(centre, centre), axis=-1)
    np.testing.assert_allclose(image_coordinates(points, label), expected, atol=1e-6)


def test_rasteriser_agrees_with_every_ray_tried_against_every_triangle():
    rng = np.random.default_rng(0)
    vertices = rng.uniform(-0.2, 0.2, (60, 3))
    triangles = rng.integers(0, 60, (40, 3))
    label, size = label_at(20, 5), 24
    seen = rasterizer.visible_triangles(vertices.T, triangles.T, label, size)
    origin, directions = rays_of(label, size)
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    best, expected = np.full((size, size), np.inf), np.full((size, size), -1)
    for k in range(40):
        slope = directions @ normal[k]
        with np.errstate(divide='ignore', invalid='ignore'):
            distance = ((a[k] - origin) @ normal[k]) / slope
            point = origin + distance[..., None] * directions
        edges = ((a[k], b[k]), (b[k], c[k]), (c[k], a[k]))
        inside = np.all([np.cross(q - p, point - p) @ normal[k] > 0 for p, q in edges], axis=0)
        hit = inside & (slope < 0) & (distance < best)  # only the front side is seen
        best[hit], expected[hit] = distance[hit], k
    assert (expected >= 0).mean() > 0.1
    np.testing.assert_array_equal(seen.triangle, expected.ravel())
    first, rest = triangles.T[:, :25], triangles.T[:, 25:]  # in two parts, the second before what is there
    behind = rasterizer.visible_triangles(vertices.T, first, label, size)
    before = rasterizer.visible_triangles(vertices.T, rest, label, size, behind)
    both = np.where(before.triangle == -2, behind.triangle, before.triangle + 25 * (before.triangle >= 0))
    np.testing.assert_array_equal(both, expected.ravel())
    np.testing.assert_array_equal(before.inverse, seen.inverse)


def test_depth_of_one_view_predicts_the_other(views):
    label, frame = views[0]
    other_label, other = views[12]
    points = world_points(frame, label)[frame.mask]
    column, row = np.clip((image_coordinates(points, other_label) * 128).astype(int).T, 0, 127)
    distance = np.linalg.norm(points - other_label[[3, 7, 11]], axis=1)
    seen = other.depth[row, column]
    assert (seen > 0).mean() > 0.93
    ahead = seen - distance  # > 0: the other view sees through the point; < 0: something hides it
    assert np.median(np.abs(ahead)) < 0.001
    assert np.mean(ahead > 0.01) < 0.02
    assert np.mean(np.abs(ahead) < 0.004) > 0.85


def test_normals_agree_with_differences_of_depth(views):
    label, frame = views[0]
    points = world_points(frame, label)
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    expected = np.cross(down, across)
    expected /= np.maximum(np.linalg.norm(expected, axis=-1, keepdims=True), 1e-12)
    smooth = (np.linalg.norm(across, axis=-1) < 0.015) & (np.linalg.norm(down, axis=-1) < 0.015)
    mask = frame.mask
    inner = smooth & mask[1:-1, 1:-1] & mask[1:-1, 2:] & mask[1:-1, :-2] & mask[2:, 1:-1] & mask[:-2, 1:-1]
    angle = np.degrees(np.arccos(np.clip((expected * frame.normal[1:-1, 1:-1]).sum(-1), -1, 1)))[inner]
    assert inner.mean() > 0.2
    assert np.median(angle) < 4
    assert np.mean(angle < 20) > 0.85
    np.testing.assert_allclose(np.linalg.norm(frame.normal, axis=-1)[mask], 1, atol=1e-5)
    assert not frame.normal[~mask].any() and not frame.depth[~mask].any()
    directions = rays_of(label, 128)[1]
    assert np.mean((frame.normal * directions).sum(-1)[mask] < 0.05) > 0.99  # to the camera


def test_face_without_hair_is_mirror_symmetric():
    model = HeadModel(Identity(hair_style=0, light_yaw_rad=0.0))
    frame = model.render(Motion(jaw=0.3), label_at(0, 0), 64)
    difference = np.abs(frame.depth - frame.depth[:, ::-1])  # the diagonals of the mesh are not mirrored
    assert difference.max() < 2e-3 and np.median(difference[frame.mask]) < 1e-4
    assert frame.mask[32, 32] and not frame.mask[2, 2]


def test_geometry_does_not_depend_on_resolution():
    model, label = HeadModel(sample_identity(3)), label_at(10, 0)
    small, large = model.render(TALK, label, 32), model.render(TALK, label, 96)
    np.testing.assert_allclose(small.depth, large.depth[1::3, 1::3], atol=1e-6)


def test_head_fills_the_box_and_the_mask():
    for seed in range(8):
        model = HeadModel(sample_identity(seed))
        vertices, normals = model.pose(Motion())
        assert np.isfinite(vertices).all() and np.isfinite(normals).all()
        assert np.abs(vertices).max() < 0.5
        frame = model.render(Motion(), label_at(0, 0), 32)
        assert 0.25 < frame.mask.mean() < 0.8


def test_open_jaw_changes_only_the_lower_face():
    model, label = HeadModel(Identity()), label_at(0, 0)
    closed, opened = (model.render(Motion(jaw=amount), label, 96) for amount in (0.0, 1.0))
    moved = np.abs(closed.depth - opened.depth) > 1e-4
    places = np.array([[0.0, 0.0, 0.17], [0.0, -0.115, 0.17]])  # of the bridge of the nose and the mouth
    (_, bridge), (column, row) = image_coordinates(places, label) * 96
    assert moved.mean() > 0.03
    assert np.flatnonzero(moved.any(axis=1)).min() > bridge
    at = int(row), int(column)
    assert opened.depth[at] - closed.depth[at] > 0.015  # a cavity, not paint
    assert opened.image[at].mean() < 0.6 * closed.image[at].mean()


def test_blink_changes_only_the_eyes():
    model, label = HeadModel(Identity()), label_at(0, 0)
    awake, asleep = (model.render(Motion(blink_left=b, blink_right=b), label, 96).image for b in (0.0, 1.0))
    difference = np.abs(awake.astype(int) - asleep).max(axis=2)
    for side in (-1, 1):
        eye = image_coordinates(np.array([[side * 0.058, 0.03, 0.17]]), label)[0] * 96
        grid = np.stack(np.meshgrid(np.arange(96) + 0.5, np.arange(96) + 0.5), axis=-1)
        near = np.linalg.norm(grid - eye, axis=-1) < 9
        assert difference[near].max() > 80
        difference = np.where(near, 0, difference)
    assert difference.max() <= 12  # soft shadow


def test_identities_are_seeded_and_all_different():
    people = [sample_identity(seed) for seed in range(64)]
    assert people[7] == sample_identity(7)
    assert len({p.hair_style for p in people}) >= 9
    images = [HeadModel(p).render(Motion(), label_at(0, 0), 8).image.ravel() for p in people[:24]]
    distance = cdist(images, images, 'cityblock') / len(images[0]) + 1000 * np.eye(24)
    assert distance.min() > 8


def test_motion_is_smooth_and_lively():
    paths = [[dataclasses.astuple(m) for m in sample_motion_path(seed, 100)] for seed in (*range(12), 3)]
    *paths, again = np.array(paths)
    paths = np.stack(paths)
    np.testing.assert_array_equal(paths[3], again)
    jaw, blink = paths[..., 0], paths[..., 7]
    assert np.isfinite(paths).all()
    assert jaw.min() >= 0 and jaw.max() <= 1
    assert np.abs(np.diff(jaw, axis=1)).max() < 0.5
    assert np.median(np.ptp(jaw, axis=1)) > 0.4  # the jaw speaks
    assert np.mean(np.ptp(blink, axis=1) > 0.9) > 0.8  # almost everyone blinks within four seconds


def test_camera_paths_stay_in_range_and_look_at_the_pivot():
    labels = np.concatenate([sample_camera_path(seed, 64) for seed in range(40)])
    position = labels[:, [3, 7, 11]]
    yaw = np.degrees(np.arctan2(position[:, 0], position[:, 2]))
    pitch = np.degrees(np.arcsin(position[:, 1] / camera.RADIUS))
    assert 30 < np.abs(yaw).max() <= 45.001 and 10 < np.abs(pitch).max() <= 20.001
    xy, _ = camera.project(torch.tensor(camera.PIVOT), torch.from_numpy(labels))
    np.testing.assert_allclose(xy, 0.5, atol=1e-5)
    assert np.abs(np.diff(yaw.reshape(40, 64), axis=1)).max() < 4


def test_blink_rate_changes_only_the_number_of_blinks():
    def blinks(rate):
        paths = np.array(
            [[dataclasses.astuple(m) for m in sample_motion_path(s, 500, 25, rate)] for s in range(8)]
        )
        rising = (paths[:, 1:, 7] > 0.5) & (paths[:, :-1, 7] <= 0.5)
        return np.delete(paths, (7, 8), axis=2), rising.sum()

    (others, few), (same, many) = blinks(0.5), blinks(2.0)
    np.testing.assert_array_equal(others, same)
    assert 3 < many / few < 5


def test_camera_speed_keeps_the_view_and_scales_what_leaves_it():
    for seed in range(20):
        still, slow, normal = (sample_camera_angles(seed, 32, speed) for speed in (0.0, 0.5, 1.0))
        assert np.ptp(still, axis=0).max() == 0
        np.testing.assert_allclose(slow - still, (normal - still) / 2, atol=1e-12)


def test_labels_carry_the_focal_length():
    wide, near = sample_camera_path(2, 4), sample_camera_path(2, 4, focal=7.0)
    np.testing.assert_array_equal(wide[:, :16], near[:, :16])
    np.testing.assert_array_equal(near[:, [16, 20]], 7.0)


def test_motions_of_a_person_share_the_identity_and_nothing_else(tmp_path):
    """More motions or people leave what was there: person p, motion m is the same clip."""
    heads = HeadSet(people=2, motions=2, frames=2, resolution=16, seed=4)
    write_dataset(tmp_path / 'four', heads, 1, progress=False)
    write_dataset(tmp_path / 'three', HeadSet(people=3, frames=2, resolution=16, seed=4), 1, progress=False)
    four, three = (json.loads((tmp_path / n / 'dataset.json').read_text()) for n in ('four', 'three'))
    identities = [info['identity'] for info in four['clips'].values()]
    assert identities == [1490961094, 1490961094, 2570931004, 2570931004]  # the people of earlier versions
    assert [info['identity'] for info in three['clips'].values()][:2] == identities[::2]
    for mine, other in (('000000', '000000'), ('000002', '000001')):
        for file in (tmp_path / 'four' / mine).iterdir():
            assert file.read_bytes() == (tmp_path / 'three' / other / file.name).read_bytes()
    labels = np.array([label for _, label in four['labels']]).reshape(4, 2, 25)
    assert len(np.unique(labels[:, 0], axis=0)) == 4
    assert len({clip_seed(4, person, motion) for person in range(20) for motion in range(20)}) == 400


def test_data_set_has_the_fixed_format_as_zip_and_folder_and_with_any_workers(tmp_path):
    one, two = tmp_path / 'one.zip', tmp_path / 'two.zip'
    for path, workers in ((one, 1), (two, 2), (tmp_path / 'folder', 1)):
        write_dataset(path, HeadSet(people=2, frames=2, resolution=16, seed=3), workers, progress=False)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder', 'one.zip', 'two.zip']
    with zipfile.ZipFile(one) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    assert list(files) == sorted(files)
    assert all((tmp_path / 'folder' / name).read_bytes() == data for name, data in files.items())
    index = json.loads(files.pop('dataset.json'))
    images = {name: np.array(Image.open(io.BytesIO(data))) for name, data in files.items()}
    assert (index['format'], index['version'], index['resolution']) == ('pv3d-dataset', 1, 16)
    names = [f'{clip:06d}/{frame:05d}' for clip in range(2) for frame in range(2)]
    assert [name for name, _ in index['labels']] == [f'{name}.png' for name in names]
    assert set(index['clips']) == {'000000', '000001'} and len(images) == 16
    seed = index['clips']['000001']['identity']
    label = np.array(index['labels'][3][1], np.float32)
    frame = HeadModel(sample_identity(seed)).render(sample_motion_path(seed, 2)[1], label, 16)
    np.testing.assert_array_equal(images[f'{names[3]}.png'], frame.image)
    depth = images[f'{names[3]}.depth.png']
    np.testing.assert_allclose(depth / DEPTH_SCALE, frame.depth, atol=1e-4)
    np.testing.assert_array_equal(images[f'{names[3]}.mask.png'] == 255, frame.mask)
    normal = images[f'{names[3]}.normal.png'] / 255 * 2 - 1
    np.testing.assert_allclose(normal, frame.normal, atol=0.005)


def test_processes_import_no_torch():
    code = 'import heads.dataset, preprocessing.dataset_files.pack, sys\n'
    code += "from preprocessing.from_videos import align, deep3d\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_invalid_places_are_explained_and_keep_what_they_hold(tmp_path):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'note').write_text('mine')
    for dest, message in (('full', 'exists already'), ('full/note/x.zip', 'cannot write')):
        with pytest.raises(UserError, match=message):
            write_dataset(tmp_path / dest, HeadSet(people=1, frames=1, resolution=16), 1, progress=False)
    assert [p.name for p in tmp_path.rglob('*')] == ['full', 'note']


def test_a_data_set_is_no_image(tmp_path):
    with pytest.raises(UserError, match='is a .zip or a folder, not a file of images'):
        write_dataset(
            tmp_path / 'x.png', HeadSet(people=1, motions=1, frames=2, resolution=8), progress=False
        )


def test_work_ends_with_an_error(tmp_path, monkeypatch):
    """Processes end at once, not when the error that holds them is forgotten."""
    ended = []

    def rendered(*_):
        try:
            yield Clip('000000', [('00000.png', b'x')], [('00000.png', [0.0] * 25)], {})
        finally:
            ended.append(True)

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('heads.dataset.parallel', rendered)
    monkeypatch.setattr('heads.dataset.write_entry', full)
    with pytest.raises(UserError, match='the disk is full') as held:
        write_dataset(tmp_path / 'x.zip', HeadSet(people=2, frames=2, resolution=16), workers=2)
    assert ended and held and not list(tmp_path.iterdir())
