"""The contracts: a second system (2D, whole clips, own loss) is trained, resumed, sampled, measured."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import calc_metrics
import gen_videos
from dnnlib.config import from_dict, to_dict
from dnnlib.util import ConfigError
from support.second_system import KINDS, FlatGenerator, second
from support.small_runs import CPU, assert_same, everything, new_trainer, train
from torch_utils.checkpoint import read_snapshot, snapshot_path
from training.config import TrainConfig, build_networks
from training.estimate import describe_run
from training.loss import PV3DLoss
from training.networks.registry import load_generator
from training.run_folder import run_name


def run(script, *args):
    result = CliRunner().invoke(script.main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


@pytest.fixture(scope='module', autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        for registry, kind, cls in KINDS:
            patch.setitem(registry, kind, cls)
        yield


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    return train(second(data), tmp_path_factory.mktemp('whole'))


@pytest.fixture
def snapshot(whole):
    return snapshot_path(whole.run_dir, 8)


def test_loss_that_needs_3d_is_refused(data):
    config = dataclasses.replace(second(data), loss=PV3DLoss.Config())
    with pytest.raises(ConfigError, match='pv3d.*flat has no 3D'):
        build_networks(config)
    assert run_name(second(data), 1, None) == f'second-{Path(data).stem}-gpus1-batch2'


def test_config_there_and_back(data):
    config = second(data)
    plain = json.loads(json.dumps(to_dict(config)))
    assert [plain[n]['kind'] for n in ('generator', 'd_video', 'loss')] == ['flat', 'clip', 'hinge']
    assert from_dict(TrainConfig, plain) == config
    assert 'FLOP a step' in describe_run(config, CPU, 1)
    plain['generator']['kind'] = 'strange'
    with pytest.raises(ConfigError, match='strange.*pv3d, .*flat'):
        from_dict(TrainConfig, plain)


def test_resumed_run_is_the_same_run(data, tmp_path, whole):
    train(second(data), tmp_path / 'parts', until=4)
    assert_same(everything(train(second(data), tmp_path / 'parts')), everything(whole), least=20)


def test_a_stage_that_freezes_part_of_a_network(data, tmp_path, snapshot):
    config = dataclasses.replace(second(data), resume=str(snapshot), freeze=('G.appearance', 'D_video.head'))
    trainer = train(config, tmp_path / 'stage2')
    before = {n: e['state'] for n, e in read_snapshot(snapshot).networks.items()}
    for network in ('G', 'D_video'):
        for name, tensor in trainer.modules()[network].state_dict().items():
            frozen = f'{network}.{name.split(".")[0]}' in config.freeze
            source = 'G_ema' if network == 'G' and frozen else network  # the better weights of the two
            assert torch.equal(tensor, before[source][name]) == frozen, (network, name)
    assert torch.equal(trainer.G_ema.appearance.weight, before['G_ema']['appearance.weight'])
    train(dataclasses.replace(config, freeze=('D_video', 'G.motion')), tmp_path / 'one side')
    with pytest.raises(ConfigError, match='G.nose'):
        new_trainer(dataclasses.replace(config, freeze=('G.nose',)), tmp_path / 'stage3')


def test_snapshot_rebuilds_the_networks_it_names(snapshot):
    found = read_snapshot(snapshot)
    assert set(found.networks) == {'G', 'D_video', 'G_ema'}
    assert type(load_generator(found)) is FlatGenerator


def test_sampled(snapshot, tmp_path):
    args = '--network', snapshot, '--seeds', '0,1', '--frames', 4, '--trajectory', 'front'
    result = run(gen_videos, *args, '--outdir', tmp_path / 'out')
    assert result.exit_code == 0, result.output
    assert (tmp_path / 'out' / 'seed0001.mp4').exists()
    result = run(gen_videos, *args, '--outdir', tmp_path / 'none', '--depth')
    assert result.exit_code == 1 and 'kind flat' in result.output and '--depth' in result.output
    assert not (tmp_path / 'none').exists()


def test_measured(snapshot, data, tmp_path):
    folders = '--cache', tmp_path / 'cache', '--outdir', tmp_path
    args = '--network', snapshot, '--data', data, *folders, '--metrics'
    result = run(calc_metrics, *args, 'motion4')
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / 'metric-motion4.jsonl').read_text())['value'] >= 0
    result = run(calc_metrics, *args, 'cd4')
    assert result.exit_code == 1 and 'cd4' in result.output and 'depth' in result.output


def test_sheets_without_depth(whole):
    drawn = dict(whole.callbacks.draw(whole.G_ema, 8))
    assert set(drawn) == {'fakes', 'views', 'strip', 'video'}
