"""Verification of clips: is it the same face, sharp and in place, all the time? [PV3D A.3]

Of every second frame an embedding is made. A frame whose similarity to the others is below 0.5 is noisy; a
clip with more than two noisy frames is discarded. The similarity to the others is their median: in a clip
spliced from two people all frames of the shorter part then count as noisy.

The threshold, which the paper gives for ArcFace, holds for SFace too. Measured on 16 aligned clips of 15
people whose heads turn by up to 50 degrees, and on what was made of them:
- clean clips: their lowest frames have 0.68 and more, so none is discarded;
- 4158 splices of two people, cut anywhere from the 3rd to the 21st of 24 examined frames: the third lowest
  frame has at most 0.40, so all are discarded (with the mean instead of the median 139 would pass);
- frames blurred with a Gaussian, pixels at 512: of sigma 8 none is noisy, 12 some (10 of 48), 16 nearly all
  (47 of 48), 20 all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessing.from_videos.work_folder import WorkFolder

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
