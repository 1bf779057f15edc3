"""Hair of the procedural heads: one closed shell over the skull that hangs down when it is long.

The shell is the loft of the skull pushed out where hair grows and pulled under the skin elsewhere, so that
the hairline is where it meets the face. Canonical coordinates are (phi, y, inside): column angle, height
before bending, and distance from the hairline.
"""

import numpy as np
from scipy.interpolate import PchipInterpolator

from heads.face import BOTTOM, TOP, build_loft, settle
from heads.features import smoothstep
from heads.identity import HAIR_STYLES, Identity

LONG_STYLES = ('bob', 'long')  # cover the ears
_HAIRLINE_PHI = (0.0, 0.4, 0.66, 0.86, 1.02, 1.16, 1.28, 1.42, 1.62, 1.85, 2.2, np.pi)
_HANG_FROM = 0.015  # height below which long hair no longer follows the skull
_SIDES_AND_TOP = {  # thickness in scene units
    'buzz': (0.005, 0.007),
    'short': (0.008, 0.026),
    'quiff': (0.006, 0.026),
    'side': (0.009, 0.026),
    'fringe': (0.016, 0.027),
    'curly': (0.026, 0.036),
    'afro': (0.060, 0.048),
    'bob': (0.024, 0.024),
    'long': (0.022, 0.024),
    'bun': (0.010, 0.015),
    'ponytail': (0.010, 0.016),
}


