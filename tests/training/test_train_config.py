"""Presets, flags, --set and the folders of runs."""

import dataclasses
import json
from typing import get_args

import pytest
import torch

from dnnlib.config import from_dict, override, to_dict
from dnnlib.util import UserError
from support.small_runs import config_of
from train import with_facts_of_data
from training.baselines import BASELINES
from training.config import TrainConfig
from training.networks.motion import MotionKind
from training.presets import PRESETS, tiny
from training.run_folder import choose_run_dir, read_options, run_name, write_options


def test_presets_of_gpus_round_float32_but_not_the_released_one():
    rounded = {name for name, preset in PRESETS.items() if preset('d.zip').float32_precision == 'tf32'}
    assert rounded == {'pv3d-voxceleb', 'pv3d-celebvhq', 'pv3d-talkinghead', 'pv3d-256', *BASELINES}


@pytest.mark.parametrize('name', PRESETS)
def test_presets_build(name):
    config = PRESETS[name]('d.zip')
    assert config.cfg == name and config.dataset.path == 'd.zip'
    with torch.device('meta'):
        networks = [c.build() for c in (config.generator, config.d_image, config.d_video)]
    assert len({n.config.resolution for n in networks}) == 1
    assert config.dataset.span == config.generator.span
    assert config.split_batch(1) == (config.batch, 1)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ('name', 'density', 'gamma'),
    [('voxceleb', 0.6, 2), ('celebvhq', 0.05, 4), ('talkinghead', 0.5, 2), ('released', 0.6, 2)],
)
def test_numbers_of_the_paper(name, density, gamma):
    config = PRESETS[f'pv3d-{name}']('d.zip')
    loss, render = config.loss, config.generator.renderer
    assert (loss.density_weight, loss.r1_gamma) == (density, gamma)
    assert (loss.video_weight, loss.image_weight) == (0.65, 1)
    assert (config.batch, config.total_nimg, config.generator.resolution) == (16, 300_000 * 16, 512)
    assert (config.g_reg_interval, config.d_reg_interval) == (4, 16)
    assert (config.g_opt.lr, config.d_opt.lr) == (0.0025, 0.002)
    assert config.g_opt.beta2 == config.d_opt.beta2 == 0.99
    assert (config.ema.half_life_nimg, config.ema.rampup) == (5000, 0.05)
    assert (loss.swap_start, loss.swap_end, loss.swap_fade_nimg) == (1.0, 0.5, 1_000_000)
    assert (loss.blur_sigma, loss.density_points, loss.density_distance) == (10.0, 1000, 0.004)
    assert (render.resolution, render.depth_samples, render.importance_samples) == (64, 48, 48)
    assert (render.ray_start, render.ray_end, render.fixed_offset) == (2.25, 3.3, 0.5)


def test_released_preset_sets_every_switch():
    ours, released = PRESETS['pv3d-voxceleb']('d.zip'), PRESETS['pv3d-released']('d.zip')
    assert released.generator.plane_axes == 'released' and released.loss.density_box == 'released'
    assert released.loss.blur_fade_nimg == 12_500 and released.sampling.fake_times == 'continuous'
    assert (released.dataset.distinct, released.dataset.mirror_fakes) == (False, False)
    assert ours.loss.blur_fade_nimg == 100_000


def test_flags():
    config = config_of('--cfg', 'tiny')
    assert config == tiny('d.zip')
    text = (
        '--cfg tiny --batch 8 --batch-gpu 2 --kimg 0.5 --gamma 3 --glr 0.01 --dlr 0.02 --mirror false '
        '--tick 0.1 --snap 7 --seed 4 --workers 1 --precision bf16 --resume a.pkl'
    )
    config = config_of(*text.split())
    assert (config.batch, config.batch_gpu, config.total_nimg) == (8, 2, 500)
    assert (config.loss.r1_gamma, config.g_opt.lr, config.d_opt.lr) == (3.0, 0.01, 0.02)
    assert (config.dataset.mirror, config.seed, config.workers, config.resume) == (False, 4, 1, 'a.pkl')
    output = config.output
    assert (output.tick_nimg, output.snapshot_ticks, output.image_ticks) == (100, 7, 7)
    assert {c.precision for c in (config.generator, config.d_image, config.d_video)} == {'bf16'}
    unchanged = dataclasses.replace(config, **{f: getattr(tiny('d.zip'), f) for f in ('ema', 'sampling')})
    assert unchanged == config


