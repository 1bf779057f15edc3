"""Features of the face as functions of canonical coordinates: lids, lips, brows, nose, expressions.

Canonical (x, y) are those of the undeformed loft of heads/face.py: the eyes are at
(+-eye_spacing, eye_height) and the lips meet at y = mouth_y whatever the motion. Geometry and colours use
the same functions, so that paint and relief agree.
"""

import numpy as np
from scipy.interpolate import PchipInterpolator

from heads.identity import Identity

UPPER_LID = 0.0128  # height of the open upper lid above the pupil, in eye sizes
LID_HALF_WIDTH = 0.029  # of the opening between the lids, in eye sizes


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Returns 0 below low, 1 above high (or the reverse when high < low), a cubic between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def bump(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], sigma: tuple[float, float]) -> np.ndarray:
    """Returns a Gaussian of height 1."""
    return np.exp(-0.5 * (((x - centre[0]) / sigma[0]) ** 2 + ((y - centre[1]) / sigma[1]) ** 2))


def eye_local(identity: Identity, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates from the nearer eye, (a, b) = (outwards, up), without the tilt, in eye sizes."""
    a = (np.abs(x) - identity.eye_spacing) / identity.eye_size
    b = (y - identity.eye_height) / identity.eye_size
    return a, b - identity.eye_tilt * a


def lid_curves(
    identity: Identity, a: np.ndarray, blink: np.ndarray, squint: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the heights b of the upper and the lower lid edge at a, for closures `blink` (0..1)."""
    u = np.clip(np.abs((a - 0.001) / 0.029), 0, 1)
    skew = 1 - 0.12 * a / 0.029
    lower = -(0.0098 - 0.004 * squint) * np.sqrt(identity.eye_open) * (1 - u**2.4)
    upper = UPPER_LID * identity.eye_open * (1 - u**2.0) ** 0.85 * skew
    return upper + (lower + 0.001 - upper) * blink, lower


def lip_extent(identity: Identity, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the heights of upper and lower lip above and below the line of the mouth at canonical x."""
    u = np.clip(np.abs(x) / identity.mouth_width, 0, 1)
    taper = np.sqrt(1 - u**1.7)
    bow = 1 - identity.cupid * np.exp(-((u / 0.13) ** 2)) + 0.18 * np.exp(-(((u - 0.25) / 0.16) ** 2))
    return identity.upper_lip * taper * bow, identity.lower_lip * np.sqrt(1 - u**2.2)


def cheek_fold(ax: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the distance |x| - fold from the line that runs from the nose to beside the mouth."""
    return ax - (0.03 + 0.75 * np.clip(-0.045 - y, 0, 0.07))


def brow_mask(identity: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the density of the eyebrows, 0..1, at canonical positions."""
    t = (np.abs(x) - 0.018) / (identity.eye_spacing + 0.022)  # 0 at the inner, 1 at the outer end
    centre = identity.eye_height + identity.brow_height + identity.brow_tilt * 0.06 * (t - 0.5)
    centre = centre + identity.brow_arch * np.sin(np.pi * np.clip(t, 0, 1) ** 1.3)
    centre = centre - 0.010 * smoothstep(0.62, 1.1, t)
    half = identity.brow_thickness * (1.0 - 0.7 * smoothstep(0.45, 1.0, t)) * smoothstep(-0.12, 0.15, t)
    across = np.abs(y - centre) / np.maximum(half, 1e-5)
    return smoothstep(1.25, 0.7, across) * smoothstep(-0.05, 0.08, t) * smoothstep(1.03, 0.95, t)


def sculpt(identity: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
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
    fold = -0.004 * (0.4 + identity.age) * np.exp(-((cheek_fold(ax, y) / 0.006) ** 2))
    z += fold * smoothstep(0.0, -0.06, y) * smoothstep(my - 0.03, my, y)
    nose, drop = _nose(identity, x, y)
    corners = np.minimum((ax / identity.mouth_width) ** 2, 1.6) * bump(0 * x, y, (0, my), (1, 0.022))
    drop = drop + 0.0065 * corners * smoothstep(identity.mouth_width * 2.2, identity.mouth_width, ax)
    z += nose + _lip_relief(identity, x, y)
    z += 0.0018 * brow_mask(identity, x, y)
    return np.stack([np.zeros_like(z), drop, z], axis=-1)


def _nose(identity: Identity, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the forward displacement of the nose and the downward one that overhangs its tip."""
    top, tip = identity.eye_height + 0.02, -0.005 - 0.033 * identity.nose_length
    middle, out, bridge = 0.5 * (top + tip), identity.nose_protrusion, 0.014 * identity.nose_bridge
    heights = [-1.0, tip - 0.035, tip - 0.022, tip - 0.008, tip, middle, top - 0.012, top + 0.022, 1.0]
    forward = [0.0, 0.0, 0.010, 0.047 * out, 0.050 * out, bridge + 0.016 * out, bridge, 0.0, 0.0]
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
    ends = smoothstep(identity.mouth_width * 1.15, identity.mouth_width, np.abs(x))
    crease = -0.004 * np.exp(-((d / 0.003) ** 2)) * ends
    return identity.lip_fullness * inside * (0.0065 * up + 0.0085 * low) + crease


def motion_shapes(
    identity: Identity, x: np.ndarray, y: np.ndarray, side: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the displacements [H, W, 3] of the expressions at amount 1, by fields of Motion."""
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
    lift = 0.011 * corner + 0.006 * cheek - 0.003 * around
    shapes = {
        'smile': (0.010 * sign * corner, lift, 0.007 * cheek - 0.004 * corner),
        'pucker': (-0.42 * x * around, zero, 0.012 * around),
        'upper_lip': (zero, 0.007 * up, 0.001 * up),
        'lower_lip': (zero, -0.009 * low, 0.002 * low),
        'brow_raise': (zero, 0.015 * raised, 0.001 * raised),
        'brow_furrow': (-0.006 * np.tanh(x / 0.015) * inner, -0.009 * inner, 0.002 * inner),
    }
    return {name: np.stack(shape, axis=-1) for name, shape in shapes.items()}


def jaw_weight(identity: Identity, x: np.ndarray, y: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Returns the fraction of the jaw rotation: 1 below the mouth, 0 above, blending beyond its corners."""
    u = np.clip(np.abs(x) / identity.mouth_width, 0, 1)
    parted = (1 - u**2.2) ** 0.6  # shape of the opening
    d = y - identity.mouth_y
    above = 0.5 * (1 - parted) * np.exp(-np.maximum(d, 0) / 0.05) * smoothstep(0.0, -0.045, y)
    below = 1 - 0.5 * (1 - parted) * np.exp(np.minimum(d, 0) / 0.03)
    return np.where(side > 0, above, below)
