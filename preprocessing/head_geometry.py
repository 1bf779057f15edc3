"""Face surface of the procedural heads: a loft from crown to chin, sculpted by smooth bumps, with a mouth that opens.

The surface is one grid, rows from crown to chin and columns around the head (column angle phi = 0 faces +z). At the line of
the mouth the grid is cut and rows are inserted that fold inwards: lips roll into a mouth cavity, of zero area outside the
corners. Canonical coordinates (x, y, z of the undeformed loft) name places on the face for colours and motion: the eyes
are at (+-eye_spacing, eye_height) and the lips meet at y = mouth_y whatever the motion.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from preprocessing.head_identity import Identity
from preprocessing.head_motion import Motion

TOP, BOTTOM = 0.235, -0.205  # heights of crown and chin of the average loft
BAG_ROWS = 12  # rows of the mouth cavity between the lips
EYE_RADIUS = 0.036  # of the eyeball, scene units
LID_THICKNESS = 0.0030
UPPER_LID = 0.0128  # height of the open upper lid above the pupil, in eye sizes
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


class Loft(NamedTuple):
    """Undeformed head: positions [H, W, 3] and column angles [W]; row and column spacing follows the features."""

    position: np.ndarray
    phi: np.ndarray


class FaceRest(NamedTuple):
    """Face at rest, and how it moves; all grids [H, W, ...] with the mouth rows inserted."""

    position: np.ndarray  # [H, W, 3]
    canonical: np.ndarray  # [H, W, 3]
    bag: np.ndarray  # 0 on the skin, 0..1 from upper to lower lip inside the mouth, [H, W]
    shapes: dict[str, np.ndarray]  # displacement at motion amount 1, each [H, W, 3]
    jaw_weight: np.ndarray  # share of the jaw rotation, [H, W]
    eyes: np.ndarray  # centres of the two eyeballs, left (negative x) first, [2, 3]
    mouth_row: int  # index of the last row above the mouth


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Returns 0 below low, 1 above high (or the reverse when high < low), a cubic between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def bump(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], sigma: tuple[float, float]) -> np.ndarray:
    """Returns a Gaussian of height 1."""
    return np.exp(-0.5 * (((x - centre[0]) / sigma[0]) ** 2 + ((y - centre[1]) / sigma[1]) ** 2))


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


def build_loft(identity: Identity, heights: np.ndarray, phi: np.ndarray) -> Loft:
    """Builds the undeformed head at given heights [H] and angles [W]."""
    width, front, back = (r[:, None] for r in loft_radii(identity, heights))
    middle = 0.42 * front + 0.58 * back
    sin, cos = np.sin(phi), np.cos(phi)
    side = np.sign(sin) * np.abs(sin) ** 0.94
    ahead = np.where(
        cos >= 0, np.abs(cos) ** 0.86 * (front - middle), -(np.abs(cos) ** 0.92) * (middle - back)
    )
    x = width * side
    y = np.broadcast_to(heights[:, None], x.shape)
    return Loft(np.stack([x, y, middle + ahead], axis=-1), phi)


def settle(identity: Identity, position: np.ndarray) -> np.ndarray:
    """Bends loft positions [..., 3] into a head: skull height, and the base of the skull rises behind the chin."""
    x, y, z = np.moveaxis(position, -1, 0)
    lift = 0.42 * smoothstep(0.0, -0.19, y) * np.maximum(0.115 - z, 0.0)
    crown = (identity.skull_height - 1) * np.maximum(y - 0.06, 0.0) * 1.4
    chin = -identity.chin_length * smoothstep(-0.1, -0.19, y)
    return np.stack([x, y + lift + crown + chin, z], axis=-1)


def lip_extent(identity: Identity, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the heights of upper and lower lip above and below the line of the mouth at canonical x."""
    u = np.clip(np.abs(x) / identity.mouth_width, 0, 1)
    taper = np.sqrt(1 - u**1.7)
    bow = 1 - identity.cupid * np.exp(-((u / 0.13) ** 2)) + 0.18 * np.exp(-(((u - 0.25) / 0.16) ** 2))
    return identity.upper_lip * taper * bow, identity.lower_lip * np.sqrt(1 - u**2.2)


