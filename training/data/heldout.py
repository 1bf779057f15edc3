"""Which clips are never trained on."""

import collections
from collections.abc import Sequence

import numpy as np

_SEED = 2  # of the choice: the same clips in every run, so that runs can be compared


def choose_heldout(people: Sequence[str], count: int) -> np.ndarray:
    """Chooses clips [count], indices in order, by a fixed seed and spread over people.

    Everybody gives one clip, then everybody another; nobody gives the last one while others have two.

    Args:
        people: who is in each clip.
        count: clips to choose, at most as many as there are.
    """
    totals, given = collections.Counter(people), collections.Counter()
    ranks = []
    for clip in np.random.default_rng(_SEED).permutation(len(people)):
        who = people[clip]
        given[who] += 1
        ranks.append((given[who] == totals[who], given[who], len(ranks), clip))
    return np.array(sorted(clip for *_, clip in sorted(ranks)[:count]), dtype=np.int64)
