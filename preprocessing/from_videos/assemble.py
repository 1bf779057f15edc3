"""The last stage, `pack`: aligned clips with labels -> the data set zip, with the origin of each clip.

The zip is written by preprocessing.dataset_files.pack and depends on the work folder alone; then it is
checked as `dataset_tool.py check` does it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import UserError, file_sha256
from preprocessing.dataset_files.check import check_dataset
from preprocessing.dataset_files.pack import PackOptions, RawClip, pack
from preprocessing.from_videos.stages import Item, Stage
from preprocessing.from_videos.work_folder import WorkFolder, clip_names, rounded


def _holds(item: Item, options: Any, result: dict[str, Any]) -> bool:
    """Returns whether the zip is still there and the same."""
    dest = Path(options.dest)
    return result.get('dest') == dest.name and dest.is_file() and result['sha256'] == file_sha256(dest)


@Stage(
    'pack',
    per='all',
    needs=('sources', 'tracks', 'align', 'cameras', 'verify', 'identities'),
    options=('resolution', 'format', 'min_frames'),
    paths=('dest',),
    version=3,
    here=True,
    holds=_holds,
    note=lambda results: ', {frames} frames in {dest}'.format(**results['pack']),
)
def pack_stage(item: Item, options: Any) -> dict[str, Any]:
    """Packs the clips that identities.json keeps into a data set zip, and checks it.

    Returns:
        content of pack.json: {'dest': file name, 'sha256', 'resolution', 'format', 'frames': number,
        'clips': {folder in the zip: clip}, 'rejected': {clip: reason},
        'problems': {folder in the zip: [what the check found]}}.

    Raises:
        UserError: if no clip is left, or the zip cannot be written.
    """
    work, least = item.work, options.min_frames
    videos = {video['id']: video for video in work.read('sources').get('videos', [])}
    identities = work.read('identities')
    clips, rejected = [], {}
    for clip in identities.get('kept', []):
        if clip not in item.origin['clips']:  # a stage after identities has rejected it
            continue
        count = len(work.read(f'cameras/{clip}').get('labels', []))
        if count < least:
            rejected[clip] = f'has {count} frames; a clip of the data set needs at least {least}'
        else:
            clips.append(_raw_clip(work, clip, videos, identities))
    if not clips:
        raise UserError(
            f'{work.root}: no clip is left for the data set ({len(rejected)} are too short); '
            'report.html in that folder shows which'
        )
    look = PackOptions(options.resolution, options.format)
    bad, _ = pack(clips, options.dest, look, workers=item.workers, skip_bad=True)
    names = [clip.name for clip in clips]
    for text in bad:  # "clip: reason"
        name = next(name for name in names if text.startswith(f'{name}: '))
        rejected[name] = text[len(name) + 2 :]
    packed = [name for name in names if name not in rejected]
    index, reports = check_dataset(options.dest, item.workers)
    return {
        'dest': Path(options.dest).name,
        'sha256': file_sha256(options.dest),
        'resolution': options.resolution,
        'format': options.format,
        'frames': len(index.files),
        'clips': {f'{i:06d}': name for i, name in enumerate(packed)},
        'rejected': rejected,
        'problems': {report.name: report.problems for report in reports if report.problems},
    }


def _raw_clip(
    work: WorkFolder, clip: str, videos: dict[str, dict[str, Any]], identities: dict[str, Any]
) -> RawClip:
    """Returns a clip to pack, with where it is from and what was measured on it.

    That becomes its entry in `clips` of dataset.json: source (file name), sha256 (of it), video (its id in
    the work folder), first (frame), start_sec and end_sec in that file, fps; crop: first and mean (2x3
    matrices, pixels of the source -> pixels of the aligned image); upscale (aligned pixels per pixel of the
    source), landmarks_score (mean), camera_residual (pixels at 512), similarity: min and mean of examined
    frames, identity (number), speaker if known, and listed for a clip of a list: its entry there, which names
    the video; the source is then the cut.
    """
    aligned, cameras = work.read(f'align/{clip}'), work.read(f'cameras/{clip}')
    video, first, fps = videos[aligned['video']], aligned['first'], aligned['fps']
    transforms = np.array(aligned['transform'], np.float64)
    similarity = np.array(work.read(f'verify/{clip}')['similarity'])
    k = clip_names(video['id'], work.read(f'tracks/{video["id"]}')['tracks']).index(clip)
    scores = f'scores_{k}'  # alone: all landmarks of a long video are large, and it has many clips
    identity = identities['clusters'][clip]
    speaker = identities.get('speakers', {}).get(str(identity))
    info = {
        'source': Path(video['path']).name,
        'sha256': video['sha256'],
        'video': video['id'],
        'first': first,
        'start_sec': first / fps,
        'end_sec': (first + aligned['frames']) / fps,
        'fps': fps,
        'crop': {'first': transforms[0].tolist(), 'mean': transforms.mean(axis=0).tolist()},
        'upscale': aligned['upscale'],
        'landmarks_score': work.arrays('tracks', video['id'], [scores])[scores].mean().item(),
        'camera_residual': cameras['residual'],
        'similarity': {'min': similarity.min().item(), 'mean': similarity.mean().item()},
        'identity': identity,
    }
    info |= {'listed': video['listed']} if 'listed' in video else {}
    info |= {'speaker': speaker} if speaker is not None else {}
    return RawClip(clip, work.root / 'align' / clip, cameras['labels'], fps, info=rounded(info), ready=True)
