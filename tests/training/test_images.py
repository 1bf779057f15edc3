"""Joint training with single images: what is drawn, what discriminators judge, resuming, pre-training."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dataset_tool import main
from dnnlib.config import override
from dnnlib.util import ConfigError, DataError
from interop.warm_start import start_from
from support.small_data import SIZE, smooth_clip
from support.small_runs import CPU, assert_same, everything, train
from support.tiny import double, fake_batch, generator, networks, real_batch, same, seeded, train_mode
from torch_utils.checkpoint import snapshot_path
from training.batching import fake_batch as draw_fakes
from training.batching import micro_batches, single_fakes
from training.config import build_networks, images_dataset
from training.data.files import read_index
from training.loss import PV3DLoss
from training.training_loop import Trainer

LATE = 10**9


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder as of `dataset_tool.py from-images`: images in no folder of their own."""
    root, labels = tmp_path_factory.mktemp('images'), []
    for i in range(5):
        files, cameras = smooth_clip(np.random.default_rng(50 + i), frames=1)
        (root / f'{i}.png').write_bytes(files[0])
        labels.append([f'{i}.png', cameras[0]])
    table = {'format': 'pv3d-dataset', 'version': 1, 'resolution': SIZE, 'fps': 25.0, 'labels': labels}
    (root / 'dataset.json').write_text(json.dumps(table))
    return str(root)


@pytest.fixture
def joint(small, images):
    return override(small, {'images.path': images, 'images.per_clip': '2'})


def singles(n, seed):
    """Draws fake and real single images."""
    fake, real = fake_batch(n, seed), real_batch(n, seed)
    t, c = fake.t[:, :1], fake.c[:, :1]
    return (
        fake._replace(t=t, c=c, c_other=c.roll(1, 0)),
        real._replace(frames=real.frames[:, :1], t=t, c=real.c[:, :1]),
    )


def test_images_may_be_single_and_in_no_folder(images, joint):
    assert read_index(images).problems and not read_index(images, single=True).problems
    dataset = images_dataset(joint)
    seen = {dataset.draw(seed % 5, seed)['c'][0, 3].item() for seed in range(60)}
    assert len(seen) == 10  # five images and their mirror images
    c, _ = dataset.sample_cameras(np.random.default_rng(0), 7)
    assert c.shape == (7, 1, 25) and dataset.draw(0, 3)['frames'].shape == (1, 3, SIZE, SIZE)
    with pytest.raises(DataError, match='is in no folder'):
        dataclasses.replace(joint.dataset, path=images).build()


def test_the_check_names_bad_images(images, tmp_path):
    arguments = ['check', images, '--plot', str(tmp_path / 'plot.png')]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert '5 images, 32x32: 0 bad images' in done.output and 'all good, as single images' in done.output
    shutil.copytree(images, tmp_path / 'bad')
    (tmp_path / 'bad/3.png').write_bytes(b'not an image')
    done = CliRunner().invoke(main, ['check', str(tmp_path / 'bad'), *arguments[2:]])
    assert done.exit_code == 1 and 'cannot be decoded' in done.output
    assert '1 of 5 images are bad: 3.png' in done.output


def test_folders_of_one_image_are_images(images, tmp_path):
    table = json.loads(Path(images, 'dataset.json').read_text())
    for i, entry in enumerate(table['labels']):
        (tmp_path / f'in/{i}').mkdir(parents=True)
        shutil.copy(f'{images}/{i}.png', tmp_path / f'in/{i}')
        entry[0] = f'{i}/{i}.png'
    (tmp_path / 'in/dataset.json').write_text(json.dumps(table))
    done = CliRunner().invoke(main, ['check', str(tmp_path / 'in'), '--plot', str(tmp_path / 'plot.png')])
    assert done.exit_code == 0 and '5 images, 32x32: 0 bad images' in done.output


def test_a_sheet_of_images_is_filled_one_by_one(images, tmp_path):
    options = ['--dest', str(tmp_path / 'sheet.png'), '--clips', '2', '--frames', '3', '--size', '32']
    done = CliRunner().invoke(main, ['show', images, *options])
    assert done.exit_code == 0, done.output
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    shown = [sheet[22 + 35 * y : 54 + 35 * y, 76 + 35 * x : 108 + 35 * x] for y in (0, 1) for x in (0, 1, 2)]
    for i, image in enumerate(shown[:5]):
        assert np.array_equal(image, np.asarray(Image.open(f'{images}/{i}.png').convert('RGB')))
    assert (shown[5] == 255).all()


def test_fakes_have_the_cameras_of_images_and_the_times_of_clips(joint):
    config, G = dataclasses.replace(joint, batch=64), generator()
    sources = config.dataset.build(), images_dataset(config)
    fake = single_fakes(config, G, sources, 'Gmain', 8, slice(16, 64), CPU)
    assert fake.z_a.shape == (96, 16) and fake.c.shape == (96, 1, 25) and fake.t.shape == (96, 1)
    known = torch.cat([sources[1].clip_cameras(i) for i in range(5)])
    mirrored = {round(abs(x), 5) for x in known[:, 3].tolist()}
    assert {round(abs(x), 5) for x in fake.c[:, 0, 3].tolist()} == mirrored
    assert len(fake.t.unique()) > 8 and fake.t.max() <= 1  # not that of a beginning
    clips = draw_fakes(config, G, sources[0], 'Gmain', 8, slice(0, 48), CPU)
    assert not torch.equal(clips.z_a, fake.z_a[:48])
    part = next(iter(micro_batches(clips._replace(singles=fake), 4)))
    assert len(part.t) == 4 and len(part.singles.t) == 8


