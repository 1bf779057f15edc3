"""Errors of people and machines: one sentence on stderr, exit code 1, nothing half-written."""

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
    usual = {'--cfg': 'tiny', '--device': 'cpu'}
    added = [word for pair in usual.items() if pair[0] not in args for word in pair]
    result = cli('--outdir', outdir, *added, *args)
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


def drop_frames(table):
    table['labels'] = [r for r in table['labels'] if not r[0].startswith('000002') or '00000.' in r[0]]


BAD_TABLES = {  # change of dataset.json -> what is named
    'no labels': (lambda t: t.pop('labels'), 'dataset.json'),
    'empty labels': (lambda t: t.update(labels=[]), 'dataset.json'),
    'a label is missing': (lambda t: set_label(t, None), '000000: the label of 00003.png is missing'),
    '24 numbers': (lambda t: set_label(t, [0.0] * 24), '00003.png has 24 numbers'),
    'nan': (lambda t: set_label(t, [float('nan')] * 25), '00003.png is not finite'),
    'text': (lambda t: set_label(t, ['x'] * 25), '00003.png is not finite'),
    'huge': (lambda t: set_label(t, [10**400] * 25), '00003.png is not finite'),
    'clip of one frame': (drop_frames, '000002: has one frame'),
    'another size': (lambda t: t.update(resolution=64), 'holds 64x64'),
    'another format': (lambda t: t.update(format='video'), '"pv3d-dataset"'),
    'size is no number': (lambda t: t.update(resolution=True), 'resolution=True'),
    'rate is text': (lambda t: t.update(fps='25'), "fps='25'"),
    'rate is 0': (lambda t: t.update(fps=0), 'fps=0'),
    'rate is nan': (lambda t: t.update(fps=float('nan')), 'fps=nan'),
    'newer version': (lambda t: t.update(version=9), 'version 9'),
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
    reported = refused(tmp_path / 'runs', '--data', path)
    assert str(path) in reported and message in reported
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
        ('missing', 'no such file or folder'),
        ('empty folder', 'dataset.json'),
        ('empty zip', 'dataset.json'),
        ('empty file', 'empty'),
        ('cut short', 'cut short'),
        ('text', 'zip'),
        ('nested', 'dataset.json is not valid JSON'),
        ('bomb', 'become 16777216'),
        ('odd method', 'dataset.json is not unpacked'),
        ('encrypted', 'cut short'),
    ],
)
def test_bad_data(data, tmp_path, kind, message):
    path = bad_file(tmp_path, data, kind)
    reported = refused(tmp_path / 'runs', '--data', path)
    assert reported.startswith(str(path)) and message in reported
    assert not (tmp_path / 'runs').exists()


def test_images_of_another_size(clip_files, tmp_path):
    files = changed(clip_files, lambda table: table.update(resolution=64))
    path = write_zip(tmp_path / 'data.zip', files)
    reported = refused(tmp_path / 'runs', '--data', path, '--cfg', 'demo')
    assert '000000/00000.png is 32x32 but dataset.json states 64x64' in reported


def test_many_corrupted_images_stop_the_run(clip_files, tmp_path):
    files = {n: b'x' if n[:6] in ('000001', '000003') else b for n, b in clip_files.items()}
    path = write_zip(tmp_path / 'data.zip', files)
    args = ['--data', path, '--outdir', tmp_path / 'runs', '--cfg', 'tiny', '--device', 'cpu']
    for workers in (0, 1):
        result = cli(*args, '--set', 'output.image_ticks=0', '--workers', workers)
        assert result.code == 1 and result.err.count('Error: ') == 1
        assert re.search('2 of 6 clips cannot be read .(000001, 000003|000003, 000001).;', result.err)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--set loss.nothing=1', 'unknown option loss.nothing; known here: blur_fade_nimg, '),
        ('--set loss', '--set loss must be PATH=VALUE'),
        ('--set batch=4 --batch 8', '--set batch=4: given twice, also by --batch'),
        ('--set dataset.span=4', 'generator.span'),
        ('--batch 4 --batch-gpu 3', '--batch 4 must be a multiple of processes x --batch-gpu = 1 x 3'),
        ('--batch 6', '6 clips at a time'),
        ('--set generator.motion.num_layers=20', 'motion.num_layers=20 exceeds the 4 blocks'),
        ('--set generator.sr_resolution=24', 'resolution=32 must be 2 or 4 times sr_resolution=24'),
        ('--set g_opt.lr=-1', 'lr=-1'),
        ('--set density_weight=1', '; did you mean loss.density_weight?'),
        ('--device cuda:x', '--device cuda:x'),
        ('--cfg demo', 'holds 32x32'),
    ],
)
def test_bad_options(data, tmp_path, args, message):
    (tmp_path / 'runs').mkdir()
    assert message in refused(tmp_path / 'runs', '--data', data, *args.split())


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--max-minutes 0', 'must be more than 0'),
        ('--batch 0', 'must be at least 1'),
        ('--glr -1', 'must be at least 0'),
        ('--kimg inf', 'must be finite'),
        ('--mirror maybe', "'maybe' is not a valid boolean"),
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
    reported = refused(tmp_path / 'runs', '--data', data, '--device', 'cuda')
    assert reported.startswith('--device cuda cannot be used here; use auto or cpu')


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
    elif kind == 'corrupted':
        data = bytearray(snapshot.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
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
        ('missing', 'no such file or folder'),
        ('folder', 'it is a folder'),
        ('cut short', 'cut short'),
        ('corrupted', 'checksum'),
        ('newer', 'version 99'),
        ('other format', 'format'),
        ('hostile zip', 'it wants to call'),
        ('hostile pickle', 'format'),
        ('without D', "no network 'G' in this snapshot; it has G_ema"),
    ],
)
def test_bad_snapshot(data, snapshot, tmp_path, kind, message):
    path = tmp_path / 'a.pkl'
    bad_snapshot(path, snapshot, kind)
    (tmp_path / 'runs').mkdir()
    reported = refused(tmp_path / 'runs', '--data', data, '--resume', path)
    assert f'{path}: ' in reported and message in reported
    assert not (tmp_path / 'ran').exists()


def test_snapshot_of_other_networks(data, snapshot, tmp_path):
    (tmp_path / 'runs').mkdir()
    args = ['--data', data, '--resume', snapshot, '--set', 'generator.channel_max=8']
    assert f'{snapshot}: G does not fit' in refused(tmp_path / 'runs', *args)


def test_outdir_is_a_file(data, tmp_path):
    (tmp_path / 'runs').write_text('not a folder')
    for outdir in (tmp_path / 'runs', tmp_path / 'runs' / 'below'):
        reported = refused(outdir, '--data', data)
        assert reported.startswith(f'cannot write {tmp_path}/runs')
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
    reported = refused(tmp_path / 'runs', '--data', data)
    assert reported.startswith(f'cannot write {tmp_path}/runs/00000') and 'the disk is full' in reported


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
    name = run_dir / 'training-state-000000004.pt'
    assert last.startswith(f'Error: cannot write {name}: the file is larger') and 'Traceback' not in printed
    names = {p.name for p in run_dir.iterdir()}
    assert {'training_options.json', 'log.txt', 'stats.jsonl', 'reals.png'} <= names
    assert not any(n.endswith(('.pkl', '.pt', '.tmp')) for n in names)
