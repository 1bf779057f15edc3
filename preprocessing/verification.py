"""Verification of clips: is it the same face, sharp and in place, all the time? [PV3D A.3]

Of every second frame an embedding is made. A frame whose similarity to the others is below 0.5 is noisy; a clip
with more than two noisy frames is discarded. The similarity to the others is their median: in a clip spliced
from two people the frames of the shorter part then count as noisy, wherever the cut is, while the mean lets
some pass whose cut is in the middle (third lowest mean up to 0.54, where the lowest of clean clips is 0.68).

The threshold, which the paper gives for ArcFace, holds for SFace too. Measured on 16 clips of 15 people whose
heads turn by up to 50 degrees: the lowest frame of a clean clip has 0.68; of clips spliced from two people at a
quarter, half or three quarters the third lowest frame has at most 0.38 (so that all are discarded). A frame
with Gaussian blur of sigma 8 pixels at 512 is never noisy (at least 0.63), of sigma 16 in most clips (at most
0.51), of sigma 24 always (at most 0.37).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessing.work_folder import WorkFolder

THRESHOLD = 0.5  # of similarity [PV3D A.3]
LIMIT = 2  # noisy frames that a clip may have [PV3D A.3]


def similarities(embeddings: np.ndarray) -> np.ndarray:
    """Returns how alike each frame is to the others of its clip: the median over them.

    Args:
        embeddings: unit vectors [N, D].

    Returns:
        float64 [N]; without others nan.
    """
    count = len(embeddings)
    if count < 2:
        return np.full(count, np.nan)
    vectors = embeddings.astype(np.float64)
    others = (vectors @ vectors.T)[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    return np.median(others, axis=1)


def judge(
    embeddings: np.ndarray, step: int, threshold: float = THRESHOLD, limit: int = LIMIT
) -> dict[str, Any]:
    """Judges a clip by its embeddings.

    Args:
        embeddings: unit vectors of frames 0, step, 2 step, ..., [N, D].
        step: see there.
        threshold: frames below this similarity are noisy.
        limit: more noisy frames than this discard the clip.

    Returns:
        {'similarity': [one per examined frame], 'frames': [their numbers], 'noisy': [numbers of noisy ones],
        'accepted', 'reason' ('' when accepted), 'threshold'}.
    """
    values = similarities(embeddings)
    frames = np.arange(len(values)) * step
    noisy = frames[values < threshold].tolist()
    reason = ''
    if len(values) < 2:
        reason = 'too short to be verified: fewer than two frames are examined'
    elif len(noisy) > limit:
        reason = (
            f'{len(noisy)} of {len(values)} examined frames are noisy (similarity to the others below '
            f'{threshold:g}), allowed are {limit}'
        )
    return {
        'similarity': np.nan_to_num(values).tolist(),
        'frames': frames.tolist(),
        'noisy': noisy,
        'accepted': not reason,
        'reason': reason,
        'threshold': threshold,
    }


@dataclass(frozen=True)
class VerifyWork:
    """Work of the stage `verify`: embeddings/CLIP.npz -> the content of verify/CLIP.json."""

    workdir: str
    threshold: float = THRESHOLD
    limit: int = LIMIT

    def __call__(self, clip: str) -> dict[str, Any]:
        """Judges one clip."""
        folder = WorkFolder(self.workdir)
        step = folder.read(f'embeddings/{clip}')['step']
        return judge(folder.arrays('embeddings', clip)['embeddings'], step, self.threshold, self.limit)
