"""Sources: folders of videos in natural order, corrupted files, public lists, clips cut out of videos."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dnnlib.util import DataError, Skip, UserError
from dnnlib.video import key_frame_after, run_ffmpeg, video_frames
from dnnlib.video import write_video as write_front
from preprocessing.from_videos import sources
from preprocessing.from_videos.lists import Listed, read_list
from preprocessing.from_videos.sources import clip_frames, cut_listed, examine, find_videos
from support.videos import ramps, write_video


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """Three seconds at 10 frames per second; pixels depend on position and time."""
    path = tmp_path_factory.mktemp('video') / 'abcdefghijk.mp4'
    write_video(path, ramps(30, size=128))
    return path


def test_folder(tmp_path, video):
    videos = ['a/b/x.MOV', 'a__b/x.mkv', 'a__b__x.avi', 'clip2.mp4', 'clip10.mp4']
    other_work = ['w/.lock', 'w/sources.json', 'w/cuts/y.mp4']  # of another data set
    for name in [*reversed(videos), 'notes.txt', 'a/.hid.mp4', '.h/y.mp4', 'frames', *other_work]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, passed = find_videos(str(tmp_path))
    assert list(found) == ['a__b__x', 'a__b__x~2', 'a__b__x~3', 'clip2', 'clip10']
    assert [path.relative_to(tmp_path).as_posix() for path in found.values()] == videos
    assert list(passed) == ['frames', 'notes.txt'] and 'suffix .txt' in passed['notes.txt']
    with pytest.raises(FileNotFoundError):
        find_videos(str(tmp_path / 'none'))


def write_half(path):
    """Writes half of a video with its table of frames at the front: these frames can be decoded."""
    write_front(path, np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_corrupted_files_are_reported(tmp_path, video):
    path, data = tmp_path / 'x.mp4', video.read_bytes()
    for content in (b'hello' * 99, b'\x89PNG\r\n\x1a\n' + bytes(99), data[: len(data) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match='cannot be decoded; it is corrupted'):
            examine(path)
    write_half(path)
    with pytest.raises(DataError, match=r'cut short: \d+ of about 30 frames'):
        examine(path)


VOX = """Identity  : \tid00017
Reference : \t_mjZ87sK6cA
Offset    : \t2
FV Conf   : \t16.140\t(1)
ASD Conf  : \t5.142

