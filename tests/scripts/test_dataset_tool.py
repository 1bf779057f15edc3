"""Packing videos, folders and the released layout; checking; contact sheets; the command line."""

import errno
import io
import json
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dataset_tool import main
from dnnlib.util import UserError
from preprocessing.dataset_files import check, sheets
from preprocessing.dataset_files import pack as packing
from preprocessing.dataset_files.check import camera_problems, check_dataset
from support.small_data import CLIPS, FRAMES, SIZE, write_zip
from support.videos import ramps as images
from support.videos import write_video
from training.camera import orbit_label
from training.data.dataset import VideoDataset


def run(*args):
    """Runs the command line; returns exit status and everything printed."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def labels(n, yaw=0.0):
    return [orbit_label(yaw + 0.02 * i, 0.1).tolist() for i in range(n)]


def write_folder(path, frames):
    path.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f'f{i}.png')  # f10 after f9 only in natural order


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A folder with a video, a folder of images, and a video without labels."""
    root = tmp_path_factory.mktemp('source')
    write_video(root / 'deep/b.mp4', images(12))
    write_folder(root / 'a', images(11, start=20))
    write_video(root / 'unlabelled.mp4', images(3))
    (root / 'cameras.json').write_text(json.dumps({'deep/b.mp4': labels(12, 0.3), 'a': labels(11)}))
    return root


def pack(source, dest, *args):
    return run('pack', '--source', source, '--dest', dest, '--resolution', 32, '--workers', 1, *args)


def test_pack_keeps_frames_order_and_labels(source, tmp_path):
    code, output = pack(source, tmp_path / 'sub/x.zip')
    assert code == 0 and '1 clips without labels: unlabelled.mp4' in output
    dataset = VideoDataset.Config(path=str(tmp_path / 'sub/x.zip'), resolution=32).build()
    assert dataset.names == ['000000', '000001'] and [dataset.num_frames(i) for i in (0, 1)] == [11, 12]
    np.testing.assert_allclose(dataset.clip_cameras(0), labels(11), atol=1e-7)
    np.testing.assert_allclose(dataset.clip_cameras(1), labels(12, 0.3), atol=1e-7)
    for clip, start, tolerance in ((0, 20, 1), (1, 0, 6)):  # the video has been through a lossy codec
        frames = dataset.clip_frames(clip, range(11)).permute(0, 2, 3, 1).numpy().astype(int)
        expected = images(11, 64, start).reshape(11, 32, 2, 32, 2, 3).mean(axis=(2, 4))
        assert np.abs(frames - expected)[:, 2:-2, 2:-2].max() <= tolerance
    with zipfile.ZipFile(tmp_path / 'sub/x.zip') as archive:
        table = json.loads(archive.read('dataset.json'))
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert [clip['source'] for clip in table['clips'].values()] == ['a', 'deep/b.mp4']
    assert table['clips']['000001']['fps'] == 10


def test_the_number_of_workers_changes_nothing(source, tmp_path):
    clips, _ = packing.find_plain(str(source), str(source / 'cameras.json'))
    for workers in (1, 2):
        dest = str(tmp_path / f'{workers}.zip')
        packing.pack(clips, dest, packing.PackOptions(16), workers=workers, skip_bad=False)
    assert (tmp_path / '1.zip').read_bytes() == (tmp_path / '2.zip').read_bytes()


@pytest.mark.parametrize('kind', ['webp', 'jpg'])
def test_other_formats_and_fewer_frames(kind, source, tmp_path):
    assert pack(source, tmp_path / 'x.zip', '--format', kind, '--max-frames', 5)[0] == 0
    with zipfile.ZipFile(tmp_path / 'x.zip') as archive:
        assert f'000001/00004.{kind}' in archive.namelist()
    dataset = VideoDataset.Config(path=str(tmp_path / 'x.zip')).build()
    assert [dataset.num_frames(i) for i in range(2)] == [5, 5]
    frames = dataset.clip_frames(0, [4]).permute(0, 2, 3, 1).numpy().astype(float)
    assert np.abs(frames - images(5, 32, 20)[4]).mean() < 5


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the small image can show: only its mean may remain
    small = packing._encode(Image.fromarray(stripes), packing.PackOptions(16))
    values = np.asarray(Image.open(io.BytesIO(small))).astype(float)
    assert np.abs(values[:, 2:-2] - 127.5).max() < 2


