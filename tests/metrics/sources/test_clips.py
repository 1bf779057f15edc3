"""Sources of clips: identities that tell frames apart, seeded choices, failures with a reason, the codec."""

import dataclasses
import errno
import json
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch

from dnnlib.util import DataError, Skip, UserError
from metrics.records.digests import dataset_digest, json_digest, network_digest
from metrics.sources import clips, controls, shooting
from metrics.sources.items import checked, nth_clip, window_start
from support import tiny
from support.small_data import CLIPS, FRAMES, SIZE, write_zip
from torch_utils.checkpoint import build_network, read_snapshot, save_snapshot
from training.data.dataset import VideoDataset
from training.networks.registry import NETWORKS

T = 4


@pytest.fixture(scope='module')
def G():
    return tiny.generator().eval().requires_grad_(False)


@pytest.fixture(scope='module')
def dataset(data):
    return VideoDataset(VideoDataset.Config(path=data))


@pytest.fixture(scope='module')
def cameras(dataset):
    return [dataset.clip_cameras(i) for i in range(len(dataset))]


def generated(G, cameras, count=3, **options):
    return clips.GeneratedClips(G, cameras, T, 0, count, **options)


def same(a, b):
    return a.shape == b.shape and bool((a == b).all())


def digest(source):
    json.dumps(source.identity, allow_nan=False)
    return json_digest(source.identity)


# ------------------------------------------------------------------------------------------ data set


def place_of(dataset, clip):
    """Returns (clip, offset) of a window of the data set."""
    for k in range(len(dataset)):
        frames = dataset.clip_frames(k, range(FRAMES)).permute(0, 2, 3, 1).numpy()
        for start in range(FRAMES - T + 1):
            if same(frames[start : start + T], clip):
                return k, start
    return None


def test_dataset_windows(dataset):
    source = clips.DatasetClips(dataset, T, 3, 3 * CLIPS)
    assert len(source) == 3 * CLIPS and source.identity['distinct_clips'] == CLIPS and source.size == SIZE
    places = [place_of(dataset, source.item(i)) for i in range(len(source))]
    assert [source.group(i) for i in range(len(source))] == [k for k, _ in places]
    assert [source.name(i) for i in range(3)] == [dataset.names[k] for k, _ in places[:3]]
    for start in range(0, 3 * CLIPS, CLIPS):  # each round takes each clip once
        assert {k for k, _ in places[start : start + CLIPS]} == set(range(CLIPS))
    assert len(set(places)) == len(places)  # other windows in each round
    assert len({start for _, start in places}) > 5
    few = clips.DatasetClips(dataset, T, 3, 4)
    assert [place_of(dataset, few.item(i)) for i in range(4)] == places[:4] and digest(few) == digest(source)
    other = clips.DatasetClips(dataset, T, 4)
    assert len(other) == CLIPS and digest(other) != digest(source)
    assert [place_of(dataset, other.item(i)) for i in range(4)] != places[:4]


def test_windows_are_repeated_only_when_there_are_no_others(dataset):
    source = clips.DatasetClips(dataset, FRAMES - 1, 0, 3 * CLIPS)
    index = [nth_clip(0, CLIPS, i)[0] for i in range(3 * CLIPS)]
    mine = [source.item(i) for i in range(3 * CLIPS) if index[i] == 0]
    assert not same(mine[0], mine[1]) and same(mine[0], mine[2])


