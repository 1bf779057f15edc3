"""train.py as people use it: run folders, files, signals, kills, several processes."""

import dataclasses
import io
import json
import logging
import math
import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from unittest import mock

import imageio_ffmpeg
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support import small_runs, tiny
from support.small_runs import CPU, LIMIT_SEC, assert_same, children, cli, everything, start, train, wait_for
from torch_utils import checkpoint
from train import stop_on_signals
from training.run_folder import read_options
from training.training_loop import Trainer

TINY = ['--cfg', 'tiny', '--device', 'cpu']
PAIRS = [*TINY, '--batch', 2]
QUICK = [*PAIRS, '--set', 'output.image_ticks=0']


def run_dirs(outdir):
    return sorted(p.name for p in outdir.iterdir())


def only(outdir):
    """Returns the folder of the only run."""
    (run_dir,) = outdir.iterdir()
    return run_dir


def config_in(run_dir):
    return read_options(run_dir / 'training_options.json')


def numbers(run_dir, kind='network-snapshot'):
    """Returns the clips seen of all files of a kind."""
    return sorted(int(re.search(r'(\d+)\.', p.name)[1]) for p in run_dir.glob(f'{kind}-*'))


def test_same_command_continues_and_others_get_new_folders(data, tmp_path, monkeypatch):
    command = ['--outdir', tmp_path / 'runs', '--data', data, *QUICK]
    first = cli(*command, '--kimg', 0.004)
    assert first.code == 0 and first.err == ''
    lines = first.out.splitlines()
    name = '00000-tiny-clips-gpus1-batch2-gamma2'
    run_dir = tmp_path / 'runs' / name
    assert lines[0] == f'run folder: {run_dir}' and lines[-1] == 'done'
    assert lines[2].startswith('data: 6 clips, 108 frames (18 a clip), 32x32')
    assert (run_dir / 'log.txt').read_text() == first.out
    again = cli(*command, '--kimg', 0.004)
    assert again.code == 0 and 'this run was finished before, at 0.004 kimg' in again.out
    assert 'tick' not in again.out and 'continuing' not in again.out
    longer = cli(*command, '--kimg', 0.008)
    assert f'continuing {run_dir} at 4 clips\ntick ' in longer.out
    assert run_dirs(tmp_path / 'runs') == [name] and numbers(run_dir) == [4, 8]
    whole = train(config_in(run_dir), tmp_path / 'whole')
    assert_same(everything(Trainer(config_in(run_dir), run_dir, CPU)), everything(whole))

    for i, change in enumerate((['--gamma', 3], ['--seed', 1], ['--fresh'], ['--desc', 'x'])):
        result = cli(*command, '--kimg', 0, *change)
        assert result.code == 0 and f'run folder: {tmp_path}/runs/{i + 1:05d}-tiny' in result.out
    assert run_dirs(tmp_path / 'runs')[4] == '00004-tiny-clips-gpus1-batch2-gamma2-x'
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')  # torchrun gives the same command again
    assert '/00003-' in cli(*command, '--kimg', 0, '--fresh').out and len(run_dirs(tmp_path / 'runs')) == 5


def test_max_minutes_stops_with_a_checkpoint(data, tmp_path):
    result = cli('--outdir', tmp_path, '--data', data, *QUICK, '--max-minutes', 1e-5)
    assert result.code == 0 and 'stopped; the same command continues this run' in result.out
    assert numbers(only(tmp_path)) == [2]  # a session makes a step, but no other
    assert re.search('^tick .* left 0s ', result.out, re.MULTILINE)


def test_two_processes_cannot_train_in_one_folder(data, tmp_path):
    command = ['--outdir', tmp_path, '--data', data, *QUICK]
    with start(*command, '--kimg', 1000) as first:
        wait_for(lambda: list(tmp_path.glob('*/log.txt')), first)
        second = cli(*command, '--kimg', 1000)
        assert second.code == 1 and 'another process is training there' in second.err
        assert first.poll() is None
    assert len(run_dirs(tmp_path)) == 1


