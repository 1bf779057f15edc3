"""The rows of studies.joint: which runs there are, and who of both data sets appears and moves."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.config import override
from dnnlib.util import UserError, atomic_write
from metrics.measures.coverage import nearest
from studies import figures, samples
from studies.arms import NEWEST, Arm, Budget, Judge, Task, base_config, make_arm, split_changes
from studies.figures import Figure
from studies.measure import Row, Settings, as_floats, motion_rows
from studies.results import TABLE, as_json
from studies.truth import FRONT, TIMES, Truth, clip_facts, grid_cameras, load_truth
from torch_utils.checkpoint import read_snapshot
from training.config import TrainConfig
from training.data.dataset import VideoDataset
from training.networks.contract import VideoGenerator
from training.networks.registry import load_generator

# common: changes of all runs, for motion that does not come to rest and a D_video that looks at it; still: of
# those that learn from images alone; gated: of those that go on from there
CHANGES = Path(__file__).with_name('joint.json')
_CODES, _MOTIONS = 48, 4  # appearances whose motion is looked at, motion codes of each
_LEAST = 4  # heads of a kind, fewer say nothing of motion
_KINDS = 'of the images', 'of the clips'


class Data(NamedTuple):
    """Paths of the two data sets."""

    clips: str
    images: str


def make_tasks(
    base_name: str, data: Data, seeds: Sequence[int], outdir: Path, settings: Settings, budget_sec: float
) -> list[Task]:
    """Makes the folders of all runs.

    Args:
        base_name: preset or options of the base.
        data: clips and images.
        seeds: of training.
        outdir: folder of all runs.
        settings: how much is looked at, where to compute.
        budget_sec: of training, for each run.

    Raises:
        UserError: if the data cannot be used, or a person is in both sets.
    """
    changes = {name: split_changes(text) for name, text in json.loads(CHANGES.read_bytes()).items()}
    base = override(base_config(base_name, data.clips), changes['common'])
    still = override(base_config(base_name, data.images), changes['common'] | changes['still'])
    joint = dataclasses.replace(base, images=dataclasses.replace(base.images, path=data.images))
    gated, judge = override(base, changes['gated']), JointJudge(settings, data)
    judge.check(base)
    whole, half = Budget(seconds=budget_sec), Budget(seconds=budget_sec / 2)
    tasks = []
    for seed in seeds:
        arms = [make_arm(n, seed, c, outdir) for n, c in (('base', base), ('with images', joint))]
        first = make_arm('images alone', seed, still, outdir)
        resumed = dataclasses.replace(gated, resume=str(first.folder / NEWEST))
        after = Task(make_arm('images first', seed, resumed, outdir), half, judge, Task(first, half, judge))
        tasks += [*(Task(arm, whole, judge) for arm in arms), after]
    return tasks


class JointJudge(Judge):
    """Measures who appears, and how they move: table.json."""

    file = TABLE

    def __init__(self, settings: Settings, data: Data) -> None:
        """Takes how much is looked at, and both data sets."""
        self.settings, self.data, self.device = settings, data, settings.device

    def facts(self) -> dict[str, Any]:
        """See Judge."""
        return {'images': self.data.images}

    def check(self, config: TrainConfig) -> None:
        """Raises UserError if a person is in both data sets."""
        sets = [open_data(path, config.generator) for path in self.data]
        clips, images = ({fact['identity'] for fact in clip_facts(data)} for data in sets)
        if shared := clips & images:
            raise UserError(
                f'{len(shared)} people of --images are in --data, too, so that nobody could tell from which '
                'they were learned; make one of the sets with another --seed'
            )

    def measure(self, arm: Arm, snapshot: Path, facts: Mapping[str, Any]) -> None:
        """See Judge."""
        G = load_generator(read_snapshot(snapshot), self.device)
        images, clips = (self._truth(path, G) for path in (self.data.images, self.data.clips))
        rows = joint_rows(G, images, clips, self.settings)
        with atomic_write(arm.folder / self.file, 'w') as file:
            json.dump({**facts, 'rows': as_json(rows)}, file, indent=1)

    def _truth(self, path: str, G: VideoGenerator) -> Truth:
        data = open_data(path, G.config)
        return load_truth(data, G.config.span, self.settings.cache, self.settings.workers)


def open_data(path: str, generator: Any) -> VideoDataset:
    """Opens a data set for a generator's config."""
    return VideoDataset.Config(path=path, span=generator.span, resolution=generator.resolution).build()


def joint_rows(G: VideoGenerator, images: Truth, clips: Truth, settings: Settings) -> list[Row]:
    """Says who of both data sets appears, and how the heads that show one or the other move."""
    cameras = torch.from_numpy(grid_cameras(G.config.focal))
    front, counts = cameras[FRONT], [len(images.portraits), len(clips.portraits)]
    people = as_floats(np.concatenate([images.portraits, clips.portraits])).reshape(sum(counts), -1)
    codes = samples.draw(G, samples.SEEDS, settings.sizes.seeds, settings.seed)
    seeds = samples.portraits(G, codes, front[None], front)
    rows = people_rows(nearest(seeds.reshape(len(seeds), -1), people), counts)
    grid = samples.motion_grid(G, _CODES, _MOTIONS, TIMES, cameras, settings.seed)
    still = grid[:, :, :, FRONT].mean(axis=(1, 2)).reshape(_CODES, -1)
    shows_image = nearest(still, people) < counts[0]
    for kind, truth, chosen in zip(_KINDS, (images, clips), (shows_image, ~shows_image), strict=True):
        rows += moving_rows(kind, as_floats(truth.grid), grid, chosen, G.config.focal)
    return rows


def people_rows(chosen: np.ndarray, counts: Sequence[int]) -> list[Row]:
    """Returns who appears among seeds, given the nearest person of each: first those of the images."""
    shown = chosen[chosen < counts[0]], chosen[chosen >= counts[0]]
    share = figures.bootstrap(np.mean, (chosen < counts[0]).astype(float))
    sample = f'{len(chosen)} seeds'
    covered = [
        Row(f'people {kind} that appear', '', figures.coverage(found, count), None, sample, True)
        for kind, found, count in zip(_KINDS, shown, counts, strict=True)
    ]
    return [Row('seeds that show a person of the images', '', share, None, sample, True), *covered]


def moving_rows(kind: str, real: np.ndarray, grid: np.ndarray, chosen: np.ndarray, focal: float) -> list[Row]:
    """Compares the motion of the chosen appearances of a grid with that of real people, if there are some."""
    rows = motion_rows(real, grid[chosen] if chosen.sum() >= _LEAST else grid, focal)
    if chosen.sum() < _LEAST:
        rows = [row._replace(network=Figure(float('nan'))) for row in rows]
    return [row._replace(name=f'heads {kind}: {row.name}', goal='') for row in rows]
