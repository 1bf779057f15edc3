"""Mistakes of people and machines: one sentence on stderr, exit code 1, nothing half-written."""

import errno
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile

import pytest
import torch

from support.small_data import write_zip
from support.small_runs import ROOT, cli, start, train
from torch_utils import checkpoint

SOURCE = ('00000-tiny-clips-gpus1-batch4-gamma2-source', 'network-snapshot-000000000.pkl')
HAS_GPU = torch.cuda.is_available()


def refused(outdir, *args):
    """Runs a command that must fail, and returns the sentence."""
    before = sorted(outdir.rglob('*')) if outdir.exists() else []
    result = cli('--outdir', outdir, '--cfg', 'tiny', '--device', 'cpu', *args)
    assert result.code == 1, result
    assert result.err.startswith('Error: ') and result.err.count('\n') == 1 and result.err.endswith('\n')
    assert 'Traceback' not in result.out + result.err
    assert (sorted(outdir.rglob('*')) if outdir.exists() else []) == before
    return result.err[len('Error: ') : -1]


def changed(clip_files, change):
    """Returns the files of the data set with dataset.json changed by a function."""
    table = json.loads(clip_files['dataset.json'])
    change(table)
    return {**clip_files, 'dataset.json': json.dumps(table).encode()}


def set_label(table, label):
    table['labels'][3][1] = label


BAD_TABLES = {  # change of dataset.json -> what is said
    'no labels': (lambda t: t.pop('labels'), 'dataset.json has no labels'),
    'empty labels': (lambda t: t.update(labels=[]), 'dataset.json has no labels'),
    'a label is missing': (lambda t: set_label(t, None), '000000: the label of 00003.png is missing'),
    '24 numbers': (lambda t: set_label(t, [0.0] * 24), 'the label of 00003.png has 24 numbers instead of 25'),
    'nan': (lambda t: set_label(t, [float('nan')] * 25), 'the label of 00003.png is not finite'),
    'text': (lambda t: set_label(t, ['x'] * 25), 'the label of 00003.png is not finite'),
    'huge': (lambda t: set_label(t, [10**400] * 25), 'the label of 00003.png is not finite'),
    'clip of one frame': (
        lambda t: t.update(
            labels=[r for r in t['labels'] if not r[0].startswith('000002') or '00000.' in r[0]]
        ),
        '000002: has one frame, but a clip needs at least two',
    ),
    'another size': (
        lambda t: t.update(resolution=64),
        'holds 64x64 pictures but resolution=32 is asked for',
    ),
    'another format': (lambda t: t.update(format='video'), 'is not of the format "pv3d-dataset"'),
    'size is no number': (lambda t: t.update(resolution=True), 'resolution=True in dataset.json must be'),
    'rate is text': (lambda t: t.update(fps='25'), "fps='25' in dataset.json must be a number up to 1000"),
    'rate is 0': (lambda t: t.update(fps=0), 'fps=0 in dataset.json must be a number up to 1000'),
    'rate is nan': (lambda t: t.update(fps=float('nan')), 'fps=nan in dataset.json must be a number'),
    'newer version': (lambda t: t.update(version=9), 'version 9 of the format is not 1; update the code'),
}


@pytest.mark.parametrize('name', BAD_TABLES)
@pytest.mark.parametrize('kind', ['zip', 'folder'])
def test_bad_table(clip_files, tmp_path, name, kind):
    change, message = BAD_TABLES[name]
    files = changed(clip_files, change)
    path = tmp_path / 'data.zip'
    if kind == 'zip':
        write_zip(path, files)
    else:
        path.mkdir()
        (path / 'dataset.json').write_bytes(files['dataset.json'])
    said = refused(tmp_path / 'runs', '--data', path)
    assert str(path) in said and message in said
    assert not (tmp_path / 'runs').exists()


def bad_file(tmp_path, data, kind):
    path = tmp_path / 'data.zip'
    with open(data, 'rb') as file:
        whole = file.read()
    if kind == 'empty folder':
        path.mkdir()
    elif kind == 'empty zip':
        zipfile.ZipFile(path, 'w').close()
    elif kind in ('nested', 'bomb', 'odd method'):
        method = {'odd method': zipfile.ZIP_BZIP2}.get(kind, zipfile.ZIP_DEFLATED)
        table = b'[' * 100_000 + os.urandom(10_000).hex().encode() if kind == 'nested' else bytes(1 << 24)
        with zipfile.ZipFile(path, 'w', method) as archive:
            archive.writestr('dataset.json', table)
    elif kind == 'encrypted':  # bit 0 of the flags in the zip's directory
        path.write_bytes(re.sub(b'(PK\1\2.{4}).', lambda m: m[1] + b'\1', whole, flags=re.DOTALL))
    elif kind != 'missing':
        content = {'empty file': b'', 'cut short': whole[: len(whole) // 2], 'text': b'hello'}
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', 'no such file or folder; make a data set with dataset_tool.py'),
        ('empty folder', 'holds no dataset.json; make a data set with dataset_tool.py'),
        ('empty zip', 'holds no dataset.json'),
        ('empty file', 'is empty; copy it again'),
        ('cut short', 'cut short or damaged; copy it again'),
        ('text', 'is not a zip'),
        ('nested', 'dataset.json is not valid JSON'),
        ('bomb', 'bytes become 16777216); it must be stored or deflated'),
        ('odd method', 'dataset.json is not unpacked (45 bytes'),
        ('encrypted', 'cut short or damaged; copy it again'),
    ],
)
def test_bad_data(data, tmp_path, kind, message):
    path = bad_file(tmp_path, data, kind)
    said = refused(tmp_path / 'runs', '--data', path)
    assert said.startswith(str(path)) and message in said
    assert not (tmp_path / 'runs').exists()


