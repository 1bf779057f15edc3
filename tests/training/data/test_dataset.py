"""Reading clips, drawing pairs and cameras, the order of training, and what can be wrong with data."""

import io
import itertools
import json
import logging
import os
import pickle
import signal
import subprocess
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.util import DataError, UserError
from support.small_data import CLIPS, FRAMES, SIZE, write_zip
from support.small_runs import new_trainer
from training import camera
from training.data.dataset import VideoDataset, batches, clip_order, killed_workers_explained


def opened(path, **options):
    return VideoDataset.Config(path=str(path), **options).build()


def take(dataset, n, **options):
    return list(itertools.islice(batches(dataset, **options), n))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def changed(clip_files, path, **entries):
    """Writes the data set with fields of dataset.json replaced."""
    table = {**json.loads(clip_files['dataset.json']), **entries}
    return write_zip(path, {**clip_files, 'dataset.json': json.dumps(table).encode()})


# ---- drawing


def test_pairs_at_distances_come_from_the_whole_clip(data):
    dataset = opened(data, pairs='distances', max_distance=16, mirror=False)
    pair = dataset.draw(2, 5)
    i, j = (int((dataset.clip_cameras(2) == c).all(dim=1).nonzero()[0, 0]) for c in pair['c'])
    assert (pair['t'] * 15).round().int().tolist() == [i, j] and j - i in (1, 2, 4, 8, 16)
    c, t = dataset.sample_cameras(np.random.default_rng(3), 400)
    assert c.shape == (400, 2, 25) and t.max() > 1  # beyond the span, for fakes as for real frames
    steps = ((t[:, 1] - t[:, 0]) * 15).round().int()
    assert set(steps.tolist()) == {1, 2, 4, 8, 16}
    with pytest.raises(UserError, match='max_distance=12 must be a power of two'):
        opened(data, max_distance=12)


def test_order_visits_every_clip_once_an_epoch_and_can_start_anywhere():
    order = list(itertools.islice(clip_order(5, 0, 7), 21))
    assert [k for k, _ in order] == list(range(21))
    epochs = [[clip for _, clip in order[i : i + 7]] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]
    for start in (1, 7, 10):
        assert list(itertools.islice(clip_order(5, start, 7), 21 - start)) == order[start:]
    assert [c for _, c in itertools.islice(clip_order(6, 0, 7), 7)] != epochs[0]


# ---- reading


def test_zip_and_folder_give_the_stored_frames(data, clip_files, tmp_path):
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / 'folder')
    for dataset in (opened(data), opened(tmp_path / 'folder')):
        assert len(dataset) == CLIPS and dataset.names[1] == '000001' and dataset.resolution == SIZE
        frames = dataset.clip_frames('000002', [0, 17])
        for frame, i in zip(frames, (0, 17), strict=True):
            expected = np.asarray(Image.open(io.BytesIO(clip_files[f'000002/{i:05d}.png'])))
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), expected)
        labels = dict(json.loads(clip_files['dataset.json'])['labels'])
        expected = torch.tensor([labels[f'000002/{i:05d}.png'] for i in range(FRAMES)])
        assert torch.equal(dataset.clip_cameras(2), expected)
        assert dataset.num_frames('000002') == FRAMES
        assert '6 clips, 108 frames (18 a clip), 32x32' in dataset.describe()


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP'])
def test_other_image_formats_and_deflated_zips(kind, clip_files, tmp_path):
    """The order in dataset.json has no effect."""
    table = json.loads(clip_files['dataset.json'])
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for row in table['labels']:
            buffer = io.BytesIO()
            Image.open(io.BytesIO(clip_files[row[0]])).save(buffer, kind, quality=95)
            row[0] = row[0].replace('.png', '.' + kind.lower())
            archive.writestr(row[0], buffer.getvalue())
        expected = torch.tensor(table['labels'][FRAMES + 4][1])
        archive.writestr('dataset.json', json.dumps(table | {'labels': table['labels'][::-1]}))
    dataset = opened(tmp_path / 'x.zip')
    original = np.asarray(Image.open(io.BytesIO(clip_files['000001/00004.png'])))
    error = dataset.clip_frames(1, [4])[0].permute(1, 2, 0).numpy().astype(float) - original
    assert np.abs(error).mean() < 12
    assert torch.equal(dataset.clip_cameras(1)[4], expected)


