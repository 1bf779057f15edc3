"""A small work folder of `from-videos`, written by hand as its stages would."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from preprocessing.from_videos.assemble import pack_stage
from preprocessing.from_videos.stages import Item
from preprocessing.from_videos.work_folder import WorkFolder
from training.camera import orbit_label

SIZE = 32  # pixels of a side of the crops
EVIL = 'a<b>"&'  # a video whose name is markup


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def mesh(frames):
    """Landmarks [T, 468, 3] that lie in the crop."""
    points = np.random.default_rng(0).uniform(4, SIZE - 4, [468, 3])
    return np.repeat(points[None], frames, axis=0).astype(np.float32)


def add_video(root, video, frames=16, yaw_deg=10.0, upscale=1.5, **entry):
    """Writes one clip of one video up to the stage `cameras`; returns the name of the clip."""
    clip = f'{video}-000000'
    facts = {'sha256': 'ab' * 32, 'fps': 20.0, 'frames': frames, 'width': 640, 'height': 480, 'speaker': None}
    sources = json.loads((root / 'sources.json').read_text()) if (root / 'sources.json').exists() else {}
    listed = sources.get('videos', []) + [{'id': video, 'path': f'/v/{video}.mp4', **facts, **entry}]
    write_json(root / 'sources.json', {'rejected': {}, **sources, 'videos': listed})
    write_json(root / 'shots' / f'{video}.json', {'shots': [[0, frames]]})
    track = {'shot': 0, 'first': 0, 'frames': frames, 'box': [0, 0, 9, 9]}
    write_json(root / 'tracks' / f'{video}.json', {'tracks': [track], 'rejected': []})
    np.savez(root / 'tracks' / f'{video}.npz', scores_0=np.full(frames, 0.75))
    folder = root / 'align' / clip
    folder.mkdir(parents=True)
    for i in range(frames):
        Image.new('RGB', (SIZE, SIZE), (10 * i, 90, 120)).save(folder / f'{i:05d}.png')
    np.savez(root / 'align' / f'{clip}.npz', landmarks=mesh(frames))
    matrices = [[[upscale, 0.0, float(i)], [0.0, upscale, 0.0]] for i in range(frames)]
    facts = {'video': video, 'first': 0, 'frames': frames, 'fps': 20.0, 'transform': matrices}
    write_json(folder.with_name(f'{clip}.json'), {**facts, 'upscale': upscale, 'landmarks': f'{clip}.npz'})
    labels = [orbit_label(np.radians(yaw_deg), 0.1).tolist()] * frames
    write_json(root / 'cameras' / f'{clip}.json', {'labels': labels, 'raw_labels': labels, 'residual': 2.25})
    return clip


def add_verdict(root, clip, similarity, reason=''):
    """Writes the result of the stage `verify`."""
    frames = [2 * i for i in range(len(similarity))]
    noisy = [f for f, s in zip(frames, similarity, strict=True) if s < 0.5]
    verdict = {'similarity': similarity, 'frames': frames, 'noisy': noisy, 'threshold': 0.5}
    rejected = {'rejected': reason} if reason else {}
    write_json(root / 'verify' / f'{clip}.json', verdict | rejected)


def make(root: Path):
    """Writes the folder of a run of three good clips of two people, one noisy clip, and one too many."""
    clips = [
        add_video(root, video, yaw_deg=yaw) for video, yaw in (('one', -19.0), (EVIL, 11.0), ('two', 1.0))
    ]
    noisy, many = add_video(root, 'noisy'), add_video(root, 'many', upscale=3.0)
    for clip in [*clips, many]:
        add_verdict(root, clip, [0.9, 0.8, 0.7, 0.8])
    add_verdict(root, noisy, [0.9, 0.1, 0.2, 0.3], '3 of 4 examined frames are noisy')
    identities = {
        'clusters': {clips[0]: 0, clips[1]: 1, clips[2]: 1, many: 1},
        'speakers': {'1': 'id<1>'},
        'kept': sorted(clips),
        'rejected': {many: 'identity 1 has 2 clips of at least its resolution (11 pixels): others'},
    }
    write_json(root / 'identities.json', identities)
    return clips


def pack(folder, dest='d.zip', size=SIZE, min_frames=16, without=()):
    """Runs the stage `pack` in the work folder `folder`/w; a stage has rejected the clips `without`."""
    options = SimpleNamespace(dest=str(folder / dest), resolution=size, format='png', min_frames=min_frames)
    work = WorkFolder(folder / 'w')
    clips = {name: {} for name in work.read('identities').get('kept', []) if name not in without}
    return pack_stage(Item('pack', work, {'clips': clips}), options)