def test_files_of_a_run(data, tmp_path):
    result = cli('--outdir', tmp_path, '--data', data, *TINY, '--kimg', 0.016)
    run_dir = only(tmp_path)
    assert re.match(r'session: command .*, torch .*, git ', result.out.splitlines()[1])
    assert result.out.splitlines()[3] == 'drawing the first images'
    ticks = [line for line in result.out.splitlines() if line.startswith('tick ')]
    assert len(ticks) == 2  # tick_nimg is 8
    parts = r'tick 2 +kimg 0\.016 +time \S+ +s/kimg [\d.]+ +G_img [\d.]+ +G_vid .* +left 0s +mem [\d.]+ GiB'
    assert re.fullmatch(parts, ticks[1])
    lines = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    assert [line['Progress/kimg'] for line in lines] == [0.008, 0.016]
    probes = {
        'Probe/motion/common',
        'Probe/variance/z_m',
        'Probe/layers/synthesis.b4/size',
        'Timing/probe_sec',
    }
    assert all(probes < line.keys() for line in lines)
    every = {
        *(f'Loss/{x}' for x in ('G/image', 'G/video', 'D/image/fake', 'D/image/real', 'D/video/fake')),
        *(f'Loss/{x}' for x in ('D/video/real', 'signs/image/real', 'signs/video/real')),
        *(f'Loss/scores/{d}/{x}' for d in ('image', 'video') for x in ('fake', 'real')),
        *(f'Progress/{x}' for x in ('kimg', 'tick', 'nonfinite', 'lr_G', 'lr_D')),
        *(f'Gradient/{x}main' for x in 'DG'),
        *('Resources/peak_memory_gib', 'Timing/total_sec', 'Timing/sec_per_kimg', 'timestamp'),
    }
    # not due in the second tick
    lazy = {'Loss/G/density', 'Loss/r1/image', 'Loss/r1/video', 'Gradient/Greg', 'Gradient/Dreg'}
    others = [{name for name in line if 'robe' not in name} for line in lines]
    assert others == [every | lazy, every]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert config_in(run_dir).total_nimg == 16
    snapshot = checkpoint.read_snapshot(run_dir / 'network-snapshot-000000016.pkl')
    assert list(snapshot.networks) == ['G', 'D_image', 'D_video', 'G_ema']
    assert snapshot.meta['kimg'] == 0.016 and snapshot.meta['cfg'] == 'tiny'
    assert len(snapshot.meta['cameras']) == 6 and len(snapshot.meta['cameras'][0]) == 16
    assert [p for p in os.listdir(run_dir) if p.endswith('.tmp')] == []
    check_images(run_dir)
    check_events(run_dir, lines)


def check_images(run_dir):
    """Four heads of 32 pixels, six real clips; views and strips have a bar of text, views are enlarged."""
    sizes = {'fakes': (64, 64), 'depth': (256, 256), 'views': (384, 532), 'strip': (256, 148)}
    for name, size in sizes.items():
        for nimg in (0, 16):
            assert Image.open(run_dir / f'{name}{nimg:09d}.png').size == size, name
    reals = Image.open(run_dir / 'reals.png')
    assert reals.size == (96, 64) and len(reals.crop((0, 0, 32, 32)).getcolors(2000)) > 50
    assert sorted(p.name for p in run_dir.glob('*.mp4')) == ['video000000000.mp4', 'video000000016.mp4']
    assert all(p.stat().st_size > 1000 for p in run_dir.glob('*.mp4'))


def test_images_that_fail_do_not_end_a_run(data, tmp_path, monkeypatch):
    error = RuntimeError('No ffmpeg exe\nwas found')
    monkeypatch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', mock.Mock(side_effect=error))
    options = ['--set', 'output.image_ticks=1', '--set', 'output.sheet_seeds=1', '--kimg', 0.016]
    result = cli('--outdir', tmp_path, '--data', data, *PAIRS, *options)
    assert (result.code, result.err) == (0, '') and result.out.endswith('done\n')
    lines = [line for line in result.out.splitlines() if line.startswith('warning: ')]
    assert len(lines) == 3 and len(set(lines)) == 1  # the first images and two ticks
    assert lines[0].startswith('warning: not all images of this tick could be made: ')
    assert 'No ffmpeg exe' in lines[0]
    run_dir = only(tmp_path)
    assert numbers(run_dir) == [8, 16] and len(list(run_dir.glob('strip*'))) == 3
    assert not [p for p in os.listdir(run_dir) if p.endswith(('.mp4', '.tmp'))]


def check_events(run_dir, lines):
    events = EventAccumulator(str(run_dir), size_guidance={'scalars': 0, 'images': 0}).Reload()
    names = set(lines[0]) - {'timestamp'}
    assert set(events.Tags()['scalars']) == names
    for name in names:
        points = {event.step: event.value for event in events.Scalars(name)}
        expected = {round(line['Progress/kimg'] * 1000): line[name] for line in lines if name in line}
        assert points == pytest.approx(expected, rel=1e-6)
    assert set(events.Tags()['images']) == {'reals', 'fakes', 'depth', 'views', 'strip', 'video'}
    assert [event.step for event in events.Images('fakes')] == [0, 16]
    with Image.open(io.BytesIO(events.Images('video')[1].encoded_image_string)) as video:
        assert (video.format, video.size, video.n_frames) == ('GIF', (256, 256), 30)  # forth and back
    texts = {name: events.Tensors(f'{name}/text_summary')[0] for name in ('Run/options', 'Run/session')}
    assert b'density_weight' in texts['Run/options'].tensor_proto.string_val[0]
    assert b'- git: `' in texts['Run/session'].tensor_proto.string_val[0]