def test_enlarging_is_reported(tmp_path):
    root, sides = tmp_path / 'source', {'a': 32, 'b': 16, 'c': 20, 'd': 40}
    for name, side in sides.items():
        write_folder(root / name, images(2, side))
    (root / 'cameras.json').write_text(json.dumps({name: labels(2) for name in sides}))
    code, output = pack(root, tmp_path / 'x.zip')
    assert code == 0 and output.count('warning') == 1
    assert 'images of 2 clips were enlarged to 32x32, they are 16x16 to 20x20' in output
    (root / 'cameras.json').write_text(json.dumps({name: labels(2) for name in 'ad'}))
    assert 'warning' not in pack(root, tmp_path / 'x.zip')[1]


def test_bad_clips_are_all_named_and_nothing_is_left(tmp_path):
    """One good clip and one of each kind of bad ones."""
    root = tmp_path / 'bad'
    for name in ('good', 'few', 'numbers', 'nan', 'torn'):
        write_folder(root / name, images(3, 16))
    write_folder(root / 'wide', images(3, 16)[:, :8])
    write_folder(root / 'single', images(1, 16))
    (root / 'torn/f1.png').write_bytes((root / 'torn/f1.png').read_bytes()[:50])
    write_video(root / 'cut.mp4', images(3))
    (root / 'cut.mp4').write_bytes((root / 'cut.mp4').read_bytes()[:300])
    table = {name: labels(3) for name in ('good', 'wide', 'torn', 'cut.mp4')}
    table |= {'few': labels(4), 'numbers': [[1.0] * 24] * 3, 'nan': labels(2) + [[float('nan')] * 25]}
    table |= {'single': labels(1)}
    (root / 'cameras.json').write_text(json.dumps(table))
    code, output = pack(root, tmp_path / 'x.zip')
    assert code == 1 and '7 of 8 clips cannot be packed' in output
    assert all(reason in output for reason in REASONS), output
    assert sorted(os.listdir(tmp_path)) == ['bad']
    code, output = pack(root, tmp_path / 'x.zip', '--skip-bad')
    assert code == 0 and all(f'skipped, {reason}' in output for reason in REASONS), output
    assert len(VideoDataset.Config(path=str(tmp_path / 'x.zip')).build()) == 1


REASONS = [
    'few: 3 frames but 4 labels',
    'wide: is 16x8, not square',
    'numbers: the label of frame 0 is not a list of 25 finite numbers',
    'nan: the label of frame 2 is not a list of 25 finite numbers',
    'single: a clip needs at least two frames, this has 1',
    'torn: f1.png cannot be decoded',
    'cut.mp4: the video cannot be decoded',
]


def test_user_errors_of_pack(source, tmp_path):
    cameras = tmp_path / 'cameras.json'
    bad = {'{"lost.mp4": []}': 'lost.mp4', '{': 'not valid JSON', '[]': 'a JSON object'}
    for text, message in bad.items():
        cameras.write_text(text)
        code, output = pack(source, tmp_path / 'x.zip', '--cameras', cameras)
        assert code == 1 and message in output
    both = pack(source, tmp_path / 'x.zip', '--layout', 'released', '--cameras', cameras)
    assert '--cameras is for --layout plain' in both[1]
    assert 'no such file' in pack(source, tmp_path / 'x.zip', '--cameras', tmp_path / 'no.json')[1]
    assert 'is not a folder' in pack(tmp_path / 'no', tmp_path / 'x.zip')[1]
    assert 'must be the name of a zip' in pack(source, tmp_path / 'x')[1]
    code, output = pack(source, tmp_path / 'cameras.json/x.zip')
    assert code == 1 and 'cannot write' in output
    assert os.listdir(tmp_path) == ['cameras.json']


