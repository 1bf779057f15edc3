"""Face of the procedural heads: a loft from crown to chin, sculpted by bumps, with a mouth that opens.

The surface is one grid, rows from crown to chin and columns around the head (column angle phi = 0 faces
+z). At the line of the mouth the grid is cut and rows are inserted that fold inwards: lips roll into a
mouth cavity, of zero area outside the corners. For canonical coordinates see heads/features.py.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from heads import features
from heads.features import bump, eye_local, smoothstep
from heads.identity import Identity
from heads.motion import Motion
from heads.vectors import components_first

TOP, BOTTOM = 0.235, -0.205  # heights of crown and chin of the average loft
BAG_ROWS = 12  # rows of the mouth cavity between the lips
_BAG = np.arange(1, BAG_ROWS + 1)[:, None] / (BAG_ROWS + 1)  # upper to lower lip, [12, 1]
EYE_RADIUS = 0.036  # of the eyeball, scene units
LID_THICKNESS = 0.0030
_JAW_HINGE = np.array([0.0, -0.005, -0.02])
_JAW_RAD = 0.17  # rotation at jaw = 1

# half width and front and back depth by height
_PROFILE = np.array(
    [
        [0.235, 0.000, -0.030, -0.030],
        [0.215, 0.071, 0.062, -0.095],
        [0.180, 0.112, 0.118, -0.140],
        [0.140, 0.134, 0.150, -0.164],
        [0.090, 0.1435, 0.166, -0.178],
        [0.050, 0.1445, 0.170, -0.181],
        [0.010, 0.1425, 0.168, -0.176],
        [-0.030, 0.138, 0.166, -0.163],
        [-0.070, 0.130, 0.164, -0.145],
        [-0.100, 0.121, 0.161, -0.128],
        [-0.140, 0.102, 0.154, -0.100],
        [-0.175, 0.073, 0.136, -0.060],
        [-0.196, 0.042, 0.102, -0.010],
        [-0.205, 0.000, 0.040, 0.040],
    ]
)


class Lids(NamedTuple):
    """The N vertices around the eyes, which follow lids and eyeballs."""

    index: np.ndarray  # in the grid, row by row, [N]
    a: np.ndarray  # outwards from the middle of the eye, in eye sizes, [N]
    b: np.ndarray  # upwards, [N]
    right: np.ndarray  # 1 at the eye at positive x, else 0, [N]


class FaceRest(NamedTuple):
    """Face at rest, and how it moves; all grids [..., H, W] with the mouth rows inserted."""

    position: np.ndarray  # [3, H, W]
    canonical: np.ndarray  # [3, H, W]
    bag: np.ndarray  # 0 on the skin, 0..1 from upper to lower lip inside the mouth, [H, W]
    shapes: dict[str, np.ndarray]  # displacement at motion amount 1, each [3, H, W]
    jaw_weight: np.ndarray  # fraction of the jaw rotation, [H, W]
    lids: Lids
    eyes: np.ndarray  # centres of the two eyeballs, left (negative x) first, [2, 3]
    mouth_row: int  # index of the last row above the mouth

    def moving(self) -> np.ndarray:
        """Returns which vertices [H, W] are not at the same place whatever the motion."""
        moving = (self.jaw_weight != 0) | (self.bag > 0)
        for shape in self.shapes.values():
            moving |= (shape != 0).any(axis=0)
        moving.ravel()[self.lids.index] = True
        return moving


def loft_radii(identity: Identity, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns half width, front depth and back depth of the head at heights y (any shape)."""
    middle, half = (TOP + BOTTOM) / 2, (TOP - BOTTOM) / 2
    angle = np.arccos(np.clip((_PROFILE[:, 0] - middle) / half, -1, 1))  # smooth at the poles, unlike y
    here = np.arccos(np.clip((y - middle) / half, -1, 1))
    width, front, back = (PchipInterpolator(angle, _PROFILE[:, k])(here) for k in (1, 2, 3))
    jaw = smoothstep(-0.02, -0.13, y)
    width = width * identity.head_width * (1 + (identity.jaw_width - 1) * jaw)
    width = width + 0.018 * identity.jaw_square * jaw * smoothstep(-0.198, -0.14, y)
    depth = 1 + (identity.head_depth - 1) * smoothstep(0.05, -0.15, front)  # the face itself keeps its place
    return width, front * depth, back * identity.head_depth


