"""Four pictures of a generated clip: two times, two yaws."""

from typing import NamedTuple

from torch import Tensor


class MultiView(NamedTuple):
    """One generated clip at two times from two yaws.

    Order: (t0, front), (t1, side), (t0, side), (t1, front).
    """

    image: Tensor  # uint8 [4, 3, H, W]
    depth: Tensor  # distance along the unit ray, scene units, float32 [4, 1, h, w]
    opacity: Tensor  # [4, 1, h, w]
    xyz: Tensor  # world points [4, 3, h, w]
    cameras: Tensor  # [4, 25]
    times: Tensor  # [2]: t0, t1
