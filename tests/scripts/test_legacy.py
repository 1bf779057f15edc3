"""Foreign checkpoints: conversion, round trip, warm start, and their command lines."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

import gen_videos
from dnnlib.config import from_dict, to_dict
from interop import configs
from interop.convert import EG3D, PV3D, open_foreign, open_snapshot, trained_with
from interop.names import PREFIXES, filter_names, from_released
from support import tiny
from support.foreign_files import G_CONFIG, released_model, run, save_ckpt, save_eg3d
from support.golden_reference import agrees, find, load
from support.small_runs import cli
from torch_utils import checkpoint
from training.networks.motion import MotionConfig
from training.networks.pv3d import Generator
from training.networks.registry import NETWORKS
from training.presets import tiny as tiny_config

RAYS = ['renderer.resolution=8', 'renderer.depth_samples=6', 'renderer.importance_samples=6']
SET_RAYS = [word for option in RAYS for word in ('--set', option)]


@pytest.fixture
def eg3d(tmp_path):
    """An EG3D pickle of 32 x 32 pixels, so that the tiny data fit, whose source code would leave a file."""
    config = dataclasses.replace(
        tiny_config('x').generator, plane_axes='released', motion=MotionConfig(num_layers=0)
    )
    G, D = tiny.build(config), tiny.build(tiny_config('x').d_image, 1)
    source = f'open({str(tmp_path / "ran")!r}, "w").write("executed")'
    save_eg3d(tmp_path / 'eg3d.pkl', G, D, source, box_warp=1)
    yield tmp_path / 'eg3d.pkl', G, D
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def small_images(monkeypatch):
    monkeypatch.setitem(configs._SR_RESOLUTION, 32, 16)


def test_golden_networks_convert(tmp_path):
    golden = load('golden_small.npz')
    names = {'img_discriminator.': 'D_img', 'vid_discriminator.': 'D_vid'}
    model = {
        prefix + key.removeprefix(there): value
        for prefix in PREFIXES
        for there in [f'sd/{names.get(prefix, "G")}.']
        for key, value in golden.items()
        if key.startswith(there)
    }
    save_ckpt(tmp_path / 'a.ckpt', model)
    rays = [('renderer.resolution', '16'), ('renderer.depth_samples', '12')]
    snapshot = open_foreign(tmp_path / 'a.ckpt', [*rays, ('renderer.importance_samples', '12')]).snapshot
    built = {n: checkpoint.build_network(snapshot, n, NETWORKS[n]) for n in snapshot.networks}
    assert list(built) == ['G', 'D_image', 'D_video', 'G_ema']
    z_a, z_m = (golden[f'in/{k}'].repeat_interleave(2, dim=0) for k in ('z_a', 'z_m'))
    c, c_map = (golden[f'in/{k}'].flatten(0, 1) for k in ('c_render', 'c_cond'))
    out = built['G_ema'](z_a, z_m, golden['in/t'].flatten(), c, c_map)
    for ours, theirs in ((out.image, 'image'), (out.image_raw, 'image_raw'), (out.depth, 'image_depth')):
        agrees(ours, golden[f'out/{theirs}'])
    agrees(built['D_image'](out.image, out.image_raw, c), golden['D/fake/logits_img'])
    pair = built['D_video'].pair_input(out.image.unflatten(0, (2, 2)), golden['in/t'])
    agrees(built['D_video'](pair, c.unflatten(0, (2, 2))), golden['D/fake/logits_vid'])


FILES = {'G': 'state_G.json', 'D_image': 'state_D_img.json', 'D_video': 'state_D_vid.json'}


@pytest.mark.parametrize('network', FILES)
def test_released_shapes_give_the_released_config(network):
    """Names of the filters, and the config of the 512 x 512 networks, follow from the reference lists."""
    shapes = {k: tuple(v) for k, v in json.loads(find(FILES[network]).read_text()).items()}
    kept = [n for n in shapes if not n.endswith('resample_filter')]
    assert filter_names(network, kept, 512) == set(shapes) - set(kept)
    config = configs.CONFIGS[network]({from_released(network, n): shapes[n] for n in kept})
    expected = NETWORKS[network].read({})
    assert config == (dataclasses.replace(expected, plane_axes='released') if network == 'G' else expected)


@pytest.mark.parametrize('suffix', ['ckpt', 'pth'])
def test_round_trip_is_identical(tmp_path, networks, ckpt, suffix):
    model = released_model(networks)
    torch.save(model, tmp_path / 'a.pth')
    source = ckpt if suffix == 'ckpt' else tmp_path / 'a.pth'
    done = run('--source', source, '--dest', tmp_path / 'b.pkl', *SET_RAYS)
    assert done.exit_code == 0, done.output
    back = run('--source', tmp_path / 'b.pkl', '--dest', tmp_path / f'c.{suffix}', '--to', 'released')
    assert back.exit_code == 0 and 'codes of 512 numbers, not 16' in back.output
    found = torch.load(tmp_path / f'c.{suffix}', weights_only=True)
    if suffix == 'ckpt':
        assert (found['num_samples'], found['best_metric_value'], found['optimizer']) == (480, 1.5, {})
        found = found['model']
    assert found.keys() == model.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in model.items())
    again = open_snapshot(tmp_path / f'c.{suffix}').networks
    assert all(again[k]['state'].keys() == m.state_dict().keys() for k, m in networks.items())
    if suffix == 'ckpt':  # our own exports also keep how rays are sampled
        assert from_dict(Generator.Config, again['G']['config']) == G_CONFIG


def test_summary_and_meta(tmp_path, ckpt):
    done = run('--source', ckpt, '--dest', tmp_path / 'b.pkl', *SET_RAYS)
    for text in (PV3D, 'num_updates 30', 'num_samples 480', 'plane_axes=released', '8x8 rays of 6 + 6'):
        assert text in done.output, done.output
    snapshot = checkpoint.read_snapshot(tmp_path / 'b.pkl')
    assert [snapshot.meta[k] for k in ('cur_nimg', 'kimg', 'cfg')] == [480, 0.48, 'pv3d-released']
    assert snapshot.networks['G_ema']['config'] == to_dict(G_CONFIG)
    assert trained_with(tmp_path / 'b.pkl') == trained_with(ckpt) == [('generator.plane_axes', 'released')]
    assert run('--source', tmp_path / 'b.pkl', '--dest', tmp_path / 'c.pkl').output.startswith('Error: ')
    assert run('--source', tmp_path / 'b.pkl', '--set', 'span=4').output.startswith('Error: ')
    missing = run('--source', tmp_path / 'none.ckpt', '--dest', tmp_path / 'c.pkl')
    assert missing.exit_code == 1 and 'none.ckpt' in missing.output and 'already' not in missing.output
    own = run('--source', tmp_path / 'b.pkl')
    assert own.exit_code == 0 and 'clips seen: 480' in own.output and '8x8 rays of 6 + 6' in own.output


# tensor of the released model -> its new value (none = missing), the message
MISFITS = {
    'generator_ema.decoder.net.0.bias': (None, 'G_ema does not fit: missing: decoder.net.0.bias'),
    'generator_ema.extra.weight': (torch.zeros(2), 'does not fit: unexpected: extra.weight'),
    'generator_ema.superresolution.block1.torgb.bias': (torch.zeros(7), 'torgb.bias [7] instead of [3]'),
    'generator_ema.to_img_raw.bias': (torch.zeros(3).int(), 'not floating-point: to_img_raw.bias'),
    'generator.to_img_raw.bias': (torch.full([3], torch.inf), 'non-finite values: to_image_raw.bias'),
    'generator.decoder.net.2.bias': (torch.tensor(1.0), 'decoder.out.bias is missing, or does not'),
    f'generator.backbone.synthesis.b{"9" * 5000}.conv1.bias': (torch.zeros(1), 'unexpected: backb'),
    'img_discriminator.b8.conv1.resample_filter': (torch.ones(4, 4) / 16, 'no low-pass filter [1, 3, 3, 1]'),
    'vid_discriminator.b32.conv0.bias': (torch.zeros(5), 'its channels are not min(base / resolution'),
    'deform_field.weight': (torch.zeros(1), 'unexpected in the model: deform_field.weight'),
}


@pytest.mark.parametrize('name', MISFITS, ids=lambda name: name[:60])
def test_what_does_not_fit_is_listed(tmp_path, networks, name):
    value, message = MISFITS[name]
    model = {n: t for n, t in {**released_model(networks), name: value}.items() if t is not None}
    torch.save(model, tmp_path / 'a.pth')
    done = run('--source', tmp_path / 'a.pth', '--dest', tmp_path / 'b.pkl')
    assert done.exit_code == 1 and message in done.output, done.output
    assert not (tmp_path / 'b.pkl').exists() and 'Traceback' not in done.output


def test_eg3d_converts_without_running_its_source(tmp_path, eg3d, small_images):
    path, G, D = eg3d
    foreign = open_foreign(path)
    assert foreign.kind == EG3D and list(foreign.snapshot.networks) == ['G', 'D_image', 'G_ema']
    config = from_dict(Generator.Config, foreign.snapshot.networks['G_ema']['config'])
    assert config == G.config and config.motion.num_layers == 0
    built = checkpoint.build_network(foreign.snapshot, 'G_ema', NETWORKS['G_ema'])
    for name, tensor in G.state_dict().items():
        if not name.startswith('to_image_raw'):
            assert torch.equal(built.state_dict()[name], tensor)
    features, ws = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 16)
    assert torch.equal(built.to_rgb_raw(features, ws), features[:, :3])  # as EG3D has image_raw
    D_image = checkpoint.build_network(foreign.snapshot, 'D_image', NETWORKS['D_image'])
    assert all(torch.equal(t, D.state_dict()[n]) for n, t in D_image.state_dict().items())
    done = run('--source', path, '--dest', tmp_path / 'b.pkl')
    assert done.exit_code == 0 and EG3D in done.output and 'image_raw as in EG3D' in done.output
    assert checkpoint.read_snapshot(tmp_path / 'b.pkl').networks.keys() == foreign.snapshot.networks.keys()
    assert trained_with(tmp_path / 'b.pkl') == trained_with(path)
    refused = run('--source', tmp_path / 'b.pkl', '--dest', tmp_path / 'c.pth', '--to', 'released')
    assert refused.exit_code == 1 and 'motion.num_layers=0' in refused.output


@pytest.fixture
def train(data, tmp_path):
    """Runs train.py in a folder, and returns what it printed and the files of the run by their names."""

    def train(*args):
        command = ['--outdir', tmp_path / 'runs', '--data', data, '--cfg', 'tiny', '--device', 'cpu']
        done = cli(*command, '--batch', 2, '--set', 'output.image_ticks=0', *args)
        return done, {p.name: p for p in (tmp_path / 'runs').glob('*/*.pkl')}

    return train


def test_warm_start(train, eg3d, small_images):
    """train.py continues from EG3D: its first frames are the static ones at any time, and then it learns."""
    path, _, _ = eg3d
    done, files = train('--resume', path, '--kimg', 0)
    assert done.code == 0, done.err
    assert 'warning: trained with' not in done.out
    assert 'tensors copied from D_image' in done.out and 'of motion layers initialised' in done.out
    assert 'b32.fromrgb.weight, mapping.embed.weight initialised' in done.out
    first = checkpoint.read_snapshot(files['network-snapshot-000000000.pkl'])
    static = checkpoint.build_network(open_snapshot(path), 'G_ema', NETWORKS['G_ema'])
    z_a, z_m, _, c = tiny.codes(3)
    for name in ('G', 'G_ema'):
        G = checkpoint.build_network(first, name, NETWORKS[name])
        assert G.config.plane_axes == 'released' and G.config.motion.num_layers == 4
        for t in (0.0, 0.7):
            moving = G(z_a, z_m, torch.full([3], t), c)
            for ours, theirs in zip(moving, static(z_a, -z_m, torch.zeros(3), c), strict=True):
                assert torch.equal(ours, theirs)
    d_video, d_image = (first.networks[n]['state'] for n in ('D_video', 'D_image'))
    assert torch.equal(d_video['b16.conv0.weight'], d_image['b16.conv0.weight'])
    done, files = train('--resume', path, '--kimg', 0.016)
    snapshot = checkpoint.read_snapshot(files['network-snapshot-000000016.pkl'])
    last = checkpoint.build_network(snapshot, 'G', NETWORKS['G'])
    tiny.differs(*(last(z_a, z_m, torch.full([3], t), c).image for t in (0.0, 1.0)))
    for name, parameter in last.named_parameters():
        if '.motion.' in name and 'noise_strength' not in name:  # gradients reach all of the motion layers
            assert not torch.equal(parameter, first.networks['G']['state'][name]), name
    done, _ = train('--resume', path, '--kimg', 0, '--set', 'generator.motion.learned_weight=false')
    assert done.code == 1 and 'generator.motion.learned_weight=true' in done.err


def test_training_continues_from_the_released_pv3d(train, tmp_path, small_images):
    config = tiny_config('x')
    G = dataclasses.replace(config.generator, plane_axes='released')
    networks = {'G': tiny.build(G), 'D_image': tiny.build(config.d_image, 1)}
    networks |= {'D_video': tiny.build(config.d_video, 2), 'G_ema': tiny.build(G, 3)}
    save_ckpt(tmp_path / 'a.ckpt', released_model(networks))
    done, files = train('--kimg', 0, '--resume', tmp_path / 'a.ckpt')
    assert done.code == 0 and 'schedules continue at 480 clips' in done.out, done.err
    assert 'generator.renderer.depth_samples=48, this run has 6' in done.out  # what shapes do not show
    snapshot = checkpoint.read_snapshot(files['network-snapshot-000000000.pkl'])
    assert snapshot.networks['G']['config']['plane_axes'] == 'released'
    for name, network in networks.items():
        state = snapshot.networks[name]['state']
        assert all(torch.equal(state[n], t) for n, t in network.state_dict().items()), name


def test_older_snapshots_move_along_a_line(train, tmp_path):
    """They do not name the path; a run with another one begins with their weights and says so."""
    _, files = train('--kimg', 0)
    content = torch.load(*files.values(), weights_only=True)
    for network in ('G', 'G_ema'):
        del content['networks'][network]['config']['motion']['path']
    torch.save(content, tmp_path / 'old.pkl')
    snapshot = checkpoint.read_snapshot(tmp_path / 'old.pkl')
    assert checkpoint.build_network(snapshot, 'G', NETWORKS['G']).config.motion.path == 'line'
    done, _ = train('--resume', tmp_path / 'old.pkl', '--kimg', 0, '--set', 'generator.motion.path=waves')
    assert done.code == 0, done.err
    assert 'warning: trained with generator.motion.path=line, this run has waves' in done.out


def test_a_discriminator_built_otherwise_starts_from_new_weights(train, tmp_path):
    _, first = train('--kimg', 0)
    change = 'd_video.pair=difference'
    done, _ = train('--resume', *first.values(), '--kimg', 0, '--seed', 1, '--set', change)
    assert 'warning: D_video differs' in done.out and 'D_image differs' not in done.out, done.err
    runs = sorted(tmp_path.glob('runs/*/*.pkl'))
    before, after = ({n: x['state'] for n, x in checkpoint.read_snapshot(p).networks.items()} for p in runs)
    assert {n for n in before if all(torch.equal(t, after[n][k]) for k, t in before[n].items())} == {
        'G',
        'G_ema',
        'D_image',
    }


def test_waves_have_no_released_layout(tmp_path):
    base = tiny_config('x')
    waves = dataclasses.replace(base.generator.motion, path='waves')
    G = tiny.build(dataclasses.replace(base.generator, plane_axes='released', motion=waves))
    networks = {'D_image': tiny.build(base.d_image), 'D_video': tiny.build(base.d_video), 'G_ema': G, 'G': G}
    checkpoint.save_snapshot(tmp_path / 'a.pkl', networks, {})
    done = run('--source', tmp_path / 'a.pkl', '--dest', tmp_path / 'c.pth', '--to', 'released')
    assert done.exit_code == 1 and done.output.count('\n') == 1
    assert 'the released G cannot have motion.path=waves' in done.output


@pytest.mark.parametrize('content', [None, b'', b'hello', [1], {'model': {}}])
def test_files_that_are_none_of_these(tmp_path, content):
    path = tmp_path / 'a.ckpt'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    done = run('--source', path, '--dest', tmp_path / 'b.pkl')
    assert done.exit_code == 1 and done.output.startswith('Error: ') and str(path) in done.output
    assert done.output.count('\n') == 1 and not (tmp_path / 'b.pkl').exists()


def test_video_of_a_foreign_checkpoint(tmp_path, eg3d, small_images):
    args = ['--network', eg3d[0], '--seeds', 0, '--outdir', tmp_path / 'out', '--frames', 2, '--no-sheet']
    done = CliRunner().invoke(gen_videos.main, [*map(str, args), '--device', 'cpu'])
    assert done.exit_code == 0, done.output
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['seed0000.mp4']
