"""Colours and light of the procedural heads, evaluated per visible sample from canonical coordinates.

Nothing is a texture: lips, irises, brows, strands and seams are functions of the place on the surface, so
that they are crisp at every resolution and move with the surface exactly. Colours are display RGB in 0..1.
"""

from typing import NamedTuple

import numpy as np

from heads import features, parts
from heads.features import bump, eye_local, smoothstep
from heads.hair import LONG_STYLES
from heads.identity import HAIR_STYLES, Color, Identity
from heads.motion import Motion
from heads.vectors import dot, unit

_SHADOW_TINT = np.array([[0.85], [1], [1]], np.float32)  # skin in shadow keeps more red


class Samples(NamedTuple):
    """Visible surface points; N of them, all arrays float32 but `kind`; vectors have components first."""

    kind: np.ndarray  # parts.FACE, ..., [N]
    position: np.ndarray  # world, [3, N]
    normal: np.ndarray  # world, unit, [3, N]
    canonical: np.ndarray  # [3, N]
    bag: np.ndarray  # 0 on the skin, 0..1 inside the mouth, [N]
    view: np.ndarray  # unit vector to the camera, [3, N]
    lit: np.ndarray  # fraction of the key light that arrives, [N]


class Material(NamedTuple):
    """Surface colour and how it shines."""

    albedo: np.ndarray  # [3, N]
    shine: np.ndarray  # strength of the highlight, [N]
    gloss: np.ndarray  # exponent of the highlight, [N]
    normal: np.ndarray  # [3, N]


def shade(identity: Identity, motion: Motion, eyes: np.ndarray, samples: Samples) -> np.ndarray:
    """Returns the colours [3, N] of surface samples; `eyes` are the eyeball centres [2, 3]."""
    color = np.empty_like(samples.normal)
    for kind in range(parts.GLASSES + 1):
        at = np.flatnonzero(samples.kind == kind)
        if not len(at):
            continue
        part = Samples(*(field.take(at, axis=-1) for field in samples))
        if kind == parts.FACE:
            material = _face(identity, motion, eyes, part)
        elif kind == parts.HAIR:
            material = _hair(identity, part)
        elif kind == parts.BODY:
            material = _body(identity, part)
        else:
            material = _small(identity, kind, part)
        if kind == parts.TEETH:
            part = part._replace(lit=np.maximum(part.lit, 0.75))  # they scatter light that lips let through
        color[:, at] = _light(identity, material, part)
    bright = np.maximum(color - 0.75, 0.0)
    return np.clip(np.minimum(color, 0.75) + 0.25 * np.tanh(bright / 0.25), 0.0, 1.0)  # no hard clipping


def backdrop(identity: Identity, directions: np.ndarray) -> np.ndarray:
    """Returns the background colours [3, N] along unit directions [3, N]: a gradient on a far dome."""
    turn = identity.backdrop_turn_rad
    across = (directions[1] * np.cos(turn) + directions[0] * np.sin(turn)).astype(np.float32)
    t = 0.5 + 0.5 * np.tanh(4.0 * across)
    return np.clip(_mix(_rgb(identity.backdrop_low), _rgb(identity.backdrop_high), t), 0, 1)


def light_direction(identity: Identity) -> np.ndarray:
    """Returns the unit vector [3] towards the key light."""
    yaw, pitch = identity.light_yaw_rad, identity.light_pitch_rad
    return np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], np.float32)


