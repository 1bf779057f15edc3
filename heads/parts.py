"""Everything of a procedural head but the face: ears, neck and shoulders, hair, teeth and tongue, glasses.

Each part is a grid of vertices whose row direction x column direction points out of the solid. `canonical`
has the coordinates that the colours of that part need (see heads/appearance.py).
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from heads.face import FaceRest, loft_radii
from heads.features import bump, smoothstep
from heads.hair import LONG_STYLES, hair_shell
from heads.identity import HAIR_STYLES, Identity

FACE, EAR, BODY, HAIR, TEETH, TONGUE, GLASSES = range(7)  # kinds of parts


class Part(NamedTuple):
    """One grid of vertices."""

    kind: int  # FACE, EAR, ...
    position: np.ndarray  # [H, W, 3]
    canonical: np.ndarray  # [H, W, 3]
    closed: bool = True  # columns wrap around
    jaw: float = 0.0  # fraction of the jaw rotation


def build_parts(identity: Identity, rest: FaceRest) -> list[Part]:
    """Builds all parts but the face."""
    covered = HAIR_STYLES[identity.hair_style] in LONG_STYLES
    ears = [] if covered else _ears(identity)
    parts = [*ears, _body(identity), *_mouth(identity, rest), *_hair(identity)]
    return parts + (_glasses(identity, rest) if identity.glasses else [])


def _sphere(rows: int, columns: int) -> np.ndarray:
    """Returns unit directions [rows, columns, 3] from +y to -y, column 0 at -z."""
    s = np.linspace(1e-3, np.pi - 1e-3, rows)[:, None]
    phi = np.arange(columns) / columns * 2 * np.pi - np.pi
    return np.stack([np.sin(s) * np.sin(phi), np.cos(s) + 0 * phi, np.sin(s) * np.cos(phi)], axis=-1)


def _blob(
    kind: int, centre: tuple[float, float, float], radii: tuple[float, float, float], jaw: float = 0.0
) -> Part:
    direction = _sphere(20, 28)
    return Part(kind, np.array(centre) + direction * np.array(radii), direction, jaw=jaw)


def _ears(identity: Identity) -> list[Part]:
    direction = _sphere(26, 40)
    out, up, front = np.moveaxis(direction, -1, 0)
    # in the plane of the ear: up, and front = towards the face; the outer side carries the relief
    radius = np.hypot(up, front)
    outline = 1 + 0.10 * up - 0.12 * (up < 0) * up**2
    relief = 0.30 * np.exp(-(((radius - 0.80) / 0.12) ** 2)) * smoothstep(1.0, 0.2, front)
    relief += 0.22 * np.exp(-(((radius - 0.42) / 0.12) ** 2)) * smoothstep(0.1, -0.3, front)
    relief -= 0.75 * bump(up, front, (-0.08, 0.18), (0.25, 0.22))
    thickness = 0.011 * out + 0.011 * relief * (out > 0)
    size = identity.ear_size
    local = np.stack([thickness, 0.046 * size * up, 0.027 * size * outline * front], axis=-1)
    angle = identity.ear_angle_rad
    width = float(loft_radii(identity, np.array(0.0))[0])
    x = np.cos(angle) * local[..., 0] + np.sin(angle) * (0.02 * size - local[..., 2])
    z = np.sin(angle) * local[..., 0] + np.cos(angle) * local[..., 2] - 0.18 * local[..., 1]
    right = np.stack([width - 0.006 + x, 0.008 + local[..., 1], -0.026 + z], axis=-1)
    canonical = np.stack([relief, up, front], axis=-1)
    left = right[:, ::-1] * np.array([-1, 1, 1])
    return [Part(EAR, right, canonical), Part(EAR, left, canonical[:, ::-1])]


def _body(identity: Identity) -> Part:
    """Neck and shoulders: a loft whose canonical coordinates are (x, y, cosine of the column angle)."""
    t = np.linspace(0, 1, 48)
    knots = np.array([0.0, 0.2, 0.36, 0.46, 0.56, 0.68, 0.8, 0.9, 1.0])
    neck, shoulder = identity.neck_width, identity.shoulder_width
    width = [0.070, 0.070, 0.074, 0.086, 0.118, 0.200, 0.280, 0.325, 0.345]
    width = PchipInterpolator(knots, [w * (neck if i < 4 else shoulder) for i, w in enumerate(width)])(t)
    height = PchipInterpolator(knots, [-0.06, -0.17, -0.222, -0.242, -0.260, -0.286, -0.318, -0.36, -0.46])(t)
    front = PchipInterpolator(knots, [0.050, 0.030, 0.018, 0.024, 0.048, 0.082, 0.106, 0.118, 0.126])(t)
    back = PchipInterpolator(knots, [-0.10, -0.10, -0.112, -0.125, -0.140, -0.155, -0.160, -0.160, -0.160])(t)
    phi = np.arange(72) / 72 * 2 * np.pi - np.pi
    cos, sin = np.cos(phi), np.sin(phi)
    x = width[:, None] * np.sign(sin) * np.abs(sin) ** 0.95
    reach = np.where(cos >= 0, front[:, None], -back[:, None]) + 0.03
    z = -0.03 + reach * np.sign(cos) * np.abs(cos) ** 0.9
    collar_bone = 0.028 * np.maximum(cos, 0) ** 2 * smoothstep(0.3, 0.6, t)[:, None]
    y = height[:, None] - collar_bone
    thick = 0.004 * smoothstep(-0.005, 0.005, neckline(identity, cos, x, y))
    position = np.stack([x + thick * sin, y + thick, z + thick * cos], axis=-1)
    return Part(BODY, position, np.stack([x, y + 0 * x, cos + 0 * x], axis=-1))


def neckline(identity: Identity, cos: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns how far inside the clothing a point of the body is; cos is that of its column angle."""
    edge = -0.246 + 0 * x
    front = smoothstep(-0.2, 0.7, cos)
    dips = (0.018, 0.060 - 0.75 * np.abs(x), 0.040 - 2.6 * x**2, -0.006)
    return edge - front * np.maximum(dips[identity.neckline], -0.006) - y


