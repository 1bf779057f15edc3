"""Random identities of the procedural heads: every number that distinguishes one person from another.

Lengths are scene units (head height about 0.44), colours are RGB in 0..1, angles radians. Skin and hair
colours are random mixtures of plausible tones, shapes vary normally around an average face.
"""

import dataclasses
from typing import Any

import numpy as np

Color = tuple[float, float, float]


def _palette(codes: str) -> np.ndarray:
    """Returns the colours [N, 3] of hexadecimal codes with spaces between them."""
    return np.array([list(bytes.fromhex(code)) for code in codes.split()]) / 255


def _trait(default: float, *normal: float, lean: float = 0.0) -> Any:
    """Makes a field of Identity with a normal distribution.

    Args:
        default: the value of the average person.
        normal: mean, standard deviation, least and greatest value.
        lean: shift of the mean from soft (-) to rugged (+) people.
    """
    return dataclasses.field(default=default, metadata={'normal': normal, 'lean': lean})


HAIR_STYLES = ('bald', 'buzz', 'short', 'quiff', 'side', 'fringe')
HAIR_STYLES += ('curly', 'afro', 'bob', 'long', 'bun', 'ponytail')
NECKLINES = ('crew', 'vee', 'scoop', 'collar')
_SKIN = _palette('f7d9c4 f2c6a5 eab68c d99e70 c68863 a96a44 8a5433 6b3f28 4f2d1e')
_HAIR = _palette('17120f 2a1b14 47301f 6b4426 8f5f33 b98a4f e0be82 9a3f1e 8a8a8c d9d7d2')
_DYED = _palette('b8457a 3c6fae 5a3f8f 2f7f76')
_EYES = _palette('3a2415 54341b 7a5226 6d7a3a 4d7a5a 4f7ea6 7fa3bd 68747f')
_CLOTH = _palette(
    'c8423b 2f5fa8 2c8a63 e0a52e 6c4a8c d9d4c7 33363d 7c8a97 c76b98 3b7f8c 8a5a3a 222e4d a9b665 e67e4b f0efe9'
)
_BACKDROP = _palette('9fb7c9 c9b79f a7c2a0 c7a7b4 8d99ae d8d3c8 6f7f8c b8a9c9 e3c9a8 87a8a4 55606e c4d0d6')
_GLASSES = _palette('1b1b1e 5a3219 8f8f94 7a1f2b 203a5c')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """One person: face shape, colours, hair, clothing, background and light."""

    # skull, jaw, ears and body: factors of the average, or offsets in scene units; drawn in this order
    head_width: float = _trait(1.0, 1.0, 0.055, 0.88, 1.13)
    head_depth: float = _trait(1.0, 1.0, 0.03, 0.94, 1.06)
    skull_height: float = _trait(1.0, 1.0, 0.03, 0.94, 1.05)
    jaw_width: float = _trait(1.0, 1.0, 0.07, 0.82, 1.18, lean=0.05)
    jaw_square: float = _trait(0.0, 0.35, 0.25, 0.0, 1.0, lean=0.3)  # 0 = oval, 1 = square
    chin_length: float = _trait(0.0, 0.0, 0.008, -0.016, 0.015, lean=0.003)
    chin_forward: float = _trait(0.0, 0.0, 0.006, -0.012, 0.012, lean=0.002)
    chin_width: float = _trait(0.04, 0.036, 0.006, 0.022, 0.055, lean=0.006)
    cheekbone: float = _trait(0.009, 0.010, 0.005, 0.0, 0.022)
    cheek_fullness: float = _trait(0.0, 0.0, 0.007, -0.012, 0.016)
    brow_ridge: float = _trait(0.005, 0.005, 0.003, 0.0, 0.014, lean=0.003)
    ear_size: float = _trait(1.0, 1.0, 0.12, 0.75, 1.3)
    ear_angle_rad: float = _trait(0.4, 0.42, 0.14, 0.15, 0.8)
    neck_width: float = _trait(1.0, 1.0, 0.05, 0.85, 1.2, lean=0.06)
    shoulder_width: float = _trait(1.0, 1.0, 0.06, 0.85, 1.18, lean=0.05)
    # eyes
    eye_spacing: float = _trait(0.058, 0.0610, 0.0032, 0.055, 0.068)  # half the distance between the pupils
    eye_height: float = _trait(0.03, 0.03, 0.005, 0.02, 0.04)
    eye_size: float = _trait(1.0, 1.15, 0.09, 0.94, 1.34, lean=-0.05)
    eye_open: float = _trait(1.0, 1.0, 0.14, 0.68, 1.3)
    eye_tilt: float = _trait(0.05, 0.05, 0.08, -0.13, 0.22)  # outer corner up, slope
    eye_depth: float = _trait(0.0, 0.0, 0.003, -0.005, 0.008, lean=0.002)
    lashes: float = _trait(0.5, 0.55, 0.15, 0.1, 1.0, lean=-0.35)
    # brows
    brow_height: float = _trait(0.045, 0.047, 0.004, 0.038, 0.057, lean=-0.003)  # above the eyes
    brow_arch: float = _trait(0.006, 0.006, 0.004, -0.002, 0.015, lean=-0.002)
    brow_tilt: float = _trait(0.0, 0.0, 0.09, -0.2, 0.2)
    brow_thickness: float = _trait(0.007, 0.0068, 0.0018, 0.0035, 0.0115, lean=0.0012)
    # nose
    nose_length: float = _trait(1.0, 1.0, 0.09, 0.78, 1.2)
    nose_width: float = _trait(1.0, 1.0, 0.16, 0.72, 1.5, lean=0.05)
    nose_protrusion: float = _trait(1.0, 1.0, 0.14, 0.68, 1.35)
    nose_bridge: float = _trait(1.0, 1.0, 0.3, 0.35, 1.7, lean=0.1)
    nose_tip_up: float = _trait(0.0, 0.0, 0.004, -0.008, 0.009, lean=-0.001)
    # mouth
    mouth_y: float = _trait(-0.098, -0.099, 0.004, -0.108, -0.091)
    mouth_width: float = _trait(0.05, 0.051, 0.006, 0.038, 0.064)
    upper_lip: float = _trait(0.012, 0.0115, 0.003, 0.006, 0.018, lean=-0.0015)
    lower_lip: float = _trait(0.016, 0.0155, 0.003, 0.009, 0.023, lean=-0.0015)
    lip_fullness: float = _trait(1.0, 1.0, 0.25, 0.5, 1.6, lean=-0.1)
    cupid: float = 0.3
    # colours of the face
    eye_color: Color = (0.3, 0.2, 0.1)
    brow_color: Color = (0.2, 0.15, 0.1)
    lip_color: Color = (0.75, 0.4, 0.38)
    skin_color: Color = (0.9, 0.72, 0.6)
    blush: float = 0.4
    freckles: float = 0.0
    stubble: float = 0.0
    beard: float = 0.0  # 0 = none, else thickness factor
    moustache: float = 0.0
    age: float = 0.0  # depth of folds
    # hair
    hair_style: int = 2  # index of HAIR_STYLES
    hair_color: Color = (0.2, 0.15, 0.1)
    hair_volume: float = 1.0
    hair_part: float = 0.3  # -1..1, side of the parting
    hair_wave: float = 0.3
    hairline: float = 0.155  # height at the middle of the forehead
    hair_length: float = -0.26  # height of the ends of long hair
    # accessories and clothing
    glasses: float = 0.0  # 0 = none, else size of the lenses
    glasses_color: Color = (0.1, 0.1, 0.1)
    neckline: int = 0  # index of NECKLINES
    cloth_color: Color = (0.3, 0.4, 0.6)
    trim_color: Color = (0.2, 0.3, 0.5)
    stripes: float = 0.0
    # background and light
    backdrop_low: Color = (0.6, 0.65, 0.7)
    backdrop_high: Color = (0.75, 0.78, 0.8)
    backdrop_turn_rad: float = 0.0
    light_yaw_rad: float = 0.5
    light_pitch_rad: float = 0.6
    light_key: float = 0.7
    light_ambient: float = 0.5
    light_warmth: float = 0.0
    texture_phase: float = 0.0  # shifts the procedural noise of skin and hair