def test_full_disk(source, tmp_path, monkeypatch):
    def full(archive, name, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(packing, 'write_entry', full)
    code, output = pack(source, tmp_path / 'x.zip')
    assert code == 1 and 'cannot write' in output and os.listdir(tmp_path) == []


def test_a_failing_machine_is_not_the_fault_of_a_clip(source, tmp_path, monkeypatch):
    look, label_file = packing.PackOptions(32), tmp_path / 'a.json'
    clip = packing.RawClip('a', source / 'deep/b.mp4', label_file)
    assert 'cannot read' in packing.convert(clip, look)  # it is missing
    label_file.write_text('{')
    assert 'not valid JSON' in packing.convert(clip, look)
    assert pack(source, tmp_path / 'x.zip')[0] == 0

    def fail(*_, **__):
        raise OSError(errno.EMFILE, 'Too many open files')

    with monkeypatch.context() as patched, pytest.raises(OSError, match='Too many'):
        patched.setattr(Path, 'read_bytes', fail)
        packing.convert(clip, look)
    with monkeypatch.context() as patched, pytest.raises(OSError, match='Too many'):
        patched.setattr('training.data.files.os.pread', fail)
        check_dataset(str(tmp_path / 'x.zip'), 1)
    label_file.write_text(json.dumps([['a', row] for row in labels(12)]))
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    with pytest.raises(UserError, match='videos need ffmpeg'):
        packing.convert(clip, look)


def test_released_layout(tmp_path):
    root = tmp_path / 'vox'
    (root / 'smoothed_camera2world').mkdir(parents=True)
    lists = {'id1/clip.json': labels(3), 'id2/jsonclip.json': labels(9, 0.2)}  # of "mp4clip.mp4"
    for name, rows in lists.items():
        named = [[f'{i}.png', [str(v) for v in row]] for i, row in enumerate(rows)]
        (root / 'smoothed_camera2world' / Path(name).name).write_text(json.dumps(named))
    for name in ('id1/clip.mp4', 'id2/mp4clip.mp4'):
        write_video(root / 'recrop_faces' / name, images(5))
    (root / 'voxceleb.list').write_text('id1/clip.mp4\nid2/mp4clip.mp4\nid3/gone.mp4\n')
    code, output = pack(root, tmp_path / 'x.zip', '--layout', 'released')
    assert code == 0 and '1 clips without a video or labels: id3/gone.mp4' in output
    dataset = VideoDataset.Config(path=str(tmp_path / 'x.zip')).build()
    expected = labels(3)
    np.testing.assert_allclose(dataset.clip_cameras(0), expected + 2 * expected[-1:], atol=1e-7)
    np.testing.assert_allclose(dataset.clip_cameras(1), labels(5, 0.2), atol=1e-7)
    for content, message in (
        (b'id3/gone.mp4\n', 'none of them has'),
        (b'\xff\xfe\x00', 'is not a text file'),
    ):
        (root / 'voxceleb.list').write_bytes(content)
        assert message in pack(root, tmp_path / 'y.zip', '--layout', 'released')[1]
    os.remove(root / 'voxceleb.list')
    assert 'voxceleb.list: no such' in pack(root, tmp_path / 'y.zip', '--layout', 'released')[1]


def test_good_data_passes_and_the_cameras_are_drawn(data, tmp_path):
    code, output = run('check', data, '--plot', tmp_path / 'plot.png', '--workers', 2)
    assert code == 0 and 'all good' in output and f'{CLIPS} clips, {CLIPS * FRAMES} labelled frames' in output
    with Image.open(tmp_path / 'plot.png') as plot:
        assert plot.width > 1000
        assert len({color for _, color in plot.convert('RGB').getcolors(1 << 20)}) > 20


def test_check_counts_the_clips_and_camera_paths_of_known_people(data):
    index, _ = check_dataset(data, 1)
    assert check.people_lines(index) == []  # nothing says who they are
    counts = check.people_lines(
        replace(index, people=['identity a'] * 3 + ['identity b'] * 2 + ['clip 000005'])
    )
    assert counts == ['people: 2, each with 2 to 3 clips and 2 to 3 camera paths']
    cameras = index.cameras.copy()
    cameras[index.starts[1] : index.starts[2]] = cameras[: index.starts[1]]
    shared = replace(index, people=['identity a'] * 2 + ['identity b'] * 4, cameras=cameras)
    counts, warning = check.people_lines(shared)
    assert counts == 'people: 2, each with 2 to 4 clips and 1 to 4 camera paths'
    assert warning.startswith('warning: 1 of them')


def test_bad_clips_are_drawn_red(data):
    index, _ = check_dataset(data, 1)

    def red(bad):
        image = np.asarray(sheets.camera_plot(index, bad, 'x')).astype(int)
        return int((np.abs(image - [220, 30, 40]).max(axis=2) < 30).sum())

    assert red(set()) == 0 and red({'000002'}) > 50


def altered(change):
    """The label of a good camera after a change of its pose and intrinsics."""
    label = np.array(orbit_label(0.2, 0.1).tolist())
    change(label[:16].reshape(4, 4), label[16:].reshape(3, 3))
    return label


def flip_axes(pose, axes):
    pose[:3, axes] *= -1


CHANGES = [
    (lambda p, k: p[:3, 0].__imul__(1.01), 'rotation is not orthonormal'),
    (lambda p, k: flip_axes(p, [0]), 'determinant -1'),
    (lambda p, k: flip_axes(p, [1, 2]), 'upside down'),  # OpenGL axes
    (lambda p, k: flip_axes(p, [0, 2]), r'looks past the box'),
    (lambda p, k: flip_axes(p, [0, 1]), 'upside down'),
    (lambda p, k: p[:3, 3].__imul__(10), 'camera radius outside'),
    (lambda p, k: p[:3, 3].__imul__(0.5), 'camera radius outside'),
    (lambda p, k: p[:3, 3].__iadd__([0.9, 0, 0]), 'looks past the box'),
    (lambda p, k: k[:2].__imul__(512), 'focal length outside'),
    (lambda p, k: k[:2, 2].__imul__(512), 'principal point far'),
    (lambda p, k: p[3].__iadd__([0, 0, 1, 0]), 'last rows'),
]


@pytest.mark.parametrize(('change', 'message'), CHANGES)
def test_every_kind_of_bad_camera_is_found(change, message):
    good = altered(lambda p, k: p[:3, 3].__iadd__([0, 0.3, 0]))  # the head may stand off the axis
    assert camera_problems(np.stack([good, good])) == []
    found = camera_problems(np.stack([good, altered(change), good]))
    assert any(message in problem and '(frame 1)' in problem for problem in found), found


def test_check_names_every_bad_clip(clip_files, tmp_path):
    table = json.loads(clip_files['dataset.json'])
    rows = {name: label for name, label in table['labels']}
    rows['000001/00003.png'] = [0.0] * 24
    rows['000002/00004.png'][3] = 9.0
    del rows['000003/00005.png']
    truth = {'000005/00000.depth.png': clip_files['000000/00000.png']}  # needs no label
    files = {**clip_files, **truth}
    files['000004/00006.png'] = files['000004/00006.png'][:60]
    files['000005/00001.mask.png'] = b'not an image'
    table['labels'] = list(rows.items())
    path = write_zip(tmp_path / 'x.zip', {**files, 'dataset.json': json.dumps(table).encode()})
    code, output = run('check', path, '--workers', 2)
    assert code == 1 and '5 of 6 clips are bad: 000001, 000002, 000003, 000004, 000005' in output
    for message in ('00003.png has 24 numbers', 'camera radius outside 2.16 to 3.24 scene units (frame 4)'):
        assert message in output
    for file in ('00005.png has no label', '000004/00006.png cannot be', '000005/00001.mask.png cannot be'):
        assert file in output
    assert (tmp_path / 'x-cameras.png').exists()


def test_check_of_a_folder_and_of_nothing(data, tmp_path):
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / 'folder')
    os.remove(tmp_path / 'folder/000003/00001.png')
    code, output = run('check', tmp_path / 'folder')
    assert code == 1 and '1 of 6 clips are bad: 000003' in output
    assert '000003/00001.png cannot be read' in output
    code, output = run('check', tmp_path / 'none.zip')
    assert code == 1 and 'no such file or folder' in output