def build_loft(identity: Identity, heights: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Returns the undeformed head [H, W, 3] at given heights [H] and angles [W]."""
    width, front, back = (r[:, None] for r in loft_radii(identity, heights))
    middle = 0.42 * front + 0.58 * back
    sin, cos = np.sin(phi), np.cos(phi)
    side = np.sign(sin) * np.abs(sin) ** 0.94
    ahead, behind = np.abs(cos) ** 0.86 * (front - middle), -(np.abs(cos) ** 0.92) * (middle - back)
    x, z = width * side, middle + np.where(cos >= 0, ahead, behind)
    y = np.broadcast_to(heights[:, None], x.shape)
    return np.stack([x, y, z], axis=-1)


def settle(identity: Identity, position: np.ndarray) -> np.ndarray:
    """Bends loft positions [..., 3] into a head: height of the skull, and its base rises behind the chin."""
    x, y, z = np.moveaxis(position, -1, 0)
    lift = 0.42 * smoothstep(0.0, -0.19, y) * np.maximum(0.115 - z, 0.0)
    crown = (identity.skull_height - 1) * np.maximum(y - 0.06, 0.0) * 1.4
    chin = -identity.chin_length * smoothstep(-0.1, -0.19, y)
    return np.stack([x, y + lift + crown + chin, z], axis=-1)


def build_face(identity: Identity) -> FaceRest:
    """Builds the face at rest and its motion shapes."""
    (heights, mouth_row), phi = _rows(identity), _columns()
    canonical = build_loft(identity, heights, phi)
    x, y, _ = np.moveaxis(canonical, -1, 0)
    facing = smoothstep(0.05, 0.45, np.cos(phi))[None, :, None]
    position = settle(identity, canonical) + facing * features.sculpt(identity, x, y)
    eyes = _place_eyes(identity, position, x, y)
    side = np.where(np.arange(len(heights)) <= mouth_row, 1.0, -1.0)[:, None]
    weight = features.jaw_weight(identity, x, y, side) * smoothstep(-0.05, 0.07, position[..., 2])
    rows = np.r_[: mouth_row + 1, [mouth_row] * BAG_ROWS, mouth_row + 1 : len(heights)]  # opens the mouth
    bag = np.zeros((len(rows), len(phi)))
    bag[mouth_row + 1 : mouth_row + 1 + BAG_ROWS] = _BAG
    shapes = features.motion_shapes(identity, x, y, side).items()
    shapes = {name: components_first((facing * shape)[rows]) for name, shape in shapes}
    canonical = components_first(canonical[rows])
    lids = _find_lids(identity, canonical)
    return FaceRest(
        components_first(position[rows]), canonical, bag, shapes, weight[rows], lids, eyes, mouth_row
    )


def pose_jaw(points: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """Rotates points [3, ...] about the hinge of the jaw by `amount` [...] (1 = wide open)."""
    angle = _JAW_RAD * np.asarray(amount)
    cos, sin = np.cos(angle), np.sin(angle)
    _, hinge_y, hinge_z = _JAW_HINGE
    up, ahead = points[1] - hinge_y, points[2] - hinge_z
    return np.stack([points[0], cos * up - sin * ahead + hinge_y, sin * up + cos * ahead + hinge_z])


def pose_face(identity: Identity, rest: FaceRest, motion: Motion) -> np.ndarray:
    """Returns the vertices [3, H, W] of the moving face."""
    position = rest.position.copy()
    for name, shape in rest.shapes.items():
        if amount := getattr(motion, name):
            position += amount * shape
    position = pose_jaw(position, motion.jaw * rest.jaw_weight)
    _pose_lids(identity, rest, motion, position)
    _fold_mouth(identity, rest, position)
    return position


def _rows(identity: Identity) -> tuple[np.ndarray, int]:
    """Returns row heights, denser at the features, and the index of the first of the two mouth rows."""
    angle = np.linspace(0.004, np.pi - 0.004, 4000)
    y = (TOP + BOTTOM) / 2 + (TOP - BOTTOM) / 2 * np.cos(angle)
    eyes, mouth, nose = (
        bump(y, 0 * y, (height, 0), (width, 1))
        for height, width in ((identity.eye_height, 0.022), (identity.mouth_y, 0.022), (-0.048, 0.016))
    )
    total = _integral(0.45 + 1.2 * eyes + (1.7 * mouth + 1.2 * nose))
    at_mouth = np.interp(-identity.mouth_y, -y, total)
    above = max(round(112 * at_mouth / total[-1]), 8)
    steps = np.concatenate([np.linspace(0, at_mouth, above), np.linspace(at_mouth, total[-1], 112 - above)])
    heights = np.interp(np.interp(steps, total, angle), angle, y)
    heights[[above - 1, above]] = identity.mouth_y
    return heights, above - 1


def _columns() -> np.ndarray:
    """Returns column angles, symmetric about 0 and denser at the front."""
    phi = np.linspace(-np.pi, np.pi, 4001)
    total = _integral(0.42 + np.exp(-((phi / 0.62) ** 4)) + 0.5 * np.exp(-((phi / 0.2) ** 2)))
    return np.interp(np.arange(128) / 128 * total[-1], total, phi)


def _integral(density: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])


def _place_eyes(identity: Identity, position: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the eyeball centres [2, 3]: as deep as the skin around them requires."""
    radius = EYE_RADIUS * identity.eye_size
    a, b = eye_local(identity, x, y)
    ring = np.exp(-(((np.hypot(a, b * 1.5) - 0.028) / 0.006) ** 2)) * (position[..., 2] > 0)
    skin = float((ring * position[..., 2]).sum() / ring.sum())
    depth = skin + 0.0105 - radius - identity.eye_depth
    return np.array([[s * identity.eye_spacing, identity.eye_height, depth] for s in (-1, 1)])


def _find_lids(identity: Identity, canonical: np.ndarray) -> Lids:
    x, y, z = canonical.reshape(3, -1)
    a, b = eye_local(identity, x, y)
    index = np.flatnonzero((np.hypot(a, b) < 0.05) & (z > 0))
    return Lids(index, a[index], b[index], (x[index] > 0).astype(int))


def _pose_lids(identity: Identity, rest: FaceRest, motion: Motion, position: np.ndarray) -> None:
    """Lays the skin around the eyes over the eyeballs; between the lids the surface is the eyeball itself."""
    index, a, b, right = rest.lids
    blink = np.array([motion.blink_left, motion.blink_right])[right]
    upper, lower = features.lid_curves(identity, a, blink, max(motion.smile, 0.0))
    margin = np.minimum(upper - b, b - lower) - np.maximum(np.abs(a - 0.001) - features.LID_HALF_WIDTH, 0.0)
    lid = LID_THICKNESS * smoothstep(0.0012, -0.0012, margin)
    centre_x, centre_y, centre_z = rest.eyes.T[:, right]
    points = position.reshape(3, -1)
    x, y, z = points[:, index]
    radius = EYE_RADIUS * identity.eye_size + lid
    ball = centre_z + radius * _ball_height(np.hypot(x - centre_x, y - centre_y) / radius)
    soft = 0.006 * smoothstep(0.0, 0.012, -margin) + 1e-4
    h = np.clip(0.5 + 0.5 * (ball - z) / soft, 0.0, 1.0)  # polynomial smooth maximum
    points[2, index] = z + (ball - z) * h + soft * h * (1 - h)


def _ball_height(s: np.ndarray) -> np.ndarray:
    """Returns the height of a unit sphere at distance s from its axis; it falls away instead of ending."""
    slope = np.maximum(s - 0.84, 0.0)
    return np.sqrt(1 - np.minimum(s, 0.84) ** 2) - 1.55 * slope - 0.8 * smoothstep(0.95, 1.4, s)


def _fold_mouth(identity: Identity, rest: FaceRest, position: np.ndarray) -> None:
    """Places the inserted rows: from the upper lip back into the head and out to the lower lip."""
    above, below = rest.mouth_row, rest.mouth_row + BAG_ROWS + 1
    x, _, z = rest.canonical[:, above]
    parted = np.sqrt(np.clip(1 - (x / identity.mouth_width) ** 2, 0, 1)) * (z > 0)
    upper, lower, t = position[:, above, None], position[:, below, None], _BAG
    rows = position[:, above + 1 : below]
    rows[:] = upper + (lower - upper) * (t**1.5 / (t**1.5 + (1 - t) ** 1.5))
    rows[2] -= 0.055 * np.sin(np.pi * t) ** 0.8 * parted
    rows[1] += 0.016 * np.sin(2 * np.pi * t) * parted
