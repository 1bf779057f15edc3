"""From raw videos to a data set [PV3D A.3]: the stages in their order, and what each hands to the next.

    fetch -> sources -> shots -> tracks -> align -> cameras -> embeddings -> verify -> identities -> pack

`fetch` only with a list. Up to `tracks` an item is a video, from then on a clip: one face in one shot, named
by its video and first frame. Every stage leaves its results in the work folder (stages.py), so
a run that was stopped goes on where it was, and a changed option makes again only what depends on it.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.util import UserError, explain_os_error, file_sha256, remove_temp_files
from preprocessing.dataset_files.pack import PackOptions, check_options
from preprocessing.from_videos import fetch, sources, stage_work
from preprocessing.from_videos.stages import Results, count_reasons, locked, read_stage, run_stage, write_json
from preprocessing.from_videos.work_folder import clip_names

STAGES = (
    'fetch',
    'sources',
    'shots',
    'tracks',
    'align',
    'cameras',
    'embeddings',
    'verify',
    'identities',
    'pack',
)
_VERSIONS = {  # counted up when a stage makes other results of the same input
    **dict.fromkeys(STAGES, 1),
    'align': 2,
    'pack': 3,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a run is told; paths as given by the user."""

    source: str  # folder of videos; with a list the folder that fetched videos are in
    dest: str  # the zip
    workdir: str
    resolution: int = 512  # pixels of a side
    format: str = 'png'  # of the pictures in the zip, a key of preprocessing.dataset_files.pack.FORMATS
    list_kind: str | None = None  # a key of sources.LISTS; none = all videos of the folder
    list_path: str | None = None
    download: bool = False  # fetch listed videos that are missing
    min_frames: int = 16  # shortest clip [PV3D A.1: videos of 16 frames]
    face_size: float = 0.25  # of the largest face in a shot; smaller ones are passed over
    sigma: float = 2.0  # frames, Gaussian over time of landmarks and cameras [PV3D A.3]
    deep3d: str | None = None  # folder of Deep3DFaceRecon coefficients; none = cameras from the landmarks
    recognizer: str = 'sface'  # face recognition network
    recognizer_file: str | None = None  # of that network, where it does not come with a package
    similarity: float = 0.5  # frames below it to the others are noisy [PV3D A.3]
    noisy: int = 2  # noisy frames that a clip may have [PV3D A.3]
    same_person: float = 0.5  # clips above this similarity are one person
    per_person: int = 2  # clips of one person at most [PV3D A.3]


