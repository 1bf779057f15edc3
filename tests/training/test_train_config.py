"""Presets, flags and --set; every option that the paper varies trains."""

import dataclasses
import json

import click
import pytest
import torch

from dnnlib.config import from_dict, to_dict
from dnnlib.util import UserError
from support.small_runs import train
from torch_utils.misc import parameter_count
from train import build_config, main, with_facts_of_data
from training.config import TrainConfig, with_resolution
from training.presets import PRESETS, tiny
from training.run_folder import choose_run_dir, run_name, write_options


def flags(*args):
    """Returns the options that click would pass for a command line."""
    with click.Context(main, **main.context_settings) as context:  # -h, which main remembers
        main.parse_args(context, ['--outdir', 'o', '--data', 'd.zip', *args])
        return context.params


def config_of(*args):
    return build_config(flags(*args))


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


def test_sizes_of_the_paper():
    config = PRESETS['pv3d-voxceleb']('d.zip')
    with torch.device('meta'):
        counts = [parameter_count(c.build()) for c in (config.generator, config.d_image, config.d_video)]
    assert counts == [44_320_383, 31_359_744, 31_372_608]  # the released networks


@pytest.mark.parametrize(
    ('name', 'density', 'gamma'),
    [
        ('pv3d-voxceleb', 0.6, 2.0),
        ('pv3d-celebvhq', 0.05, 4.0),
        ('pv3d-talkinghead', 0.5, 2.0),
        ('pv3d-released', 0.6, 2.0),
    ],
)
def test_weights_of_the_paper(name, density, gamma):
    config = PRESETS[name]('d.zip')
    loss = config.loss
    assert (loss.density_weight, loss.r1_gamma, loss.video_weight, loss.image_weight) == (
        density,
        gamma,
        0.65,
        1.0,
    )
    assert (config.batch, config.total_nimg, config.generator.resolution) == (16, 300_000 * 16, 512)
    assert (config.g_reg_interval, config.d_reg_interval) == (4, 16)
    assert (config.g_opt.lr, config.d_opt.lr, config.g_opt.beta2, config.d_opt.beta2) == (
        0.0025,
        0.002,
        0.99,
        0.99,
    )
    assert (config.ema.half_life_nimg, config.ema.rampup) == (5000, 0.05)
    assert (loss.swap_start, loss.swap_end, loss.swap_fade_nimg) == (1.0, 0.5, 1_000_000)
    assert (loss.blur_sigma, loss.density_points, loss.density_distance) == (10.0, 1000, 0.004)
    render = config.generator.renderer
    assert (render.resolution, render.depth_samples, render.importance_samples) == (64, 48, 48)
    assert (render.ray_start, render.ray_end) == (2.25, 3.3)


def test_released_preset_sets_every_switch():
    ours, released = PRESETS['pv3d-voxceleb']('d.zip'), PRESETS['pv3d-released']('d.zip')
    plain = [json.dumps(to_dict(dataclasses.replace(c, cfg=''))) for c in (ours, released)]
    assert plain[0] != plain[1]
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
    text += ' dataset.max_clips=5'
    config = config_of('--cfg', 'tiny', *(x for part in text.split() for x in ('--set', part)))
    assert config.loss.density_weight == 0.3 and config.generator.renderer.depth_samples == 9
    assert config.generator.sr_channels == (8, 4) and config.dataset.max_clips == 5
    later = config_of('--cfg', 'tiny', '--gamma', '3', '--set', 'loss.r1_gamma=5')
    assert later.loss.r1_gamma == 5.0  # --set has the last word


def test_set_of_the_resolution_reaches_all_networks(data):
    args = ['--cfg', 'tiny', '--set', 'generator.resolution=64', '--set', 'generator.sr_resolution=32']
    config = config_of(*args)
    assert {c.resolution for c in (config.generator, config.d_image, config.d_video)} == {64}
    with pytest.raises(UserError, match='holds 32x32 pictures but resolution=64 is asked for'):
        with_facts_of_data(dataclasses.replace(config, dataset=tiny(data).dataset))