FRAME \tX \tY \tW \tH
000100 \t0.25 \t0.25 \t0.25 \t0.5
000101 \t0.30 \t0.20 \t0.25 \t0.5
000124 \t0.25 \t0.25 \t0.25 \t0.5
"""


def test_voxceleb(tmp_path):
    for name, text in [('id00017/_mjZ87sK6cA/00002.txt', VOX), ('id1/b/1.txt', VOX.replace('0.2', '120.2'))]:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    pixels, clip = read_list('voxceleb', str(tmp_path))
    assert clip.name == 'id00017___mjZ87sK6cA__00002' and clip.video == '_mjZ87sK6cA'
    assert (clip.start_sec, clip.end_sec, clip.speaker) == (4.0, 5.0, 'id00017')
    np.testing.assert_allclose(clip.box, (0.25, 0.2, 0.55, 0.75))
    assert pixels.box is None and pixels.start_sec == 4.0
    with pytest.raises(UserError, match='cannot read the list: .*not a folder'):
        read_list('voxceleb', str(tmp_path / 'id1/b/1.txt'))
    (tmp_path / 'z.txt').write_text('what is this')
    with pytest.raises(UserError, match=r'z.txt is not a file of VoxCeleb2'):
        read_list('voxceleb', str(tmp_path))


def celebv(**change):
    clip = {'ytb_id': 'M2Ohb0FAaJU', 'duration': {'start_sec': 81.62, 'end_sec': 86.17}, 'attributes': {}}
    clip['bbox'] = {'top': 0.0, 'bottom': 0.8815, 'left': 0.1964, 'right': 0.6922}
    return {'meta_info': {}, 'clips': {'M2Ohb0FAaJU_1': {**clip, **change}}}


def test_celebvhq(tmp_path):
    path = tmp_path / 'celebvhq_info.json'
    path.write_text(json.dumps(celebv()))
    assert read_list('celebvhq', str(path)) == [
        Listed('M2Ohb0FAaJU_1', 'M2Ohb0FAaJU', 81.62, 86.17, box=(0.1964, 0.0, 0.6922, 0.8815))
    ]
    kinds = dict.fromkeys(
        ['{', '[]', '{"clips": [1]}', json.dumps(celebv(bbox=None))], 'not a CelebV-HQ list'
    )
    kinds[json.dumps(celebv(ytb_id='../../etc/passwd'))] = 'is not the id of a YouTube video'
    kinds['{"clips": {}}'] = 'holds no clips of a celebvhq list'
    for text, message in kinds.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_list('celebvhq', str(path))
    with pytest.raises(UserError, match='cannot read the list.*no such file'):
        read_list('celebvhq', str(tmp_path / 'none.json'))


def test_talkinghead(tmp_path):
    path = tmp_path / 'train_video_tubes.txt'
    path.write_text('--Y9imYnfBw_0002, 720, 1280, 15, 263, 320, 72, 640, 360\n\n')
    (clip,) = read_list('talkinghead', str(path))
    assert clip.name == '--Y9imYnfBw_0002_S15_E263_L320_T72_R640_B360' and clip.video == '--Y9imYnfBw'
    assert clip.start_sec == 120.0 and clip.frames == (15, 263) and clip.end_sec is None
    assert clip.box == (0.25, 0.1, 0.5, 0.5)
    path.write_text('--Y9imYnfBw\nabcdefghijk\n')
    assert read_list('talkinghead', str(path)) == [Listed(v, v) for v in ('--Y9imYnfBw', 'abcdefghijk')]
    for second, message in (('abcdefghijk', 'abcdefghijk appears twice'), ('a, b, c', 'line 2 of')):
        path.write_text(f'abcdefghijk\n{second}\n')
        with pytest.raises(UserError, match=message):
            read_list('talkinghead', str(path))


def frames_of(path):
    return np.stack([frame for frame, _ in video_frames(path)]).astype(float)


def test_cut_out(tmp_path, video):
    """The right frames and pixels, nearly lossless; a second time the same bytes."""
    clip = Listed('c', 'abcdefghijk', 1.0, 2.0, box=(0.5, 0.25, 0.75, 0.5))
    box = cut_listed(video, clip, tmp_path / 'a.mp4')
    cut, whole = frames_of(tmp_path / 'a.mp4'), frames_of(video)
    assert cut.shape == (10, 64, 64, 3)  # 32 pixels of the box and 16 on each side
    assert box == (16, 16, 48, 48)
    assert np.abs(cut - whole[10:20, 16:80, 48:112]).mean() < 1.5
    errors = [np.abs(cut[0] - frame[16:80, 48:112])[..., 2].mean() for frame in whole]
    assert np.argmin(errors) == 10
    cut_listed(video, clip, tmp_path / 'b.mp4')
    assert (tmp_path / 'a.mp4').read_bytes() == (tmp_path / 'b.mp4').read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.mp4', 'b.mp4']


def test_cut_by_frames(tmp_path, video):
    clip = Listed('c', 'abcdefghijk', 0.0, frames=(5, 12))
    assert cut_listed(video, clip, tmp_path / 'a.mp4') is None
    cut, whole = frames_of(tmp_path / 'a.mp4'), frames_of(video)
    assert len(cut) == 7 and np.abs(cut - whole[5:12]).mean() < 1.5


def test_pieces_begin_with_key_frames(tmp_path):
    """A piece of TalkingHead-1KH begins with the first key frame of its minute."""
    source = ['-nostdin', '-f', 'lavfi', '-i', 'testsrc=size=64x64:rate=10:duration=10']
    done = run_ffmpeg([*source, '-c:v', 'libx264', '-g', '30', '-sc_threshold', '0', str(tmp_path / 'a.mp4')])
    assert done.returncode == 0
    times = [key_frame_after(tmp_path / 'a.mp4', sec) for sec in (0, 0.1, 2.9, 3.0, 3.1, 9.5)]
    assert times == [0, 3, 3, 3, 6, 9.5]


@pytest.mark.parametrize(
    'change', [{'start_sec': 5.0}, {'start_sec': 2.0, 'end_sec': 1.0}, {'box': (0.9, 0.9, 0.9, 0.95)}]
)
def test_ranges_outside_are_rejected(tmp_path, video, change):
    with pytest.raises(Skip, match='is not in the'):
        cut_listed(video, Listed('c', 'abcdefghijk', **change), tmp_path / 'a.mp4')
    assert not list(tmp_path.iterdir())


CONTAINERS = [
    ('a.mp4', ['-r', '25', '-c:v', 'libx264', '-bf', '3', '-g', '40']),
    ('b.mkv', ['-r', '30000/1001', '-c:v', 'libx264', '-bf', '2', '-g', '250', '-c:a', 'libvorbis']),
    ('c.webm', ['-r', '30', '-c:v', 'libvpx', '-g', '100', '-c:a', 'libvorbis']),
    ('d.mp4', ['-r', '25', '-c:v', 'libx264', '-output_ts_offset', '1.7']),
    ('e.avi', ['-r', '12', '-c:v', 'mpeg4', '-g', '30']),
]


@pytest.mark.parametrize('name, encode', CONTAINERS, ids=[name for name, _ in CONTAINERS])
def test_frames_of_a_clip(tmp_path, name, encode):
    """A clip in the middle of a video is found without decoding from the start: exactly its frames."""
    make = ['-nostdin', '-f', 'lavfi', '-i', 'testsrc=size=64x48:rate=60:duration=7']
    sound = ['-f', 'lavfi', '-i', 'sine=duration=8']
    assert run_ffmpeg([*make, *sound, *encode, str(tmp_path / name)]).returncode == 0
    facts = examine(tmp_path / name)
    whole = np.stack([frame for frame, _ in video_frames(tmp_path / name)])
    assert (facts['pace'] is None) == name.endswith('.avi') and facts['frames'] == len(whole)
    entry = {**facts, 'path': str(tmp_path / name)}
    for first in (0, 51, 60, 75, len(whole) - 3):
        clip = np.stack(list(clip_frames(entry, first, 9)))
        assert (clip == whole[first : first + 9]).all(), first


@pytest.mark.parametrize('suffix', ['mp4', 'mkv'])
def test_clips_of_uneven_frames(tmp_path, suffix):
    """Also where frames are missing, as phones record: exactly the frames of the clip."""
    path = tmp_path / f'a.{suffix}'
    make = ['-nostdin', '-f', 'lavfi', '-i', 'testsrc=size=64x48:rate=25:duration=8']
    drop = ['-vf', "select='lt(random(0),0.7)'", '-fps_mode', 'vfr', '-c:v', 'libx264', '-g', '30', str(path)]
    assert run_ffmpeg([*make, *drop]).returncode == 0
    entry = {**examine(path), 'path': str(path)}
    whole = np.stack([frame for frame, _ in video_frames(path)])
    assert entry['pace'] is None and len(entry['times']) == len(whole)
    for first in range(51, len(whole) - 9, 7):
        assert (np.stack(list(clip_frames(entry, first, 9))) == whole[first : first + 9]).all(), first
    other = {**entry, 'times': entry['times'][1:]}  # so clips begin at these times
    assert (next(clip_frames(other, 60, 1)) == whole[61]).all()


def test_own_files_and_strange_names_do_not_count(tmp_path, video, monkeypatch):
    """A work folder and a zip inside --source; names that are not text; a name like an address of ffmpeg."""
    for name in ('w/cuts/x.mp4', 'w/align/c/00000.png', 'x.zip', 'a.mp4'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff.mp4')).touch()
    found, passed = find_videos(str(tmp_path), without=[str(tmp_path / 'w'), f'{tmp_path}/w/../x.zip'])
    assert list(found) == ['a'] and passed == {'\\udcff.mp4': 'the name is not in UTF-8; rename the file'}
    with pytest.raises(UserError, match='cannot be both --source and --workdir'):
        find_videos(str(tmp_path), without=[str(tmp_path)])
    shutil.copy(video, tmp_path / 'concat:b.mp4')
    monkeypatch.chdir(tmp_path)
    assert examine(Path('concat:b.mp4'))['frames'] == 30


def test_errors_of_the_machine_are_not_errors_of_the_video(video, monkeypatch):
    """Otherwise a video that was examined while memory was short would be left out for good."""
    monkeypatch.setattr('imageio_ffmpeg.get_ffmpeg_exe', lambda: '/nonexistent/ffmpeg')
    with pytest.raises(OSError, match='/nonexistent/ffmpeg'):
        examine(video)


def test_phone_videos_stand_upright(tmp_path, video, capfd):
    """Rotation in the metadata: sizes are those of the images, and nothing is printed about it."""
    run_ffmpeg(['-i', str(video), '-vf', 'crop=128:64', str(tmp_path / 'a.mp4')])
    turned = ['-display_rotation', '90', '-i', str(tmp_path / 'a.mp4'), '-c', 'copy', str(tmp_path / 'b.mp4')]
    assert run_ffmpeg(turned).returncode == 0
    facts = examine(tmp_path / 'b.mp4')
    assert (facts['width'], facts['height']) == frames_of(tmp_path / 'b.mp4').shape[2:0:-1] == (64, 128)
    assert capfd.readouterr() == ('', '')


def test_cutting_decodes_no_more_than_the_clip(tmp_path, video, monkeypatch):
    """Lists name many clips of one long video: none may cost the whole of it. A cut-off video is reported."""
    monkeypatch.setattr(sources, 'examine', lambda path: pytest.fail('decoded all'))
    cut_listed(video, Listed('c', 'abcdefghijk', 1.0, 2.0), tmp_path / 'a.mp4')
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']
    write_half(tmp_path / 'b.mp4')
    with pytest.raises(DataError, match='cut short'):
        cut_listed(tmp_path / 'b.mp4', Listed('c', 'abcdefghijk', 0.2, 1.2), tmp_path / 'c.mp4')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.mp4', 'b.mp4']
