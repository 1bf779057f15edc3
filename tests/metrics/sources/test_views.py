"""Views: the two protocols, the same bits every time, files for other networks, the controls."""

import errno
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from dnnlib.util import Skip, UserError
from metrics.measures.consistency import MultiView
from metrics.records.digests import json_digest
from metrics.sources import shooting, views
from metrics.sources.controls import control
from support import tiny
from training import camera
from training.volumetric_rendering.ray_sampler import camera_rays
from viz import rollout

LOW, HIGH = 8, 32


@pytest.fixture(scope='module')
def G():
    return tiny.generator().eval().requires_grad_(False)


def flat(source):
    return control(source, 'flat', 0)


def still(source):
    return control(source, 'still', 0)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_view_of_a_generator(G):
    source = views.GeneratedViews(G, 0, 4)
    view = source.item(2)
    shapes = [(4, 3, 32, 32), (4, 1, LOW, LOW), (4, 1, LOW, LOW), (4, 3, LOW, LOW), (4, 25), (2,)]
    assert [tuple(x.shape) for x in view] == shapes and len(source) == 4 and source.size == 32
    assert [x.dtype for x in view] == [torch.uint8] + [torch.float32] * 5
    front, side = camera.front_label(), camera.orbit_label(math.pi / 6)
    assert torch.equal(view.cameras, torch.stack([front, side, side, front]))
    z, z_m = (code.expand(4, -1) for code in shooting.item_codes(G, 0, 2))
    with torch.no_grad():
        direct = G(z, z_m, view.times[[0, 1, 0, 1]], view.cameras, front.expand(4, -1))
    for name in ('depth', 'opacity', 'xyz'):
        torch.testing.assert_close(getattr(view, name), getattr(direct, name), atol=1e-5, rtol=0)
    pixels = (direct.image.clamp(-1, 1) * 127.5 + 127.5).round()
    assert (pixels - view.image).abs().max() <= 1


def test_the_mapping_may_see_each_image_own_camera(G):
    fixed = views.GeneratedViews(G, 0, 4).seen_by_mapping('fixed')
    own = views.GeneratedViews(G, 0, 4).seen_by_mapping('own')
    assert fixed.identity == views.GeneratedViews(G, 0, 4).identity != own.identity
    seen, expected = own.item(1).depth, fixed.item(1).depth
    tiny.same(seen[[0, 3]], expected[[0, 3]], 1e-5)  # from the front both see the frontal camera
    tiny.differs(seen[1], expected[1])
    tiny.differs(seen[2], expected[2])


def test_same_item_same_bits(G):
    first = views.GeneratedViews(G, 3, 2)
    a = first.item(1)
    first.item(0)
    torch.manual_seed(99)
    assert equal(a, first.item(1)) and equal(a, views.GeneratedViews(G, 3, 9).item(1))
    assert not torch.equal(a.image, first.item(0).image)
    assert not torch.equal(a.image, views.GeneratedViews(G, 4, 2).item(1).image)


def test_times(G, monkeypatch):
    """On the lattice of the span; different ones in 'paper', by chance equal ones in 'released'."""
    frames = rollout.Frames(torch.zeros(4, 3, 8, 8), *(torch.zeros(4, n, 2, 2) for n in (1, 1, 3)))
    blank = np.zeros((4, 8, 8, 3), np.uint8), frames
    monkeypatch.setattr(shooting.Generated, 'shoot', lambda *args: blank)
    for protocol in ('paper', 'released'):
        source = views.GeneratedViews(G, 0, 800, protocol)
        place = torch.stack([source.item(i).times for i in range(800)]) * 15
        index = place.round().long()
        assert torch.allclose(place, index.float(), atol=1e-5)
        same = int((index[:, 0] == index[:, 1]).sum())
        assert same == 0 if protocol == 'paper' else 25 < same < 80  # 50 +- 7
        counts = torch.bincount(index.flatten(), minlength=16)
        assert len(counts) == 16 and float(((counts - 100) ** 2 / 100).sum()) < 37.7  # p = 0.001
        assert (index[:, 0] > index[:, 1]).any() and (index[:, 0] < index[:, 1]).any()


def test_released_protocol(G):
    source = views.GeneratedViews(G, 0, 2, 'released')
    assert source.options.renderer.fixed_offset == 0
    front, side = source.item(0).cameras[:2]
    pitch = math.asin(0.1 / math.pi)  # of v = pi / 2 - 0.05
    expected = [math.cos(pitch) / 2, math.sin(pitch), math.cos(math.pi / 6) * math.cos(pitch)]
    torch.testing.assert_close(side[3:12:4] / 2.7, torch.tensor(expected), atol=1e-6, rtol=0)
    assert torch.equal(front, camera.front_label())
    sources = [views.GeneratedViews(G, s, 2, p) for s in (0, 1) for p in ('paper', 'released')]
    assert len({json_digest(s.identity) for s in [*sources, flat(source)]}) == 5


