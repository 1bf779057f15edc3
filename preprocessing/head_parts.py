"""Everything of a procedural head but the face: ears, neck and shoulders, hair, teeth and tongue, glasses.

Each part is a grid of vertices whose row direction x column direction points out of the solid. `canonical` carries the
coordinates that the colours of that part need (see preprocessing/head_appearance.py).
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from preprocessing.head_geometry import (
    BOTTOM,
    TOP,
    FaceRest,
    build_loft,
    bump,
    loft_radii,
    settle,
    smoothstep,
)
from preprocessing.head_identity import HAIR_STYLES, Identity

FACE, EAR, BODY, HAIR, TEETH, TONGUE, GLASSES = range(7)  # kinds of parts
_HAIRLINE_PHI = (0.0, 0.45, 0.8, 1.02, 1.2, 1.38, 1.62, 1.85, 2.2, np.pi)


class Part(NamedTuple):
    """One grid of vertices."""

    kind: int  # FACE, EAR, ...
    position: np.ndarray  # [H, W, 3]
    canonical: np.ndarray  # [H, W, 3]
    closed: bool = True  # columns wrap around
    jaw: float = 0.0  # share of the jaw rotation


def build_parts(identity: Identity, rest: FaceRest) -> list[Part]:
    """Builds all parts but the face."""
    parts = [*_ears(identity), _body(identity), *_mouth(identity, rest), *_hair(identity)]
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
    """Neck and shoulders: a loft whose canonical coordinates are (phi, y, share of cloth)."""
    t = np.linspace(0, 1, 64)
    knots = np.array([0.0, 0.2, 0.36, 0.46, 0.56, 0.68, 0.8, 0.9, 1.0])
    neck, shoulder = identity.neck_width, identity.shoulder_width
    width = [0.078, 0.076, 0.078, 0.090, 0.130, 0.215, 0.290, 0.330, 0.345]
    width = PchipInterpolator(knots, [w * (neck if i < 4 else shoulder) for i, w in enumerate(width)])(t)
    height = PchipInterpolator(knots, [-0.06, -0.17, -0.225, -0.245, -0.258, -0.276, -0.305, -0.35, -0.46])(t)
    front = PchipInterpolator(knots, [0.045, 0.042, 0.045, 0.056, 0.075, 0.100, 0.118, 0.126, 0.132])(t)
    back = PchipInterpolator(knots, [-0.10, -0.10, -0.108, -0.120, -0.135, -0.150, -0.158, -0.160, -0.160])(t)
    phi = np.arange(96) / 96 * 2 * np.pi - np.pi
    cos, sin = np.cos(phi), np.sin(phi)
    x = width[:, None] * np.sign(sin) * np.abs(sin) ** 0.95
    reach = np.where(cos >= 0, front[:, None], -back[:, None]) + 0.03
    z = -0.03 + reach * np.sign(cos) * np.abs(cos) ** 0.9
    y = (
        height[:, None] - 0.028 * np.maximum(cos, 0) ** 2 * smoothstep(0.3, 0.6, t)[:, None]
    )  # collar bone dips
    cloth = smoothstep(-0.002, 0.003, neckline(identity, cos, x, y))
    thick = 0.005 * cloth
    position = np.stack([x + thick * sin, y + thick, z + thick * cos], axis=-1)
    return Part(BODY, position, np.stack([x, y + 0 * x, cos + 0 * x], axis=-1))


def neckline(identity: Identity, cos: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns how far a point of the body is inside the clothing, scene units; cos is that of its column angle."""
    edge = -0.246 + 0 * x
    front = smoothstep(-0.2, 0.7, cos)
    dips = (0.018, 0.060 - 0.75 * np.abs(x), 0.040 - 2.6 * x**2, -0.006)
    return edge - front * np.maximum(dips[identity.neckline], -0.006) - y


def _mouth(identity: Identity, rest: FaceRest) -> list[Part]:
    row = rest.position[rest.mouth_row]
    order = np.argsort(rest.canonical[rest.mouth_row, :, 0] + 10 * (rest.canonical[rest.mouth_row, :, 2] < 0))
    x = np.linspace(-0.86, 0.86, 40) * identity.mouth_width
    z = np.interp(x, row[order, 0], row[order, 2]) - 0.30 * x**2 / identity.mouth_width
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
    share = t if jaw == 0 else 1 - t
    return Part(
        TEETH,
        position,
        np.stack([x + 0 * t, share + 0 * x, jaw + 0 * (x + t)], axis=-1),
        closed=False,
        jaw=jaw,
    )


