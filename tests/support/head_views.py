"""The canonical face as known cameras see it, for tests of crops and cameras."""

import numpy as np
import torch

from preprocessing.faces import canonical
from preprocessing.from_videos import cameras
from training import camera

SIZE = 512


def world_face():
    """Returns the canonical face [468, 3] where it rests in the world."""
    return cameras.SCALE * canonical.points() + cameras.OFFSET


def orbit(yaw_deg, pitch_deg):
    """Returns labels [T, 25] of cameras that look at the pivot."""
    yaw, pitch = (torch.as_tensor(np.deg2rad(a)) for a in (yaw_deg, pitch_deg))
    return camera.orbit_label(yaw, pitch).double().numpy()


def landmarks(labels, noise=0.0, seed=0):
    """Projects the face: pixels of an image of SIZE, with noise in pixels, [T, 468, 3]."""
    xy, depth = camera.project(torch.tensor(world_face()), torch.tensor(labels)[:, None])
    near = depth.mean(dim=1, keepdim=True)
    points = torch.cat([xy, camera.FOCAL * (depth - near) / near], dim=-1).numpy() * SIZE
    return points + np.random.default_rng(seed).normal(0, noise, points.shape) if noise else points


def angles_between(a, b):
    """Returns the angles in degrees between the rotations of labels [T, 25]."""
    turn = np.swapaxes(rotations(a), 1, 2) @ rotations(b)
    return np.rad2deg(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)))


def rotations(labels):
    return labels[:, :16].reshape(-1, 4, 4)[:, :3, :3]


def positions(labels):
    return labels[:, :16].reshape(-1, 4, 4)[:, :3, 3]


def second_difference(x):
    return np.abs(np.diff(x, n=2, axis=0)).mean()
