"""Subjects: all ways to the same videos give the same values; what does not fit together is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dnnlib.util import UserError
from dnnlib.video import write_video
from metrics.base import Settings
from metrics.records.digests import json_digest
from metrics.sources import views
from metrics.sources.subjects import folder_subject, network_subject, views_subject
from support import tiny
from support.small_data import CLIPS
from training.data.dataset import VideoDataset

T, COUNT = 4, 5


@pytest.fixture(scope='module')
def G():
    return tiny.solid_generator()


@pytest.fixture
def dataset(data):
    return VideoDataset.Config(path=data).build()


def settings(folder, **changes):
    return Settings(cache=folder, **changes)


def quiet(count):
    pass


def write_images(folder, size=32, clips=2):
    rng = np.random.default_rng(size)
    for k in range(clips):
        (folder / f'{k}').mkdir(parents=True)
        for i in range(T):
            image = rng.integers(9, 255, (size, size, 3), np.uint8)
            Image.fromarray(image).save(folder / f'{k}' / f'{i}.png')
    return folder


def test_cameras_of_videos_as_settings_say(G, dataset, tmp_path):
    """Held ones are those before a camera that stands still; the mapping sees what it is told to."""
    held = network_subject(G, dataset, settings(tmp_path, clip_camera='held', codec='none'), 'x.pkl', 1.0)
    plain = network_subject(G, dataset, settings(tmp_path, codec='none'), 'x.pkl', 1.0)
    own = network_subject(G, dataset, settings(tmp_path, mapping_camera='own', codec='none'), 'x.pkl', 1.0)
    clips = [source(T, 2).item(1) for source in (held.fakes, held.held, plain.held, plain.fakes, own.fakes)]
    for other in clips[1:3]:
        np.testing.assert_array_equal(clips[0], other)
    assert (clips[3] != clips[0]).any() and (clips[4] != clips[3]).any()
    assert (clips[4][0] == clips[3][0]).all() and own.views(1).mapping_camera == 'own'


def test_videos_of_a_network_and_of_its_folder_are_equal(G, dataset, data, tmp_path):
    """Both sides, bit by bit, whether the real one is named as data, as its zip, or as its folder."""
    options = settings(tmp_path)
    ours = network_subject(G, dataset, options, 'x.pkl', 1.0)
    assert ours.save_videos(tmp_path / 'v', T, COUNT, quiet) == {}
    for folder in ('real', 'plain'):
        shutil.unpack_archive(data, tmp_path / folder)
    (tmp_path / 'plain' / 'dataset.json').unlink()  # only images
    fake, count = tmp_path / 'v' / 'T4', 2 * CLIPS
    reals = [data, tmp_path / 'real', tmp_path / 'plain']
    ways = [folder_subject(fake, None, options, dataset), *(folder_subject(fake, r, options) for r in reals)]
    for other in ways:
        for i in range(COUNT):
            assert np.array_equal(other.fakes(T, COUNT).item(i), ours.fakes(T, COUNT).item(i))
        for i in range(0, count, 3):
            theirs, real = other.reals(T, count), ours.reals(T, count)
            assert np.array_equal(theirs.item(i), real.item(i))
            assert theirs.name(i) == real.name(i) and theirs.group(i) == real.group(i)
        assert other.real_clips == CLIPS and other.held is other.frozen is other.save_videos is None
    assert {json_digest(w.reals(T, 3).identity) for w in ways[:2]} == {json_digest(ours.reals(T, 3).identity)}


def test_folders_are_encoded_at_the_rate_of_the_data(clip_files, data, tmp_path):
    """Images of either side; a folder's own dataset.json comes first."""
    fake, options = write_images(tmp_path / 'fake'), settings(tmp_path)
    for name, content in clip_files.items():
        path = tmp_path / 'real' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.replace(b'"fps": 25.0', b'"fps": 12.5'))
    subject = folder_subject(fake, tmp_path / 'real', options)

    def rates(subject):
        sides = [side(T, 2) for side in (subject.fakes, subject.reals) if side]
        return {side.identity['codec']['fps'] for side in sides} | {subject.facts['fps']}

    assert rates(subject) == rates(folder_subject(tmp_path / 'real', fake, options)) == {12.5}
    assert rates(folder_subject(fake, None, options)) == {25}
    (fake / 'dataset.json').write_text('{"labels": []}')  # of another program
    assert rates(folder_subject(fake, None, options)) == {25}