def _light(identity: Identity, material: Material, samples: Samples) -> np.ndarray:
    """Wrapped diffuse key light, soft fill from the other side, sky and ground, a highlight and a rim."""
    normal, view = material.normal, samples.view
    key = light_direction(identity)
    wrap = _rgb((0.34, 0.22, 0.18))  # light creeps further around in red, as in skin
    lit = samples.lit * np.clip((key @ normal + wrap) / (1 + wrap), 0, 1)
    fill = np.clip(key * np.array([-1, 0.2, 0.7], np.float32) @ normal + 0.2, 0, 1.2)
    warm = identity.light_warmth * _rgb((0.05, 0.0, -0.06))
    sky = (0.80 + 0.20 * normal[1]) * _rgb((0.98, 1.0, 1.03))
    light = identity.light_key * (1.0 + warm) * lit + identity.light_ambient * sky + 0.12 * fill
    half = unit(key[:, None] + view)
    shine = material.shine * np.clip(dot(normal, half), 0, 1) ** material.gloss * samples.lit
    rim = 0.10 * (1 - np.clip(dot(normal, view), 0, 1)) ** 3
    return material.albedo * (light + rim) + shine * identity.light_key


def _rgb(color: Color) -> np.ndarray:
    """Returns a colour [3, 1]."""
    return np.array(color, np.float32)[:, None]