def hair_shell(identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and canonical coordinates [H, W, 3] of the shell; the style must not be bald."""
    style = HAIR_STYLES[identity.hair_style]
    hangs = style in LONG_STYLES
    y, phi = _heights(identity, style), np.arange(128) / 128 * 2 * np.pi - np.pi
    loft = build_loft(identity, np.maximum(y, _HANG_FROM) if hangs else y, phi)
    y = y[:, None]
    inside = y - _hairline(identity, style, phi)
    if hangs:
        edge = 1.10 + 0.12 * smoothstep(0.05, -0.10, y) + 0.10 * identity.hair_wave * np.sin(22 * y + 1)
        inside = np.maximum(inside, np.minimum((np.abs(phi) - edge) * 0.12, 0.035))
    steep = 0.018 if style in ('fringe', 'bob') else 0.050
    grow = smoothstep(-0.004, steep, inside)
    push = _volume(identity, style, phi, y) * identity.hair_volume * grow**0.6
    push = push * (1 + _lumps(identity, style, phi, y)) - 0.010 * smoothstep(0.003, -0.008, inside)
    push = push - 0.08 * smoothstep(-0.015, -0.05, inside)  # well behind eyes and mouth
    radial = loft - np.array([0.0, 0.03, -0.01])
    radial[..., 1] *= loft[..., 1] > 0.03  # sideways below the widest part of the skull
    radial /= np.linalg.norm(radial, axis=-1, keepdims=True)
    position = settle(identity, loft) + push[..., None] * radial
    if hangs:
        position = _hang(identity, position, inside, y)
    canonical = np.stack([phi + 0 * y, y + 0 * phi, np.clip(inside, -0.05, 0.2) + 0 * y], axis=-1)
    return position, canonical


def _heights(identity: Identity, style: str) -> np.ndarray:
    """Returns the row heights, from the crown down to the ends of the hair."""
    crown = TOP - (TOP - BOTTOM) * 0.5 * (1 - np.cos(np.linspace(0.03, 1.5, 36)))
    if style not in LONG_STYLES:
        return np.concatenate([crown, np.linspace(crown[-1], -0.135, 30)[1:]])
    low = -0.150 - 0.10 * (-0.2 - identity.hair_length) if style == 'bob' else identity.hair_length
    ends = np.full(5, low) - 0.004 * np.arange(5)
    return np.concatenate([crown, np.linspace(crown[-1], low, 44)[1:], ends])


def _hang(identity: Identity, position: np.ndarray, inside: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lets the lower rows hang, opens the shell in front of the face, and closes its lower end."""
    falling = smoothstep(_HANG_FROM, -0.25, y)
    hidden = smoothstep(0.0, -0.012, inside) * smoothstep(0.075, 0.0, y)
    ends = np.zeros_like(y)
    ends[-5:, 0] = [0.0, 0.10, 0.32, 0.60, 0.85]
    axis = np.array([0.0, 0.0, -0.03])
    spread = 1 - 0.10 * falling * (1 - identity.hair_wave)
    scale = spread * (1 - 0.88 * hidden) * (1 - ends)
    offset = (position - axis) * np.array([1, 0, 1])
    hung = axis + offset * scale[..., None]
    hung[..., 1] = position[..., 1] + np.minimum(y - _HANG_FROM, 0.0)
    return hung


def _hairline(identity: Identity, style: str, phi: np.ndarray) -> np.ndarray:
    """Returns the canonical height of the edge of the hair at column angle phi."""
    top = identity.hairline
    recede = {'buzz': 0.010, 'short': 0.008, 'quiff': 0.010, 'side': 0.006, 'afro': -0.004}.get(style, 0.0)
    burns = {'bun': 0.040, 'ponytail': 0.040, 'afro': 0.015, 'fringe': 0.01}.get(style, 0.0)
    front = [top, top + 0.3 * recede - 0.003, top - 0.014 + recede, top - 0.042 + recede]
    edge = [*front, 0.108, 0.072, 0.020 + burns, burns, 0.052, 0.035, -0.075, -0.105]
    line = PchipInterpolator(_HAIRLINE_PHI, edge)(np.abs(phi))
    if style in ('fringe', 'bob'):
        locks = 0.0045 * np.sin(11 * phi + identity.texture_phase) + 0.003 * np.sin(23 * phi)
        low = identity.eye_height + identity.brow_height + 0.019 + locks
        low = low + 0.006 * identity.hair_part * np.sin(phi)
        line = line + (low - line) * smoothstep(1.02, 0.72, np.abs(phi))
    if style in ('side', 'long'):
        across = np.sign(identity.hair_part) * phi + 0.25 * np.abs(identity.hair_part)  # 0 at the parting
        sweep = 0.045 * smoothstep(0.1, -0.75, across) + 0.020 * smoothstep(0.0, 0.6, across)
        line = line - sweep * smoothstep(1.15, 0.8, np.abs(phi)) + 0.008
    return line + 0.0016 * np.sin(37 * phi + identity.texture_phase) * np.sin(13 * phi)


def _volume(identity: Identity, style: str, phi: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the thickness of the hair by place, scene units."""
    top = smoothstep(0.09, 0.20, y)
    ahead = np.maximum(np.cos(phi), 0.0)
    across = np.sign(identity.hair_part) * np.sin(phi)
    sides, crown = _SIDES_AND_TOP[style]
    volume = sides + (crown - sides) * top
    if style == 'quiff':
        volume = volume + 0.034 * ahead**3 * smoothstep(0.13, 0.18, y) * smoothstep(0.236, 0.20, y)
    if style == 'short':
        volume = volume + 0.008 * ahead * smoothstep(0.12, 0.17, y) * (1 + 0.5 * across)
    if style == 'side':
        volume = volume + (0.014 * across + 0.008) * smoothstep(0.10, 0.17, y)
    if style in ('long', 'side'):
        parting = np.exp(-(((across + 0.25 * np.abs(identity.hair_part)) / 0.10) ** 2))
        volume = volume * (1 - 0.6 * parting * top * (np.cos(phi) > 0))
    if style in LONG_STYLES:
        volume = volume + 0.008 * smoothstep(0.0, -0.12, y) * (1 + 0.6 * np.sin(30 * y) * identity.hair_wave)
    return volume


def _lumps(identity: Identity, style: str, phi: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns relative changes of the thickness: locks and curls, none at the crown where columns meet."""
    p, wave, calm = identity.texture_phase, identity.hair_wave, smoothstep(0.236, 0.20, y)
    if style in ('curly', 'afro'):
        rate, height = (9, 0.30) if style == 'curly' else (15, 0.07)
        rows = np.sin(85 * y + 2.2 * np.sin(5 * phi + p)) if style == 'curly' else np.sin(120 * y + 2 * phi)
        return height * calm * np.sin(rate * phi + 2.5 * np.sin(38 * y + p)) * rows
    slant = phi + 3.0 * identity.hair_part * y * (style in ('side', 'quiff', 'short'))
    locks = 0.5 * np.sin(17 * slant + 9 * y + p) + 0.35 * np.sin(31 * slant - 14 * y + 2 * p)
    return (0.07 + 0.12 * wave) * calm * locks