def test_images_of_different_sizes_are_refused(data, tmp_path):
    small, large = write_images(tmp_path / 'small', 32), write_images(tmp_path / 'large', 64)
    options = settings(tmp_path)
    for real, size in ((small, 32), (data, 32)):
        with pytest.raises(UserError, match=f'large holds images of 64x64, but .* of {size}x{size}'):
            folder_subject(large, real, options)
    with pytest.raises(UserError, match='absent is not a folder'):
        folder_subject(small, tmp_path / 'absent', options)


def test_facts_of_folders(dataset, data, tmp_path):
    """Checksums follow the content; the codec is reported only where it is applied."""
    options = settings(tmp_path, crf=40)
    fake, real = write_images(tmp_path / 'fake'), tmp_path / 'real'
    real.mkdir()
    for k in range(3):
        write_video(real / f'{k}.mp4', np.full((T, 32, 32, 3), 40 + k, np.uint8))
    before = folder_subject(fake, real, options)
    facts = before.facts
    assert (facts['fake_videos'], facts['real_clips'], facts['resolution']) == (2, 3, 32)
    assert (facts['codec'], facts['crf'], facts['fps']) == ('h264', 40, 25.0) and before.encodes
    assert facts['real_codec'] == 'as stored' and 'fake_codec' not in facts
    videos = folder_subject(real, None, options)
    assert not videos.encodes and videos.facts['codec'] == 'none' and 'fps' not in videos.facts
    assert videos.facts['crf'] is None and videos.facts['fake_codec'] == 'as stored'
    assert videos.facts['fake_sha256'] == facts['real_sha256'] != facts['fake_sha256']
    assert folder_subject(fake, data, settings(tmp_path, codec='none')).facts['codec'] == 'none'
    assert folder_subject(real, data, options).facts['data_sha256']
    (fake / '1' / '0.png').write_bytes((fake / '0' / '0.png').read_bytes())
    after = folder_subject(fake, real, options).facts
    assert after['fake_sha256'] != facts['fake_sha256'] and after['real_sha256'] == facts['real_sha256']


def test_facts_of_a_network(G, dataset, tmp_path):
    facts = network_subject(G, dataset, settings(tmp_path), 'x.pkl', 1.0).facts
    assert (facts['codec'], facts['crf'], facts['fps'], facts['resolution']) == ('h264', 15, 25.0, 32)
    bare = network_subject(G, dataset, settings(tmp_path, codec='none'), 'x.pkl', 1.0)
    assert bare.facts['codec'] == 'none' and 'crf' not in bare.facts
    with pytest.raises(UserError, match='leave --codec none out'):
        bare.save_videos(tmp_path, T, 1, quiet)


def test_videos_of_two_lengths_go_into_one_folder(G, dataset, tmp_path):
    """With all values in the cache, too: saving looks only at the folder."""
    subject, ticks = network_subject(G, dataset, settings(tmp_path), 'x.pkl', 1.0), []
    for frames in (T, 3, T):
        assert subject.save_videos(tmp_path / 'v', frames, 2, ticks.append) == {}
    found = sorted(p.relative_to(tmp_path / 'v').as_posix() for p in tmp_path.glob('v/*/*.mp4'))
    assert found == ['T3/00000.mp4', 'T3/00001.mp4', 'T4/00000.mp4', 'T4/00001.mp4'] and len(ticks) == 6


def test_stored_views_keep_bin_size_and_protocol(G, dataset, tmp_path):
    options = settings(tmp_path)
    ours = network_subject(G, dataset, options, 'x.pkl', 1.0)
    views.save_views(ours.views(2), tmp_path / 'v', quiet, ours.bin_size, options.protocol)
    stored = views_subject(tmp_path / 'v', options)
    assert stored.bin_size == ours.bin_size == (3.3 - 2.25) / (G.config.renderer.depth_samples - 1)
    assert stored.facts['views_files'] == 2 and stored.facts['views_protocol'] == 'paper'
    with pytest.raises(UserError, match='views of the protocol paper, .*; give --protocol paper'):
        views_subject(tmp_path / 'v', settings(tmp_path, protocol='released'))