def test_set():
    text = 'loss.density_weight=0.3 generator.renderer.depth_samples=9 generator.sr_channels=8,4'
    config = config_of('--cfg', 'tiny', *(x for part in text.split() for x in ('--set', part)))
    assert config.loss.density_weight == 0.3 and config.generator.renderer.depth_samples == 9
    assert config.generator.sr_channels == (8, 4)
    both = config_of('--cfg', 'tiny', '--snap', '3', '--set', 'output.image_ticks=0')  # --snap sets two
    assert (both.output.snapshot_ticks, both.output.image_ticks) == (3, 0)


def test_what_follows_the_generator(data):
    args = ['--cfg', 'tiny', '--set', 'generator.resolution=64', '--set', 'generator.sr_resolution=32']
    config = config_of(*args, data=data)
    assert {c.resolution for c in (config.generator, config.d_image, config.d_video)} == {64}
    with pytest.raises(UserError, match='32x32 .*64x64'):
        with_facts_of_data(config)
    with pytest.raises(UserError, match=r'resolution: \[32, 64\]'):
        dataclasses.replace(config, d_image=tiny(data).d_image)
    config = config_of('--cfg', 'tiny', '--set', 'generator.span=8', data=data)
    assert with_facts_of_data(config).dataset.span == 8
    labels = config.dataset.build().clip_cameras(0)
    assert with_facts_of_data(config).generator.focal == pytest.approx(labels[0, 16].item(), abs=1e-4)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--set loss.gamma=1', r'loss\.gamma.* r1_gamma'),
        ('--set nothing=1', 'nothing.* generator'),
        ('--set loss.r1_gamma=much', "loss.r1_gamma='much' must be float"),
        ('--set batch=2.5', 'batch=2.5 must be int'),
        ('--set loss.density_box=all', 'must be one of inside, released'),
        ('--set loss.r1_gamma', '--set loss.r1_gamma must be PATH=VALUE'),
        ('--gamma 3 --set loss.r1_gamma=5', 'given twice'),
        ('--set batch=4 --set batch=8', 'given twice'),
        ('--set dataset.path=x.zip', 'given twice'),
        ('--set dataset.span=8', 'follows generator.span'),
        ('--set d_image.resolution=8', 'follows generator.resolution'),
        ('--set generator.focal=5', 'follows the cameras of the data'),
        ('--set generator.resolution=48', '=48 must be a power of two'),
        ('--set loss.image_weight=0 --set loss.video_weight=0', 'image_weight and loss.video_weight'),
        ('--set output.keep_states=0', 'keep_states=0 must be at least 1'),
        ('--set loss.r1_gamma=-1', r'loss\.r1_gamma=-1\.0'),
        ('--set loss.blur_sigma=inf', r'loss\.blur_sigma=inf'),
        ('--set loss.density_points=0', r'loss\.density_points.* at least 1'),
        ('--set loss.resolution_final=0', r'loss\.resolution_final.* at least 1'),
        ('--set generator.channel_max=0', r'generator\.channel_max=0'),
        ('--set generator.box_warp=0', r'generator\.box_warp=0\.0'),
        ('--set generator.channel_base=16', 'channel_base=16 .*plane_resolution'),
        ('--set generator.sr_channels=0,4', r'sr_channels=\(0, 4\)'),
        ('--set generator.span=1', 'span=1 at least 2'),
        ('--set d_image.channel_base=16', 'channel_base=16 .*resolution'),
        ('--set d_video.channel_max=0', 'channel_max=0'),
        ('--set d_video.num_low_precision=-1', 'num_low_precision=-1'),
        ('--set ema.half_life_nimg=0', r'ema\.half_life_nimg=0'),
        ('--set ema.rampup=0', r'ema\.rampup=0\.0'),
        ('--set batch=0', 'batch=0 must be at least 1'),
        ('--set total_nimg=-1000', 'total_nimg=-1000'),
        ('--set seed=-1', 'seed=-1'),
        ('--seed 99999999999999999999', 'must be below'),
    ],
)
def test_options_that_are_refused(args, message):
    with pytest.raises(UserError, match=message) as err:
        config_of('--cfg', 'tiny', *args.split())
    assert '\n' not in str(err.value)


