"""One video -> the faces in it, each followed through its shot.

Faces are detected when none is followed, when one is lost, and every few frames to find more; in between the
next frame is searched around the points of the last. What is followed must look like a face and stay where it
was: a cut that stage `shots` missed ends a track. Everything depends on the video alone, frame by frame.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.video import video_frames
from preprocessing.faces.detector import SAME_FACE, overlap
from preprocessing.faces.mesh import FaceMesh, rect_of_face, rect_of_landmarks
from preprocessing.from_videos.sources import keep_listed_face
from preprocessing.from_videos.stages import Item, Stage
from preprocessing.from_videos.work_folder import clip_names

_KEPT_PLACE = 0.3  # overlap (intersection over union) of a face's boxes in neighbouring frames, at least
_TWICE = 0.5  # two tracks whose boxes overlap by more follow the same face
_MIN_SCORE = 0.5  # of the mesh, at least; below it is not a face
_DETECT_EVERY = 8  # frames between two detections


@dataclasses.dataclass
class Track:
    """A face that is followed; one entry per frame."""

    shot: int
    first: int  # frame of the video
    points: list[np.ndarray] = dataclasses.field(default_factory=list)  # float32 [468, 3], pixels
    scores: list[float] = dataclasses.field(default_factory=list)

    def box(self) -> np.ndarray:
        """Returns the mean box of the points, float64 [4]: left, top, right, bottom."""
        return np.mean([box_of(p) for p in self.points], axis=0)

    def size(self) -> float:
        """Returns the mean side of the boxes in pixels (geometric mean of width and height)."""
        boxes = np.array([box_of(p) for p in self.points])
        return float(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).mean())


def track_video(
    path: Path | str, shots: Sequence[Sequence[int]], mesh: FaceMesh, min_frames: int, min_size: float
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Follows the faces of a video.

    Args:
        path: the video.
        shots: [first, end) frames of each; other frames are skipped.
        mesh: the networks.
        min_frames: shorter tracks are rejected.
        min_size: smallest face that is kept, as a fraction of the largest in the shot (by side).

    Returns:
        arrays: of the k-th track kept landmarks_k float32 [T, 468, 3] (pixels of the frame, 0 = left/top edge
        of pixel 0; z away from the viewer, same scale) and scores_k float32 [T];
        and what goes into JSON: `tracks`, of each kept shot, first (frame of the video), frames, box (mean;
        left, top, right, bottom) and size (mean side of the face in pixels), by shot and the largest first;
        `rejected`: of others shot and reason.

    Raises:
        DataError: if the video cannot be decoded.
    """
    followers = [_Follower(shot, mesh) for shot in range(len(shots))]
    with contextlib.closing(video_frames(path)) as frames:
        for i, (image, _) in enumerate(frames):
            for follower, (first, end) in zip(followers, shots, strict=True):
                if first <= i < end:
                    follower.step(i, image)
    arrays: dict[str, np.ndarray] = {}
    tracks: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for shot, follower in enumerate(followers):
        found = sorted(follower.tracks, key=lambda t: (-t.size(), t.first))
        kept, reasons = select(found, min_frames, min_size)
        rejected += [{'shot': shot, 'reason': reason} for reason in reasons]
        for track in kept:
            arrays[f'landmarks_{len(tracks)}'] = np.stack(track.points)
            arrays[f'scores_{len(tracks)}'] = np.array(track.scores, np.float32)
            place = {'shot': shot, 'first': track.first, 'frames': len(track.points)}
            tracks.append({**place, 'box': track.box().tolist(), 'size': track.size()})
    return arrays, {'tracks': tracks, 'rejected': rejected}


def select(tracks: Sequence[Track], min_frames: int, min_size: float) -> tuple[list[Track], list[str]]:
    """Chooses among the tracks of a shot, the largest first.

    Returns:
        those kept; and the reasons why others are not.
    """
    kept, reasons = [], [] if tracks else ['no face in any frame']
    largest = max((t.size() for t in tracks if len(t.points) >= min_frames), default=0.0)
    for track in tracks:
        count, size = len(track.points), track.size()
        if count < min_frames:
            where = f'frames {track.first} to {track.first + count - 1}'
            reasons.append(f'face only in {where}, fewer than {min_frames} frames')
        elif size < min_size * largest:
            limit = f'less than {min_size:g} of it'
            reasons.append(f'face of {size:.0f} pixels beside one of {largest:.0f}, {limit}')
        else:
            kept.append(track)
    return kept, reasons