@pytest.mark.parametrize('frames', [1, 2])
@pytest.mark.parametrize('phase', ['Gmain', 'Dmain', 'Dreg'])
def test_d_image_judges_the_mixture_and_d_video_the_clips(phase, frames):
    """Images are further frames of D_image; D_video sees what it sees without them."""
    nets = networks()
    nets = train_mode(double(nets), phase)
    loss = PV3DLoss.Config(image_frames=frames, blur_sigma=0.0, swap_end=0.0, r1_gamma=1.0).build()
    fake, real = double(fake_batch()), double(real_batch())
    more_fake, more_real = (double(x) for x in singles(2 * frames, 9))
    seen = {}

    def spied(name, network):
        forward = network.forward
        network.forward = lambda *a: (seen.setdefault(name, []).append(a), forward(*a))[1]

    for name, network in zip(('image', 'video'), nets[1:], strict=True):
        spied(name, network)
    list(loss.terms(phase, nets, real, fake, LATE, None))
    alone, seen = {k: list(v) for k, v in seen.items()}, seen
    for calls in seen.values():
        calls.clear()
    both = real._replace(singles=more_real), fake._replace(singles=more_fake)
    list(loss.terms(phase, nets, *both, LATE, None))
    for before, after in zip(alone['video'], seen['video'], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    for before, after in zip(alone['image'], seen['image'], strict=True):
        assert [len(x) for x in before] == [2 * frames] * 3 and [len(x) for x in after] == [4 * frames] * 3
        assert all(torch.equal(x, y[: 2 * frames]) for x, y in zip(before, after, strict=True))
    is_real = phase == 'Dreg'
    c = (more_real if is_real else more_fake).c[:, 0]
    assert torch.equal(seen['image'][0][2][2 * frames :], c)
    if is_real:
        same(seen['image'][0][0][2 * frames :], more_real.frames[:, 0])


def test_stop_and_resume_with_images_is_the_same_run(joint, tmp_path):
    loss = dataclasses.replace(joint.loss, reuse_fakes=True, image_frames=1, diversity_weight=0.5)
    config = dataclasses.replace(joint, loss=loss, batch_gpu=1, total_nimg=6)
    whole = train(config, tmp_path / 'whole')
    train(config, tmp_path / 'parts', until=2)
    assert_same(everything(train(config, tmp_path / 'parts')), everything(whole))
    without = override(config, {'images.path': 'none'})
    other = everything(train(without, tmp_path / 'without'))
    name = '/networks/D_image/b4.out.weight'
    assert not torch.equal(other[name], everything(whole)[name])


def test_images_are_drawn_apart_from_clips(joint, tmp_path):
    """Also where both are one data set: a batch then does not show the same clips twice."""
    same_data = {
        'images.path': joint.dataset.path,
        'images.per_clip': '1',
        'batch_gpu': '2',
        'batch': '6',
        'loss.image_frames': '1',
    }
    trainer = Trainer(override(joint, same_data), tmp_path, CPU)
    trainer._begin()
    # the height of the camera tells whose clip it is, also in a mirror
    shown = [next(stream)['c'][:, 0, 7] for stream in (trainer._data, trainer._singles)]
    same(*(x.sort().values for x in shown))  # each once
    assert not torch.equal(*shown)


def test_what_does_not_fit_is_refused(joint):
    with pytest.raises(ConfigError, match='images.path needs the loss pv3d'):
        override(joint, {'loss.image_weight': '0'})
    with pytest.raises(ConfigError, match='multiple of 4 frames with --images'):
        override(joint, {'images.per_clip': '1', 'batch_gpu': '2', 'batch': '2'}).split_batch(1)


def test_pre_training_on_images_then_motion_from_nothing(small, images, tmp_path):
    """A static network learns from images alone; a run with motion starts from it as the same network."""
    changes = {'dataset.path': images, 'loss.video_weight': '0', 'loss.image_frames': '1'}
    static = override(small, changes | {'generator.motion.num_layers': '0', 'total_nimg': '2'})
    static = dataclasses.replace(static, dataset=dataclasses.replace(static.dataset, frames='single'))
    trainer = train(static, tmp_path / 'static')
    path = snapshot_path(tmp_path / 'static', 2)
    moving = build_networks(override(small, {'generator.motion.learned_weight': 'true'}))
    modules = {'G': moving.G, 'D_image': moving.D_image, 'D_video': moving.D_video, 'G_ema': moving.G}
    assert start_from(str(path), modules) == 2
    inputs = moving.G.draw_codes(2, seeded(0))
    c = torch.cat([trainer.dataset.clip_cameras(i) for i in (0, 1)])
    with torch.no_grad():
        first = trainer.G_ema(*inputs, torch.tensor([0.2, 0.9]), c)
        same(moving.G.eval()(*inputs, torch.tensor([0.2, 0.9]), c).image, first.image, 1e-6)
    assert torch.equal(moving.D_video.b4.fc.weight, trainer.networks.D_image.b4.fc.weight)