def test_span_reaches_the_data(data):
    config = dataclasses.replace(
        config_of('--cfg', 'tiny', '--set', 'generator.span=8'), dataset=tiny(data).dataset
    )
    assert with_facts_of_data(config).dataset.span == 8


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--set loss.gamma=1', r'unknown option loss\.gamma; known here: .*r1_gamma'),
        ('--set nothing=1', 'unknown option nothing; known here: .*generator'),
        ('--set loss.r1_gamma=much', "loss.r1_gamma='much' must be float"),
        ('--set batch=2.5', 'batch=2.5 must be int'),
        ('--set loss.density_box=all', 'must be one of inside, released'),
        ('--set loss.r1_gamma', '--set loss.r1_gamma must be PATH=VALUE'),
        ('--set dataset.span=8', 'follows generator.span; set that one'),
        ('--set d_image.resolution=8', 'follows generator.resolution; set that one'),
        ('--set generator.resolution=48', 'resolution=48 must be a power of two'),
        ('--set loss.image_weight=0 --set loss.video_weight=0', 'both 0: nothing would train G'),
        ('--set output.keep_states=0', 'output.keep_states=0 must be at least 1'),
        ('--set output.tick_nimg=0', 'output.tick_nimg=0 must be at least 1'),
        ('--set output.sheet_seeds=0', 'output.sheet_seeds=0 must be at least 1'),
        ('--set generator.renderer.depth_samples=1', 'depth_samples >= 4'),
        ('--set loss.r1_gamma=-1', r'loss\.r1_gamma=-1\.0 must be'),
        ('--set loss.blur_sigma=inf', r'loss\.blur_sigma=inf must be'),
        ('--set loss.density_points=0', r'loss\.density_points.* must be at least 1'),
        ('--set loss.resolution_final=0', r'loss\.resolution_final.* must be at least 1'),
        ('--set generator.channel_max=0', r'generator\.channel_max=0 must be positive'),
        ('--set generator.box_warp=0', r'generator\.box_warp=0\.0 must be positive'),
        ('--set generator.channel_base=16', 'channel_base=16 at least plane_resolution'),
        ('--set generator.sr_channels=0,4', r'sr_channels=\(0, 4\) must be positive'),
        ('--set generator.span=1', 'span=1 at least 2'),
        ('--set d_image.channel_base=16', 'channel_base=16 must be at least resolution'),
        ('--set d_video.channel_max=0', 'channel_max=0 positive'),
        ('--set d_video.num_low_precision=-1', 'num_low_precision=-1 >= 0'),
        ('--set ema.half_life_nimg=0', r'ema\.half_life_nimg=0 .*must be positive'),
        ('--set ema.rampup=0', r'ema\.rampup=0\.0 must be positive'),
        ('--set output.tick_nimg=-1000', r'output\.tick_nimg=-1000 must be at least 1'),
        ('--set batch=0', 'batch=0 must be at least 1'),
        ('--set total_nimg=-1000', 'total_nimg=-1000 must be at least 0'),
        ('--set seed=-1', 'seed=-1 must be at least 0'),
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
        (8, 3, 1, '--batch 8 must be a multiple of processes x --batch-gpu = 1 x 3'),
        (5, None, 2, '--batch 5 must be a multiple of processes x --batch-gpu = 2 x 2'),
        (1, None, 2, '--batch 1 must be a multiple of processes x --batch-gpu = 2 x 0'),
        (4, 8, 1, 'must be a multiple'),
        (4, 0, 1, '--batch 4 must be a multiple of processes x --batch-gpu = 1 x 0'),
        (6, None, 1, '6 clips at a time: the discriminators compare them in groups of 4'),
        (6, 3, 2, '3 clips at a time'),
        (6, 2, 3, (2, 1)),
    ],
)
def test_split_of_the_batch(batch, batch_gpu, processes, expected):
    config = dataclasses.replace(tiny('d.zip'), batch=batch, batch_gpu=batch_gpu)
    if isinstance(expected, tuple):
        assert config.split_batch(processes) == expected
    else:
        with pytest.raises(UserError, match=expected):
            config.split_batch(processes)


def test_networks_of_different_resolutions_are_refused():
    config = tiny('d.zip')
    with pytest.raises(UserError, match=r'differ in resolution: \[32, 64\]'):
        dataclasses.replace(config, d_image=dataclasses.replace(config.d_image, resolution=64))
    assert with_resolution(config, 64).d_video.resolution == 64


