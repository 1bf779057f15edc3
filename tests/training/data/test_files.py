"""Hostile files of data sets: what claims to be small and is large, or the other way round."""

import json
import os
import struct
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from dataset_tool import main
from dnnlib.util import DataError
from support.small_data import SIZE, write_zip
from training.data import files as dataset_files
from training.data.dataset import VideoDataset
from training.data.files import FileStore, read_index

MANY = 1_234_567  # bytes


def deflated(path, files):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def claim(path, old, new):
    """Changes a size that a zip states, before the file itself and in the directory."""
    with open(path, 'rb+') as file:
        data = file.read()
        assert data.count(struct.pack('<I', old)) == 2
        file.seek(0)
        file.write(data.replace(struct.pack('<I', old), struct.pack('<I', new)))


def test_large_images_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_files, '_MAX_IMAGE', 1 << 20)
    path = deflated(tmp_path / 'a.zip', {'a/0.png': bytes(MANY), 'a/1.png': bytes(1 << 20)})
    store = FileStore(path, [b'a/0.png', b'a/1.png'])
    with pytest.raises(DataError, match=r'a/0\.png is larger than 1 MiB; no image of a data set is'):
        store.read(0)
    assert store.read(1) == bytes(1 << 20)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / '0.png').touch()
    os.truncate(tmp_path / 'a' / '0.png', 1 << 40)  # takes no place on the disk
    with pytest.raises(DataError, match='larger than 1 MiB'):
        FileStore(str(tmp_path), [b'a/0.png']).read(0)


def test_an_image_that_claims_to_be_small_is_not_unpacked_further(tmp_path, monkeypatch):
    path = deflated(tmp_path / 'a.zip', {'a/0.png': bytes(MANY)})
    claim(path, MANY, 1000)
    lengths, checksum = [], zlib.crc32
    monkeypatch.setattr(zlib, 'crc32', lambda data: lengths.append(len(data)) or checksum(data))
    with pytest.raises(DataError, match='corrupted'):
        FileStore(path, [b'a/0.png']).read(0)
    assert lengths == [1001]


def test_a_table_that_unpacks_to_too_much_is_refused(clip_files, tmp_path, monkeypatch):
    path = deflated(tmp_path / 'a.zip', {'dataset.json': b' ' * MANY})
    with pytest.raises(DataError, match=r'dataset\.json is not unpacked .* at most 250 times') as err:
        read_index(path)
    assert '\n' not in str(err.value)
    claim(path, MANY, 1000)
    with pytest.raises(DataError, match='corrupted'):
        read_index(path)
    monkeypatch.setattr(dataset_files, '_MAX_TABLE', 1000)
    with pytest.raises(DataError, match='is not unpacked'):
        read_index(write_zip(tmp_path / 'b.zip', clip_files))


def test_equal_cameras_in_all_frames_are_no_bomb(clip_files, tmp_path):
    table = json.loads(clip_files['dataset.json'])
    label = table['labels'][0][1]
    table['labels'] = [[f'{i // 50:06d}/{i % 50:05d}.png', label] for i in range(10_000)]
    path = deflated(tmp_path / 'a.zip', {'dataset.json': json.dumps(table, indent=1).encode()})
    assert len(read_index(path).files) == 10_000


def test_an_image_of_another_size_is_not_decoded(clip_files, tmp_path):
    """There is a header only, which is all that is looked at."""
    chunk = b'IHDR' + struct.pack('>IIBBBBB', 8000, 8000, 8, 2, 0, 0, 0)
    head = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + struct.pack('>I', zlib.crc32(chunk))
    files = {**clip_files, '000001/00000.png': head + struct.pack('>I', 9) + b'IDAT'}
    dataset = VideoDataset.Config(path=write_zip(tmp_path / 'a.zip', files)).build()
    with pytest.raises(DataError, match=f'00000.png is 8000x8000 instead of {SIZE}x{SIZE}'):
        dataset.clip_frames(1, [0])


def test_names_that_are_not_text(clip_files, tmp_path):
    """In the table: a missing frame, in a clip whose name can be printed. In the zip: one sentence."""
    table = json.loads(clip_files['dataset.json'])
    for i, _ in enumerate(table['labels'][:18]):
        table['labels'][i][0] = f'00000\ud800/{i}.png'
    files = {**clip_files, 'dataset.json': json.dumps(table).encode()}
    path = write_zip(tmp_path / 'a.zip', files)
    dataset = VideoDataset.Config(path=path).build()
    with pytest.raises(DataError, match='is missing from the zip') as error:
        dataset.clip_frames('00000?', range(18))
    str(error.value).encode()
    name = b'000000/00003.png'
    data = bytearray(Path(write_zip(tmp_path / 'b.zip', clip_files)).read_bytes())
    for start, flags in ((data.index(name), -24), (data.rindex(name), -38)):
        data[start] = 0xFF
        data[start + flags + 1] |= 8  # the name is UTF-8, it states
    (tmp_path / 'b.zip').write_bytes(data)
    table = clip_files['dataset.json'].replace(b'pv3d-dataset', b'\xff\xfe')
    write_zip(tmp_path / 'c.zip', {**clip_files, 'dataset.json': table})
    for name, message in (('b.zip', 'not a zip'), ('c.zip', 'not valid JSON')):
        result = CliRunner().invoke(main, ['check', str(tmp_path / name)])
        assert result.exit_code == 1 and f'{name}' in result.output and message in result.output
        assert result.output.startswith('Error: ') and result.output.count('\n') == 1


def test_threads_share_a_store(clip_files, tmp_path, monkeypatch):
    """The first reads of several threads at once open the file more than once; nobody loses its handle."""
    path = write_zip(tmp_path / 'x.zip', clip_files)
    names = [name.encode() for name in clip_files]

    def slow_open(*args, **options):
        time.sleep(0.01)
        return open(*args, **options)

    monkeypatch.setattr(dataset_files, 'open', slow_open, raising=False)
    for _ in range(5):
        store = FileStore(path, names)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(store.read, range(len(names))))
        assert found == list(clip_files.values())