def test_pictures_of_another_size(clip_files, tmp_path):
    table = json.loads(clip_files['dataset.json'])
    path = write_zip(
        tmp_path / 'data.zip',
        {**clip_files, 'dataset.json': json.dumps({**table, 'resolution': 64}).encode()},
    )
    said = refused(tmp_path / 'runs', '--data', path, '--cfg', 'demo')
    assert '000000/00000.png is 32x32 but dataset.json says 64x64' in said


def test_many_damaged_pictures_stop_the_run(clip_files, tmp_path):
    files = {n: b'x' if n[:6] in ('000001', '000003') else b for n, b in clip_files.items()}
    path = write_zip(tmp_path / 'data.zip', files)
    args = ['--data', path, '--outdir', tmp_path / 'runs', '--cfg', 'tiny', '--device', 'cpu']
    for workers in (0, 1):
        result = cli(*args, '--set', 'output.image_ticks=0', '--workers', workers)
        assert result.code == 1 and result.err.count('Error: ') == 1
        assert '2 of 6 clips cannot be read (000001, 000003); training stops above 1%' in (
            result.err.replace('000003, 000001', '000001, 000003')
        )


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--set loss.nothing=1', 'unknown option loss.nothing; known here: blur_fade_nimg, '),
        ('--set loss', '--set loss must be PATH=VALUE'),
        ('--batch 4 --batch-gpu 3', '--batch 4 must be a multiple of processes x --batch-gpu = 1 x 3'),
        ('--batch 6', '6 clips at a time'),
        (
            '--set generator.motion.num_layers=20',
            'motion.num_layers=20 exceeds the 4 blocks of 32x32 planes; lower it, or double',
        ),
        ('--set generator.sr_resolution=24', 'resolution=32 must be 2 or 4 times sr_resolution=24'),
        ('--set g_opt.lr=-1', 'Invalid learning rate'),
        ('--set density_weight=1', '; did you mean loss.density_weight?'),
        ('--device cuda:x', '--device cuda:x cannot be used here'),
        ('--cfg demo', 'holds 32x32 pictures but resolution=64 is asked for'),
    ],
)
def test_bad_options(data, tmp_path, args, message):
    (tmp_path / 'runs').mkdir()
    assert message in refused(tmp_path / 'runs', '--data', data, *args.split())


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--max-minutes -5', 'x>0'),
        ('--max-minutes 0', 'x>0'),
        ('--batch 0', 'x>=1'),
        ('--glr -1', 'x>=0'),
        ('--kimg inf', 'is not a finite number'),
        ('--mirror maybe', "'maybe' is not one of 'true', '1', 'false', '0'"),
    ],
)
def test_values_that_an_option_cannot_have(tmp_path, args, message):
    result = cli(
        '--outdir', tmp_path / 'runs', '--data', 'd.zip', '--cfg', 'tiny', '--dry-run', *args.split()
    )
    assert (result.code, result.out) == (2, '') and message in result.err.splitlines()[-1]


@pytest.mark.parametrize('script', ['train', 'gen_videos', 'calc_metrics', 'legacy', 'dataset_tool'])
def test_python_without_packages(script):
    command = [sys.executable, '-S', ROOT / f'{script}.py', '--help']  # -S: without site-packages
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': ''})
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith('Error: packages are missing (click, ') and done.stderr.count('\n') == 1
    assert 'make install' in done.stderr


def test_networks_are_refused_before_anything_is_opened(data, tmp_path):
    args = ['--data', data, '--set', 'generator.motion.num_layers=20']
    result = cli('--outdir', tmp_path / 'runs', '--cfg', 'tiny', '--device', 'cpu', *args)
    assert (result.code, result.out) == (1, '') and not (tmp_path / 'runs').exists()


def test_missing_weights_stop_a_new_run_alone(data, tmp_path):
    weights = tmp_path / 'a.pkl'
    args = ['--outdir', tmp_path / 'runs', '--cfg', 'tiny', '--device', 'cpu', '--data', data]
    args += ['--kimg', 0, '--set', 'output.image_ticks=0', '--resume', weights]
    result = cli(*args)
    assert result.code == 1 and 'run folder' not in result.out
    assert result.err == f'Error: cannot read {weights}: no such file or folder; check the path\n'
    cli(*args[:-2], '--desc', 'source')
    (tmp_path / 'runs').joinpath(*SOURCE).rename(weights)
    assert cli(*args).out.endswith('done\n')
    weights.unlink()
    assert 'this run was finished before' in cli(*args).out  # its own checkpoint is enough


