"""The stage `pack`: the data set of a work folder and where its clips are from."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from dnnlib.util import UserError, file_sha256
from preprocessing.from_videos.work_folder import WorkFolder, clip_names
from support.work_folders import EVIL, SIZE, add_verdict, add_video, make, pack, write_json
from training.data.dataset import VideoDataset


@pytest.fixture
def work(tmp_path):
    """A work folder with three clips that are kept."""
    return tmp_path, make(tmp_path / 'w')


def test_pack_writes_a_data_set_with_its_origin(work):
    folder, clips = work
    result = pack(folder)
    assert result['clips'] == {f'{i:06d}': clip for i, clip in enumerate(sorted(clips))}
    assert result['rejected'] == {} and result['problems'] == {} and result['frames'] == 48
    assert result['sha256'] == file_sha256(folder / 'd.zip')
    dataset = VideoDataset(VideoDataset.Config(path=str(folder / 'd.zip')))
    assert len(dataset) == 3 and dataset.resolution == SIZE
    with zipfile.ZipFile(folder / 'd.zip') as archive:
        content = json.loads(archive.read('dataset.json'))
    assert content['fps'] == 20.0
    assert content['clips']['000000'] == {
        **{'source': f'{EVIL}.mp4', 'sha256': 'ab' * 32, 'video': EVIL},
        **{'first': 0, 'start_sec': 0.0, 'end_sec': 0.8, 'fps': 20.0, 'upscale': 1.5},
        'crop': {'first': [[1.5, 0, 0], [0, 1.5, 0]], 'mean': [[1.5, 0, 7.5], [0, 1.5, 0]]},
        **{'landmarks_score': 0.75, 'camera_residual': 2.25, 'similarity': {'min': 0.7, 'mean': 0.8}},
        **{'identity': 1, 'speaker': 'id<1>'},
    }
    assert 'speaker' not in content['clips']['000001']
    first = next(iter(pack(folder)['clips'].values()))
    assert first not in pack(folder, without=[first])['clips'].values()  # rejected after `identities`


def test_crops_of_the_right_size_are_copied(work):
    folder, clips = work
    files = sorted((folder / 'w' / 'align' / sorted(clips)[1]).iterdir())
    Image.effect_noise((SIZE, SIZE), 50).convert('RGB').save(files[2], compress_level=0)
    grey = Image.effect_noise((SIZE, SIZE), 50)  # which a data set must not hold
    grey.save(files[3], compress_level=0)
    assert pack(folder)['problems'] == {}
    with zipfile.ZipFile(folder / 'd.zip') as archive:
        packed = [archive.read(f'000001/{i:05d}.png') for i in range(16)]
    copied = [data == file.read_bytes() for data, file in zip(packed, files, strict=True)]
    assert copied == [i != 3 for i in range(16)]
    ours = Image.open(io.BytesIO(packed[3]))
    assert ours.mode == 'RGB'
    np.testing.assert_array_equal(ours, grey.convert('RGB'))
    assert pack(folder, 'small.zip', size=16)['problems'] == {}  # these are not copied


@pytest.mark.parametrize('corrupt', [lambda d: d[:-20], lambda d: d[:45] + b'??' + d[47:], lambda d: b'none'])
def test_corrupted_crops_are_not_copied(work, corrupt):
    folder, clips = work
    crop = folder / 'w' / 'align' / clips[0] / '00003.png'
    crop.write_bytes(corrupt(crop.read_bytes()))
    result = pack(folder)
    assert list(result['rejected']) == [clips[0]]
    assert result['rejected'][clips[0]].startswith('00003.png cannot be decoded')


def test_short_and_corrupted_clips_are_left_out_with_a_reason(work):
    folder, clips = work
    root = folder / 'w'
    short = add_video(root, 'short', frames=15)
    add_verdict(root, short, [0.9, 0.9])
    identities = json.loads((root / 'identities.json').read_text())
    identities['clusters'][short] = 5
    identities['kept'].append(short)
    write_json(root / 'identities.json', identities)
    (root / 'align' / clips[0] / '00003.png').unlink()
    result = pack(folder)
    assert set(result['rejected']) == {short, clips[0]}
    assert '15 frames' in result['rejected'][short]
    assert result['rejected'][clips[0]] == '15 frames but 16 labels'
    assert list(result['clips'].values()) == sorted(clips[1:])
    assert short in pack(folder, min_frames=15)['clips'].values()


def test_what_the_check_finds_is_reported(work):
    folder, clips = work
    path = folder / 'w' / 'cameras' / f'{clips[0]}.json'
    cameras = json.loads(path.read_text())
    cameras['labels'][2][11] = 90.0  # far from the head
    write_json(path, cameras)
    result = pack(folder)
    (number,) = (k for k, clip in result['clips'].items() if clip == clips[0])
    assert list(result['problems']) == [number]
    assert 'radius' in result['problems'][number][0]


def test_nothing_left(tmp_path):
    with pytest.raises(UserError, match=r'no clip is left.*report\.html'):
        pack(tmp_path)
    assert not (tmp_path / 'd.zip').exists()


def test_names_of_clips_of_several_faces():
    tracks = [{'first': 0}, {'first': 0}, {'first': 30}]
    assert clip_names('v', tracks) == ['v-000000-0', 'v-000000-1', 'v-000030']


@pytest.mark.parametrize('data', [b'', b'PK\x03\x04 cut off', b'nothing'])
def test_corrupted_files_are_named(work, data):
    folder, clips = work
    reader = WorkFolder(folder / 'w')
    np.testing.assert_array_equal(reader.frames(clips[0], [2])[0, 0, 0], [20, 90, 120])
    path = folder / 'w' / 'align' / f'{clips[0]}.npz'
    path.write_bytes(data)
    with pytest.raises(UserError, match=f'{clips[0]}.npz'):
        reader.landmarks(clips[0])
    path.with_suffix('.json').write_bytes(data)
    with pytest.raises(UserError, match='not valid JSON'):
        reader.read(f'align/{clips[0]}')
