"""From raw videos to a data set [PV3D A.3]: the stages, and what each hands to the next.

    fetch -> sources -> shots -> tracks -> align -> cameras -> embeddings -> verify -> identities -> pack

`fetch` only with a list. Up to `tracks` an item is a video, from then on a clip: one face in one shot, named
by its video and first frame. Every stage leaves its results in the work folder (stages.py), so a run that was
stopped continues where it was, and a changed option makes only what depends on it again. A new stage is a
function with the decorator `Stage`, and its place in `stages`.
"""

import contextlib
import dataclasses
import functools
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnlib.util import UserError, explain_os_error
from preprocessing.dataset_files.pack import check_dest
from preprocessing.from_videos.cluster import cluster_pool
from preprocessing.from_videos.lists import read_list
from preprocessing.from_videos.options import Options
from preprocessing.from_videos.sources import find_sources
from preprocessing.from_videos.stages import (
    Item,
    Results,
    Stage,
    Work,
    count_reasons,
    locked,
    read_stage,
    run_stage,
    stage_key,
)
from preprocessing.from_videos.work_folder import WorkFolder
from training.data.archive import worker_pool

_UNITS = {'id': 'videos', 'video': 'videos', 'clip': 'clips'}  # what the items of stages are called


def stages() -> dict[str, Work]:
    """Returns the stages in the order in which they run; here, because --help need not wait for torch."""
    from preprocessing.from_videos import (
        align,
        assemble,
        deep3d,
        fetch,
        identities,
        shots,
        sources,
        tracks,
        verify,
    )

    functions = [
        fetch.fetch_stage,
        sources.sources_stage,
        shots.shots_stage,
        tracks.tracks_stage,
        align.align_stage,
        deep3d.cameras_stage,
        identities.embeddings_stage,
        verify.verify_stage,
        identities.identities_stage,
        assemble.pack_stage,
    ]
    return {function.stage.name: function for function in functions}


def run(
    options: Options,
    until: str | None = None,
    only: str | None = None,
    workers: int = 1,
    echo: Callable[[str], object] = print,
) -> str:
    """Runs the stages, each from where it was left.

    Args:
        options: what to do.
        until: last stage; none = all of them.
        only: run this stage alone, with what the earlier ones left; the results of those must be there.
        workers: processes; the result does not depend on it.
        echo: takes a line per stage: how many in, how many out, the reasons of what was rejected.

    Returns:
        the last stage that ran.

    Raises:
        UserError: if a path or an earlier result is missing, no clip is left, or a file cannot be written.
    """
    known = stages()
    last = only or until or list(known)[-1]
    _check(options, list(known), last, only)
    scheduler = options.scheduler
    opened = cluster_pool(scheduler) if scheduler else contextlib.nullcontext((worker_pool, workers))
    with locked(Path(options.workdir)), opened as (pool, count):
        run_parallel = functools.partial(run_stage, pool=pool, workers=count)
        pipeline = Pipeline(options, only, run_parallel, workers, echo)
        try:
            for name, function in known.items():
                if name != 'fetch' or options.list_kind:
                    pipeline.run(function)
                if name == last:
                    break
        except UserError:
            with contextlib.suppress(UserError):  # the first error is the one to report
                pipeline.report()
            raise
        except OSError as err:
            raise UserError(explain_os_error(err)) from err
        pipeline.report()
    problems = pipeline.results['pack']['pack']['problems'] if last == 'pack' else None
    if problems:
        raise UserError(f'{options.dest} was written, but {len(problems)} clips of it are bad: {problems}')
    return last