def _hair(identity: Identity) -> list[Part]:
    style = HAIR_STYLES[identity.hair_style]
    if style == 'bald':
        return []
    parts = [_cap(identity, style)]
    if style in ('bob', 'long'):
        parts.append(_curtain(identity, -0.165 if style == 'bob' else identity.hair_length))
    if style == 'bun':
        parts.append(_blob(HAIR, (0.0, 0.212, -0.115), (0.058, 0.052, 0.055)))
    if style == 'ponytail':
        parts += [
            _blob(HAIR, (0.0, 0.12, -0.20), (0.035, 0.045, 0.035)),
            _blob(HAIR, (0.02 * np.sign(identity.hair_part), 0.0, -0.22), (0.045, 0.15, 0.04)),
        ]
    return parts


def hairline(identity: Identity, style: str, phi: np.ndarray) -> np.ndarray:
    """Returns the canonical height of the edge of the hair at column angle phi."""
    top = identity.hairline
    temple = {'buzz': -0.005, 'quiff': -0.008, 'afro': 0.0, 'bun': 0.004, 'ponytail': 0.004}.get(style, 0.0)
    burns = {'bun': 0.035, 'ponytail': 0.035, 'afro': 0.01, 'bob': -0.02, 'long': -0.02}.get(style, 0.0)
    edge = [
        top,
        top - 0.004,
        top - 0.024 + temple,
        0.088,
        0.040 + burns,
        -0.006 + burns,
        0.046,
        0.03,
        -0.085,
        -0.115,
    ]
    line = PchipInterpolator(_HAIRLINE_PHI, edge)(np.abs(phi))
    front = smoothstep(1.0, 0.6, np.abs(phi))
    if style in ('fringe', 'bob'):
        low = (
            identity.eye_height
            + identity.brow_height
            + 0.020
            + 0.004 * np.sin(9 * phi + identity.texture_phase)
        )
        line = line + (low - line) * front
    if style in ('side', 'long'):
        part = identity.hair_part
        sweep = 0.030 * np.tanh(3.0 * (np.sign(part) * phi - np.abs(part) * 0.35)) - 0.010
        line = line + sweep * smoothstep(1.15, 0.5, np.abs(phi)) * -1 - 0.004 * front
    return line


def _cap(identity: Identity, style: str) -> Part:
    """Hair on the skull: the loft pushed out above the hairline and pulled under the skin below it."""
    heights = TOP - (TOP - BOTTOM) * 0.5 * (1 - np.cos(np.linspace(0.02, 2.45, 84)))
    phi = np.arange(144) / 144 * 2 * np.pi - np.pi
    loft = build_loft(identity, heights, phi).position
    x, y, z = np.moveaxis(loft, -1, 0)
    inside = y - hairline(identity, style, phi)
    grow = smoothstep(-0.006, 0.034, inside)
    thickness = _volume(identity, style, phi, y) * identity.hair_volume
    lumps = _lumps(identity, style, phi, y)
    push = thickness * np.sqrt(grow) * (1 + lumps) - 0.012 * smoothstep(0.004, -0.008, inside)
    radial = loft - np.array([0.0, 0.03, -0.01]) * np.array([0, 1, 1])
    radial /= np.linalg.norm(radial, axis=-1, keepdims=True)
    canonical = np.stack([phi + 0 * y, y, np.clip(inside, -0.05, 0.2)], axis=-1)
    return Part(HAIR, settle(identity, loft) + push[..., None] * radial, canonical)