def test_pairs_are_frames_of_one_window_with_their_times_and_cameras(data):
    dataset = opened(data, mirror=False)
    offsets = set()
    for seed in range(60):
        pair = dataset.draw(seed % CLIPS, seed)
        cameras = dataset.clip_cameras(seed % CLIPS)
        everything = dataset.clip_frames(seed % CLIPS, range(FRAMES))
        i, j = (int((cameras == c).all(dim=1).nonzero()[0, 0]) for c in pair['c'])
        assert torch.equal(pair['frames'], everything[[i, j]])
        first, last = (pair['t'] * 15).round().int().tolist()
        assert j - i == last - first > 0
        offsets.add(i - first)
    assert offsets == {0, 1, 2}  # 18 frames hold three windows of 16
    assert same(dataset.draw(3, 7), dataset.draw(3, 7))
    assert not torch.equal(dataset.draw(3, 7)['t'], dataset.draw(3, 8)['t'])


def test_short_clips_keep_the_unit_of_time(data):
    dataset = opened(data, span=31, mirror=False)
    times = torch.stack([dataset.draw(0, seed)['t'] for seed in range(100)]) * 30
    torch.testing.assert_close(times, times.round(), atol=1e-5, rtol=0)
    assert times.max().round() == 17  # the last of 18 frames


def test_mirroring_mirrors_image_and_camera_together(tmp_path):
    """A dot is painted where a point appears; the mirrored point must appear on the mirrored dot."""
    size, point = 64, torch.tensor([0.11, 0.07, 0.2])
    files, labels = {}, []
    for i in range(20):
        label = camera.orbit_label(-0.41 + 0.04 * i, 0.02 * i)
        x, y = (camera.project(point, label)[0] * size).int().tolist()
        image = np.zeros((size, size, 3), np.uint8)
        image[y, x] = 255
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, 'PNG')
        files[f'a/{i:02d}.png'] = buffer.getvalue()
        labels.append([f'a/{i:02d}.png', label.tolist()])
    table = {'format': 'pv3d-dataset', 'version': 1, 'resolution': size, 'fps': 25.0, 'labels': labels}
    files['dataset.json'] = json.dumps(table).encode()
    dataset = opened(write_zip(tmp_path / 'dot.zip', files))
    known = dataset.clip_cameras(0)
    mirrored = 0
    for seed in range(80):
        pair = dataset.draw(0, seed)
        plain = [(known == c).all(dim=1).any().item() for c in pair['c']]
        assert plain[0] == plain[1]  # both frames or none
        mirrored += not plain[0]
        where = point if plain[0] else point * torch.tensor([-1.0, 1.0, 1.0])
        for frame, c in zip(pair['frames'], pair['c'], strict=True):
            dot = frame[0].nonzero()[0].flip(0) + 0.5
            assert (camera.project(where, c)[0] * size - dot).abs().max() < 0.51
    assert 25 < mirrored < 55
    fakes = dataset.sample_cameras(np.random.default_rng(0), 200)[0]
    fraction = 1 - (fakes[:, :1, None] == known).all(dim=3).any(dim=2).float().mean()
    assert 0.35 < fraction < 0.65


def test_fake_cameras_belong_to_their_times(data):
    dataset = opened(data, mirror_fakes=False)
    c, t = dataset.sample_cameras(np.random.default_rng(0), 64)
    assert c.shape == (64, 2, 25) and t.shape == (64, 2)
    seen = set()
    for pair, (first, last) in zip(c, (t * 15).round().int().tolist(), strict=True):
        for clip in range(CLIPS):
            rows = (dataset.clip_cameras(clip)[None] == pair[:, None]).all(dim=2)
            if rows.any(dim=1).all():
                i, j = rows.int().argmax(dim=1).tolist()
                assert j - i == last - first > 0
                seen.add(clip)
    assert seen == set(range(CLIPS))