@pytest.mark.skipif(HAS_GPU, reason='there is a GPU')
def test_no_gpu(data, tmp_path):
    said = refused(tmp_path / 'runs', '--data', data, '--device', 'cuda')
    assert said.startswith('--device cuda cannot be used here; use auto or cpu')


@pytest.fixture(scope='module')
def snapshot(small, tmp_path_factory):
    """Bytes of a snapshot of the preset."""
    folder = tmp_path_factory.mktemp('source')
    train(small.__class__(**{**small.__dict__, 'total_nimg': 0}), folder)
    return checkpoint.snapshot_path(folder, 0)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def bad_snapshot(path, snapshot, kind):
    content = torch.load(snapshot, weights_only=True)
    if kind == 'cut short':
        path.write_bytes(snapshot.read_bytes()[:-5000])
    elif kind == 'damaged':
        data = bytearray(snapshot.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif kind in ('options', 'large'):
        content['networks']['G']['config'].update(span=1) if kind == 'options' else None
        content['networks']['G']['config'].update(z_dim=10**13) if kind == 'large' else None
        torch.save(content, path)
    elif kind == 'newer':
        torch.save({**content, 'version': 99}, path)
    elif kind == 'other format':
        torch.save({'state_dict': {}}, path)
    elif kind == 'hostile zip':
        torch.save({**content, 'meta': Evil(path.with_name('ran'))}, path)
    elif kind == 'hostile pickle':
        path.write_bytes(pickle.dumps(Evil(path.with_name('ran'))))
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'without D':
        torch.save({**content, 'networks': {'G_ema': content['networks']['G_ema']}}, path)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', 'cannot read {}: no such file or folder'),
        ('folder', 'cannot read {}: it is a folder, not a file'),
        ('cut short', '{}: cut short or corrupted'),
        ('damaged', '{}: cut short or corrupted (wrong checksum of'),
        ('newer', '{}: file version 99 is not known'),
        ('options', '{}: G was saved with options'),
        ('large', '{}: G was saved with options'),
        ('other format', '{}: no known format: '),
        ('hostile zip', '{}: refused, not the plain data of a PV3D snapshot (it wants to call'),
        ('hostile pickle', '{}: refused, it asks for posix.system, which is not plain data'),
        ('without D', "{}: no network 'G' in this snapshot; it has G_ema"),
    ],
)
def test_bad_snapshot(data, snapshot, tmp_path, kind, message):
    path = tmp_path / 'a.pkl'
    bad_snapshot(path, snapshot, kind)
    (tmp_path / 'runs').mkdir()
    said = refused(tmp_path / 'runs', '--data', data, '--resume', path)
    assert said.startswith(message.format(path))
    assert not (tmp_path / 'ran').exists()


def test_snapshot_of_other_networks(data, snapshot, tmp_path):
    (tmp_path / 'runs').mkdir()
    args = ['--data', data, '--resume', snapshot, '--set', 'generator.channel_max=8']
    assert f'{snapshot}: G does not fit' in refused(tmp_path / 'runs', *args)


def test_outdir_is_a_file(data, tmp_path):
    (tmp_path / 'runs').write_text('not a folder')
    for outdir in (tmp_path / 'runs', tmp_path / 'runs' / 'below'):
        said = refused(outdir, '--data', data)
        assert said.startswith(f'cannot write {tmp_path}/runs')
    assert (tmp_path / 'runs').read_text() == 'not a folder'


@pytest.mark.skipif(os.geteuid() == 0, reason='nothing is forbidden to root')
def test_outdir_may_not_be_written(data, tmp_path):
    outdir = tmp_path / 'runs'
    outdir.mkdir(mode=0o500)
    assert 'permission denied' in refused(outdir, '--data', data)


def test_disk_full_at_the_start(data, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    (tmp_path / 'runs').mkdir()
    said = refused(tmp_path / 'runs', '--data', data)
    assert said.startswith(f'cannot write {tmp_path}/runs/00000') and 'the disk is full' in said


@pytest.mark.slow
def test_disk_full_at_a_checkpoint(data, tmp_path):
    """Files may not exceed 300 kB, which a snapshot does: what is there stays whole, and there is no more."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    args = ['--outdir', tmp_path, '--data', data, '--cfg', 'tiny', '--device', 'cpu', '--kimg', 0.004]
    with start(*args, '--set', 'output.sheet_seeds=1', preexec_fn=limit) as process:
        printed = process.communicate()[0]
    assert process.returncode == 1
    (run_dir,) = tmp_path.iterdir()
    *_, last = printed.splitlines()
    name = run_dir / 'network-snapshot-000000004.pkl'
    assert last.startswith(f'Error: cannot write {name}: the file is larger than this file system') and (
        'Traceback' not in printed
    )
    names = {p.name for p in run_dir.iterdir()}
    assert {'training_options.json', 'log.txt', 'stats.jsonl', 'reals.png'} <= names
    assert not any(n.endswith(('.pkl', '.pt', '.tmp')) for n in names)