def box_of(points: np.ndarray) -> np.ndarray:
    """Returns the box around points [468, 2 or 3], float64 [4]: left, top, right, bottom."""
    xy = points[:, :2].astype(np.float64)
    return np.concatenate([xy.min(axis=0), xy.max(axis=0)])


class _Follower:
    """Follows the faces of one shot.

    Attributes:
        tracks: all so far, including those that ended.
    """

    def __init__(self, shot: int, mesh: FaceMesh):
        self.tracks: list[Track] = []
        self._shot = shot
        self._mesh = mesh
        self._current: list[Track] = []
        self._frames = 0  # so far

    def step(self, frame: int, image: np.ndarray) -> None:
        """Takes the next frame."""
        followed, self._current = self._current, []
        points, scores = self._mesh.landmarks(image, [rect_of_landmarks(t.points[-1]) for t in followed])
        lost = []
        for track, p, score in zip(followed, points, scores, strict=True):
            if self._is_face(p, score, image) and _continues(track, p):
                self._add(track, p, score)
            else:
                lost.append(track)
        due = self._frames % _DETECT_EVERY == 0
        if lost or due or not self._current:
            self._detect(frame, image, lost, tiles=not self._current and bool(lost or due))
        self._frames += 1

    def _detect(self, frame: int, image: np.ndarray, lost: list[Track], tiles: bool) -> None:
        """Detects faces; one where a track was lost continues it, others begin a track."""
        faces = self._mesh.detect(image, tiles)
        rects = [rect_of_face(f) for f in faces if not self._is_followed(f.box, SAME_FACE)]
        points, _ = self._mesh.landmarks(image, rects)
        # again, from the points as in frames that follow: their rectangles differ from those of detection
        points, scores = self._mesh.landmarks(image, [rect_of_landmarks(p) for p in points])
        for p, score in zip(points, scores, strict=True):
            if self._is_face(p, score, image):
                before = next((t for t in lost if _continues(t, p)), None)
                track = before or Track(self._shot, frame)
                if self._add(track, p, score) and before is None:
                    self.tracks.append(track)
                lost = [t for t in lost if t is not before]

    def _is_face(self, points: np.ndarray, score: float, image: np.ndarray) -> bool:
        """Returns whether the network saw a face whose middle is in the image."""
        size = np.array(image.shape[1::-1])
        box = box_of(points)
        center, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        inside = (center >= 0).all() and (center <= size).all() and (sides <= 2 * size.max()).all()
        return bool(score >= _MIN_SCORE and inside)

    def _is_followed(self, box: np.ndarray, limit: float) -> bool:
        """Returns whether a box overlaps that of a track of this frame by more than a limit."""
        boxes = np.array([box_of(t.points[-1]) for t in self._current]).reshape(-1, 4)
        return bool((overlap(box, boxes) > limit).any())

    def _add(self, track: Track, points: np.ndarray, score: float) -> bool:
        """Adds a frame to a track, unless another has this face already, which ends this one."""
        if self._is_followed(box_of(points), _TWICE):
            return False
        track.points.append(points)
        track.scores.append(float(score))
        self._current.append(track)
        return True


def _continues(track: Track, points: np.ndarray) -> bool:
    """Returns whether points are about where the last ones of a track were."""
    return overlap(box_of(points), box_of(track.points[-1])[None])[0] > _KEPT_PLACE


def _clips(video: str, result: dict[str, Any]) -> dict[str, Any]:
    """Returns the clips that begin in a video: name -> origin."""
    names = clip_names(video, result['tracks'])
    return {name: {'video': video, 'track': k} for k, name in enumerate(names)}


@Stage(
    'tracks',
    per='video',
    needs=('sources', 'shots'),
    options=('min_frames', 'face_size'),
    torch=True,
    clips=_clips,
)
def tracks_stage(item: Item, options: Any) -> dict[str, Any]:
    """Follows the faces of a video; writes tracks/VIDEO.npz and returns {"tracks", "rejected", "files"}."""
    entry, shots = (item.work.read(f'{stage}/{item.name}') for stage in ('sources', 'shots'))
    path, least = entry['path'], (options.min_frames, options.face_size)
    arrays, result = track_video(path, shots['shots'], _face_mesh(), *least)
    if entry['box'] is not None:
        arrays, result = keep_listed_face(arrays, result, entry['box'])
    return {**result, 'files': [item.work.write_arrays('tracks', item.name, arrays)]}


@functools.cache
def _face_mesh() -> FaceMesh:
    """Returns the networks that find faces, loaded once per process."""
    return FaceMesh()