def _mouth(identity: Identity, rest: FaceRest) -> list[Part]:
    row_x, _, row_z = rest.position[:, rest.mouth_row]
    canonical_x, _, canonical_z = rest.canonical[:, rest.mouth_row]
    order = np.argsort(canonical_x + 10 * (canonical_z < 0))
    x = np.linspace(-0.86, 0.86, 40) * identity.mouth_width
    z = np.interp(x, row_x[order], row_z[order]) - 0.30 * x**2 / identity.mouth_width
    my = identity.mouth_y
    upper = _teeth(x, z - 0.010, np.linspace(my + 0.016, my - 0.0055, 10), 0.0)
    lower = _teeth(x * 0.92, z - 0.014, np.linspace(my - 0.0045, my - 0.022, 10), 1.0)
    middle = float(np.interp(0.0, x, z))
    tongue = _blob(TONGUE, (0.0, my - 0.020, middle - 0.040), (0.026, 0.013, 0.026), jaw=1.0)
    return [upper, lower, tongue]


def _teeth(x: np.ndarray, z: np.ndarray, y: np.ndarray, jaw: float) -> Part:
    """One row of teeth; canonical (x, 0..1 from gum to edge, jaw)."""
    t = np.linspace(0, 1, len(y))[:, None]
    curl = 0.003 * (2 * np.abs(t - 0.5)) ** 3
    position = np.stack([x + 0 * t, y[:, None] + 0 * x, z - curl], axis=-1)
    to_edge = t if jaw == 0 else 1 - t
    canonical = np.stack([x + 0 * t, to_edge + 0 * x, jaw + 0 * (x + t)], axis=-1)
    return Part(TEETH, position, canonical, closed=False, jaw=jaw)


def _hair(identity: Identity) -> list[Part]:
    style = HAIR_STYLES[identity.hair_style]
    if style == 'bald':
        return []
    parts = [Part(HAIR, *hair_shell(identity))]
    if style == 'bun':
        parts.append(_lock((0.0, 0.222, -0.085), (0.060, 0.050, 0.058)))
    if style == 'ponytail':
        parts.append(_lock((0.0, 0.12, -0.205), (0.035, 0.045, 0.035)))
        parts.append(_lock((0.03 * float(np.sign(identity.hair_part)), -0.03, -0.215), (0.05, 0.17, 0.04)))
    return parts


def _lock(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Part:
    """A bundle of hair; canonical coordinates as of the shell (phi, y, distance from the hairline)."""
    part = _blob(HAIR, centre, radii)
    out, up, front = np.moveaxis(part.canonical, -1, 0)
    phi = 0.6 * np.arctan2(out, front)
    return part._replace(canonical=np.stack([phi, 0.05 + 0.1 * up, np.full_like(up, 0.1)], axis=-1))


def _glasses(identity: Identity, rest: FaceRest) -> list[Part]:
    """Two rims, a bridge and two temples, all thin tubes."""
    size, space, ey = identity.glasses, identity.eye_spacing, identity.eye_height - 0.003
    depth = float(rest.eyes[0, 2]) + 0.054
    turn = np.linspace(0, 2 * np.pi, 49)
    ring_x, ring_y = (np.sign(wave) * np.abs(wave) ** 0.8 for wave in (np.cos(turn), np.sin(turn)))
    parts = []
    for side in (-1, 1):
        x = side * (space + 0.002 + 0.043 * size * ring_x)
        y = ey + 0.033 * size * ring_y
        parts.append(np.stack([x, y, depth - 0.9 * (np.abs(x) - 0.02) ** 2 / 0.1], axis=-1))
        edge = space + 0.002 + 0.043 * size
        ends = [edge, 0.008, depth - 0.05], [edge + 0.012, 0.008, depth - 0.08]
        temple = np.array([*ends, [0.157 * identity.head_width, 0.01, -0.03]]) + np.array([0, ey, 0])
        parts.append(PchipInterpolator([0, 0.5, 1], temple * [side, 1, 1])(np.linspace(0, 1, 24)))
    inner = space + 0.002 - 0.043 * size
    arch = np.linspace(-1, 1, 13)
    rise = 1 - arch**2
    parts.append(np.stack([inner * arch, ey + 0.008 + 0.006 * rise, depth + 0.004 * rise], axis=-1))
    return [_tube(path) for path in parts]


def _tube(path: np.ndarray, radius: float = 0.0028) -> Part:
    """Sweeps a circle along a path [N, 3]."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    first = np.cross(tangent, np.array([0.0, 0.0, 1.0]))
    flat = np.linalg.norm(first, axis=-1, keepdims=True) < 0.3
    first = np.where(flat, np.cross(tangent, np.array([0.0, 1.0, 0.0])), first)
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    second = np.cross(tangent, first)
    turn = np.arange(8) / 8 * 2 * np.pi
    ring = np.cos(turn)[:, None] * first[:, None] + np.sin(turn)[:, None] * second[:, None]
    return Part(GLASSES, (path[:, None] + radius * ring)[:, ::-1], ring)