def test_contact_sheet_shows_the_frames(data, tmp_path):
    look = ['--clips', 3, '--frames', 2, '--size', SIZE]
    code, output = run('show', data, '--dest', tmp_path / 's.png', *look)
    assert code == 0 and 's.png' in output
    sheet = np.asarray(Image.open(tmp_path / 's.png'))
    dataset = VideoDataset.Config(path=data).build()
    for clip in (0, 2, 5):
        tile = dataset.clip_frames(clip, [FRAMES - 1])[0].permute(1, 2, 0).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape)[:, :, 0]
        rows = np.flatnonzero((windows[:, :, 0, 0] == tile[0, 0]).all(axis=-1))
        assert any((windows.reshape(-1, *tile.shape)[i] == tile).all() for i in rows)
    assert 'cannot write' in run('show', data, '--dest', tmp_path / 'no/folder/s.png')[1]
    assert 'must end in one of .png' in run('show', data, '--dest', tmp_path / 's.pdf')[1]


def test_synth_makes_a_data_set_that_passes(tmp_path):
    args = ['--frames', 2, '--resolution', 32, '--workers', 1, '--focal', 7]
    for given, clips in ((['--people', 1, '--motions', 2], 2), (['--clips', 1], 1)):
        code, output = run('synth', '--dest', tmp_path / 's.zip', *args, *given)
        assert code == 0, output
        code, output = run('check', tmp_path / 's.zip', '--workers', 1)
        assert code == 0 and f'{clips} clips' in output
        assert output.count('7.00 to 7.00') == clips
        assert ('people: 1, each with 1 clip and 1 camera path\nwarning: 1 of them' in output) == (clips == 1)
        assert ('people: 1, each with 2 clips and 2 camera paths' in output) == (clips == 2)


def test_synth_refuses_two_ways_to_say_how_many(tmp_path):
    code, output = run('synth', '--dest', tmp_path / 's.zip', '--clips', 2, '--motions', 2)
    assert code == 1 and output.startswith('Error: --clips N is short for --people N --motions 1')
