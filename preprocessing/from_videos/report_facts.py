"""What the work folder of `from-videos` tells about a run: facts of clips, and what was left out and why.

Read at any time, also of a run that has not ended. What earlier runs with other videos or options left in the
folder is passed over: a clip counts when its video and its track are still there.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from preprocessing.from_videos.work_folder import WorkFolder, clip_names

STAGES = ('sources', 'shots', 'tracks', 'align', 'cameras', 'verify', 'identities', 'pack')


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Something that a stage left out."""

    stage: str  # one of STAGES
    item: str  # file, video or clip
    reason: str
    clip: str = ''  # with aligned pictures, if there is one
    video: str = ''  # otherwise the video that shows it
    time_sec: float = 0.0  # where in that video


@dataclasses.dataclass
class Clip:
    """An aligned clip; what a stage has not measured yet is empty, nan or -1."""

    name: str
    video: str
    first: int
    frames: int
    fps: float
    upscale: float
    residual: float = np.nan
    angles_deg: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))  # see `angles`
    similarity: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    examined: list[int] = dataclasses.field(default_factory=list)  # frames that similarity is of
    noisy: list[int] = dataclasses.field(default_factory=list)
    identity: int = -1
    reason: str = ''  # why it was left out
    packed: str = ''  # folder in the data set


@dataclasses.dataclass
class Facts:
    """Everything that the page shows, but for pictures."""

    videos: dict[str, dict[str, Any]]  # id -> entry in sources.json
    clips: dict[str, Clip]
    rejections: list[Rejection]
    passed: dict[str, tuple[str, str]]  # stage -> what went in, what came out, in words
    threshold: float  # of similarity; nan = not known
    pack: dict[str, Any]  # content of pack.json
    speakers: dict[str, str]  # identity -> label

    def kept(self) -> list[Clip]:
        """Returns the clips that nothing speaks against."""
        return [clip for clip in self.clips.values() if not clip.reason]


def angles(labels: np.ndarray) -> np.ndarray:
    """Returns yaw, pitch and roll of cameras about the head, in degrees.

    Yaw and pitch say where the camera stands, as dataset_files.check has them: yaw is positive at positive
    x (the face looks to the left of the picture), pitch above. Roll is positive when the right side of the
    camera is lowered (the head leans to the left of the picture).

    Args:
        labels: [T, 25].

    Returns:
        [T, 3].
    """
    pose = np.asarray(labels, np.float64).reshape(-1, 25)[:, :16].reshape(-1, 4, 4)
    right, forward, (x, y, z) = pose[:, :3, 0], pose[:, :3, 2], pose[:, :3, 3].T
    level = np.cross(forward, [0.0, 1.0, 0.0])
    level /= np.linalg.norm(level, axis=1, keepdims=True)
    down = np.cross(forward, level)
    roll = np.arctan2((right * down).sum(axis=1), (right * level).sum(axis=1))
    return np.degrees(np.stack([np.arctan2(x, z), np.arctan2(y, np.hypot(x, z)), roll], axis=1))


def collect(work: WorkFolder) -> Facts:
    """Reads the work folder."""
    sources = work.read('sources')
    videos = {video['id']: video for video in sources.get('videos', [])}
    facts = Facts(videos, {}, [], {}, np.nan, work.read('pack'), {})
    for name, reason in sorted(sources.get('rejected', {}).items()):
        facts.rejections.append(Rejection('sources', name, reason, video=name))
    _count(
        facts, 'sources', (len(videos) + len(sources.get('rejected', {})), 'files'), (len(videos), 'videos')
    )
    _collect_aligned(work, facts, _collect_tracks(work, facts))
    _collect_cameras(work, facts)
    _collect_verified(work, facts)
    _collect_identities(work, facts)
    _collect_packed(facts)
    return facts


def _collect_tracks(work: WorkFolder, facts: Facts) -> list[str]:
    """Returns the names of the clips that should be aligned."""
    cut = 0
    starts = {}  # video -> first frames of its shots
    for video in _present(work, 'shots', facts.videos):
        result = work.read(f'shots/{video}')
        starts[video] = [shot[0] for shot in result.get('shots', [])]
        cut += len(starts[video])
        _reject(facts, 'shots', video, result, video=video)
    _count(facts, 'shots', (len(starts), 'videos'), (cut, 'shots'))
    names: list[str] = []
    for video in _present(work, 'tracks', starts):
        result = work.read(f'tracks/{video}')
        names += clip_names(video, result.get('tracks', []))
        rejected = result.get('rejected', [])
        if isinstance(rejected, str):  # the whole video
            _reject(facts, 'tracks', video, result, video=video)
            continue
        for entry in rejected:
            (first,) = starts.get(video, [])[entry['shot'] : entry['shot'] + 1] or [0]
            time_sec = first / facts.videos.get(video, {}).get('fps', 25.0)
            item = f'{video}, shot {entry["shot"] + 1}'
            rejection = Rejection('tracks', item, entry['reason'], video=video, time_sec=time_sec)
            facts.rejections.append(rejection)
    _count(facts, 'tracks', (cut, 'shots'), (len(names), 'faces'))
    return names