@pytest.mark.parametrize(('condition', 'count'), [('mapt', 1), ('non', 4)])
def test_mapping_sees_the_canonical_camera_or_each(condition, count):
    net, seen = tiny.generator(camera_condition=condition).eval(), []
    net.mapping_network.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    view = views.GeneratedViews(net, 0, 1).item(0)
    assert torch.equal(seen[0], view.cameras[:count])


# ------------------------------------------------------------------------------------ files, controls


class Given:
    """Views of a bowl with images that change smoothly; item 1 is a failure."""

    identity, size = {'source': 'given'}, HIGH

    def __len__(self):
        return 3

    def name(self, i):
        return f'item {i}'

    def item(self, i):
        if i == 1:
            raise Skip('no')
        front, side = views.view_cameras('paper')
        cameras = torch.stack([front, side, side, front])
        origin, direction = camera_rays(*camera.unpack_label(cameras), LOW)
        depth = 2.5 + 0.1 * torch.linspace(-1, 1, LOW * LOW).abs()[None, :, None].expand(4, -1, 1)
        xyz = (origin + depth * direction).transpose(1, 2).unflatten(2, (LOW, LOW))
        depth = depth.transpose(1, 2).unflatten(2, (LOW, LOW)).contiguous()
        y, x = np.mgrid[:HIGH, :HIGH]
        ramps = np.stack([40 + 5 * x, 30 + 6 * y, 100 + x - y])
        image = torch.from_numpy(np.stack([ramps + k for k in range(4)]).astype(np.uint8))
        opacity = (depth < 2.54).float()
        return MultiView(image, depth, opacity, xyz, cameras, torch.tensor([0.2, 0.6]) + i)


def test_files_of_views(tmp_path):
    source, ticks = Given(), []
    assert views.save_views(source, tmp_path / 'v', ticks.append) == {1: 'no'} and ticks == [1, 1, 1]
    read = views.FolderViews(tmp_path / 'v')
    assert len(read) == 2 and read.size == HIGH and [p.name for p in read.paths] == ['00000.npz', '00002.npz']
    assert equal(read.item(0), source.item(0)) and equal(read.item(1), source.item(2))
    assert [x.dtype for x in read.item(0)] == [x.dtype for x in source.item(0)]
    data, digest = (tmp_path / 'v' / '00002.npz').read_bytes(), json_digest(read.identity)
    (tmp_path / 'v' / '00002.npz').unlink()
    views.save_views(source, tmp_path / 'v')
    assert (tmp_path / 'v' / '00002.npz').read_bytes() == data
    (tmp_path / 'v' / '00000.npz').write_bytes(data)
    assert json_digest(views.FolderViews(tmp_path / 'v').identity) != digest
    assert len(views.FolderViews(tmp_path / 'v', 1)) == 1
    with pytest.raises(UserError, match='views.json'):
        views.save_views(still(source), tmp_path / 'v')


def test_bad_files_of_views(tmp_path):
    good = {name: x.numpy() for name, x in Given().item(0)._asdict().items()}
    bad = {
        'a': ({}, ''),
        'b': ({'image': good['image'].astype(np.float32)}, 'image is float32'),
        'c': ({'depth': good['depth'][:2]}, r'depth is float32 \[2, 1, 8, 8\]; .* \[4, 1, 8, 8\]'),
        'd': ({'xyz': good['xyz'] * np.nan}, 'xyz is float32 .*finite'),
        'e': ({'cameras': np.array([None])}, 'cannot be read'),
        'f': ({'image': good['image'][:, :, ::2, ::2]}, 'images of 16x16, the others have 32x32'),
        'g': ({'image': good['image'] * 0}, 'frame 0 is black'),
        'h': ({'depth': good['depth'].astype(np.float64)}, ''),
        'i': ({'image': np.uint8(3)}, r'image is uint8 \[\]'),
    }
    for name, (changes, _) in bad.items():
        np.savez(tmp_path / f'{name}.npz', **{**good, **changes})
    np.savez(tmp_path / 'k.npz', image=good['image'])
    (tmp_path / 'l.npz').write_bytes((tmp_path / 'a.npz').read_bytes()[:-100])
    reasons = [reason for _, reason in bad.values()] + ['cannot be read .*depth', 'cannot be read']
    source = views.FolderViews(tmp_path)
    assert source.name(10) == 'l.npz'
    for i, reason in enumerate(reasons):
        if reason:
            with pytest.raises(Skip, match=reason):
                source.item(i)
        else:
            assert equal(source.item(i), Given().item(0))
    for path in source.paths[:10]:
        path.unlink()
    with pytest.raises(UserError, match='none of 1 files holds views; the last one: l.npz: cannot be read'):
        views.FolderViews(tmp_path)
    for path in (tmp_path / 'absent', tmp_path / 'l.npz'):
        with pytest.raises(UserError, match='must be a folder with views'):
            views.FolderViews(path)


