"""Errors of people and machines: one sentence on stderr, exit code 1, nothing half-written."""

import dataclasses
import errno
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

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


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'resolution': True}, 'resolution=True'),
        ({'resolution': 64}, 'holds 64x64'),
        ({'fps': '25'}, "fps='25'"),
        ({'fps': 0}, 'fps=0'),
        ({'fps': float('nan')}, 'fps=nan'),
        ({'labels': [[f'0/{i}.png', ['x'] * 25] for i in (0, 1)]}, '0.png is not finite'),
        ({'labels': [[f'0/{i}.png', [10**400] * 25] for i in (0, 1)]}, '0.png is not finite'),
    ],
)
def test_bad_table(clip_files, tmp_path, values, message):
    """In a folder; tests of the data set have those of zips."""
    (tmp_path / 'data').mkdir()
    table = json.loads(clip_files['dataset.json']) | values
    (tmp_path / 'data' / 'dataset.json').write_text(json.dumps(table))
    reported = refused(tmp_path / 'runs', '--data', tmp_path / 'data')
    assert f'{tmp_path}/data' in reported and message in reported
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', 'no such file or folder'),
        ('nested', 'dataset.json is not valid JSON'),
        ('odd method', 'dataset.json is not unpacked'),
        ('encrypted', 'cut short'),
    ],
)
def test_bad_zip(data, tmp_path, kind, message):
    path = tmp_path / 'data.zip'
    if kind == 'encrypted':  # bit 0 of the flags in the zip's directory
        whole = Path(data).read_bytes()
        path.write_bytes(re.sub(b'(PK\1\2.{4}).', lambda m: m[1] + b'\1', whole, flags=re.DOTALL))
    elif kind != 'missing':
        method = zipfile.ZIP_BZIP2 if kind == 'odd method' else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, 'w', method) as archive:
            archive.writestr('dataset.json', b'[' * 100_000 + os.urandom(10_000).hex().encode())
    reported = refused(tmp_path / 'runs', '--data', path)
    assert reported.startswith(str(path)) and message in reported
    assert not (tmp_path / 'runs').exists()


def test_many_corrupted_images_stop_the_run(clip_files, tmp_path):
    """A worker finds them, and the trainer reports them."""
    files = {n: b'x' if n[:6] in ('000001', '000003') else b for n, b in clip_files.items()}
    path = write_zip(tmp_path / 'data.zip', files)
    args = ['--data', path, '--outdir', tmp_path / 'runs', '--cfg', 'tiny', '--device', 'cpu', '--workers', 1]
    result = cli(*args, '--set', 'output.image_ticks=0')
    assert result.code == 1 and result.err.count('Error: ') == 1
    assert re.search('2 of 6 clips cannot be read .(000001, 000003|000003, 000001).;', result.err)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--set loss.nothing=1', 'unknown option loss.nothing; known here: adversarial, '),
        ('--set loss', '--set loss must be PATH=VALUE'),
        ('--set batch=4 --batch 8', '--set batch=4: given twice, also by --batch'),
        ('--set dataset.span=4', 'generator.span'),
        ('--batch 4 --batch-gpu 3', '--batch 4 must be a multiple of processes x --batch-gpu = 1 x 3'),
        ('--batch 6', '6 clips at a time'),
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
    'script', ['train', 'gen_videos', 'edit_videos', 'calc_metrics', 'legacy', 'dataset_tool']
)
def test_python_without_packages(script):
    command = [sys.executable, '-S', ROOT / f'{script}.py', '--help']  # -S: without site-packages
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': ''})
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith('Error: packages are missing (click, ') and done.stderr.count('\n') == 1
    assert 'make install' in done.stderr


def test_networks_are_refused_before_the_data_is_opened(tmp_path):
    layers = ['--set', 'generator.motion.num_layers=20']
    reported = refused(tmp_path / 'runs', '--data', 'missing.zip', *layers)
    assert 'motion.num_layers=20 exceeds the 4 blocks' in reported


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
    assert reported.startswith('--device cuda cannot be used here, t')
    assert reported.rstrip().endswith('; use auto or cpu')


@pytest.fixture(scope='module')
def snapshot(small, tmp_path_factory):
    """Bytes of a snapshot of the preset."""
    folder = tmp_path_factory.mktemp('source')
    train(dataclasses.replace(small, total_nimg=0), folder)
    return checkpoint.snapshot_path(folder, 0)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('folder', 'it is a folder'),
        ('cut short', 'cut short'),
        ('hostile', 'it wants to call'),
        ('without D', "no network 'G' in this snapshot; it has G_ema"),
        ('without G_ema', "no network 'G_ema' in this snapshot; it has G"),
        ('other', 'it was trained with --cfg tiny and generator.channel_max=16 (here 8); give the same'),
    ],
)
def test_bad_snapshot(data, snapshot, tmp_path, kind, message):
    path, args = tmp_path / 'a.pkl', []
    content = torch.load(snapshot, weights_only=True)
    if kind == 'folder':
        path.mkdir()
    elif kind == 'cut short':
        path.write_bytes(snapshot.read_bytes()[:-5000])
    elif kind == 'hostile':
        torch.save({**content, 'meta': Evil(tmp_path / 'ran')}, path)
    elif kind == 'without D':
        torch.save({**content, 'networks': {'G_ema': content['networks']['G_ema']}}, path)
    elif kind == 'without G_ema':
        torch.save({**content, 'networks': {'G': content['networks']['G']}}, path)
        args = ['--set', 'generator.renderer.depth_samples=5']  # no remedy for what is missing
    else:
        path, args = snapshot, ['--set', 'generator.channel_max=8']
    (tmp_path / 'runs').mkdir()
    reported = refused(tmp_path / 'runs', '--data', data, '--resume', path, *args)
    assert f'{path}: ' in reported and message in reported
    assert ('leave out --resume' in reported) == (kind == 'other')
    assert not (tmp_path / 'ran').exists()


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
    """Files may not exceed 300 kB, which a snapshot does: older files stay whole, no new one is left."""

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