def _collect_aligned(work: WorkFolder, facts: Facts, clips: list[str]) -> None:
    names = _present(work, 'align', clips)
    for name in names:
        result = work.read(f'align/{name}')
        if not _reject(facts, 'align', name, result):
            values = (result[key] for key in ('video', 'first', 'frames', 'fps', 'upscale'))
            facts.clips[name] = Clip(name, *values)
    _count(facts, 'align', (len(names), 'faces'), (len(facts.clips), 'clips'))


def _collect_cameras(work: WorkFolder, facts: Facts) -> None:
    names = _present(work, 'cameras', [clip.name for clip in facts.kept()])
    good = 0
    for name in names:
        result = work.read(f'cameras/{name}')
        if not _reject(facts, 'cameras', name, result, clip=name):
            clip = facts.clips[name]
            clip.angles_deg = angles(result['labels'])
            clip.residual = np.nan if result['residual'] is None else result['residual']
            good += 1
    _count(facts, 'cameras', (len(names), 'clips'), (good, 'clips'))


def _collect_verified(work: WorkFolder, facts: Facts) -> None:
    names = _present(work, 'verify', [clip.name for clip in facts.kept()])
    good = 0
    for name in names:
        result, clip = work.read(f'verify/{name}'), facts.clips[name]
        if 'similarity' in result:
            clip.similarity, clip.examined = np.array(result['similarity']), result['frames']
            clip.noisy, facts.threshold = result['noisy'], result['threshold']
        if not result.get('accepted', 'rejected' not in result):
            result = {'rejected': result.get('reason') or result['rejected']}
        good += not _reject(facts, 'verify', name, result, clip=name)
    _count(facts, 'verify', (len(names), 'clips'), (good, 'clips'))


def _collect_identities(work: WorkFolder, facts: Facts) -> None:
    result = work.read('identities')
    clusters, kept = result.get('clusters', {}), result.get('kept', [])
    facts.speakers = result.get('speakers', {})
    for name, number in clusters.items():
        if name in facts.clips:
            facts.clips[name].identity = number
    _reject_clips(facts, 'identities', result.get('rejected', {}))
    people = len(set(clusters.values()))
    _count(facts, 'identities', (len(clusters), f'clips of {people} people'), (len(kept), 'clips'))


def _collect_packed(facts: Facts) -> None:
    clips = facts.pack.get('clips', {})
    rejected = facts.pack.get('rejected', {})
    for folder, name in clips.items():
        if name in facts.clips:
            facts.clips[name].packed = folder
    _reject_clips(facts, 'pack', rejected)
    frames = f'clips, {facts.pack.get("frames", 0)} frames'
    _count(facts, 'pack', (len(clips) + len(rejected), 'clips'), (len(clips), frames))


def _present(work: WorkFolder, stage: str, wanted: Iterable[str]) -> list[str]:
    """Returns the wanted items that a stage has results of, in natural order."""
    chosen = set(wanted)
    return [item for item in work.items(stage) if item in chosen]


def _reject(
    facts: Facts, stage: str, item: str, result: dict[str, Any], clip: str = '', video: str = ''
) -> bool:
    """Notes an item that was rejected; says whether it was."""
    reason = result.get('rejected')
    if reason is None:
        return False
    facts.rejections.append(Rejection(stage, item, reason, clip, video))
    if item in facts.clips:
        facts.clips[item].reason = reason
    return True


def _reject_clips(facts: Facts, stage: str, rejected: Mapping[str, str]) -> None:
    for clip in facts.kept():
        if clip.name in rejected:
            _reject(facts, stage, clip.name, {'rejected': rejected[clip.name]}, clip=clip.name)


def _count(facts: Facts, stage: str, before: tuple[int, str], after: tuple[int, str]) -> None:
    facts.passed[stage] = f'{before[0]} {before[1]}', f'{after[0]} {after[1]}'
