"""calc_metrics.py: the same values from snapshots, folders, stored views and training; errors; curves."""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import calc_metrics
from dnnlib.util import UserError, append_json_line
from interop import configs
from interop.convert import build_networks, open_foreign
from metrics.plotting import plot_run, read_curves
from metrics.training_callback import make_evaluate
from support import small_runs, tiny
from support.foreign_files import released_model, save_ckpt
from support.small_data import CLIPS
from torch_utils.checkpoint import save_snapshot

VIDEO = 'motion3_4f,flicker3_4f'


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp('network') / 'snapshot.pkl'
    save_snapshot(path, {'G_ema': tiny.solid_generator()}, {'kimg': 2.0})
    return path


def cli(*args):
    """Runs calc_metrics.py in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            calc_metrics.main.main([str(a) for a in args], prog_name='calc_metrics.py')
        except SystemExit as end:
            return small_runs.Result(end.code or 0, out.getvalue(), err.getvalue())
    raise AssertionError('click does not return')


def line(folder, name):
    """Returns the last measurement of a metric in a folder."""
    return json.loads((folder / f'metric-{name}.jsonl').read_text().splitlines()[-1])


def run(tmp_path, *args, cache='cache'):
    result = cli(*args, '--cache', tmp_path / cache, '--outdir', tmp_path / 'out', '--device', 'cpu')
    assert result.code == 0, result.err
    return tmp_path / 'out'


def test_snapshot_and_folder_agree(network, data, tmp_path):
    """The videos that a snapshot is judged by give the same values as files."""
    out = run(
        tmp_path, '--network', network, '--data', data, '--metrics', VIDEO, '--save-videos', tmp_path / 'v'
    )
    ours = {name: line(out, name) for name in VIDEO.split(',')}
    assert len(list((tmp_path / 'v/T4').glob('*.mp4'))) == 3
    assert ours['motion3_4f']['snapshot'] == 'snapshot.pkl' and ours['motion3_4f']['kimg'] == 2.0
    assert ours['motion3_4f']['real_clips'] == CLIPS and ours['motion3_4f']['real_videos'] == 3
    out = run(tmp_path, '--fake', tmp_path / 'v/T4', '--metrics', VIDEO)
    for name, value in ours.items():
        assert line(out, name)['value'] == value['value']
        assert line(out, name)['standard_error'] == value['standard_error']
    assert cli('--fake', tmp_path / 'v/T4', '--metrics', 'motion9_4f').err.endswith(
        'Error: motion9_4f: there are only 3 generated videos; give more, or ask for at most 3\n'
    )


def test_a_released_checkpoint_is_judged_as_it_is(data, tmp_path, monkeypatch):
    """The .ckpt and the snapshot that it converts to give the same value."""
    monkeypatch.setitem(configs._SR_RESOLUTION, 32, 16)
    G = tiny.generator(plane_axes='released')
    others = tiny.networks(G)
    networks = {'G': G, 'D_image': others.D_image, 'D_video': others.D_video, 'G_ema': G}
    save_ckpt(tmp_path / 'a.ckpt', released_model(networks))
    converted = open_foreign(tmp_path / 'a.ckpt').snapshot
    save_snapshot(tmp_path / 'b.pkl', build_networks(converted), converted.meta)
    values = []
    for path in ('a.ckpt', 'b.pkl'):
        out = run(tmp_path, '--network', tmp_path / path, '--data', data, '--metrics', 'flicker2_4f')
        values.append(line(out, 'flicker2_4f'))
    assert values[0]['snapshot'] == 'a.ckpt' and values[0]['kimg'] == 0.48
    assert values[0]['value'] == values[1]['value'] > 0


def test_snapshot_and_stored_views_agree(network, data, tmp_path):
    views = tmp_path / 'views'
    out = run(tmp_path, '--network', network, '--data', data, '--metrics', 'cd2,we2', '--save-views', views)
    ours = [line(out, name) for name in ('cd2', 'we2')]
    assert sorted(p.name for p in views.glob('*.npz')) == ['00000.npz', '00001.npz']
    out = run(tmp_path, '--views', views, '--metrics', 'cd,we2')
    assert line(out, 'we2')['value'] == ours[1]['value'] and line(out, 'we2')['videos'] == ours[1]['videos']
    assert line(out, 'cd')['videos'] == ours[0]['videos']


def test_training_and_command_line_agree(small, tmp_path, monkeypatch):
    """Exactly, at every checkpoint, though nothing is shared but the snapshot and the data."""
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'own'))
    config = dataclasses.replace(
        small,
        total_nimg=8,
        output=dataclasses.replace(small.output, snapshot_ticks=1, metrics=('motion3_4f', 'flicker3_4f')),
    )
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    evaluate = make_evaluate(config.output.metrics, config.dataset.build(), run_dir, small_runs.CPU)
    assert small_runs.new_trainer(config, run_dir, evaluate=evaluate).train()
    inside = [json.loads(text) for text in (run_dir / 'metric-motion3_4f.jsonl').read_text().splitlines()]
    assert [row['kimg'] for row in inside] == [0.004, 0.008]
    for row in inside:
        args = ['--network', run_dir / row['snapshot'], '--data', config.dataset.path, '--metrics', VIDEO]
        out = run(tmp_path, *args, cache='other')
        outside = line(out, 'motion3_4f')
        facts = ('kimg', 'snapshot', 'videos', 'network_sha256', 'data_sha256')
        for key in ('value', 'standard_error', 'real', *facts):
            assert row[key] == outside[key], key
    assert line(run_dir, 'flicker3_4f')['value'] == line(out, 'flicker3_4f')['value']


def tiny_run(tmp_path, data):
    """Arguments of train.py for a run of eight clips."""
    options = ['--cfg', 'tiny', '--device', 'cpu', '--kimg', '0.008']
    return ('--outdir', tmp_path / 'runs', *options, '--data', data)


def test_train_measures(data, tmp_path, monkeypatch):
    """train.py --metrics takes names as calc_metrics.py does and refuses others before it makes a folder."""
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'cache'))
    common = tiny_run(tmp_path, data)
    refused = small_runs.cli(*common, '--metrics', 'motion3_4f,psnr')
    assert refused.code == 1 and "'psnr' is not a metric" in refused.err
    assert not (tmp_path / 'runs').exists()
    done = small_runs.cli(*common, '--metrics', 'motion3_4f', '--snap', 1)
    assert done.code == 0 and 'motion3_4f' in done.out
    (run_dir,) = (tmp_path / 'runs').iterdir()
    assert line(run_dir, 'motion3_4f')['kimg'] == 0.008
    events = EventAccumulator(str(run_dir)).Reload()
    value = events.Scalars('Metrics/motion3_4f')[-1]
    assert value.step == 8 and value.value == pytest.approx(line(run_dir, 'motion3_4f')['value'], rel=1e-6)


def test_two_processes_give_what_one_gives(network, data, tmp_path):
    """torchrun shares the videos out; each process has a chunk of its own."""
    args = ['--network', network, '--data', data, '--metrics', 'depthvar20', '--device', 'cpu']
    out = run(tmp_path, *args[:-2])
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    own = ['--cache', tmp_path / 'c2', '--outdir', tmp_path]
    command = list(map(str, [*launcher, small_runs.ROOT / 'calc_metrics.py', *args, *own]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=small_runs.LIMIT_SEC)
    assert done.returncode == 0, done.stderr
    both = line(tmp_path, 'depthvar20')
    assert both['processes'] == 2 and both['value'] == line(out, 'depthvar20')['value']
    assert both['failures'] == line(out, 'depthvar20')['failures']


def make_videos(folder, kinds):
    """Writes folders of images: good ones, black ones, ones that are too short or not square."""
    for name, kind in kinds.items():
        (folder / name).mkdir(parents=True)
        rng = np.random.default_rng(len(name))
        shape = (24, 32, 3) if kind == 'wide' else (32, 32, 3)
        for i in range(2 if kind == 'short' else 5):
            image = rng.integers(0, 256, shape, dtype=np.uint8) * (kind != 'black')
            Image.fromarray(image).save(folder / name / f'{i}.png')
    (folder / 'broken.mp4').write_bytes(b'this is no video')


def test_bad_videos_are_counted_and_named(tmp_path):
    kinds = {'a': 'good', 'b': 'good', 'c': 'black', 'd': 'short', 'e': 'wide'}
    make_videos(tmp_path / 'v', kinds)
    out = run(tmp_path, '--fake', tmp_path / 'v', '--metrics', 'motion_5f')
    row = line(out, 'motion_5f')
    assert row['videos'] == 2 and row['failures'] == 4
    reasons = row['failure_reasons']
    assert sorted(name for names in reasons.values() for name in names) == ['broken.mp4', 'c', 'd', 'e']
    listed = ' '.join(reasons)
    assert all(part in listed for part in ('black', 'fewer than 5', '32x24', 'cannot be decoded'))


def test_no_value_is_an_error(tmp_path):
    make_videos(tmp_path / 'v', {'c': 'black', 'd': 'black'})
    result = cli(
        '--fake', tmp_path / 'v', '--metrics', 'motion_5f', '--outdir', tmp_path, '--cache', tmp_path
    )
    assert result.code == 1 and 'no value' in result.out
    first, *steps, last = result.err.splitlines()
    assert first.startswith('Measuring motion_5f. ')
    ends = [f'generated videos{names}: {n}/3 records' for names, n in ((' (motion_5f)', 0), ('', 3))]
    assert steps == ends and last.startswith('Error: no value for motion_5f: too few videos are left')


def test_errors(network, data, tmp_path, monkeypatch):
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'empty'))
    cases = [
        (('--network', network, '--data', data), 'fvd2048_16f'),
        (('--metrics', 'cd'), 'give one of --network, --fake and --views, not none'),
        (('--metrics', 'cd', '--codec', 'none', '--crf', 9), '--crf is for --codec h264, not for none'),
        (('--metrics', 'cd', '--network', network, '--fake', tmp_path), 'not --network and --fake'),
        (('--metrics', 'cd', '--network', network), '--network needs --data'),
        (('--metrics', 'cd', '--network', tmp_path / 'x.pkl', '--data', data), 'x.pkl'),
        (('--metrics', 'cd', '--network', network, '--data', tmp_path / 'x.zip'), 'x.zip: no such file'),
        (('--metrics', 'cd', '--fake', tmp_path), 'is not a folder with videos'),
        (('--metrics', 'cd', '--network', network, '--real', tmp_path), '--real is for --fake'),
        (('--metrics', 'cd', '--fake', tmp_path, '--save-views', tmp_path), '--save-views is for --network'),
        (('--metrics', 'cd', '--fake', tmp_path, '--control', 'static'), '--control static has no effect'),
        (('--metrics', 'motion', '--fake', tmp_path / 'none'), 'none is not a folder'),
        (('--metrics', 'fvd4_9f_nothing', '--fake', tmp_path), "unknown detector 'nothing'"),
        (('--metrics', 'cd', '--network', network, '--data', data, '--detector-file', 'i3d'), 'NAME=FILE'),
        (
            ('--metrics', 'fvd4_9f', '--fake', tmp_path, '--detector-file', f'i3d={tmp_path}/x'),
            'no such file',
        ),
        (('--plot', tmp_path), 'holds no metric-*.jsonl with values'),
    ]
    for args, reason in cases:
        result = cli(*args)
        assert result.code == 1, args
        assert reason in result.err and result.err.startswith('Error: ') and result.err.count('\n') == 1, args


def add(folder, name, kimg, value, **facts):
    append_json_line(
        folder / f'metric-{name}.jsonl', {'kimg': kimg, 'value': value, 'standard_error': 0.5} | facts
    )


def test_curves(tmp_path):
    for kimg, value in ((200, 90.0), (400, 60.0), (200, 80.0), (600, float('nan'))):
        add(tmp_path, 'fvd2048_16f', kimg, value, floor=12.5)
    add(tmp_path, 'we', None, 3.0)
    add(tmp_path, 'motion', 200, 0.5, real=1.5)
    fvd, motion = read_curves(tmp_path)
    assert (fvd.name, fvd.kimg, fvd.value, fvd.level) == ('fvd2048_16f', [200.0, 400.0], [80.0, 60.0], 12.5)
    assert motion.level == 1.5 and motion.error == [0.5]
    path = plot_run(tmp_path)
    image = np.asarray(Image.open(path))
    assert image.ndim == 3 and image.std() > 10
    events = EventAccumulator(str(tmp_path / 'metrics-curves')).Reload()
    assert [(e.step, e.value) for e in events.Scalars('Metrics/fvd2048_16f')] == [
        (200_000, 80.0),
        (400_000, 60.0),
    ]
    (tmp_path / 'metric-cd.jsonl').write_text('{"kimg": 1, "val')
    with pytest.raises(UserError, match='metric-cd.jsonl: line 1 is not a JSON object'):
        read_curves(tmp_path)


def test_what_is_missing_is_measured_by_the_next_session(data, tmp_path, monkeypatch):
    """A run that ended without its last measurement gets it when it is started again, once."""
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'cache'))
    args = tiny_run(tmp_path, data)
    assert small_runs.cli(*args).code == 0
    for _ in range(2):
        again = small_runs.cli(*args, '--metrics', 'motion3_4f')
        assert again.code == 0 and 'finished before' in again.out
    (run_dir,) = (tmp_path / 'runs').iterdir()
    (row,) = (run_dir / 'metric-motion3_4f.jsonl').read_text().splitlines()
    assert json.loads(row)['kimg'] == 0.008


def test_what_cannot_be_measured_is_said_before_training(data, tmp_path, monkeypatch):
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'cache'))
    args = tiny_run(tmp_path, data)
    cases = [
        ('motion3_400f', 'the longest clip of the data has 18 frames'),
        ('geometry3', 'dataset_tool.py synth'),
    ]
    for names, reason in cases:
        refused = small_runs.cli(*args, '--metrics', names)
        assert refused.code == 1 and reason in refused.err
        assert not list((tmp_path / 'runs').iterdir())
