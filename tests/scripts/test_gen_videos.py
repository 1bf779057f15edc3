"""The command line of gen_videos.py, end to end on a tiny random network."""

import contextlib
import dataclasses
import functools
import itertools
import weakref
from pathlib import Path
from unittest import mock

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner

import gen_videos
from dnnlib.util import file_sha256
from editing.codes import save_portrait
from support.generate import SPAN, call, names, network, saved
from support.portraits import portrait
from torch_utils.checkpoint import save_snapshot
from viz import images, rollout, sheets, trajectories
from viz.clip_writer import Clip, ClipWriter


@pytest.fixture(scope='module')
def G():
    return network(8.0)


@pytest.fixture(scope='module')
def snapshot(G, tmp_path_factory):
    return saved(G, tmp_path_factory.mktemp('network'))


def test_everything_at_once(snapshot, G, tmp_path):
    out = tmp_path / 'made' / 'here'
    line = '--seeds 2 --motion-seeds 5-6 --frames 5 --depth --normals --fps 10 --upscale 2 --crf 5 '
    line += '--shapes ply --shape-resolution 16 --shape-frames 1'
    result = call(snapshot, out, *line.split())
    assert result.exit_code == 0, result.output
    clips = ['seed0002-motion0005', 'seed0002-motion0006']
    files = [f'{c}{end}' for c in clips for end in ('.mp4', '-depth.mp4', '-normals.mp4', '-sheet.png')]
    meshes = [f'{c}-0001.ply' for c in clips]
    assert names(out) == sorted([*files, *meshes, 'grid.mp4'])
    assert all(str(out / name) in result.output for name in names(out))
    assert 'frames/s: 10 frames' in result.output
    for name in ('', '-depth', '-normals'):
        assert iio.imread(out / f'{clips[0]}{name}.mp4').shape == (5, 64, 64, 3)
    assert iio.imread(out / 'grid.mp4').shape == (5, 128, 256, 3)
    assert np.shape(iio.imread(out / f'{clips[0]}-sheet.png'))[1] > 4 * 128  # a column for each moment
    notice = (
        f'Synthetic, made by PV3D with the network {Path(snapshot).name} (SHA-256 {file_sha256(snapshot)})'
    )
    assert all(notice.encode() in (out / name).read_bytes() for name in names(out))
    mesh = trimesh.load(out / meshes[0])
    assert mesh.is_watertight and mesh.volume > 0
    assert mesh.visual.vertex_colors.shape == (len(mesh.vertices), 4)


def test_video_shows_the_frames_of_the_generator(snapshot, G, tmp_path):
    """The definition, written out: front camera, t forth and back, z_a and z_m of the seed."""
    assert call(snapshot, tmp_path, '--seeds', '3', '--crf', '0', '--no-sheet').exit_code == 0
    video = iio.imread(tmp_path / 'seed0003.mp4').astype(int)
    assert len(video) == 2 * 2 * (SPAN - 1)
    codes, front = rollout.draw_codes(G, 3), trajectories.front(1)
    for i, t in enumerate([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]):
        image = G(codes.z_a, codes.z_m, torch.tensor([t]), front).image.detach()
        expected = images.to_uint8(image)[0].astype(int)
        # luma is coded without loss, chroma at half resolution
        weights = np.array([0.2126, 0.7152, 0.0722])
        assert np.abs((video[i] - expected) @ weights).mean() < 3
        assert (video[i] == video[i + 6]).mean() > 0.99


def test_same_seed_same_bytes_whatever_else_is_asked_for(snapshot, tmp_path):
    args = ['--frames', '4', '--shapes', 'obj', '--shape-resolution', '16']
    call(snapshot, tmp_path / 'a', '--seeds', '4', *args)
    call(snapshot, tmp_path / 'b', '--seeds', '1,4', *args)
    ours = [n for n in names(tmp_path / 'b') if n.startswith('seed0004')]
    assert names(tmp_path / 'a') == ours and len(ours) == 3
    for name in ours:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_own_motion_is_the_motion_of_the_seed(snapshot, tmp_path):
    args = ['--frames', '3', '--no-sheet', '--no-grid']
    call(snapshot, tmp_path, '--seeds', '4', *args)
    call(snapshot, tmp_path, '--seeds', '4', '--motion-seeds', '4,5', *args)
    own, same, other = (tmp_path / f'seed0004{end}.mp4' for end in ('', '-motion0004', '-motion0005'))
    assert own.read_bytes() == same.read_bytes() != other.read_bytes()


def test_dataset_cameras_come_from_the_snapshot_or_the_data(snapshot, data, tmp_path):
    args = ['--seeds', '0-1', '--trajectory', 'dataset', '--no-sheet', '--no-grid']
    assert call(snapshot, tmp_path / 'own', *args).exit_code == 0
    assert [len(iio.imread(tmp_path / 'own' / f'seed000{i}.mp4')) for i in (0, 1)] == [3, 5]
    assert call(snapshot, tmp_path / 'data', *args, '--data', data).exit_code == 0
    assert len(iio.imread(tmp_path / 'data' / 'seed0000.mp4')) == 18
    assert call(snapshot, tmp_path / 'short', *args, '--data', data, '--frames', '2').exit_code == 0
    assert len(iio.imread(tmp_path / 'short' / 'seed0001.mp4')) == 2