def _volume(identity: Identity, style: str, phi: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the thickness of the hair by place, scene units."""
    top = smoothstep(0.10, 0.21, y)
    front = np.maximum(np.cos(phi), 0.0)
    part = np.sign(identity.hair_part) * np.sin(phi)
    base, crown = {
        'buzz': (0.005, 0.006),
        'short': (0.010, 0.022),
        'quiff': (0.007, 0.026),
        'side': (0.009, 0.026),
        'fringe': (0.016, 0.024),
        'curly': (0.024, 0.034),
        'afro': (0.058, 0.050),
        'bob': (0.020, 0.022),
        'long': (0.018, 0.022),
        'bun': (0.010, 0.012),
        'ponytail': (0.010, 0.013),
    }[style]
    volume = base + (crown - base) * top
    if style == 'quiff':
        volume = volume + 0.026 * front**2 * smoothstep(0.12, 0.19, y)
    if style == 'side':
        volume = volume + 0.012 * top * part
    if style == 'long':
        volume = volume - 0.010 * np.exp(-(((part - np.abs(identity.hair_part) * 0.5) / 0.10) ** 2)) * top * (
            front > 0
        )
    return volume


def _lumps(identity: Identity, style: str, phi: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns relative changes of the thickness: locks and curls."""
    p, wave = identity.texture_phase, identity.hair_wave
    if style in ('curly', 'afro'):
        rate = 9 if style == 'curly' else 13
        bumps = np.sin(rate * phi + 3 * np.sin(40 * y + p)) * np.sin(75 * y + 2 * np.sin(5 * phi + p))
        return (0.30 if style == 'curly' else 0.10) * bumps
    locks = np.sin(23 * phi + 9 * y + p) * 0.5 + np.sin(41 * phi - 14 * y + 2 * p) * 0.3
    return (0.08 + 0.10 * wave) * locks


def _curtain(identity: Identity, low: float) -> Part:
    """Long hair: a crescent around back and sides, from the temples down; canonical (phi, y, 0.1)."""
    t = np.linspace(0, 1, 56)
    y = 0.15 + (low - 0.15) * t
    ring = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    swing = np.sin(
        np.pi / 2 * np.clip(np.cos(ring) * 1.35, -1, 1)
    )  # -1 inner side .. 1 outer side, rounded ends
    along = np.arcsin(np.clip(np.sin(ring), -1, 1)) / (
        np.pi / 2
    )  # -1..1 from one end of the crescent to the other
    width, _, back = loft_radii(identity, np.maximum(y, -0.02))
    gap = 1.12 + 0.22 * smoothstep(-0.02, -0.25, y)  # angle between the face and the edge of the hair
    psi = along[None] * (np.pi - gap[:, None])  # 0 = back
    wave = 0.008 * identity.hair_wave * np.sin(30 * y + identity.texture_phase)[:, None]
    locks = 0.004 * np.sin(17 * psi + 6 * y[:, None]) * (0.4 + identity.hair_wave)
    thick = 0.017 * identity.hair_volume * smoothstep(1.02, 0.55, t)[:, None] + 0.002
    outer = (
        0.010 + thick * (swing[None] + 1) + wave + locks * (swing > 0) + 0.012 * np.sin(np.pi * t)[:, None]
    )
    middle = -0.055
    x = (width[:, None] + outer) * np.sin(psi)
    z = middle - (np.where(np.cos(psi) > 0, middle - back[:, None], 0.11) + outer) * np.cos(psi)
    position = settle(identity, np.stack([x, y[:, None] + 0 * x, z], axis=-1))
    position[..., 1] = y[:, None]
    canonical = np.stack([np.pi - psi, y[:, None] + 0 * x, 0.1 + 0 * x], axis=-1)
    return Part(HAIR, position[:, ::-1], canonical[:, ::-1])


def _glasses(identity: Identity, rest: FaceRest) -> list[Part]:
    """Two rims, a bridge and two temples, all thin tubes."""
    size, space, ey = identity.glasses, identity.eye_spacing, identity.eye_height - 0.003
    depth = float(rest.eyes[0, 2]) + 0.054
    turn = np.linspace(0, 2 * np.pi, 49)
    square = 0.8
    ring_x = 0.043 * size * np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** square
    ring_y = 0.033 * size * np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** square
    parts = []
    for side in (-1, 1):
        x = side * (space + 0.002 + ring_x)
        parts.append(np.stack([x, ey + ring_y, depth - 0.9 * (np.abs(x) - 0.02) ** 2 / 0.1], axis=-1))
        edge = space + 0.002 + 0.043 * size
        temple = [
            [edge, 0.008, depth - 0.05],
            [edge + 0.012, 0.008, depth - 0.08],
            [0.157 * identity.head_width, 0.01, -0.03],
        ]
        temple = np.array(temple) + np.array([0, ey, 0])
        parts.append(_resample(temple * np.array([side, 1, 1]), 24))
    inner = space + 0.002 - 0.043 * size
    arch = np.linspace(-1, 1, 13)
    parts.append(
        np.stack([inner * arch, ey + 0.008 + 0.006 * (1 - arch**2), depth + 0.004 * (1 - arch**2)], axis=-1)
    )
    return [_tube(path) for path in parts]


def _resample(points: np.ndarray, count: int) -> np.ndarray:
    at = np.linspace(0, 1, len(points))
    return PchipInterpolator(at, points)(np.linspace(0, 1, count))


def _tube(path: np.ndarray, radius: float = 0.0028) -> Part:
    """Sweeps a circle along a path [N, 3]."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    helper = np.array([0.0, 1.0, 0.02])
    helper = np.where(np.abs(tangent @ helper)[:, None] > 0.98, np.array([0.0, 0.0, 1.0]), helper)
    first = np.cross(tangent, np.array([0.0, 0.0, 1.0]) + 0.001 * helper)
    flat = np.linalg.norm(first, axis=-1, keepdims=True) < 0.3
    first = np.where(flat, np.cross(tangent, np.array([0.0, 1.0, 0.0])), first)
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    second = np.cross(tangent, first)
    turn = np.arange(8) / 8 * 2 * np.pi
    ring = np.cos(turn)[:, None] * first[:, None] + np.sin(turn)[:, None] * second[:, None]
    return Part(GLASSES, (path[:, None] + radius * ring)[:, ::-1], np.broadcast_to(ring, ring.shape).copy())
