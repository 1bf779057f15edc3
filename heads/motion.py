"""Facial motion and camera paths of the procedural heads, as smooth random functions of time.

Motion is a few amounts, about 0..1, that heads/face.py turns into vertices: speech is a sum of
oscillations at the rate of syllables under an envelope with pauses, blinks are short events, gaze jumps
between targets.
"""

import dataclasses
import math

import numpy as np

from heads.features import smoothstep

MAX_YAW_RAD = math.radians(45)
MAX_PITCH_RAD = math.radians(20)
_BLINK_SEC = 0.26  # length of one blink
_CAMERA_FPS = 25.0  # frame rate at which the camera drift is sampled


@dataclasses.dataclass(frozen=True)
class Motion:
    """State of a face at one moment; all zero is a neutral face that looks ahead."""

    jaw: float = 0.0  # opening, 0..1
    smile: float = 0.0  # mouth corners up, -0.4..1
    pucker: float = 0.0  # lips rounded and forward, 0..1
    upper_lip: float = 0.0  # raised, 0..1
    lower_lip: float = 0.0  # lowered, 0..1
    brow_raise: float = 0.0  # -0.5..1
    brow_furrow: float = 0.0  # 0..1
    blink_left: float = 0.0  # closure of the eye at negative x, 0..1
    blink_right: float = 0.0  # closure of the eye at positive x, 0..1
    gaze_yaw_rad: float = 0.0  # positive = towards positive x
    gaze_pitch_rad: float = 0.0  # positive = up


def sample_motion_path(
    seed: int, num_frames: int, fps: float = 25.0, blink_rate: float = 1.0
) -> list[Motion]:
    """Samples the facial motion of a clip.

    Args:
        seed: any non-negative integer; equal seeds give equal paths.
        num_frames: frames T.
        fps: frames per second.
        blink_rate: factor on the number of blinks per second; the rest of the path does not depend on it.

    Returns:
        T states, a smooth function of time.
    """
    time_sec = np.arange(num_frames) / fps
    rng = np.random.default_rng([seed, 1])
    envelope = smoothstep(0.0, 1.0, 0.5 + 1.6 * (_waves(rng, time_sec, 0.3, 1.1) + 0.5))
    syllables = np.clip(0.45 + 0.85 * _waves(rng, time_sec, 1.2, 2.6), 0.0, 1.0)
    jaw = envelope * rng.uniform(0.75, 1.0) * syllables
    mood = rng.uniform(-0.25, 0.9) if rng.random() < 0.75 else 0.0
    smile = mood + 0.25 * _waves(rng, time_sec, 0.2, 0.9)
    pucker = envelope * np.clip(0.15 + 0.7 * _waves(rng, time_sec, 0.9, 2.4), 0.0, 1.0)
    upper = np.clip(envelope * (0.25 + 0.6 * _waves(rng, time_sec, 1.2, 2.8)), 0.0, 1.0)
    lower = np.clip(envelope * (0.25 + 0.6 * _waves(rng, time_sec, 1.2, 2.8)), 0.0, 1.0)
    brow = rng.normal(0.05, 0.25) + 0.45 * _waves(rng, time_sec, 0.3, 1.3)
    furrow = np.clip(rng.normal(0.0, 0.3) + 0.3 * _waves(rng, time_sec, 0.2, 0.8), 0.0, 1.0)
    blink = _blinks(np.random.default_rng([seed, 2]), time_sec, blink_rate)
    gaze = _gaze(np.random.default_rng([seed, 3]), time_sec)
    pucker = np.clip(pucker - 0.4 * np.clip(smile, 0, 1), 0.0, 1.0)
    smile, brow = np.clip(smile, -0.4, 1.0), np.clip(brow, -0.5, 1.0)
    states = np.stack([jaw, smile, pucker, upper, lower, brow, furrow, blink, blink, *gaze.T], axis=1)
    return [Motion(*state) for state in states.tolist()]


def sample_camera_angles(seed: int, num_frames: int, speed: float = 1.0) -> np.ndarray:
    """Samples a smooth, mostly frontal camera path: yaw and pitch [T, 2], within 45 and 20 degrees.

    `speed` is a factor on how far and fast the camera leaves its view, which does not depend on it; 0 is
    a still camera.
    """
    rng = np.random.default_rng([seed, 4])
    time_sec = np.arange(num_frames) / _CAMERA_FPS
    yaw = np.radians(np.clip(rng.normal(0.0, 18.0), -40, 40)) + speed * rng.normal(0.0, 0.25) * time_sec
    pitch = np.radians(np.clip(rng.normal(1.0, 6.5), -17, 17)) + speed * rng.normal(0.0, 0.06) * time_sec
    yaw = yaw + speed * np.radians(4.0) * _waves(rng, time_sec, 0.2, 0.8)
    pitch = pitch + speed * np.radians(2.0) * _waves(rng, time_sec, 0.2, 0.8)
    return np.stack([_fold(yaw, MAX_YAW_RAD), _fold(pitch, MAX_PITCH_RAD)], axis=1)


def _waves(rng: np.random.Generator, time_sec: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Returns a sum of three sinusoids of random rate and phase, about within -1..1."""
    rates, phases = rng.uniform(low_hz, high_hz, 3), rng.uniform(0, 2 * math.pi, 3)
    weights = np.array([0.5, 0.3, 0.2])
    return (weights * np.sin(2 * math.pi * rates * time_sec[:, None] + phases)).sum(axis=1) * 1.2


def _fold(x: np.ndarray, limit: float) -> np.ndarray:
    """Reflects values at +-limit (triangle wave), so that long drifts turn around instead of stopping."""
    return limit - np.abs((x + limit) % (4 * limit) - 2 * limit)


def _blinks(rng: np.random.Generator, time_sec: np.ndarray, rate: float) -> np.ndarray:
    """Returns eyelid closure [T]: events of 0.26 s about every 2 / rate s, closing faster than opening."""
    closure, start = np.zeros_like(time_sec), rng.uniform(-0.5, 1.5) / rate
    while start < time_sec[-1]:
        phase = np.clip((time_sec - start) / _BLINK_SEC, 0.0, 1.0)
        closure = np.maximum(closure, np.sin(math.pi * phase**0.75) ** 2)
        start += rng.uniform(0.9, 3.5) / rate
    return closure


def _gaze(rng: np.random.Generator, time_sec: np.ndarray) -> np.ndarray:
    """Returns gaze yaw and pitch [T, 2]: fixations with fast smooth moves between them."""
    gaze, start = np.tile(rng.normal(0, [0.14, 0.07]), (len(time_sec), 1)), rng.uniform(0.1, 0.8)
    current = gaze[0]
    while start < time_sec[-1]:
        target = np.clip(rng.normal(0, [0.16, 0.08]), -0.4, 0.4)
        gaze = gaze + smoothstep(0.0, 1.0, (time_sec - start) / 0.12)[:, None] * (target - current)
        current = target
        start += rng.uniform(0.35, 1.4)
    return gaze