def test_still_freezes_the_face_and_orbit_does_not(snapshot, tmp_path):
    args = ['--frames', '4', '--no-sheet', '--orbit-yaw', '0']
    clips = {}
    for kind in ('still', 'orbit'):
        assert call(snapshot, tmp_path / kind, *args, '--trajectory', kind).exit_code == 0
        clips[kind] = iio.imread(tmp_path / kind / 'seed0000.mp4').astype(int)
    # without yaw, cameras 1 and 3 of the ellipse are the same
    same, moved = (np.abs(clips[kind][1] - clips[kind][3]).mean() for kind in ('still', 'orbit'))
    assert 4 * same < moved


def test_sampling_options_change_the_rendering(snapshot, tmp_path):
    videos = []
    for args in ('', ' --neural-resolution 16', ' --render-samples 12'):
        line = f'--frames 2 --no-sheet --depth{args}'
        assert call(snapshot, tmp_path, *line.split()).exit_code == 0
        videos.append((tmp_path / 'seed0000-depth.mp4').read_bytes())
    assert len(set(videos)) == 3


def test_grid_shows_the_people_as_large_as_their_videos(snapshot, tmp_path):
    args = ['--seeds', '0-2', '--frames', '1', '--no-sheet', '--upscale', '5']
    assert call(snapshot, tmp_path, *args).exit_code == 0
    assert iio.imread(tmp_path / 'seed0000.mp4').shape[1:3] == (160, 160)
    assert iio.imread(tmp_path / 'grid.mp4').shape[1:3] == (320, 320)


def test_sheet_has_evenly_spaced_moments(G, tmp_path, monkeypatch):
    texts = mock.Mock(wraps=sheets.contact_sheet)
    monkeypatch.setattr(sheets, 'contact_sheet', texts)
    config = dataclasses.replace(G.config, span=16)
    monkeypatch.setattr(G, 'config', config)
    times, front = trajectories.frame_times(2, SPAN), trajectories.front(2)
    clip = Clip(name='a', codes=rollout.draw_codes(G, 0), cameras=front, map_cameras=front[:1], times=times)
    ClipWriter(G=G, outdir=tmp_path, report=lambda line: None).sheet(clip)
    assert texts.call_args.args[2] == [f't {i / 7:.2f}' for i in range(8)]


@pytest.mark.parametrize(('density', 'level'), [(-20.0, []), (8.0, ['--shape-level', '100000'])])
def test_without_a_surface_there_is_no_mesh_and_an_error(tmp_path, density, level):
    path = tmp_path / 'thin.pkl'
    save_snapshot(path, {'G_ema': network(density)}, {})
    args = '--frames 2 --no-sheet --shapes glb --shape-resolution 16'
    result = call(str(path), tmp_path / 'out', *args.split(), *level)
    assert result.exit_code == 1 and 'seed0000: no mesh of frame 0, ' in result.output
    assert 'Error: no mesh was made' in result.output
    assert names(tmp_path / 'out') == ['seed0000.mp4']


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--network missing.pkl', 'missing.pkl: no such file or folder'),
        ('--seeds x', "'x' is not a list of numbers"),
        ('--device nonsense', '--device nonsense'),
        ('--data x.zip', '--data is for --trajectory dataset, not for front'),
        ('--orbit-yaw 20', '--orbit-yaw is for --trajectory orbit or still, not for front'),
        ('--time cycle --trajectory still', '--time is for --trajectory front or orbit or dataset'),
        ('--crf 1 --video-format gif', '--crf is for --video-format mp4, not for gif'),
        ('--shape-level 5', '--shape-level is for --shapes, which is not given'),
        ('--data x.zip --trajectory dataset', 'x.zip: no such file or folder'),
        (f'--outdir {__file__}', 'test_gen_videos.py: it exists already'),
        ('--frames 5 --shapes ply --shape-frames 1,5', '--shape-frames 5 is beyond seed0000'),
        ('--interpolate 1,2', '--seeds has no effect beside --interpolate; leave one of them out'),
        ('--psi-cutoff 3', '--psi-cutoff has no effect beside --psi 1.0; give another --psi or leave'),
        ('--psi 0.5 --psi-cutoff 99', 'is beyond the network, whose layers are 0 to'),
        ('--mix-layers 3', '--mix-layers is for --mix-seed, which is not given'),
        ('--camera 9,9 --trajectory orbit', '--camera is for --trajectory front, not for orbit'),
        ('--camera 9', "'9' is not a camera; write YAW,PITCH"),
        ('--map-camera x', "'x' is none of auto, canonical, first, per-frame"),
        ('--motion-of a.pt', '--seeds has no effect beside --motion-of'),
        ('--camera-path none.json', 'none.json: no such file or folder'),
        ('--camera-path a.json --frames 3', '--camera-path has no effect beside --frames'),
        ('--image-at 0 --fps 3', '--fps has no effect beside --image-at'),
        ('--image-at 0 --sheet', '--sheet has no effect beside --image-at'),
        ('--portrait x --mix-seed 3', '--mix-seed has no effect beside --portrait'),
    ],
)
def test_errors_are_one_sentence(snapshot, tmp_path, args, message):
    result = call(snapshot, tmp_path / 'out', *args.split())
    assert result.exit_code != 0 and message in result.output
    assert result.output.strip().splitlines()[-1].startswith('Error: ')
    assert not (tmp_path / 'out').exists()


