"""gen_videos.py: single images, printed commands, mixes, loops, camera paths, motion of portraits."""

import shlex

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import gen_videos
from dnnlib.scene import Camera
from editing.codes import open_portrait, save_portrait
from support.generate import SPAN, call, names, network, saved
from support.portraits import portrait
from viz import camera_path, trajectories
from viz.look import Look
from viz.view import View, Views, command_line


@pytest.fixture(scope='module')
def G():
    return network(8.0)


@pytest.fixture(scope='module')
def snapshot(G, tmp_path_factory):
    return saved(G, tmp_path_factory.mktemp('network'))


VIEWS = [
    View(seed=2, time=0.0),
    View(seed=1, motion_seed=5, time=1 / 3, camera=Camera(yaw=-20.0, pitch=100 / 7, fov=15.5)),
    View(
        look=Look(psi=0.7, cutoff=3, mix_seed=4, mix_layers=(1, 2), mix_weight=0.3),
        strength=1.5,
        time=0.6,
        camera=Camera(radius=3.1, look_at=(0.0, 0.05, 0.1)),
        map_camera=Camera(yaw=10.0),
        neural_resolution=12,
        render_samples=8,
    ),
    View(look=Look(psi=0.5, cutoff=0, mix_seed=4, mix_layers=())),
    View(look=Look(psi=-0.5, mix_seed=4), camera=Camera(yaw=30.0), map_camera='per-frame'),
]


@pytest.mark.parametrize('view', VIEWS)
def test_printed_command_makes_the_image_of_the_view(snapshot, G, tmp_path, view):
    """Bit for bit, whatever was rendered before."""
    views = Views(G)
    views.image(View(seed=9))
    line = command_line(view, snapshot, tmp_path / 'a folder', more=['--device=cpu', '--depth', '--raw'])
    python, script, *args = shlex.split(line)
    result = CliRunner().invoke(gen_videos.main, args)
    assert (python, script) == ('python', 'gen_videos.py') and result.exit_code == 0, result.output
    (stem,) = (p.stem for p in (tmp_path / 'a folder').glob('*-raw.png'))
    assert len(names(tmp_path / 'a folder')) == 3
    for kind, end in (('image', ''), ('raw', '-raw'), ('depth', '-depth')):
        made = iio.imread(tmp_path / 'a folder' / f'{stem.removesuffix("-raw")}{end}.png')
        assert np.array_equal(made, views.image(view, kind))


def test_images_of_several_people_and_their_grid(snapshot, G, tmp_path):
    assert call(snapshot, tmp_path, '--seeds', '0,3', '--image-at', '0.5').exit_code == 0
    assert names(tmp_path) == ['grid.png', 'seed0000.png', 'seed0003.png']
    assert np.array_equal(iio.imread(tmp_path / 'seed0003.png'), Views(G).image(View(seed=3, time=0.5)))
    assert iio.imread(tmp_path / 'grid.png').shape == (128, 256, 3)


def test_numbered_frames_replace_those_of_a_longer_clip(snapshot, tmp_path):
    args = ['--seeds', '0,1', '--no-sheet', '--video-format', 'png', '--opacity', '--frames']
    assert call(snapshot, tmp_path, *args, '5').exit_code == 0
    first = iio.imread(tmp_path / 'seed0001' / '0001.png')
    assert call(snapshot, tmp_path, *args, '2').exit_code == 0
    assert names(tmp_path) == ['grid', 'seed0000', 'seed0000-opacity', 'seed0001', 'seed0001-opacity']
    assert all(names(folder) == ['0000.png', '0001.png'] for folder in tmp_path.iterdir())
    assert np.abs(iio.imread(tmp_path / 'seed0001' / '0001.png').astype(int) - first).max() <= 1


def test_loop_through_people(snapshot, G, tmp_path):
    """At their turns they look as by themselves, with the motion of the first."""
    args = [
        '--no-sheet',
        '--video-format',
        'png',
        '--frames',
        '6',
        '--interpolate',
        '1,5,9',
        '--time',
        'cycle',
    ]
    command = ['--network', snapshot, '--outdir', str(tmp_path), '--device', 'cpu', *args]
    assert CliRunner().invoke(gen_videos.main, command).exit_code == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name == 'seed0001-0005-0009' and len(names(folder)) == 6
    for i, seed in enumerate((1, 5, 9)):
        t = float(trajectories.frame_times(6, SPAN, 'cycle')[2 * i])
        alone = Views(G).image(View(seed=seed, motion_seed=1, time=t)).astype(int)
        assert np.abs(iio.imread(folder / f'{2 * i:04d}.png') - alone).max() <= 1  # batches round differently


def test_camera_path_is_followed_at_the_frame_rate(snapshot, G, tmp_path):
    keys = [camera_path.Keyframe(time_sec=s, camera=Camera(yaw=y)) for s, y in ((0.0, -20.0), (0.4, 20.0))]
    camera_path.save_path(tmp_path / 'a.json', camera_path.CameraPath(keyframes=tuple(keys)))
    args = f'--camera-path {tmp_path}/a.json --fps 10 --no-sheet --video-format png --motion-strength 0'
    assert call(snapshot, tmp_path / 'out', *args.split()).exit_code == 0
    folder = tmp_path / 'out' / 'seed0000'
    assert len(names(folder)) == 5
    for i, yaw in ((0, -20.0), (4, 20.0)):
        alone = Views(G).image(View(time=0.0, camera=Camera(yaw=yaw))).astype(int)
        assert np.abs(iio.imread(folder / f'{i:04d}.png') - alone).max() <= 1


def test_recorded_and_transferred_motion_of_portraits(snapshot, G, tmp_path):
    """The command of a view makes its image, whose motion is that of the frame."""
    me, you = (tmp_path / f'{name}.portrait.pt' for name in ('me', 'you'))
    own, other = portrait(G, 3), portrait(G, 5, seed=1)
    save_portrait(me, own)
    save_portrait(you, other)
    moved = other.u[2:3] + own.neutral - other.neutral
    for source, time, u in ((me, 1.0, own.u[2:]), (you, 0.5, moved)):
        view = View(time=time, camera=Camera(yaw=9.0))
        person = open_portrait(G, me, motion_of=source)
        line = command_line(view, snapshot, tmp_path / 'out', me, source, ['--device=cpu'])
        result = CliRunner().invoke(gen_videos.main, shlex.split(line)[2:])
        assert result.exit_code == 0, result.output
        name = f'me-as-{source.name.partition(".")[0]}'
        made = iio.imread(tmp_path / 'out' / f'{name}.png')
        assert np.array_equal(made, Views(person).image(view))
        with torch.no_grad():
            planes = G.moved_scene(own.ws, u)
            torch.testing.assert_close(Views(person).scene(view)[0], planes)
    args = ['--portrait', str(me), '--motion-of', str(you), '--no-sheet', '--video-format', 'png']
    line = ['--network', snapshot, '--outdir', str(tmp_path / 'clip'), '--device', 'cpu', *args]
    assert CliRunner().invoke(gen_videos.main, line).exit_code == 0
    assert len(names(tmp_path / 'clip' / 'me-as-you')) == 5
    save_portrait(you, portrait(G, 1))
    result = CliRunner().invoke(gen_videos.main, line)
    assert result.exit_code == 1 and 'you.portrait.pt has one frame and no motion' in result.output
