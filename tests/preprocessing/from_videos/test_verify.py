"""Noisy frames and the clips that have them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from preprocessing.from_videos.stages import Item
from preprocessing.from_videos.verify import judge, similarities, verify_stage
from preprocessing.from_videos.work_folder import WorkFolder


def unit(*rows):
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def people(*counts, width=8):
    """Embeddings of a clip: so many frames of each of several people who have nothing in common."""
    return np.concatenate([np.repeat(np.eye(width)[i : i + 1], n, axis=0) for i, n in enumerate(counts)])


def test_similarity_is_the_median_over_the_others():
    rows = unit([1, 0], [1, 1], [0, 1], [-1, 0.2])
    naive = [np.median([float(a @ b) for j, b in enumerate(rows) if j != i]) for i, a in enumerate(rows)]
    np.testing.assert_allclose(similarities(rows), naive, atol=1e-6)


@pytest.mark.parametrize('counts', [(12, 12), (3, 21), (21, 3), (8, 8, 8), (13, 12)])
def test_splices_are_discarded_wherever_the_cut_is(counts):
    verdict = judge(people(*counts), step=2)
    assert 'rejected' in verdict and len(verdict['noisy']) >= min(counts)


@pytest.mark.parametrize(('strange', 'accepted'), [(0, True), (2, True), (3, False)])
def test_more_than_two_noisy_frames_discard(strange, accepted):
    rows = people(20, *[1] * strange)
    verdict = judge(rows, step=2)
    assert ('rejected' not in verdict) == accepted
    assert verdict['noisy'] == [2 * (20 + i) for i in range(strange)]  # numbers of frames of the clip
    assert verdict['frames'] == list(range(0, 2 * len(rows), 2))
    if not accepted:
        assert '3 of 23' in verdict['rejected'] and '0.5' in verdict['rejected']


def test_threshold_and_limit():
    rows = unit(*[[1, 0]] * 9, [0.6, 0.8])  # the last is 0.6 like the others
    assert judge(rows, 2)['noisy'] == []
    assert judge(rows, 2, threshold=0.65)['noisy'] == [18]
    assert 'rejected' in judge(rows, 2, threshold=0.65, limit=0)


def test_a_single_frame_cannot_be_judged():
    verdict = judge(people(1), step=2)
    assert 'rejected' in verdict and 'too short' in verdict['rejected']
    json.dumps(verdict, allow_nan=False)


def test_work_reads_the_embeddings(tmp_path):
    (tmp_path / 'embeddings').mkdir()
    np.savez(tmp_path / 'embeddings' / 'clip.npz', embeddings=people(5, 1, 1))
    (tmp_path / 'embeddings' / 'clip.json').write_text('{"step": 3}')
    item = Item('clip', WorkFolder(tmp_path), {})
    verdict = verify_stage(item, SimpleNamespace(similarity=0.5, noisy=2))
    assert 'rejected' not in verdict and verdict['noisy'] == [15, 18]
    assert 'rejected' in verify_stage(item, SimpleNamespace(similarity=0.5, noisy=1))
