"""Options of the stages from raw videos to a data set; apart from these, so that --help is quick."""

import dataclasses
from typing import Annotated, Literal

from dnnlib.cli import Range


@dataclasses.dataclass(frozen=True)
class Options:
    """What a run is given; paths as the user wrote them."""

    # folder with the videos, at any depth; with a list: with its whole videos, named by their YouTube ids
    source: Annotated[str, 'DIR']
    dest: Annotated[str, 'X.zip']  # the zip to write
    # folder for what the stages find; the same command continues from there
    workdir: Annotated[str, 'W']
    resolution: Annotated[int, Range(32)] = 512  # pixels of a side of the crops
    # of the images in the zip: png keeps every bit; webp and jpg (quality 95) are several times smaller
    format: Literal['png', 'webp', 'jpg'] = 'png'
    list_kind: Literal['voxceleb', 'celebvhq', 'talkinghead'] | None = None  # layout of a public clip list
    list_path: Annotated[str, 'FILE'] | None = None  # that list, instead of all videos; for voxceleb a folder
    download: bool = False  # fetch listed videos that are missing from YouTube
    min_frames: Annotated[int, Range(2)] = 16  # shortest clip in frames [PV3D A.1: videos of 16 frames]
    # a face smaller than this fraction of the largest face in its shot is skipped
    face_size: Annotated[float, Range(0, 1)] = 0.25
    # Gaussian smoothing of landmarks and cameras over time, standard deviation in frames [PV3D A.3]
    sigma: Annotated[float, Range(0)] = 2.0
    # folder of Deep3DFaceRecon coefficients for the cameras, see docs/data.md; none = from the landmarks
    deep3d: Annotated[str, 'DIR'] | None = None
    recognizer: Literal['sface', 'arcface'] = 'sface'  # face recognition network that distinguishes people
    recognizer_file: Annotated[str, 'FILE'] | None = None  # its weights, if they do not come with a package
    # a frame less similar than this to the others of its clip is noisy [PV3D A.3]
    similarity: Annotated[float, Range(-1, 1)] = 0.5
    noisy: Annotated[int, Range(0)] = 2  # clips with more noisy frames than this are discarded [PV3D A.3]
    same_person: Annotated[float, Range(-1, 1)] = 0.5  # clips more similar than this are of one person
    # most clips of one person; those of highest resolution are kept [PV3D A.3]
    per_person: Annotated[int, Range(1)] = 2
    # work on a Dask cluster whose workers see the same files, see docs/data.md; none = on this machine
    scheduler: Annotated[str, 'tcp://HOST:8786'] | None = None