def sample_identity(seed: int) -> Identity:
    """Samples a person; equal seeds give equal people."""
    rng = np.random.default_rng([seed, 0])
    # from soft (-) to rugged (+): correlates shape, hair and beard
    lean = float(np.clip(rng.normal(0.0, 0.75), -1.5, 1.5))
    age = float(rng.beta(1.2, 2.5))
    tone = float(rng.uniform(0, len(_SKIN) - 1))  # fair to dark
    dark = tone > 4.5
    return Identity(
        **_sample_traits(rng, lean),
        cupid=float(rng.uniform(0.05, 0.55)),
        **_sample_colors(rng, lean, age, tone),
        **_sample_hair(rng, lean, age, dark),
        **_sample_scene(rng),
    )


def _sample_traits(rng: np.random.Generator, lean: float) -> dict[str, float]:
    traits = {}
    for field in dataclasses.fields(Identity):
        if field.metadata:
            mean, *others = field.metadata['normal']
            traits[field.name] = _normal(rng, mean + field.metadata['lean'] * lean, *others)
    return traits


def _sample_colors(rng: np.random.Generator, lean: float, age: float, tone: float) -> dict[str, Any]:
    skin = _mix(_SKIN, tone) * rng.normal(1.0, 0.02, 3)
    lipstick = lean < 0.1 and rng.random() < 0.5
    natural = skin * np.array([0.92, 0.66, 0.66])
    stick = np.array([rng.uniform(0.55, 0.85), rng.uniform(0.12, 0.35), rng.uniform(0.2, 0.42)])
    lip = natural + (stick - natural) * (rng.uniform(0.35, 0.8) if lipstick else 0.06)
    bearded = lean > 0.1 and rng.random() < 0.42
    return {
        'skin_color': _color(skin),
        'lip_color': _color(lip),
        'eye_color': _color(_EYES[rng.integers(3 if tone > 5 else len(_EYES))] * rng.normal(1, 0.08)),
        'blush': float(rng.uniform(0.15, 0.9)),
        'freckles': float(rng.uniform(0.4, 1.0)) if tone < 3 and rng.random() < 0.3 else 0.0,
        'stubble': float(rng.uniform(0.2, 0.8)) if lean > 0 and not bearded else 0.0,
        'beard': float(rng.uniform(0.5, 1.3)) if bearded and rng.random() < 0.75 else 0.0,
        'moustache': float(rng.uniform(0.6, 1.2)) if bearded else 0.0,
        'age': age,
    }