def test_tensorboard_hides_what_a_killed_session_reported(data, tmp_path):
    command = ['--outdir', tmp_path, '--data', data, *QUICK, '--tick', 0.002]
    cli(*command, '--kimg', 0.006)
    for path in tmp_path.glob('*/*-000000006.p*'):
        path.unlink()  # as if it had been killed before writing the last checkpoint, but after reporting
    time.sleep(1.1)  # files of events are read in the order of their seconds
    cli(*command, '--kimg', 0.008)
    events = EventAccumulator(str(only(tmp_path))).Reload()
    assert [e.step for e in events.Scalars('Loss/G/image')] == [2, 4, 6, 8]
    stats = (only(tmp_path) / 'stats.jsonl').read_text().splitlines()
    assert [json.loads(line)['Progress/kimg'] for line in stats] == [0.002, 0.004, 0.006, 0.008]


def test_unreadable_clip_is_named_once_and_replaced(clip_files, tmp_path, monkeypatch):
    for name, content in clip_files.items():
        path = tmp_path / 'data' / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b'not an image' if name.startswith('000003') else content)
    monkeypatch.setattr(logging.root, 'handlers', [])  # those of pytest
    command = ['--outdir', tmp_path / 'runs', '--data', tmp_path / 'data', *PAIRS, '--kimg', 0.018]
    result = cli(*command, '--set', 'output.image_ticks=1')
    assert (result.code, result.err) == (0, '')
    (log,) = (tmp_path / 'runs').glob('*/log.txt')
    assert log.read_text().count('warning: clip 000003 is skipped, another takes its place: 000003/') == 1
    with Image.open(log.with_name('reals.png')) as image:  # five clips of six
        assert image.size == (96, 64) and image.crop((64, 32, 96, 64)).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize('place', ['__init__', 'step'])
def test_a_bug_keeps_its_traceback_and_the_log(data, tmp_path, monkeypatch, place):
    monkeypatch.setattr(Trainer, place, lambda *args: int('x'))
    with pytest.raises(ValueError, match='invalid literal'):
        cli('--outdir', tmp_path, '--data', data, *QUICK)
    log = (only(tmp_path) / 'log.txt').read_text()
    assert 'Traceback' in log and log.endswith("ValueError: invalid literal for int() with base 10: 'x'\n")


@pytest.mark.parametrize('kind', ['missing', 'corrupted'])
def test_a_run_that_cannot_be_continued_is_not_started_again(data, tmp_path, kind):
    """Whoever deletes the training states to free space keeps what was trained."""
    command = ['--outdir', tmp_path, '--data', data, *QUICK, '--kimg', 0.004]
    cli(*command)
    run_dir = only(tmp_path)
    (state,) = run_dir.glob('training-state-*')
    state.unlink() if kind == 'missing' else state.write_bytes(b'PK')
    kept = {p: p.read_bytes() for p in run_dir.iterdir() if p.suffix in ('.pkl', '.pt', '.jsonl')}
    result = cli(*command)
    snapshot = run_dir / 'network-snapshot-000000004.pkl'
    assert result.code == 1 and result.err.count('\n') == 1 and 'cannot be continued' in result.err
    assert '--fresh' in result.err and f'--resume {snapshot}' in result.err
    assert kept == {p: p.read_bytes() for p in run_dir.iterdir() if p.suffix in ('.pkl', '.pt', '.jsonl')}
    for i, way_out in enumerate((['--fresh'], ['--resume', snapshot])):
        assert cli(*command, *way_out).out.endswith('done\n')
        assert len(run_dirs(tmp_path)) == 2 + i


def test_signals_ask_to_stop(monkeypatch):
    should_stop = stop_on_signals()
    assert not should_stop()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # several may come
        os.kill(os.getpid(), number)
        assert should_stop()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the next Ctrl-C ends it


@pytest.mark.parametrize('missing', [False, True])
def test_dry_run_shows_everything_and_writes_nothing(data, tmp_path, missing):
    checkpoint.save_snapshot(tmp_path / 'a.pkl', {'G_ema': tiny.generator()}, {})
    args = ['--data', 'missing.zip'] if missing else ['--data', data, '--resume', tmp_path / 'a.pkl']
    result = cli('--outdir', tmp_path / 'runs', *args, *TINY, '-n')
    assert (result.code, result.err) == (0, '') and not (tmp_path / 'runs').exists()
    first, second = result.out.splitlines()[:2]
    reason = 'warning: a run would stop here: missing.zip: no such file' if missing else 'data: 6 clips'
    assert first.startswith(reason) and second == 'options: {'
    for text in ('density_weight', 'd_reg_interval', 'synthesis', 'decoder', 's/kimg', 'GiB', '  disk    '):
        assert text in result.out, text
    assert ('a run would stop here: ' in result.out.splitlines()[-1]) != missing