@pytest.mark.parametrize(
    ('batch', 'batch_gpu', 'processes', 'expected'),
    [
        (16, None, 8, (2, 1)),
        (16, None, 1, (16, 1)),
        (16, 2, 2, (2, 4)),
        (16, 1, 4, (1, 4)),
        (6, 2, 3, (2, 1)),
        (8, 3, 1, '--batch 8 .*1 x 3'),
        (5, None, 2, '--batch 5 .*2 x 2'),
        (1, None, 2, '--batch 1 .*2 x 0'),
        (4, 8, 1, '--batch 4 .*1 x 8'),
        (4, 0, 1, '--batch 4 .*1 x 0'),
        (6, None, 1, '6 clips at a time: .*groups of 4'),
        (6, 3, 2, '3 clips at a time'),
    ],
)
def test_split_of_the_batch(batch, batch_gpu, processes, expected):
    config = dataclasses.replace(tiny('d.zip'), batch=batch, batch_gpu=batch_gpu)
    if isinstance(expected, tuple):
        assert config.split_batch(processes) == expected
    else:
        with pytest.raises(UserError, match=expected):
            config.split_batch(processes)


@pytest.mark.parametrize('kind', get_args(MotionKind))
def test_runs_of_every_kind_of_motion_are_continued(tmp_path, kind):
    """A field that is called kind is not a tag."""
    config = config_of('--cfg', 'tiny', '--set', f'generator.motion.kind={kind}')
    assert from_dict(TrainConfig, to_dict(config)) == config
    first, _ = choose_run_dir(tmp_path, config, 'a', False)
    write_options(first, config)
    assert choose_run_dir(tmp_path, config, 'a', False) == (first, False)


def test_run_folders(tmp_path, capsys):
    runs = tmp_path / 'runs'

    def choose(config, fresh=False, desc=None):
        run_dir, is_new = choose_run_dir(runs, config, run_name(config, 2, desc), fresh)
        number, rest = run_dir.name.split('-', 1)
        assert rest == 'tiny-heads-gpus2-batch4-gamma2' + ('-a_b_c' if desc else '')
        return int(number), is_new

    config = tiny('some/heads.zip')
    assert choose(config) == (0, True)
    (options,) = runs.glob('00000-*/training_options.json')
    assert read_options(options) == config
    assert json.loads(options.read_text())['session'].keys() > {'command', 'torch', 'git'}
    longer = dataclasses.replace(config, total_nimg=10**6, workers=7)
    assert choose(config) == choose(longer) == (0, False)
    assert json.loads(options.read_text())['total_nimg'] == 32  # until this process holds the lock
    write_options(options.parent, longer)
    assert json.loads(options.read_text())['total_nimg'] == 10**6
    assert choose(dataclasses.replace(config, seed=1)) == (1, True)
    assert choose(config, fresh=True) == (2, True)
    assert choose(config) == (2, False)  # the newest of the same
    assert choose(config, desc='a/b c') == (3, True)
    options.write_text('{"half": ')  # a folder of unreadable options is nobody's
    assert choose(dataclasses.replace(config, seed=2)) == (4, True)
    assert f'warning: {options.parent} is skipped' in capsys.readouterr().out


@pytest.mark.parametrize('order', [1, -1])
def test_override_sets_all_at_once(order):
    """What is only allowed together may come in any order."""
    changes = {'augment.target': '0.6', 'dataset.heldout_clips': '2', 'batch': '8'}
    config = override(tiny('d.zip'), dict(list(changes.items())[::order]))
    assert (config.augment.target, config.dataset.heldout_clips, config.batch) == (0.6, 2, 8)
    with pytest.raises(UserError, match='set dataset.heldout_clips, too'):
        override(tiny('d.zip'), {'augment.target': '0.6'})
