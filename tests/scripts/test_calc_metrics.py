"""calc_metrics.py: the same values from snapshots, folders, stored views and training; errors; curves."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import calc_metrics
from dnnlib.util import UserError, append_json_line
from editing.codes import save_portrait
from interop import configs
from interop.convert import build_networks, open_foreign
from metrics.plotting import plot_run, read_curves
from metrics.training_callback import make_evaluate
from support import small_runs, tiny
from support.foreign_files import released_model, save_ckpt
from support.paths import ROOT
from support.portraits import portrait
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
    return CliRunner().invoke(calc_metrics.main, [str(a) for a in args])


def line(folder, name):
    """Returns the last measurement of a metric in a folder."""
    return json.loads((folder / f'metric-{name}.jsonl').read_text().splitlines()[-1])


def run(tmp_path, *args, cache='cache'):
    result = cli(*args, '--cache', tmp_path / cache, '--outdir', tmp_path / 'out', '--device', 'cpu')
    assert result.exit_code == 0, result.output
    return tmp_path / 'out'


def test_snapshot_and_folder_agree(network, data, tmp_path):
    """The videos that a snapshot is judged by give the same values as files."""
    videos = tmp_path / 'v' / 'T4'
    args = '--network', network, '--data', data, '--save-videos', videos.parent
    out = run(tmp_path, *args, '--metrics', VIDEO)
    ours = {name: line(out, name) for name in VIDEO.split(',')}
    assert len(list(videos.glob('*.mp4'))) == 3
    facts = {'snapshot': 'snapshot.pkl', 'kimg': 2.0, 'real_clips': CLIPS, 'real_videos': 3}
    assert ours['motion3_4f'].items() >= facts.items()
    out = run(tmp_path, '--fake', videos, '--metrics', VIDEO)
    for name, value in ours.items():
        assert line(out, name)['value'] == value['value']
        assert line(out, name)['standard_error'] == value['standard_error']
    assert cli('--fake', videos, '--metrics', 'motion9_4f').stderr.endswith(
        'Error: motion9_4f: there are only 3 generated videos; give more, or ask for at most 3\n'
    )


def test_a_portrait_is_judged_as_the_network_that_it_makes(network, data, tmp_path):
    args = '--network', network, '--data', data, '--metrics', 'motion3_4f'
    values = []
    for frames in (1, 2):  # two portraits, which are told apart
        save_portrait(tmp_path / 'a.portrait.pt', portrait(tiny.solid_generator(), frames, seed=frames))
        out = run(tmp_path, *args, '--portrait', tmp_path / 'a.portrait.pt')
        values.append(line(out, 'motion3_4f')['value'])
    assert values[0] != values[1]


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
    for mine, name in zip(ours, ('cd', 'we2'), strict=True):
        assert line(out, name)['value'] == mine['value'] and line(out, name)['videos'] == 2
    assert ours[0]['value'] > 0


def test_training_and_command_line_agree(small, tmp_path, monkeypatch):
    """Exactly, at every checkpoint, though nothing is shared but the snapshot and the data."""
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'own'))
    output = dataclasses.replace(small.output, snapshot_ticks=1, metrics=tuple(VIDEO.split(',')))
    config = dataclasses.replace(small, total_nimg=8, output=output)
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    evaluate = make_evaluate(output.metrics, config.dataset.build(), run_dir, small_runs.CPU)
    assert small_runs.new_trainer(config, run_dir, evaluate=evaluate).train()
    inside = [json.loads(text) for text in (run_dir / 'metric-motion3_4f.jsonl').read_text().splitlines()]
    assert [row['kimg'] for row in inside] == [0.004, 0.008]
    facts = ('kimg', 'snapshot', 'videos', 'network_sha256', 'data_sha256')
    for row in inside:
        args = ['--network', run_dir / row['snapshot'], '--data', config.dataset.path, '--metrics', VIDEO]
        out = run(tmp_path, *args, cache='other')
        for key in ('value', 'standard_error', 'real', *facts):
            assert row[key] == line(out, 'motion3_4f')[key], key
    assert line(run_dir, 'flicker3_4f')['value'] == line(out, 'flicker3_4f')['value']


def tiny_run(tmp_path, data):
    """Arguments of train.py for a run of eight clips."""
    options = ['--cfg', 'tiny', '--device', 'cpu', '--kimg', '0.008']
    return ('--outdir', tmp_path / 'runs', *options, '--data', data)


def test_train_measures(data, tmp_path, monkeypatch):
    """train.py --metrics takes names as calc_metrics.py does; what will not work is refused at once."""
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'cache'))
    common = tiny_run(tmp_path, data)
    refused = {
        'motion3_4f,psnr': "'psnr' is not a metric",
        'motion3_400f': 'the longest clip of the data has 18 frames',
        'geometry3': f'{data} .*dataset_tool.py synth',
    }
    for names, reason in refused.items():
        result = small_runs.cli(*common, '--metrics', names)
        assert result.code == 1 and re.search(reason, result.err)
    assert not list(tmp_path.glob('runs/*'))
    done = small_runs.cli(*common, '--metrics', 'motion3_4f', '--snap', 1)
    assert done.code == 0 and 'motion3_4f' in done.out
    (run_dir,) = (tmp_path / 'runs').iterdir()
    assert line(run_dir, 'motion3_4f')['kimg'] == 0.008
    value = EventAccumulator(str(run_dir)).Reload().Scalars('Metrics/motion3_4f')[-1]
    assert value.step == 8 and value.value == pytest.approx(line(run_dir, 'motion3_4f')['value'], rel=1e-6)


def test_two_processes_give_what_one_gives(network, data, tmp_path):
    """torchrun shares the videos out; each process has a chunk of its own."""
    args = ['--network', network, '--data', data, '--metrics', 'depthvar20']
    one = line(run(tmp_path, *args), 'depthvar20')
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    own = ['--cache', tmp_path / 'c2', '--outdir', tmp_path, '--device', 'cpu']
    command = list(map(str, [*launcher, ROOT / 'calc_metrics.py', *args, *own]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=small_runs.LIMIT_SEC)
    assert done.returncode == 0, done.stderr
    both = line(tmp_path, 'depthvar20')
    assert (both['processes'], both['value'], both['failures']) == (2, one['value'], one['failures'])


def make_videos(folder, **kinds):
    """Writes folders of images: good ones, black ones, ones that are too short or not square."""
    for name, kind in kinds.items():
        (folder / name).mkdir(parents=True)
        rng = np.random.default_rng(len(name))
        shape = (24, 32, 3) if kind == 'wide' else (32, 32, 3)
        for i in range(2 if kind == 'short' else 5):
            image = rng.integers(0, 256, shape, dtype=np.uint8) * (kind != 'black')
            Image.fromarray(image).save(folder / name / f'{i}.png')
    (folder / 'bad.mp4').write_bytes(b'not a video')


def test_bad_videos_are_counted_and_named(tmp_path):
    make_videos(tmp_path / 'v', a='good', b='good', c='black', d='short', e='wide')
    row = line(run(tmp_path, '--fake', tmp_path / 'v', '--metrics', 'motion_5f'), 'motion_5f')
    assert row['videos'] == 2 and row['failures'] == 4
    names = {names[0]: reason for reason, names in row['failure_reasons'].items()}
    parts = {'bad.mp4': 'cannot be decoded', 'c': 'black', 'd': 'fewer than 5', 'e': '32x24'}
    assert names.keys() == parts.keys() and all(parts[name] in names[name] for name in parts)


def test_folders_of_two_sizes(tmp_path):
    for name, side in (('real', 24), ('fake', 32)):
        for clip in range(2):
            folder = tmp_path / name / str(clip)
            folder.mkdir(parents=True)
            rng = np.random.default_rng(clip)
            for i in range(3):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    sides = ['--fake', tmp_path / 'fake', '--real', tmp_path / 'real', '--metrics', 'flicker2_3f']
    result = cli(*sides, '--outdir', tmp_path, '--cache', tmp_path / 'c')
    assert result.exit_code == 1 and 'bring both to one size with --resolution 24' in result.stderr
    row = line(run(tmp_path, *sides, '--resolution', 24), 'flicker2_3f_24px')
    assert row['resolution'] == 24 and row['failures'] == row['real_failures'] == 0


def test_no_value_is_an_error(tmp_path):
    make_videos(tmp_path / 'v', c='black', d='black')
    folders = '--fake', tmp_path / 'v', '--outdir', tmp_path, '--cache', tmp_path
    result = cli(*folders, '--metrics', 'motion_5f')
    assert result.exit_code == 1 and 'no value' in result.stdout
    first, *steps, last = result.stderr.splitlines()
    assert first.startswith('Measuring motion_5f. ')
    ends = [f'generated videos{names}: {n}/3 records' for names, n in ((' (motion_5f)', 0), ('', 3))]
    assert steps == ends and last.startswith('Error: no value for motion_5f: too few videos are left')


def test_errors(network, data, tmp_path, monkeypatch):
    monkeypatch.setenv('PV3D_CACHE_DIR', str(tmp_path / 'empty'))
    cd, fake, of_network = ('--metrics', 'cd'), ('--fake', tmp_path), ('--network', network)
    cases = [
        ((*of_network, '--data', data), 'fvd2048_16f'),
        (cd, 'give one of --network, --fake and --views, not none'),
        ((*cd, *of_network, *fake), 'not --network and --fake'),
        ((*cd, *of_network), '--network needs --data'),
        ((*cd, '--network', tmp_path / 'x.pkl', '--data', data), 'x.pkl'),
        ((*cd, *of_network, '--data', tmp_path / 'x.zip'), 'x.zip: no such file'),
        ((*cd, *fake), 'is not a folder with videos'),
        ((*cd, *fake, '--save-views', tmp_path), '--save-views is for --network'),
        ((*cd, *fake, '--control', 'static'), '--control static has no effect'),
        ((*cd, *of_network, '--data', data, '--detector-file', 'i3d'), 'NAME=FILE'),
        (('--metrics', 'fvd4_9f', *fake, '--detector-file', f'i3d={tmp_path}/x'), 'no such file'),
        (('--plot', tmp_path), 'holds no metric-*.jsonl with values'),
    ]
    for args, reason in cases:
        error = cli(*args).stderr
        assert reason in error and error.startswith('Error: ') and error.count('\n') == 1, args


def add(folder, name, kimg, value, **facts):
    content = {'kimg': kimg, 'value': value, 'standard_error': 0.5, **facts}
    append_json_line(folder / f'metric-{name}.jsonl', content)


def test_curves(tmp_path):
    for kimg, value in ((200, 90.0), (400, 60.0), (200, 80.0), (600, float('nan'))):
        add(tmp_path, 'fvd2048_16f', kimg, value, floor=12.5)
    add(tmp_path, 'we', None, 3.0)
    frozen, flat = ({'value': value, 'videos': 4, 'failures': 0} for value in (120.0, None))
    add(tmp_path, 'motion', 200, 0.5, real=1.5, controls={'frozen': frozen, 'flat': flat})
    fvd, motion = read_curves(tmp_path)
    assert (fvd.level_name, fvd.controls) == ('floor: half of the real videos', {})
    assert (motion.level_name, motion.controls) == ('real videos', {'frozen': 120.0, 'flat': None})
    assert (fvd.name, fvd.kimg, fvd.value, fvd.level) == ('fvd2048_16f', [200.0, 400.0], [80.0, 60.0], 12.5)
    assert motion.level == 1.5 and motion.error == [0.5]
    image = np.asarray(Image.open(plot_run(tmp_path)))
    assert image.ndim == 3 and image.std() > 10
    events = EventAccumulator(str(tmp_path / 'metrics-curves')).Reload().Scalars('Metrics/fvd2048_16f')
    assert [(e.step, e.value) for e in events] == [(200_000, 80.0), (400_000, 60.0)]
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
