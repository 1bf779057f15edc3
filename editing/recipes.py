"""How a person is found: the presets, and the stages that they stand for. Figures: docs/editing.md."""

import dataclasses
from typing import Literal

from editing.fit import Fit, MotionModel, Stage, starts_moving
from editing.inputs import Source
from editing.objective import Objective, Weights
from editing.search import Found, Session, search
from editing.start import first_code
from metrics.detectors.vgg16 import Perceptual
from torch_utils.misc import keep_freed_memory
from training.networks.contract import RadianceGenerator

Space = Literal['w', 'w+']

_CAMERA_RATE = 2e-3  # radians a step
_LAYER_RATE = 0.01  # slow: faster ones bend the head
_MOTION_RATE, _JOINT_CODE_RATE = 0.1, 0.03  # when motion is sought, with the code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a search does."""

    space: Space = 'w'  # one w for all layers, or one for each
    tries: int = 64  # codes of which the search begins at the nearest; 0 = at the mean of all codes
    steps: int = 300  # of the code, on the first frame
    code_rate: float = 0.05
    layer_steps: int = 100  # of what each layer adds to the code, on the first frame; 0 = nothing
    refine_camera: bool = True
    motion: MotionModel = 'zm+'  # of a video
    motion_steps: int = 60  # of code, motion and cameras together, on a video
    smooth: float = 1e-2  # weight of restless motion
    neutral: int | None = None  # frame that is defined as without expression
    batch: int = 8  # frames at a time
    tune_steps: int = 150  # of the network; 0 = it stays as it is
    tune_rate: float = 1e-3
    hold: float = 1.0  # weight of the side views of the person before tuning
    mirror: float = 0.3  # weight of the mirrored frames, in the code and in tuning
    weights: Weights = Weights()


PRESETS = {
    'standard': Recipe(),
    'fast': Recipe(steps=100, layer_steps=50, motion_steps=40, tune_steps=50),
    'best': Recipe(steps=500, layer_steps=200, motion_steps=150, tune_steps=250),
    # PV3D 4.4: W+, network frozen, cameras as given; it states no rates and no losses
    'paper': Recipe(space='w+', tries=0, layer_steps=0, refine_camera=False, tune_steps=0, mirror=0.0),
}


def stages(recipe: Recipe, frames: int, moving: bool) -> list[Stage]:
    """Lists the stages of a search.

    Args:
        recipe: see Recipe.
        frames: of the source.
        moving: whether one frame has a motion of its own (`starts_moving`).
    """
    camera = _CAMERA_RATE if recipe.refine_camera else 0.0
    sought = _MOTION_RATE if recipe.motion != 'none' else 0.0
    first = sought if moving and recipe.motion == 'zm+' else 0.0
    single = {'camera': camera, 'mirror': recipe.mirror, 'first_only': True}
    found = [Stage(name='code', steps=recipe.steps, code=recipe.code_rate, motion=first, **single)]
    if recipe.layer_steps and recipe.space == 'w':
        found.append(Stage(name='layers', steps=recipe.layer_steps, layers=_LAYER_RATE, **single))
    if frames > 1 and recipe.motion_steps:
        rates = {'code': _JOINT_CODE_RATE, 'motion': sought, 'camera': camera}
        joint = {'batch': recipe.batch, 'smooth': recipe.smooth}
        found.append(Stage(name='motion', steps=recipe.motion_steps, **rates, **joint))
    if recipe.tune_steps:
        rates = {'network': recipe.tune_rate, 'hold': recipe.hold, 'mirror': recipe.mirror}
        found.append(Stage(name='tuning', steps=recipe.tune_steps, batch=recipe.batch, **rates))
    return found


def find_person(
    G: RadianceGenerator,
    source: Source,
    recipe: Recipe,
    seed: int,
    session: Session,
    perceptual: Perceptual | None = None,
) -> tuple[Fit, Found]:
    """Looks for the person of a source in a network.

    Args:
        G: network, which stays as it is.
        source: frames and cameras on any device.
        recipe: what to do.
        seed: of all random draws.
        session: progress and state.
        perceptual: replaces the distance of features that the project has.

    Returns:
        what was found, on the device of the network, and the course of the search.
    """
    keep_freed_memory()
    device = next(G.parameters()).device
    cameras, images = source.cameras.to(device), source.images.to(device)
    objective = Objective(recipe.weights, device, perceptual)
    targets = objective.targets(images, cameras, G.renderer.resolution)
    w = first_code(G, cameras, objective, targets, recipe.tries, seed)
    if recipe.space == 'w+':
        w = w.expand(-1, Fit(G, w, cameras).num_ws, -1)
    fit = Fit(G, w, cameras, recipe.motion, recipe.neutral, source.photo)
    plan = stages(recipe, len(cameras), starts_moving(G))
    return fit, search(fit, plan, objective, targets, seed, session)