def test_frames_are_written_as_they_come(G, tmp_path, monkeypatch):
    """No rendered batch outlives the next one, so a clip may be of any length."""
    render, batches = rollout.render_batches, []

    def watched(*args):
        for batch in render(*args):
            assert all(alive() is None for alive in batches[:-1])
            batches.append(weakref.ref(batch.xyz))
            yield batch

    monkeypatch.setattr(rollout, 'render_batches', watched)
    writer = ClipWriter(G=G, outdir=tmp_path, report=lambda line: None)
    cameras, times = trajectories.front(14), trajectories.frame_times(14, SPAN)
    clip = Clip(
        name='a', codes=rollout.draw_codes(G, 0), cameras=cameras, map_cameras=cameras[:1], times=times
    )
    assert writer.videos(clip) == []
    tiles = writer.videos(clip, ['depth', 'normals'], tile=10)
    assert len(batches) == 8 and np.shape(tiles) == (14, 10, 10, 3)
    videos = [iio.imread(tmp_path / f'a{end}.mp4').astype(int) for end in ('', '-depth', '-normals')]
    assert [v.shape for v in videos] == [(14, 32, 32, 3)] * 3
    assert all(np.abs(a - b).mean() > 10 for a, b in itertools.combinations(videos, 2))


def test_a_snapshot_without_cameras_says_what_to_do(tmp_path, G):
    for meta in ({}, {'cameras': [[[0.0] * 7]]}, {'cameras': 'none'}, {'cameras': [[]]}):
        save_snapshot(tmp_path / 'a.pkl', {'G_ema': G}, meta)
        result = call(str(tmp_path / 'a.pkl'), tmp_path / 'out', '--trajectory', 'dataset')
        assert result.exit_code == 1 and '--data' in result.output
        assert 'holds no cameras of real clips' in result.output


def test_compiled_networks_make_the_same_video(snapshot, tmp_path, monkeypatch):
    compiled = mock.Mock(side_effect=functools.partial(torch.compile, backend='eager'))
    monkeypatch.setattr(torch, 'compile', compiled)
    videos = []
    for args in ('', ' --compile'):
        assert not compiled.called
        call(snapshot, tmp_path, *f'--frames 1 --no-sheet{args}'.split())
        videos.append((tmp_path / 'seed0000.mp4').read_bytes())
    assert compiled.call_count == 3 and videos[0] == videos[1]


def test_portrait_is_shown_and_one_of_another_network_refused(snapshot, G, tmp_path):
    save_portrait(tmp_path / 'a.portrait.pt', portrait(G))
    args = ['--portrait', str(tmp_path / 'a.portrait.pt'), '--frames', '3', '--seeds', '0,1']
    result = call(snapshot, tmp_path / 'out', *args)
    assert result.exit_code == 0, result.output
    first, second = (iio.imread(tmp_path / 'out' / f'seed000{i}-sheet.png') for i in range(2))
    column = 64 + 128  # the labels of the rows, and the neutral frame, whatever the seed
    assert np.array_equal(first[20:, :column], second[20:, :column]) and not np.array_equal(first, second)
    save_portrait(tmp_path / 'a.portrait.pt', portrait(G, network='0' * 64))
    result = call(snapshot, tmp_path / 'out2', *args)
    assert result.exit_code == 1 and 'belongs to another network' in result.output
    assert not (tmp_path / 'out2').exists()


@pytest.mark.parametrize(
    'what', ['--frames 3 --shapes ply --shape-resolution 16 --shape-frames 0,2', '--image-at 0']
)
def test_progress_ends_at_its_total(snapshot, tmp_path, monkeypatch, what):
    """Videos, sheets and meshes count."""
    totals, done = [], []

    @contextlib.contextmanager
    def noted(total, label, unit):
        totals.append(total)
        yield done.append

    monkeypatch.setattr('dnnlib.progress.progress', noted)
    assert call(snapshot, tmp_path, '--seeds', '0,1', *what.split()).exit_code == 0
    assert totals == [sum(done)] and totals[0]


def test_a_command_without_people(snapshot, tmp_path):
    result = CliRunner().invoke(gen_videos.main, ['--network', snapshot, '--outdir', str(tmp_path)])
    assert (
        result.exit_code == 1 and 'Error: give people: --seeds LIST, or --interpolate LIST' in result.output
    )