def _sample_hair(rng: np.random.Generator, lean: float, age: float, dark: bool) -> dict[str, Any]:
    weights = np.array([0.5, 0.7, 1.2, 1.0, 1.2, 1.0, 1.0, 0.8, 1.1, 1.5, 0.8, 0.7])
    reach = np.array([1.4] * 3 + [0.5] * 5 + [1.4] * 4)
    weights *= np.exp(np.linspace(0.9, -0.9, len(weights)) * lean * reach)
    style = int(rng.choice(len(HAIR_STYLES), p=weights / weights.sum()))
    if rng.random() < 0.06:
        color = _DYED[rng.integers(len(_DYED))]
    else:
        grey = rng.random() < age**2
        tones, last = (_HAIR[8:], 1) if grey else (_HAIR[:8], 2.6 if dark else 7)
        color = _mix(tones, rng.uniform(0, last))
    return {
        'hair_style': style,
        'hair_color': _color(color * rng.normal(1, 0.05)),
        'brow_color': _color(np.clip(color * 0.62 + 0.02, 0, 0.5)),
        'hair_volume': _normal(rng, 1.0, 0.2, 0.65, 1.45),
        'hair_part': float(rng.choice([-1, 1]) * rng.uniform(0.2, 0.8)),
        'hair_wave': float(rng.uniform(0, 1)),
        'hairline': _normal(rng, 0.163 + 0.006 * max(lean, 0) + 0.008 * age, 0.008, 0.145, 0.188),
        'hair_length': float(rng.uniform(-0.32, -0.2)),
        'glasses': float(rng.uniform(0.85, 1.2)) if rng.random() < 0.2 else 0.0,
        'glasses_color': _color(_GLASSES[rng.integers(len(_GLASSES))]),
    }


def _sample_scene(rng: np.random.Generator) -> dict[str, Any]:
    cloth = _CLOTH[rng.integers(len(_CLOTH))] * rng.normal(1, 0.05)
    trim = cloth * 0.72 if rng.random() < 0.5 else _CLOTH[rng.integers(len(_CLOTH))]
    backdrop = _BACKDROP[rng.integers(len(_BACKDROP))] * rng.uniform(0.6, 1.08)
    return {
        'neckline': int(rng.integers(len(NECKLINES))),
        'cloth_color': _color(cloth),
        'trim_color': _color(trim),
        'stripes': float(rng.uniform(0.5, 1.0)) if rng.random() < 0.25 else 0.0,
        'backdrop_low': _color(backdrop * rng.uniform(0.62, 0.85)),
        'backdrop_high': _color(backdrop * rng.uniform(0.98, 1.15)),
        'backdrop_turn_rad': float(rng.uniform(-1.2, 1.2)),
        'light_yaw_rad': float(rng.choice([-1, 1]) * rng.uniform(0.15, 1.0)),
        'light_pitch_rad': float(rng.uniform(0.25, 0.95)),
        'light_key': float(rng.uniform(0.5, 0.78)),
        'light_ambient': float(rng.uniform(0.46, 0.64)),
        'light_warmth': float(rng.uniform(-1, 1)),
        'texture_phase': float(rng.uniform(0, 100)),
    }


def _normal(rng: np.random.Generator, mean: float, deviation: float, low: float, high: float) -> float:
    return float(np.clip(rng.normal(mean, deviation), low, high))


def _mix(palette: np.ndarray, position: float) -> np.ndarray:
    """Interpolates a palette [N, 3] at a fractional index."""
    index = min(int(position), len(palette) - 2)
    return palette[index] + (palette[index + 1] - palette[index]) * (position - index)


def _color(rgb: np.ndarray) -> Color:
    red, green, blue = np.clip(rgb, 0.0, 1.0)
    return float(red), float(green), float(blue)