def run(
    options: Options,
    until: str = STAGES[-1],
    only: str | None = None,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> str:
    """Runs the stages, each where it was left.

    Args:
        options: what to do.
        until: last stage.
        only: run this stage alone, with what the earlier ones left; the results of those must be there.
        workers: processes; the result does not depend on it.
        say: takes a line per stage: how many in, how many out, the reasons of what was rejected.

    Returns:
        the last stage that ran.

    Raises:
        UserError: if a path or an earlier result is missing, no clip is left, or a file cannot be written.
    """
    last = STAGES.index(only or until)
    _check(options, STAGES[last], only)
    with locked(Path(options.workdir)):
        pipeline = Pipeline(options, only, workers, say)
        try:
            for stage in STAGES[: last + 1]:
                if stage != 'fetch' or options.list_kind:
                    getattr(pipeline, f'run_{stage}')()
        except UserError:
            with contextlib.suppress(UserError):  # the first trouble is the one to tell
                pipeline.report()
            raise
        except OSError as err:
            raise UserError(explain_os_error(err)) from err
        pipeline.report()
    problems = pipeline.problems
    if problems:
        raise UserError(f'{options.dest} was written, but {len(problems)} clips of it are bad: {problems}')
    return STAGES[last]


class Pipeline:
    """The stages as methods `run_STAGE`, called in the order of STAGES."""

    def __init__(self, options: Options, only: str | None, workers: int, say: Callable[[str], None]) -> None:
        self.options = options
        self.workdir = Path(options.workdir)
        self.only = only
        self.workers = workers
        self.say = say
        self.listed = self._read_list()
        self.videos: list[str] = []  # ids that are still in
        self.clips: dict[str, tuple[str, int]] = {}  # those still in -> video and number of the track
        self.results: dict[str, Results] = {}
        self.contents: dict[str, Any] = {}  # id of a video -> what later stages depend on
        self.problems: dict[str, list[str]] = {}  # that the check of the data set found

    def run_fetch(self) -> None:
        """Brings the videos of the list."""
        folder = Path(self.options.source)
        if self.options.download:
            self._make_folder(folder)
        ids = list(dict.fromkeys(clip.video for clip in self.listed.values()))
        if self.only in (None, 'fetch'):
            fetch.forget_changed(self.workdir / 'fetch', ids, folder)
        work = stage_work.FetchWork(str(folder), self.options.download)
        results = self._stage('fetch', ids, dict.fromkeys(ids, os.path.abspath(folder)), work, workers=1)
        self._say('fetch', len(ids), f'{len(results.accepted())} videos', results.rejected)

    def run_sources(self) -> None:
        """Examines the videos and writes sources.json."""
        passed: dict[str, str] = {}
        if self.listed:
            brought = self.results['fetch']
            files = {video: brought[video]['path'] for video in brought.accepted()}
            paths = {name: files[c.video] for name, c in self.listed.items() if c.video in files}
            passed = {n: brought.rejected[c.video] for n, c in self.listed.items() if c.video not in files}
        else:
            ours = (str(self.workdir), self.options.dest)
            found, passed = sources.find_videos(self.options.source, without=ours)
            paths = {video: str(path) for video, path in found.items()}
        self._keep_others(paths)
        if (self.workdir / 'cuts').exists():
            remove_temp_files(self.workdir / 'cuts')
        work = stage_work.SourceWork(str(self.workdir), paths, self.listed)
        results = self._stage('sources', list(paths), self._source_inputs(paths), work)
        rejected = {**passed, **{self._told(paths[v]): reason for v, reason in results.rejected.items()}}
        self.videos = results.accepted()
        entries = [results[video] for video in self.videos]
        for video, entry in zip(self.videos, entries, strict=True):
            facts = ('sha256', 'fps', 'frames', 'width', 'height', 'box')
            self.contents[video] = [entry[fact] for fact in facts]
        for entry in entries:
            entry.pop('key')
            entry.pop('times', None)
        write_json(self.workdir / 'sources.json', {'videos': entries, 'rejected': rejected})
        self._say('sources', len(paths) + len(passed), f'{len(self.videos)} videos', rejected)
        if not self.videos:
            raise UserError(f'{self.options.source} holds no video that can be used{_first(rejected)}')

    def run_shots(self) -> None:
        """Cuts videos into shots."""
        work = stage_work.ShotsWork(str(self.workdir))
        results = self._stage('shots', self.videos, self.contents, work)
        count = sum(len(results[video]['shots']) for video in results.accepted())
        self._say('shots', len(self.videos), f'{count} shots', results.rejected)
        self.videos = results.accepted()

    def run_tracks(self) -> None:
        """Follows faces; clips begin here."""
        o, shots = self.options, self.results['shots'].keys_of
        depends = {v: [shots[v], self.contents[v], o.min_frames, o.face_size] for v in self.videos}
        work = stage_work.TracksWork(str(self.workdir), o.min_frames, o.face_size)
        results = self._stage('tracks', self.videos, depends, work)
        rejected = dict(results.rejected)
        for video in results.accepted():
            result = results[video]
            for k, name in enumerate(clip_names(video, result['tracks'])):
                self.clips[name] = (video, k)
            for i, part in enumerate(result['rejected']):
                rejected[f'{video}, {i}'] = part['reason']
        self._say('tracks', len(self.videos), f'{len(self.clips)} clips', rejected)

    def run_align(self) -> None:
        """Crops the frames of clips."""
        o, tracks = self.options, self.results['tracks'].keys_of
        depends = {c: [tracks[v], k, o.resolution, o.sigma] for c, (v, k) in self.clips.items()}
        work = stage_work.AlignWork(str(self.workdir), self.clips, o.resolution, o.sigma)
        self._clip_stage('align', depends, stage_work.OneThread(work))

    def run_cameras(self) -> None:
        """Estimates cameras."""
        o, aligned = self.options, self.results['align'].keys_of
        depends = {c: [aligned[c], o.sigma, self._coefficients(c)] for c in self.clips}
        self._clip_stage(
            'cameras', depends, stage_work.CamerasWork(str(self.workdir), o.resolution, o.sigma, o.deep3d)
        )

    def run_embeddings(self) -> None:
        """Embeds the faces of clips."""
        from preprocessing.from_videos.identities import EmbedWork

        o, aligned = self.options, self.results['align'].keys_of
        depends = {c: [aligned[c], o.recognizer, _state(o.recognizer_file)] for c in self.clips}
        work = EmbedWork(str(self.workdir), _recognizer(o))
        self._clip_stage('embeddings', depends, stage_work.OneThread(work))

    def run_verify(self) -> None:
        """Rejects clips with noisy frames."""
        from preprocessing.from_videos.verify import VerifyWork

        o, embedded = self.options, self.results['embeddings'].keys_of
        depends = {c: [embedded[c], o.similarity, o.noisy] for c in self.clips}
        work = VerifyWork(str(self.workdir), o.similarity, o.noisy)
        results = self._stage('verify', list(self.clips), depends, work)
        refused = {c: r['reason'] for c, r in results.items() if not r.get('accepted', True)}
        self._narrow('verify', {**results.rejected, **refused})

    def run_identities(self) -> None:
        """Finds out who is who and balances the clips."""
        from preprocessing.from_videos.identities import identify

        o, embedded = self.options, self.results['embeddings'].keys_of
        clips = list(self.clips)
        found = {video: self.results['sources'][video]['speaker'] for video in self.videos}
        speakers = {clip: found[video] for clip, (video, _) in self.clips.items() if found[video] is not None}
        depends = [[[c, embedded[c]] for c in clips], speakers, o.same_person, o.per_person]
        if not clips:
            raise UserError(f'no clip is left of {o.source}; {self.workdir}/report.html says why')
        work = functools.partial(
            _whole, identify, str(self.workdir), clips, speakers, o.same_person, o.per_person
        )
        result = self._stage('', ['identities'], {'identities': depends}, work)['identities']
        people = len(set(result['clusters'].values()))
        self._narrow('identities', result['rejected'], note=f' of {people} people')

    def run_pack(self) -> None:
        """Writes the data set and checks it."""
        from preprocessing.from_videos.assemble import assemble

        o, dest = self.options, os.path.abspath(self.options.dest)
        keys = [self.results[stage].keys_of for stage in ('cameras', 'verify', 'identities')]
        depends = [[[c, keys[0][c], keys[1][c]] for c in self.clips], keys[2]['identities']]
        depends += [o.resolution, o.format, o.min_frames, dest]
        self._forget_lost_zip()
        look = PackOptions(o.resolution, o.format)
        work = functools.partial(_whole, assemble, str(self.workdir), dest, look, o.min_frames, self.workers)
        result = self._stage('', ['pack'], {'pack': depends}, work)['pack']
        self.problems = result['problems']
        self._narrow('pack', result['rejected'], note=f', {result["frames"]} frames in {o.dest}')

    def report(self) -> None:
        """Writes report.html about everything that the work folder holds."""
        from preprocessing.from_videos.report import write_report

        write_report(
            self.workdir, {k: v for k, v in dataclasses.asdict(self.options).items() if v is not None}
        )

    def _clip_stage(self, stage: str, depends: Mapping[str, Any], work: Callable[[str], Any]) -> None:
        results = self._stage(stage, list(self.clips), depends, work)
        self._narrow(stage, results.rejected)

    def _stage(
        self,
        stage: str,
        items: Sequence[str],
        depends: Mapping[str, Any],
        work: Callable[[str], dict[str, Any]],
        workers: int | None = None,
    ) -> Results:
        """Runs a stage, or reads it where another alone is to be run."""
        name = stage or items[0]
        inputs = {item: [_VERSIONS[name], depends[item]] for item in items}
        if self.only not in (None, name):
            results = read_stage(stage, self.workdir, items, inputs)
        else:
            count = 1 if not stage else workers or self.workers
            results = run_stage(stage, self.workdir, items, inputs, work, count)
        self.results[name] = results
        return results

    def _narrow(self, stage: str, rejected: Mapping[str, str], note: str = '') -> None:
        """Leaves rejected clips out of what follows."""
        before = len(self.clips)
        self.clips = {clip: where for clip, where in self.clips.items() if clip not in rejected}
        self._say(stage, before, f'{len(self.clips)} clips{note}', rejected)

    def _say(self, stage: str, before: int, after: str, rejected: Mapping[str, str]) -> None:
        reasons = '; '.join(f'{count} x {reason}' for reason, count in count_reasons(rejected.values()))
        if self.only in (None, stage):
            self.say(f'{stage}: {before} in, {after} out' + (f'; rejected: {reasons}' if reasons else ''))

    def _read_list(self) -> dict[str, sources.Listed]:
        o = self.options
        if o.list_kind is None or o.list_path is None:
            return {}
        return {clip.name: clip for clip in sources.read_list(o.list_kind, o.list_path)}

    def _source_inputs(self, paths: Mapping[str, str]) -> dict[str, Any]:
        clips = {name: dataclasses.asdict(clip) for name, clip in self.listed.items()}
        return {
            video: [_state(path), os.path.abspath(path), clips.get(video)] for video, path in paths.items()
        }

    def _keep_others(self, videos: Container[str]) -> None:
        """Keeps results that took hours when none of their videos is asked for: --source may be mistaken."""
        old = sorted(path.stem for path in self.workdir.glob('sources/*.json'))
        if old and not any(video in videos for video in old):
            raise UserError(
                f'{self.workdir} holds results of other videos than {self.options.source}, such as {old[0]}, '
                'which would be removed; give another --workdir, or remove it first'
            )

    def _told(self, path: str) -> str:
        try:
            return Path(path).relative_to(self.options.source).as_posix()
        except ValueError:
            return path

    def _coefficients(self, clip: str) -> Any:
        folder = self.options.deep3d
        if folder is None:
            return None
        found = stage_work.coefficients_of(folder, clip)
        return [_state(None if found is None else str(found))]  # of this clip: folders hold a file per frame

    def _forget_lost_zip(self) -> None:
        """Makes the data set again when the file is gone or is another one."""
        record = self.workdir / 'pack.json'
        if self.only in (None, 'pack') and record.exists():
            known = stage_work.read(str(self.workdir), '', 'pack').get('sha256')
            if not os.path.isfile(self.options.dest) or file_sha256(self.options.dest) != known:
                record.unlink()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise UserError('cannot write ' + explain_os_error(err, folder)) from err


def _check(options: Options, last: str, only: str | None) -> None:
    """Finds what would only fail, or be passed over, after hours.

    Raises:
        UserError: if an option cannot work, or says nothing without another.
    """
    if not options.list_kind and not os.path.isdir(options.source):
        raise UserError(f'{options.source} is not a folder; --source is the folder that holds the videos')
    if not options.list_kind and (options.download or last == 'fetch'):
        raise UserError('fetching (--download, the stage fetch) needs a --list that says what to fetch')
    if options.deep3d is not None and not os.path.isdir(options.deep3d):
        raise UserError(f'{options.deep3d} is not a folder; --deep3d is the folder of the coefficients')
    check_options(options.dest, PackOptions(options.resolution, options.format))
    if STAGES.index(last) >= STAGES.index('embeddings') and only in (None, 'embeddings'):
        _recognizer(options).load()


def _recognizer(options: Options) -> Any:
    from preprocessing.from_videos.identities import Recognizer

    files = ((options.recognizer, options.recognizer_file),) if options.recognizer_file else ()
    return Recognizer(options.recognizer, files)


def _whole(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Calls a stage that has one item, whose name comes last."""
    return function(*args[:-1])


def _state(path: str | None) -> Any:
    """Returns what tells a file or folder from a changed one without reading it all."""
    if path is None or not os.path.exists(path):
        return path
    files = sorted(p for p in Path(path).rglob('*') if p.is_file()) if os.path.isdir(path) else [Path(path)]
    stats = [(p.relative_to(Path(path).parent).as_posix(), p.stat()) for p in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _first(rejected: Mapping[str, str]) -> str:
    return ''.join(f' ({name}: {reason})' for name, reason in list(rejected.items())[:1])
