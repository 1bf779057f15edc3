"""Verification of clips: do all frames show the same face, sharp and in place? [PV3D A.3]

Every second frame has an embedding. A frame whose similarity to the others is below 0.5 is noisy; a clip with
more than two noisy frames is discarded. The similarity to the others is their median: in a clip
spliced from two people all frames of the shorter part then count as noisy.

The threshold, which the paper gives for ArcFace, holds for SFace too. Measured on 16 aligned clips of 15
people whose heads turn by up to 50 degrees, and on what was made of them:
- clean clips: their lowest frames have 0.68 and more, so none is discarded;
- 4158 splices of two people, cut anywhere from the 3rd to the 21st of 24 examined frames: the third lowest
  frame has at most 0.40, so all are discarded (with the mean instead of the median 139 would pass);
- frames blurred with a Gaussian, pixels at 512: of sigma 8 none is noisy, 12 some (10 of 48), 16 nearly all
  (47 of 48), 20 all.
"""

from typing import Any

import numpy as np

from preprocessing.from_videos.stages import Item, Stage


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


def judge(embeddings: np.ndarray, step: int, threshold: float = 0.5, limit: int = 2) -> dict[str, Any]:
    """Judges a clip by its embeddings.

    Args:
        embeddings: unit vectors of frames 0, step, 2 step, ..., [N, D].
        step: frames from one to the next.
        threshold: frames below this similarity are noisy [PV3D A.3].
        limit: more noisy frames than this discard the clip [PV3D A.3].

    Returns:
        {'similarity': [one per examined frame], 'frames': [their numbers], 'noisy': [numbers of noisy ones],
        'threshold'}, and 'rejected': reason of a clip that is discarded.
    """
    values = similarities(embeddings)
    frames = np.arange(len(values)) * step
    noisy = frames[values < threshold].tolist()
    result = {'similarity': np.nan_to_num(values).tolist(), 'frames': frames.tolist()}
    result |= {'noisy': noisy, 'threshold': threshold}
    if len(values) < 2:
        result['rejected'] = 'too short to be verified: fewer than two frames are examined'
    elif len(noisy) > limit:
        result['rejected'] = (
            f'{len(noisy)} of {len(values)} examined frames are noisy (similarity to the others below '
            f'{threshold:g}), allowed are {limit}'
        )
    return result


@Stage('verify', per='clip', needs=('embeddings',), options=('similarity', 'noisy'), version=2)
def verify_stage(item: Item, options: Any) -> dict[str, Any]:
    """Judges a clip; returns the content of verify/CLIP.json."""
    step = item.work.read(f'embeddings/{item.name}')['step']
    embeddings = item.work.arrays('embeddings', item.name)['embeddings']
    return judge(embeddings, step, options.similarity, options.noisy)
