"""The command line of edit_videos.py, end to end on a tiny random network."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import edit_videos
from dnnlib.util import file_sha256
from editing.codes import load_portrait
from support import tiny
from torch_utils.checkpoint import save_snapshot

FEW = ['--steps', '3', '--layer-steps', '2', '--tune-steps', '2']


@pytest.fixture(scope='module')
def snapshot(tmp_path_factory):
    path = tmp_path_factory.mktemp('network') / 'network-snapshot-000001.pkl'
    save_snapshot(path, {'G_ema': tiny.solid_generator()}, {'kimg': 1})
    return str(path)


def call(snapshot, outdir, *args):
    """Runs a command; an exception that is not a clear error fails the test."""
    usual = ['--network', snapshot, '--outdir', str(outdir), '--device', 'cpu']
    result = CliRunner().invoke(edit_videos.main, [*map(str, args), *usual])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(snapshot, outdir, *args):
    """Runs a command that must succeed; returns the names of the files."""
    result = call(snapshot, outdir, *args)
    assert result.exit_code == 0, result.output
    return sorted(p.name for p in outdir.iterdir())


@pytest.fixture(scope='module')
def found(snapshot, data, tmp_path_factory):
    """A folder with the portraits of an image and of a video of three frames."""
    folder = tmp_path_factory.mktemp('found')
    done(snapshot, folder, 'project', f'{data}:1:2', '--name', 'image', *FEW)
    done(
        snapshot,
        folder,
        'reconstruct',
        f'{data}:0',
        '--frames',
        '3',
        '--name',
        'clip',
        '--motion-steps',
        '2',
        *FEW,
    )
    return folder


def test_project_and_reconstruct_write_all(found):
    parts = ('-compare.png', '-orbit.mp4', '-report.html', '-report.json', '.portrait.pt')
    names = [f'{name}{part}' for name in ('clip', 'image') for part in parts] + ['clip-compare.mp4']
    assert sorted(p.name for p in found.iterdir()) == sorted(names)
    report = json.loads((found / 'clip-report.json').read_text())
    assert report['image']['psnr'] > 5 and report['motion']['error'] > 0
    assert 'Synthetic, made by PV3D' in Image.open(found / 'clip-compare.png').text['Comment']
    assert b'Synthetic, made by PV3D' in (found / 'clip-compare.mp4').read_bytes()
    assert iio.imread(found / 'clip-compare.mp4').shape == (3, 128, 5 * 128, 3)
    portrait = load_portrait(found / 'clip.portrait.pt')
    assert len(portrait.u) == 3 and portrait.tuned and portrait.provenance['network sha256']


def test_same_command_same_bytes(snapshot, data, found, tmp_path, monkeypatch):
    monkeypatch.setattr(edit_videos, '_command', lambda: 'x')
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f'.x-orbit.mp4.{"0" * 32}.tmp').touch()  # a killed command left it
        done(snapshot, tmp_path / folder, 'project', f'{data}:1:2', *FEW)
    for path in (tmp_path / 'a').iterdir():
        assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes(), path.name
        assert path.suffix != '.tmp'


def test_applications(snapshot, data, found, tmp_path, monkeypatch):
    monkeypatch.setattr(edit_videos, '_command', lambda: 'this command')
    clip, image = found / 'clip.portrait.pt', found / 'image.portrait.pt'
    names = done(snapshot, tmp_path, 'animate', image, '--frames', '3', '--motion-seeds', '0-1', '--depth')
    assert names == [f'image-motion000{i}{kind}.mp4' for i in range(2) for kind in ('-depth', '')]
    silent = ['--sound', found / 'clip-compare.mp4']
    result = call(snapshot, tmp_path, 'edit', clip, '--from-frame', '1', '--frames', '3', *silent)
    assert 'clip-compare.mp4 has no sound' in result.output
    assert iio.imread(tmp_path / 'clip-edit0000.mp4').shape == (4, 32, 32, 3)
    names = done(snapshot, tmp_path, 'transfer', clip, image)
    assert iio.imread(tmp_path / 'image-as-clip.mp4').shape == (3, 32, 32, 3)
    shape = ['--shapes', 'glb', '--shape-resolution', '16']
    names = done(snapshot, tmp_path, 'views', clip, '--frames', '3', *shape)
    assert {'clip-orbit.mp4', 'clip-orbit-depth.mp4', 'clip.glb'} < set(names)
    names = done(snapshot, tmp_path, 'score', clip, '--truth', f'{data}:1')
    assert json.loads((tmp_path / 'clip-score.json').read_text())['truth']['images'] > 3
    assert 'clip-score.json' in names
    for name in names:  # who made it, and with what
        content = (tmp_path / name).read_bytes()
        for part in ('Synthetic, made by PV3D', file_sha256(snapshot), 'shown by this command'):
            assert part.encode() in content, (name, part)
    moved = (tmp_path / 'image-as-clip.mp4').read_bytes()
    assert b'(source clips.zip:1:2), shown by this command, with the motion of clips.zip:0' in moved


@pytest.mark.parametrize(
    ('args', 'named'),
    [
        (['project', 'none.png'], 'none.png is not a file'),
        (['project', __file__], 'neither an image nor a video'),
        (['project', '{data}:99:0'], 'no clip 99'),
        (['project', '{data}:0:99'], 'no frame 99'),
        (['reconstruct', '{data}:0', '--frames', '2', '--neutral', '2'], '--neutral 2'),
        (
            ['project', '{data}:0:0', '--preset', 'paper', '--layer-steps', '2'],
            '--layer-steps is for --space w',
        ),
        (['edit', '{clip}', '--from-frame', '3'], '--from-frame 3'),
        (['animate', '{data}'], 'not a PV3D portrait'),
        (['score', '{clip}', '--truth', 'x.png'], 'x.png is not a clip'),
        (['score', '{clip}', '--lpips', 'x'], '--lpips'),
    ],
)
def test_bad_input_is_one_sentence(snapshot, data, found, tmp_path, args, named):
    places = {'data': data, 'clip': found / 'clip.portrait.pt'}
    result = call(snapshot, tmp_path / 'out', *(a.format(**places) for a in args))
    assert result.exit_code == 1 and named in result.output and 'Traceback' not in result.output
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())
    assert len(result.output.strip().splitlines()) == 1


def test_images_without_a_face_are_refused(snapshot, tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / 'black.png')
    result = call(snapshot, tmp_path / 'out', 'project', tmp_path / 'black.png')
    assert result.exit_code == 1 and 'no face was found' in result.output
    (tmp_path / 'text.jpg').write_text('x')
    result = call(snapshot, tmp_path / 'out', 'project', tmp_path / 'text.jpg')
    assert result.exit_code == 1 and 'text.jpg: not an image' in result.output
    assert torch.is_grad_enabled()