def test_offsets_are_uniform():
    starts = [window_start(0, k, 0, 13, 4) for k in range(2000)]
    counts = np.bincount(starts, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi square, 9 degrees of freedom, p = 0.001


def test_dataset_failures_are_kept(clip_files, tmp_path, dataset):
    long = clips.DatasetClips(dataset, FRAMES + 1, 0)
    assert len(long) == CLIPS
    with pytest.raises(Skip, match=rf'^has {FRAMES} frames, fewer than {FRAMES + 1}'):
        long.item(0)
    corrupted = {n: b'\x89PNG no' if n.startswith('000002/') else d for n, d in clip_files.items()}
    bad = VideoDataset(VideoDataset.Config(path=write_zip(tmp_path / 'bad.zip', corrupted)))
    source = clips.DatasetClips(bad, T, 0)
    for i in range(CLIPS):
        if source.name(i) != '000002':
            assert source.item(i).shape == (T, SIZE, SIZE, 3)
            continue
        with pytest.raises(Skip, match='000002/.* cannot be decoded'):
            source.item(i)
    assert digest(source) != digest(clips.DatasetClips(dataset, T, 0))


def test_dataset_digest_is_of_content(clip_files, data, tmp_path):
    assert dataset_digest(write_zip(tmp_path / 'copy.zip', clip_files)) == dataset_digest(data)
    changed = {n: d + b' ' if n == '000001/00003.png' else d for n, d in clip_files.items()}
    assert dataset_digest(write_zip(tmp_path / 'other.zip', changed)) != dataset_digest(data)
    found = []
    for files, folder in ((clip_files, 'a'), (clip_files, 'b'), (changed, 'c')):
        for name, content in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
        found.append(dataset_digest(tmp_path / folder))
    assert found[0] == found[1] != found[2]


# ----------------------------------------------------------------------------------------- generator


def shots(source, i):
    """Returns the item, the cameras and the times with which it is rendered."""
    with patch.object(source, 'shoot', wraps=source.shoot) as shoot:
        clip = source.item(i)
    return clip, *shoot.call_args.args[1:]


def test_generated_clip_is_a_rollout(G, cameras):
    """Against the generator itself, with the inputs drawn by hand."""
    clip, c, times = shots(generated(G, cameras), 1)
    assert clip.shape == (T, 32, 32, 3) and clip.dtype == np.uint8
    assert times.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    starts = [labels[s : s + T] for labels in cameras for s in range(FRAMES - T + 1)]
    assert sum(torch.equal(c, labels) for labels in starts) == 1  # consecutive cameras of one real clip
    codes = shooting.item_codes(G, 0, 1)
    with torch.no_grad():
        ws = G.condition(codes, c[:1], times[:1]).expand(T, -1, -1)
        image = G.render(G.scene(codes, ws, times), ws, c).image
    expected = ((image.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(expected - clip).max() <= 1 and np.abs(expected - clip).mean() < 0.01


def test_items_are_what_they_are(G, cameras):
    source, again = generated(G, cameras, count=9), generated(G, cameras)
    first = [source.item(i) for i in range(3)]
    assert digest(source) == digest(again) and same(again.item(2), first[2]) and same(again.item(0), first[0])
    assert not same(first[0], first[1])
    chosen = torch.stack([shots(source, i)[1][0] for i in range(9)])
    assert len(chosen.unique(dim=0)) > 5
    shorter, other = clips.GeneratedClips(G, cameras, 3, 0, 3), clips.GeneratedClips(G, cameras, T, 1, 3)
    moved = generated(G, [labels + 0.01 for labels in cameras])
    sources = [source, shorter, other, moved, generated(G, cameras, protocol='released')]
    assert len({digest(s) for s in sources}) == 5
    assert not same(other.item(0), first[0])


def test_released_truncates_and_samples_at_bin_ends(G, cameras):
    image = torch.tensor([-1.2, -1, 0.999, 0.5, 1.3]).view(1, 1, 1, 5).expand(1, 3, 5, 5)
    assert shooting.to_images(image, 'paper')[0, 0, :, 0].tolist() == [0, 0, 255, 191, 255]
    assert shooting.to_images(image, 'released')[0, 0, :, 0].tolist() == [0, 0, 254, 191, 255]
    released = generated(G, cameras, protocol='released')
    assert released.options.renderer.fixed_offset == 0 and released.identity['renderer']['fixed_offset'] == 0


@pytest.mark.parametrize(('condition', 'count'), [('mapt', 1), ('non', T)])
def test_mapping_sees_the_first_camera_or_each(cameras, condition, count):
    net, seen = tiny.generator(camera_condition=condition).eval(), []
    net.mapping_network.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    labels = shots(generated(net, cameras), 0)[1]
    assert torch.equal(seen[0], labels[:count]) and len(seen) == 1


def test_camera_or_head_stands_still(G, cameras):
    """Every frame is what the network shows of the same codes at that time and from that camera."""
    sources = [generated(G, cameras, still=still) for still in ('', 'camera', 'head')]
    (moving, labels, times), held, frozen = (shots(source, 1) for source in sources)
    assert len(labels.unique(dim=0)) == T
    assert torch.equal(held[1], labels[:1].expand(T, -1)) and torch.equal(held[2], times)
    assert torch.equal(frozen[1], labels) and frozen[2].tolist() == [0] * T
    assert same(held[0][0], moving[0]) and same(frozen[0][0], moving[0])
    assert len({digest(s) for s in sources}) == 3


def test_motions_of_one_person(G, cameras):
    """Items in a row share the appearance and one still camera; the first is as among other videos."""
    source = generated(G, cameras, still='person')
    codes, labels = [source.codes(i) for i in range(5)], [shots(source, i)[1] for i in range(5)]
    assert [source.person(i) for i in range(5)] == [0, 0, 0, 0, 4]
    assert all(
        torch.equal(c.z_a, codes[0].z_a) and torch.equal(v, labels[0])
        for c, v in zip(codes[:4], labels[:4], strict=True)
    )
    assert len(torch.cat([c.z_m for c in codes]).unique(dim=0)) == 5
    assert not torch.equal(codes[4].z_a, codes[0].z_a)
    held = generated(G, cameras, still='camera')
    assert same(source.item(4), held.item(4)) and not same(source.item(1), held.item(1))
    assert [held.person(i) for i in range(3)] == [0, 1, 2]


def test_some_clips_of_a_data_set_are_told_from_others(data):
    """Four of six, once the first and once those not held out: records are not shared."""
    config = VideoDataset.Config(path=data)
    few = {'max_clips': 4}, {'heldout_clips': 2}
    one, other = (clips.DatasetClips(dataclasses.replace(config, **x).build(), 4, seed=0) for x in few)
    assert len(one) == len(other) and one.dataset.names != other.dataset.names
    assert one.identity != other.identity


def test_people_of_a_data_set(dataset):
    source = clips.DatasetClips(dataset, T, 0)
    clip = source.group(0)
    assert source.person(0) == clip  # nobody knows: each clip has its own
    dataset.people = ['identity 7'] * len(dataset)
    assert {source.person(i) for i in range(len(source))} == {0}


def test_failures(cameras):
    net = tiny.generator().eval().requires_grad_(False)
    source, bias = generated(net, cameras), net.superresolution.block1.torgb.bias
    for value, reason in ((torch.nan, 'image not finite'), (-200, r'frame 0 is black \(4 of 4 are\)')):
        bias.fill_(value)
        with pytest.raises(Skip, match=f'^{reason}'):
            source.item(2)
    assert source.name(2) == 'seed 0, item 2'
    with pytest.raises(UserError, match='99 frames'):
        clips.GeneratedClips(net, cameras, 99, 0, 1)
    clip = np.full((3, 8, 8, 3), 3, np.uint8)
    clip[:2, 4, 4, 1] = 4
    with pytest.raises(Skip, match=r'^frame 2 is black \(1 of 3 are\)'):
        checked(clip)
    assert checked(clip[:2]) is not None


@pytest.mark.parametrize('cause', [OSError(errno.EMFILE, 'Too many open files'), MemoryError()])
def test_failures_of_the_machine_do_not_skip_a_clip(dataset, monkeypatch, cause):
    error = DataError('000001/00001.png cannot be read')
    error.__cause__ = cause
    monkeypatch.setattr(VideoDataset, 'clip_frames', Mock(side_effect=error))
    with pytest.raises(DataError, match='cannot be read'):
        clips.DatasetClips(dataset, T, 0).item(0)


def test_network_digest(G, tmp_path):
    save_snapshot(tmp_path / 'a.pkl', {'G_ema': G}, {})
    loaded = build_network(read_snapshot(tmp_path / 'a.pkl'), 'G_ema', NETWORKS['G_ema'])
    assert network_digest(loaded) == network_digest(G) == network_digest(tiny.generator().train())
    with torch.no_grad():
        next(loaded.mapping_network.parameters()).flatten()[3] += 1e-6
    renderer = dataclasses.replace(tiny.G_CONFIG.renderer, ray_end=3.4)
    others = [loaded, tiny.generator(renderer=renderer), tiny.build(tiny.G_CONFIG, 1)]
    assert len({network_digest(net) for net in [G, *others]}) == 4


# ------------------------------------------------------------------------------- folders and the codec


@pytest.fixture(scope='module')
def saved(G, cameras, tmp_path_factory):
    """Generated clips and a folder of their videos."""
    source, folder, ticks = generated(G, cameras), tmp_path_factory.mktemp('saved') / 'new', []
    assert save(source, folder, ticks=ticks) == {} and ticks == [1, 1, 1]
    return source, folder


def save(source, folder, crf=15, fps=25, ticks=None):
    return clips.save_clips(source, folder, crf, fps, ([] if ticks is None else ticks).append)


def test_round_trip_is_that_of_saved_videos(saved, tmp_path):
    """Metrics of a network and of its saved videos see the same bits; nothing is encoded twice."""
    source, folder = saved
    assert {p.name for p in folder.iterdir()} == {*(f'0000{i}.mp4' for i in range(3)), 'clips.json'}
    encoded, read = clips.encoded(source, 15, 25), clips.FolderClips(folder, T)
    assert len(encoded) == len(read) == 3 and read.size == encoded.size == 32
    for i in range(3):
        assert same(encoded.item(i), read.item(i)) and not same(encoded.item(i), source.item(i))
        assert np.abs(encoded.item(i).astype(int) - source.item(i)).mean() < 4
        (tmp_path / f'0000{i}.mp4').write_bytes((folder / f'0000{i}.mp4').read_bytes())
    others = [clips.encoded(source, 30, 25), clips.encoded(source, 15, 30), source, read]
    assert len({digest(s) for s in [encoded, *others]}) == 5
    twice = clips.encoded(read, 40, 25)
    assert digest(twice) == digest(read) and same(twice.item(1), read.item(1))
    assert digest(clips.FolderClips(tmp_path, T)) == digest(read)  # which follows the content
    (tmp_path / '00001.mp4').write_bytes((tmp_path / '00000.mp4').read_bytes())
    assert digest(clips.FolderClips(tmp_path, T)) != digest(read)


def test_saving_resumes_and_keeps_apart(saved, G, cameras):
    source, folder = saved
    time = (folder / '00001.mp4').stat().st_mtime_ns
    data = (folder / '00002.mp4').read_bytes()
    (folder / '00002.mp4').unlink()
    save(source, folder)
    assert (folder / '00002.mp4').read_bytes() == data and (folder / '00001.mp4').stat().st_mtime_ns == time
    for crf, fps, other in ((16, 25, source), (15, 30, source), (15, 25, generated(G, cameras[1:]))):
        with pytest.raises(UserError, match='clips.json'):
            save(other, folder, crf, fps)


class Given:
    """Clips from a list, strings are failures."""

    identity, size = {'source': 'given'}, 32

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def name(self, i):
        return f'item {i}'

    def group(self, i):
        return i // 2

    def item(self, i):
        if isinstance(self.items[i], str):
            raise Skip(self.items[i])
        return self.items[i]


def test_saving_counts_failures(tmp_path):
    clip = np.full((3, 32, 32, 3), 90, np.uint8)
    source = Given([clip, 'bad', clip])
    assert save(source, tmp_path) == {1: 'bad'}
    assert not (tmp_path / '00001.mp4').exists() and (tmp_path / '00002.mp4').exists()
    with pytest.raises(Skip, match='bad'):
        clips.encoded(source, 15, 25).item(1)


def test_controls():
    clip = np.random.default_rng(0).integers(9, 255, (5, 4, 4, 3), np.uint8)
    source = Given([clip, 'no', clip, clip])
    static, shuffled = (controls.control(source, name, 0) for name in ('static', 'shuffled'))
    assert len(static) == len(shuffled) == 4
    assert same(static.item(0), clip[[0] * 5])
    orders = [[int((frame == clip).all((1, 2, 3)).argmax()) for frame in shuffled.item(i)] for i in (0, 2, 3)]
    assert all(sorted(o) == list(range(5)) != o for o in orders) and len(set(map(tuple, orders))) > 1
    assert same(shuffled.item(2), controls.control(source, 'shuffled', 0).item(2))
    two = controls.control(Given([clip[:2]] * 20), 'shuffled', 0)
    assert all(same(two.item(i), clip[[1, 0]]) for i in range(20))
    for changed in (static, shuffled, clips.encoded(source, 15, 25)):
        assert changed.name(3) == 'item 3' and changed.group(3) == 1
        with pytest.raises(Skip, match='no'):
            changed.item(1)
    other = controls.control(source, 'shuffled', 1)
    assert len({digest(s) for s in (source, static, shuffled, other)}) == 4