def eye_local(identity: Identity, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates relative to the nearer eye, (a, b) = (outwards, up), with the tilt removed, in eye sizes."""
    a = (np.abs(x) - identity.eye_spacing) / identity.eye_size
    b = (y - identity.eye_height) / identity.eye_size
    return a, b - identity.eye_tilt * a


def lid_curves(
    identity: Identity, a: np.ndarray, blink: np.ndarray, squint: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the heights b of the upper and the lower lid edge at a, for closures `blink` (broadcast against a)."""
    u = np.clip(np.abs((a - 0.001) / 0.029), 0, 1)
    skew = 1 - 0.12 * a / 0.029
    lower = -(0.0098 - 0.004 * squint) * np.sqrt(identity.eye_open) * (1 - u**2.4)
    upper = UPPER_LID * identity.eye_open * (1 - u**2.0) ** 0.85 * skew
    return upper + (lower + 0.001 - upper) * blink, lower


def build_face(identity: Identity) -> FaceRest:
    """Builds the face at rest and its motion shapes."""
    heights, mouth_row = _rows(identity)
    loft = build_loft(identity, heights, _columns())
    x, y, _ = canonical = np.moveaxis(loft.position, -1, 0)
    facing = smoothstep(0.05, 0.45, np.cos(loft.phi))[None]
    position = settle(identity, loft.position)
    position = position + facing[..., None] * _sculpt(identity, x, y)
    eyes = _place_eyes(identity, position, x, y)
    side = np.where(np.arange(len(heights)) <= mouth_row, 1.0, -1.0)[:, None]
    shapes = {name: facing[..., None] * s for name, s in _motion_shapes(identity, x, y, side).items()}
    weight = _jaw_weight(identity, x, y, side) * smoothstep(-0.05, 0.07, position[..., 2])
    split = mouth_row + 1
    canonical = np.moveaxis(canonical, 0, -1)
    bag = np.zeros(x.shape)
    pad = {name: _insert_rows(s, split) for name, s in shapes.items()}
    bag = _insert_rows(bag, split)
    bag[split : split + BAG_ROWS] = (np.arange(1, BAG_ROWS + 1) / (BAG_ROWS + 1))[:, None]
    return FaceRest(
        _insert_rows(position, split),
        _insert_rows(canonical, split),
        bag,
        pad,
        _insert_rows(weight, split),
        eyes,
        mouth_row,
    )


def pose_jaw(points: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """Rotates points [..., 3] about the hinge of the jaw by `amount` (1 = wide open, broadcast against points[..., 0])."""
    angle = _JAW_RAD * np.asarray(amount)
    offset = points - _JAW_HINGE
    cos, sin = np.cos(angle), np.sin(angle)
    y = cos * offset[..., 1] - sin * offset[..., 2]
    z = sin * offset[..., 1] + cos * offset[..., 2]
    return np.stack([offset[..., 0], y, z], axis=-1) + _JAW_HINGE


def pose_face(identity: Identity, rest: FaceRest, motion: Motion) -> np.ndarray:
    """Returns the vertices [H, W, 3] of the moving face."""
    amounts = {
        'smile': motion.smile,
        'pucker': motion.pucker,
        'upper_lip': motion.upper_lip,
        'lower_lip': motion.lower_lip,
        'brow_raise': motion.brow_raise,
        'brow_furrow': motion.brow_furrow,
    }
    position = rest.position.copy()
    for name, amount in amounts.items():
        if amount:
            position += amount * rest.shapes[name]
    position = pose_jaw(position, motion.jaw * rest.jaw_weight)
    position = _pose_lids(identity, rest, motion, position)
    return _fold_mouth(identity, rest, position)


def _rows(identity: Identity) -> tuple[np.ndarray, int]:
    """Returns row heights, denser at eyes, nose and mouth, and the index of the first of the two rows at the mouth."""
    angle = np.linspace(0.004, np.pi - 0.004, 4000)
    y = (TOP + BOTTOM) / 2 + (TOP - BOTTOM) / 2 * np.cos(angle)
    density = 0.45 + 1.2 * bump(y, 0 * y, (identity.eye_height, 0), (0.022, 1))
    density += 1.7 * bump(y, 0 * y, (identity.mouth_y, 0), (0.022, 1)) + 1.2 * bump(
        y, 0 * y, (-0.048, 0), (0.016, 1)
    )
    total = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    at_mouth = np.interp(-identity.mouth_y, -y, total)
    above = max(round(112 * at_mouth / total[-1]), 8)
    steps = np.concatenate([np.linspace(0, at_mouth, above), np.linspace(at_mouth, total[-1], 112 - above)])
    heights = np.interp(np.interp(steps, total, angle), angle, y)
    heights[[above - 1, above]] = identity.mouth_y
    return heights, above - 1


def _columns() -> np.ndarray:
    """Returns column angles, symmetric about 0 and denser at the front."""
    phi = np.linspace(-np.pi, np.pi, 4001)
    density = 0.42 + np.exp(-((phi / 0.62) ** 4)) + 0.5 * np.exp(-((phi / 0.2) ** 2))
    total = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return np.interp(np.arange(128) / 128 * total[-1], total, phi)


def _insert_rows(grid: np.ndarray, split: int) -> np.ndarray:
    """Opens the grid before row `split` with copies of the row above."""
    return np.concatenate([grid[:split], np.repeat(grid[split - 1 : split], BAG_ROWS, axis=0), grid[split:]])


def _sculpt(identity: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the displacement [H, W, 3] of the features of the face at rest."""
    ax, ey, my = np.abs(x), identity.eye_height, identity.mouth_y
    z = identity.brow_ridge * bump(ax, y, (0.05, ey + 0.04), (0.032, 0.014))
    z += -0.010 * bump(ax, y, (identity.eye_spacing - 0.012, ey + 0.002), (0.026, 0.020))
    z += identity.cheekbone * bump(ax, y, (0.085, -0.022), (0.03, 0.026))
    z += (0.004 + identity.cheek_fullness) * bump(ax, y, (0.072, -0.075), (0.032, 0.034))
    z += 0.010 * bump(x, y, (0, my), (0.05, 0.032))
    z += (0.012 + identity.chin_forward) * bump(x, y, (0, -0.168), (identity.chin_width, 0.020))
    z += -0.006 * bump(x, y, (0, my - 0.036), (0.035, 0.010))
    z += -0.003 * bump(x, y, (0, my + 0.024), (0.006, 0.011))
    fold = ax - (0.03 + 0.75 * np.clip(-0.045 - y, 0, 0.07))
    z += (
        -0.004
        * (0.4 + identity.age)
        * np.exp(-((fold / 0.006) ** 2))
        * smoothstep(0.0, -0.06, y)
        * smoothstep(my - 0.03, my, y)
    )
    nose, drop = _nose(identity, x, y)
    corners = np.minimum((ax / identity.mouth_width) ** 2, 1.6) * bump(0 * x, y, (0, my), (1, 0.022))
    drop = drop + 0.0065 * corners * smoothstep(identity.mouth_width * 2.2, identity.mouth_width, ax)
    z += nose + _lip_relief(identity, x, y)
    z += 0.0018 * brow_mask(identity, x, y)
    return np.stack([np.zeros_like(z), drop, z], axis=-1)


def _nose(identity: Identity, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the forward displacement of the nose and the downward one that overhangs its tip."""
    top, tip = identity.eye_height + 0.02, -0.005 - 0.033 * identity.nose_length
    heights = [
        -1.0,
        tip - 0.035,
        tip - 0.022,
        tip - 0.008,
        tip,
        0.5 * (top + tip),
        top - 0.012,
        top + 0.022,
        1.0,
    ]
    out = identity.nose_protrusion
    bridge = identity.nose_bridge
    forward = [
        0.0,
        0.0,
        0.010,
        0.047 * out,
        0.050 * out,
        0.014 * bridge + 0.016 * out,
        0.014 * bridge,
        0.0,
        0.0,
    ]
    profile = PchipInterpolator(heights, forward)(y)
    wide = identity.nose_width
    width = 0.0145 + (0.0095 * wide - 0.001) * smoothstep(top, tip, y)
    ridge = profile * np.exp(-((np.abs(x) / width) ** 2.0))
    ridge = ridge + 0.006 * bump(x, y, (0, tip), (0.014 * wide, 0.012))
    wings = 0.019 * bump(np.abs(x), y, (0.0205 * wide, tip - 0.007), (0.0075, 0.0085))
    drop = -(0.010 - identity.nose_tip_up) * bump(x, y, (0, tip), (0.014 * wide, 0.011))
    return ridge + wings, drop


def _lip_relief(identity: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    upper, lower = lip_extent(identity, x)
    d = y - identity.mouth_y
    inside = smoothstep(identity.mouth_width * 1.08, identity.mouth_width * 0.75, np.abs(x))
    up = np.exp(-(((d / np.maximum(upper, 1e-4)) - 0.5) ** 2) / 0.16) * (d >= 0)
    low = np.exp(-(((-d / np.maximum(lower, 1e-4)) - 0.5) ** 2) / 0.16) * (d < 0)
    crease = (
        -0.004
        * np.exp(-((d / 0.003) ** 2))
        * smoothstep(identity.mouth_width * 1.15, identity.mouth_width, np.abs(x))
    )
    return identity.lip_fullness * inside * (0.0065 * up + 0.0085 * low) + crease


def brow_mask(identity: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the density of the eyebrows, 0..1, at canonical positions."""
    t = (np.abs(x) - 0.018) / (identity.eye_spacing + 0.022)  # 0 at the inner, 1 at the outer end
    centre = identity.eye_height + identity.brow_height + identity.brow_tilt * 0.06 * (t - 0.5)
    centre = (
        centre
        + identity.brow_arch * np.sin(np.pi * np.clip(t, 0, 1) ** 1.3)
        - 0.010 * smoothstep(0.62, 1.1, t)
    )
    half = identity.brow_thickness * (1.0 - 0.7 * smoothstep(0.45, 1.0, t)) * smoothstep(-0.12, 0.15, t)
    across = np.abs(y - centre) / np.maximum(half, 1e-5)
    return smoothstep(1.25, 0.7, across) * smoothstep(-0.05, 0.08, t) * smoothstep(1.03, 0.95, t)


def _place_eyes(identity: Identity, position: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the eyeball centres [2, 3]: as deep as the skin around the eye asks for."""
    radius = EYE_RADIUS * identity.eye_size
    a, b = eye_local(identity, x, y)
    ring = np.exp(-(((np.hypot(a, b * 1.5) - 0.028) / 0.006) ** 2)) * (position[..., 2] > 0)
    skin = float((ring * position[..., 2]).sum() / ring.sum())
    depth = skin + 0.0105 - radius - identity.eye_depth
    return np.array([[s * identity.eye_spacing, identity.eye_height, depth] for s in (-1, 1)])


def _pose_lids(identity: Identity, rest: FaceRest, motion: Motion, position: np.ndarray) -> np.ndarray:
    """Lays the skin around the eyes over the eyeballs; between the lids the surface is the eyeball itself."""
    x, y = rest.canonical[..., 0], rest.canonical[..., 1]
    a, b = eye_local(identity, x, y)
    near = np.flatnonzero(((np.hypot(a, b) < 0.05) & (rest.canonical[..., 2] > 0)).ravel())
    a, b, x = a.ravel()[near], b.ravel()[near], x.ravel()[near]
    points = position.reshape(-1, 3)[near]
    upper, lower = lid_curves(
        identity, a, np.where(x < 0, motion.blink_left, motion.blink_right), max(motion.smile, 0.0)
    )
    margin = np.minimum(upper - b, b - lower)
    lid = LID_THICKNESS * smoothstep(0.0012, -0.0012, margin)
    centre = rest.eyes[(x > 0).astype(int)]
    radius = EYE_RADIUS * identity.eye_size + lid
    planar = ((points[:, :2] - centre[:, :2]) ** 2).sum(axis=1)
    ball = centre[:, 2] + np.sqrt(np.maximum(radius**2 - planar, 0.0))
    ball = np.where(planar < radius**2, ball, -1.0)
    soft = 0.006 * smoothstep(0.0, 0.012, -margin) + 1e-4
    h = np.clip(0.5 + 0.5 * (ball - points[:, 2]) / soft, 0.0, 1.0)  # polynomial smooth maximum
    points[:, 2] = points[:, 2] + (ball - points[:, 2]) * h + soft * h * (1 - h)
    out = position.reshape(-1, 3).copy()
    out[near] = points
    return out.reshape(position.shape)


def _fold_mouth(identity: Identity, rest: FaceRest, position: np.ndarray) -> np.ndarray:
    """Places the inserted rows: from the upper lip back into the head and out to the lower lip."""
    above, below = rest.mouth_row, rest.mouth_row + BAG_ROWS + 1
    t = (np.arange(1, BAG_ROWS + 1) / (BAG_ROWS + 1))[:, None]
    x = rest.canonical[above, :, 0]
    open_share = np.sqrt(np.clip(1 - (x / identity.mouth_width) ** 2, 0, 1)) * (
        rest.canonical[above, :, 2] > 0
    )
    upper, lower = position[above], position[below]
    rows = upper + (lower - upper) * (t**1.5 / (t**1.5 + (1 - t) ** 1.5))[..., None]
    rows[..., 2] -= 0.055 * np.sin(np.pi * t) ** 0.8 * open_share
    rows[..., 1] += 0.016 * np.sin(2 * np.pi * t) * open_share
    out = position.copy()
    out[above + 1 : below] = rows
    return out


def _jaw_weight(identity: Identity, x: np.ndarray, y: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns the share of the jaw rotation: 1 below the mouth, 0 above, blending beyond its corners."""
    u = np.clip(np.abs(x) / identity.mouth_width, 0, 1)
    parted = (1 - u**2.2) ** 0.6  # shape of the opening
    d = y - identity.mouth_y
    above = 0.5 * (1 - parted) * np.exp(-np.maximum(d, 0) / 0.05)
    below = 1 - 0.5 * (1 - parted) * np.exp(np.minimum(d, 0) / 0.03)
    return np.where(side > 0, above, below)


def _motion_shapes(
    identity: Identity, x: np.ndarray, y: np.ndarray, side: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the displacements [H, W, 3] of the expressions at amount 1."""
    ax, sign, my, width = np.abs(x), np.sign(x), identity.mouth_y, identity.mouth_width
    u = np.clip(ax / width, 0, 1)
    taper = np.sqrt(1 - u**2)
    corner = bump(ax, y, (width, my), (0.024, 0.022))
    cheek = bump(ax, y, (0.072, -0.045), (0.026, 0.022))
    around = bump(x, y, (0, my), (width * 0.95, 0.026))
    up = (side > 0) * np.exp(-(((y - my) / 0.016) ** 2)) * taper
    low = (side < 0) * np.exp(-(((y - my) / 0.022) ** 2)) * taper
    raised = bump(ax, y, (0.05, identity.eye_height + identity.brow_height + 0.008), (0.045, 0.020))
    raised = raised * smoothstep(identity.eye_height + 0.018, identity.eye_height + 0.036, y)
    inner = bump(ax, y, (0.022, identity.eye_height + identity.brow_height), (0.018, 0.016))
    inner = inner * smoothstep(identity.eye_height + 0.012, identity.eye_height + 0.03, y)
    zero = np.zeros_like(x)
    return {
        'smile': np.stack(
            [
                0.010 * sign * corner,
                0.011 * corner + 0.006 * cheek - 0.003 * around,
                0.007 * cheek - 0.004 * corner,
            ],
            -1,
        ),
        'pucker': np.stack([-0.42 * x * around, zero, 0.012 * around], -1),
        'upper_lip': np.stack([zero, 0.007 * up, 0.001 * up], -1),
        'lower_lip': np.stack([zero, -0.009 * low, 0.002 * low], -1),
        'brow_raise': np.stack([zero, 0.015 * raised, 0.001 * raised], -1),
        'brow_furrow': np.stack([-0.006 * sign * inner, -0.009 * inner, 0.002 * inner], -1),
    }