def test_run_folders(tmp_path):
    def choose(config, fresh=False, desc=None):
        run_dir, is_new = choose_run_dir(tmp_path / 'runs', config, run_name(config, 2, desc), fresh)
        return run_dir.name, is_new

    config = tiny('some/heads.zip')
    assert choose(config) == ('00000-tiny-heads-gpus2-batch4-gamma2', True)
    options = tmp_path / 'runs' / '00000-tiny-heads-gpus2-batch4-gamma2' / 'training_options.json'
    assert from_dict(TrainConfig, json.loads(options.read_text())) == config
    assert choose(config) == ('00000-tiny-heads-gpus2-batch4-gamma2', False)
    longer = dataclasses.replace(config, total_nimg=10**6, workers=7)
    assert choose(longer) == ('00000-tiny-heads-gpus2-batch4-gamma2', False)
    assert json.loads(options.read_text())['total_nimg'] == 32  # until this process holds the lock
    write_options(options.parent, longer)
    assert json.loads(options.read_text())['total_nimg'] == 10**6
    assert choose(dataclasses.replace(config, seed=1)) == ('00001-tiny-heads-gpus2-batch4-gamma2', True)
    assert choose(config, fresh=True) == ('00002-tiny-heads-gpus2-batch4-gamma2', True)
    assert choose(config) == ('00002-tiny-heads-gpus2-batch4-gamma2', False)  # the newest of the same
    assert choose(config, desc='a/b c') == ('00003-tiny-heads-gpus2-batch4-gamma2-a_b_c', True)
    options.write_text('{"half": ')  # a folder of unreadable options is nobody's
    assert choose(dataclasses.replace(config, seed=2)) == ('00004-tiny-heads-gpus2-batch4-gamma2', True)


ABLATIONS = [  # every row of the tables of ablations, and our decisions
    'generator.motion.num_layers=0',
    'generator.motion.num_layers=2',
    'generator.motion.learned_weight=true',
    'generator.motion.kind=mlp',
    'generator.motion.kind=naive',
    'generator.motion.kind=shared_code',
    'generator.camera_condition=all',
    'generator.camera_condition=non',
    'generator.camera_condition=map',
    'generator.camera_condition=none',
    'loss.video_weight=0',
    'loss.image_weight=0',
    'd_video.camera=false',
    'd_video.delta_t=false',
    'generator.renderer.resolution=16',
    'generator.plane_axes=released',
    'loss.density_box=released',
    'loss.density_weight=0',
    'sampling.fake_times=continuous',
    'sampling.tie_time=true',
    'dataset.distinct=false',
    'dataset.mirror=false',
    'dataset.mirror_fakes=false',
    'loss.r1_delta_t=false',
    'loss.resolution_final=12 loss.resolution_fade_nimg=4',
    'loss.blur_sigma=0',
    'loss.swap_start=0 loss.swap_end=0',
    'generator.span=8',
    'batch=1',
]


def two_steps(data, folder, changes):
    """Trains two steps of all phases with the given --set options; returns trainer and stats.jsonl."""
    base = 'batch=2 g_reg_interval=1 d_reg_interval=1 total_nimg=4 output.tick_nimg=2 output.image_ticks=0'
    sets = [x for change in f'{base} {changes}'.split() for x in ('--set', change)]
    config = build_config(flags('--cfg', 'tiny', *sets) | {'data': data})
    trainer = train(with_facts_of_data(config), folder)
    return trainer, [json.loads(line) for line in (folder / 'stats.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def paper(data, tmp_path_factory):
    """stats.jsonl without an ablation."""
    return two_steps(data, tmp_path_factory.mktemp('paper'), '')[1]


@pytest.mark.parametrize('changes', ABLATIONS)
def test_ablation_trains_and_has_an_effect(data, paper, tmp_path, changes):
    trainer, lines = two_steps(data, tmp_path, changes)
    losses = [{name: line[name] for name in line if name.startswith('Loss/')} for line in lines]
    expected = {n for n in paper[0] if n.startswith('Loss/')}
    if changes in ('loss.video_weight=0', 'loss.image_weight=0'):
        expected = {n for n in expected if changes[5:10] not in n}
    if changes == 'loss.density_weight=0':
        expected -= {'Loss/G/density'}
    assert all(set(values) == expected for values in losses)
    assert all(value is not None for values in losses for value in values.values())  # null: not finite
    assert trainer.progress.nonfinite == 0
    assert [trainer.networks.D_image is None, trainer.networks.D_video is None] == [
        changes == 'loss.image_weight=0',
        changes == 'loss.video_weight=0',
    ]
    before = [{name: line[name] for name in expected} for line in paper]
    same_in_training = 'generator.camera_condition=non'  # differs from mapt at inference
    assert (losses == before) == (changes == same_in_training)


def test_late_motion_layers(data, tmp_path):
    trainer, _ = two_steps(
        data, tmp_path, 'generator.plane_resolution=256 generator.channel_max=4 generator.motion.num_layers=7'
    )
    assert len([m for m in trainer.networks.G.modules() if type(m).__name__ == 'MotionLayer']) == 7
