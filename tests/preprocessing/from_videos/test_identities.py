"""Embeddings of clips, pseudo-identities, balance."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy

from dnnlib.util import UserError
from metrics.detectors.face_alignment import TEMPLATE, find_faces
from metrics.detectors.yunet import YuNet
from preprocessing.from_videos.identities import (
    FIVE_POINTS,
    THRESHOLD,
    balance,
    cluster,
    embed_faces,
    embeddings_stage,
    five_points,
    identities_stage,
    load_recognizer,
    mean_direction,
    people,
)
from preprocessing.from_videos.stages import Item
from preprocessing.from_videos.verify import judge
from preprocessing.from_videos.work_folder import WorkFolder
from support.real_faces import person, real_frames, sface_file, yunet_file
from support.work_folders import SIZE, add_video, mesh, write_json


class Colors(torch.nn.Module):
    """A network that returns the mean colour of a crop."""

    def forward(self, crops):
        assert crops.shape[1:] == (3, 112, 112)
        return crops.mean(dim=(2, 3))


def directions(groups, spread, seed=0, width=16):
    """Unit vectors about one centre per group: {name: vector}, {name: group}."""
    rng = np.random.default_rng(seed)
    vectors, group_of = {}, {}
    for g, count in enumerate(groups):
        centre = rng.normal(size=width)
        for i in range(count):
            v = centre / np.linalg.norm(centre) + spread * rng.normal(size=width) / width**0.5
            name = f'{i}-{g}'
            vectors[name], group_of[name] = v / np.linalg.norm(v), g
    return vectors, group_of


def partition(clusters):
    return {frozenset(c for c, n in clusters.items() if n == number) for number in clusters.values()}


def test_people_are_counted_in_words():
    assert [people(x) for x in ([], [4, 4], [0, 1, 0])] == ['0 people', '1 person', '2 people']


def test_five_points_are_means_at_pixel_centres():
    landmarks = np.random.default_rng(0).uniform(0, 100, [2, 468, 3])
    points = five_points(landmarks)
    assert points.shape == (2, 5, 2)
    np.testing.assert_allclose(points[1, 0], landmarks[1, [33, 133, 159, 145], :2].mean(axis=0) - 0.5)
    np.testing.assert_allclose(points[0, 3], landmarks[0, 61, :2] - 0.5)


def test_embedding_sees_the_face_that_the_landmarks_name():
    """Red where the face is, blue elsewhere: the crop is red, if pixels and points agree."""
    corner, size = 30, 112
    frames = np.zeros([5, 200, 200, 3], np.uint8)
    frames[..., 2] = 255
    frames[:, corner : corner + size, corner : corner + size] = (255, 0, 0)
    landmarks = np.zeros([5, 468, 3])
    for indices, point in zip(FIVE_POINTS, TEMPLATE, strict=True):  # its pixels: 0 = middle of the first
        landmarks[:, list(indices), :2] = np.array(point) + corner + 0.5
    vectors = embed_faces(frames[::2], five_points(landmarks[::2]), Colors())
    np.testing.assert_allclose(vectors, [[1, 0, 0]] * 3, atol=1e-4)
    shifted = embed_faces(frames, five_points(landmarks + 1), Colors())
    assert shifted[0, 2] > 0.01


def test_work_writes_unit_vectors_of_every_second_frame(tmp_path):
    clip = add_video(tmp_path, 'v', frames=7)
    item = Item(clip, WorkFolder(tmp_path), {'video': 'v', 'track': 0})
    options = SimpleNamespace(recognizer='sface', recognizer_file=str(sface_file()))
    files = [f'embeddings/{clip}.npz']
    expected = {'files': files, 'frames': [0, 2, 4, 6], 'network': 'sface', 'step': 2}
    assert embeddings_stage(item, options) == expected
    file = tmp_path / files[0]
    vectors = np.load(file)['embeddings']
    assert vectors.shape == (4, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    frames = np.zeros([7, SIZE, SIZE, 3], np.uint8)
    frames[...] = np.stack([[10 * i, 90, 120] for i in range(7)])[:, None, None]
    network = load_recognizer('sface', str(sface_file()))
    again = embed_faces(frames[::2], five_points(mesh(7)[::2]), network)
    np.testing.assert_allclose(vectors, again, atol=1e-6)
    (tmp_path / 'align' / clip / '00004.png').write_bytes(b'not an image')
    with pytest.raises(UserError, match='missing or corrupted'):
        embeddings_stage(item, options)


@pytest.mark.parametrize('spread', [0.3, 0.8, 1.2])
def test_clusters_are_those_of_average_linkage(spread):
    """Parts of the graph are clustered one by one; the whole at once gives the same."""
    vectors, _ = directions([5, 1, 7, 3, 2, 9], spread)
    names = sorted(vectors)
    tree = hierarchy.linkage(np.stack([vectors[n] for n in names]), 'average', 'cosine')
    whole = hierarchy.fcluster(tree, 1 - 0.5, 'distance')
    ours = cluster(vectors, 0.5)
    assert partition(ours) == partition(dict(zip(names, whole, strict=True)))
    assert 1 < len(partition(ours)) < len(names)


def test_clusters_of_separate_groups_and_their_numbers():
    vectors, group_of = directions([3, 1, 4], 0.2)
    found = cluster(vectors, THRESHOLD)
    assert partition(found) == partition(group_of)
    assert list(dict.fromkeys(found[c] for c in sorted(found))) == [0, 1, 2]
    assert cluster(dict(reversed(vectors.items())), THRESHOLD) == found
    assert cluster({}, 0.5) == {}
    assert cluster({'a': np.array([1.0, 0])}, 0.5) == {'a': 0}


def test_balance_keeps_the_two_of_highest_resolution():
    clusters = {'a': 0, 'b': 0, 'c': 0, 'd': 1, 'e': 0}
    kept, rejected = balance(clusters, {'a': 200, 'b': 900, 'c': 500, 'd': 10, 'e': 500})
    assert kept == ['b', 'c', 'd']
    assert list(rejected) == ['a', 'e']
    assert '200 pixels' in rejected['a'] and 'b (900 pixels), c (500 pixels)' in rejected['a']
    assert balance(clusters, dict.fromkeys('abcde', 1), limit=1)[0] == ['a', 'd']


def test_identify_keeps_labels_of_known_speakers(tmp_path):
    """All faces are alike: only labels distinguish the known speakers, the others are one person."""
    clips = [add_video(tmp_path, v, frames=2, upscale=u) for v, u in (('a', 1), ('b', 2), ('c', 4), ('d', 1))]
    (tmp_path / 'embeddings').mkdir()
    for clip in clips:
        np.savez(tmp_path / 'embeddings' / f'{clip}.npz', embeddings=np.eye(4)[[0, 0]])
    for video, speaker in (('a', 'Zoe'), ('b', None), ('c', None), ('d', 'Ada')):
        write_json(tmp_path / 'sources' / f'{video}.json', {'speaker': speaker})
    origins = {clip: {'video': clip[0], 'track': 0} for clip in clips}
    item = Item('identities', WorkFolder(tmp_path), {'clips': origins})
    result = identities_stage(item, SimpleNamespace(same_person=THRESHOLD, per_person=1))
    assert result['clusters'] == {clips[1]: 0, clips[2]: 0, clips[3]: 1, clips[0]: 2}
    assert result['speakers'] == {'1': 'Ada', '2': 'Zoe'}
    assert result['kept'] == [clips[0], clips[1], clips[3]]
    assert list(result['rejected']) == [clips[2]]
    assert result['resolution'][clips[1]] == SIZE / 2
    json.dumps(result, allow_nan=False)


@pytest.fixture(scope='module')
def real():
    """Embeddings of a few frames of each of the real clips."""
    clips = real_frames(8, 6)
    network, yunet = load_recognizer('sface', str(sface_file())), YuNet(yunet_file())
    table = {}
    for name, (frames, _) in clips.items():
        points = torch.stack(find_faces(frames, yunet)).numpy()
        table[name] = embed_faces(frames.permute(0, 2, 3, 1).numpy(), points, network)
    return table


def test_real_people_are_told_apart(real):
    means = {name: mean_direction(vectors) for name, vectors in real.items()}
    found = cluster(means, THRESHOLD)
    assert partition(found) == partition({name: person(name) for name in means})
    assert len(set(found.values())) == 15
    assert partition(cluster(means, 0.42)) == partition(cluster(means, 0.85)) == partition(found)  # a margin


def test_real_clips_pass_and_splices_do_not(real):
    for name, rows in real.items():
        assert judge(rows, 2)['noisy'] == [], name
        for other, others in real.items():
            if person(other) != person(name) and min(len(rows), len(others)) == 6:
                assert 'rejected' in judge(np.concatenate([rows[:3], others[3:]]), 2), (name, other)
