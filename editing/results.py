"""From a source to files: the portrait, a comparison, an orbit, reports."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dnnlib.video import add_sound
from editing.codes import SUFFIX, Portrait, network_digest, own_network, save_portrait
from editing.fit import Fit
from editing.inputs import Source
from editing.recipes import Recipe, find_person
from editing.render import Take, comparison, write_comparison, write_take
from editing.reporting import write_report
from editing.scores import measure
from editing.search import Found, Session, stop_on_interrupt, tuned_tensors
from metrics.detectors.vgg16 import Perceptual
from metrics.records.digests import json_digest, tensors_digest
from training.networks.contract import RadianceGenerator
from viz.images import save_png
from viz.trajectories import orbit, recorded

_ORBIT_FRAMES = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be found, and where it is written."""

    name: str  # stem of the files
    outdir: Path  # that exists
    recipe: Recipe
    seed: int
    network: str  # name of its file
    network_sha256: str
    command: str  # as the user gave it
    perceptual: Perceptual | None = None  # what the user gave for the perceptual distance


def find_and_write(
    G: RadianceGenerator, source: Source, job: Job, report: Callable[[object], object]
) -> Portrait:
    """Finds the person of a source and writes all files about it; a line is reported for each.

    Interrupted by Ctrl-C, it writes the best so far and keeps the state: the same job then continues.
    """
    digest = network_digest(G)
    images = tensors_digest([('images', source.images), ('cameras', source.cameras)])
    features = job.perceptual.sha256 if job.perceptual else ()
    key = json_digest([digest, images, dataclasses.asdict(job.recipe), job.seed, features])
    state = job.outdir / f'.{job.name}.state.pt'
    with stop_on_interrupt() as should_stop:
        session = Session(path=state, key=key, report=report, should_stop=should_stop)
        fit, found = find_person(G, source, job.recipe, job.seed, session, job.perceptual)
    portrait = make_portrait(G, fit, source, job, digest)
    own = own_network(G, portrait, job.name)
    portrait = dataclasses.replace(portrait, scores=measure(G, own, portrait, job.perceptual))
    for path in write_files(own, portrait, source, job, found):
        report(path)
    if found.stopped:
        report('stopped: this is the best so far; the same command continues')
    return portrait


def make_portrait(G: RadianceGenerator, fit: Fit, source: Source, job: Job, digest: str) -> Portrait:
    """Makes a portrait, without scores, of what was found; `digest` is that of the network G."""
    every = torch.arange(len(source.cameras), device=fit.w.device)
    first = source.facts['first frame']
    return Portrait(
        network=digest,
        ws=fit.ws.cpu().contiguous(),
        u=fit.motion(every).cpu(),
        cameras=fit.cameras(every).cpu(),
        images=source.images,
        fps=float(source.fps),
        neutral_frame=job.recipe.neutral or 0,
        tuned=tuned_tensors(G, fit.G),
        provenance={
            **source.facts,
            'command': job.command,
            'network': job.network,
            'network sha256': job.network_sha256,
            'perceptual': ', '.join(job.perceptual.sha256) if job.perceptual else 'EfficientNet-lite0',
            'start_sec': first / source.fps,
        },
        scores={},
    )


def write_files(
    own: RadianceGenerator, portrait: Portrait, source: Source, job: Job, found: Found
) -> list[Path]:
    """Writes NAME.portrait.pt, NAME-compare.png, NAME-orbit.mp4, of a video NAME-compare.mp4, and reports."""
    base, note = job.outdir / job.name, portrait.note

    def beside(ending: str) -> Path:
        return base.with_name(base.name + ending)

    save_portrait(beside(SUFFIX), portrait)
    sheet = comparison(own, portrait)
    save_png(beside('-compare.png'), sheet, note)
    turn = orbit(_ORBIT_FRAMES, focal=own.config.focal)
    take = Take(portrait.ws, recorded(portrait.u, _ORBIT_FRAMES), turn)
    videos = write_take(beside('-orbit.mp4'), own, take, portrait.fps, note)
    if len(portrait.u) > 1:
        videos.append(beside('-compare.mp4'))
        write_comparison(videos[-1], own, portrait, note)
        if source.sound:
            add_sound(videos[-1], source.sound, portrait.provenance['start_sec'])
    facts = {name: value for name, value in portrait.scores.items() if isinstance(value, dict)}
    course = {name: f'{notes[-1][0] + 1} steps, {notes[-1][2]:.2f} dB' for name, notes in found.notes.items()}
    facts |= {'search': course, 'recipe': recipe_facts(job.recipe), 'provenance': portrait.provenance}
    names, warnings = [path.name for path in videos], list(portrait.scores['warnings'])
    if found.stopped:
        warnings.append('the search was stopped: this is the best so far, and the same command continues')
    reports = write_report(job.outdir, job.name, facts, warnings, sheet, names)
    return [beside(SUFFIX), beside('-compare.png'), *videos, *reports]


def recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """Returns the values of a recipe, those of its weights among them."""
    facts = dataclasses.asdict(recipe)
    weights = facts.pop('weights')
    return facts | {f'weight of {name}': value for name, value in weights.items()}