def _mix(low: np.ndarray, high: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Returns colours [3, N] between two, [3, N] or [3, 1], at t [N] in 0..1."""
    return low + (high - low) * t


def _noise(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    """Returns smooth noise of about -1..1 with features of about one unit."""
    a = np.sin(2.1 * u + 1.3 * v + phase) * np.sin(1.7 * v - 0.9 * u + 2 * phase)
    b = np.sin(3.9 * u - 2.2 * v + 3 * phase) * np.sin(4.3 * v + 1.9 * u - phase)
    return 0.6 * a + 0.4 * b


def _face(identity: Identity, motion: Motion, eyes: np.ndarray, samples: Samples) -> Material:
    x, y, z = samples.canonical
    albedo = _skin(identity, x, y, z)
    albedo = _facial_hair(identity, albedo, x, y, z)
    shine = np.full(len(x), 0.10, np.float32) + 0.10 * bump(x, y, (0, -0.03), (0.012, 0.03))
    gloss = np.full(len(x), 14.0, np.float32)
    strands = 0.85 + 0.3 * _noise(900 * x, 260 * y, identity.texture_phase)
    brow = features.brow_mask(identity, x, y) * (z > 0) * np.clip(strands, 0, 1)
    albedo = _mix(albedo, _rgb(identity.brow_color), 0.92 * brow)
    lip = _lip_mask(identity, x, y, samples.bag) * (z > 0)
    streak = 1 + 0.02 * np.sin(900 * x + 3 * np.sin(300 * y))
    albedo = _mix(albedo, _rgb(identity.lip_color) * streak, lip)
    crease = np.exp(-(((y - identity.mouth_y) / 0.0016) ** 2)) * (np.abs(x) < identity.mouth_width * 1.04)
    albedo = albedo * (1 - 0.5 * (crease * (z > 0)) * (samples.bag == 0))
    inner = smoothstep(0.08, 0.30, np.minimum(samples.bag, 1 - samples.bag))
    albedo = _mix(albedo, _rgb((0.16, 0.035, 0.04)), inner)
    shine = (shine + 0.16 * lip) * (1 - inner)
    return _eyes(identity, motion, eyes, samples, Material(albedo, shine, gloss + 20 * lip, samples.normal))


def _skin(identity: Identity, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Skin tone with blush, freckles, stubble and soft occlusion in the hollows of the face."""
    ax, front, phase = np.abs(x), smoothstep(0.0, 0.06, z), identity.texture_phase
    albedo = _rgb(identity.skin_color) * (1 + 0.025 * _noise(30 * x, 30 * y, phase))
    red = bump(ax, y, (0.075, -0.035), (0.026, 0.022)) + 0.6 * bump(x, y, (0, -0.04), (0.02, 0.014))
    red = identity.blush * front * (red + 0.3 * bump(x, y, (0, -0.165), (0.03, 0.02)))
    albedo = albedo * (1 - red * _rgb((-0.01, 0.13, 0.11)))
    if identity.freckles:
        spots = smoothstep(0.45, 0.75, _noise(420 * x, 420 * y, phase) * 1.3)
        where = bump(ax, y, (0.05, -0.02), (0.045, 0.025)) * front * identity.freckles
        albedo = albedo * (1 - 0.28 * (spots * where) * _rgb((0.6, 1, 1.1)))
    a, b = eye_local(identity, x, y)
    bag = (0.05 + 0.1 * identity.age) * bump(a, b, (0, -0.017), (0.022, 0.006))
    hollow = 0.10 * bump(a, b, (-0.006, 0.004), (0.026, 0.016)) + bag
    tip = -0.005 - 0.033 * identity.nose_length
    hollow += 0.30 * bump(x, y, (0, tip - 0.026), (0.022 * identity.nose_width, 0.006))
    hollow += 0.18 * bump(ax, y, (0.030 * identity.nose_width, tip - 0.010), (0.005, 0.010))
    hollow += 0.16 * bump(x, y, (0, identity.mouth_y - 0.030), (0.026, 0.006))
    fold = (0.08 + 0.14 * identity.age) * np.exp(-((features.cheek_fold(ax, y) / 0.004) ** 2))
    hollow += fold * smoothstep(-0.03, -0.06, y) * smoothstep(-0.12, -0.09, y)
    nose = identity.nose_width
    nostril = bump(ax, y, (0.0105 * nose, tip - 0.0185), (0.0052 * nose, 0.0028))
    hollow = hollow + 0.78 * smoothstep(0.35, 0.9, nostril)
    dark = np.minimum(hollow, 0.85) * front + smoothstep(-0.185, -0.205, y) * 0.25  # under the chin too
    return albedo * (1 - dark * _SHADOW_TINT)


def _beard_mask(
    identity: Identity, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where a beard and a moustache would grow, 0..1 each."""
    ax, my = np.abs(x), identity.mouth_y
    edge = -0.075 - 0.028 * smoothstep(0.02, 0.06, ax) + 0.075 * smoothstep(0.07, 0.12, ax)
    around = np.hypot(x / (identity.mouth_width * 1.12), (y - my + 0.004) / 0.026)
    beard = smoothstep(0.006, -0.008, y - edge) * smoothstep(0.95, 1.15, around) * smoothstep(-0.02, 0.03, z)
    curve = my + 0.020 - 4.5 * x**2 * (1 + 0.2 * np.sin(ax * 80))
    ends = smoothstep(identity.mouth_width * 1.1, identity.mouth_width * 0.9, ax)
    moustache = smoothstep(0.0105, 0.0065, np.abs(y - curve)) * ends
    return beard, moustache * (z > 0)


def _facial_hair(
    identity: Identity, albedo: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> np.ndarray:
    if not (identity.stubble or identity.beard or identity.moustache):
        return albedo
    beard, moustache = _beard_mask(identity, x, y, z)
    strands = 0.8 + 0.35 * _noise(700 * x, 260 * y, identity.texture_phase)
    color = 0.6 * _rgb(identity.hair_color) + 0.4 * _rgb(identity.brow_color)
    albedo = _mix(albedo, color, 0.28 * identity.stubble * np.maximum(beard, moustache))
    albedo = _mix(albedo, color * strands, 0.94 * beard * (identity.beard > 0))
    return _mix(albedo, color * strands, 0.94 * moustache * (identity.moustache > 0))


def _lip_mask(identity: Identity, x: np.ndarray, y: np.ndarray, bag: np.ndarray) -> np.ndarray:
    upper, lower = features.lip_extent(identity, x)
    d = y - identity.mouth_y
    edge = np.where(d >= 0, upper - d, lower + d)
    inside = smoothstep(-0.0012, 0.0012, edge) * (np.abs(x) < identity.mouth_width)
    return np.where(bag > 0, 1.0, inside)


def _eyes(identity: Identity, motion: Motion, eyes: np.ndarray, samples: Samples, skin: Material) -> Material:
    """Paints lashes and lid creases on the skin, and sclera, iris, pupil and highlight between the lids."""
    x, y, z = samples.canonical
    a, b = eye_local(identity, x, y)
    at = np.flatnonzero((np.hypot(a, b) < 0.04) & (z > 0))
    a, b, right = a[at], b[at], (x[at] > 0).astype(int)
    blink = np.array([motion.blink_left, motion.blink_right])[right]
    upper, lower = features.lid_curves(identity, a, blink, max(motion.smile, 0.0))
    wide = np.abs(a - 0.001) < 0.030
    albedo, shine, gloss, normal = (field.copy() for field in skin)
    lash = smoothstep(0.0012 + 0.0026 * identity.lashes, 0.0004, np.abs(b - upper - 0.0006))
    lash = lash * wide * (b >= lower - 0.001)
    lash += 0.35 * identity.lashes * smoothstep(0.0016, 0.0, np.abs(b - lower)) * wide
    over_lid = b - features.UPPER_LID * identity.eye_open * (1 - (a / 0.034) ** 2) - 0.0065
    fold = np.exp(-((over_lid / 0.0016) ** 2)) * (np.abs(a) < 0.03)
    local = albedo[:, at] * (1 - 0.20 * fold * (1 - blink))
    local = _mix(local, _rgb((0.07, 0.05, 0.05)), np.clip(lash, 0, 0.92))
    direction = unit(samples.position[:, at] - eyes.T[:, right].astype(np.float32))
    margin = np.minimum(upper - b, b - lower)
    inside = smoothstep(-0.0004, 0.0008, margin) * wide
    ball = _eyeball(identity, motion, direction) * (1 - 0.42 * smoothstep(0.0065, 0.0, upper - b))
    ball *= 1 - 0.22 * smoothstep(0.016, 0.030, np.abs(a))
    albedo[:, at] = local + (ball - local) * inside
    shine[at] = shine[at] * (1 - inside) + 0.75 * inside
    gloss[at] = np.where(inside > 0.5, 160.0, gloss[at])
    normal[:, at] = np.where(inside > 0.5, direction, normal[:, at])
    return Material(albedo, shine, gloss, normal)


def _eyeball(identity: Identity, motion: Motion, direction: np.ndarray) -> np.ndarray:
    """Returns the colours of the eyeball at unit directions [3, N] from its centre."""
    yaw, pitch = motion.gaze_yaw_rad, motion.gaze_pitch_rad
    gaze = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    across = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    up = np.cross(gaze, across)
    u, v, ahead = np.stack([across, up, gaze]).astype(np.float32) @ direction
    angle = np.arctan2(np.hypot(u, v), ahead)
    spokes = 1 + 0.16 * np.sin(17 * np.arctan2(v, u) + 3 * np.sin(40 * angle))
    tone = spokes * (1.05 - 0.45 * smoothstep(0.26, 0.37, angle)) * (1.0 - 0.5 * v / 0.36)
    sclera = 0.93 * _rgb((1, 0.975, 0.96))
    color = _mix(sclera, _rgb(identity.eye_color) * tone, smoothstep(0.385, 0.355, angle))
    return _mix(color, _rgb((0.03, 0.025, 0.03)), smoothstep(0.175, 0.150, angle))


def _hair(identity: Identity, samples: Samples) -> Material:
    """Strands run down from the crown: streaks across, a highlight along a ring (Kajiya and Kay 1989)."""
    phi, y, inside = samples.canonical
    phase, wave = identity.texture_phase, identity.hair_wave
    bend = phi + 0.06 * wave * np.sin(45 * y + phase) + 0.03 * np.sin(13 * y)
    fine = 0.5 * np.sin(149 * bend + 2 * np.sin(30 * y))
    streak = 0.5 * np.sin(61 * bend + phase) * np.sin(23 * bend + 3 * y) + fine
    streak *= smoothstep(0.236, 0.20, y)
    root = smoothstep(0.0, 0.03, inside)
    color = _rgb(identity.hair_color)
    albedo = color * ((0.82 + 0.18 * root) * (1 + 0.16 * streak))
    style = HAIR_STYLES[identity.hair_style]
    buzz = style == 'buzz'
    dense = smoothstep(-0.003, 0.007, inside + 0.003 * streak)  # single hairs at the edge
    dense = dense * (0.72 if buzz else 1.0)
    if style in LONG_STYLES:
        dense = np.maximum(dense, smoothstep(0.10, 0.06, y))  # what hangs has no skin below it
    albedo, normal = _mix(_rgb(identity.skin_color) * 0.9, albedo, dense), samples.normal
    tangent = unit(normal * normal[1] - _rgb((0.0, 1.0, 0.0)), 1e-3)
    key = light_direction(identity)
    along = dot(tangent, unit(key[:, None] + samples.view)) + 0.05 * streak
    ring = np.maximum(1 - along**2, 0) ** 22 * np.clip(key @ normal + 0.2, 0, 1)
    ring *= samples.lit * dense * (0.25 if buzz else 1.0)
    albedo = albedo + ring * (0.05 + 0.20 * color)
    dull = np.zeros(len(phi), np.float32)
    return Material(albedo, dull, dull + 8, normal)


def _body(identity: Identity, samples: Samples) -> Material:
    x, y, cos = samples.canonical
    inside = parts.neckline(identity, cos, x, y)
    shadow = smoothstep(-0.262, -0.17, y) * (0.45 + 0.25 * cos)
    skin = _rgb(identity.skin_color) * (1 - 0.55 * shadow * _SHADOW_TINT)
    bands = smoothstep(-0.25, 0.25, np.sin(y * 170)) * identity.stripes
    cloth = _mix(_rgb(identity.cloth_color), _rgb(identity.trim_color), bands)
    cloth = _mix(cloth, _rgb(identity.trim_color), smoothstep(0.0125, 0.011, inside))
    cloth = cloth * (1 + 0.03 * _noise(25 * x, 60 * y, identity.texture_phase))
    cloth = cloth * (1 - 0.25 * np.exp(-(((inside - 0.0118) / 0.0015) ** 2)))
    covered = smoothstep(-0.0008, 0.0008, inside)
    albedo = _mix(skin, cloth, covered)
    shine, gloss = (0.06 * (1 - covered)).astype(np.float32), np.full(len(x), 12.0, np.float32)
    return Material(albedo, shine, gloss, samples.normal)


def _small(identity: Identity, kind: int, samples: Samples) -> Material:
    """Ears, teeth, tongue and glasses."""
    first, second, third = samples.canonical
    ones = np.ones(len(first), np.float32)
    if kind == parts.EAR:
        tone = 1 + 0.9 * np.minimum(first, 0) + 0.08 * np.maximum(first, 0)
        albedo, shine, gloss = _rgb(identity.skin_color) * tone * _rgb((1.0, 0.93, 0.92)), 0.08, 12
    elif kind == parts.TEETH:
        u = first / identity.mouth_width * 5.2
        gap = np.exp(-(((u - np.round(u)) / 0.07) ** 2))
        light = (1 - 0.25 * gap) * (0.55 + 0.45 * smoothstep(0.0, 0.6, second))
        light = light * (1 - 0.45 * (u / 4.6) ** 2) * (1 - 0.25 * third)
        albedo, shine, gloss = _rgb((0.95, 0.93, 0.88)) * light, 0.25, 40
    elif kind == parts.TONGUE:
        albedo, shine, gloss = _rgb((0.60, 0.25, 0.25)), 0.15, 20
    else:
        albedo, shine, gloss = _rgb(identity.glasses_color), 0.5, 50
    return Material(albedo * ones, shine * ones, gloss * ones, samples.normal)