@dataclasses.dataclass
class Pipeline:
    """Runs stages one after the other and keeps what is left."""

    options: Options
    only: str | None  # the stage that is to run, others are read; none = all run
    run_parallel: Callable[..., Results]  # run_stage with a pool
    workers: int  # processes of this machine
    echo: Callable[[str], object]  # takes a line per stage
    results: dict[str, Results] = dataclasses.field(default_factory=dict)  # by stage

    def __post_init__(self) -> None:
        options = self.options
        self.work = WorkFolder(os.path.abspath(options.workdir))
        self.listed = read_list(options.list_kind, options.list_path) if options.list_kind else []
        # kind of item -> {name: origin} of those that no stage has rejected
        self.items: dict[str, dict[str, Any]] = {'id': {clip.video: {} for clip in self.listed}, 'clip': {}}
        self._passed_on: dict[str, dict[str, Any]] = {}  # stage -> item -> what later stages depend on

    def run(self, function: Work) -> None:
        """Runs a stage, or reads it, and leaves out what it rejects.

        Raises:
            UserError: if nothing is left.
        """
        stage, skipped = function.stage, {}
        if stage.per == 'video' and 'video' not in self.items:
            fetched = self.results.get('fetch')
            self.items['video'], skipped = find_sources(self.options, self.work, self.listed, fetched)
        options = self._options(stage)
        tasks = [(i, stage_key(stage, i, self._needed(stage, i), options)) for i in self._items(stage)]
        if self.only not in (None, stage.name):
            results = read_stage(function, tasks, options)
        else:
            results = (run_stage if stage.here else self.run_parallel)(function, self.work, tasks, options)
        self.results[stage.name] = results
        self._passed_on[stage.name] = {
            name: [results[name][fact] for fact in stage.facts] if stage.facts else results.keys_of[name]
            for name in results.accepted()
        }
        if stage.gather:
            stage.gather(self.work, results, skipped)
        self._leave_out(stage, results, skipped)

    def _leave_out(self, stage: Stage, results: Results, skipped: dict[str, str]) -> None:
        """Leaves out what a stage has rejected or skipped, and reports how much and why."""
        kind = 'clip' if stage.per == 'all' else stage.per
        before = len(self.items[kind]) + len(skipped)
        gone = results.parts[stage.name] if stage.per == 'all' else results.rejected
        self.items[kind] = {name: origin for name, origin in self.items[kind].items() if name not in gone}
        if stage.clips:
            kind = 'clip'
            for name in results.accepted():
                self.items['clip'] |= stage.clips(name, results[name])
        counts = count_reasons([*skipped.values(), *results.reasons()])
        reasons = '; rejected: ' + '; '.join(f'{n} x {reason}' for reason, n in counts) if counts else ''
        if self.only in (None, stage.name):
            note = stage.note(results) if stage.note else ''
            after = f'{len(self.items[kind])} {_UNITS[kind]}{note}'
            self.echo(f'{stage.name}: {before} in, {after} out{reasons}')
        if kind != 'id' and not self.items[kind]:
            raise UserError(
                f'no {kind} of {self.options.source} is left after the stage {stage.name}{reasons}; '
                f'{self.options.workdir}/report.html shows which'
            )

    def report(self) -> None:
        """Writes report.html about everything that the work folder holds."""
        from preprocessing.from_videos.report import write_report

        given = {name: value for name, value in dataclasses.asdict(self.options).items() if value is not None}
        of_clips = [name for name, function in stages().items() if function.stage.per == 'clip']
        write_report(self.work.root, given, of_clips)

    def _items(self, stage: Stage) -> list[Item]:
        if stage.per != 'all':
            return [Item(name, self.work, origin) for name, origin in self.items[stage.per].items()]
        return [Item(stage.name, self.work, {'clips': self.items['clip']}, self.workers)]

    def _options(self, stage: Stage) -> types.SimpleNamespace:
        """Returns the options that a stage has declared; any other would make results outdated unnoticed."""
        values = {name: getattr(self.options, name) for name in stage.options}
        paths = {name: getattr(self.options, name) for name in stage.paths}
        paths = {name: path and os.path.abspath(path) for name, path in paths.items()}
        return types.SimpleNamespace(**values, **paths)

    def _needed(self, stage: Stage, item: Item) -> list[Any]:
        """Returns what an item depends on of each stage that it needs."""
        needed = []
        for need in stage.needs:
            if need not in self.results:
                continue  # fetch, without a list
            kind, passed_on = self.results[need].stage.per, self._passed_on[need]
            if kind == 'all':
                needed.append(passed_on[need])
            elif stage.per == 'all':
                clips = item.origin['clips'].items()
                needed.append([passed_on[name if kind == 'clip' else origin[kind]] for name, origin in clips])
            else:
                needed.append(passed_on[item.name if kind == stage.per else item.origin[kind]])
        return needed


def _check(options: Options, known: list[str], last: str, only: str | None) -> None:
    """Finds what would only fail, or have no effect, after hours.

    Raises:
        UserError: if an option cannot work, or has no effect without another.
    """
    if last not in known:
        raise UserError(f'{last} is not a stage; the stages are {", ".join(known)}')
    if not options.list_kind and not os.path.isdir(options.source):
        file = ': put the file into a folder of its own' if os.path.isfile(options.source) else ''
        raise UserError(
            f'{options.source} is not a folder; --source is the folder that holds the videos{file}'
        )
    if not options.list_kind and (options.download or last == 'fetch'):
        raise UserError('fetching (--download, the stage fetch) needs a --list of what to fetch')
    if options.deep3d is not None and not os.path.isdir(options.deep3d):
        raise UserError(f'{options.deep3d} is not a folder; --deep3d is the folder of the coefficients')
    check_dest(options.dest)
    if known.index(last) >= known.index('embeddings') and only in (None, 'embeddings'):
        from preprocessing.from_videos.identities import load_recognizer

        load_recognizer(options.recognizer, options.recognizer_file)