def test_a_note_says_how_views_were_made(tmp_path):
    views.save_views(Given(), tmp_path, bin_size=0.0625, protocol='released')
    note = tmp_path / 'views.json'

    def made():
        source = views.FolderViews(tmp_path)
        return source.bin_size, source.protocol

    assert made() == (0.0625, 'released')
    note.write_text('{"by": "others", "bin_size": 0.5}')
    assert made() == (0.5, None)
    for text in ('{"bin_size": 0}', '{"bin_size": "a"}', '{"protocol": "a"}', '[]', '{'):
        note.write_text(text)
        with pytest.raises(UserError, match='views.json must be'):
            made()
    note.unlink()
    assert made() == (None, None)


def test_failures_of_the_machine_do_not_skip_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr('numpy.load', Mock(side_effect=OSError(errno.EMFILE, 'Too many open files')))
    with pytest.raises(OSError, match='Too many open files'):
        views.load_view(tmp_path / '00000.npz')


def test_flat_plane():
    given, plane = Given().item(0), flat(Given()).item(0)
    assert torch.equal(plane.image[[0, 3]], given.image[[0, 3]])  # nothing changes from the front
    assert torch.equal(plane.cameras, given.cameras) and torch.equal(plane.times, given.times)
    assert [(x.dtype, x.shape) for x in plane] == [(x.dtype, x.shape) for x in given]
    xyz, opaque = given.xyz[[0, 3], :, 2:6, 2:6].transpose(0, 1), given.opacity[[0, 3], 0, 2:6, 2:6] > 0.5
    assert 0 < opaque.float().mean() < 1
    z = float(xyz[:, opaque][2].mean())
    assert abs(z - 0.2) > 0.01 and torch.allclose(plane.xyz[:, 2], torch.tensor(z), atol=1e-6)
    assert (plane.opacity[[0, 3]] == 1).all() and 0.05 < float(1 - plane.opacity[1].mean()) < 0.3
    rays = camera_rays(*camera.unpack_label(plane.cameras), LOW)
    origin, direction = (x.transpose(1, 2).unflatten(2, (LOW, LOW)) for x in rays)
    torch.testing.assert_close(origin + plane.depth * direction, plane.xyz, atol=1e-6, rtol=0)
    place = camera.project(plane.xyz[1].flatten(1).T, plane.cameras[0])[0]
    assert torch.equal(plane.opacity[1].flatten() > 0.5, ((place >= 0) & (place <= 1)).all(1))


def test_flat_plane_from_the_side():
    """Against the image as a function of the place: it is linear, so bilinear sampling is exact."""
    plane = flat(Given()).item(0)
    z = float(plane.xyz[0, 2].mean())
    origin, direction = (x[0] for x in camera_rays(*camera.unpack_label(plane.cameras[1:2].double()), HIGH))
    points = origin + ((z - origin[:, 2]) / direction[:, 2])[:, None] * direction
    # pinhole at (0, 0, 2.7) that looks down the z axis
    place = 0.5 + camera.FOCAL * points[:, :2] * torch.tensor([1, -1]) / (2.7 - z)
    column, row = (place * HIGH - 0.5).T
    well = (column > 0) & (column < HIGH - 1) & (row > 0) & (row < HIGH - 1)
    assert 0.6 < float(well.double().mean()) < 0.95
    for k, shift in ((2, 0), (1, 3)):  # t0 shows image 0, t1 image 3
        expected = torch.stack([40 + 5 * column, 30 + 6 * row, 100 + column - row]) + shift
        error = (plane.image[k].flatten(1) - expected).abs()[:, well]
        assert float(error.max()) < 0.51
    assert (plane.image[1].float().amax((1, 2)) > 0).all()


def test_controls_pass_failures_on():
    for changed in (flat(Given()), still(Given())):
        assert len(changed) == 3 and changed.size == HIGH and changed.name(2) == 'item 2'
        with pytest.raises(Skip, match='^no$'):
            changed.item(1)
    view, behind = Given().item(0), camera.orbit_label(math.pi)
    behind[[2, 6, 10]] *= -1
    cameras = torch.stack([view.cameras[0], behind, *view.cameras[2:]])
    bad = {
        'no ray from the front hits the head': view._replace(opacity=torch.zeros(4, 1, LOW, LOW)),
        'a camera does not look at the plane': view._replace(cameras=cameras),
    }
    for reason, item in bad.items():
        source = Given()
        source.item = lambda i, item=item: item
        with pytest.raises(Skip, match=reason):
            flat(source).item(0)


def test_frozen_head():
    given, frozen = Given().item(2), still(Given()).item(2)
    order = [0, 2, 2, 0]
    assert torch.equal(frozen.image, given.image[order]) and torch.equal(frozen.xyz, given.xyz[order])
    assert torch.equal(frozen.cameras, given.cameras) and frozen.times.tolist() == [given.times[0]] * 2