def has_newer(run_dir, nimg):
    return run_dir.exists() and max(numbers(run_dir), default=0) > nimg


@pytest.mark.slow
def test_signals_and_kills_change_nothing(data, tmp_path):
    """SIGTERM, SIGINT and kill -9, then to the end: the same run as without them."""
    command = ['--outdir', tmp_path / 'runs', '--data', data, *QUICK, '--workers', 1]
    command += ['--tick', 0.002, '--snap', 2]
    run_dir = tmp_path / 'runs' / '00000-tiny-clips-gpus1-batch2-gamma2'
    reached = 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        with start(*command, '--kimg', 1000) as process:
            wait_for(partial(has_newer, run_dir, reached), process)
            process.send_signal(number)
            printed = process.communicate(timeout=LIMIT_SEC)[0]
        before, reached = reached, max(numbers(run_dir))
        assert before == 0 or f'continuing {run_dir} at {before} clips' in printed
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 0, printed
            last = printed.splitlines()[-3:]
            assert f'{signal.Signals(number).name}: finishing this step, then writing a checkpoint' in printed
            assert f'kimg {reached / 1000:.3f} ' in last[1], last
            assert last[2] == 'stopped; the same command continues this run'
            assert numbers(run_dir, 'training-state')[-1] == reached
    result = cli(*command, '--kimg', (reached + 4) / 1000)
    assert result.code == 0, result.err
    config = config_in(run_dir)
    assert config.total_nimg == reached + 4 and config.workers == 1
    whole = train(dataclasses.replace(config, workers=0), tmp_path / 'whole')
    assert_same(everything(Trainer(config, run_dir, CPU)), everything(whole))


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds processes in /proc')
def test_torchrun(data, tmp_path):
    """Two processes train like one, continue when one is killed, and stop with a checkpoint on SIGTERM."""
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--max-restarts=1']
    command = ['--outdir', tmp_path / 'runs', '--data', data, *TINY, '--batch', 4, '--kimg', 1000, '--fresh']
    command += ['--tick', 0.004, '--snap', 1, '--glr', 1e-9, '--dlr', 1e-9]
    command += ['--set', 'output.keep_states=99', '--set', 'output.image_ticks=0']
    run_dir = tmp_path / 'runs' / '00000-tiny-clips-gpus2-batch4-gamma2'
    with start(*command, launcher=launcher) as process:
        wait_for(lambda: run_dir.exists() and numbers(run_dir, 'training-state'), process)
        os.kill(children(process.pid)[1], signal.SIGKILL)
        log = wait_for(lambda: 'continuing' in (text := (run_dir / 'log.txt').read_text()) and text, process)
        resumed = int(re.search(r'continuing .* at (\d+) clips', log)[1])
        wait_for(lambda: numbers(run_dir, 'training-state')[-1] > resumed, process)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=LIMIT_SEC)[0]
    assert run_dirs(tmp_path / 'runs') == [run_dir.name], printed
    lines = (run_dir / 'log.txt').read_text().splitlines()
    assert lines[-1] == 'stopped; the same command continues this run', printed
    assert sum(line.startswith('tick 1 ') for line in lines) == 1
    reached = numbers(run_dir, 'training-state')[-1]
    assert f'kimg {reached / 1000:.3f} ' in lines[-2] and reached >= resumed + 4
    one_process_equals(run_dir, tmp_path)


def one_process_equals(run_dir, tmp_path):
    """Compares the first two steps with those of one process whose micro-batches are the shares of the two.

    Micro-batches stand for processes because the minibatch deviation compares the clips that go through a
    discriminator together, and because noise is drawn for each micro-batch. The learning rate is tiny because
    Adam makes a whole step of a gradient that is 0 but for rounding.
    """
    config = dataclasses.replace(config_in(run_dir), batch_gpu=2, total_nimg=8)
    train(config, tmp_path / 'one')
    weights, gradients = [], []
    for folder in (run_dir, tmp_path / 'one'):
        networks = checkpoint.read_snapshot(checkpoint.snapshot_path(folder, 8)).networks
        state = checkpoint.load_training_state(checkpoint.training_state_path(folder, 8))
        weights.append({name: entry['state'] for name, entry in networks.items()})
        moments = dict(small_runs.flat(state['optimizers']))  # beta1 is 0: the first moment is the gradient
        gradients.append({name: value for name, value in moments.items() if name.endswith('exp_avg')})
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)
    two, one = gradients
    assert two.keys() == one.keys() and len(one) > 100
    for name, expected in one.items():
        error = (two[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert error < 1e-5, (name, float(error))
