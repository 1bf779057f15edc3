"""What the work folder of `from-videos` holds of a run: facts of clips, and what was left out and why.

Read at any time, also of a run that has not ended. What earlier runs with other videos or options left in the
folder is skipped: a clip counts if its video and its track are still there.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from preprocessing.from_videos.identities import people
from preprocessing.from_videos.work_folder import WorkFolder, clip_names


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Something that a stage left out."""

    stage: str
    item: str  # file, video or clip
    reason: str
    video: str = ''  # that shows it, if it has no aligned images
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
    """Everything that the page shows, but for images."""

    videos: dict[str, dict[str, Any]]  # id -> entry in sources.json
    pack: dict[str, Any]  # content of pack.json
    clips: dict[str, Clip] = dataclasses.field(default_factory=dict)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    passed: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)  # stage -> in, out, in words
    threshold: float = np.nan  # of similarity; nan = not known
    speakers: dict[str, str] = dataclasses.field(default_factory=dict)  # identity -> label

    def kept(self) -> list[Clip]:
        """Returns the clips that no stage has rejected."""
        return [clip for clip in self.clips.values() if not clip.reason]

    def reject(self, stage: str, item: str, reason: str, video: str = '', time_sec: float = 0.0) -> None:
        """Notes an item that a stage left out."""
        self.rejections.append(Rejection(stage, item, reason, video, time_sec))
        if item in self.clips:
            self.clips[item].reason = reason


def angles(labels: np.ndarray) -> np.ndarray:
    """Returns yaw, pitch and roll of cameras about the head, in degrees.

    Yaw and pitch are where the camera stands, as in dataset_files.check: yaw is positive at positive x (the
    face looks to the left of the image), pitch above. Roll is positive when the right side of the camera is
    lowered (the head leans to the left of the image).

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


def collect(work: WorkFolder, clip_stages: Sequence[str]) -> Facts:
    """Reads the work folder; clip_stages: names of the stages of clips in their order, align first."""
    sources = work.read('sources')
    videos, rejected = sources.get('videos', []), sources.get('rejected', {})
    facts = Facts({video['id']: video for video in videos}, work.read('pack'))
    for name, reason in sorted(rejected.items()):
        facts.reject('sources', name, reason, video=name)
    facts.passed['sources'] = f'{len(videos) + len(rejected)} files', f'{len(videos)} videos'
    names = _collect_tracks(work, facts)
    align, *others = clip_stages
    aligned = _collect_clips(work, facts, align, names)
    facts.passed[align] = f'{aligned} faces', f'{len(facts.clips)} clips'
    for stage in others:
        count = _collect_clips(work, facts, stage, [clip.name for clip in facts.kept()])
        gone = sum(rejection.stage == stage for rejection in facts.rejections)
        facts.passed[stage] = f'{count} clips', f'{count - gone} clips'
    _collect_whole(work, facts)
    return facts


def _collect_tracks(work: WorkFolder, facts: Facts) -> list[str]:
    """Returns the names of the clips that should be aligned."""
    starts = {}  # video -> first frames of its shots
    for video in _present(work, 'shots', facts.videos):
        result = work.read(f'shots/{video}')
        starts[video] = [first for first, _ in result.get('shots', [])]
        if 'rejected' in result:
            facts.reject('shots', video, result['rejected'], video)
    names: list[str] = []
    for video in _present(work, 'tracks', starts):
        result = work.read(f'tracks/{video}')
        names += clip_names(video, result.get('tracks', []))
        if isinstance(result.get('rejected'), str):  # the whole video
            facts.reject('tracks', video, result['rejected'], video)
            continue
        for part in result.get('rejected', []):
            (first,) = starts[video][part['shot'] : part['shot'] + 1] or [0]
            item = f'{video}, shot {part["shot"] + 1}'
            facts.reject('tracks', item, part['reason'], video, first / facts.videos[video]['fps'])
    shots = sum(map(len, starts.values()))
    facts.passed['shots'] = f'{len(starts)} videos', f'{shots} shots'
    facts.passed['tracks'] = f'{shots} shots', f'{len(names)} faces'
    return names


def _collect_clips(work: WorkFolder, facts: Facts, stage: str, wanted: Iterable[str]) -> int:
    """Takes the results that a stage has of clips; returns how many there are."""
    names = _present(work, stage, wanted)
    for name in names:
        result = work.read(f'{stage}/{name}')
        if 'rejected' in result:
            facts.reject(stage, name, result['rejected'])
        if stage == 'align' and 'rejected' not in result:
            values = (result[key] for key in ('video', 'first', 'frames', 'fps', 'upscale'))
            facts.clips[name] = Clip(name, *values)
        elif stage == 'cameras' and 'rejected' not in result:
            facts.clips[name].angles_deg = angles(result['labels'])
            facts.clips[name].residual = np.nan if result['residual'] is None else result['residual']
        elif stage == 'verify' and 'similarity' in result:
            clip, facts.threshold = facts.clips[name], result['threshold']
            clip.similarity, clip.examined = np.array(result['similarity']), result['frames']
            clip.noisy = result['noisy']
    return len(names)


def _collect_whole(work: WorkFolder, facts: Facts) -> None:
    """Takes the results of the stages over all clips."""
    result, pack = work.read('identities'), facts.pack
    clusters, folders = result.get('clusters', {}), {name: f for f, name in pack.get('clips', {}).items()}
    facts.speakers = result.get('speakers', {})
    for stage, table in (('identities', result), ('pack', pack)):
        for clip in facts.kept():
            if clip.name in table.get('rejected', {}):
                facts.reject(stage, clip.name, table['rejected'][clip.name])
    for clip in facts.clips.values():
        clip.identity = clusters.get(clip.name, -1)
        clip.packed = folders.get(clip.name, '')
    found = f'{len(clusters)} clips of {people(clusters.values())}'
    facts.passed['identities'] = found, f'{len(result.get("kept", []))} clips'
    packed, gone = len(folders), len(pack.get('rejected', {}))
    facts.passed['pack'] = f'{packed + gone} clips', f'{packed} clips, {pack.get("frames", 0)} frames'


def _present(work: WorkFolder, stage: str, wanted: Iterable[str]) -> list[str]:
    """Returns the wanted items that a stage has results of, in natural order."""
    chosen = set(wanted)
    return [item for item in work.items(stage) if item in chosen]