def test_max_clips_and_pickling(data):
    dataset = opened(data, max_clips=2)
    assert opened(data, max_clips=1).describe().startswith('1 clip, 18 frames')
    dataset.clip_frames(0, [0])  # opens the file, which a copy must not inherit
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == 2 and copy.names == ['000000', '000001']
    assert same(copy.draw(1, 4), dataset.draw(1, 4))


# ---- batches


def test_batches_depend_on_seed_and_position_alone(data):
    dataset, state = opened(data), torch.get_rng_state()
    whole = take(dataset, 5, seed=1, start=0, batch=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert whole[0]['frames'].shape == (4, 2, 3, SIZE, SIZE) and whole[0]['frames'].dtype == torch.uint8
    resumed = take(dataset, 3, seed=1, start=8, batch=4, num_workers=2)
    assert all(same(a, b) for a, b in zip(resumed, whole[2:], strict=True))
    assert not same(take(dataset, 1, seed=2, start=0, batch=4)[0], whole[0])
    halves = [take(dataset, 5, seed=1, start=0, batch=4, rank=r, world_size=2) for r in (0, 1)]
    for i, batch in enumerate(whole):
        assert same({k: torch.cat([halves[0][i][k], halves[1][i][k]]) for k in batch}, batch)


def corrupted(clip_files, *clips):
    """The files with every frame of some clips corrupted."""
    return {n: (d[:40] if n.startswith(clips) else d) for n, d in clip_files.items()}


@pytest.mark.parametrize('num_workers', [0, 2])
def test_one_bad_clip_is_named_once_and_replaced(num_workers, clip_files, tmp_path, caplog):
    dataset = opened(write_zip(tmp_path / 'x.zip', corrupted(clip_files, '000003')))
    with caplog.at_level(logging.WARNING):
        got = take(dataset, 8, seed=0, start=0, batch=3, num_workers=num_workers)
    named = [record for record in caplog.records if '000003' in record.getMessage()]
    assert len(named) == 1 and 'cannot be decoded' in named[0].getMessage()
    order = [clip for _, clip in itertools.islice(clip_order(0, 0, CLIPS), 24)]
    k = order.index(3)
    expected = dataset.draw(4, (0, 1, k))  # the next clip, drawn with the same seed
    assert torch.equal(got[k // 3]['frames'][k % 3], expected['frames'])


def test_too_many_bad_clips_stop(clip_files, tmp_path):
    dataset = opened(write_zip(tmp_path / 'x.zip', corrupted(clip_files, '000003', '000001')))
    with pytest.raises(DataError, match=r'2 of 6 clips cannot be read \(00000[13], 00000[13]\)'):
        take(dataset, 20, seed=0, start=0, batch=2)
    dataset = opened(write_zip(tmp_path / 'y.zip', corrupted(clip_files, '0')))
    with pytest.raises(DataError, match='clips cannot be read'):
        take(dataset, 1, seed=0, start=0, batch=1)  # at once


# ---- bad data


def test_flipped_bits_and_missing_frames_are_named(data, clip_files, tmp_path):
    raw = bytearray(Path(data).read_bytes())
    place = bytes(raw).index(clip_files['000004/00002.png']) + 60
    raw[place] ^= 4
    (tmp_path / 'bits.zip').write_bytes(raw)
    with pytest.raises(DataError, match='000004/00002.png is corrupted'):
        opened(tmp_path / 'bits.zip').clip_frames(4, [2])
    files = {n: d for n, d in clip_files.items() if n != '000005/00001.png'}
    with pytest.raises(DataError, match='000005/00001.png is missing from the zip'):
        opened(write_zip(tmp_path / 'hole.zip', files)).clip_frames(5, [1])


def test_unusable_files(data, clip_files, tmp_path):
    raw, table = Path(data).read_bytes(), clip_files['dataset.json']
    (tmp_path / 'cut.zip').write_bytes(raw[: len(raw) // 2])
    (tmp_path / 'empty.zip').write_bytes(b'')
    for name, content in (('no.zip', {'x.txt': b'1'}), ('half.zip', {'dataset.json': table[:-9]})):
        write_zip(tmp_path / name, content)
    messages = {
        'cut.zip': 'not a zip, or a zip that was cut short',
        'empty.zip': 'is empty',
        'nowhere.zip': 'no such file or folder',
        '': 'holds no dataset.json',
        'no.zip': 'holds no dataset.json',
        'half.zip': 'not valid JSON',
    }
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            opened(tmp_path / name)


BAD_TABLES = [
    ({'labels': None}, 'has no labels'),
    ({'labels': []}, 'has no labels'),
    ({'labels': {'a': 1}}, 'has no labels'),
    ({'labels': ['a']}, r'not a list of \[file name'),
    ({'format': 'other'}, 'not of the format'),
    ({'version': 2}, 'version 2 of the format'),
    ({'resolution': '32'}, "resolution='32'"),
    ({'resolution': 64}, 'is 32x32 but dataset.json states 64x64'),
]


@pytest.mark.parametrize(('entries', 'message'), BAD_TABLES)
def test_bad_tables(entries, message, clip_files, tmp_path):
    with pytest.raises(DataError, match=message):
        opened(changed(clip_files, tmp_path / 'x.zip', **entries))


BAD_LABELS = [
    ([0.0] * 24, 'has 24 numbers instead of 25'),
    ([0.0] * 24 + [float('nan')], 'is not finite'),
    ([0.0] * 24 + [float('inf')], 'is not finite'),
    ([0.0] * 24 + ['a'], 'is not finite'),
    ([0.0] * 24 + [None], 'is not finite'),
    (None, 'is missing'),
]


@pytest.mark.parametrize(('label', 'message'), BAD_LABELS)
def test_bad_labels_are_named(label, message, clip_files, tmp_path):
    labels = json.loads(clip_files['dataset.json'])['labels']
    labels[FRAMES + 2][1] = label
    path = changed(clip_files, tmp_path / 'x.zip', labels=labels)
    with pytest.raises(DataError, match=f'000001: the label of 00002.png {message}'):
        opened(path)


def test_clips_without_two_frames(clip_files, tmp_path):
    labels = json.loads(clip_files['dataset.json'])['labels']
    with pytest.raises(DataError, match='000000: has one frame'):
        opened(changed(clip_files, tmp_path / 'a.zip', labels=labels[FRAMES - 1 :]))
    with pytest.raises(DataError, match='a.png is in no folder'):
        opened(changed(clip_files, tmp_path / 'b.zip', labels=[['a.png', labels[0][1]], *labels]))
    with pytest.raises(DataError, match='names a frame twice'):
        opened(changed(clip_files, tmp_path / 'c.zip', labels=[labels[0], *labels]))


def test_another_resolution_points_to_the_tool(data):
    with pytest.raises(DataError, match='make the set again with --resolution 128'):
        opened(data, resolution=128)
    assert opened(data, resolution=SIZE).resolution == SIZE


def test_config_is_checked():
    with pytest.raises(UserError, match='span=1 must be at least 2'):
        VideoDataset.Config(path='x', span=1)
    with pytest.raises(UserError, match='max_clips=0'):
        VideoDataset.Config(path='x', max_clips=0)


@pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='signals do not name their sender here')
def test_workers_obey_only_their_trainer(data):
    """Ctrl-C reaches a process group, schedulers send SIGTERM to all: the trainer finishes its step first."""
    loader = batches(opened(data), seed=0, start=0, batch=2, num_workers=1)
    next(loader)
    (worker,) = torch.multiprocessing.active_children()
    assert os.getpgid(worker.pid) != os.getpgid(0)
    subprocess.run(['kill', '-TERM', str(worker.pid)], check=True)
    for _ in range(20):  # more than were fetched beforehand
        next(loader)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_killed_worker_is_one_sentence(small, tmp_path):
    @killed_workers_explained()
    def work(message):
        raise RuntimeError(message)

    killed = 'DataLoader worker (pid(s) 545) exited unexpectedly'
    for message in (killed, 'DataLoader worker (pid 545) is killed by signal: Killed. '):
        with pytest.raises(UserError, match='the same command continues'):
            work(message)
    with pytest.raises(RuntimeError, match='size mismatch'):
        work('size mismatch')
    trainer = new_trainer(small, tmp_path, should_stop=mock.Mock(side_effect=RuntimeError(killed)))
    with pytest.raises(UserError, match='the same command continues'):  # in the midst of anything
        trainer.train()
